"""Requests that are known to be sound: rules that were looked at once for the same plain fields need not be looked at again.

Most requests differ from others in nothing that a rule sees: triggers in their input, reads not at all. To look costs a tenth of a gRPC
trigger, to know it again hardly anything.
"""

from __future__ import annotations

import functools
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from buf.validate import validate_pb2

MAX_KNOWN_OF_A_KIND = 256

Key = tuple[Any, ...]


class SoundRequests:
    """Those that were sound lately, by what rules see of them."""

    def __init__(self) -> None:
        self._known: dict[Any, set[Key]] = {}

    def key_of(self, message: Message) -> Key | None:
        """All that rules see; None when that is more than plain fields."""
        fields = _plain_fields(message.DESCRIPTOR)
        if fields is None:
            return None
        return tuple([getattr(message, name) if not optional or message.HasField(name) else None for name, optional in fields])

    def has(self, message: Message, key: Key) -> bool:
        """Whether one like it was sound."""
        known = self._known.get(message.DESCRIPTOR)
        return known is not None and key in known

    def add(self, message: Message, key: Key) -> None:
        """It is sound."""
        known = self._known.setdefault(message.DESCRIPTOR, set())
        if len(known) >= MAX_KNOWN_OF_A_KIND:
            known.clear()
        known.add(key)


@functools.cache
def _plain_fields(descriptor: Descriptor) -> tuple[tuple[str, bool], ...] | None:
    """(name, whether it may be absent) of every field but Structs, which no rule looks into; None when one is no number, bool or text."""
    if descriptor.GetOptions().HasExtension(validate_pb2.message) or any(len(oneof.fields) > 1 for oneof in descriptor.oneofs):
        return None
    found = []
    for field in descriptor.fields:
        is_struct = field.message_type is not None and field.message_type.full_name == "google.protobuf.Struct"
        if is_struct and not field.is_repeated and not field.GetOptions().HasExtension(validate_pb2.field):
            continue
        if field.message_type is not None or field.is_repeated or field.type == FieldDescriptor.TYPE_BYTES:
            return None
        found.append((field.name, field.has_presence))
    return tuple(found)
