"""The other replicas of this control plane, and what replicas ask each other about their gateways."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from datetime import datetime
from typing import Generic, Protocol, TypeVar

import msgspec

from control_plane.model import Binding, GatewayInfo, Rejection, Target
from pointsman.errors import StoreUnavailable


class PrepareRequest(msgspec.Struct, frozen=True, tag=True):
    """Have your gateways get ready, and wait at most so long for them."""

    targets: tuple[Target, ...]
    seconds: float


class PrepareAnswer(msgspec.Struct, frozen=True):
    """What gateways cannot run, by gateway id."""

    rejections: dict[str, list[Rejection]]


class RolloutRequest(msgspec.Struct, frozen=True, tag=True):
    """Which of your gateways serve the bindings, or without any, are at the revision? Answer when all do, at most so long from now."""

    bindings: tuple[Binding, ...]
    seconds: float
    revision: int


class RolloutAnswer(msgspec.Struct, frozen=True):
    """How many gateways subscribe, the ids of those that do not serve the change yet, and why others never will."""

    members: int
    pending: list[str]
    rejected: dict[str, str]


class KnownRequest(msgspec.Struct, frozen=True, tag=True):
    """Which gateways do you know? At most `limit`, by their keys, those greater than `after`."""

    after: tuple[str, ...]
    limit: int


class KnownAnswer(msgspec.Struct, frozen=True):
    """In the order of their keys."""

    gateways: list[GatewayInfo]


class Arrival(msgspec.Struct, frozen=True):
    """A gateway process has opened a stream here; what it, or a process before it, left behind elsewhere is of the past."""

    gateway_id: str
    instance_id: str
    connect_time: datetime


Request = PrepareRequest | RolloutRequest | KnownRequest
Answer = PrepareAnswer | RolloutAnswer | KnownAnswer
A = TypeVar("A", PrepareAnswer, RolloutAnswer, KnownAnswer)
Answering = Callable[[Request], Awaitable[Answer]]


class Replies(msgspec.Struct, Generic[A], frozen=True, kw_only=True):
    """What replicas answered. `silent`: addresses of those that live and did not; `failure`: why nobody could be asked, if so."""

    answers: list[A]
    silent: list[str] = []
    failure: StoreUnavailable | None = None


class Peers(Protocol):
    """The replicas that share a store, without this one."""

    address: str
    """Of this replica, for people."""

    @property
    def others(self) -> Collection[str]:
        """Addresses of those that live, as far as is known now. Costs nothing."""

    async def start(self, answering: Answering, arrived: Callable[[Arrival], None]) -> None:
        """Joins them. What they ask is answered by `answering`, which may take as long as it was granted; their arrivals are told."""

    def tell(self, arrival: Arrival) -> None:
        """Soon told to the others, many together where many come together; lost when they cannot be reached. Costs nothing when alone."""

    async def ask(self, request: Request, answer_type: type[A], seconds: float) -> Replies[A]:
        """Asks the others that live now, and waits for them so long, and a little longer since answers travel. Costs nothing when alone.

        One that dies meanwhile is not waited for, and not silent either: its gateways go elsewhere.
        """

    async def close(self) -> None:
        """Leaves them; they do not wait for this one any more."""


class Alone:
    """Peers of a control plane that has none, as on SQLite."""

    address = ""
    others = ()

    async def start(self, _answering: Answering, _arrived: Callable[[Arrival], None]) -> None:
        """Nobody asks."""

    def tell(self, _arrival: Arrival) -> None:
        """Nobody listens."""

    async def ask(self, _request: Request, _answer_type: type[A], _seconds: float) -> Replies[A]:
        """Nobody answers."""
        return Replies(answers=[])

    async def close(self) -> None:
        """Nothing was opened."""
