"""Read conversations in the format of the model's reference code, JSON or JSON lines.

Source: ``qwen-vl-finetune`` of the Qwen3-VL repository.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from pipeline.manifest.uris import without_slash
from pipeline.storage.storage import Storage
from pipeline.training.data.examples import Example, RowError, media_base, media_uri
from schemas.conversation import Conversation, DataProblem, ProblemType, Turn
from schemas.errors import ManifestError
from schemas.job.finetune import DataSpec
from schemas.shown import redact_uri
from schemas.tables.manifest import MediaItem, default_media_id

_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
_TAG = re.compile(r"(<image>|<video>)")
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_conversations(spec: DataSpec, storage: Storage) -> Iterator[Example]:
    """Read each row as a conversation, or as a problem.

    Raises:
        ManifestError: the file is missing or empty, or not valid JSON as a whole.
        StorageError: the bucket or the credentials do not work.
    """
    assert spec.conversations is not None
    for origin, row in read_rows(spec.conversations, storage):
        try:
            yield _conversation(row, media_base(spec), origin)
        except RowError as error:
            yield DataProblem(origin=origin, type=error.type, message=str(error))


def read_rows(uri: str, storage: Storage) -> Iterator[tuple[str, Any]]:
    """Read the rows of a JSON or JSONL file unchanged, each with its origin (``file:number``).

    A line that is not valid JSON gives the exception as its row.

    Raises:
        ManifestError: the file is missing or empty, or not valid JSON as a whole.
        StorageError: the bucket or the credentials do not work.
    """
    name = redact_uri(uri)
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except FileNotFoundError:
        share = "; a share is a number over 0, such as captions.jsonl%50" if "%" in name else ""
        raise ManifestError(f"{name} does not exist{share}") from None
    except UnicodeDecodeError as error:
        raise ManifestError(f"{name} is not UTF-8 text: {error.reason}") from None
    for number, row in _numbered_rows(text, name):
        yield f"{name}:{number}", row


def _numbered_rows(text: str, name: str) -> Iterator[tuple[int, Any]]:
    """The rows of a JSON list with their positions, or of JSON lines with their line numbers."""
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{name} is not valid JSON: {error}") from None
        yield from enumerate(rows, start=1)
        return
    # Not splitlines: JSON may contain U+2028 and other Unicode line breaks unescaped.
    lines = [(k, line) for k, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise ManifestError(f"{name} has no rows")
    for k, line in lines:
        try:
            yield k, json.loads(line)
        except (ValueError, RecursionError) as error:
            yield k, error


def _conversation(row: Any, base: str, origin: str) -> Conversation:
    if isinstance(row, Exception):
        raise RowError(ProblemType.BAD_ROW, f"not valid JSON: {row}")
    if not isinstance(row, dict) or not isinstance(row.get("conversations"), list):
        raise RowError(ProblemType.BAD_ROW, "needs `conversations`, a list of turns")
    if isinstance(row.get("data_path"), str):
        base = without_slash(media_uri(row["data_path"], base))
    unused = {
        f"<{kind}>": [_item(path, kind, base) for path in _paths(row, kind)]
        for kind in ("image", "video")
    }
    media: list[MediaItem] = []
    turns = [_turn(turn, unused, media) for turn in row["conversations"]]
    for tag, items in unused.items():
        if items:
            raise RowError(
                ProblemType.TAG_MISMATCH,
                f"{len(items)} more files than {tag} tags, first {redact_uri(items[0].uri)}",
            )
    _check_turns(turns)
    return Conversation(origin=origin, media=tuple(media), turns=tuple(turns))


def _paths(row: dict[str, Any], kind: str) -> list[Any]:
    value = row.get(f"{kind}s") if row.get(kind) is None else row[kind]
    return [] if value is None else value if isinstance(value, list) else [value]


def _item(path: Any, kind: str, base: str) -> MediaItem:
    """The item of a file, or of a video that is given as a list of frames."""
    if kind == "video" and isinstance(path, list) and path:
        frames = tuple(media_uri(frame, base) for frame in path)
        media_id = default_media_id(frames)
        return MediaItem(media_id=media_id, uri=frames[0], frames=frames, media_type=kind)
    uri = media_uri(path, base)
    return MediaItem(media_id=default_media_id([uri]), uri=uri, media_type=kind)


def _turn(turn: Any, unused: dict[str, list[MediaItem]], media: list[MediaItem]) -> Turn:
    """Read a turn; moves the items of its tags from ``unused`` to ``media``."""
    if not isinstance(turn, dict):
        raise RowError(ProblemType.BAD_ROW, f"a turn must be an object, got {turn!r:.80}")
    speaker = turn.get("from", turn.get("role"))
    text = turn.get("value", turn.get("content"))
    role = _ROLES.get(str(speaker))
    if role is None or not isinstance(text, str):
        raise RowError(
            ProblemType.BAD_ROW,
            "a turn needs `from` (human, gpt or system) and `value` (text), got from "
            f"{speaker!r:.40} and a value that is {_kind(text)}",
        )
    if _SURROGATE.search(text):
        raise RowError(ProblemType.BAD_ROW, "a text has half a character (a lone surrogate)")
    if role != "user":
        return Turn(role=role, parts=(text,))
    parts: list[str | int] = []
    for piece in _TAG.split(text):
        if piece in unused:
            if not unused[piece]:
                raise RowError(ProblemType.TAG_MISMATCH, f"more {piece} tags than files")
            media.append(unused[piece].pop(0))
            parts.append(len(media) - 1)
        elif piece.strip():
            parts.append(piece.strip())  # as the reference does: "<image>\nWhat is this?"
    return Turn(role=role, parts=tuple(parts))


def _kind(value: Any) -> str:
    kinds = {str: "text", list: "a list", dict: "an object", type(None): "missing"}
    return kinds.get(type(value), "not text")


def _check_turns(turns: list[Turn]) -> None:
    roles = [turn.role for turn in turns]
    talk = roles[1:] if roles[:1] == ["system"] else roles
    if not talk or talk != ["user", "assistant"] * (len(talk) // 2):
        raise RowError(
            ProblemType.BAD_ROW,
            f"turns must go human, gpt, human, gpt, ... after at most one system turn, got {roles}",
        )
    if any(not str(turn.parts[0]).strip() for turn in turns if turn.role == "assistant"):
        raise RowError(ProblemType.NO_ANSWER, "an answer is empty")
