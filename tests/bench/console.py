"""Server time and weight of every page of the console, with 1,000 releases, 50 environments, 500 gateways and a million executions."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from tests.bench.table import Row, milliseconds
from tests.full_site import MAX_PAGE_BYTES, MAX_SECONDS, PAGES, full_site
from tests.postgres_server import PostgresServer, available, running_postgres

EXECUTIONS = 1_000_000
ROUNDS = 11
MAX_NAME_CHARS = 100


async def rows() -> list[Row]:
    """SQLite first; PostgreSQL where there are binaries of it."""
    with tempfile.TemporaryDirectory() as name:
        found = await _engine("SQLite", Path(name))
        if available():
            with running_postgres() as server:
                found += await _engine("PostgreSQL", Path(name), server)
    return found


async def _engine(engine: str, folder: Path, server: PostgresServer | None = None) -> list[Row]:
    """One for each page, then the slowest and the largest."""
    found: list[Row] = []
    seconds: dict[str, float] = {}
    sizes: dict[str, int] = {}
    database = server.new_database() if server is not None else ""
    async with full_site(folder, EXECUTIONS, server.url(database) if server is not None else "") as (site, ids):
        if server is not None:
            # As the server does by itself within a minute.
            server.execute("ANALYZE", database)
        for path in PAGES:
            took = []
            for _ in range(ROUNDS):
                started = time.perf_counter()
                response = await site.http.get(path.format(**ids))
                took.append(time.perf_counter() - started)
                assert response.status_code == 200, path
            seconds[path], sizes[path] = statistics.median(took), len(response.content)
            found.append(Row(f"{engine}: {path[:MAX_NAME_CHARS]}", milliseconds(seconds[path]), f"{sizes[path]:,} bytes"))
    slowest, largest = max(seconds, key=lambda p: seconds[p]), max(sizes, key=lambda p: sizes[p])
    return [
        *found,
        Row(
            f"{engine}: the slowest, {slowest[:MAX_NAME_CHARS]}",
            milliseconds(seconds[slowest]),
            bound=f"at most {milliseconds(MAX_SECONDS)}",
        ),
        Row(f"{engine}: the largest, {largest[:MAX_NAME_CHARS]}", f"{sizes[largest]:,} bytes", bound=f"at most {MAX_PAGE_BYTES:,} bytes"),
    ]
