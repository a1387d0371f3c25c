"""What a check of training data found: printed, and written as a file."""

import dataclasses
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.outputs import absolute
from jobs.printable import printable
from jobs.progress import print_summary
from pipeline.storage import Storage, shown
from pipeline.training.check import Checked, Work
from pipeline.training.read import Example
from pipeline.write import write_parquet
from schemas.conversation import DataProblem
from schemas.finetune import DataSpec

_SHOWN_PROBLEMS = 20
_REPORT = pa.schema([(name, pa.string()) for name in ("data_set", "origin", "type", "message")])


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One data set, read, and what the actors found.

    problems: of reading, then of the actors; those of boxes are added by `judge`.
    note: how its boxes were taken, where that is not certain.
    sizes: by origin, width and height of the picture of each conversation whose boxes are in
        pixels and can be converted.
    """

    spec: DataSpec
    examples: list[Example]
    works: list[Work]
    checked: list[Checked] = dataclasses.field(default_factory=list)
    problems: list[DataProblem] = dataclasses.field(default_factory=list)
    sizes: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    note: str | None = None

    @property
    def name(self) -> str:
        """Its file or folder, without secrets."""
        return shown(self.spec.conversations or self.spec.annotations or "")


def print_report(data_sets: Sequence[DataSet], console: Console) -> None:
    """Print counts of each data set, counts of problems, and the first problems."""
    grid = Table(title="data sets", title_justify="left", box=box.SIMPLE_HEAD)
    right = (
        "examples",
        "wrong",
        "samples",
        "media",
        "tokens: min",
        "median",
        "max",
        "all",
        "learnt",
    )
    grid.add_column("", overflow="fold")
    for name in right:
        grid.add_column(name, justify="right")
    for data in data_sets:
        grid.add_row(Text(printable(data.name)), *_figures([data]))
    if len(data_sets) > 1:
        grid.add_row("all", *_figures(data_sets), style="bold")
    console.print(grid)
    for data in data_sets:
        if data.note:
            line = Text(printable(f"{data.name}: {data.note}"), style="yellow")
            console.print(line, soft_wrap=True)
    problems = [(data, problem) for data in data_sets for problem in data.problems]
    if not problems:
        unsure = any(data.note for data in data_sets)
        console.print("nothing else is wrong" if unsure else "nothing is wrong")
        return
    counts = Counter((data.name, problem.type) for data, problem in problems)
    print_summary(
        console,
        f"{len(problems):,} problems",
        [(kind.value, f"{count:,} in {name}") for (name, kind), count in counts.items()],
    )
    found = Table(box=box.SIMPLE_HEAD)
    for column in ("row", "problem", "what is wrong"):
        found.add_column(column, overflow="fold")
    for data, problem in problems[:_SHOWN_PROBLEMS]:
        # The file's name will do here; its folder would leave no room for the message.
        row = problem.origin.removeprefix(data.name.rpartition("/")[0] + "/")
        found.add_row(*(Text(printable(text)) for text in (row, problem.type, problem.message)))
    console.print(found)
    if (more := len(problems) - _SHOWN_PROBLEMS) > 0:
        console.print(f"  ... and {more:,} more; --report FILE.jsonl writes all")


def _figures(data_sets: Sequence[DataSet]) -> list[str]:
    checked = [c for data in data_sets for c in data.checked]
    tokens = [c.num_tokens for c in checked if c.num_tokens is not None]
    figures = [
        sum(len(data.examples) for data in data_sets),
        sum(len({problem.origin for problem in data.problems}) for data in data_sets),
        len(checked),
        sum(c.num_media for c in checked),
        min(tokens, default=0),
        round(statistics.median(tokens)) if tokens else 0,
        max(tokens, default=0),
        sum(tokens),
        sum(c.num_learnt or 0 for c in checked),
    ]
    return [f"{figure:,}" for figure in figures]


def write_report(data_sets: Sequence[DataSet], report: str, storage: Storage) -> None:
    """Write all problems, as .parquet or else as JSON lines.

    Raises:
        StorageError: the storage refused or failed.
    """
    rows = [
        {"data_set": data.name, **dataclasses.asdict(problem)}
        for data in data_sets
        for problem in data.problems
    ]
    if report.endswith(".parquet"):
        write_parquet(pa.Table.from_pylist(rows, schema=_REPORT), absolute(report), storage)
    else:
        write_lines(rows, report, storage)


def write_lines(rows: Sequence[dict[str, Any]], uri: str, storage: Storage) -> None:
    """Write rows as JSON lines.

    Raises:
        StorageError: the storage refused or failed.
    """
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # Half a character, which UTF-8 cannot hold, becomes \ud800 again: JSON's own escape.
    storage.write_bytes(absolute(uri), text.encode("utf-8", "backslashreplace"))
