"""``reelscribe evaluate``: compare an annotation table with gold, and print how right it is."""

import difflib
import importlib.util
import json
import math
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console

from jobs.evaluate_report import (
    EMPTY,
    Report,
    Score,
    TaskReport,
    markdown,
    missed_bars,
    print_report,
    to_json,
)
from jobs.figures import Case
from jobs.match_gold import Pair, answer_state, match_rows
from jobs.metrics import LIBRARIES, METRICS, library_versions
from jobs.outputs import check_output
from jobs.read_annotations import Annotations, Row, read_annotations
from jobs.read_gold import Gold, read_gold
from pipeline.storage import Storage, shown
from pipeline.write import write_json
from schemas.errors import UserError
from schemas.task import AnswerStatus
from schemas.task_spec import TASK_NAMES

MEDIA_SLICES = ("media_type", "container", "codec", "resolution", "duration")
"""Slices by what the table knows of the media; ``all`` stands for them."""

NO_VALUE = "(none)"
"""The slice of what has no value: the codec of an image, the size of what could not be read."""

_RESOLUTIONS = {
    "up to 240 px": 240,
    "up to 480 px": 480,
    "up to 720 px": 720,
    "up to 1080 px": 1080,
    "over 1080 px": math.inf,
}
_DURATIONS = {
    "up to 5 s": 5,
    "up to 30 s": 30,
    "up to 5 min": 300,
    "up to 1 h": 3600,
    "over 1 h": math.inf,
}
_BUCKETS: dict[str, dict[str, float]] = {"resolution": _RESOLUTIONS, "duration": _DURATIONS}
_READ = (
    AnswerStatus.OK,
    AnswerStatus.REPAIRED,
    AnswerStatus.TRUNCATED,
    AnswerStatus.LOOPED,
)


def run(
    annotations: str,
    gold: str,
    *,
    tasks: Sequence[str],
    by: Sequence[str],
    recipe_id: str | None,
    run_id: str | None,
    fail_under: Mapping[str, float],
    fail_over: Mapping[str, float],
    json_file: str | None,
    markdown_file: str | None,
    storage: Storage,
    console: Console,
) -> list[str]:
    """Compare, print, and write the files that are asked for.

    tasks: empty for all that gold judges and the recipe asks. by: names of slices.
    fail_under: the least value of a figure such as ``caption.exact``. fail_over: the greatest
        value of an error rate such as ``ocr.cer``.

    Returns the figures that miss their bar, with their values.

    Raises:
        UserError: annotations or gold do not serve, or a task, slice or figure is unknown.
    """
    check_libraries()
    for option, file in (("--json", json_file), ("--markdown", markdown_file)):
        if file:
            check_output(option, file, (annotations, gold))
    for task in tasks:
        _check_name("task", task, METRICS)
    judged = read_gold(gold, storage)
    for column in set(judged.columns) - set(TASK_NAMES):
        if near := difflib.get_close_matches(column, METRICS, n=1, cutoff=0.75):
            raise UserError(f"{shown(gold)}: a column {column!r} judges nothing; is it {near[0]}?")
    table = read_annotations(
        annotations,
        storage,
        named=(
            {row.media_id for row in judged.rows if row.media_id is not None},
            {row.uri for row in judged.rows if row.media_id is None and row.uri is not None},
        ),
        recipe_id=recipe_id,
        run_id=run_id,
    )
    report = evaluate(table, judged, tasks, by, names=(shown(annotations), shown(gold)))
    missed = missed_bars(report, fail_under, fail_over)
    print_report(report, console)
    if json_file:
        write_json(to_json(report), json_file, storage)
    if markdown_file:
        storage.write_bytes(markdown_file, markdown(report).encode())
    return missed


def evaluate(
    table: Annotations, gold: Gold, tasks: Sequence[str], by: Sequence[str], names: tuple[str, str]
) -> Report:
    """Compare rows with gold. names: of the annotations and of gold, as messages call them.

    Raises:
        UserError: as ``run``.
    """
    pairs = match_rows(gold.rows, table, names[1])
    asked = _asked(pairs)
    for task in tasks:
        if task not in gold.tasks:
            raise UserError(f"{names[1]} does not judge {task}, only {', '.join(gold.tasks)}")
        if task not in asked:
            raise UserError(f"recipe {table.recipe_id} has no answers to {task}: it did not ask")
    chosen = [task for task in gold.tasks if task in asked and (not tasks or task in tasks)]
    if not chosen:
        raise UserError(
            f"gold judges {', '.join(gold.tasks)}; recipe {table.recipe_id} asked none of them"
        )
    labels = _labels(pairs, by, gold.columns)
    num_judged = len({pair.row["unit_id"] for pair in pairs if pair.row})
    return Report(
        annotations=names[0],
        gold=names[1],
        recipe_id=table.recipe_id,
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
        not_asked=[task for task in gold.tasks if task not in asked],
        tasks={task: _task_report(task, pairs, labels) for task in chosen},
        versions=library_versions(),
    )


