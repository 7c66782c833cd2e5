"""What a rollout looks like while it goes on: who serves the change already and who does not, drawn over again on a terminal."""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping

import grpc

from control_plane.cli import can_draw
from control_plane.cli.client import Connection, metadata
from control_plane.cli.output import ago, harmless
from control_plane.cli.tables import is_terminal
from pointsman.v1 import deployments_pb2, deployments_pb2_grpc, gateways_pb2, gateways_pb2_grpc

# Most rollouts are over before anybody could read a line.
FIRST_LOOK_SECONDS = 0.3
LOOK_SECONDS = 0.2
CALL_SECONDS = 2.0
PAGE = 500
MAX_LINES = 10


@contextlib.contextmanager
def told_live(connection: Connection, wanted: Mapping[str, str], environment: str, output: str) -> Iterator[None]:
    """Tells on stderr how the rollout of a change stands, for as long as the block runs, if a person looks at a terminal.

    `wanted` has the tag of each app, empty where the server decides. The change itself tells the verdict; what cannot be asked is
    left out.
    """
    if output != "text" or not (is_terminal(sys.stdout) and is_terminal(sys.stderr) and can_draw()):
        yield
        return
    view = _View(connection, wanted, environment)
    ended = threading.Event()
    thread = threading.Thread(target=view.run, args=(ended,), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        view.clear()


class _View:
    def __init__(self, connection: Connection, wanted: Mapping[str, str], environment: str) -> None:
        self._deployments = deployments_pb2_grpc.DeploymentServiceStub(connection.channel)
        self._gateways = gateways_pb2_grpc.GatewayServiceStub(connection.channel)
        self._wanted = wanted
        self._environment = environment
        self._waiting = list(wanted)
        self._before: dict[str, int] = {}
        self._live = deployments_pb2.Binding()
        self._drawn = 0

    def run(self, ended: threading.Event) -> None:
        began = time.monotonic()
        # What the server decides is known by its revision to have come.
        self._before = {app: self._binding(app).revision for app, tag in self._wanted.items() if not tag}
        seconds = FIRST_LOOK_SECONDS
        while not ended.wait(seconds):
            seconds = LOOK_SECONDS
            lines = self._lines(time.monotonic() - began)
            if not ended.is_set():
                self._draw(lines)

    def clear(self) -> None:
        """Takes away what was drawn."""
        self._draw([])

    def _binding(self, app: str) -> deployments_pb2.Binding:
        """What is live; empty when nothing is, or nobody says."""
        request = deployments_pb2.GetBindingRequest(app=app, environment=self._environment)
        with contextlib.suppress(grpc.RpcError):
            found: deployments_pb2.GetBindingResponse = self._deployments.GetBinding(request, timeout=CALL_SECONDS, metadata=metadata())
            return found.binding
        return deployments_pb2.Binding()

    def _is_committed(self) -> bool:
        """Whether all that is wanted is live; the newest binding is kept."""
        while self._waiting:
            app = self._waiting[0]
            binding, tag = self._binding(app), self._wanted[app]
            if not (binding.release == tag if tag else binding.revision not in (0, self._before[app])):
                return False
            self._live = max(self._live, binding, key=lambda found: found.revision)
            self._waiting.pop(0)
        return True

    def _lines(self, seconds: float) -> list[str]:
        if not self._is_committed():
            return [f"gateways get ready, {seconds:.1f} s"]
        many = len(self._wanted) > 1
        release = ", ".join(f"{app}={tag}" for app, tag in self._wanted.items()) if many else self._live.release
        keys = {(app, self._environment) for app in self._wanted}
        states = [
            (gateway, *_state(gateway, keys, self._live.revision, "all of it" if many else release))
            for gateway in self._listed()
            if gateway.connected
        ]
        concerned = [(gateway, serves, what) for gateway, serves, what in states if what]
        done = sum(serves for _, serves, _ in concerned)
        lines = [f"{done}/{len(concerned)} gateways serve {release} in {self._environment}, {seconds:.1f} s"]
        # Those that are not there yet first: they are why one looks.
        shown = sorted(concerned, key=lambda found: (found[1], found[0].gateway_id))
        lines += [f"  {harmless(gateway.gateway_id)}  {what}" for gateway, _, what in shown[:MAX_LINES]]
        return lines + ([f"  and {len(shown) - MAX_LINES} more"] if len(shown) > MAX_LINES else [])

    def _listed(self) -> list[gateways_pb2.Gateway]:
        found: list[gateways_pb2.Gateway] = []
        request = gateways_pb2.ListGatewaysRequest(page_size=PAGE)
        with contextlib.suppress(grpc.RpcError):
            while True:
                page = self._gateways.ListGateways(request, timeout=CALL_SECONDS, metadata=metadata())
                found += page.gateways
                request.page_token = page.next_page_token
                if not page.next_page_token:
                    break
        return found

    def _draw(self, lines: list[str]) -> None:
        """In the place of what was drawn before."""
        if not (lines or self._drawn):
            return
        width = shutil.get_terminal_size().columns
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        sys.stderr.write(f"{up}\r\x1b[J" + "".join(line[: width - 1] + "\n" for line in lines))
        sys.stderr.flush()
        self._drawn = len(lines)


def _state(gateway: gateways_pb2.Gateway, keys: Collection[tuple[str, str]], revision: int, release: str) -> tuple[bool, str]:
    """Whether it serves the bindings, and how that is said; nothing is said of one that subscribes to none of them."""
    loaded = [one for one in gateway.bindings if (one.app, one.environment) in keys]
    if not loaded:
        return False, ""
    for one in loaded:
        if one.rejection:
            return False, f"refuses {'it' if len(keys) == 1 else one.app}: {harmless(one.rejection)}"
    if gateway.revision >= revision:
        return True, f"serves {release}"
    return False, f"not yet; is at revision {gateway.revision}, was heard {ago(gateway.last_heard_time)}"
