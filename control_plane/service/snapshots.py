"""A config as the bytes of a snapshot, and back."""

from __future__ import annotations

from typing import Any

from pointsman.plain import plain
from pointsman.v1.config_pb2 import AppConfig


def snapshot_of(config: AppConfig) -> bytes:
    """The one serialisation of a config: the bytes that are hashed, stored, sent and never made again."""
    return config.SerializeToString(deterministic=True)


def plain_of(snapshot: bytes) -> dict[str, Any]:
    """The config by the proto JSON mapping, in snake_case, as a person would write it."""
    return plain(AppConfig.FromString(snapshot))
