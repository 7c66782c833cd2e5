"""The few messages of etcd's v3 API that a watch benchmark needs, built here so that etcd's own files need not be."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

WATCH = "/etcdserverpb.Watch/Watch"
PUT = "/etcdserverpb.KV/Put"

# Message -> fields as (name, number, type or message); numbers from etcd's api/etcdserverpb/rpc.proto.
_MESSAGES: dict[str, list[tuple[str, int, str]]] = {
    "WatchCreateRequest": [("key", 1, "bytes")],
    "WatchRequest": [("create_request", 1, "WatchCreateRequest")],
    "WatchResponse": [("created", 3, "bool")],
    "PutRequest": [("key", 1, "bytes"), ("value", 2, "bytes")],
}
_TYPES = {"bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES, "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL}


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="bench/etcd.proto", package="bench.etcd", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            added = message.field.add(name=field, number=number, label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL)
            if kind in _TYPES:
                added.type = _TYPES[kind]
            else:
                added.type, added.type_name = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE, f".bench.etcd.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"bench.etcd.{name}")) for name in _MESSAGES}


_CLASSES = _build()
WatchResponse = _CLASSES["WatchResponse"]


def watch_request(key: bytes) -> bytes:
    """A serialised request to watch one key."""
    create = _CLASSES["WatchCreateRequest"](key=key)
    return _CLASSES["WatchRequest"](create_request=create).SerializeToString()


def put_request(key: bytes, value: bytes) -> bytes:
    """A serialised request to set one key."""
    return _CLASSES["PutRequest"](key=key, value=value).SerializeToString()