def _task_report(task: str, pairs: list[Pair], labels: dict[str, list[str]]) -> TaskReport:
    judging = [number for number, pair in enumerate(pairs) if task in pair.gold.answers]
    slices: dict[str, dict[str, Score]] = {}
    for name, label_of in labels.items():
        members: dict[str, list[Pair]] = defaultdict(list)
        for number in judging:
            members[label_of[number]].append(pairs[number])
        slices[name] = {
            label: _score(task, members[label]) for label in _sorted_labels(name, members)
        }
    return TaskReport(whole=_score(task, [pairs[number] for number in judging]), slices=slices)


def _score(task: str, pairs: Sequence[Pair]) -> Score:
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
        figures=METRICS[task](cases),
    )


def pts_seconds(row: Row | None) -> tuple[float, ...]:
    """PTS of the frames that the model saw; empty for images, and where there is no row."""
    sampling = (row or {}).get("sampling") or {}
    return tuple(sampling.get("pts_seconds") or ())


def _num_timeless(pair: Pair) -> int:
    """Count gold's boxes in a video that do not say when: they match no box that does."""
    if not pair.row or not pts_seconds(pair.row):
        return 0
    elements = [e for task in ("objects", "text_spans") for e in pair.gold.answers.get(task, ())]
    return sum(element["pts_seconds"] is None for element in elements)


def _asked(pairs: Iterable[Pair]) -> set[str]:
    """Tasks with an answer, or a question, in some row; all if no row says what was asked."""
    rows = [pair.row for pair in pairs if pair.row]
    asked = {answer["task"] for row in rows for answer in row.get("responses") or ()}
    asked |= {task for row in rows for task in METRICS if row.get(task) is not None}
    return asked or set(METRICS)


def _labels(
    pairs: Sequence[Pair], by: Sequence[str], gold_columns: Sequence[str]
) -> dict[str, list[str]]:
    """For each slice, the label of each pair.

    Raises:
        UserError: a slice is neither of the media, nor a column of gold, nor an attribute.
    """
    names = [name for given in by for name in (MEDIA_SLICES if given == "all" else (given,))]
    attributes = [_attributes(pair.row) for pair in pairs]
    further = [*gold_columns, *sorted({key for found in attributes for key in found})]
    for name in names:
        _check_name("slice", name, list(dict.fromkeys(["all", *MEDIA_SLICES, *further])))
    return {
        name: [_label(name, pair, found) for pair, found in zip(pairs, attributes, strict=True)]
        for name in dict.fromkeys(names)
    }


def _label(name: str, pair: Pair, attributes: dict[str, Any]) -> str:
    media = (pair.row or {}).get("media") or {}
    if name == "resolution":
        return _bucket(min(media["width"], media["height"]) if media else None, _RESOLUTIONS)
    if name == "duration":
        return _bucket(media.get("duration_seconds"), _DURATIONS)
    if name in MEDIA_SLICES:
        value = media.get(name)
    else:
        value = pair.gold.columns.get(name, attributes.get(name))
    text = NO_VALUE if value is None or value == "" else shown(str(value))
    return text.encode("utf-8", "replace").decode()  # an attribute may hold half of a character


def _bucket(value: float | None, buckets: Mapping[str, float]) -> str:
    if value is None:
        return NO_VALUE
    return next(name for name, most in buckets.items() if value <= most)


def _sorted_labels(name: str, members: Mapping[str, Sequence[Pair]]) -> list[str]:
    """Buckets from small to large; other labels by size, then by name."""
    if name in _BUCKETS:
        return [label for label in (*_BUCKETS[name], NO_VALUE) if label in members]
    return sorted(members, key=lambda label: (-len(members[label]), label))


def _attributes(row: Row | None) -> dict[str, Any]:
    try:
        found = json.loads((row or {}).get("attributes") or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_name(kind: str, name: str, known: Iterable[str]) -> None:
    names = list(known)
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1)
    hint = f", perhaps {near[0]!r}?" if near else "."
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    raise UserError(f"unknown {kind} {name!r}{hint} Known are {', '.join(names[:20])}{more}")


def check_libraries() -> None:
    """Check that what the metrics need is installed.

    Raises:
        UserError: says what is missing, and how to install it.
    """
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"evaluate needs {', '.join(missing)}: pip install 'reelscribe[evaluate]'")


if __name__ == "__main__":
    from jobs.cli import main

    main(prog_name="reelscribe", args=["evaluate", *sys.argv[1:]])
