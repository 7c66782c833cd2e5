"""What the .proto file says of a config's messages and fields: generated code has no comments, so the file itself is read."""

from __future__ import annotations

import functools
import re
from importlib import resources

# Messages stand at the margin, as buf formats them; fields, oneofs and their fields are indented.
_MESSAGE = re.compile(r"message (\w+) \{")
_MEMBER = re.compile(r"  (?:  )?(?:oneof (\w+) \{|(?:optional |repeated )?[\w.]+(?:<\w+, \w+>)? (\w+) = \d+)")


def comment_of(name: str) -> str:
    """The comment above a message, a field or a oneof, by its name without the package, such as `Step.timeout`; empty without one."""
    return _comments().get(name, "")


@functools.cache
def _comments() -> dict[str, str]:
    found: dict[str, str] = {}
    message, said = "", ""
    for line in resources.files("pointsman.v1").joinpath("config.proto").read_text().splitlines():
        if line.lstrip().startswith("//"):
            said += " " + line.strip().removeprefix("//").strip()
            continue
        if opened := _MESSAGE.match(line):
            message = opened[1]
            found[message] = said.strip()
        elif member := _MEMBER.match(line):
            found[f"{message}.{member[1] or member[2]}"] = said.strip()
        said = ""
    return found
