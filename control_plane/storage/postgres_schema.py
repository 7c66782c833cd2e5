"""The schema of a PostgreSQL store, in numbered steps that only go forward; replicas that start together take turns.

All missing steps and the record of them commit together. A store with a step this program does not know is refused.
"""

from __future__ import annotations

import time
import uuid
from typing import Any, LiteralString

from control_plane.storage.base import CannotOpenStore
from control_plane.storage.migrations import ENVIRONMENTS, FIRST_IMMUTABLE_TABLES

# "PMAN": the advisory lock that whoever changes the schema holds.
SCHEMA_LOCK = 0x504D414E
OLDEST_SERVER = 130000

Statements = tuple[LiteralString, ...]

_RECORD = """CREATE TABLE IF NOT EXISTS pointsman_steps (
    step INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    applied_time TIMESTAMPTZ NOT NULL DEFAULT now()
)"""

# Names sort by their bytes, as in SQLite, whatever the database's locale.
_FIRST_LIGHT: Statements = (
    """CREATE TABLE counter (
        only_one BIGINT PRIMARY KEY CHECK (only_one = 1),
        store_id TEXT NOT NULL,
        revision BIGINT NOT NULL
    )""",
    """CREATE TABLE apps (
        position BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        app TEXT COLLATE "C" NOT NULL UNIQUE,
        description TEXT NOT NULL,
        create_time BIGINT NOT NULL,
        created_by TEXT NOT NULL,
        draft BYTEA NOT NULL,
        draft_version BIGINT NOT NULL,
        draft_update_time BIGINT
    )""",
    """CREATE TABLE environments (
        position BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        environment TEXT COLLATE "C" NOT NULL UNIQUE,
        description TEXT NOT NULL,
        create_time BIGINT NOT NULL,
        created_by TEXT NOT NULL
    )""",
    'CREATE TABLE snapshots (digest TEXT COLLATE "C" PRIMARY KEY, data BYTEA NOT NULL)',
    """CREATE TABLE releases (
        position BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        app TEXT COLLATE "C" NOT NULL REFERENCES apps (app),
        tag TEXT COLLATE "C" NOT NULL,
        description TEXT NOT NULL,
        digest TEXT COLLATE "C" NOT NULL REFERENCES snapshots (digest),
        size_bytes BIGINT NOT NULL,
        create_time BIGINT NOT NULL,
        created_by TEXT NOT NULL,
        UNIQUE (app, tag)
    )""",
    "CREATE INDEX releases_newest ON releases (app, position)",
    """CREATE TABLE deployments (
        position BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        deployment_id TEXT COLLATE "C" NOT NULL UNIQUE,
        app TEXT COLLATE "C" NOT NULL,
        environment TEXT COLLATE "C" NOT NULL,
        action TEXT NOT NULL,
        release TEXT COLLATE "C" NOT NULL,
        digest TEXT NOT NULL,
        previous_release TEXT NOT NULL,
        revision BIGINT NOT NULL,
        actor TEXT NOT NULL,
        reason TEXT NOT NULL,
        create_time BIGINT NOT NULL,
        forced BIGINT NOT NULL,
        beneath TEXT NOT NULL,
        FOREIGN KEY (app, release) REFERENCES releases (app, tag)
    )""",
    "CREATE INDEX deployments_of_release ON deployments (app, release, environment, position)",
    "CREATE INDEX deployments_newest ON deployments (app, environment, position)",
    """CREATE TABLE bindings (
        app TEXT COLLATE "C" NOT NULL REFERENCES apps (app),
        environment TEXT COLLATE "C" NOT NULL,
        revision BIGINT NOT NULL,
        deployment_id TEXT COLLATE "C" REFERENCES deployments (deployment_id),
        PRIMARY KEY (app, environment)
    )""",
    "CREATE INDEX bindings_newest ON bindings (revision)",
    """CREATE TABLE requests (
        caller TEXT COLLATE "C" NOT NULL,
        request_id TEXT COLLATE "C" NOT NULL,
        fingerprint TEXT NOT NULL,
        answer BYTEA NOT NULL,
        create_time BIGINT NOT NULL,
        PRIMARY KEY (caller, request_id)
    )""",
    "CREATE INDEX requests_oldest ON requests (create_time)",
    # The last batch that each control plane committed: what became of one whose answer was lost.
    """CREATE TABLE writers (
        writer TEXT COLLATE "C" PRIMARY KEY,
        batch BIGINT NOT NULL,
        used_time TIMESTAMPTZ NOT NULL DEFAULT now()
    )""",
    """CREATE FUNCTION pointsman_refuse() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN RAISE EXCEPTION '% never change: % is refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'integrity_constraint_violation'; END$$""",
)

