"""An app file that somebody edits: whether it says anything new."""

from __future__ import annotations

import hashlib
from pathlib import Path

GONE_LOOKS = 10


class WatchedFile:
    """Remembers what the file said when it was used last, over restarts: a SHA-256 in a small file of its own, `kept`."""

    def __init__(self, path: Path, kept: Path) -> None:
        self.path = path
        self._kept = kept
        self._seen: tuple[int, int] | None = None
        self._used = kept.read_text() if kept.exists() else ""
        self._gone_looks = 0

    @property
    def is_known(self) -> bool:
        """Whether it was ever used."""
        return bool(self._used)

    @property
    def is_gone(self) -> bool:
        """Whether it has not been there, or could not be read, for longer than an editor takes. True at one look alone."""
        return self._gone_looks == GONE_LOOKS

    def has_news(self) -> bool:
        """Whether it says anything else than when it was used last; True once for each such text. Costs one stat while nobody saves."""
        try:
            found = self.path.stat()
            if (found.st_mtime_ns, found.st_size) == self._seen:
                return False
            digest = self._digest()
        except OSError:
            # An editor that replaces the file takes it away for a moment; it is looked at again.
            self._gone_looks += 1
            return False
        self._gone_looks = 0
        self._seen = (found.st_mtime_ns, found.st_size)
        if digest == self._used:
            return False
        self.use(digest)
        return True

    def use(self, digest: str = "") -> None:
        """What it says now is used, or was refused: it is no news any more. Raises OSError."""
        self._used = digest or self._digest()
        self._kept.write_text(self._used)

    def _digest(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()
