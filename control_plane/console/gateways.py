"""The gateways: who is there, who is behind, who refused what."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from control_plane.console.parts import Parts
from control_plane.console.visit import Visit, with_query
from control_plane.gateways import REBALANCE_WITHIN_SECONDS
from control_plane.model import Binding, GatewayInfo
from pointsman.errors import PointsmanError
from pointsman.v1 import gateways_pb2 as pb

PAGE_SIZE = 100
MAX_KNOWN = 5000
MAX_LOADED = 20
# What is more is refused in words, and not by the message that cannot hold it.
MAX_PERCENT = 10_000
# What needs a look comes first.
_ORDER = ("rejected", "behind", "gone", "ok")


class Row(msgspec.Struct, frozen=True):
    """One gateway process, what it serves as of the revision that it is at, what it has not applied yet, and what it refused and why."""

    info: GatewayInfo
    state: str
    loaded: list[Binding]
    waiting: int
    refused: list[tuple[Binding, str]]


class GatewaysPage:
    """All gateways of all replicas."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def rebalance(self, visit: Visit) -> Response:
        """A share of those that are connected here goes to other replicas."""
        try:
            request = pb.RebalanceGatewaysRequest(percent=min(visit.number("percent") or 0, MAX_PERCENT))
            await self._parts.audit.done(await visit.call(request))
        except PointsmanError as error:
            return await self.show(visit, error)
        moving = self._parts.gateways.rebalance(request.percent, REBALANCE_WITHIN_SECONDS)
        return visit.to(with_query("/gateways", moving=len(moving)))

    async def show(self, visit: Visit, problem: PointsmanError | None = None) -> Response:
        """Those that refused or are behind on top."""
        hub = self._parts.hub
        await hub.refresh()
        rows = self._rows(await self._parts.gateways.known((), MAX_KNOWN))
        wanted = visit.asked("gateway")
        rows = [row for row in rows if wanted in ("", row.info.identity.gateway_id)]
        start = min(int(given) if (given := visit.asked("from")).isdecimal() and len(given) < 6 else 0, len(rows))
        counts = {state: sum(row.state == state for row in rows) for state in _ORDER}
        return visit.page(
            "gateways.html",
            tab="gateways",
            wanted=wanted,
            rows=rows[start : start + PAGE_SIZE],
            counts=counts,
            revision=hub.revision,
            max_loaded=MAX_LOADED,
            first=start,
            next_from=start + PAGE_SIZE if start + PAGE_SIZE < len(rows) else 0,
            problem=problem,
            connected_here=self._parts.gateways.connected_count,
            may_move=self._parts.gateways.has_elsewhere,
            moving=visit.asked("moving"),
            within=f"{REBALANCE_WITHIN_SECONDS:g}",
            percent=visit.typed("percent") or "50",
        )

    def _rows(self, known: list[GatewayInfo]) -> list[Row]:
        hub = self._parts.hub
        wanted: dict[tuple[frozenset[str], frozenset[str]], list[Binding]] = {}
        rows = []
        for info in known:
            subscribed = info.identity.apps, info.identity.environments
            if subscribed not in wanted:
                found = hub.newer_than(0, apps=subscribed[0], environments=subscribed[1])
                wanted[subscribed] = sorted((b for b in found if b.deployment), key=lambda b: (b.app, b.environment))
            bindings = wanted[subscribed]
            refused = [(b, reason) for b in bindings if (reason := info.rejection_of(b)) is not None] if info.rejections else []
            refusing = {(binding.app, binding.environment) for binding, _ in refused}
            told = [binding for binding in bindings if (binding.app, binding.environment) not in refusing]
            loaded = [binding for binding in told if binding.revision <= info.revision]
            rows.append(Row(info, _state(info, hub.revision, refused=bool(refused)), loaded, len(told) - len(loaded), refused))
        return sorted(rows, key=lambda row: (_ORDER.index(row.state), row.info.identity.key))


def _state(info: GatewayInfo, revision: int, *, refused: bool) -> str:
    if not info.connected:
        return "gone"
    if refused:
        return "rejected"
    return "behind" if info.revision < revision else "ok"
