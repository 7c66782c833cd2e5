"""The schema of a SQLite store, in steps that only go forward; each step and the record of it commit together.

A store that has a step this program does not know was written by a newer one, and is refused.
"""

from __future__ import annotations

import time
import uuid

from sqlite_utils import Database, Migrations

steps = Migrations("pointsman")

FIRST_IMMUTABLE_TABLES = ("snapshots", "releases", "deployments")
IMMUTABLE_TABLES = (*FIRST_IMMUTABLE_TABLES, "unbindings")


@steps()
def first_light(db: Database) -> None:
    """Apps, environments, releases, bindings and their history."""
    for statement in _FIRST_LIGHT:
        db.execute(statement)
    for table in FIRST_IMMUTABLE_TABLES:
        _refuse_changes(db, table)
    db.execute("INSERT INTO counter (only, store_id, revision) VALUES (1, ?, 0)", [str(uuid.uuid4())])
    now = time.time_ns() // 1000
    for environment, description in ENVIRONMENTS:
        db.execute(
            "INSERT INTO environments (environment, description, create_time, created_by) VALUES (?, ?, ?, 'pointsman')",
            [environment, description, now],
        )


@steps()
def staleness(db: Database) -> None:
    """How long gateways may go without word of the control plane, by environment; absent: for ever."""
    db.execute(
        """CREATE TABLE staleness_policies (
            environment TEXT PRIMARY KEY,
            revision INTEGER NOT NULL,
            max_staleness INTEGER,
            stale_action TEXT NOT NULL
        ) STRICT, WITHOUT ROWID"""
    )


@steps()
def unbindings(db: Database) -> None:
    """When bindings went, for what was live at a moment; of those that went before it is known that they are gone now."""
    db.execute(
        """CREATE TABLE unbindings (
            app TEXT NOT NULL REFERENCES apps (app),
            environment TEXT NOT NULL,
            revision INTEGER NOT NULL,
            unbind_time INTEGER NOT NULL,
            PRIMARY KEY (app, environment, revision)
        ) STRICT, WITHOUT ROWID"""
    )
    db.execute(
        "INSERT INTO unbindings SELECT app, environment, revision, ? FROM bindings WHERE deployment_id IS NULL", [time.time_ns() // 1000]
    )
    _refuse_changes(db, "unbindings")


def _refuse_changes(db: Database, table: str) -> None:
    for verb in ("UPDATE", "DELETE"):
        db.execute(
            f"CREATE TRIGGER {table}_refuse_{verb.lower()} BEFORE {verb} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} never change: {verb} is refused'); END"
        )


ENVIRONMENTS = (
    ("development", "Where changes are tried first."),
    ("staging", "Where a release is verified before it is promoted."),
    ("production", "What users get."),
)

_FIRST_LIGHT = (
    """CREATE TABLE counter (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        store_id TEXT NOT NULL,
        revision INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE apps (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        app TEXT NOT NULL UNIQUE,
        description TEXT NOT NULL,
        create_time INTEGER NOT NULL,
        created_by TEXT NOT NULL,
        draft BLOB NOT NULL,
        draft_version INTEGER NOT NULL,
        draft_update_time INTEGER
    ) STRICT""",
    """CREATE TABLE environments (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        environment TEXT NOT NULL UNIQUE,
        description TEXT NOT NULL,
        create_time INTEGER NOT NULL,
        created_by TEXT NOT NULL
    ) STRICT""",
    "CREATE TABLE snapshots (digest TEXT PRIMARY KEY, data BLOB NOT NULL) STRICT",
    """CREATE TABLE releases (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        app TEXT NOT NULL REFERENCES apps (app),
        tag TEXT NOT NULL,
        description TEXT NOT NULL,
        digest TEXT NOT NULL REFERENCES snapshots (digest),
        size_bytes INTEGER NOT NULL,
        create_time INTEGER NOT NULL,
        created_by TEXT NOT NULL,
        UNIQUE (app, tag)
    ) STRICT""",
    "CREATE INDEX releases_newest ON releases (app, position)",
    """CREATE TABLE deployments (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        deployment_id TEXT NOT NULL UNIQUE,
        app TEXT NOT NULL,
        environment TEXT NOT NULL,
        action TEXT NOT NULL,
        release TEXT NOT NULL,
        digest TEXT NOT NULL,
        previous_release TEXT NOT NULL,
        revision INTEGER NOT NULL,
        actor TEXT NOT NULL,
        reason TEXT NOT NULL,
        create_time INTEGER NOT NULL,
        forced INTEGER NOT NULL,
        beneath TEXT NOT NULL,
        FOREIGN KEY (app, release) REFERENCES releases (app, tag)
    ) STRICT""",
    "CREATE INDEX deployments_of_release ON deployments (app, release, environment, position)",
    "CREATE INDEX deployments_newest ON deployments (app, environment, position)",
    """CREATE TABLE bindings (
        app TEXT NOT NULL REFERENCES apps (app),
        environment TEXT NOT NULL,
        revision INTEGER NOT NULL,
        deployment_id TEXT REFERENCES deployments (deployment_id),
        PRIMARY KEY (app, environment)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX bindings_newest ON bindings (revision)",
    """CREATE TABLE requests (
        caller TEXT NOT NULL,
        request_id TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        answer BLOB NOT NULL,
        create_time INTEGER NOT NULL,
        PRIMARY KEY (caller, request_id)
    ) STRICT, WITHOUT ROWID""",
    "CREATE INDEX requests_oldest ON requests (create_time)",
)
