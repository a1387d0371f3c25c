"""A score for each unit, so that the report can show the worst first."""

from dataclasses import dataclass, field
from typing import Any

from jobs.evaluate.evaluate import check_libraries, evaluate, pts_seconds
from jobs.evaluate.figures import ERROR_RATES, OUT_OF_100, Case
from jobs.evaluate.gold import read_gold
from jobs.evaluate.match import match_rows
from jobs.evaluate.metrics import Metric, metrics_of
from jobs.evaluate.report import Report
from jobs.results.read import Annotations
from pipeline.storage.storage import Storage
from schemas.shown import redact_uri


@dataclass(kw_only=True)
class Scored:
    """One unit: by task, gold's answers and the scores of the model's, 0 (wrong) to 1 (right)."""

    answers: dict[str, Any] = field(default_factory=dict)
    by_task: dict[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float | None:
        """The mean over the tasks; None without any."""
        return sum(self.by_task.values()) / len(self.by_task) if self.by_task else None


def score_units(
    table: Annotations, gold_uri: str, name: str, storage: Storage
) -> tuple[dict[str, Scored], Report]:
    """Compare rows with gold: return unit id -> scores, and the report of all.

    name: of the annotations, for messages.

    Raises:
        UserError: gold cannot be used, or the libraries are not installed.
    """
    check_libraries()
    gold = read_gold(gold_uri, storage, metrics_of(table.questions))
    report = evaluate(table, gold, (name, redact_uri(gold_uri)))
    units: dict[str, Scored] = {}
    for pair in match_rows(gold.rows, table, redact_uri(gold_uri)):
        if pair.row is None:
            continue
        scored = units.setdefault(pair.row["unit_id"], Scored())
        for task, answer in pair.gold.answers.items():
            scored.answers[task] = answer
            if task in report.tasks:
                case = Case(
                    gold=answer, predicted=pair.row.get(task), pts_seconds=pts_seconds(pair.row)
                )
                scored.by_task[task] = round(_score(gold.metrics[task], case), 4)
    return units, report


def _score(metric: Metric, case: Case) -> float:
    primary = metric.primary
    figures = {figure.name: figure.value for figure in metric.figures([case])}
    value = figures[primary]
    if value is None:  # gold has nothing to find
        return 0.0 if case.predicted else 1.0
    if primary in ERROR_RATES:
        return max(0.0, 1.0 - value)
    return value / 100 if primary in OUT_OF_100 else value
