"""The sample apps that ship with the package, and which services on loopback each of them uses.

The files name fixed ports, since a release holds its URLs for ever; `sample_text` puts others in their place.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources

SAMPLE_APP = "support-chat"


@dataclass(frozen=True, slots=True)
class Service:
    """What runs beside an app: `python -m MODULE PORT` serves until SIGTERM. It says that it is ready as a server does."""

    title: str
    module: str
    port: int


SERVICES = {
    "orders": Service("the order service", "control_plane.cli.samples.orders", 7590),
    "model": Service("the model", "control_plane.cli.samples.model", 7591),
    "tools": Service("the MCP server", "control_plane.cli.samples.mcp_tools", 7592),
    "caller": Service("the scripted model", "control_plane.cli.samples.scripted_model", 7593),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One app. `tries` are (endpoint, input, what it shows); with `streams` the answer comes as it is written."""

    name: str
    shows: str
    services: tuple[str, ...]
    tries: tuple[tuple[str, str, str], ...]
    streams: tuple[str, ...] = ()
    extra: str = ""


SAMPLES = {
    sample.name: sample
    for sample in (
        Sample(
            "support-chat",
            "classify, look up by a tool, answer",
            ("orders", "model"),
            (
                ("chat", '{"message": "Where is order 1234?"}', "words decide, a tool knows"),
                ("chat", '{"message": "My courier never came"}', "the model decides what it is about"),
                ("compose", '{"message": "Where is order 1234?"}', "in a model's words, as they come"),
            ),
            streams=("compose",),
        ),
        Sample(
            "extraction",
            "fields out of a text, by a schema",
            ("model",),
            (("extract", '{"text": "Please ship 12 blue chairs to Maria Gomez in Lyon."}', "what is not in the text is doubtful"),),
        ),
        Sample(
            "mcp-agent",
            "tools of an MCP server, called by a model",
            ("model", "tools", "caller"),
            (
                ("ask", '{"question": "Where is order 1234?"}', "the model writes the arguments"),
                ("agent", '{"question": "Where is order 1234, and have you a lamp?"}', "a model that can call tools, here a scripted one"),
            ),
            streams=("agent",),
            extra="mcp",
        ),
    )
}


def sample_text(name: str = SAMPLE_APP, **ports: int) -> str:
    """The app file of a sample, with the ports of services (`orders=8000`) that are not at their usual ones."""
    text = resources.files(__name__).joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    moved = {str(SERVICES[service].port): str(port) for service, port in ports.items()}
    return re.sub(r"(?<=http://127\.0\.0\.1:)\d+", lambda found: moved.get(found[0], found[0]), text)
