"""Templates, their filters, and the files beside them."""

from __future__ import annotations

import hashlib
import json
import mimetypes
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup
from starlette.responses import HTMLResponse, Response

from control_plane.console.terminal import Terminal
from control_plane.service.calls import Clock

# Of the page itself: nothing from elsewhere, no script or style inside it, in nobody's frame.
SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: browsers would send `Origin: null` with our own forms.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
# Those that console.css has a colour of their own for.
KNOWN_ENVIRONMENTS = ("development", "staging", "production")
OTHER_COLOURS = 4
STATIC_SECONDS = 365 * 86400
_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"))


class Pages:
    """Renders templates; serves the stylesheet, the script and the icon under names that change with their content."""

    def __init__(self, clock: Clock, terminal: Terminal) -> None:
        """`terminal` makes the lines that pages offer to copy."""
        self._clock = clock
        self.terminal = terminal
        self._jinja = Environment(
            loader=PackageLoader("control_plane.console"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._jinja.filters |= {"ago": self.ago, "short_digest": short_digest, "colour": colour, "milliseconds": milliseconds}
        self._jinja.filters |= {"moment": moment, "took": took, "until": self.until, "lasting": self.lasting, "said": said, "exact": exact}
        self._files: dict[str, tuple[bytes, str]] = {}
        for file in resources.files("control_plane.console").joinpath("static").iterdir():
            content = file.read_bytes()
            stem, _, suffix = file.name.rpartition(".")
            name = f"{stem}.{hashlib.sha256(content).hexdigest()[:12]}.{suffix}"
            self._files[name] = content, mimetypes.guess_type(file.name)[0] or "application/octet-stream"
            self._jinja.globals[f"{suffix}_of_{stem}"] = f"/static/{name}"
        self._jinja.globals["here"] = _here

    def render(self, template: str, **shown: Any) -> str:
        """Text of a template; everything put into it is escaped."""
        return self._jinja.get_template(template).render(**shown)

    def respond(self, template: str, status: int = 200, **shown: Any) -> Response:
        """A page that nobody keeps: it shows the present state, and carries a secret of the browser."""
        headers = SECURITY_HEADERS | {"Cache-Control": "no-store"}
        return HTMLResponse(self.render(template, **shown), status, headers)

    def static(self, name: str) -> Response | None:
        """A file by its full name; None when there is none."""
        found = self._files.get(name)
        if found is None:
            return None
        headers = SECURITY_HEADERS | {"Cache-Control": f"public, max-age={STATIC_SECONDS}, immutable"}
        return Response(found[0], media_type=found[1], headers=headers)

    def ago(self, moment: datetime | None) -> Markup:
        """How long ago."""
        if moment is None:
            return Markup("never")
        seconds = self._since(moment)
        return _time(moment, "just now" if seconds < 10 else f"{_in_one_unit(seconds)} ago")

    def lasting(self, moment: datetime) -> Markup:
        """For how long already."""
        return _time(moment, _in_one_unit(max(self._since(moment), 0.0)))

    def until(self, moment: datetime) -> Markup:
        """In how long, or how long ago."""
        seconds = -self._since(moment)
        return self.ago(moment) if seconds <= 0 else _time(moment, f"in {_in_one_unit(seconds, whole=round)}")

    def _since(self, moment: datetime) -> float:
        return (self._clock() - moment).total_seconds()


def server_sent(event: str, text: str) -> str:
    """An event of an event stream (the HTML standard, section 9.2)."""
    return f"event: {event}\n" + "".join(f"data: {line}\n" for line in text.splitlines() or [""]) + "\n"


def short_digest(digest: str) -> str:
    """The first 12 hex digits."""
    return digest.removeprefix("sha256:")[:12]


def colour(environment: str) -> str:
    """A class of console.css, always the same for the same environment."""
    if environment in KNOWN_ENVIRONMENTS:
        return environment
    return f"other-{hashlib.sha256(environment.encode()).digest()[0] % OTHER_COLOURS}"


def milliseconds(seconds: float) -> str:
    """E.g. `12 ms` or `1.4 s`."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def moment(micros: int) -> Markup:
    """A time in microseconds since 1970, to the millisecond, in UTC."""
    found = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)
    shown = found.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    return Markup('<time datetime="{}" title="{} UTC">{}</time>').format(found.isoformat(), shown, shown)


def exact(moment: datetime) -> Markup:
    """A time to the second, in UTC."""
    return _time(moment, _to_the_second(moment))


def laid_out(text: str) -> str:
    """JSON over several lines; what is none stays as it is."""
    try:
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False)
    except ValueError:
        return text


def took(micros: int) -> str:
    """In a unit that fits: `850 µs`, `12.3 ms`, `1.25 s`, `3.1 min`."""
    for size, unit, digits in ((60_000_000, "min", 1), (1_000_000, "s", 2), (1_000, "ms", 1)):
        if micros >= size:
            return f"{micros / size:.{digits}f} {unit}"
    return f"{micros} µs"


def said(text: str) -> Markup:
    """A message, with what stands in backquotes as code."""
    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if at % 2 else part for at, part in enumerate(parts))


def _in_one_unit(seconds: float, whole: Callable[[float], int] = int) -> str:
    for size, unit in _UNITS:
        if seconds >= size:
            count = whole(seconds / size)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{seconds:.0f} seconds"


def _time(moment: datetime, shown: str) -> Markup:
    """With the moment itself for machines and on hovering."""
    moment = moment.astimezone(UTC)
    return Markup('<time datetime="{}" title="{}">{}</time>').format(moment.isoformat(timespec="seconds"), _to_the_second(moment), shown)


def _to_the_second(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


@pass_context
def _here(context: Context, name: str) -> Markup:
    """Marks the link to the page that is shown."""
    return Markup(' aria-current="page"') if context.get("tab") == name else Markup()
