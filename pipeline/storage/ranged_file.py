"""Read a remote object as a file: ranges through a cache, with a count of the bytes fetched.

The cache is fsspec's: ``background`` reads the next block ahead while the decoder works,
``blockcache`` keeps the few small blocks that a probe reads.
"""

import io
from collections.abc import Callable
from typing import Any

from fsspec.caching import caches

FetchRange = Callable[[int, int], bytes]


class RangedFile(io.RawIOBase):
    """A seekable, read-only binary file over range requests.

    fetch_range: (start, end) -> the bytes of the half-open range; raises ValueError if the server
        has no range requests.
    read_whole: reads the whole object in that case; called at most once.
    name_error: turns an exception of the storage library into a UnitError.
    """

    def __init__(
        self,
        *,
        size: int,
        fetch_range: FetchRange,
        read_whole: Callable[[], bytes],
        name_error: Callable[[Exception], Exception],
        block_bytes: int,
        cache: str,
    ) -> None:
        self.size = size
        self.bytes_read = 0
        self._position = 0
        self._whole: bytes | None = None
        self._fetch_range = fetch_range
        self._read_whole = read_whole
        self._name_error = name_error
        self._cache: Any = caches[cache](block_bytes, self._fetch, size)

    def _fetch(self, start: int, end: int) -> bytes:
        end = min(end, self.size)
        if start >= end:  # the cache reads ahead past the end, which some servers refuse
            return b""
        try:
            if self._whole is None:
                try:
                    content = self._fetch_range(start, end)
                    self.bytes_read += len(content)
                    return content
                except ValueError:
                    self._whole = self._read_whole()
                    self.bytes_read += len(self._whole)
        except Exception as error:  # the boundary: each storage library has its own exceptions
            raise self._name_error(error) from error
        return self._whole[start:end]

    def read(self, size: int | None = -1, /) -> bytes:
        """Read ``size`` bytes, or up to the end; fewer only at the end.

        Raises:
            UnitError: the storage failed, or the object was deleted.
        """
        end = self.size if size is None or size < 0 else min(self._position + size, self.size)
        if self._position >= end:
            return b""
        content: bytes = self._cache._fetch(self._position, end)
        self._position += len(content)
        return content

    def readall(self) -> bytes:
        """Read up to the end."""
        return self.read()

    def readinto(self, buffer: Any, /) -> int:
        """Read into a buffer; returns the number of bytes."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to ``offset`` from the start, the current position or the end."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Return the current position."""
        return self._position

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readable(self) -> bool:
        """Return True."""
        return True

    def close(self) -> None:
        """Stop reading ahead, and free the cache."""
        if not self.closed and hasattr(self._cache, "close"):
            self._cache.close()
        super().close()
