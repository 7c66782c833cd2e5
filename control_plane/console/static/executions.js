"use strict";
// Follows executions as they are stored: the server sends rows as the page has them, newest first.
for (const body of document.querySelectorAll("[data-tail]")) {
  const state = document.querySelector("[data-tail-state]");
  const note = state.parentElement;
  const tell = (text, kind) => {
    state.textContent = text;
    note.classList.remove("plain", "good", "warn");
    note.classList.add(kind);
  };
  const missed = document.querySelector("[data-tail-missed]");
  let missedCount = 0;
  const rowsOf = (html) => {
    const made = document.createElement("template");
    made.innerHTML = html;
    return [...made.content.querySelectorAll("tr")];
  };
  tell("Connecting.", "plain");
  const source = new EventSource(body.dataset.tail);
  source.addEventListener("all", (event) => {
    body.replaceChildren(...rowsOf(event.data));
    tell("Following. New executions appear on top.", "good");
  });
  source.addEventListener("rows", (event) => {
    const rows = rowsOf(event.data).filter((row) => !document.getElementById(row.id));
    for (const row of rows) row.classList.add("new");
    body.prepend(...rows);
    while (body.rows.length > Number(body.dataset.maxRows)) body.lastElementChild.remove();
  });
  source.addEventListener("missed", (event) => {
    missedCount += Number(event.data);
    missed.textContent = `${missedCount} more came too quickly to be shown; the list has them.`;
  });
  source.addEventListener("end", () => {
    source.close();
    tell("You are signed out; sign in to go on.", "warn");
  });
  source.addEventListener("error", () => {
    const closed = source.readyState === EventSource.CLOSED;
    tell(closed ? "It cannot be followed any more; load the page again." : "The connection broke; trying again.", "warn");
  });
}