# Who lives and what they tell each other: nothing of it needs to outlive the server, so nothing is written twice.
_REPLICAS: Statements = (
    """CREATE UNLOGGED TABLE replicas (
        replica_id UUID PRIMARY KEY,
        address TEXT NOT NULL,
        beat_time TIMESTAMPTZ NOT NULL DEFAULT now()
    )""",
    """CREATE UNLOGGED TABLE replica_messages (
        message_id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        message TEXT NOT NULL,
        create_time TIMESTAMPTZ NOT NULL DEFAULT now()
    )""",
)

# The server process behind the connection on which a replica listens: one that is gone tells sooner than a beat that does not come.
_BACKENDS: Statements = ("ALTER TABLE replicas ADD COLUMN backend_pid INTEGER",)

_STALENESS: Statements = (
    """CREATE TABLE staleness_policies (
        environment TEXT COLLATE "C" PRIMARY KEY,
        revision BIGINT NOT NULL,
        max_staleness BIGINT,
        stale_action TEXT NOT NULL
    )""",
)

_UNBINDINGS: Statements = (
    """CREATE TABLE unbindings (
        app TEXT COLLATE "C" NOT NULL REFERENCES apps (app),
        environment TEXT COLLATE "C" NOT NULL,
        revision BIGINT NOT NULL,
        unbind_time BIGINT NOT NULL,
        PRIMARY KEY (app, environment, revision)
    )""",
    """INSERT INTO unbindings SELECT app, environment, revision, (extract(epoch FROM now()) * 1000000)::bigint
    FROM bindings WHERE deployment_id IS NULL""",
    "CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON unbindings FOR EACH ROW EXECUTE FUNCTION pointsman_refuse()",
    "CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON unbindings FOR EACH STATEMENT EXECUTE FUNCTION pointsman_refuse()",
)

_PRUNINGS: Statements = (
    """CREATE TABLE prunings (
        app TEXT COLLATE "C" NOT NULL REFERENCES apps (app),
        tag TEXT COLLATE "C" NOT NULL,
        digest TEXT COLLATE "C" NOT NULL,
        size_bytes BIGINT NOT NULL,
        prune_time BIGINT NOT NULL,
        pruned_by TEXT NOT NULL,
        PRIMARY KEY (app, tag)
    )""",
    "CREATE INDEX prunings_of_snapshot ON prunings (digest)",
    "CREATE INDEX releases_of_snapshot ON releases (digest)",
    "CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON prunings FOR EACH ROW EXECUTE FUNCTION pointsman_refuse()",
    "CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON prunings FOR EACH STATEMENT EXECUTE FUNCTION pointsman_refuse()",
    "ALTER TABLE deployments DROP CONSTRAINT deployments_app_release_fkey",
    # As SQLite's triggers, see migrations.py.
    """CREATE FUNCTION pointsman_prune_release() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
        IF EXISTS (SELECT 1 FROM prunings p WHERE p.app = OLD.app AND p.tag = OLD.tag AND p.digest = OLD.digest)
        AND NOT EXISTS (SELECT 1 FROM bindings b JOIN deployments d ON d.deployment_id = b.deployment_id
            WHERE b.app = OLD.app AND d.release = OLD.tag)
        THEN RETURN OLD; END IF;
        RAISE EXCEPTION 'releases never change: DELETE is refused' USING ERRCODE = 'integrity_constraint_violation';
    END$$""",
    """CREATE FUNCTION pointsman_prune_snapshot() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
        IF EXISTS (SELECT 1 FROM prunings p WHERE p.digest = OLD.digest) THEN RETURN OLD; END IF;
        RAISE EXCEPTION 'snapshots never change: DELETE is refused' USING ERRCODE = 'integrity_constraint_violation';
    END$$""",
    """CREATE FUNCTION pointsman_release_once() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
        IF EXISTS (SELECT 1 FROM prunings p WHERE p.app = NEW.app AND p.tag = NEW.tag) THEN
            RAISE EXCEPTION 'releases never come back: INSERT is refused' USING ERRCODE = 'integrity_constraint_violation';
        END IF;
        RETURN NEW;
    END$$""",
    """CREATE FUNCTION pointsman_deployment_has_release() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
        IF NOT EXISTS (SELECT 1 FROM releases r WHERE r.app = NEW.app AND r.tag = NEW.release)
        AND NOT EXISTS (SELECT 1 FROM prunings p WHERE p.app = NEW.app AND p.tag = NEW.release) THEN
            RAISE EXCEPTION 'deployments need their release: INSERT is refused' USING ERRCODE = 'foreign_key_violation';
        END IF;
        RETURN NEW;
    END$$""",
    "DROP TRIGGER refuse_change ON releases",
    "DROP TRIGGER refuse_change ON snapshots",
    "CREATE TRIGGER refuse_change BEFORE UPDATE ON releases FOR EACH ROW EXECUTE FUNCTION pointsman_refuse()",
    "CREATE TRIGGER refuse_change BEFORE UPDATE ON snapshots FOR EACH ROW EXECUTE FUNCTION pointsman_refuse()",
    "CREATE TRIGGER prune BEFORE DELETE ON releases FOR EACH ROW EXECUTE FUNCTION pointsman_prune_release()",
    "CREATE TRIGGER prune BEFORE DELETE ON snapshots FOR EACH ROW EXECUTE FUNCTION pointsman_prune_snapshot()",
    "CREATE TRIGGER once BEFORE INSERT ON releases FOR EACH ROW EXECUTE FUNCTION pointsman_release_once()",
    "CREATE TRIGGER has_release BEFORE INSERT ON deployments FOR EACH ROW EXECUTE FUNCTION pointsman_deployment_has_release()",
)

