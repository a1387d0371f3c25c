"""Say what is wrong with a job file in its own words, never with its secrets."""

import difflib
import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

_SECRET_KEYS = ("storage_options",)
_UNION_TAG = re.compile(r"(constrained-)?(int|float)\Z|literal\[")  # pydantic's, in its locations


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Turn pydantic's findings into one line for each wrong key, in the file's order.

    Values are shown where they are plain; mappings, which may hold secrets, are not.
    """
    problems: dict[str, list[str]] = {}
    got: dict[str, str] = {}
    findings = error.errors(include_url=False)
    for found in findings:
        # A list is called empty too where its elements are wrong: those alone are told.
        if found["type"] == "too_short" and any(
            _is_inside(f["loc"], found["loc"]) for f in findings
        ):
            continue
        keys = [str(part) for part in found["loc"] if not _UNION_TAG.match(str(part))]
        where = ".".join(keys) or "the job"
        message = _message(found, model)
        if message not in problems.setdefault(where, []):
            problems[where].append(message)
        if _may_be_shown(found):
            got[where] = f" (got {str(found['input'])[:80]!r})"
    lines = [f"  {key}: {' or '.join(texts)}{got.get(key, '')}" for key, texts in problems.items()]
    return "\n".join(lines)


def _is_inside(loc: tuple[int | str, ...], outer: tuple[int | str, ...]) -> bool:
    return len(loc) > len(outer) and loc[: len(outer)] == outer


def _may_be_shown(found: Any) -> bool:
    is_plain = isinstance(found["input"], str | int | float | None)
    is_about_key = found["type"] in ("extra_forbidden", "missing")
    return is_plain and not is_about_key and not _in_secrets(found["loc"])


def _in_secrets(loc: tuple[int | str, ...]) -> bool:
    return bool(loc) and loc[0] in _SECRET_KEYS


def _message(found: Any, model: type[BaseModel]) -> str:
    kind = found["type"]
    if kind == "extra_forbidden":
        page = "finetune-file" if "training" in model.model_fields else "job-file"
        return f"unknown key{_meant(found['loc'], model)}; see docs/{page}.md for the known ones"
    if kind == "missing":
        return "required"
    if kind in ("model_type", "dict_type"):
        return "must be a mapping, `key: value`"
    if kind == "tuple_type":
        return "must be a list, such as [a, b]"
    if kind == "too_short":
        return f"must have at least {found['ctx']['min_length']}"
    text = str(found["msg"]).removeprefix("Value error, ")
    return text.replace("Input should", "must").replace("String should", "must")


def _meant(loc: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """Name the known key that looks like an unknown one."""
    sections = list(_sections(loc[:-1], model))
    names = list(sections[-1].model_fields) if sections else []
    near = difflib.get_close_matches(str(loc[-1]), names, n=1, cutoff=0.6)
    if not near and len(loc) == 1:  # it may be right, but of a section
        near = [
            f"{name}.{loc[0]}"
            for name, field in model.model_fields.items()
            if loc[0] in getattr(field.annotation, "model_fields", ())
        ]
    return f", did you mean {near[0]!r}?" if near else ""


def _sections(loc: tuple[int | str, ...], model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield the models on the way to ``loc``, the outermost first."""
    yield model
    for part in loc:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(part)
        inner = next(_models(field.annotation), None) if field else None
        if inner is None:
            return
        model = inner
        yield model


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the pydantic models in a type, such as those of a tuple's elements."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models(inner)
