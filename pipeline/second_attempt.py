"""Ask once more for answers that could not be read, with other settings."""

import dataclasses
from collections.abc import Callable, Sequence

from pipeline.parse import parse_raw
from schemas.job import Generation
from schemas.task import AnswerStatus, Question
from schemas.unit import AnsweredUnit, PreparedUnit, RawAnswer

_WEAK = (AnswerStatus.UNPARSED, AnswerStatus.LOOPED)
_GOOD = (AnswerStatus.OK, AnswerStatus.REPAIRED)


def ask_again(
    generate: Callable[[Sequence[PreparedUnit], Generation], list[AnsweredUnit]],
    units: Sequence[PreparedUnit],
    answered: Sequence[AnsweredUnit],
    questions: dict[str, Question],
    generation: Generation,
) -> list[AnsweredUnit]:
    """Answers, with those that are unparsed or looped asked for again as ``generation.retry`` says.

    A second answer that can be read takes the first one's place; else the first one stays.
    """
    retry = generation.retry
    if retry is None:
        return list(answered)
    weak: dict[int, list[str]] = {}
    for k, unit in enumerate(answered):
        if tasks := [r.task for r in unit.answers if _status(unit, r, questions) in _WEAK]:
            weak[k] = tasks
    again = [
        dataclasses.replace(units[k], prompts=tuple(p for p in units[k].prompts if p.task in tasks))
        for k, tasks in weak.items()
    ]
    # Another seed: with a temperature the same one would draw the same answer.
    changed = generation.model_copy(
        update=retry.model_dump() | {"retry": None, "seed": (generation.seed + 1) % (1 << 63)}
    )
    found = list(answered)
    for k, second in zip(weak, generate(again, changed) if again else (), strict=True):
        better = {r.task: r for r in second.answers if _status(second, r, questions) in _GOOD}
        found[k] = dataclasses.replace(
            answered[k],
            answers=tuple(
                dataclasses.replace(better.get(raw.task, raw), attempts=2)
                if raw.task in weak[k]
                else raw
                for raw in answered[k].answers
            ),
            engine_seconds=answered[k].engine_seconds + second.engine_seconds,
        )
    return found


def _status(unit: AnsweredUnit, raw: RawAnswer, questions: dict[str, Question]) -> AnswerStatus:
    return parse_raw(unit, raw, questions).status