# Partitions for days to come are made by whoever sweeps; what is of no such day lies in the one beside them.
_EXECUTIONS: Statements = (
    "CREATE SEQUENCE execution_writer AS INTEGER",
    "CREATE SEQUENCE execution_position",
    """CREATE TABLE executions (
        execution_id BYTEA NOT NULL,
        app TEXT COLLATE "C" NOT NULL,
        environment TEXT COLLATE "C" NOT NULL,
        endpoint TEXT COLLATE "C" NOT NULL,
        release TEXT COLLATE "C" NOT NULL,
        digest TEXT COLLATE "C" NOT NULL,
        revision BIGINT NOT NULL,
        gateway_id TEXT COLLATE "C" NOT NULL,
        start_time BIGINT NOT NULL,
        duration BIGINT NOT NULL,
        outcome BIGINT NOT NULL,
        error_reason TEXT COLLATE "C" NOT NULL,
        error_message TEXT NOT NULL,
        token_id TEXT NOT NULL,
        trace_id TEXT NOT NULL,
        input_tokens BIGINT NOT NULL,
        output_tokens BIGINT NOT NULL,
        detail BYTEA NOT NULL,
        writer INTEGER NOT NULL,
        position BIGINT NOT NULL DEFAULT nextval('execution_position'),
        PRIMARY KEY (execution_id, start_time)
    ) PARTITION BY RANGE (start_time)""",
    "CREATE TABLE executions_of_other_days PARTITION OF executions DEFAULT",
    """CREATE INDEX executions_by_time ON executions (start_time) INCLUDE (app, environment, release, endpoint, outcome, duration,
        input_tokens, output_tokens)""",
    "CREATE INDEX executions_by_error_reason ON executions (error_reason, start_time)",
    "CREATE INDEX executions_by_outcome ON executions (outcome, start_time)",
    "CREATE INDEX executions_by_gateway_id ON executions (gateway_id, start_time)",
    "CREATE INDEX executions_by_release ON executions (release, start_time)",
    "CREATE INDEX executions_by_endpoint ON executions (endpoint, start_time)",
    "CREATE INDEX executions_by_app ON executions (app, start_time)",
    "CREATE INDEX executions_by_environment ON executions (environment, start_time)",
    "CREATE INDEX executions_by_duration ON executions (duration)",
    "CREATE INDEX executions_by_position ON executions (position)",
    # Up to which position each writer has committed: what it stores, it commits in the order of positions.
    """CREATE TABLE execution_writers (
        writer INTEGER PRIMARY KEY,
        position BIGINT NOT NULL,
        used_time BIGINT NOT NULL
    )""",
    """CREATE TABLE execution_droppers (
        instance_id TEXT COLLATE "C" PRIMARY KEY,
        dropped BIGINT NOT NULL,
        report_time BIGINT NOT NULL
    )""",
    """CREATE TABLE execution_drops (
        report_time BIGINT NOT NULL,
        gateway_id TEXT COLLATE "C" NOT NULL,
        instance_id TEXT COLLATE "C" NOT NULL,
        dropped BIGINT NOT NULL
    )""",
    "CREATE INDEX execution_drops_by_time ON execution_drops (report_time)",
)

_TOKENS: Statements = (
    """CREATE TABLE tokens (
        position BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        token_id TEXT COLLATE "C" NOT NULL UNIQUE,
        secret_hash BYTEA NOT NULL,
        name TEXT NOT NULL,
        role TEXT NOT NULL,
        apps TEXT NOT NULL,
        environments TEXT NOT NULL,
        endpoints TEXT NOT NULL,
        requests_per_second DOUBLE PRECISION,
        burst BIGINT,
        expire_time BIGINT,
        create_time BIGINT NOT NULL,
        created_by TEXT NOT NULL,
        revision BIGINT NOT NULL,
        revoke_time BIGINT,
        last_used_time BIGINT
    )""",
    "CREATE INDEX tokens_newest ON tokens (revision)",
)

