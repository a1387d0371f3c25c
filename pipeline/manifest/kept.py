"""Keep the selected items in memory, and refuse more than fit."""

import sys
from collections.abc import Iterable

from schemas.errors import ManifestError
from schemas.tables.manifest import MediaItem

_ITEM_BYTES = 600  # of an item without its texts
_SMALL_ITEMS = 100_000  # fewer are never refused: a machine without room for them runs no job
_MAX_SHARED = 1024


class Kept:
    """Counts the memory of the items that a driver keeps."""

    def __init__(self, max_bytes: int) -> None:
        """max_bytes: of all items together."""
        self._max_bytes, self._num_bytes, self._num_items = max_bytes, 0, 0
        self._shared: set[int] = set()

    def added(self, items: Iterable[MediaItem]) -> list[MediaItem]:
        """Return the items, if they fit beside those that were added before.

        Raises:
            ManifestError: they do not.
        """
        kept = []
        for item in items:
            self._num_items += 1
            self._num_bytes += _ITEM_BYTES + self._text_bytes(item)
            if self._num_bytes > self._max_bytes and self._num_items > _SMALL_ITEMS:
                raise ManifestError(
                    f"the first {self._num_items:,} media items take {self._max_bytes / 1e9:.1f} "
                    "GB, half of the free memory; divide them into several jobs, leave out columns "
                    "that no one reads, set input.limit, or use a machine with more memory"
                )
            kept.append(item)
        return kept

    def _text_bytes(self, item: MediaItem) -> int:
        texts = [item.media_id, item.uri, *item.frames, item.messages or ""]
        if item.attributes is not None and id(item.attributes) not in self._shared:
            texts.append(item.attributes)
            if len(self._shared) > _MAX_SHARED:
                self._shared.clear()
            self._shared.add(id(item.attributes))
        return sum(map(sys.getsizeof, texts))
