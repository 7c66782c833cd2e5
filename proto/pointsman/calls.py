"""How many calls run at the same time: in a process, and of each token. Both doors of a server may share one count."""

from __future__ import annotations

from pointsman.errors import RateLimited

MAX_CALLS = 20_000
MAX_CALLS_OF_TOKEN = 4_000
RETRY_AFTER_SECONDS = 1.0


class Calls:
    """Counts what runs, calls and streams alike. For one event loop."""

    def __init__(self, of_all: int = MAX_CALLS, of_token: int = MAX_CALLS_OF_TOKEN) -> None:
        self._of_all = of_all
        self._of_token = of_token
        self._running = 0
        self._by_token: dict[str, int] = {}

    def enter(self, token_id: str) -> None:
        """A call of the token is one that runs, until leave(); an empty id counts for the process alone.

        Raises:
            RateLimited: as many run already, and there is nothing to leave.
        """
        if self._running >= self._of_all:
            raise _refused("this server", self._of_all, "")
        if token_id:
            running = self._by_token.get(token_id, 0)
            if running >= self._of_token:
                raise _refused("this token", self._of_token, token_id)
            self._by_token[token_id] = running + 1
        self._running += 1

    def leave(self, token_id: str) -> None:
        """Ends what enter() began."""
        self._running -= 1
        if token_id:
            left = self._by_token[token_id] - 1
            if left:
                self._by_token[token_id] = left
            else:
                del self._by_token[token_id]


def _refused(whose: str, limit: int, token_id: str) -> RateLimited:
    return RateLimited(
        f"{limit} calls of {whose} run already, and no more may run at the same time. Try again when some have ended.",
        limit=limit,
        given=limit + 1,
        of=f"calls of {whose} at the same time",
        retry_after_seconds=RETRY_AFTER_SECONDS,
        token_id=token_id,
    )
