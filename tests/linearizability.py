"""Whether what callers saw of one binding can have happened one call at a time, each at some moment between its start and its end.

A search over orders (Wing and Gong, with the memory of Lowe): of the calls that may come next, those whose answer fits the model are tried; what
was tried before in the same state is not tried again. Revisions make most orders forced, so thousands of calls take moments.

A call whose answer was lost may have happened at any moment after its start, or never.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

LOST = "LOST"
"""The outcome of a call that nobody answered."""
NOTHING_TO_ROLL_BACK = "NOTHING_TO_ROLL_BACK"
REVISION_CONFLICT = "REVISION_CONFLICT"
MAX_TRIED = 200_000

Entry = tuple[int | None, str]
"""(revision, release); the revision is None as long as nobody has seen it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One call. Times are of one clock; `end` is infinity when it was lost.

    `call` names it in the history of the store, if it does. `outcome`: empty when it succeeded, else the reason, or LOST. `revision` and `release` are what it answered: what is live after it, for a
    REVISION_CONFLICT the current revision. `expected` is the expected_revision, if there was one.
    """

    kind: str
    start: float
    end: float
    wanted: str = ""
    expected: int | None = None
    outcome: str = ""
    revision: int = 0
    release: str = ""
    call: str = ""


@dataclass(frozen=True, slots=True)
class State:
    """What is live, on top of what a rollback walks back to; `low` is the newest revision that is known to have been reached."""

    stack: tuple[Entry, ...] = ()
    low: int = 0

    def after(self, operation: Operation) -> State | None:
        """The state after it, None when its answer does not fit."""
        if operation.outcome == REVISION_CONFLICT:
            seen = self._seen(operation.revision, None)
            return seen if operation.revision != operation.expected else None
        if operation.kind == "get":
            return self._seen(operation.revision, operation.release)
        state = self if operation.expected is None else self._seen(operation.expected, None)
        if state is None:
            # What was expected was not there; only a lost call may have met that, and then nothing happened.
            return self if operation.outcome == LOST else None
        return state._deployed(operation) if operation.kind == "deploy" else state._rolled_back(operation)

    def _seen(self, revision: int, release: str | None) -> State | None:
        """Somebody saw this revision live; 0: nothing. A release of None was not told."""
        if not self.stack or not revision:
            return self if not self.stack and not revision else None
        known, live = self.stack[-1]
        if (release is not None and release != live) or revision != (known or revision) or (known is None and revision <= self.low):
            return None
        return State((*self.stack[:-1], (revision, live)), max(self.low, revision))

    def _deployed(self, operation: Operation) -> State | None:
        if self.stack and self.stack[-1][1] == operation.wanted:
            return self if operation.outcome == LOST else self._seen(operation.revision, operation.wanted)
        return self._with(self.stack, operation, operation.wanted)

    def _rolled_back(self, operation: Operation) -> State | None:
        if len(self.stack) < 2:
            return self if operation.outcome in (LOST, NOTHING_TO_ROLL_BACK) else None
        return self._with(self.stack[:-2], operation, self.stack[-2][1])

    def _with(self, beneath: tuple[Entry, ...], operation: Operation, release: str) -> State | None:
        """Live is now `release`, at a revision of its own."""
        if operation.outcome == LOST:
            return State((*beneath, (None, release)), self.low)
        if operation.outcome or operation.release != release or operation.revision <= self.low:
            return None
        return State((*beneath, (operation.revision, release)), operation.revision)


START = State()


class UndecidedError(Exception):
    """There are too many orders to try them all, and none of those tried explains every answer."""


@dataclass(slots=True)
class _Choice:
    """A point of the search: what was done before, and what has not been tried yet."""

    done: int
    state: State
    left: Iterator[tuple[int, State]]


def is_linearizable(history: Sequence[Operation], start: State = START) -> bool:
    """Whether some order explains every answer.

    First it is looked for among the orders in which a lost call happens only where no answered one can come next: with hundreds of lost
    calls that is nearly always enough, and quick. Only if there is none, all orders are tried.

    Raises:
        UndecidedError: after MAX_TRIED states.
    """
    calls = sorted(history, key=lambda operation: operation.start)
    return _search(calls, start, lost_last=True) or _search(calls, start, lost_last=False)


def with_found(history: Sequence[Operation], happened: Mapping[str, tuple[int, str]]) -> list[Operation]:
    """The history with what became of its lost calls, by the store's own list: (revision, release) by `call`; when it happened stays open.

    A lost call that is not there has changed nothing. If the list is wrong, what others saw fits no order.
    """
    found = []
    for one in history:
        if one.outcome != LOST:
            found.append(one)
        elif one.call in happened:
            revision, release = happened[one.call]
            found.append(replace(one, outcome="", revision=revision, release=release))
    return found


def _search(calls: Sequence[Operation], start: State, *, lost_last: bool) -> bool:
    needed = sum(1 << index for index, call in enumerate(calls) if call.outcome != LOST)
    tried: set[tuple[int, State]] = set()
    choices = [_Choice(0, start, _next(calls, 0, start, lost_last=lost_last))]
    while choices:
        choice = choices[-1]
        if choice.done & needed == needed:
            return True
        index, state = next(choice.left, (-1, start))
        if index < 0:
            choices.pop()
            continue
        done = choice.done | 1 << index
        if (done, state) not in tried:
            tried.add((done, state))
            if len(tried) > MAX_TRIED:
                if lost_last:
                    return False
                raise UndecidedError(f"none of {MAX_TRIED} states of {len(calls)} calls leads to the end")
            choices.append(_Choice(done, state, _next(calls, done, state, lost_last=lost_last)))
    return False


def _next(calls: Sequence[Operation], done: int, state: State, *, lost_last: bool) -> Iterator[tuple[int, State]]:
    """Calls that may come next and fit, with the state after each: of those that began before any other that is left has ended."""
    left = []
    first_end = math.inf
    for index in range(_first_left(done), len(calls)):
        if calls[index].start > first_end:
            break
        if not done >> index & 1:
            left.append(index)
            first_end = min(first_end, calls[index].end)
    may = [index for index in left if calls[index].start <= first_end]
    any_fits = False
    # Answered ones first, by what they saw: revisions make most orders forced.
    for index in sorted(may, key=lambda index: (calls[index].outcome == LOST, calls[index].revision, calls[index].end)):
        if any_fits and lost_last and calls[index].outcome == LOST:
            return
        after = state.after(calls[index])
        if after is not None:
            any_fits = True
            yield index, after


def _first_left(done: int) -> int:
    """The first index that is not done."""
    return (~done & (done + 1)).bit_length() - 1
