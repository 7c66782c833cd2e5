"use strict";
// A trigger is sent without leaving the page: the server answers with the part of the page that changes, as it happens.
const answer = document.querySelector("[data-tried]");
let running = null;

function show(html) {
  const heading = answer.querySelector("h2");
  const shown = document.createElement("template");
  shown.innerHTML = html;
  answer.replaceChildren(heading, shown.content);
}

function tell(text) {
  const told = document.createElement("p");
  told.className = "sub";
  told.textContent = text;
  answer.replaceChildren(answer.querySelector("h2"), told);
}

async function follow(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (waiting + value).split("\n\n");
    waiting = blocks.pop();
    for (const block of blocks) {
      const data = block.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6));
      if (data.length) show(data.join("\n"));
    }
  }
}

for (const form of document.querySelectorAll("form[data-try]")) {
  const stop = form.querySelector("[data-stop]");
  const send = form.querySelector(".primary");
  stop.addEventListener("click", () => running && running.abort());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (running) return;
    running = new AbortController();
    stop.hidden = false;
    stop.focus();
    send.disabled = true;
    tell("Sent.");
    try {
      const body = new URLSearchParams(new FormData(form));
      const response = await fetch(form.action, { method: "POST", body, headers: { accept: "text/event-stream" }, signal: running.signal });
      // A refusal of the form itself is a page: nothing was sent on, so the form may be sent as any other.
      if (!(response.headers.get("content-type") || "").startsWith("text/event-stream")) form.submit();
      else await follow(response);
    } catch (error) {
      tell(running.signal.aborted ? "Stopped: the gateway cancels it." : "The connection to the console broke; look at the executions for what became of it.");
    } finally {
      running = null;
      send.disabled = false;
      if (document.activeElement === stop) send.focus();
      stop.hidden = true;
    }
  });
}
