"""Try it: a trigger sent from the page, through the control plane to a gateway, and what becomes of it as it happens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shlex
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from control_plane.console.gateway_door import Asked, Event, NoAnswerError, headers_of
from control_plane.console.input_form import Field, fields_of, read_fields, read_json, skeleton
from control_plane.console.pages import laid_out, server_sent, took
from control_plane.console.parts import Parts
from control_plane.console.terminal import Line
from control_plane.console.visit import Visit
from control_plane.model import Binding
from control_plane.roles import TRIGGERERS
from control_plane.service.snapshots import plain_of
from pointsman.captured import why_not_again
from pointsman.errors import InvalidField, PermissionDenied, PointsmanError, Violation
from pointsman.rules import check_request
from pointsman.v1 import executions_pb2 as pb
from pointsman.v1.trigger_pb2 import TriggerRequest

MAX_FORM_BYTES = 1024 * 1024
# What a page shows of an output or of a model's text; the record and the command line have more.
MAX_SHOWN_CHARS = 64 * 1024
MAX_STEPS = 200
# Text of a model comes in many small pieces.
MIN_PAUSE_SECONDS = 0.1
PREFERRED = ("staging", "development")


class Step(msgspec.Struct):
    """One step of the execution."""

    stage: str
    name: str
    kind: str
    outcome: str = "RUNNING"
    took: str = ""
    error: str = ""


class Tried(msgspec.Struct):
    """What became of a trigger so far. `state` is RUNNING, SUCCEEDED, FAILED, REFUSED or NO ANSWER."""

    state: str = "RUNNING"
    about: Mapping[str, Any] = {}
    steps: list[Step] = []
    text: str = ""
    output: str = ""
    cut: int = 0
    reason: str = ""
    message: str = ""
    violations: list[Any] = []
    began: float = msgspec.field(default_factory=time.monotonic)
    took: str = ""

    def take(self, event: Event) -> None:
        """What the gateway tells."""
        data = event.data
        match event.name:
            case "execution.started":
                self.about = data
            case "step.started" if len(self.steps) < MAX_STEPS:
                self.steps.append(Step(data.get("stage", ""), data.get("step", ""), data.get("kind", "")))
            case "step.finished":
                self._finished(data)
            case "output.delta":
                self.text = (self.text + data.get("text", ""))[-MAX_SHOWN_CHARS:]
            case "execution.completed":
                shown = json.dumps(data.get("output"), indent=2, ensure_ascii=False)
                self.output, self.cut = shown[:MAX_SHOWN_CHARS], max(0, len(shown) - MAX_SHOWN_CHARS)
                self._end("SUCCEEDED")
            case "execution.failed":
                self._refused("FAILED", data)
            case "refused":
                headers = data.get("headers", {})
                names = ("execution-id", "app", "environment", "release", "revision")
                self.about = {name.replace("-", "_"): headers.get(f"x-{name}", "") for name in names} | {
                    "gateway_id": headers.get("x-gateway", ""),
                    "digest": headers.get("x-release-digest", ""),
                }
                self._refused("REFUSED", data)

    def no_answer(self, message: str) -> None:
        """There will be no more."""
        self.message = message
        self._end("NO ANSWER")

    def _finished(self, data: Mapping[str, Any]) -> None:
        step = next((one for one in reversed(self.steps) if (one.stage, one.name) == (data.get("stage"), data.get("step"))), None)
        if step is None:
            # Skipped ones are never started.
            if len(self.steps) >= MAX_STEPS:
                return
            self.steps.append(step := Step(data.get("stage", ""), data.get("step", ""), ""))
        step.outcome, step.error = data.get("outcome", ""), data.get("error", "")
        step.took = "" if step.outcome == "SKIPPED" else took(round(float(data.get("duration", "0s").removesuffix("s")) * 1_000_000))

    def _refused(self, state: str, data: Mapping[str, Any]) -> None:
        self.reason, self.message = data.get("error", ""), data.get("message", "")
        details = data.get("details")
        self.violations = details.get("violations", []) if isinstance(details, dict) else []
        self._end(state)

    def _end(self, state: str) -> None:
        self.state = state
        self.took = took(round((time.monotonic() - self.began) * 1_000_000))


class TryPages:
    """Triggers from the browser."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def show(self, visit: Visit) -> Response:
        """Choose where and what, then fill in the form; or it is that of an execution."""
        problem: PointsmanError | None = None
        try:
            _check_bounds(visit, _bounds(visit.asked))
        except InvalidField as error:
            problem = error
        return await self._page(visit, visit.asked, problem=problem, given=await self._given_to(visit, visit.asked("execution")))

    async def send(self, visit: Visit) -> Response:
        """Sends it. A script is answered with server-sent events, each with the part of the page that changes; a form with the page."""
        visit.check_form()
        if visit.role is not None and visit.role not in TRIGGERERS:
            raise _not_for(visit.role.value)
        try:
            asked = await self._read(visit)
        except InvalidField as error:
            return await self._page(visit, visit.typed, problem=error)
        if visit.wants_events:
            return visit.stream(self._events(visit, asked))
        tried = Tried()
        async for _ in self._progress(asked, tried):
            pass
        return await self._page(visit, visit.typed, tried=tried)

    async def _read(self, visit: Visit) -> Asked:
        """What the form asks for. Raises InvalidField, PermissionDenied."""
        app, environment, path = visit.part("app"), visit.typed("environment"), visit.typed("endpoint")
        visit.check_place(app, environment)
        _check_bounds(visit, bounds := _bounds(visit.typed))
        _, endpoints = await self._endpoints(app, environment)
        endpoint = next((one for one in endpoints if _path(one) == path), None)
        if endpoint is None:
            raise InvalidField([Violation("endpoint", f"{path[:80]!r} is not served in {environment[:63]!r} any more; choose again")])
        if visit.typed("way") == "json":
            given = read_json(visit.text("json"))
        else:
            given = read_fields(fields_of(endpoint.get("input_schema", {}), visit.text), visit.text)
        method = endpoint.get("method") or "POST"
        return Asked(app, environment, path, method, given, visit.authorization(self._parts.authority), bounds)

    async def _progress(self, asked: Asked, tried: Tried) -> AsyncIterator[Tried]:
        """The same after each event."""
        try:
            async with contextlib.aclosing(self._parts.gateway_door.trigger(asked)) as events:
                async for event in events:
                    tried.take(event)
                    yield tried
            if tried.state == "RUNNING":
                tried.no_answer("The connection to the gateway broke before the end; what became of it may be on record.")
        except NoAnswerError as error:
            tried.no_answer(str(error))

    async def _events(self, visit: Visit, asked: Asked) -> AsyncIterator[str]:
        """What is shown when it has changed, ten times a second at most, and how it ended."""
        tried = Tried()
        changed = asyncio.Event()

        async def follow() -> None:
            async for _ in self._progress(asked, tried):
                changed.set()

        following = asyncio.create_task(follow(), name="trigger of the console")
        try:
            while not following.done():
                waiting = asyncio.create_task(changed.wait())
                await asyncio.wait({following, waiting}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                changed.clear()
                if not following.done():
                    yield self._event(visit, asked.app, tried)
                    await asyncio.wait({following}, timeout=MIN_PAUSE_SECONDS)
            await following
            yield self._event(visit, asked.app, tried)
        finally:
            following.cancel()

    def _event(self, visit: Visit, app: str, tried: Tried) -> str:
        return server_sent("tried", visit.fragment("_tried.html", tried=tried, app=app))

    async def _endpoints(self, app: str, environment: str) -> tuple[Binding | None, list[dict[str, Any]]]:
        """What is served there, by the release that is live. Raises AppNotFound, EnvironmentNotFound."""
        binding = await self._parts.binding(app, environment)
        if binding is None or binding.deployment is None:
            return None, []
        info = await self._parts.releases.get(app, binding.deployment.release, with_snapshot=True)
        assert info.snapshot is not None, "it was asked for"
        config = await asyncio.to_thread(plain_of, info.snapshot)
        return binding, config.get("endpoints", [])

    async def _given_to(self, visit: Visit, execution_id: str) -> str:
        """The input of an execution, as JSON; empty without one, and when what is on record is not what came. Raises ExecutionNotFound."""
        if not execution_id:
            return ""
        app = visit.part("app")
        await visit.check(pb.GetExecutionRequest(app=app, execution_id=execution_id))
        found = await self._parts.executions.get(execution_id, app)
        visit.check_place(app, found.environment)
        captured = pb.Execution.FromString(found.detail).input
        return "" if why_not_again(captured) else laid_out(captured)

    async def _page(
        self, visit: Visit, typed: Any, *, problem: PointsmanError | None = None, tried: Tried | None = None, given: str = ""
    ) -> Response:
        app = visit.part("app")
        bindings = await self._parts.bindings_of(app)
        known = [found.environment for found in await self._parts.all_environments() if found.environment in bindings]
        live = [name for name in known if name in (visit.own_environments or known)]
        wished = typed("environment") or next((name for name in (*visit.own_environments, *PREFERRED) if name in live), "")
        environment = wished if wished in live else next(iter(live), "")
        binding, endpoints = await self._endpoints(app, environment) if environment else (None, [])
        paths = [_path(one) for one in endpoints]
        endpoint = next((one for one in endpoints if _path(one) == typed("endpoint")), endpoints[0] if endpoints else {})
        fields = fields_of(endpoint.get("input_schema", {}), visit.text)
        text = visit.text("json") or given or skeleton(fields)
        return visit.page(
            "try.html",
            tab="try",
            problem=problem,
            app=app,
            environments=live,
            environment=environment,
            binding=binding,
            paths=paths,
            path=_path(endpoint) if endpoint else "",
            fields=fields,
            schema=json.dumps(endpoint.get("input_schema", {}), indent=2, ensure_ascii=False)[:MAX_SHOWN_CHARS],
            json=text,
            way=typed("way") or ("fields" if fields and not given else "json"),
            execution=typed("execution"),
            bounds=_bounds(typed),
            tried=tried,
            door=self._parts.gateway_door,
            may=visit.role is None or visit.role in TRIGGERERS,
            role=visit.role,
            lines=self._lines(visit, environment, endpoint, fields, _bounds(typed)) if endpoint else [],
        )

    def _lines(
        self, visit: Visit, environment: str, endpoint: Mapping[str, Any], fields: list[Field], bounds: Mapping[str, str]
    ) -> list[Line]:
        """The same from a terminal."""
        app, path, given = visit.part("app"), _path(endpoint), json.dumps(json.loads(skeleton(fields)), ensure_ascii=False)
        flags = [part for name, value in bounds.items() if value for part in (f"--{name.replace('_', '-')}", value)]
        lines = [Line("CLI", shlex.join(["pointsman", "--app", app, "trigger", path, "-e", environment, *flags, "-d", given]))]
        url = self._parts.gateway_door.url
        if url and (endpoint.get("method") or "POST") == "POST":
            token = ' -H "Authorization: Bearer $POINTSMAN_TOKEN"' if visit.role is not None else ""
            headers = headers_of(app, environment, bounds) | {"Content-Type": "application/json"}
            more = " ".join(f"-H {shlex.quote(f'{name}: {value}')}" for name, value in headers.items())
            lines.append(Line("curl", f"curl -sS -X POST {url}/v1/trigger/{path}{token} {more} -d {shlex.quote(given)}"))
        return lines


def _path(endpoint: Mapping[str, Any]) -> str:
    return str(endpoint.get("path") or endpoint["name"]).removeprefix("/")


def _bounds(typed: Callable[[str], str]) -> dict[str, str]:
    """As headers_of takes them."""
    return {name: typed(name) for name in ("release", "min_revision")}


def _check_bounds(visit: Visit, bounds: Mapping[str, str]) -> None:
    """Raises InvalidField."""
    violations = check_request(TriggerRequest(endpoint="any", release=bounds["release"]))
    try:
        visit.number("min_revision", bounds["min_revision"])
    except InvalidField as error:
        violations += error.violations
    if violations:
        raise InvalidField(violations)


def _not_for(role: str) -> PermissionDenied:
    return PermissionDenied(
        f"Triggers take a token of the role TRIGGER or ADMIN; this one has {role}. An admin can make one of the role TRIGGER for "
        "`pointsman trigger`, or sign in here.",
        role="TRIGGER or ADMIN",
        has=role,
    )
