"""What every export format is made of."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jobs.read_annotations import Row
from pipeline.storage import Storage

Files = Iterator[tuple[str, bytes]]
"""Names, relative to the export's folder, and contents."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The rows to export. planned: as in ``jobs.pictures``.

    skipped: filled by the format: what it cannot hold or cannot read, each with the reason.
    """

    rows: list[Row]
    recipe_id: str
    planned: dict[str, dict[str, Any]]
    storage: Storage
    skipped: list[str] = field(default_factory=list)
