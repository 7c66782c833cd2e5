"""The Store: the specification that every backend keeps. Each "must" here is a test in tests/test_storage_contract.py.

A store keeps rows; it decides nothing. Services decide, inside a transaction: they pass a coroutine function that receives a
`Transaction` and awaits nothing but its methods.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Protocol, TypeVar

from control_plane.execution_model import Execution, Figures, Report, Use, Wanted
from control_plane.model import (
    App,
    AuditEntry,
    AuditFilter,
    Binding,
    Deployment,
    Draft,
    Environment,
    Pruning,
    Release,
    RememberedRequest,
    StalenessPolicy,
    Token,
    Unbinding,
)

T = TypeVar("T")


class CannotOpenStore(Exception):
    """A store cannot be opened; the message is one line for the person who named it: what, which, what to do."""


class CannotCopyStore(Exception):
    """A store cannot be backed up or copied; the message is one line as above."""


class ReadTransaction(Protocol):
    """One consistent view of the store: all its answers are of the same moment. Absent things are None or missing from lists."""

    async def revision(self) -> int:
        """The newest revision; 0 in a new store."""

    async def app(self, app: str) -> App | None:
        """One app."""

    async def apps(self, *, after: str, limit: int) -> list[App]:
        """At most `limit` apps, newest first; those older than the app with id `after`, or from the newest when it is empty."""

    async def app_ids(self) -> list[str]:
        """At most 1,000 ids, newest first: for telling near ones."""

    async def draft(self, app: str) -> Draft:
        """The app's draft; empty bytes at version 0 while nothing was ever stored. The app must exist."""

    async def environment(self, environment: str) -> Environment | None:
        """One environment. development, staging and production must exist in a new store."""

    async def environments(self, *, after: str, limit: int) -> list[Environment]:
        """At most `limit` environments, newest first, older than the one with id `after` (empty: from the newest)."""

    async def environment_ids(self) -> list[str]:
        """At most 1,000 ids, oldest first."""

    async def staleness_policies_since(self, revision: int) -> list[StalenessPolicy]:
        """Every policy with a greater revision, those of deleted environments included, oldest revision first, then by environment."""

    async def release(self, app: str, tag: str) -> Release | None:
        """One release."""

    async def releases(self, app: str, *, after: str, limit: int, matching: str = "") -> list[Release]:
        """At most `limit` releases of the app, newest first, older than the one with tag `after` (empty: from the newest).

        Only those whose tag, description, digest or author contains the text `matching`, be its letters A to Z small or large.
        """

    async def release_tags(self, app: str) -> list[str]:
        """At most 1,000 tags of the app, newest first: for telling near ones."""

    async def newest_tags(self, *, each: int) -> dict[str, list[str]]:
        """App -> at most `each` of its tags, newest first; apps without releases are missing."""

    async def prunable_releases(self, app: str, *, keep_newest: int, keep_deployed: int, limit: int) -> list[Release]:
        """At most `limit` releases of the app, oldest first, that nothing holds any more.

        They are bound nowhere, not among the `keep_newest` newest, and in none of the last `keep_deployed` entries of the history of
        any binding, those that are gone included.
        """

    async def pruning(self, app: str, tag: str) -> Pruning | None:
        """The record of a release that was pruned."""

    async def snapshot(self, digest: str) -> bytes | None:
        """The bytes stored under a digest, as they are; whether they still hash to it is for the caller to check."""

    async def live_environments(self, app: str, tags: Sequence[str]) -> dict[str, list[str]]:
        """Tag -> environments where it is bound now, sorted; tags bound nowhere are missing."""

    async def ever_live(self, app: str, tags: Sequence[str]) -> set[str]:
        """Those of the tags that were ever bound anywhere."""

    async def binding(self, app: str, environment: str) -> Binding | None:
        """The binding, also when it is gone (deployment None); None when there never was one."""

    async def bindings(self, *, app: str, environment: str, after: tuple[int, str, str] | None, limit: int) -> list[Binding]:
        """At most `limit` live bindings (not those that are gone), newest revision first, then by app and environment.

        Empty `app` or `environment`: of all. `after`: (revision, app, environment) of the last one of the page before.
        """

    async def bindings_as_of(
        self, moment: datetime, *, app: str, environment: str, after: tuple[int, str, str] | None, limit: int
    ) -> list[Binding]:
        """As bindings, at a moment: of each the newest entry of its history that is not after it.

        Unless it was unbound after that entry, and not after the moment.
        """

    async def bindings_since(self, revision: int) -> list[Binding]:
        """Every binding with a greater revision, those that are gone included, oldest revision first, then by app and environment."""

    async def bound_apps(self, environment: str) -> list[str]:
        """Apps that are bound in the environment now, sorted."""

    async def deployment(self, deployment_id: str) -> Deployment | None:
        """One entry of the history."""

    async def deployments(self, *, app: str, environment: str, after: str, limit: int) -> list[Deployment]:
        """At most `limit` entries, newest first, older than the one with id `after` (empty: from the newest).

        Empty `app` or `environment`: of all.
        """

    async def deployment_after(self, deployment: Deployment) -> Deployment | None:
        """The next entry of the history of the same binding; None for the newest."""

    async def unbinding_after(self, deployment: Deployment) -> Unbinding | None:
        """The first time after it that its binding was removed, with the environment."""

    async def last_deployment_of(self, app: str, environment: str, release: str) -> Deployment | None:
        """The newest entry that made this release live there."""

    async def token(self, token_id: str) -> Token | None:
        """One token, also when it was revoked."""

    async def tokens(self, *, after: str, limit: int) -> list[Token]:
        """At most `limit` tokens, newest first, older than the one with id `after` (empty: from the newest)."""

    async def tokens_since(self, revision: int) -> list[Token]:
        """Every token that was made or revoked at a greater revision, in the order in which they were made."""

    async def remembered_request(self, caller: str, request_id: str) -> RememberedRequest | None:
        """The first answer given to this request."""

    async def audit_entries(self, wanted: AuditFilter, *, after: int | None, oldest_first: bool, limit: int) -> list[AuditEntry]:
        """At most `limit` that pass, by position, newest first unless the oldest are; those beyond the position `after`."""