_AUDIT: Statements = (
    """CREATE TABLE audit_entries (
        position BIGINT PRIMARY KEY,
        entry_time BIGINT NOT NULL,
        actor TEXT NOT NULL,
        token_id TEXT NOT NULL,
        peer TEXT NOT NULL,
        method TEXT NOT NULL,
        app TEXT NOT NULL,
        environment TEXT NOT NULL,
        detail TEXT NOT NULL,
        reason TEXT NOT NULL,
        before_revision BIGINT NOT NULL,
        revision BIGINT NOT NULL,
        outcome TEXT NOT NULL,
        message TEXT NOT NULL,
        count BIGINT NOT NULL,
        hash BYTEA NOT NULL
    )""",
    "CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON audit_entries FOR EACH ROW EXECUTE FUNCTION pointsman_refuse()",
    "CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON audit_entries FOR EACH STATEMENT EXECUTE FUNCTION pointsman_refuse()",
)

STEPS: tuple[tuple[str, Statements], ...] = (
    ("first_light", _FIRST_LIGHT),
    ("replicas", _REPLICAS),
    ("staleness", _STALENESS),
    ("unbindings", _UNBINDINGS),
    ("prunings", _PRUNINGS),
    ("executions", _EXECUTIONS),
    ("tokens", _TOKENS),
    ("replica_backends", _BACKENDS),
    ("audit", _AUDIT),
)


def bring_up_to_date(connection: Any, location: str) -> None:
    """Makes the schema, or adds what is missing, in one transaction.

    Raises:
        CannotOpenStore: when the server is too old, or the schema is another program's or a newer Pointsman's.
    """
    if connection.info.server_version < OLDEST_SERVER:
        raise CannotOpenStore(f"the store {location} is on PostgreSQL {connection.info.server_version // 10000}; 13 or newer is needed")
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [SCHEMA_LOCK])
        found = connection.execute("SELECT current_schema(), to_regclass(current_schema() || '.pointsman_steps') IS NOT NULL")
        schema, ours = found.fetchone()
        if schema is None:
            raise CannotOpenStore(f"the store {location} has no schema to make tables in; check its search_path and who may use it")
        if not ours:
            _refuse_foreign(connection, schema, location)
        connection.execute(_RECORD)
        applied = connection.execute("SELECT step, name FROM pointsman_steps ORDER BY step").fetchall()
        if len(applied) > len(STEPS) or [name for _, name in applied] != [name for name, _ in STEPS[: len(applied)]]:
            raise CannotOpenStore(
                f"the store {location} was written by a newer Pointsman (it has the step {applied[-1][1]!r}); "
                "use that version or a newer one"
            )
        for number in range(len(applied), len(STEPS)):
            _apply(connection, number)
        connection.execute("DELETE FROM writers WHERE used_time < now() - interval '1 day'")


def _refuse_foreign(connection: Any, schema: str, location: str) -> None:
    """Tables that belong to an extension are nobody's data."""
    found = connection.execute(
        "SELECT relname FROM pg_class c WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'f') AND NOT EXISTS "
        "(SELECT 1 FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e') ORDER BY relname LIMIT 1"
    ).fetchone()
    if found:
        raise CannotOpenStore(
            f"the schema {schema!r} of {location} holds tables of another program ({found[0]}), not a Pointsman store; "
            "choose another database or search_path"
        )


def _apply(connection: Any, number: int) -> None:
    name, statements = STEPS[number]
    for statement in statements:
        connection.execute(statement)
    if number == 0:
        _first_rows(connection)
    connection.execute("INSERT INTO pointsman_steps (step, name) VALUES (%s, %s)", [number + 1, name])


def _first_rows(connection: Any) -> None:
    for table in FIRST_IMMUTABLE_TABLES:
        connection.execute(
            f"CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION pointsman_refuse()"
        )
        connection.execute(
            f"CREATE TRIGGER refuse_truncate BEFORE TRUNCATE ON {table} FOR EACH STATEMENT EXECUTE FUNCTION pointsman_refuse()"
        )
    connection.execute("INSERT INTO counter (only_one, store_id, revision) VALUES (1, %s, 0)", [str(uuid.uuid4())])
    for environment, description in ENVIRONMENTS:
        connection.execute(
            "INSERT INTO environments (environment, description, create_time, created_by) VALUES (%s, %s, %s, 'pointsman')",
            [environment, description, time.time_ns() // 1000],
        )
