"""Validate an answer by a job's JSON Schema, within the answer's deadline.

The library ``jsonschema`` is not made for hostile values: a pattern of the schema may need
exponential time, unique items quadratic time.
"""

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema
import regex

from pipeline.tasks.answers.limits import (
    MAX_PATTERN_SECONDS,
    AnswerTooLongError,
    check_deadline,
    seconds_left,
)

_MAX_ERRORS = 20
"""Violations of one keyword, from which the best one is named; ``anyOf`` would collect all."""

Keyword = Callable[[Any, Any, Any, Any], Iterator[Any] | None]
"""A function of ``jsonschema``: validator, the keyword's value, the instance, the schema."""


def schema_violation(value: Any, schema: str) -> str | None:
    """Return where and how a JSON value violates a JSON Schema, given as text; None if it does not.

    Raises:
        AnswerTooLongError: the deadline has passed, or a pattern of the schema takes too long.
    """
    error = jsonschema.exceptions.best_match(_validator(schema).iter_errors(value))
    return None if error is None else f"{error.json_path}: {error.message}"


@functools.lru_cache(maxsize=64)
def _validator(schema: str) -> Any:
    loaded = json.loads(schema)
    known = jsonschema.validators.validator_for(loaded)
    own: dict[str, Keyword] = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties(known.VALIDATORS["additionalProperties"]),
        "uniqueItems": _unique_items,
        "anyOf": _alternatives(known.VALIDATORS["anyOf"]),
        "oneOf": _alternatives(known.VALIDATORS["oneOf"]),
    }
    keywords = {name: _limited(own.get(name, known.VALIDATORS[name])) for name in known.VALIDATORS}
    return jsonschema.validators.extend(known, keywords)(loaded)


def _limited(keyword: Keyword) -> Keyword:
    def limited(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
        check_deadline()
        errors = keyword(validator, value, instance, schema)
        return itertools.islice(errors or (), _MAX_ERRORS)

    return limited


# `regex` reads other braces than {3}, {3,} and {,3} as errors that are allowed: {e<=1}, {s}.
_BRACE = re.compile(r"(?<!\\)(?<!\\[pPN])\{(?!\d*,?\d*\})")


def _matches(pattern: str, text: str) -> bool:
    pattern = _BRACE.sub(r"\{", pattern)
    try:
        timeout = max(min(MAX_PATTERN_SECONDS, seconds_left()), 0.001)
        return regex.search(pattern, text, timeout=timeout) is not None
    except TimeoutError:
        what = f"the schema's pattern {pattern!r} takes too long"
        raise AnswerTooLongError(what) from None


def _pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[Any]:
    if validator.is_type(instance, "string") and not _matches(pattern, instance):
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


def _pattern_properties(
    validator: Any, patterns: dict[str, Any], instance: Any, schema: Any
) -> Iterator[Any]:
    if validator.is_type(instance, "object"):
        for pattern, subschema in patterns.items():
            for key, member in instance.items():
                if _matches(pattern, key):
                    yield from validator.descend(member, subschema, path=key, schema_path=pattern)


def _additional_properties(keyword: Keyword) -> Keyword:
    def without_patterns(
        validator: Any, value: Any, instance: Any, schema: Any
    ) -> Iterator[Any] | None:
        patterns = schema.get("patternProperties", ())
        if not patterns or not validator.is_type(instance, "object"):
            return keyword(validator, value, instance, schema)
        others = {
            key: member
            for key, member in instance.items()
            if not any(_matches(pattern, key) for pattern in patterns)
        }
        rest = {name: part for name, part in schema.items() if name != "patternProperties"}
        return keyword(validator, value, others, rest)

    return without_patterns


def _alternatives(keyword: Keyword) -> Keyword:
    """Try only the alternatives whose type a value has: each costs some 10 microseconds."""

    def of_the_type(
        validator: Any, alternatives: list[Any], instance: Any, schema: Any
    ) -> Iterator[Any] | None:
        possible = [part for part in alternatives if _may_be(validator, instance, part)]
        return keyword(validator, possible or alternatives, instance, schema)

    return of_the_type


def _may_be(validator: Any, instance: Any, schema: Any) -> bool:
    if not isinstance(schema, dict) or "$ref" in schema:  # before draft 2019-09, only it counts
        return True
    type_ = schema.get("type")
    return not isinstance(type_, str) or validator.is_type(instance, type_)


def _unique_items(validator: Any, is_wanted: bool, instance: Any, schema: Any) -> Iterator[Any]:
    if not is_wanted or not validator.is_type(instance, "array"):
        return
    if len({_identity(item) for item in instance}) < len(instance):
        yield jsonschema.ValidationError(f"{instance!r} has non-unique elements")


def _identity(value: Any) -> Any:
    """Return what is equal for equal JSON values: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, dict):
        return frozenset((key, _identity(member)) for key, member in value.items())
    if isinstance(value, list):
        return tuple(_identity(item) for item in value)
    return (bool, value) if isinstance(value, bool) else value