class Transaction(ReadTransaction, Protocol):
    """A read transaction that can also write, and sees its own writes. Nobody else sees them before the commit.

    References must hold: a release needs its app and its snapshot, a deployment its release, or the record that it was pruned.
    """

    @property
    def grown(self) -> tuple[int, int] | None:
        """The revision before the first next_revision of this transaction, and that of the last; None before any."""

    async def next_revision(self) -> int:
        """Adds one to the counter and returns it. Two transactions never get the same one, and they commit in this order."""

    async def insert_app(self, app: App) -> None:
        """The id must be free."""

    async def replace_draft(self, app: str, draft: Draft) -> None:
        """The app must exist; its draft_version and draft_update_time change with it."""

    async def insert_environment(self, environment: Environment) -> None:
        """The id must be free. How it treats staleness is not written here."""

    async def update_environment(self, environment: Environment) -> None:
        """Must exist; only its description changes here."""

    async def delete_environment(self, environment: str) -> None:
        """Must exist. Bindings, history and staleness policy are left alone."""

    async def set_staleness_policy(self, policy: StalenessPolicy) -> None:
        """How the environment treats staleness from now on, as environment() then tells."""

    async def insert_snapshot(self, digest: str, data: bytes) -> None:
        """Does nothing when the digest is there already."""

    async def insert_release(self, release: Release) -> None:
        """(app, tag) must be free; the snapshot must be there. Releases and snapshots can never be updated or deleted after."""

    async def prune_releases(self, prunings: Sequence[Pruning]) -> int:
        """Records and deletes releases that are bound nowhere, and their snapshots if no other release has them. The only way to do so.

        What the history says of them stays; their tags can never be inserted again. Returns how many bytes of snapshots went with them.
        At most 1,000, and at least one.
        """

    async def insert_deployment(self, deployment: Deployment) -> None:
        """The id must be free. Deployments can never be updated or deleted after."""

    async def set_binding(self, app: str, environment: str, *, revision: int, deployment_id: str) -> None:
        """Points the binding at a deployment."""

    async def unbind(self, app: str, environment: str, *, revision: int, unbind_time: datetime) -> None:
        """Points the binding, which must exist, at no deployment: then it is gone, and still found by bindings_since.

        Since when it is gone can never be updated or deleted after.
        """

    async def append_audit(self, entry: AuditEntry) -> None:
        """Adds it at the next position, with the hash that pointsman.audit gives it after the one before. None ever changes or goes."""

    async def insert_token(self, token: Token) -> None:
        """The id must be free."""

    async def revoke_token(self, token_id: str, *, revision: int, revoke_time: datetime) -> None:
        """Must exist. Its hash is gone after that."""

    async def note_tokens_used(self, used: Mapping[str, datetime]) -> None:
        """When tokens were shown; an earlier time, or a token that does not exist, changes nothing. Takes no revision."""

    async def remember_request(self, request: RememberedRequest) -> None:
        """(caller, request_id) must be free."""

    async def forget_requests(self, *, before: datetime) -> int:
        """Deletes what was remembered before that moment and returns how many."""


