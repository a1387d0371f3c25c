"""The time and the memory that calls in children may take, and how memory is measured."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from schemas.job.resources import DecodeLimits


@dataclass(frozen=True, kw_only=True)
class ChildLimits:
    """Time of one call, and memory of all calls that run at a time in the children of a process."""

    timeout_seconds: float
    max_resident_bytes: int

    @classmethod
    def of(
        cls, resources: "DecodeLimits", *, times: float = 1, more_seconds: float = 0
    ) -> "ChildLimits":
        """Make the limits of a job; the deadline is ``times`` the job's plus ``more_seconds``."""
        return cls(
            timeout_seconds=times * resources.decode_timeout_seconds + more_seconds,
            max_resident_bytes=int(resources.decode_memory_gib * (1 << 30)),
        )


def resident_bytes(process: int | str = "self") -> int | None:
    """Return the memory of a process in bytes; None if it has ended, or where there is no /proc.

    Pages of files and of shared memory do not count: the process does not own what it reads from
    Ray's object store, and children share the libraries.
    """
    try:
        with open(f"/proc/{process}/statm") as file:
            _, resident, shared, *_ = map(int, file.read().split())
            return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return None
