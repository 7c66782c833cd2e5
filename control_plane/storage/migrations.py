"""The schema of a SQLite store, in steps that only go forward; each step and the record of it commit together.

A store that has a step this program does not know was written by a newer one, and is refused.
"""

from __future__ import annotations

import time
import uuid

from sqlite_utils import Database, Migrations

steps = Migrations("pointsman")

FIRST_IMMUTABLE_TABLES = ("snapshots", "releases", "deployments")
IMMUTABLE_TABLES = (*FIRST_IMMUTABLE_TABLES, "unbindings", "prunings", "audit_entries")


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


@steps()
def prunings(db: Database) -> None:
    """Releases can be deleted if that was recorded before; the history keeps what it says of them, and their tags never come back."""
    db.execute(
        """CREATE TABLE prunings (
            app TEXT NOT NULL REFERENCES apps (app),
            tag TEXT NOT NULL,
            digest TEXT NOT NULL,
            size_bytes INTEGER NOT NULL,
            prune_time INTEGER NOT NULL,
            pruned_by TEXT NOT NULL,
            PRIMARY KEY (app, tag)
        ) STRICT, WITHOUT ROWID"""
    )
    db.execute("CREATE INDEX prunings_of_snapshot ON prunings (digest)")
    db.execute("CREATE INDEX releases_of_snapshot ON releases (digest)")
    _refuse_changes(db, "prunings")
    _let_deployments_outlive_releases(db)
    for statement in _PRUNING_TRIGGERS:
        db.execute(statement)


def _let_deployments_outlive_releases(db: Database) -> None:
    """SQLite drops a foreign key only with its table; the bindings, which refer to it, step aside meanwhile."""
    db.execute("CREATE TEMPORARY TABLE bindings_aside AS SELECT * FROM bindings")
    db.execute("DELETE FROM bindings")
    db.execute(f"CREATE TABLE deployments_anew ({_DEPLOYMENT_COLUMNS}) STRICT")
    db.execute("INSERT INTO deployments_anew SELECT * FROM deployments ORDER BY position")
    db.execute("DROP TABLE deployments")
    db.execute("ALTER TABLE deployments_anew RENAME TO deployments")
    for statement in _DEPLOYMENT_INDEXES:
        db.execute(statement)
    _refuse_changes(db, "deployments")
    db.execute("INSERT INTO bindings SELECT * FROM bindings_aside")
    db.execute("DROP TABLE bindings_aside")


@steps()
def tokens(db: Database) -> None:
    """Who may do what."""
    db.execute(
        """CREATE TABLE tokens (
            position INTEGER PRIMARY KEY AUTOINCREMENT,
            token_id TEXT NOT NULL UNIQUE,
            secret_hash BLOB NOT NULL,
            name TEXT NOT NULL,
            role TEXT NOT NULL,
            apps TEXT NOT NULL,
            environments TEXT NOT NULL,
            endpoints TEXT NOT NULL,
            requests_per_second REAL,
            burst INTEGER,
            expire_time INTEGER,
            create_time INTEGER NOT NULL,
            created_by TEXT NOT NULL,
            revision INTEGER NOT NULL,
            revoke_time INTEGER,
            last_used_time INTEGER
        ) STRICT"""
    )
    db.execute("CREATE INDEX tokens_newest ON tokens (revision)")


@steps()
def audit(db: Database) -> None:
    """Who changed what, and who was refused: each entry has a hash over that of the one before."""
    db.execute(
        """CREATE TABLE audit_entries (
            position INTEGER PRIMARY KEY,
            entry_time INTEGER NOT NULL,
            actor TEXT NOT NULL,
            token_id TEXT NOT NULL,
            peer TEXT NOT NULL,
            method TEXT NOT NULL,
            app TEXT NOT NULL,
            environment TEXT NOT NULL,
            detail TEXT NOT NULL,
            reason TEXT NOT NULL,
            before_revision INTEGER NOT NULL,
            revision INTEGER NOT NULL,
            outcome TEXT NOT NULL,
            message TEXT NOT NULL,
            count INTEGER NOT NULL,
            hash BLOB NOT NULL
        ) STRICT"""
    )
    _refuse_changes(db, "audit_entries")


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

_DEPLOYMENT_COLUMNS = """
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
        beneath TEXT NOT NULL"""

_DEPLOYMENT_INDEXES = (
    "CREATE INDEX deployments_of_release ON deployments (app, release, environment, position)",
    "CREATE INDEX deployments_newest ON deployments (app, environment, position)",
)

# A history that is copied names releases that are gone.
_PRUNING_TRIGGERS = (
    "DROP TRIGGER releases_refuse_delete",
    "DROP TRIGGER snapshots_refuse_delete",
    """CREATE TRIGGER releases_refuse_delete BEFORE DELETE ON releases WHEN
        NOT EXISTS (SELECT 1 FROM prunings p WHERE p.app = OLD.app AND p.tag = OLD.tag AND p.digest = OLD.digest)
        OR EXISTS (SELECT 1 FROM bindings b JOIN deployments d ON d.deployment_id = b.deployment_id
            WHERE b.app = OLD.app AND d.release = OLD.tag)
        BEGIN SELECT RAISE(ABORT, 'releases never change: DELETE is refused'); END""",
    """CREATE TRIGGER snapshots_refuse_delete BEFORE DELETE ON snapshots WHEN
        NOT EXISTS (SELECT 1 FROM prunings p WHERE p.digest = OLD.digest)
        BEGIN SELECT RAISE(ABORT, 'snapshots never change: DELETE is refused'); END""",
    """CREATE TRIGGER releases_come_once BEFORE INSERT ON releases WHEN
        EXISTS (SELECT 1 FROM prunings p WHERE p.app = NEW.app AND p.tag = NEW.tag)
        BEGIN SELECT RAISE(ABORT, 'releases never come back: INSERT is refused'); END""",
    """CREATE TRIGGER deployments_have_releases BEFORE INSERT ON deployments WHEN
        NOT EXISTS (SELECT 1 FROM releases r WHERE r.app = NEW.app AND r.tag = NEW.release)
        AND NOT EXISTS (SELECT 1 FROM prunings p WHERE p.app = NEW.app AND p.tag = NEW.release)
        BEGIN SELECT RAISE(ABORT, 'deployments need their release: INSERT is refused'); END""",
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
    f"CREATE TABLE deployments ({_DEPLOYMENT_COLUMNS}, FOREIGN KEY (app, release) REFERENCES releases (app, tag)) STRICT",
    *_DEPLOYMENT_INDEXES,
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
