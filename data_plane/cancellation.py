"""Loops that call gRPC and go on after its errors end with this, or they might not end at all."""

from __future__ import annotations

import asyncio


def raise_if_cancelled() -> None:
    """Raises CancelledError when this task was told to end and does not know it.

    A call of grpc.aio waits for a task of its own that starts it, and that task swallows the cancellation of whoever waits
    (`_prepare_rpc` in grpc/aio/_call.py): the caller gets the call's own error, or an answer, instead.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
