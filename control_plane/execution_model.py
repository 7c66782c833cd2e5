"""Executions as the control plane keeps them: frozen values, no I/O. Thousands come every second, so times are microseconds since 1970
in UTC and durations microseconds, and what only a person looks at stays the bytes that the gateway sent.
"""

from __future__ import annotations

import enum

import msgspec


class Outcome(enum.IntEnum):
    """How an execution ended; numbered as in the contract."""

    SUCCEEDED = 1
    FAILED = 2
    CANCELLED = 3
    REFUSED = 4


class Execution(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The record of one trigger. Its fields are the columns of the store, in their order.

    `execution_id` is the UUID's 16 bytes; `detail` a serialised Execution message with steps, input and output alone, empty in lists.
    """

    execution_id: bytes
    app: str
    environment: str
    endpoint: str
    release: str
    digest: str
    revision: int
    gateway_id: str
    start_time: int
    duration: int
    outcome: int
    error_reason: str
    error_message: str
    token_id: str
    trace_id: str
    input_tokens: int
    output_tokens: int
    detail: bytes = b""


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which executions: those that pass every filter that is not empty (texts), 0 (numbers) or None (moments, revision).

    `since` counts, `until` does not.
    """

    app: str = ""
    environment: str = ""
    release: str = ""
    endpoint: str = ""
    gateway_id: str = ""
    error_reason: str = ""
    outcome: int = 0
    min_duration: int = 0
    revision: int | None = None
    since: int | None = None
    until: int | None = None

    @property
    def equalities(self) -> dict[str, str | int]:
        """Column -> value of those filters that ask for one value."""
        names = ("app", "environment", "release", "endpoint", "gateway_id", "error_reason", "outcome")
        found: dict[str, str | int] = {name: value for name in names if (value := getattr(self, name))}
        if self.revision is not None:
            found["revision"] = self.revision
        return found

    def accepts(self, execution: Execution) -> bool:
        """Whether the execution passes; moments are not looked at."""
        return execution.duration >= self.min_duration and all(getattr(execution, k) == v for k, v in self.equalities.items())


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What one release did in one environment over a window.

    `durations` are those that 50, 95 and 99 % of what succeeded or failed did not exceed, 0 where nothing did.
    """

    app: str
    environment: str
    release: str
    succeeded: int
    failed: int
    cancelled: int
    refused: int
    durations: tuple[int, int, int]
    input_tokens: int
    output_tokens: int
    first_time: int
    last_time: int


class Use(msgspec.Struct, frozen=True, kw_only=True):
    """What one gateway ran of some executions; `late` began after a given moment."""

    gateway_id: str
    executions: int
    failed: int
    late: int
    last_time: int


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway reports: executions in any order, and how many its process had to drop in all."""

    gateway_id: str
    instance_id: str
    executions: list[Execution] = []
    dropped: int = 0
