"""Whether what ran can be run again as it was, from what is on record of it."""

from __future__ import annotations

import json
import re

# What a gateway writes in the place of a secret's value.
_REDACTED = re.compile(r"\[secret [^\]]+\]")


def why_not_again(captured: str) -> str:
    """Why the input on record is not the one that came, for a person; empty when it is."""
    if not captured:
        return "its input was not captured; a gateway does so with --capture errors (for those that fail) or all"
    try:
        json.loads(captured)
    except ValueError:
        return "its input was too long to be captured whole"
    if _REDACTED.search(captured):
        return "its input held a secret, which is not on record"
    return ""
