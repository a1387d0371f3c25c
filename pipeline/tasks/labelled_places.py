"""What the tasks have in common that look for things by their labels."""

from typing import Any

from pipeline.tasks.named_places import Place, read_named_places, write_named_places
from schemas.task import Parsed, Question, View


def things_asked(question: Question, media_type: str) -> str:
    """Which things a prompt asks for: those of the labels, or all."""
    if not question.labels:
        return f"every object in the {media_type}"
    labels = ", ".join(question.labels)
    return f'every instance that belongs to the following categories: "{labels}"'


def read_labelled(answer: str, question: Question, view: View, *, place: Place) -> Parsed:
    """Read ``[{"bbox_2d": [..], "label": ..}]``; absent categories are simply not listed."""
    return read_named_places(
        answer,
        view,
        place,
        text_name="label",
        text_keys=("label", "name", "category", "text"),
        text_if_missing=question.labels[0] if len(question.labels) == 1 else None,
    )


def write_labelled(
    value: list[dict[str, Any]], question: Question, view: View, *, place: Place
) -> str:
    """Write the answer that ``read_labelled`` reads, of the things that are asked for."""
    asked = [e for e in value if not question.labels or e["label"] in question.labels]
    return write_named_places(asked, view, place, text_name="label", text_key="label")
