"""The report of an evaluation: tables on a terminal, JSON, and Markdown."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.console.progress import print_summary
from jobs.evaluate.figures import ERROR_RATES, OUT_OF_100, Figure
from schemas.errors import UserError
from schemas.shown import one_line, printable

SCHEMA_VERSION = 1
"""Version of the JSON: raised when a key changes its meaning or is removed."""

MAX_LABELS = 20
"""Maximum number of labels of one slice that are printed; the JSON has all."""

_MAX_LABEL_CHARS = 40
_HEADERS = {
    "chrf": "chrF",
    "bleu": "BLEU",
    "cer": "CER",
    "wer": "WER",
    "mean_tiou": "tIoU",
    "r1_at_50": "R@0.5",
    "r1_at_70": "R@0.7",
    "within_half_second": "±0.5s",
    "precision": "P",
    "recall": "R",
    "f1": "F1",
    "caption_exact": "text",
    "text_precision": "txt P",
    "text_recall": "txt R",
    "text_f1": "txtF1",
    "box_precision": "box P",
    "box_recall": "box R",
    "box_f1": "boxF1",
    "mean_iou": "IoU",
    "matched_cer": "CER",
    "ap50": "AP50",
}

EMPTY = ("unparsed", "failed", "not_asked", "no_row")
"""States of an answer that count as an empty answer."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Figures of one task over ``n`` gold rows.

    answers: status of an answer -> number of answers. Those in ``EMPTY`` count as empty answers.
    """

    n: int
    answers: dict[str, int]
    figures: list[Figure]


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """One task: the score over all its gold rows, and slice name -> label -> score."""

    whole: Score
    slices: dict[str, dict[str, Score]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """One evaluation. docs/evaluate.md explains the counts, by their names in the JSON."""

    annotations: str
    gold: str
    recipe_ids: list[str]
    run_ids: list[str]
    chosen: str | None
    counts: dict[str, int]
    not_asked: list[str]
    tasks: dict[str, TaskReport]
    versions: dict[str, str]


def figures_beyond_limits(
    report: Report, fail_under: Mapping[str, float], fail_over: Mapping[str, float]
) -> list[str]:
    """Return the figures beyond their limits, with their values: ``caption.exact 0.5 < 0.9``.

    A figure without a value counts as beyond its limit. fail_over is for error rates, fail_under
    for all other figures.

    Raises:
        UserError: there is no such figure, or it needs the other option.
    """
    values = {
        f"{task}.{figure.name}": figure.value
        for task, found in report.tasks.items()
        for figure in found.whole.figures
    }
    beyond = []
    for limits, is_over in ((fail_under, False), (fail_over, True)):
        for name, limit in limits.items():
            if name not in values:
                raise UserError(f"there is no figure {name!r}; there are {', '.join(values)}")
            if is_over != (name.partition(".")[2] in ERROR_RATES):
                better, option = ("higher", "under") if is_over else ("lower", "over")
                raise UserError(f"for {name}, {better} is better: use --fail-{option}")
            value = values[name]
            if value is None:
                beyond.append(f"{name} has no value")
            elif value > limit if is_over else value < limit:
                beyond.append(f"{name} {value:.4g} {'>' if is_over else '<'} {limit:g}")
    return beyond


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as JSON values, with all counts."""
    return {
        "schema_version": SCHEMA_VERSION,
        "annotations": report.annotations,
        "gold": report.gold,
        "recipe_ids": report.recipe_ids,
        "run_ids": report.run_ids,
        "versions": report.versions,
        "counts": report.counts,
        "not_asked": report.not_asked,
        "tasks": {
            task: {
                **_score_json(found.whole),
                "slices": {
                    name: {label: _score_json(score) for label, score in labels.items()}
                    for name, labels in found.slices.items()
                },
            }
            for task, found in report.tasks.items()
        },
    }


def print_report(report: Report, console: Console) -> None:
    """Print the counts, and a table for each task."""
    print_summary(console, f"{report.annotations} against {report.gold}", _facts(report))
    for task, found in report.tasks.items():
        title = Text.assemble("\n", (f"{task}  ", "bold"), (_answers(found.whole), "dim"))
        console.print(title, soft_wrap=True)
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        table.add_column("", overflow="fold")
        for header in _header(found.whole):
            table.add_column(header, justify="right", no_wrap=True)
        for label, cells in _rows(found):
            table.add_row(Text(_cut(one_line(label))), *cells)
        console.print(table)


