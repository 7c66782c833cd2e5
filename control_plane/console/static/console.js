"use strict";
// What pages can do on top of plain links and forms; without it everything still works.
const CHECK_DELAY_MS = 150;
const COPIED_MS = 2500;

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-open]");
  const dialog = opener && document.getElementById(opener.dataset.open);
  if (dialog instanceof HTMLDialogElement) {
    event.preventDefault();
    dialog.showModal();
    const first = dialog.querySelector("input:not([type=hidden])");
    if (first) first.focus();
  }
  const closer = event.target.closest("dialog [data-close]");
  if (closer) {
    event.preventDefault();
    closer.closest("dialog").close();
  }
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
  const copy = event.target.closest("[data-copy]");
  if (copy) copyFrom(copy.previousElementSibling, copy);
});

// Browsers have a clipboard for pages of localhost and of https alone; elsewhere what is selected is copied.
async function copyFrom(shown, button) {
  let copied = false;
  if (navigator.clipboard) {
    copied = await navigator.clipboard.writeText(shown.textContent).then(() => true, () => false);
  }
  if (!copied) {
    getSelection().selectAllChildren(shown);
    copied = document.execCommand("copy");
  }
  button.textContent = copied ? "Copied" : "Press Ctrl-C";
  setTimeout(() => { button.textContent = "Copy"; }, COPIED_MS);
}

document.addEventListener("keydown", (event) => {
  const menu = event.target.closest && event.target.closest("details.menu[open]");
  if (!menu) return;
  const items = [...menu.querySelectorAll("a")];
  const at = items.indexOf(document.activeElement);
  if (event.key === "Escape") {
    menu.open = false;
    menu.querySelector("summary").focus();
  } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    const step = event.key === "ArrowDown" ? 1 : -1;
    items[(at + step + items.length) % items.length].focus();
  }
});

// A time is told where the reader is, too.
document.addEventListener("mouseover", (event) => {
  const time = event.target.closest && event.target.closest("time[datetime]");
  if (!time || time.dataset.local) return;
  time.dataset.local = new Date(time.dateTime).toLocaleString();
  time.title = `${time.title || time.textContent} (${time.dataset.local} here)`;
});

// The answer to a form is no page that Back can show; who goes on from it finds the page of the form there.
const leaveForm = () => {
  if (document.body.dataset.again) history.replaceState(null, "", document.body.dataset.again);
};
document.addEventListener("click", (event) => {
  if (event.target.closest("a[href]") && !event.defaultPrevented) leaveForm();
});

// A form that is on its way says so, and is not sent twice.
document.addEventListener("submit", (event) => {
  if (event.defaultPrevented || event.target.method !== "post") return;
  if (event.target.dataset.sent) {
    event.preventDefault();
    return;
  }
  event.target.dataset.sent = "yes";
  event.target.setAttribute("aria-busy", "true");
  leaveForm();
});
// Back from the next page: the form may be sent again.
addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) {
    delete form.dataset.sent;
    form.removeAttribute("aria-busy");
  }
});

for (const button of document.querySelectorAll("[data-copy]")) button.hidden = false;

// A tag is checked while it is typed.
for (const input of document.querySelectorAll("[data-check]")) {
  const told = document.getElementById(input.getAttribute("aria-describedby"));
  let timer = 0;
  let asked = 0;
  const check = async () => {
    const mine = ++asked;
    const value = input.value.trim();
    let answer = { ok: true, message: told.dataset.hint };
    if (value) {
      const response = await fetch(input.dataset.check + encodeURIComponent(value)).catch(() => null);
      if (response && response.ok) answer = await response.json();
    }
    if (mine !== asked) return;
    told.textContent = answer.message;
    told.classList.toggle("wrong", !answer.ok);
    told.classList.toggle("right", answer.ok && Boolean(value));
    if (answer.ok) input.removeAttribute("aria-invalid");
    else input.setAttribute("aria-invalid", "true");
  };
  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(check, CHECK_DELAY_MS);
  });
}

// The lines for a terminal say the reason that is typed: within quotes of the shell, and for grpcurl within those of JSON too.
const reason = document.getElementById("f-reason");
if (reason) {
  // Said only where it is not what is shown.
  for (const code of document.querySelectorAll("[data-reasoned]")) code.dataset.without ??= code.textContent;
  const told = () => {
    for (const code of document.querySelectorAll("[data-reasoned]")) {
      const { without, reasoned } = code.dataset;
      const text = reasoned.includes('"{reason}"') ? JSON.stringify(reason.value.trim()).slice(1, -1) : reason.value.trim();
      code.textContent = text ? reasoned.replace("{reason}", () => text.replaceAll("'", `'"'"'`)) : without;
    }
  };
  reason.addEventListener("input", told);
  told();
}

// What changes by itself: the server sends the part of the page, rendered as the page was.
for (const part of document.querySelectorAll("[data-live]")) {
  const source = new EventSource(part.dataset.live);
  const lost = document.createElement("p");
  lost.className = "note warn";
  lost.textContent = "The connection to the console broke; this is how it stood then. Trying again.";
  source.addEventListener("rollout", (event) => { part.innerHTML = event.data; });
  source.addEventListener("error", () => part.append(lost));
  source.addEventListener("end", () => source.close());
}

// The draft: line numbers, and the way to the line of an error.
for (const editor of document.querySelectorAll("[data-editor]")) {
  const gutter = editor.previousElementSibling;
  const wrong = new Set(editor.dataset.errors.split(",").map(Number));
  const number = () => {
    const count = editor.value.split("\n").length;
    if (gutter.childNodes.length === count) return;
    gutter.replaceChildren(...Array.from({ length: count }, (_, at) => {
      const line = document.createElement(wrong.has(at + 1) ? "b" : "span");
      line.textContent = `${at + 1}\n`;
      return line;
    }));
  };
  number();
  let changed = false;
  editor.addEventListener("input", () => {
    changed = true;
    number();
    for (const warning of document.querySelectorAll("[data-unsaved]")) warning.hidden = false;
  });
  editor.addEventListener("scroll", () => { gutter.scrollTop = editor.scrollTop; });
  editor.form.addEventListener("submit", () => { changed = false; });
  addEventListener("beforeunload", (event) => { if (changed) event.preventDefault(); });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-line]");
    if (!link) return;
    event.preventDefault();
    const lines = editor.value.split("\n");
    const start = lines.slice(0, link.dataset.line - 1).join("\n").length + (link.dataset.line > 1 ? 1 : 0);
    editor.focus();
    editor.setSelectionRange(start, start + lines[link.dataset.line - 1].length);
    editor.scrollTop = (link.dataset.line - 4) * (editor.scrollHeight / lines.length);
  });
}