class Store(Protocol):
    """Where everything is kept. Methods may be called from any number of tasks of one event loop.

    Every method raises StoreUnavailable when the store cannot be reached or written; nothing was changed then, unless the message
    says that this is not known (the server went in the midst of a commit). Later calls work again when the cause has gone, without a
    restart. No call waits for ever.
    """

    @property
    def store_id(self) -> str:
        """UUID made when the store was created; the same for every replica."""

    @property
    def location(self) -> str:
        """For people: the URL without secrets."""

    async def read(self, work: Callable[[ReadTransaction], Awaitable[T]]) -> T:
        """Runs work on one consistent view and returns what it returns; never waits for writers."""

    async def write(self, work: Callable[[Transaction], Awaitable[T]], *, dry_run: bool = False) -> T:
        """Runs work in a serialised transaction and returns what it returns.

        When this returns, the changes are durable: they survive kill -9 and power loss. When work raises, its changes are undone
        and the exception is passed on; other transactions that share the commit are not touched. With dry_run the changes are
        undone although work succeeded. A caller that is cancelled leaves either all or nothing behind, and cannot know which.
        """

    def on_change(self, call: Callable[[], None]) -> None:
        """Calls back on the event loop soon after the revision may have grown, by whomever. May call too often, never too rarely."""

    async def close(self) -> None:
        """Finishes what was begun, or gives it up after a bounded time, then lets go of every file and connection."""


class ExecutionStore(Protocol):
    """Where executions are kept, beside a Store and never in its way. Each "must" here is a test in tests/test_storage_executions.py.

    Methods may be called from any number of tasks of one event loop, and raise StoreUnavailable as those of Store.
    """

    @property
    def shared(self) -> bool:
        """Whether others may store into it too, so that `news` may have something."""

    async def record(self, report: Report, now: int) -> list[Execution]:
        """Stores what is not there yet, all or nothing, and returns what was new, in the order of the report.

        What was stored survives kill -9; losing the power may cost the last moment. `dropped` is the process's total: what it has
        grown by since the last report counts as dropped at `now`; a total that is not greater adds nothing.
        """

    async def execution(self, execution_id: bytes) -> Execution | None:
        """One, with its detail."""

    async def executions(self, wanted: Wanted, *, before: tuple[int, bytes] | None, limit: int) -> list[Execution]:
        """At most `limit` that pass, newest first, by start_time, then by execution_id; without detail.

        `before`: start_time and execution_id of the last one of the page before.
        """

    async def figures(self, wanted: Wanted) -> list[Figures]:
        """Of each app, environment and release among those that pass, in no order. Percentiles are durations that occurred."""

    async def dropped(self, since: int, until: int) -> int:
        """How many were told as dropped from `since` to before `until`."""

    async def uses(self, wanted: Wanted, *, late_after: int | None) -> list[Use]:
        """Of each gateway among those that pass, by gateway_id; nothing is late without `late_after`."""

    async def news(self, cursor: bytes, limit: int) -> tuple[bytes, list[Execution]]:
        """The next cursor, and what others stored after this one, with detail: about `limit`, and at least so many if there is more.

        An empty cursor: nothing yet, from now on. Every execution that others store must come exactly once, in any order.
        """

    async def sweep(self, *, keep_since: int, keep_rows: int, limit: int) -> int:
        """Deletes what began before `keep_since` and what is beyond the newest `keep_rows` of an environment; returns how many.

        At most about `limit` in one call, so that nobody waits long; what is deleted as a whole does not count. 0: nothing was left.
        """

    async def close(self) -> None:
        """Finishes what was begun, then lets go of every file and connection."""
