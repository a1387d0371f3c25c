"""Generate answers once more, with other settings, if they could not be parsed or looped."""

import dataclasses
from collections.abc import Callable, Sequence

from pipeline.tasks.parse import parse_raw
from pipeline.tasks.registry import TASKS
from schemas.job.generation import Generation
from schemas.tables.unit import AnsweredUnit, PreparedUnit, RawAnswer
from schemas.task import AnswerStatus, Question

_WEAK = (AnswerStatus.UNPARSED, AnswerStatus.LOOPED)
_GOOD = (AnswerStatus.OK, AnswerStatus.REPAIRED)


def ask_again(
    generate: Callable[[Sequence[PreparedUnit], Generation], list[AnsweredUnit]],
    units: Sequence[PreparedUnit],
    answered: Sequence[AnsweredUnit],
    questions: dict[str, Question],
    generation: Generation,
) -> list[AnsweredUnit]:
    """Generate unparsed and looped answers again, with the settings of ``generation.retry``.

    A second answer replaces the first one if it can be parsed. The repetition penalty is for prose
    alone: it would break tables and lists of coordinates.

    generate: the engine's method. answered: the units with their first answers.
    """
    retry = generation.retry
    if retry is None:
        return list(answered)
    # Another seed: the same seed would give the same answer.
    changed = generation.model_copy(
        update=retry.model_dump() | {"retry": None, "seed": (generation.seed + 1) % (1 << 63)}
    )
    unpenalised = changed.model_copy(update={"repetition_penalty": generation.repetition_penalty})
    found = list(answered)
    for settings, is_prose in ((changed, True), (unpenalised, False)):
        weak: dict[int, list[str]] = {}
        for k, unit in enumerate(answered):
            tasks = [
                raw.task
                for raw in unit.answers
                if _is_prose(questions[raw.task]) == is_prose
                and _status(unit, raw, questions) in _WEAK
            ]
            if tasks:
                weak[k] = tasks
        again = [_with_tasks(units[k], tasks) for k, tasks in weak.items()]
        for k, second in zip(weak, generate(again, settings) if again else (), strict=True):
            better = {r.task: r for r in second.answers if _status(second, r, questions) in _GOOD}
            found[k] = dataclasses.replace(
                found[k],
                answers=tuple(
                    dataclasses.replace(better.get(raw.task, raw), attempts=2)
                    if raw.task in weak[k]
                    else raw
                    for raw in found[k].answers
                ),
                engine_seconds=found[k].engine_seconds + second.engine_seconds,
            )
    return found


def _with_tasks(unit: PreparedUnit, tasks: list[str]) -> PreparedUnit:
    return dataclasses.replace(unit, prompts=tuple(p for p in unit.prompts if p.task in tasks))


def _is_prose(question: Question) -> bool:
    return TASKS[question.task].is_prose and question.json_schema is None


def _status(unit: AnsweredUnit, raw: RawAnswer, questions: dict[str, Question]) -> AnswerStatus:
    return parse_raw(unit, raw, questions).status
