"use strict";
// What pages can do on top of plain links and forms; without it everything still works.
const CHECK_DELAY_MS = 150;

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-open]");
  const dialog = opener && document.getElementById(opener.dataset.open);
  if (dialog instanceof HTMLDialogElement) {
    event.preventDefault();
    dialog.showModal();
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
  if (copy) {
    navigator.clipboard.writeText(copy.previousElementSibling.textContent).then(
      () => { copy.textContent = "Copied"; },
      () => { copy.textContent = "Select and copy by hand"; },
    );
  }
});

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

// A form that is on its way says so, and is not sent twice.
document.addEventListener("submit", (event) => {
  if (event.defaultPrevented || event.target.method !== "post") return;
  if (event.target.dataset.sent) {
    event.preventDefault();
    return;
  }
  event.target.dataset.sent = "yes";
  event.target.setAttribute("aria-busy", "true");
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

// What changes by itself: the server sends the part of the page, rendered as the page was.
for (const part of document.querySelectorAll("[data-live]")) {
  const source = new EventSource(part.dataset.live);
  source.addEventListener("rollout", (event) => { part.innerHTML = event.data; });
  source.addEventListener("end", () => source.close());
}
