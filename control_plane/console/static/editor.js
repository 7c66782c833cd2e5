"use strict";
// Drag and drop, and arrow keys on a card: each presses what the buttons of the card would.
const board = document.querySelector(".board");
const form = document.getElementById("board-form");

const send = (what) => {
  const button = document.createElement("button");
  button.name = "do";
  button.value = what;
  button.hidden = true;
  form.append(button);
  form.requestSubmit(button);
};

if (board && form) {
  let dragged = null;
  let target = "";
  const clear = () => {
    target = "";
    for (const one of board.querySelectorAll(".drop-before, .drop-left, .drop-end")) one.classList.remove("drop-before", "drop-left", "drop-end");
  };
  // Where it would go: before which card, or at the end of which list.
  const aim = (event) => {
    const stage = event.target.closest(".stage");
    if (!dragged || !stage) return;
    if (dragged.dataset.list === "stages") {
      const at = board.querySelector(".stage").dataset.at.replace(/\[\d+\]$/, "");
      if (!stage.dataset.at) {
        target = at;
        stage.classList.add("drop-left");
        return;
      }
      const box = stage.getBoundingClientRect();
      const right = event.clientX > box.left + box.width / 2;
      const mark = right ? stage.nextElementSibling : stage;
      target = mark.dataset.at || at;
      mark.classList.add("drop-left");
      return;
    }
    const list = stage.querySelector("[data-drop]");
    if (!list) return;
    const before = [...list.children].find((card) => {
      const box = card.getBoundingClientRect();
      return event.clientY < box.top + box.height / 2;
    });
    target = before ? before.dataset.at : list.dataset.drop;
    (before || list).classList.add(before ? "drop-before" : "drop-end");
  };

  board.addEventListener("dragstart", (event) => {
    dragged = event.target.closest("[data-at]");
    if (!dragged) return;
    event.dataTransfer.setData("text/plain", dragged.dataset.at);
    event.dataTransfer.effectAllowed = "move";
    dragged.classList.add("dragged");
  });
  board.addEventListener("dragover", (event) => {
    clear();
    aim(event);
    if (target) event.preventDefault();
  });
  board.addEventListener("drop", (event) => {
    if (!target || !dragged) return;
    event.preventDefault();
    if (target !== dragged.dataset.at) send(`move ${dragged.dataset.at} ${target}`);
  });
  board.addEventListener("dragend", () => {
    if (dragged) dragged.classList.remove("dragged");
    dragged = null;
    clear();
  });

  // Alt and an arrow moves the card that has the focus.
  const SYMBOLS = { ArrowLeft: "←", ArrowUp: "↑", ArrowDown: "↓", ArrowRight: "→" };
  board.addEventListener("keydown", (event) => {
    const symbol = event.altKey && SYMBOLS[event.key];
    const card = symbol && event.target.closest("[data-at]");
    if (!card) return;
    event.preventDefault();
    const movers = card.querySelectorAll(card.dataset.list === "steps" ? ".mover" : "header .mover");
    const button = [...movers].find((one) => one.textContent.startsWith(symbol) && !one.disabled);
    if (button) button.click();
  });

  // What was moved keeps the focus; not before the browser has gone to the fragment, which takes it away.
  addEventListener("load", () => setTimeout(() => {
    const moved = location.hash && document.getElementById(location.hash.slice(1));
    if (moved && board.contains(moved)) moved.querySelector("a").focus();
  }));
}

// What was typed is not left by mistake.
for (const item of document.querySelectorAll("form.item")) {
  let changed = false;
  item.addEventListener("input", () => { changed = true; });
  item.addEventListener("submit", () => { changed = false; });
  addEventListener("beforeunload", (event) => { if (changed) event.preventDefault(); });
}
