"""What the READMEs show works: their shell lines, pasted in order while `pointsman dev` runs, and their links."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.processes import BIN, READY_LINE, Server, run, start_dev

ROOT = Path(__file__).parent.parent


def blocks(readme: str, language: str) -> list[str]:
    """The fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / readme).read_text(), re.MULTILINE | re.DOTALL)


def with_real_ports(lines: str, dev: Server) -> str:
    """The lines, with the default ports replaced by those that dev got."""
    ready = next(line for line in dev.stdout if READY_LINE.search(line))
    gateway_grpc, gateway_http = re.findall(r"gateway-(?:grpc|http)=(\S+)", ready)
    for default, real in (("7400", dev.grpc), ("7480", dev.http), ("7500", gateway_grpc), ("7580", gateway_http)):
        lines = lines.replace(f"localhost:{default}", real)
    return lines


SHOWN = {
    "README.md": ["v1.0.0", "edited.yaml is sound", "HTTP/1.1 200", "x-release: v1.1.0", "Good day.", "ROLLBACK", '"release": "v1.1.0"'],
    "proto/README.md": ["pointsman.v1.DeploymentService", '"tag": "v1.0.0"', '"release": "v1.0.0"', '"gateway_id"'],
}


@pytest.mark.parametrize("readme", SHOWN)
async def test_the_shell_lines_work_when_pasted_in_order(tmp_path, grpcurl, curl, readme):
    async with start_dev(tmp_path) as dev:
        ready = with_real_ports("localhost:7500", dev)
        environment = {"POINTSMAN_SERVER": dev.grpc, "POINTSMAN_GATEWAY": ready, "PATH": f"{BIN}:{os.environ['PATH']}"}
        lines = with_real_ports("\n".join(blocks(readme, "sh")), dev)
        done = await run("sh", "-ex", "-c", lines, environment=environment, cwd=tmp_path, timeout_seconds=60)
        assert done.code == 0, done.stdout + done.stderr
        assert [shown for shown in SHOWN[readme] if shown not in done.stdout] == [], done.stdout
        assert await dev.stop() == 0


def without_chance(text: str) -> list[str]:
    """The lines, with the numbers that differ from run to run left out."""
    return [re.sub(r"127\.0\.0\.1:\d+|\d+ ms|\d+\.\d+ s\b", "#", line) for line in text.splitlines()]


async def test_the_output_shown_is_what_the_demo_prints():
    (shown,) = blocks("README.md", "text")
    done = await run(BIN / "pointsman", "demo", timeout_seconds=60)
    assert done.code == 0, done.stdout + done.stderr
    printed = without_chance(done.stdout)
    assert [line for line in without_chance(shown) if line not in ("", "...") and line not in printed] == []


def test_every_link_to_a_file_leads_somewhere():
    readmes = [path for name in ("README", "PIPELINES") for path in ROOT.glob(f"**/{name}.md") if ".venv" not in path.parts]
    broken = [
        f"{path.relative_to(ROOT)}: {link}"
        for path in readmes
        for link in re.findall(r"\]\(([^)#:]+)\)", re.sub(r"`[^`\n]*`", "", path.read_text()))
        if not (path.parent / link).exists()
    ]
    assert broken == []
    assert len(readmes) >= 6
