"""``reelscribe evaluate``: compare an annotation table with gold, and print the figures."""

import difflib
import importlib.util
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console

from jobs.console.output_path import check_output
from jobs.evaluate.figures import Case
from jobs.evaluate.gold import Gold, read_gold
from jobs.evaluate.match import Pair, answer_state, match_rows
from jobs.evaluate.metrics import LIBRARIES, Metric, library_versions, metrics_of
from jobs.evaluate.report import (
    EMPTY,
    Report,
    Score,
    TaskReport,
    figures_beyond_limits,
    markdown,
    print_report,
    to_json,
)
from jobs.evaluate.slices import check_name, labels_of, sorted_labels
from jobs.results.read import Annotations, Row, Selection, read_annotations, read_questions
from pipeline.storage.parquet import write_json
from pipeline.storage.storage import Storage
from schemas.errors import UserError
from schemas.extras import install_command
from schemas.shown import redact_uri
from schemas.task import AnswerStatus

_READ = (
    AnswerStatus.OK,
    AnswerStatus.REPAIRED,
    AnswerStatus.TRUNCATED,
    AnswerStatus.LOOPED,
)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """What to compare, and where to write the figures.

    tasks: names of tasks; empty: all that gold judges and the recipe has.
    by: names of slices.
    fail_under: figure such as ``caption.exact`` -> its minimum.
    fail_over: error rate such as ``ocr.cer`` -> its maximum.
    json_file, markdown_file: files to write; None: do not write.
    """

    tasks: Sequence[str] = ()
    by: Sequence[str] = ()
    fail_under: Mapping[str, float] = field(default_factory=dict)
    fail_over: Mapping[str, float] = field(default_factory=dict)
    json_file: str | None = None
    markdown_file: str | None = None


def run(
    selection: Selection, gold: str, options: EvaluateOptions, storage: Storage, console: Console
) -> list[str]:
    """Compare annotations with gold, print the figures, and write the requested files.

    Returns the figures beyond their limits, with their values.

    Raises:
        UserError: annotations or gold cannot be used, or a task, slice or figure is unknown.
    """
    check_libraries()
    for option, file in (("--json", options.json_file), ("--markdown", options.markdown_file)):
        if file:
            check_output(option, file, (selection.uri, gold))
    questions = read_questions(selection, storage)
    metrics = metrics_of(questions)
    for task in options.tasks:
        check_name("task", task, metrics)
    judged = read_gold(gold, storage, metrics)
    for column in set(judged.columns) - set(questions):
        if near := difflib.get_close_matches(column, metrics, n=1, cutoff=0.75):
            raise UserError(
                f"{redact_uri(gold)}: column {column!r} is not a task; did you mean {near[0]!r}?"
            )
    media = (
        {row.media_id for row in judged.rows if row.media_id is not None},
        {row.uri for row in judged.rows if row.media_id is None and row.uri is not None},
    )
    table = read_annotations(selection, storage, media=media, judged=judged.tasks)
    names = redact_uri(selection.uri), redact_uri(gold)
    report = evaluate(table, judged, names, tasks=options.tasks, by=options.by)
    beyond = figures_beyond_limits(report, options.fail_under, options.fail_over)
    print_report(report, console)
    if options.json_file:
        write_json(to_json(report), options.json_file, storage)
    if options.markdown_file:
        storage.write_bytes(options.markdown_file, markdown(report).encode())
    return beyond


