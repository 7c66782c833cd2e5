"""An upstream that fails on demand: tools and an OpenAI-compatible model, on loopback, in the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from pointsman.asgi import asgi
from pointsman.settings import Address
from pointsman.web import HttpServer

HUGE_BYTES = 5 * 1024 * 1024


class ScriptedUpstream:
    """`url` is where it listens. `calls` counts requests by path; `seen` has them as (method, path, headers, body)."""

    def __init__(self) -> None:
        self.url = ""
        self.calls: Counter[str] = Counter()
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.hanging = 0
        self.release = asyncio.Event()
        self.fail_first: dict[str, int] = {}
        """How many first calls of a path are answered with 503."""
        self.script: dict[str, list[Response]] = {}
        """Answers by method, path and query, such as `GET /orders/7?full=1`, one after the other; before all else."""
        self.completions: list[Any] = []
        """What the model answers, one after the other: a message (dict), or a status (int)."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[ScriptedUpstream]:
        app = Starlette(
            routes=[
                Route("/v1/chat/completions", self._complete, methods=["POST"]),
                Route("/{path:path}", self._answer, methods=["GET", "POST", "PUT", "DELETE"]),
            ]
        )
        server = HttpServer(asgi(app))
        await server.start(Address("127.0.0.1", 0))
        self.url = f"http://{server.address}"
        try:
            yield self
        finally:
            self.release.set()
            await server.stop()

    async def _note(self, request: Request) -> bytes:
        body = await request.body()
        self.calls[request.url.path] += 1
        raw = request.scope["raw_path"].decode() + (f"?{request.url.query}" if request.url.query else "")
        self.seen.append((request.method, raw, dict(request.headers), body))
        return body

    async def _answer(self, request: Request) -> Response:
        body = await self._note(request)
        path = request.url.path
        method, raw, _, _ = self.seen[-1]
        if self.script.get(f"{method} {raw}"):
            return self.script[f"{method} {raw}"].pop(0)
        if self.fail_first.get(path, 0) >= self.calls[path]:
            return PlainTextResponse("try again", 503)
        what = path.split("/")[1]
        if what.isdecimal():
            return PlainTextResponse(f"scripted {what}", int(what), {"retry-after": "7"} if what == "429" else {})
        if what == "hang":
            self.hanging += 1
            try:
                await self.release.wait()
            finally:
                self.hanging -= 1
        answers: dict[str, Any] = {
            "text": lambda: PlainTextResponse("plain text"),
            "empty": lambda: Response(b"", media_type="application/json"),
            "not-json": lambda: Response(b"{oops", media_type="application/json"),
            "huge": lambda: Response(b"x" * HUGE_BYTES, media_type="text/plain"),
            "cut": lambda: StreamingResponse(_cut(), headers={"content-length": "1000"}),
        }
        if what in answers:
            response: Response = answers[what]()
            return response
        given = json.loads(body) if body else None
        return JSONResponse({"method": request.method, "path": path, "query": dict(request.query_params), "body": given})

    async def _complete(self, request: Request) -> Response:
        body = json.loads(await self._note(request))
        answer = self.completions.pop(0)
        if body.get("stream") and not isinstance(answer, int):
            return StreamingResponse(self._pieces(answer), media_type="text/event-stream")
        if isinstance(answer, int):
            return JSONResponse({"error": {"message": f"scripted {answer}"}}, answer)
        if isinstance(answer, str):
            answer = {"role": "assistant", "content": answer}
        usage = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
        return JSONResponse({"choices": [{"index": 0, "message": answer, "finish_reason": "stop"}], "usage": usage})

    async def _pieces(self, answer: Any) -> AsyncIterator[str]:
        """A text word by word, or tool calls with their arguments in halves; `<hang>` waits, `<cut>` ends it at once."""
        deltas: list[dict[str, Any]] = []
        if isinstance(answer, str):
            deltas = [{"content": word} for word in answer.split("|")]
        else:
            deltas = [{key: answer[key]} for key in ("content", "refusal") if answer.get(key)]
            for index, call in enumerate(answer.get("tool_calls", [])):
                function, half = call["function"], len(call["function"]["arguments"]) // 2
                deltas.append({"tool_calls": [{"index": index, "id": call["id"], "function": {"name": function["name"], "arguments": ""}}]})
                for part in (function["arguments"][:half], function["arguments"][half:]):
                    deltas.append({"tool_calls": [{"index": index, "function": {"arguments": part}}]})
        for delta in deltas:
            if delta.get("content") == "<cut>":
                return
            if delta.get("content") == "<hang>":
                self.hanging += 1
                try:
                    await self.release.wait()
                finally:
                    self.hanging -= 1
                continue
            yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}\n\n"
        yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': {}, 'finish_reason': 'stop'}]})}\n\ndata: [DONE]\n\n"


async def _cut() -> AsyncIterator[bytes]:
    yield b'{"half":'
    raise ConnectionResetError("cut on purpose")
