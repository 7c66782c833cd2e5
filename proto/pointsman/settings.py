"""Settings of a server process: one frozen dataclass, read once, from flags and from POINTSMAN_... variables.

    @dataclass(frozen=True)
    class Settings:
        listen: Address = setting(Address("127.0.0.1", 7400), "host:port of gRPC; port 0 picks a free one")

    @click.command()
    @settings_options(Settings)
    def main(settings: Settings) -> None: ...

Each field is a flag (`--listen`) and a variable (`POINTSMAN_LISTEN`); tuples are flags that may be repeated, and variables whose
values are separated by white space.
"""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import socket
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

ENVIRONMENT_PREFIX = "POINTSMAN_"
FILE = click.Path(path_type=Path)
"""`kind` of a setting that names a file."""
_F = TypeVar("_F", bound=Callable[..., Any])


class Address(NamedTuple):
    """Where to listen or connect: `127.0.0.1:7400`, `[::1]:7400`, `localhost:0`."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises ValueError, with what is wrong and an example, when the text is not host:port."""
        host, colon, port = text.strip().rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or "/" in host or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"{text!r} is not host:port, such as 127.0.0.1:7400")
        return cls(host, int(port))


def is_loopback(address: Address) -> bool:
    """Whether only this machine can reach what listens there. A name that is unknown, or has another address too, does not count."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(one[4][0]).partition("%")[0]).is_loopback for one in found)


class AddressType(click.ParamType[Address]):
    """An Address on the command line."""

    name = "host:port"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Address:
        """Takes text or an Address."""
        if isinstance(value, Address):
            return value
        try:
            return Address.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def setting(default: Any, description: str, *, kind: Any = None, secret: bool = False) -> Any:
    """A field of a settings class. `kind` is a click type where the default's own type says too little (bounds, paths).

    A secret is left out of the repr.
    """
    return dataclasses.field(default=default, repr=not secret, metadata={"description": description, "kind": kind})


class Described(NamedTuple):
    """One setting as the documentation shows it."""

    flag: str
    variable: str
    default: str
    description: str


def describe(settings: type[Any]) -> list[Described]:
    """Every setting of a class, in the order of its fields."""
    return [
        Described(_flag(field.name), ENVIRONMENT_PREFIX + field.name.upper(), _shown(field.default), field.metadata["description"])
        for field in dataclasses.fields(settings)
    ]


def settings_options(settings: type[Any]) -> Callable[[_F], _F]:
    """Decorates a click command that takes one argument, `settings`, with an option for each field."""
    hints = typing.get_type_hints(settings)

    def decorate(command: _F) -> _F:
        @functools.wraps(command)
        def with_settings(**values: object) -> object:
            return command(settings=settings(**values))

        decorated: Any = with_settings
        for field in reversed(dataclasses.fields(settings)):
            decorated = _option(field, hints[field.name])(decorated)
        return typing.cast("_F", decorated)

    return decorate


def _option(field: dataclasses.Field[Any], hint: object) -> Callable[[Any], Any]:
    multiple = isinstance(field.default, tuple) and not isinstance(field.default, Address)
    kind = field.metadata["kind"] or (AddressType() if hint is Address else None)
    is_flag = hint is bool
    return click.option(
        _flag(field.name),
        field.name,
        default=field.default,
        type=None if is_flag else kind,
        is_flag=is_flag,
        multiple=multiple,
        envvar=ENVIRONMENT_PREFIX + field.name.upper(),
        show_envvar=True,
        show_default=not multiple and field.default not in ("", None),
        help=field.metadata["description"],
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _shown(default: object) -> str:
    # A comparison would hide 0 too, which equals False.
    return "" if default is None or default is False or default == () else str(default)
