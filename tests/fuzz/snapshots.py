"""Snapshots of a hostile control plane: their digest is right, and nothing else need be."""

from __future__ import annotations

import hashlib
from typing import Any

from hypothesis import strategies as st

from data_plane.loaded import ReleaseUnusableError, compile_release
from data_plane.secrets import Secrets
from pointsman.rules import check_config
from pointsman.v1.config_pb2 import AppConfig
from tests.fuzz.engine import Target, pure
from tests.fuzz.strategies import SEEDS, messages, mutated, nested
from tests.sample_apps import marked
from tests.scripted_control_plane import snapshot_of

SECRETS = Secrets(environment={"KEY": "a secret"})
GOOD = [snapshot_of(marked("v1", "http://127.0.0.1:1/"))[1], snapshot_of(marked("v2"))[1]]
CONFIGS = messages(AppConfig.DESCRIPTOR, 6)
SNAPSHOTS = st.one_of(
    CONFIGS.map(lambda config: config.SerializePartialToString()),
    st.builds(mutated, st.sampled_from(GOOD), SEEDS),
    st.builds(mutated, CONFIGS.map(lambda config: config.SerializePartialToString()), SEEDS),
    # A schema, a list of values, in one another: Endpoint.input_schema is a Struct, whose values hold Structs.
    st.builds(lambda depth, tag: GOOD[0] + nested(tag, depth), st.sampled_from([50, 99, 101, 10_000]), st.sampled_from([b"\x0a", b"\x12", b"\x1a", b"\x2a", b"\x32"])),
    st.binary(max_size=200),
)  # fmt: skip


def check_snapshot(data: bytes) -> None:
    """It is compiled, or refused with causes; nothing in it ends the worker thread."""
    try:
        compile_release("sha256:" + hashlib.sha256(data).hexdigest(), data, SECRETS)
    except ReleaseUnusableError as error:
        assert all(error.causes)
        assert "a secret" not in str(error)


def check_rules(config: Any) -> None:
    """The control plane names what is wrong with a config; what it takes, a gateway can compile, but for secrets and tools that it lacks."""
    if not check_config(config):
        data = config.SerializeToString(deterministic=True)
        try:
            compile_release("sha256:" + hashlib.sha256(data).hexdigest(), data, SECRETS)
        except ReleaseUnusableError as error:
            assert all("secret" in cause or "mcp" in cause for cause in error.causes), error.causes


def _long_timeouts() -> bytes:
    """Longer than Python's durations are."""
    config = AppConfig.FromString(GOOD[0])
    config.endpoints[0].timeout.seconds = config.pipelines[0].stages[0].steps[0].timeout.seconds = 2**63 - 1
    return config.SerializeToString()


TARGETS = [
    Target(name="snapshots", cases=SNAPSHOTS, opened=pure(check_snapshot), share=12_000, pinned=[_long_timeouts()]),
    Target(name="rules", cases=CONFIGS, opened=pure(check_rules), share=5_000),
]