def evaluate(
    table: Annotations,
    gold: Gold,
    names: tuple[str, str],
    *,
    tasks: Sequence[str] = (),
    by: Sequence[str] = (),
) -> Report:
    """Compare rows with gold.

    names: of the annotations and of gold, for messages. tasks, by: as in ``EvaluateOptions``.

    Raises:
        UserError: as ``run``.
    """
    pairs = match_rows(gold.rows, table, names[1])
    answered = _answered_tasks(pairs, gold.metrics)
    for task in tasks:
        if task not in gold.tasks:
            raise UserError(f"{names[1]} does not judge {task}, only {', '.join(gold.tasks)}")
        if task not in answered:
            raise UserError(f"the rows have no answers of the task {task}")
    chosen = [task for task in gold.tasks if task in answered and (not tasks or task in tasks)]
    if not chosen:
        raise UserError(
            f"gold judges {', '.join(gold.tasks)}; the rows have answers of none of them"
        )
    labels = labels_of(pairs, by, gold.columns)
    num_judged = len({pair.row["unit_id"] for pair in pairs if pair.row})
    return Report(
        annotations=names[0],
        gold=names[1],
        recipe_ids=table.recipe_ids,
        run_ids=table.run_ids,
        chosen=table.chosen,
        counts={
            "gold_rows": gold.num_rows,
            "gold_rows_that_judge_nothing": gold.num_rows - len(gold.rows),
            "gold_rows_without_annotation": sum(pair.row is None for pair in pairs),
            "annotation_rows": table.num_rows,
            "annotation_rows_without_gold": table.num_rows - table.num_superseded - num_judged,
            "annotation_rows_superseded": table.num_superseded,
            "gold_boxes_without_time": sum(map(_num_timeless, pairs)),
        },
        not_asked=[task for task in gold.tasks if task not in answered],
        tasks={task: _task_report(task, gold.metrics[task], pairs, labels) for task in chosen},
        versions=library_versions(),
    )


def _task_report(
    task: str, metric: Metric, pairs: list[Pair], labels: dict[str, list[str]]
) -> TaskReport:
    judging = [number for number, pair in enumerate(pairs) if task in pair.gold.answers]
    slices: dict[str, dict[str, Score]] = {}
    for name, label_of in labels.items():
        members: dict[str, list[Pair]] = defaultdict(list)
        for number in judging:
            members[label_of[number]].append(pairs[number])
        slices[name] = {
            label: _score(task, metric, members[label]) for label in sorted_labels(name, members)
        }
    return TaskReport(
        whole=_score(task, metric, [pairs[number] for number in judging]), slices=slices
    )


def _score(task: str, metric: Metric, pairs: Sequence[Pair]) -> Score:
    states = [answer_state(pair.row, task) for pair in pairs]
    cases = [
        Case(
            gold=pair.gold.answers[task],
            predicted=pair.row[task] if pair.row and state in _READ else None,
            pts_seconds=pts_seconds(pair.row),
        )
        for pair, state in zip(pairs, states, strict=True)
    ]
    counts = Counter(states)
    return Score(
        n=len(pairs),
        answers={state: counts[state] for state in (*_READ, *EMPTY)},
        figures=metric.figures(cases),
    )


def pts_seconds(row: Row | None) -> tuple[float, ...]:
    """Return the PTS of the frames that the model saw; empty for images and without a row."""
    sampling = (row or {}).get("sampling") or {}
    return tuple(sampling.get("pts_seconds") or ())


def _num_timeless(pair: Pair) -> int:
    """Count gold's boxes in a video that have no time: they match no box that has one."""
    if not pair.row or not pts_seconds(pair.row):
        return 0
    return sum(
        element.get("pts_seconds", 0.0) is None
        for answer in pair.gold.answers.values()
        if isinstance(answer, list)
        for element in answer
    )


def _answered_tasks(pairs: Iterable[Pair], metrics: Mapping[str, Metric]) -> set[str]:
    """Return the tasks with a response or a value in some row; all tasks if no row has any."""
    rows = [pair.row for pair in pairs if pair.row]
    found = {answer["task"] for row in rows for answer in row.get("responses") or ()}
    found |= {task for row in rows for task in metrics if row.get(task) is not None}
    return found or set(metrics)


def check_libraries() -> None:
    """Check that the libraries of the metrics are installed.

    Raises:
        UserError: some are missing.
    """
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"evaluate needs {', '.join(missing)}: {install_command('evaluate')}")
