"""How long commands and servers take to start."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

from tests.bench.table import Row, milliseconds
from tests.processes import BIN, Server, run, start_control_plane, start_gateway
from tests.sample_apps import as_yaml, marked

SERVER_RUNS = 5
COMMAND_RUNS = 9
BOUND = "under 400 ms"


async def rows() -> list[Row]:
    """`pointsman --help`, commands of each kind against running servers, and the ready lines; medians."""
    helps, planes, gateways = [], [], []
    for _ in range(SERVER_RUNS):
        helps.append(await _seconds("--help"))
        with tempfile.TemporaryDirectory() as folder:
            async with start_control_plane(Path(folder)) as plane, start_gateway(Path(folder), plane.grpc) as gateway:
                planes.append(plane.ready_after_seconds)
                gateways.append(gateway.ready_after_seconds)
    with tempfile.TemporaryDirectory() as folder:
        async with start_control_plane(Path(folder)) as plane, start_gateway(Path(folder), plane.grpc) as gateway:
            commands = await _commands(Path(folder), plane, gateway)
    return [
        Row("pointsman --help", milliseconds(statistics.median(helps)), bound="under 300 ms"),
        *commands,
        Row("control plane ready", milliseconds(statistics.median(planes)), bound="under 1500 ms"),
        Row("gateway ready", milliseconds(statistics.median(gateways)), bound="under 1500 ms"),
    ]


async def _commands(folder: Path, plane: Server, gateway: Server) -> list[Row]:
    """From the start of the process to its end, with whatever it asks the servers; of each round every command runs once."""
    for tag in ("v1", "v2"):
        (folder / f"{tag}.yaml").write_text(as_yaml(marked(tag)))
    settings = {"POINTSMAN_SERVER": plane.grpc, "POINTSMAN_GATEWAY": gateway.grpc, "POINTSMAN_APP": "shop"}
    for arguments in (
        *(("app", "push", str(folder / "v1.yaml")), ("release", "create", "v1", "--deploy-to", "production")),
        *(("app", "push", str(folder / "v2.yaml")), ("release", "create", "v2")),
    ):
        await _seconds(*arguments, **settings)
    measured = {
        "status": ("status",),
        "status -o json": ("status", "-o", "json"),
        "release list": ("release", "list"),
        "release diff": ("release", "diff", "v1", "v2"),
        "deploy": ("deploy", "{tag}", "--to", "production"),
        "history": ("history", "production"),
        "trigger": ("trigger", "where", "-d", json.dumps({"message": "hello"})),
        "logs": ("logs",),
        "summary": ("summary",),
        "app draft": ("app", "draft"),
        "app validate": ("app", "validate", str(folder / "v2.yaml")),
        "app push": ("app", "push", str(folder / "v2.yaml")),
    }
    seconds: dict[str, list[float]] = {name: [] for name in measured}
    for number in range(COMMAND_RUNS):
        for name, arguments in measured.items():
            # Every deploy is one: the two releases take turns.
            tagged = [argument.replace("{tag}", ("v2", "v1")[number % 2]) for argument in arguments]
            seconds[name].append(await _seconds(*tagged, **settings))
    return [
        Row(f"pointsman {name}, with its start", milliseconds(statistics.median(found)), bound=BOUND) for name, found in seconds.items()
    ]


async def _seconds(*arguments: str, **settings: str) -> float:
    """Raises RuntimeError when the command fails."""
    started = time.perf_counter()
    done = await run(BIN / "pointsman", *arguments, environment=settings)
    took = time.perf_counter() - started
    if done.code:
        raise RuntimeError(f"pointsman {' '.join(arguments)}: {done.stderr}")
    return took
