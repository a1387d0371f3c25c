"""Send objects to another process, with the contents of their arrays in shared memory."""

import mmap
import os
import pickle
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

_ALIGNMENT = 64


def send(lane: Connection, answer: tuple[Any, Any]) -> None:
    """Send an answer over ``lane``: whether the call succeeded, and its result or exception.

    Or another pair of a kind and a content.
    """
    buffers: list[pickle.PickleBuffer] = []
    head = pickle.dumps(answer, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    lane.send((head, [view.nbytes for view in views]))
    if views:
        fd = os.memfd_create("frames")
        try:
            os.ftruncate(fd, sum(_padded(view.nbytes) for view in views))
            at = 0
            for view in views:
                done = 0
                while done < view.nbytes:
                    done += os.pwrite(fd, view[done:], at + done)
                at += _padded(view.nbytes)
            send_handle(lane, fd, None)
        finally:
            os.close(fd)


def receive(lane: Connection) -> tuple[Any, Any]:
    """Receive an answer of ``send``. Arrays are mapped, not copied.

    Raises:
        EOFError, OSError: the sender has ended.
    """
    head, sizes = lane.recv()
    if not sizes:
        return pickle.loads(head)  # type: ignore[no-any-return]
    fd = recv_handle(lane)
    try:
        shared = memoryview(mmap.mmap(fd, max(sum(map(_padded, sizes)), 1)))
    finally:
        os.close(fd)
    views, at = [], 0
    for size in sizes:
        views.append(shared[at : at + size])
        at += _padded(size)
    return pickle.loads(head, buffers=views)  # type: ignore[no-any-return]


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
