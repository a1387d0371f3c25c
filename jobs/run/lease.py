"""One driver for a run at a time: a file in the run's folder, renewed while its driver lives.

Two drivers would lose no row, since one row per unit is kept, but would do the work twice. Whether
a lease is still renewed is seen by watching the file, not by comparing clocks of machines.
"""

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

from pipeline.storage.parquet import read_json, write_json
from pipeline.storage.storage import Storage, join
from schemas.errors import ResourceError, StorageError

RENEW_SECONDS = 10.0
LOST_SECONDS = 3 * RENEW_SECONDS
"""A driver whose lease is not renewed for this long counts as killed."""


class Lease:
    """The right to write a run's rows."""

    def __init__(self, folder: str, storage: Storage) -> None:
        """Prepare a lease; it is not taken yet. folder: the run's."""
        self.lost_to: str | None = None
        self.failure: Exception | None = None
        self._uri = join(folder, "lease.json")
        self._storage = storage
        self._token = uuid.uuid4().hex
        self._count = 0
        self._ended = threading.Event()

    def check(self) -> None:
        """Check that no other driver has taken over, for example while this machine was suspended.

        Raises:
            ResourceError: another driver has the run, or the thread that renews the lease failed.
        """
        if self.failure is not None:
            kind = type(self.failure).__name__
            raise ResourceError(
                f"the lease {self._uri} cannot be renewed ({kind}: {self.failure}); committed rows "
                "are kept: run the same command again"
            )
        if self.lost_to is not None:
            raise ResourceError(
                f"{self.lost_to} has taken over this run, since this driver did not renew its "
                f"lease for {LOST_SECONDS:g} seconds; committed rows are kept, and the other "
                "driver does the rest"
            )

    def confirm(self) -> None:
        """Check as ``check`` does, by reading the file: its thread may have been asleep too.

        Raises:
            ResourceError: another driver has the run, or the thread that renews the lease failed.
            StorageError: the storage refused or failed.
        """
        self._look()
        self.check()

    def _look(self) -> None:
        seen = self.read()
        if seen is not None and seen.get("token") != self._token:
            self.lost_to = _who(seen)

    def read(self) -> dict[str, Any] | None:
        """Read the lease file; None if there is none, or one that no driver wrote."""
        try:
            return read_json(self._uri, self._storage)
        except (FileNotFoundError, ValueError):
            return None

    def wait(self, console: Console) -> None:
        """Wait until no other living driver has the lease.

        Raises:
            ResourceError: another driver is alive.
            StorageError: the storage refused or failed.
        """
        seen = self.read()
        if seen is None or _is_dead(seen):
            return
        who, begin = _who(seen), time.monotonic()
        console.print(
            Text(f"{who} has this run: waiting to see whether it renews its lease"), soft_wrap=True
        )
        while time.monotonic() - begin < LOST_SECONDS:
            time.sleep(min(1.0, RENEW_SECONDS / 4))
            now = self.read()
            if now is None:
                return
            if now != seen:
                raise ResourceError(
                    f"{who} is at work on this run: wait for it, or end it and run this again "
                    f"(its lease is {self._uri})"
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
            "pid_namespace": _pid_namespace(),
            "token": self._token,
            "renewed": self._count,
        }
        write_json(content, self._uri, self._storage)

    def keep(self) -> None:
        """Renew the lease until its end, or until another driver takes it; runs in a thread."""
        while not self._ended.wait(RENEW_SECONDS):
            try:
                self._look()
                if self.lost_to is not None:
                    return
                self.renew()
            except StorageError:
                continue  # if the storage keeps failing, the run itself ends with the error
            except Exception as error:  # the thread's boundary: nothing else would see it
                self.failure = error
                return

    def end(self) -> None:
        """Give the lease back."""
        self._ended.set()
        with suppress(StorageError):  # it would hide the error that ended the run
            seen = self.read()
            if seen is not None and seen.get("token") == self._token:
                self._storage.remove(self._uri)


@contextmanager
def leased(folder: str, storage: Storage, console: Console) -> Iterator[Lease]:
    """Hold the lease of a run; first wait until a driver that was killed counts as gone.

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
    """Whether the driver ran beside this one and has ended: then there is no need to wait."""
    pid, namespace = content.get("pid"), _pid_namespace()
    if namespace is None or content.get("pid_namespace") != namespace or type(pid) is not int:
        return False
    if pid == os.getpid():  # an earlier lease of this very process
        return True
    try:
        os.kill(max(pid, 1), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass
    return False


def _pid_namespace() -> str | None:
    """Return where this process's id is valid: a boot of a machine, and a container on it.

    Containers number their processes from 1, and may share the name of their machine.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None
