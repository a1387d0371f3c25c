"""The rows of a manifest, its problems, and the limits of what one may hold."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.errors import ManifestError
from schemas.shown import redact_text

MAX_COLUMNS = 2_000
"""Each row has each column in its attributes."""

MAX_ROW_BYTES = 64 << 20
"""Of one row, or one value in Parquet: Python's objects take up to twenty times as much."""

_MAX_SHOWN_PROBLEMS = 5

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The columns of a file in its order, and its rows.

    read: yields each row with its place, such as ``line 3``; each call reads the file again.
    """

    columns: list[str]
    read: Callable[[], Iterator[tuple[str, Row]]]


class Problems:
    """Collects the errors of single rows, to show the first few and their number."""

    def __init__(self, name: str) -> None:
        """``name``: the manifest's name in messages."""
        self._name = name
        self._shown: list[str] = []
        self._num_problems = 0

    def add(self, place: str, problem: str) -> None:
        """Add a wrong row; the secrets of addresses in it are hidden."""
        self._num_problems += 1
        if len(self._shown) < _MAX_SHOWN_PROBLEMS:
            self._shown.append(f"{place}: {redact_text(problem)}")

    def check(self, num_good: int) -> None:
        """Raise one error for all wrong rows.

        num_good: number of the other rows.

        Raises:
            ManifestError: at least one row is wrong.
        """
        if self._num_problems == 1:
            raise ManifestError(f"{self._name}, {self._shown[0]}")
        if self._num_problems:
            lines = "".join(f"\n  {line}" for line in self._shown)
            hidden = self._num_problems - len(self._shown)
            more = f"\n  and {hidden} more" if hidden else ""
            raise ManifestError(
                f"{self._name}: {self._num_problems} of {self._num_problems + num_good} rows are "
                f"wrong:{lines}{more}"
            )


def check_names(columns: Sequence[str], name: str) -> None:
    """Check the columns of a file.

    Raises:
        ManifestError: two have one name, or there are too many.
    """
    if len(columns) > MAX_COLUMNS:
        raise ManifestError(
            f"{name} has over {MAX_COLUMNS:,} columns; leave out those that no one reads, or put "
            "them into one column as JSON"
        )
    repeated = min((c for c, count in Counter(columns).items() if count > 1), default=None)
    if repeated is not None:
        raise ManifestError(f"{name}: two columns are named {repeated!r}; rename one")


def too_large(name: str, place: str) -> ManifestError:
    """Return the error for a row that is too large."""
    return ManifestError(
        f"{name}, {place}: over {MAX_ROW_BYTES:,} bytes; store large media as files and give their "
        "uris, and leave other large values out"
    )
