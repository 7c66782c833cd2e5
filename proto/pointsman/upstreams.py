"""How a config names what is outside: URLs, headers, and references to secrets."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterator, Mapping

from pointsman.errors import Violation

HEADER_NAME = "^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,256}$"
SECRET_REFERENCE = re.compile(r"\$\{secret:([A-Za-z0-9_]{1,128})\}")
SECRET_START = "${secret:"  # noqa: S105 -- it is how a reference to a secret begins
SECRET_MISPLACED = "has a secret reference, which would be sent as it stands here; secrets belong in headers and keys"  # noqa: S105 -- the same
CREDENTIALS_REFUSED = "has a user or a password; send them in a header, by ${secret:NAME}"
SECRET_QUOTED = "has a secret reference inside {{ }}, {% %} or {# #}; it must stand outside of them"  # noqa: S105 -- the same
MAX_SHOWN_CHARS = 80


def with_secrets(value: str) -> tuple[str, dict[str, str]]:
    """A header's template with its secret references made variables, and the reference that each of these variables stands for.

    So a secret's value is never read as a template, and a value that looks like a reference is never resolved.
    """
    source = SECRET_REFERENCE.sub(lambda match: f"{{{{ secret_{match[1]} }}}}", value)
    return source, {f"secret_{match[1]}": match[0] for match in SECRET_REFERENCE.finditer(value)}


def url_violations(path: str, url: str, *, is_template: bool = False, is_prefix: bool = False) -> Iterator[Violation]:
    """What is wrong with an http or https URL; of a template only what stands before its first `{` can be known.

    `is_prefix`: more of the path is put behind it.
    """
    if not url or (is_template and url.startswith("{")):
        return
    if SECRET_START in url:
        # Of a template it is told with everything else that is wrong with templates.
        problem = "" if is_template else SECRET_MISPLACED
    elif not url.startswith(("http://", "https://")):
        problem = "is not an http or https URL"
    else:
        problem = _problem(url.split("{", 1)[0] if is_template else url, is_whole=not (is_template and "{" in url))
        if not problem and is_prefix and ("?" in url or "#" in url):
            problem = "has a query or a fragment, and a path is put behind it"
    if problem:
        # Of a URL with a password nothing is shown.
        shown = "" if problem == CREDENTIALS_REFUSED else f"{url[:MAX_SHOWN_CHARS]!r} "
        yield Violation(path, shown + problem)


def _problem(url: str, *, is_whole: bool) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname
        if is_whole:
            _ = parts.port
    except ValueError as error:
        return f"is not a URL: {error}"
    if parts.username is not None or parts.password is not None:
        return CREDENTIALS_REFUSED
    if any(char <= " " for char in url):
        return "has a space or a control character"
    return "names no host" if is_whole and not host else ""


def header_violations(path: str, headers: Mapping[str, str], *, names: str = "") -> Iterator[Violation]:
    """What is wrong with headers. `names`: what a name must be, in words, where no rule of the .proto files tells it."""
    for name, value in sorted(headers.items()):
        at = f'{path}["{name}"]'
        if names and not re.search(HEADER_NAME, name):
            yield Violation(at, f"{name[:MAX_SHOWN_CHARS]!r} is not allowed; use {names}")
        if SECRET_START in SECRET_REFERENCE.sub("", value):
            yield Violation(at, f"{value[:MAX_SHOWN_CHARS]!r}: a secret reference is ${{secret:NAME}}, of letters, digits and _")
        if "\n" in value or "\r" in value:
            yield Violation(at, "has a line break; a header is one line")
