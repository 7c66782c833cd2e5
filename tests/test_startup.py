"""Servers and commands that cannot do what they should: one clear line on stderr, a non-zero exit status, nothing lost."""

from __future__ import annotations

import sqlite3
import sys

import pytest

from tests.clients import cli
from tests.processes import run as run_command
from tests.processes import start_control_plane, start_gateway

# The promise is 1.5 s on an idle machine; tests run on busy ones.
READY_SECONDS = 6.0


def one_line(done, *words):
    """The only line on stderr, which names these things."""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert [word for word in words if word not in lines[0]] == []
    return lines[0]


async def test_ready_lines(tmp_path):
    async with start_control_plane(tmp_path) as server, start_gateway(tmp_path, server.grpc) as gateway:
        assert (server.what, gateway.what) == ("control-plane", "gateway")
        assert len(server.stdout) == len(gateway.stdout) == 1
        assert server.ready_after_seconds < READY_SECONDS
        assert gateway.ready_after_seconds < READY_SECONDS
        assert await gateway.stop() == 0
        assert await server.stop() == 0


@pytest.mark.parametrize("flag", ["--listen", "--http"])
async def test_a_port_that_is_taken(tmp_path, control_plane, flag):
    taken = control_plane.grpc if flag == "--listen" else control_plane.http
    flags = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--store", f"sqlite:///{tmp_path / 'other.db'}"]
    done = await cli("control-plane", *flags, flag, taken)
    assert done.code == 1
    one_line(done, taken, "taken")
    flags = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--control-plane", control_plane.grpc]
    done = await cli("gateway", *flags, "--gateway-id", "g", "--state-dir", str(tmp_path / "state"), flag, taken)
    assert done.code == 1
    one_line(done, taken, "taken")


async def test_a_store_that_is_not_ours_is_left_alone(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a database\n" * 100)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as database:
        database.execute("create table theirs (x)")
        database.execute("insert into theirs values (1)")
    database.close()
    for path in (text, other):
        before = path.read_bytes()
        done = await cli("control-plane", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--store", f"sqlite:///{path}")
        assert done.code == 1
        one_line(done, str(path))
        assert path.read_bytes() == before


async def test_a_store_of_a_newer_program_is_left_alone(tmp_path):
    path = tmp_path / "pointsman.db"
    async with start_control_plane(tmp_path) as server:
        await server.stop()
    database = sqlite3.connect(path)
    columns = [row[1] for row in database.execute("pragma table_info(_sqlite_migrations)")]
    assert {"migration_set", "name", "applied_at"} <= set(columns)
    database.execute(
        "insert into _sqlite_migrations (migration_set, name, applied_at) values ('pointsman', 'from_the_future', '2999-01-01')"
    )
    database.commit()
    database.close()
    before = path.read_bytes()
    done = await cli("control-plane", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--store", f"sqlite:///{path}")
    assert done.code == 1
    one_line(done, str(path), "newer")
    assert path.read_bytes() == before


@pytest.mark.parametrize("store", ["mysql://localhost/x", "sqlite:////no/such/folder/x.db", "nonsense"])
async def test_a_store_that_cannot_be_opened(store):
    done = await cli("control-plane", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--store", store)
    assert done.code == 1
    one_line(done)


async def test_a_control_plane_that_cannot_be_reached():
    for command in (["status"], ["release", "list"], ["deploy", "v1", "--to", "production"], ["history", "production"]):
        done = await cli(*command, POINTSMAN_SERVER="127.0.0.1:1", POINTSMAN_APP="shop")
        assert done.code == 3, (command, done)
        one_line(done, "127.0.0.1:1")


async def test_exit_statuses(stack):
    asked = {"control_plane": stack.control_plane, "gateway": stack.gateways[0], "POINTSMAN_APP": "nobody"}
    refused = await cli("deploy", "v1", "--to", "production", **asked)
    assert refused.code == 1
    assert "APP_NOT_FOUND" in refused.stderr
    assert "Traceback" not in refused.stderr
    for wrong_use in (["deploy"], ["no-such-command"], ["deploy", "v1", "--to"]):
        assert (await cli(*wrong_use, **asked)).code == 2


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("endpoints: [", "line"),
        ("- a\n- list", ""),
        ("endpoints:\n- name: x\n  pipeline: nowhere\n", "endpoints[0].pipeline"),
        ("endpionts: []", "endpionts"),
    ],
)
async def test_a_config_file_that_is_wrong(tmp_path, stack, text, told):
    file = tmp_path / "app.yaml"
    file.write_text(text)
    for command in ("validate", "push"):
        done = await cli("app", command, str(file), control_plane=stack.control_plane, POINTSMAN_APP="wrong-file")
        assert done.code == 1, done
        assert told in done.stderr
        assert "Traceback" not in done.stderr


async def test_a_file_that_is_not_there(stack, tmp_path):
    done = await cli("app", "push", str(tmp_path / "no.yaml"), control_plane=stack.control_plane, POINTSMAN_APP="shop")
    assert done.code in (1, 2)
    assert "no.yaml" in done.stderr


async def test_the_program_can_be_run_as_a_module():
    done = await run_command(sys.executable, "-m", "control_plane", "--help")
    assert done.code == 0
    assert "--store" in done.stdout
