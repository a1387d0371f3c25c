"""Turn answered units into annotation rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pipeline.tasks.columns import column_of
from pipeline.tasks.parse import Answer, parse_raw
from pipeline.tasks.registry import TASKS
from schemas.shown import redact_uri
from schemas.tables.annotation import RecipeIds, annotation_schema
from schemas.tables.columns import to_row
from schemas.tables.item import item_schema
from schemas.tables.unit import AnsweredUnit, RawAnswer, UnitStatus
from schemas.task import EMBEDDING, AnswerStatus, Question


def table_schema(named: "Iterable[pa.Field[Any]]" = ()) -> pa.Schema:
    """Return the schema of the output table.

    named: the columns that not all tables have, see ``named_columns``.
    """
    columns = [task.column for name, task in TASKS.items() if name != EMBEDDING]
    return annotation_schema([*columns, *named])


ANNOTATION = table_schema()
"""The schema of the output table of a job whose questions have no names of their own."""

ITEM = item_schema(TASKS["events"].column)
"""The schema of the table ``items``."""


@dataclass(frozen=True, kw_only=True)
class RunKey:
    """The ids of a run's rows and files: run, recipes, and the date of the partition.

    started_at: when this start of the run began, by the driver's clock. No row is earlier, also if
        the clock of the committer's machine is slow.
    """

    run_id: str
    recipe_ids: RecipeIds
    run_date: str
    started_at: datetime | None = None


def schema_of_questions(questions: Iterable[Question]) -> pa.Schema:
    """Return the schema of a job's rows: one for all jobs, and the columns of named questions."""
    return table_schema(
        column_of(question) for question in questions if question.has_own_name or question.is_vector
    )


def annotation_row(
    unit: AnsweredUnit, questions: dict[str, Question], key: RunKey
) -> dict[str, Any]:
    """Make one row of the table from one unit, failed units included.

    questions: by name.
    """
    now = datetime.now(UTC)
    answers = [(raw, parse_raw(unit, raw, questions)) for raw in unit.answers]
    columns: dict[str, Any] = dict.fromkeys(TASKS)
    columns |= {raw.task: answer.value for raw, answer in answers}
    return {
        "unit_id": unit.unit_id,
        "media_id": unit.media_id,
        "run_id": key.run_id,
        "recipe_id": getattr(key.recipe_ids, _kind(unit)),
        "uri": redact_uri(unit.uri),
        "content_version": unit.content_version,
        "status": _status(unit, [answer for _, answer in answers]),
        "error": to_row(unit.error) if unit.error else None,
        "media": to_row(unit.media) if unit.media else None,
        "sampling": to_row(unit.sampling) if unit.sampling else None,
        "parts": [
            {
                "uri": redact_uri(part.uri),
                "media": to_row(part.media),
                "sampling": to_row(part.sampling),
            }
            for part in unit.parts
        ],
        **columns,
        "responses": _responses(unit, answers, questions),
        "timings": {
            "decode_seconds": unit.decode_seconds,
            "engine_seconds": unit.engine_seconds,
            "bytes_read": unit.bytes_read,
            "finished_at": max(now, key.started_at or now),
        },
        "attributes": unit.attributes,
    }


def _kind(unit: AnsweredUnit) -> str:
    """What the row is about, as ``RecipeIds`` names it."""
    if unit.messages is not None:
        return "messages"
    return unit.media.media_type if unit.media else "unread"


def _status(unit: AnsweredUnit, answers: Sequence[Answer]) -> str:
    if unit.error is not None:
        return UnitStatus.FAILED
    whole = (AnswerStatus.OK, AnswerStatus.REPAIRED)
    complete = all(answer.status in whole for answer in answers)
    return UnitStatus.OK if complete else UnitStatus.PARTIAL


def _responses(
    unit: AnsweredUnit,
    answers: list[tuple[RawAnswer, Answer]],
    questions: dict[str, Question],
) -> list[dict[str, Any]]:
    """Prompts and answers; for a failed unit its prompts only."""
    media_type = unit.media.media_type if unit.media else "image"

    def response(task: str) -> dict[str, Any]:
        question = questions[task]
        prompt = unit.messages or TASKS[question.task].prompt(question, media_type)
        return {"task": task, "prompt": prompt}

    if not answers:
        return [
            response(prompt.task) | {"status": AnswerStatus.FAILED, "note": "the unit failed"}
            for prompt in unit.prompts
        ]
    return [
        response(raw.task)
        | {
            # A vector is in its column; its text would take five times the space.
            "raw_text": None if questions[raw.task].is_vector else raw.raw_text,
            "reasoning": answer.reasoning,
            "finish_reason": raw.finish_reason,
            "num_prompt_tokens": raw.num_prompt_tokens,
            "num_output_tokens": raw.num_output_tokens,
            "attempts": raw.attempts,
            "status": answer.status,
            "note": answer.note,
        }
        for raw, answer in answers
    ]
