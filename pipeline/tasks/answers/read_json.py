"""Read the JSON in an answer, even if it is broken or has text around it.

The strict decoder is tried first, so an answer without repairs is valid JSON. Otherwise the text is
read child by child. Valid children are kept exactly as written. Broken ones go to the library
``json_repair``, one at a time, so that a stray quote in one cannot swallow the next. A child that
is cut at the end of the text is dropped, because half a number is a wrong number: in
``[12, 30, 500, 60`` the last may have been ``600``. What was read in vain and what is repaired is
limited for each answer, by `JsonDecoder`.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from pipeline.tasks.answers.backslashes import escape_as_numbers, escape_text_backslashes
from pipeline.tasks.answers.decode_json import JsonDecoder, JsonObject, RepairTooLongError
from pipeline.tasks.answers.limits import MAX_NOTES, check_deadline
from schemas.task import AnswerStatus, Parsed

_MAX_NOTES = 5
_MAX_BROKEN_DEPTH = 16
_TOO_LONG = "the rest was left out, it is too much to repair"
_FENCE = re.compile(r"(?:\A|\n)[ \t]*```\w*")
# Brackets that can open a JSON value. Prose has brackets too: "[see below]", "{sic}".
_OPENING = re.compile(r"""\[(?=\s*+(?:[\[{"'\]\d-]|\Z))|\{(?=\s*+(?:["'}]|\w++\s*+:|\Z))""")
# Where a child with a mistake in it ends: before the next object, or before the next key.
_CHILD_END = {
    # Braces in a text, as LaTeX has, are not followed by a key.
    "[": re.compile(r"""\}\s*+(?:,\s*+)?(?=\{\s*+["'}]|\]\Z)"""),
    "{": re.compile(r"""["']\s*+,\s*+(?=["'][^"'\n]{1,64}["']\s*+:)"""),
}
_LIST_OF_CONTAINERS = re.compile(r"\[\s*+[\[{]")
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The JSON read from an answer.

    value: the JSON value, objects as `JsonObject`; None if there is none.
    note: what was repaired; None if the text is valid JSON, alone or in one code fence.
    damaged: the JSON was repaired or is cut, so an empty list may not mean "nothing there".
    truncated: the text seems to end before its JSON does.
    """

    value: Any
    note: str | None = None
    damaged: bool = False
    truncated: bool = False


def fenced(text: str) -> str:
    """Return JSON in a code fence, as the model writes it."""
    return f"```json\n{escape_as_numbers(text)}\n```"


def read_json(text: str, decoder: JsonDecoder | None = None) -> Reading:
    """Read the JSON value in ``text``; several values are joined into one list. Never raises.

    decoder: for several texts of one answer, which share its limits.
    """
    decoder = decoder or JsonDecoder()
    written = text.strip()
    text = escape_text_backslashes(written)
    notes = [] if text == written else ["backslashes repaired"]
    try:
        value = decoder.decode(text)
    except (ValueError, RecursionError):
        pass
    else:
        return Reading(value=value, note=_note(notes, decoder))
    values: list[Any] = []
    around: list[str] = []
    damaged = truncated = False
    fragments = [fragment.rstrip() for fragment in _FENCE.split(text)]
    for number, fragment in enumerate(fragments, start=1):
        at = 0
        while opening := _OPENING.search(fragment, at):
            check_deadline()
            around.append(fragment[at : opening.start()])
            part, at = _read_value(fragment, opening.start(), decoder)
            values.append(part.value)
            notes += [part.note] if part.note else []
            damaged |= part.damaged
            truncated = part.truncated and number == len(fragments)
        around.append(fragment[at:])
    if not values:
        return Reading(value=None, note="no JSON in the answer", damaged=True)
    if re.search(r"[^\s`]", re.sub(r"```\w*", "", "".join(around))):
        notes.append("text around the JSON was ignored")
    if len(values) > 1:
        notes.append(f"{len(values)} JSON values were joined")
        joined = [item if isinstance(item, list) else [item] for item in values]
        values = [[item for items in joined for item in items]]
    note = _note(notes, decoder)
    return Reading(value=values[0], note=note, damaged=damaged, truncated=truncated)


def _note(notes: list[str], decoder: JsonDecoder) -> str | None:
    more = ["a number that is not finite was read as null"] if decoder.has_null_numbers else []
    return "; ".join([*list(dict.fromkeys(notes))[:_MAX_NOTES], *more]) or None


def first_of(item: dict[str, Any], keys: tuple[str, ...], notes: Counter[str]) -> Any:
    """Return the value of the first key that ``item`` has; add a note if it is not ``keys[0]``."""
    for key in keys:
        if key in item:
            if key != keys[0]:
                notes[f"read {key!r} as {keys[0]!r}"] += 1
            return item[key]
    return None


def conclude(
    reading: Reading, elements: list[dict[str, Any]], num_seen: int, notes: Counter[str]
) -> Parsed:
    """Return the typed answer of a task whose value is a list.

    elements: the elements that could be read, of ``num_seen`` in the answer. No elements at all is
    the valid answer "nothing there"; if none could be read, the answer is `unparsed`.
    """
    note = "; ".join(filter(None, (reading.note, join_notes(notes)))) or None
    if not isinstance(reading.value, list | dict):
        note = note or "the answer is neither a list nor an object"
        return Parsed(value=None, status=AnswerStatus.UNPARSED, note=note)
    if not elements and (num_seen or reading.damaged):
        return Parsed(value=None, status=AnswerStatus.UNPARSED, note=note)
    status = AnswerStatus.REPAIRED if note else AnswerStatus.OK
    return Parsed(value=elements, status=status, note=note)


def join_notes(notes: Counter[str]) -> str | None:
    """Return the notes as one text, ``note (2x)`` for repeated ones; None if there are none."""
    shown = list(notes.items())[:MAX_NOTES]
    parts = [f"{note} ({count}x)" if count > 1 else note for note, count in shown]
    if len(notes) > MAX_NOTES:
        parts.append(f"and {len(notes) - MAX_NOTES:,} other notes")
    return "; ".join(parts) or None


def text_of(value: Any) -> str | None:
    """Return ``value`` as stripped text that Arrow can hold; None if it is blank or no text.

    Numbers become text and lists of texts are joined, since models write ``"label": 7`` too.
    """
    if isinstance(value, list):
        parts = [text_of(item) if isinstance(item, str | int | float) else None for item in value]
        return ", ".join(part for part in parts if part) or None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return clean_text(str(value)).strip() or None
    except ValueError:  # an int of more than 4300 digits
        return None


def clean_text(text: str) -> str:
    """Replace lone surrogates, which a UTF-8 column cannot hold, with U+FFFD; NUL stays."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _read_value(text: str, start: int, decoder: JsonDecoder) -> tuple[Reading, int]:
    """Read the list or object that opens at ``start``; also return where it ends."""
    try:
        value, end = decoder.decode_at(text, start)
    except (ValueError, RecursionError, RepairTooLongError):
        return _read_broken(text[start:], decoder, start), len(text)
    return Reading(value=value), end


def _read_broken(text: str, decoder: JsonDecoder, offset: int, depth: int = 0) -> Reading:
    """Read a list or object that is not valid JSON: its valid children, and the others repaired.

    offset: where ``text`` begins in the answer, for notes.
    """
    opener = text[0]
    closer = "]" if opener == "[" else "}"
    children: list[Any] = []
    notes: list[str] = []
    truncated = False
    at = 1
    while True:
        check_deadline()
        at = _skip_space(text, at)
        try:
            child, end = _read_child(text, at, decoder, opener == "[")
            after = _skip_space(text, end)
            if text[end - 1] == '"' and after < len(text) and text[after] != ",":
                # In `"caption": "He says "hi""` the text does not end here: keep none of it.
                raise json.JSONDecodeError("Expecting ',' delimiter", text, after)
            children.append(child)
            at = after
            if not text.startswith(",", at):
                raise json.JSONDecodeError("Expecting ',' delimiter", text, at)
            at += 1
            continue
        except _BrokenListError as broken:
            if depth == _MAX_BROKEN_DEPTH:
                notes.append("the rest was left out, it nests too deeply to repair")
                break
            # `{"events": [...` is broken inside the list: keep the valid children of that list too.
            start = broken.start
            inner = _read_broken(text[start:], decoder, offset + start, depth + 1)
            return replace(inner, value=JsonObject([*children, (broken.key, inner.value)]))
        except RepairTooLongError:
            notes.append(_TOO_LONG)
            break
        except (ValueError, RecursionError) as error:
            fault = error
        if _is_cut(text, fault, closer):
            left_out = "; its last, incomplete part was left out" if at < len(text) else ""
            notes.append(f"the JSON is cut{left_out}")
            truncated = True
            break
        if not notes:
            what = fault.msg if isinstance(fault, json.JSONDecodeError) else type(fault).__name__
            notes.append(f"JSON repaired from character {offset + at} on ({what})")
        child_end = _CHILD_END[opener].search(text, at)
        piece = text[at : child_end.start() + 1] + closer if child_end else text[at:]
        try:
            repaired, is_cut = decoder.repair(opener, piece)
        except RepairTooLongError:
            notes.append(_TOO_LONG)
            break
        if child_end:
            children += repaired
            # A fault costs the decoder the text before it, which it counts lines in.
            text, offset, at = text[child_end.end() :], offset + child_end.end(), 0
            continue
        truncated = is_cut
        children += repaired[:-1] if is_cut else repaired
        notes += ["it is cut, and its last, incomplete part was left out"] if is_cut else []
        break
    value = children if opener == "[" else JsonObject(children)
    return Reading(value=value, note="; ".join(notes), damaged=True, truncated=truncated)


def _read_child(text: str, at: int, decoder: JsonDecoder, is_list: bool) -> tuple[Any, int]:
    """Read one list item or (key, value) at ``at``; also return where it ends."""
    if is_list:
        child, end = decoder.decode_at(text, at)
        if end == len(text) and isinstance(child, int | float):
            raise json.JSONDecodeError("Number may be cut", text, end)
        return child, end
    key, end = decoder.decode_at(text, at)
    colon = _skip_space(text, end)
    if not isinstance(key, str) or not text.startswith(":", colon):
        raise json.JSONDecodeError("Expecting ':' delimiter", text, colon)
    at = _skip_space(text, colon + 1)
    try:
        value, end = decoder.decode_at(text, at)
    except (ValueError, RecursionError):
        if _LIST_OF_CONTAINERS.match(text, at):
            raise _BrokenListError(key, at) from None
        raise
    if end == len(text) and isinstance(value, int | float):
        raise json.JSONDecodeError("Number may be cut", text, end)
    return (key, value), end


def _is_cut(text: str, fault: Exception, closer: str) -> bool:
    """Return whether the text only ends too early, without another mistake in it."""
    if not isinstance(fault, json.JSONDecodeError) or text.endswith(closer):
        return False
    # 6 characters are the longest incomplete token besides a string: `false`, `\ud83d`
    return fault.msg.startswith("Unterminated string") or len(text) - fault.pos <= 6


def _skip_space(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]  # it matches the empty string


class _BrokenListError(Exception):
    """The value of ``key`` is a list of containers, opened at ``start``, that is not valid JSON."""

    def __init__(self, key: str, start: int) -> None:
        super().__init__(key)
        self.key = key
        self.start = start
