"""The servers of a model: tried in order, one that failed lately passed over while another is there.

A target that has not begun to answer when its share of the step's time is over is given up for the next one; the last has what is left.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
import msgspec

from data_plane.hosts import HEADER_REFUSED
from data_plane.steps.answers import read_body, retry_after, send
from data_plane.steps.base import RETRYABLE_STATUSES, Compiling, StepContext, StepError, Usage
from data_plane.steps.completions import Message, read_message, read_stream
from pointsman.v1.config_pb2 import Model, ModelTarget

# A target with so many failures in a row is passed over for so long; then one request looks whether it is back.
BREAKER_FAILURES = 3
BREAKER_SECONDS = 10.0
# What is wrong with the request is wrong at every target.
REFUSED_STATUSES = frozenset({400, 413, 422})


class _RefusedError(StepError):
    """The target works, and does not take the request."""


@dataclass(slots=True)
class _Target:
    """One server of a model. Its failures are remembered as long as the release is loaded."""

    url: str
    model: str
    headers: dict[str, str] = field(repr=False)
    failures: int = 0
    passed_over_until: float = 0.0

    def takes_part(self, now: float) -> bool:
        """Whether a request may be sent; of a target that was passed over, one at a time."""
        if self.failures < BREAKER_FAILURES:
            return True
        if now < self.passed_over_until:
            return False
        self.passed_over_until = now + BREAKER_SECONDS
        return True

    def failed(self) -> None:
        self.failures += 1
        if self.failures >= BREAKER_FAILURES:
            self.passed_over_until = time.monotonic() + BREAKER_SECONDS


class Targets:
    """All servers of one model, shared by the steps of a release that ask it."""

    def __init__(self, model: Model, compiling: Compiling) -> None:
        """Raises SecretMissingError."""
        self.name = model.name
        self._excerpt = compiling.excerpt
        self._targets = [_target(target, model.name, compiling) for target in model.targets]

    @classmethod
    def of(cls, model: Model, compiling: Compiling) -> Targets:
        """Those of the release that is being compiled."""
        key = f"targets of {model.name}"
        if key not in compiling.shared:
            compiling.shared[key] = cls(model, compiling)
        found: Targets = compiling.shared[key]
        return found

    async def ask(self, request: dict[str, Any], context: StepContext, delta: Callable[[str], None] | None) -> Message:
        """The first answer that a target gives to a request without `model`. With `delta` its text is told as it is written.

        Raises:
            StepError: no target answered; retryable when that may pass for one of them.
        """
        now = time.monotonic()
        part = [target for target in self._targets if target.failures < BREAKER_FAILURES or now >= target.passed_over_until]
        failures: list[StepError] = []
        for index, target in enumerate(part or self._targets):
            if part and not target.takes_part(now):
                continue
            others = len(part or self._targets) - index - 1
            told = _Told(delta) if delta is not None else None
            try:
                message = await self._within_share(target, request, context, told, others)
            except _RefusedError:
                target.failures = 0
                raise
            except StepError as error:
                target.failed()
                failures.append(error)
                if told is not None and told.anything:
                    # What was told cannot be taken back, so nobody else may begin anew.
                    raise
            except asyncio.CancelledError:
                if time.monotonic() >= context.deadline:
                    target.failed()
                raise
            else:
                target.failures = 0
                return message
        if len(failures) == 1:
            raise failures[0]
        after = min((error.retry_after_seconds for error in failures if error.retry_after_seconds is not None), default=None)
        causes = "; ".join(dict.fromkeys(map(str, failures)))
        raise StepError(f"no target answered: {causes}", retryable=any(error.retryable for error in failures), retry_after_seconds=after)

    async def _within_share(
        self, target: _Target, request: dict[str, Any], context: StepContext, told: _Told | None, others: int
    ) -> Message:
        if not others:
            return await self._ask_target(target, request, context, told)
        loop, now = asyncio.get_running_loop(), time.monotonic()
        seconds = (context.deadline - now) / (others + 1)
        try:
            async with asyncio.timeout_at(loop.time() + seconds) as share:
                if told is not None:
                    # It answers, and may go on as long as there is time.
                    told.at_first = lambda: share.reschedule(None)
                return await self._ask_target(target, request, context, told)
        except TimeoutError:
            raise StepError(f"model {self.name!r} did not answer within {seconds:.3g} s, its share of the time", retryable=True) from None

    async def _ask_target(self, target: _Target, request: dict[str, Any], context: StepContext, told: _Told | None) -> Message:
        who, http = f"model {self.name!r}", context.clients.http
        body = {"model": target.model, **request}
        if told is not None:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        try:
            sent = http.build_request("POST", target.url, headers=target.headers, content=msgspec.json.encode(body))
        except UnicodeEncodeError:
            raise StepError(f"{who}: a request to it cannot be made: {HEADER_REFUSED}") from None
        except httpx2.InvalidURL as error:
            raise StepError(f"{who}: its base_url is not a URL: {error}") from None
        response = await send(context.clients, sent, who, retryable=True)
        try:
            if told is not None and response.is_success and "event-stream" in response.headers.get("content-type", ""):
                message = await read_stream(response, who, told, self._excerpt)
            else:
                answer = await read_body(response, who, retryable=True)
                if not response.is_success:
                    raise _status_error(who, response, self._excerpt(answer.decode(errors="replace")).strip())
                message = read_message(who, answer, self._excerpt)
                if told is not None and message.content:
                    told(message.content)
        finally:
            await response.aclose()
        _count(context, message, target.model)
        return message


class _Told:
    """Passes text on and knows whether there was any; `at_first` is called before the first."""

    def __init__(self, delta: Callable[[str], None]) -> None:
        self.anything = False
        self.at_first: Callable[[], None] = lambda: None
        self._delta = delta

    def __call__(self, text: str) -> None:
        if not self.anything:
            self.anything = True
            self.at_first()
        self._delta(text)


def _status_error(who: str, response: httpx2.Response, shown: str) -> StepError:
    message = f"{who} answered {response.status_code}{f': {shown}' if shown else ''}"
    if response.status_code in REFUSED_STATUSES:
        return _RefusedError(message)
    return StepError(message, retryable=response.status_code in RETRYABLE_STATUSES, retry_after_seconds=retry_after(response))


def _count(context: StepContext, message: Message, model: str) -> None:
    if context.usage is None:
        context.usage = Usage()
    usage = context.usage
    usage.model = message.model or model
    usage.model_calls += 1
    usage.input_tokens += message.input_tokens
    usage.output_tokens += message.output_tokens


def _target(target: ModelTarget, name: str, compiling: Compiling) -> _Target:
    headers = {key: compiling.secrets.resolve(value) for key, value in target.headers.items()}
    if target.api_key:
        headers["authorization"] = f"Bearer {compiling.secrets.resolve(target.api_key)}"
    headers.setdefault("content-type", "application/json")
    return _Target(url=target.base_url.rstrip("/") + "/chat/completions", model=target.model or name, headers=headers)