def markdown(report: Report) -> str:
    """Return the same tables as Markdown."""
    lines = [f"# {_escape(report.annotations)} against {_escape(report.gold)}", ""]
    lines += [f"- {name}: {_escape(value)}" for name, value in _facts(report)]
    for task, found in report.tasks.items():
        header = ["", *_header(found.whole)]
        lines += ["", f"## {task}", "", _answers(found.whole), ""]
        lines += [f"| {' | '.join(header)} |", "|" + "---|" + "---:|" * (len(header) - 1)]
        lines += [f"| {' | '.join([_escape(label), *cells])} |" for label, cells in _rows(found)]
    return "\n".join(lines) + "\n"


def _score_json(score: Score) -> dict[str, Any]:
    figures = {f.name: {"value": f.value, "n": f.n, "of": f.of} for f in score.figures}
    return {"n": score.n, "answers": score.answers, "figures": figures}


def _facts(report: Report) -> list[tuple[str, str]]:
    counts = report.counts
    judged = counts["gold_rows"] - counts["gold_rows_that_judge_nothing"]
    gold = [f"{judged:,} rows"]
    if num_missing := counts["gold_rows_without_annotation"]:
        gold.append(f"{num_missing:,} of them without an annotation row")
    if num_idle := counts["gold_rows_that_judge_nothing"]:
        gold.append(f"{num_idle:,} more that judge no task")
    left_out = [f"annotation rows without gold: {counts['annotation_rows_without_gold']:,}"]
    if num_superseded := counts["annotation_rows_superseded"]:
        left_out.append(f"replaced by later ones of the same media: {num_superseded:,}")
    facts = [
        ("recipe", ", ".join(filter(None, [*report.recipe_ids, report.chosen]))),
        ("gold", ", ".join(gold)),
        ("left out", ", ".join(left_out)),
    ]
    if report.not_asked:
        facts.append(("not asked", f"{', '.join(report.not_asked)}: in gold, not in the rows"))
    if num_timeless := counts["gold_boxes_without_time"]:
        facts.append(("no time", f"{num_timeless:,} of gold's boxes in videos have no pts_seconds"))
    return facts


def _answers(score: Score) -> str:
    """``4 judged: 2 ok, 1 unparsed, 1 no row``."""
    parts = [
        f"{count:,} {name.replace('_', ' ')}" for name, count in score.answers.items() if count
    ]
    return f"{score.n:,} judged: {', '.join(parts)}"


def _header(score: Score) -> list[str]:
    of = ["gold"] if _num_elements(score) is not None else []
    return ["n", "empty", *of, *(_HEADERS.get(f.name, f.name) for f in score.figures)]


def _rows(found: TaskReport) -> list[tuple[str, list[str]]]:
    """Return label and cells of each line: all rows, then the first labels of each slice."""
    rows = [("all", _cells(found.whole))]
    for name, labels in found.slices.items():
        shown = list(labels.items())[:MAX_LABELS]
        rows += [(f"{name}: {label}", _cells(score)) for label, score in shown]
        if len(labels) > len(shown):
            blank = [""] * len(_cells(found.whole))
            rows.append((f"{name}: {len(labels) - len(shown):,} more, see --json", blank))
    return rows


def _cells(score: Score) -> list[str]:
    num_elements = _num_elements(score)
    of = [] if num_elements is None else [f"{num_elements:,}"]
    num_empty = sum(score.answers[state] for state in EMPTY)
    return [f"{score.n:,}", f"{num_empty:,}", *of, *map(_value, score.figures)]


def _num_elements(score: Score) -> int | None:
    """Return the number of gold's events, boxes or texts; None if the figures count rows only."""
    recalls = [figure.n for figure in score.figures if figure.name in ("recall", "text_recall")]
    return recalls[0] if recalls else None


def _value(figure: Figure) -> str:
    if figure.value is None:
        return "-"
    return f"{figure.value:.1f}" if figure.name in OUT_OF_100 else f"{figure.value:.3f}"


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_LABEL_CHARS else f"{text[: _MAX_LABEL_CHARS - 1]}…"


def _escape(text: str) -> str:
    """Escape untrusted text for Markdown: no line breaks, links, tables or HTML."""
    flat = printable(text).replace("\n", " ")
    return re.sub(r"([\\`*_\[\]|<>#~])", r"\\\1", flat)
