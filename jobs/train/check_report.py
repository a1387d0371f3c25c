"""Print the problems that a check of training data found, and write them to a file."""

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

from jobs.console.output_path import absolute_uri
from jobs.console.progress import print_summary
from pipeline.storage.parquet import write_parquet
from pipeline.storage.storage import Storage
from pipeline.training.check import Checked, Work
from pipeline.training.data.examples import Example
from schemas.conversation import DataProblem
from schemas.job.finetune import DataSpec
from schemas.shown import one_line, redact_uri

_SHOWN_PROBLEMS = 20
_REPORT = pa.schema([(name, pa.string()) for name in ("data_set", "origin", "type", "message")])


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One data set and its problems.

    examples: all rows in order, those with problems included.
    works: the samples to check.
    checked: the result of each sample.
    problems: from reading; ``add_problems`` adds those of the samples and of their boxes.
    sizes: by origin, width and height of the media of each conversation whose boxes are in pixels
        and can be converted.
    note: how the unit of boxes was chosen, where that is uncertain.
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
        """The file or folder, without secrets."""
        return redact_uri(self.spec.conversations or self.spec.annotations or "")


def print_report(data_sets: Sequence[DataSet], console: Console) -> None:
    """Print counts of each data set, counts of problems, and the first 20 problems."""
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
        grid.add_row(Text(one_line(data.name)), *_figures([data]))
    if len(data_sets) > 1:
        grid.add_row("all", *_figures(data_sets), style="bold")
    console.print(grid)
    for data in data_sets:
        if data.note:
            line = Text(one_line(f"{data.name}: {data.note}"), style="yellow")
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
    # Without the folder, which would leave no room for the message.
    rows = [
        (problem.origin.removeprefix(data.name.rpartition("/")[0] + "/"), problem)
        for data, problem in problems[:_SHOWN_PROBLEMS]
    ]
    found = Table(box=box.SIMPLE_HEAD)
    found.add_column("row", overflow="fold", min_width=min(24, max(len(row) for row, _ in rows)))
    found.add_column("problem", no_wrap=True)
    found.add_column("what is wrong", overflow="fold")
    for row, problem in rows:
        found.add_row(*(Text(one_line(text)) for text in (row, problem.type, problem.message)))
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
    """Write all problems, as Parquet if ``report`` ends in .parquet, else as JSON lines.

    Raises:
        StorageError: the storage refused or failed.
    """
    rows = [
        {"data_set": data.name, **dataclasses.asdict(problem)}
        for data in data_sets
        for problem in data.problems
    ]
    if report.endswith(".parquet"):
        write_parquet(pa.Table.from_pylist(rows, schema=_REPORT), absolute_uri(report), storage)
    else:
        write_lines(rows, report, storage)


def write_lines(rows: Sequence[dict[str, Any]], uri: str, storage: Storage) -> None:
    """Write rows as JSON lines.

    Raises:
        StorageError: the storage refused or failed.
    """
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    # A lone surrogate, which UTF-8 cannot encode, becomes JSON's escape \ud800.
    storage.write_bytes(absolute_uri(uri), text.encode("utf-8", "backslashreplace"))
