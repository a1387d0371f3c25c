"""How right each single unit is, so that the worst can be looked at first."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.evaluate import check_libraries, evaluate, pts_seconds
from jobs.evaluate_report import Report
from jobs.figures import ERROR_RATES, Case
from jobs.match_gold import match_rows
from jobs.metrics import METRICS
from jobs.read_annotations import Annotations
from jobs.read_gold import read_gold
from pipeline.storage import Storage, shown

PRIMARY = {
    "caption": "chrf",
    "events": "mean_tiou",
    "ocr": "cer",
    "text_spans": "text_f1",
    "objects": "f1",
    "moments": "mean_tiou",
}
"""The one figure that orders a task's answers; scaled to 0 (wrong) .. 1 (right)."""


@dataclass(kw_only=True)
class Scored:
    """One unit: gold's answers, and how near the model's are, 0 to 1, by task."""

    answers: dict[str, Any] = field(default_factory=dict)
    by_task: dict[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """The mean of its tasks."""
        return sum(self.by_task.values()) / len(self.by_task) if self.by_task else None


def score_units(
    table: Annotations, gold_uri: str, name: str, storage: Storage
) -> tuple[dict[str, Scored], Report]:
    """Compare rows with gold: by unit id, and as a whole.

    name: of the annotations, for messages.

    Raises:
        UserError: gold does not serve, or its libraries are not installed.
    """
    check_libraries()
    gold = read_gold(gold_uri, storage)
    report = evaluate(table, gold, [], [], names=(name, shown(gold_uri)))
    units: dict[str, Scored] = {}
    for pair in match_rows(gold.rows, table, shown(gold_uri)):
        if pair.row is None:
            continue
        scored = units.setdefault(pair.row["unit_id"], Scored())
        for task, answer in pair.gold.answers.items():
            scored.answers[task] = answer
            if task in report.tasks:
                case = Case(
                    gold=answer, predicted=pair.row.get(task), pts_seconds=pts_seconds(pair.row)
                )
                scored.by_task[task] = round(_score(task, case), 4)
    return units, report


def _score(task: str, case: Case) -> float:
    figures = {figure.name: figure.value for figure in METRICS[task](_one(case))}
    value = figures[PRIMARY[task]]
    if value is None:  # gold has nothing to find
        return 0.0 if case.predicted else 1.0
    if PRIMARY[task] in ERROR_RATES:
        return max(0.0, 1.0 - value)
    return value / 100 if PRIMARY[task] == "chrf" else value


def _one(case: Case) -> Sequence[Case]:
    return [case]
