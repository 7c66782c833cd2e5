"""Reads app files from where the command line finds them."""

from __future__ import annotations

import sys
from pathlib import Path

from pointsman.appfile import MAX_FILE_BYTES, AppFile, parse
from pointsman.nodes import NotReadableError


def read(path: str) -> AppFile:
    """Reads and checks a file; `-` is the standard input.

    Raises:
        NotReadableError: when it is no YAML or JSON, or no mapping.
        OSError: when there is no such file, or it may not be read.
    """
    if path == "-":
        data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    else:
        with Path(path).open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise NotReadableError(f"the file has more than {MAX_FILE_BYTES} bytes; at most that many are allowed")
    try:
        return parse(data.decode())
    except UnicodeDecodeError as error:
        raise NotReadableError(f"the file is not UTF-8 text: {error.reason} at byte {error.start}") from None
