"""data_plane/PIPELINES.md is true and complete: every example runs, every field is there, with its limits."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from starlette.responses import Response

from buf.validate import validate_pb2
from data_plane.holder import Change
from data_plane.loaded import compile_release
from data_plane.secrets import Secrets
from data_plane.table import Bound
from pointsman.appfile import parse
from pointsman.expressions import TOOL_VARIABLES, ExpressionError, compile_expression, compile_template
from pointsman.v1.config_pb2 import DESCRIPTOR, AppConfig
from tests.mcp_server import mcp_server
from tests.test_http_door import Door, bare
from tests.test_pipeline import digest_of

__all__ = ["bare"]
TEXT = (Path(__file__).parent.parent / "data_plane" / "PIPELINES.md").read_text()
MCP_URL = "https://tools.example.com/mcp"
SECRETS = {f"POINTSMAN_SECRET_{name}": name.lower().replace("_", "-") for name in re.findall(r"\$\{secret:([A-Z_]+)\}", TEXT)}


class Exchange(NamedTuple):
    """A request and its answer, as the reference writes them. `reason` is empty when it went well."""

    method: str
    target: str
    headers: dict[str, str]
    body: str
    status: int
    reason: str
    answer: str


@dataclass
class Example:
    """An app, and what is said of it."""

    app: str
    exchanges: list[Exchange] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


def exchange(block: str) -> Exchange:
    asked, answered = block.split("\n\n", 1)
    first, *rest = asked.splitlines()
    method, target = first.split(" ")
    headers = dict(line.split(": ", 1) for line in rest if not line.startswith("{"))
    status, _, answer = answered.rstrip("\n").partition("\n")
    code, _, reason = status.partition(" ")
    body = "\n".join(line for line in rest if line.startswith("{"))
    return Exchange(method, target, headers, body, int(code), reason, answer)


def examples() -> list[Example]:
    found: list[Example] = []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL):
        if language == "yaml":
            found.append(Example(block))
        elif language == "http":
            found[-1].exchanges.append(exchange(block))
        else:
            found[-1].violations += block.splitlines()
    return found


EXAMPLES = examples()
MESSAGES: list[Descriptor] = list(DESCRIPTOR.message_types_by_name.values())


def bind(door: Door, config: AppConfig) -> None:
    snapshot = config.SerializeToString(deterministic=True)
    digest = digest_of(snapshot)
    door.holder.keep(compile_release(digest, snapshot, Secrets(environment=SECRETS)))
    bound = [Bound(app="shop", environment=where, release="v1", digest=digest, revision=1) for where in ("production", "staging")]
    door.holder.flip(Change(revision=1, store_id="s", bindings=bound, unusable={}))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: re.sub(r"\W+", " ", example.app)[:40])
async def test_every_example_is_sound_and_does_what_is_said(bare: Door, example: Example) -> None:
    assert example.exchanges or example.violations, "nothing is said of it"
    async with mcp_server() if MCP_URL in example.app else contextlib.nullcontext("") as mcp_url:
        app = example.app.replace(MCP_URL, mcp_url).replace("https://", f"{bare.upstream.url}/")
        read = parse(app)
        assert [str(found.violation) for found in read.violations] == example.violations
        if example.violations:
            return
        bind(bare, read.config)
        waiting: list[Exchange] = []
        for one in example.exchanges:
            if one.target.startswith("https://"):
                waiting.append(one)
                key = f"{one.method} /{one.target.removeprefix('https://')}"
                kind = "application/json" if one.answer.startswith("{") else "text/plain"
                bare.upstream.script.setdefault(key, []).append(Response(one.answer, one.status, media_type=kind))
            else:
                await trigger(bare, one)
                check_asked(bare, waiting)
                waiting = []
    assert not waiting


async def trigger(door: Door, one: Exchange) -> None:
    answer = await door.http.request(one.method, one.target, content=one.body, headers=one.headers)
    found = answer.json()
    if one.reason:
        assert (answer.status_code, found["error"], found["message"]) == (one.status, one.reason, one.answer)
    else:
        assert (answer.status_code, found) == (one.status, json.loads(one.answer))


def check_asked(door: Door, expected: list[Exchange]) -> None:
    """What steps sent, in order: method, URL, the headers and the body that are shown."""
    assert [(method, path) for method, path, _, _ in door.upstream.seen] == [
        (one.method, f"/{one.target.removeprefix('https://')}") for one in expected
    ]
    for (_, _, headers, body), one in zip(door.upstream.seen, expected, strict=True):
        assert {name.lower(): value for name, value in one.headers.items()}.items() <= headers.items()
        assert not one.body or json.loads(body) == json.loads(one.body)
    door.upstream.seen.clear()


def sections() -> dict[str, str]:
    """The text of each section, by its title."""
    return dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))


def rows(section: str) -> dict[str, str]:
    return dict(re.findall(r"^\| `(\w+)` \|(.*)$", section, re.MULTILINE))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.name)
def test_every_field_is_there_and_nothing_else(message: Descriptor) -> None:
    section = sections()["App" if message.name == "AppConfig" else message.name]
    assert list(rows(section)) == [one.name for one in message.fields]
    for enum in message.enum_types:
        assert [value.name for value in enum.values if f"`{value.name}`" not in section] == []


def limits(one: FieldDescriptor) -> Iterator[str]:
    """The limits of the contract, as a person reads them."""
    rules = one.GetOptions().Extensions[validate_pb2.field]
    kibi = {8192: "8 KiB", 262144: "256 KiB"}
    texts = [rules.string, rules.map.keys.string]
    yield from (f"{text.max_len:,}" for text in texts if text.max_len)
    yield from (kibi[text.max_bytes] for text in texts if text.max_bytes)
    yield from (f"{int(fewest == '0') + int(most)}" for fewest, most in re.findall(r"\{(\d),(\d+)\}\$$", rules.string.pattern))
    counts = (rules.repeated.min_items, rules.repeated.max_items, rules.map.max_pairs)
    yield from (str(count) for count in counts if count)
    for number in (rules.int32, rules.double):
        if number.HasField("lte"):
            yield f"{number.gte:,g} to {number.lte:,.0f}"
    if rules.duration.HasField("lte"):
        assert (rules.duration.gte.nanos, rules.duration.lte.seconds) == (1_000_000, 3600)
        yield "1 ms to 1 h"
    if rules.string.min_len or (rules.string.pattern and not rules.ignore):
        yield "required"
    yield from (f"`{value}`" for value in getattr(rules.string, "in") if value)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.name)
def test_every_limit_of_the_contract_is_told(message: Descriptor) -> None:
    section = sections()["App" if message.name == "AppConfig" else message.name]
    told_of = rows(section)
    untold = [
        (one.name, limit)
        for one in message.fields
        for limit in limits(one)
        if not re.search(rf"(?<!\w){re.escape(limit)}(?!\d)", told_of[one.name])
    ]
    assert untold == []


def set_fields(message: Message) -> Iterator[str]:
    for one, value in message.ListFields():
        yield one.full_name
        if one.message_type is None or one.message_type not in MESSAGES:
            continue
        for inner in value if one.is_repeated else [value]:
            yield from set_fields(inner)


def test_every_field_is_in_an_example() -> None:
    used = {name for example in EXAMPLES for name in set_fields(parse(example.app).config)}
    every = {one.full_name for message in MESSAGES for one in message.fields}
    assert every - used == set()


SHOWN = {
    "input": {"name": "Ann", "n": 3, "tags": ["a", "b"]},
    "steps": {"a": {"x": 1}, "b": None},
    "environment": "staging",
    "release": "v1",
}


def table(section: str) -> list[tuple[str, str]]:
    return [
        (source.replace("\\|", "|"), gives.strip("`"))
        for source, gives in re.findall(r"^\| `(.+?)` \| (.+) \|$", sections()[section], re.MULTILINE)
    ]


def test_every_expression_and_template_gives_what_is_said() -> None:
    expressions = [(source, gives) for source, gives in table("Expressions") if source not in SHOWN]
    assert len(expressions) > 20
    for source, gives in expressions:
        if gives.startswith("an error"):
            with pytest.raises(ExpressionError):
                compile_expression(source).evaluate(SHOWN)
        else:
            assert compile_expression(source).evaluate(SHOWN) == json.loads(gives), source
    for source, gives in table("Templates"):
        template = compile_template(source, variables=TOOL_VARIABLES)
        if gives.startswith("an error"):
            with pytest.raises(ExpressionError):
                template.render(SHOWN)
        else:
            assert template.render(SHOWN) == gives, source
