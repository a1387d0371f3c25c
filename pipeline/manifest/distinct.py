"""Find rows of a manifest that repeat others, without keeping the rows."""

from array import array

import numpy as np

from schemas.tables.manifest import MediaItem

_MASK = (1 << 64) - 1
Source = tuple[str, tuple[str, ...], str | None]
Span = tuple[str, float | None, float | None]


def source_of(item: MediaItem) -> Source:
    """What a ``media_id`` stands for: all rows that have it must have the same."""
    return item.uri, item.frames, item.messages


def span_of(item: MediaItem) -> Span:
    """What only one row may have."""
    return item.media_id, item.start_seconds, item.end_seconds


class Distinct:
    """Hashes of items: 24 bytes each, so that ten million take 240 MB."""

    def __init__(self) -> None:
        self._ids, self._sources, self._spans = array("Q"), array("Q"), array("Q")

    def add(self, item: MediaItem) -> None:
        """Add an item."""
        self._ids.append(hash(item.media_id) & _MASK)
        self._sources.append(hash(source_of(item)) & _MASK)
        self._spans.append(hash(span_of(item)) & _MASK)

    def repeated(self) -> set[int]:
        """Return the hashes of media ids of which two rows have a span, or different sources.

        Different ids may have one hash: the rows are to be compared.
        """
        ids, sources, spans = (
            np.frombuffer(part, np.uint64) if part else np.zeros(0, np.uint64)
            for part in (self._ids, self._sources, self._spans)
        )
        order = np.argsort(spans, kind="stable")
        same_span = spans[order[1:]] == spans[order[:-1]]
        found = set(ids[order[1:][same_span]].tolist())
        order = np.lexsort((sources, ids))
        same_id = ids[order[1:]] == ids[order[:-1]]
        other = sources[order[1:]] != sources[order[:-1]]
        return found | set(ids[order[1:][same_id & other]].tolist())

    @staticmethod
    def has(repeated: set[int], item: MediaItem) -> bool:
        """Whether an item's id is among the hashes of ``repeated``."""
        return hash(item.media_id) & _MASK in repeated
