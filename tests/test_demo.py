"""pointsman demo and dev: they work, say so, and leave nothing behind, however they end."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest

from control_plane.cli.samples.model import REAL, SCRIPTED, weights
from tests.clients import cli, cli_done
from tests.eventually import eventually
from tests.local_model import needs_local_model, without_local_model
from tests.processes import BIN, DEV_PORTS, clean_environment, run, start_control_plane, start_dev
from tests.sample_apps import as_yaml, marked

# The promise is 10 s; tests run on busy machines.
DEMO_SECONDS = 30.0


def processes_with(words: str) -> list[str]:
    """Command lines of this machine that contain the words."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            continue
        if words in line:
            lines.append(line)
    return lines


needs_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc, which this system has not")


async def test_the_demo_walks_the_whole_workflow(tmp_path):
    started = time.monotonic()
    # What a developer exported for commands must not reach the servers; a folder of theirs must not take a plane's place.
    (tmp_path / "data_plane.py").write_text("raise SystemExit(99)")
    environment = {"POINTSMAN_APP": "other", "POINTSMAN_ENVIRONMENT": "nowhere", "HTTP_PROXY": "http://127.0.0.1:1"}
    done = await run(BIN / "pointsman", "demo", environment=environment, cwd=tmp_path, timeout_seconds=60)
    assert done.code == 0, done.stdout + done.stderr
    assert time.monotonic() - started < DEMO_SECONDS
    for words in (
        "2/2 gateways serve v1.0.0 in staging",
        "2/2 gateways serve v1.0.0 in production",
        "2/2 gateways serve v1.1.0 in staging",
        "ok: production the old one",
        "NOTHING_TO_ROLL_BACK: ",
        "INVALID_FIELD: ",
        "RELEASE_CONFLICT: ",
        "Did you mean v1.1.0",
        "ok: east goes on serving",
        REAL if weights() else SCRIPTED,
        "ok: it came in pieces",
    ):
        assert words in done.stdout
    assert re.search(r"^Done in \d+\.\d s", done.stdout, re.MULTILINE)
    assert list(tmp_path.iterdir()) == [tmp_path / "data_plane.py"]


async def test_the_demo_says_when_there_is_no_real_model_and_streams_from_a_scripted_one(tmp_path):
    done = await run(BIN / "pointsman", "demo", environment=without_local_model(tmp_path), timeout_seconds=60)
    assert done.code == 0, done.stdout + done.stderr
    assert f"  {SCRIPTED} It was ready" in done.stdout
    assert "  Order 1234 is delivered.\n  the first of 4 pieces" in done.stdout


@pytest.mark.parametrize("real", [True, False])
async def test_dev_has_a_model_that_writes_word_by_word(tmp_path, real):
    if real:
        needs_local_model()
    async with start_dev(tmp_path, **({} if real else without_local_model(tmp_path))) as dev:
        await eventually(lambda: "Ctrl-C ends it." in "\n".join(dev.stdout), 20)
        told = "\n".join(dev.stdout)
        assert (REAL if real else SCRIPTED) in told
        gateway = re.search(r"gateway-grpc=(\S+)", told)
        (line,) = [line for line in dev.stdout if "pointsman trigger compose" in line]
        assert gateway is not None
        done = await cli(*shlex.split(line, comments=True)[1:], POINTSMAN_GATEWAY=gateway[1])
        assert done.code == 0, done.stderr
        output = json.loads(done.stdout)
        # Whatever the model writes, the reply says what the tool knew.
        assert "1234" in output["reply"]
        assert "delivered" in output["reply"]
        # Its words end before the next line begins.
        assert f"{output['written'].strip()}\n# write/written SUCCEEDED after " in done.stderr
        assert real or output["written"] == "Order 1234 is delivered."


