"""One driver for a run at a time: a file in the run's folder, renewed while its driver lives.

Two drivers would lose nothing, since one row of each unit stays, but would do the work twice. Ages
are told by watching the file, not by comparing clocks.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console
from rich.text import Text

from pipeline.storage import Storage, join
from pipeline.write import write_json
from schemas.errors import ResourceError, StorageError

RENEW_SECONDS = 10.0
LOST_SECONDS = 3 * RENEW_SECONDS
"""A lease that is not renewed for so long is of a driver that was killed."""


class Lease:
    """The right to write a run's rows."""

    def __init__(self, folder: str, storage: Storage) -> None:
        """Nothing is taken yet.

        folder: of the run.
        """
        self.lost_to: str | None = None
        self._uri = join(folder, "lease.json")
        self._storage = storage
        self._token = uuid.uuid4().hex
        self._count = 0
        self._ended = threading.Event()

    def check(self) -> None:
        """Stop a driver that was taken for dead, as after a suspended machine.

        Raises:
            ResourceError: another driver has the run.
        """
        if self.lost_to is not None:
            raise ResourceError(
                f"{self.lost_to} has taken over this run, since this driver did not answer for "
                f"{LOST_SECONDS:g} seconds; what was committed is kept"
            )

    def read(self) -> dict[str, Any] | None:
        """What the file says; None if there is none."""
        try:
            content: dict[str, Any] = json.loads(self._storage.read_bytes(self._uri))
        except (FileNotFoundError, ValueError):
            return None
        return content

    def wait(self, console: Console) -> None:
        """Wait until no other driver has the lease.

        Raises:
            ResourceError: another driver is alive.
            StorageError: the storage refused or failed.
        """
        seen = self.read()
        if seen is None or _is_dead(seen):
            return
        who, begin = _who(seen), time.monotonic()
        console.print(Text(f"{who} has this run: waiting for a sign of life"), soft_wrap=True)
        while time.monotonic() - begin < LOST_SECONDS:
            time.sleep(min(1.0, RENEW_SECONDS / 4))
            now = self.read()
            if now is None:
                return
            if now != seen:
                raise ResourceError(
                    f"{who} is at work on this run: wait for it, or end it and run this again; "
                    f"{self._uri} tells who it is"
                )

    def renew(self) -> None:
        """Write the file.

        Raises:
            StorageError: the storage refused or failed.
        """
        self._count += 1
        content = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "token": self._token,
            "renewed": self._count,
        }
        write_json(content, self._uri, self._storage)

    def keep(self) -> None:
        """Renew until the end, or until another driver has it; to be run in a thread."""
        while not self._ended.wait(RENEW_SECONDS):
            try:
                seen = self.read()
                if seen is not None and seen["token"] != self._token:
                    self.lost_to = _who(seen)
                    return
                self.renew()
            except StorageError:
                continue  # if the storage is away, the run ends by that

    def end(self) -> None:
        """Give the lease back."""
        self._ended.set()
        with suppress(StorageError):  # what ended the run is the message
            seen = self.read()
            if seen is not None and seen["token"] == self._token:
                self._storage.remove(self._uri)


@contextmanager
def leased(folder: str, storage: Storage, console: Console) -> Iterator[Lease]:
    """Hold the lease of a run; after a kill, wait until it is clear that its driver is gone.

    Raises:
        ResourceError: another driver is at work on the run.
        StorageError: the storage refused or failed.
    """
    lease = Lease(folder, storage)
    lease.wait(console)
    lease.renew()
    thread = threading.Thread(target=lease.keep, name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        lease.end()
        thread.join(1)


def _who(content: dict[str, Any]) -> str:
    return f"process {content.get('pid')} on {content.get('host')}"


def _is_dead(content: dict[str, Any]) -> bool:
    """Whether the driver was on this machine, and is gone: then there is no need to wait."""
    if content.get("host") != socket.gethostname():
        return False
    pid = int(content.get("pid", 0))
    if pid == os.getpid():  # a container that was started anew
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
