"""The memory that this process may still take."""

import sys
from contextlib import suppress
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes() -> int:
    """Return the memory that this process may still take: of the machine, and of its container."""
    free = [sys.maxsize]
    with suppress(OSError):  # not on Linux
        lines = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
        free.append(1024 * int(lines["MemAvailable"].split()[0]))
    with suppress(OSError, ValueError):  # no container, or one without a limit
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        found = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        cache = sum(int(found.get(name, 0)) for name in ("inactive_file", "active_file"))
        free.append(max(0, limit - used + cache))  # the kernel frees cached files when it must
    return min(free)
