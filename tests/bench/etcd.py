"""The few messages of etcd's v3 API that a watch benchmark needs, built here so that etcd's own files need not be."""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

WATCH = "/etcdserverpb.Watch/Watch"
PUT = "/etcdserverpb.KV/Put"

# Message -> fields as (name, number, type or message); numbers from etcd's rpc.proto and kv.proto. All that a watcher gets is there, so that
# its receipt costs what it costs a real client.
_MESSAGES: dict[str, list[tuple[str, int, str]]] = {
    "WatchCreateRequest": [("key", 1, "bytes")],
    "WatchRequest": [("create_request", 1, "WatchCreateRequest")],
    "ResponseHeader": [("cluster_id", 1, "uint64"), ("member_id", 2, "uint64"), ("revision", 3, "int64"), ("raft_term", 4, "uint64")],
    "KeyValue": [
        ("key", 1, "bytes"),
        ("create_revision", 2, "int64"),
        ("mod_revision", 3, "int64"),
        ("version", 4, "int64"),
        ("value", 5, "bytes"),
        ("lease", 6, "int64"),
    ],
    "Event": [("type", 1, "int64"), ("kv", 2, "KeyValue")],
    "WatchResponse": [("header", 1, "ResponseHeader"), ("watch_id", 2, "int64"), ("created", 3, "bool"), ("events", 11, "Event")],
    "PutRequest": [("key", 1, "bytes"), ("value", 2, "bytes")],
}
_FIELD = descriptor_pb2.FieldDescriptorProto
_TYPES = {"bytes": _FIELD.TYPE_BYTES, "bool": _FIELD.TYPE_BOOL, "int64": _FIELD.TYPE_INT64, "uint64": _FIELD.TYPE_UINT64}


def _build() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="bench/etcd.proto", package="bench.etcd", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            added = message.field.add(
                name=field, number=number, label=_FIELD.LABEL_REPEATED if field == "events" else _FIELD.LABEL_OPTIONAL
            )
            if kind in _TYPES:
                added.type = _TYPES[kind]
            else:
                added.type, added.type_name = _FIELD.TYPE_MESSAGE, f".bench.etcd.{kind}"
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