async def test_the_demo_fails_at_the_step_where_reality_differs(tmp_path):
    code = (
        "import control_plane.cli.demo as demo\n"
        "demo.NEW_WORDS = demo.OLD_WORDS  # nothing is edited, so the second release is refused, or the answers do not differ\n"
        "demo.SECOND = 'v 2'\n"
        "demo.command()\n"
    )
    done = await run(sys.executable, "-c", code, timeout_seconds=60)
    assert done.code == 1
    assert done.stderr.startswith('Error: expected success, but `pointsman release create "v 2"')


@needs_proc
async def test_a_demo_that_is_ended_leaves_no_process_and_no_file(tmp_path):
    environment = clean_environment(TMPDIR=str(tmp_path))
    demo = await asyncio.create_subprocess_exec(BIN / "pointsman", "demo", stdout=asyncio.subprocess.PIPE, env=environment)
    assert demo.stdout is not None
    while b"pointsman app push" not in await asyncio.wait_for(demo.stdout.readline(), 30):
        pass
    assert processes_with(str(tmp_path))
    demo.send_signal(signal.SIGTERM)
    await asyncio.wait_for(demo.communicate(), 30)
    assert demo.returncode == 1
    assert processes_with(str(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


async def test_dev_starts_again_with_what_it_had(tmp_path):
    async with start_dev(tmp_path) as dev:
        server = {"POINTSMAN_SERVER": dev.grpc}
        (tmp_path / "app.yaml").write_text(as_yaml(marked("mine")))
        await cli_done("app", "push", str(tmp_path / "app.yaml"), **server)
        await cli_done("release", "create", "v2", "--deploy-to", "staging", **server)
        assert await dev.stop() == 0
    async with start_dev(tmp_path) as dev:
        status = await cli_done("status", POINTSMAN_SERVER=dev.grpc)
        assert re.search(r"support-chat\s+staging\s+v2 ", status)
        assert re.search(r"support-chat\s+production\s+v1.0.0 ", status)
        gateway = re.search(r"gateway-grpc=(\S+)", dev.stdout[0])
        assert gateway is not None
        # The order service is where the release says that it is.
        arguments = ["trigger", "chat", "-e", "production", "-d", '{"message": "Where is order 1234?"}']
        assert "Order 1234 is" in await cli_done(*arguments, POINTSMAN_GATEWAY=gateway[1])
        assert await dev.stop() == 0


async def test_what_is_saved_while_dev_runs_is_live_in_staging(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(as_yaml(marked("first")))
    async with start_dev(tmp_path, "--app-file", str(file), "--app", "mine") as dev:
        gateway = re.search(r"gateway-grpc=(\S+)", dev.stdout[0])
        assert gateway is not None
        servers = {"POINTSMAN_SERVER": dev.grpc, "POINTSMAN_GATEWAY": gateway[1], "POINTSMAN_APP": "mine"}

        async def runs(mark, environment="staging"):
            return f'"{mark}"' in await cli_done("trigger", "where", "-e", environment, "-d", '{"message": "?"}', **servers)

        assert await runs("first")
        file.write_text(as_yaml(marked("second")))
        await eventually(lambda: runs("second"), 10)
        assert await runs("first", "production")
        told = await eventually(lambda: next((line for line in dev.stdout if "was saved: " in line), None), 5)
        assert re.match(rf"{file} was saved: .*dev-\d{{8}}-\d{{6}}", told), told
        # A mistake: where it is, and what was live stays.
        sound = as_yaml(marked("third"))
        file.write_text(sound.replace("pipelines:", "pipelynes:", 1))
        await eventually(lambda: any("cannot be released; what is live stays" in line for line in dev.stdout), 10)
        await eventually(lambda: any(re.search(r"line \d+, column 1: pipelynes: unknown field", line) for line in dev.stdout), 5)
        assert await runs("second")
        # As some editors save: another file takes its place.
        (tmp_path / "mine.yaml.new").write_text(sound)
        (tmp_path / "mine.yaml.new").replace(file)
        await eventually(lambda: runs("third"), 10)
        # Saved again at once, as by an editor that formats what it saves: neither release is in the way of the other.
        file.write_text(as_yaml(marked("hasty")))
        await eventually(lambda: sum("was saved: " in line for line in dev.stdout) == 3, 10)
        file.write_text(as_yaml(marked("hastier")))
        await eventually(lambda: runs("hastier"), 10)
        # Deleted: told once, and what was live stays.
        file.unlink()
        await eventually(lambda: any(f"{file} is gone" in line for line in dev.stdout), 10)
        assert await runs("hastier")
        assert await dev.stop() == 0
        assert sum(f"{file} is gone" in line for line in dev.stdout) == 1
    file.write_text(as_yaml(marked("fourth")))
    async with start_dev(tmp_path, "--app-file", str(file), "--app", "mine") as dev:
        # Saved while it did not run.
        servers |= {"POINTSMAN_SERVER": dev.grpc, "POINTSMAN_GATEWAY": re.search(r"gateway-grpc=(\S+)", dev.stdout[0])[1]}
        await eventually(lambda: runs("fourth"), 10)
        assert await dev.stop() == 0


async def test_the_sample_of_dev_can_be_edited(tmp_path):
    async with start_dev(tmp_path) as dev:
        gateway = re.search(r"gateway-grpc=(\S+)", dev.stdout[0])
        assert gateway is not None
        file = tmp_path / "dev" / "support-chat.yaml"
        # Told after the line that says ready.
        await eventually(lambda: any(str(file) in line for line in dev.stdout), 5)
        text = file.read_text()
        assert "' is '" in text
        file.write_text(text.replace("' is '", "' is now '"))
        arguments = ["trigger", "chat", "-e", "staging", "-d", '{"message": "Where is order 1234?"}']

        async def says_so():
            return "Order 1234 is now" in await cli_done(*arguments, POINTSMAN_GATEWAY=gateway[1])

        await eventually(says_so, 10)
        assert await dev.stop() == 0


async def test_dev_completes_a_start_that_was_cut_off(tmp_path):
    (tmp_path / "dev").mkdir()
    async with start_control_plane(tmp_path / "dev") as server:
        (tmp_path / "app.yaml").write_text(as_yaml(marked("v1.0.0")))
        settings = {"POINTSMAN_SERVER": server.grpc, "POINTSMAN_APP": "support-chat"}
        await cli_done("app", "push", str(tmp_path / "app.yaml"), **settings)
        await cli_done("release", "create", "v1.0.0", **settings)
        await server.stop()
    async with start_dev(tmp_path) as dev:
        status = await cli_done("status", POINTSMAN_SERVER=dev.grpc)
        assert status.count("v1.0.0") == 2


@needs_proc
@pytest.mark.parametrize("module", ["control_plane", "data_plane"])
async def test_dev_ends_when_a_server_dies_and_says_which(tmp_path, module):
    async with start_dev(tmp_path) as dev:
        (line,) = [line for line in processes_with(f"-m {module} ") if str(tmp_path) in line]
        (pid,) = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if _is(path, line)]
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: dev._process.returncode is not None, 20)
        assert await dev.stop() == 1
        assert f"the {'gateway' if module == 'data_plane' else 'control plane'} ended by itself (exit status -9)" in "\n".join(dev.stderr)
    assert processes_with(str(tmp_path)) == []


def _is(path: Path, line: str) -> bool:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode(errors="replace") == line
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("port", ["control-plane-port", "gateway-port", "orders-port", "model-port", "tools-port", "caller-port"])
async def test_dev_says_which_port_is_taken(tmp_path, control_plane, port):
    taken = control_plane.grpc.rpartition(":")[2]
    flags = [argument for each in DEV_PORTS for argument in (f"--{each}", taken if each == port else "0")]
    sample = "mcp-agent" if port in ("tools-port", "caller-port") else "support-chat"
    done = await cli("dev", "--sample", sample, "--data-dir", str(tmp_path / "dev"), *flags)
    assert done.code == 1
    assert f"127.0.0.1:{taken}" in done.stderr
    assert "Traceback" not in done.stderr
