"""Chat: the answer to a conversation of the manifest, its ``messages``."""

import dataclasses

import pyarrow as pa

from pipeline.tasks import caption
from schemas.task import Question


def _prompt(question: Question, media_type: str) -> str:
    return question.prompt or ""


TASK = dataclasses.replace(
    caption.TASK,
    name="chat",
    version=1,
    media_types=frozenset({"messages"}),
    column=pa.field("chat", pa.string(), metadata={"description": "answer to the messages"}),
    prompt=_prompt,
)
