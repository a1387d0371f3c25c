"""Read training data: the reference's JSON conversations, or a Reelscribe table.

One example in, one conversation or one named problem out; nothing is dropped without a word.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.manifest_item import PROTOCOL, resolve
from pipeline.parse import TASKS
from pipeline.storage import Storage, join, shown
from schemas.conversation import Conversation, DataProblem, ProblemType, Turn
from schemas.errors import ManifestError
from schemas.finetune import DataSpec
from schemas.manifest import MEDIA_TYPES, MediaItem, default_media_id, guess_media_type
from schemas.task import View
from schemas.task_spec import TaskSpec, asked_questions

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_TAG = re.compile(r"(<image>|<video>)")
_COLUMNS = (
    *("uri", "frames", "sample_fps", "media_id", "media", "sampling", "media_type"),
    *("width", "height", "start_seconds", "end_seconds"),
)
"""What is read of a table, beside the columns of the tasks."""
_SLACK_PIXELS = 1.0  # annotation tools round up, or count pixels from 1
_ROW = "reelscribe_row"
_SURROGATE = re.compile("[\ud800-\udfff]")

Example = Conversation | DataProblem


class _RowError(Exception):
    """One row is wrong; ``type`` says how."""

    def __init__(self, type_: ProblemType, message: str) -> None:
        super().__init__(message)
        self.type = type_


def read_data(spec: DataSpec, storage: Storage) -> list[Example]:
    """Read one data set, in its order.

    Raises:
        ManifestError: it is missing, or not in its format as a whole.
        StorageError: the bucket or the credentials do not work.
    """
    if spec.conversations is not None:
        return list(_read_conversations(spec, storage))
    return list(_read_annotations(spec, storage))


def read_rows(uri: str, storage: Storage) -> Iterator[tuple[str, Any]]:
    """Read the rows of a JSON or JSONL file as they are, each with its origin.

    A line that is no JSON comes as the exception that says why.

    Raises:
        ManifestError: the file is missing or empty, or no valid JSON as a whole.
        StorageError: the bucket or the credentials do not work.
    """
    name = shown(uri)
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except FileNotFoundError:
        share = "; a share is a number over 0, such as captions.jsonl%50" if "%" in name else ""
        raise ManifestError(f"{name} does not exist{share}") from None
    except UnicodeDecodeError as error:
        raise ManifestError(f"{name} is not UTF-8 text: {error.reason}") from None
    for place, row in _rows(text, name):
        yield f"{name}:{place}", row


def media_base(spec: DataSpec) -> str:
    """Where relative media paths of a data set start."""
    if spec.media_folder:
        return spec.media_folder
    uri = spec.conversations or spec.annotations or ""
    is_folder = spec.annotations is not None and not uri.lower().endswith(".parquet")
    return uri.rstrip("/") if is_folder else _folder(uri)


def _read_conversations(spec: DataSpec, storage: Storage) -> Iterator[Example]:
    assert spec.conversations is not None
    for origin, row in read_rows(spec.conversations, storage):
        try:
            yield _conversation(row, media_base(spec), origin)
        except _RowError as error:
            yield DataProblem(origin=origin, type=error.type, message=str(error))


def _rows(text: str, name: str) -> Iterator[tuple[int, Any]]:
    """The rows of a JSON list, by position, or of JSON lines, by line number; both from 1."""
    if text.lstrip().startswith("["):
        try:
            yield from enumerate(json.loads(text), start=1)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{name} is not valid JSON: {error}") from None
        return
    # Not splitlines: JSON may hold U+2028 and other line breaks of Unicode as they are.
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
        raise _RowError(ProblemType.BAD_ROW, f"not valid JSON: {row}")
    if not isinstance(row, dict) or not isinstance(row.get("conversations"), list):
        raise _RowError(ProblemType.BAD_ROW, "needs `conversations`, a list of turns")
    base = _absolute(row["data_path"], base) if isinstance(row.get("data_path"), str) else base
    media = {
        f"<{kind}>": [_item(path, kind, base) for path in _paths(row, kind)]
        for kind in ("image", "video")
    }
    ordered: list[MediaItem] = []
    turns = [_turn(turn, media, ordered) for turn in row["conversations"]]
    for tag, unused in media.items():
        if unused:
            raise _RowError(
                ProblemType.TAG_MISMATCH,
                f"{len(unused)} more files than {tag} tags, first {shown(unused[0].uri)}",
            )
    _check_turns(turns)
    return Conversation(origin=origin, media=tuple(ordered), turns=tuple(turns))


def _paths(row: dict[str, Any], kind: str) -> list[Any]:
    value = row.get(f"{kind}s") if row.get(kind) is None else row[kind]
    return [] if value is None else value if isinstance(value, list) else [value]


def _item(path: Any, kind: str, base: str) -> MediaItem:
    """A file; a video may be a list of its frames too."""
    if kind == "video" and isinstance(path, list) and path:
        frames = tuple(_absolute(frame, base) for frame in path)
        media_id = default_media_id(frames)
        return MediaItem(media_id=media_id, uri=frames[0], frames=frames, media_type=kind)
    uri = _absolute(path, base)
    return MediaItem(media_id=default_media_id([uri]), uri=uri, media_type=kind)


def _absolute(path: Any, base: str) -> str:
    if not isinstance(path, str) or not path:
        raise _RowError(ProblemType.BAD_ROW, f"a media path must be text, got {path!r:.80}")
    return resolve(path, base)


def _turn(turn: Any, media: dict[str, list[MediaItem]], ordered: list[MediaItem]) -> Turn:
    """Read a turn, taking its tags' files from ``media`` into ``ordered``."""
    if not isinstance(turn, dict):
        raise _RowError(ProblemType.BAD_ROW, f"a turn must be an object, got {turn!r:.80}")
    said_by = turn.get("from", turn.get("role"))
    text = turn.get("value", turn.get("content"))
    role = "system" if said_by == "system" else _ROLES.get(str(said_by))
    if role is None or not isinstance(text, str):
        raise _RowError(
            ProblemType.BAD_ROW,
            "a turn needs `from` (human, gpt or system) and `value` (text), got from "
            f"{said_by!r:.40} and a value that is {_kind(text)}",
        )
    if _SURROGATE.search(text):
        raise _RowError(ProblemType.BAD_ROW, "a text has half a character (a lone surrogate)")
    if role != "user":
        return Turn(role=role, parts=(text,))
    parts: list[str | int] = []
    for piece in _TAG.split(text):
        if piece in media:
            if not media[piece]:
                raise _RowError(ProblemType.TAG_MISMATCH, f"more {piece} tags than files")
            ordered.append(media[piece].pop(0))
            parts.append(len(ordered) - 1)
        elif piece.strip():
            parts.append(piece.strip())  # as the reference does: "<image>\nWhat is this?"
    return Turn(role=role, parts=tuple(parts))


def _kind(value: Any) -> str:
    kinds = {str: "text", list: "a list", dict: "an object", type(None): "missing"}
    return kinds.get(type(value), "no text")


def _check_turns(turns: list[Turn]) -> None:
    roles = [turn.role for turn in turns]
    talk = roles[1:] if roles[:1] == ["system"] else roles
    if not talk or talk != ["user", "assistant"] * (len(talk) // 2):
        raise _RowError(
            ProblemType.BAD_ROW,
            f"turns must go human, gpt, human, gpt, ... after at most one system turn, got {roles}",
        )
    if any(not str(turn.parts[0]).strip() for turn in turns if turn.role == "assistant"):
        raise _RowError(ProblemType.NO_ANSWER, "an answer is empty")


def _read_annotations(spec: DataSpec, storage: Storage) -> Iterator[Example]:
    """Each task of each row is a conversation; those of one row come one after another."""
    assert spec.annotations is not None
    name = shown(spec.annotations)
    table, columns = _query(spec, storage)
    if missing := [task.name for task in spec.tasks if task.name not in columns]:
        raise ManifestError(f"{name} has no column {missing}; it has {columns}")
    if "uri" not in columns:
        raise ManifestError(f"{name} has no column uri; it has {columns}")
    base = media_base(spec)
    for row in table:
        k = row[_ROW]
        for task in spec.tasks:
            if row[task.name] is None:
                continue
            origin = f"{name}:{k}/{task.name}"
            try:
                yield _answered(row, task, base, origin)
            except _RowError as error:
                yield DataProblem(origin=origin, type=error.type, message=str(error))
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                # The table may be anyone's, its columns of any type.
                message = f"{task.name} does not have the column's form: {error!r}"
                yield DataProblem(origin=origin, type=ProblemType.BAD_ROW, message=message)


def _query(spec: DataSpec, storage: Storage) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows that ``where`` selects, as DuckDB reads the condition, in the table's order."""
    import duckdb
    import pyarrow as pa
    import pyarrow.dataset as ds

    assert spec.annotations is not None
    name = shown(spec.annotations)
    fs, path = storage.filesystem(spec.annotations)
    files = [storage.filesystem(file)[1] for file in _parquet_files(spec.annotations, storage)]
    try:
        data = ds.dataset(files or [path], filesystem=fs, format="parquet", partitioning="hive")
        annotations = data.to_table()
    except FileNotFoundError:
        raise ManifestError(f"{name} does not exist, or holds no Parquet files") from None
    except (OSError, ValueError) as error:
        raise ManifestError(f"{name} is not a Parquet table: {error}") from None
    # What is told of a row names its place in the table, whatever `where` selects.
    annotations = annotations.append_column(_ROW, pa.array(range(1, annotations.num_rows + 1)))
    if spec.where is not None:
        with duckdb.connect() as connection:
            connection.execute("SET enable_external_access = false")
            connection.register("annotations", annotations)
            try:
                # Not SQL put together: a condition cannot end in a statement of its own.
                chosen = connection.view("annotations").filter(spec.where)
                annotations = chosen.to_arrow_table()
            except duckdb.Error as error:
                raise ManifestError(f"where: {error}") from None
    names = annotations.column_names
    needed = {*_COLUMNS, _ROW, *(task.name for task in spec.tasks)}
    rows = annotations.select([n for n in names if n in needed]).to_pylist()
    return rows, [name for name in names if name != _ROW]


def _parquet_files(uri: str, storage: Storage) -> list[str]:
    """The files of a folder of Parquet, or of the annotations in an output folder."""
    for folder in (join(uri, "annotations"), uri):
        if found := storage.list_files(folder, "**/*.parquet"):
            return [file["uri"] for file in found]
    return []


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What a row says of its media."""

    media_type: str
    width: int
    height: int
    start_seconds: float | None
    end_seconds: float | None
    frames: tuple[str, ...]
    sample_fps: float | None


def _facts(row: dict[str, Any]) -> _Facts:
    media, sampling = row.get("media") or row, row.get("sampling") or row
    frames = tuple(row.get("frames") or ())
    if media.get("container") == "frames" and not frames:
        raise _RowError(
            ProblemType.BAD_ROW, "a video given as frames: add the manifest's column `frames`"
        )
    guessed = "video" if frames else guess_media_type(str(row["uri"]))
    media_type = media.get("media_type") or guessed
    if media_type not in MEDIA_TYPES:
        raise _RowError(ProblemType.BAD_ROW, f"media_type must be image or video: {media_type!r}")
    is_video = media_type == "video"
    return _Facts(
        media_type=media_type,
        width=int(media.get("width") or 0),
        height=int(media.get("height") or 0),
        start_seconds=sampling.get("start_seconds") if is_video else None,
        end_seconds=sampling.get("end_seconds") if is_video else None,
        frames=frames,
        sample_fps=(row.get("sample_fps") or sampling.get("sample_fps")) if frames else None,
    )


def _answered(row: dict[str, Any], task: TaskSpec, base: str, origin: str) -> Conversation:
    """A row's answer to one task, as a conversation: the pipeline's question, the column's text."""
    facts = _facts(row)
    definition = TASKS[task.name]
    if facts.media_type not in definition.media_types:
        kinds = " or ".join(sorted(definition.media_types))
        raise _RowError(ProblemType.BAD_ROW, f"{task.name} is asked of {kinds} only")
    value = row[task.name]
    places = list(_places(value))
    if places and not (facts.width and facts.height):
        raise _RowError(ProblemType.BAD_ROW, "boxes and points need the media's width and height")
    _check_places(places, facts)
    # As the annotate job asks it.
    (question,) = asked_questions([task])
    view = View(
        media_type=facts.media_type,
        width=facts.width,
        height=facts.height,
        start_seconds=facts.start_seconds,
        end_seconds=facts.end_seconds,
    )
    answer = definition.write(value, question, view)
    if not answer.strip():
        raise _RowError(
            ProblemType.NO_ANSWER,
            f"{task.name} is empty: give it what the model is to say, such as 'There is no text.', "
            "or null to leave it out",
        )
    frames = tuple(_absolute(frame, base) for frame in facts.frames)
    uri = frames[0] if frames else _absolute(row["uri"], base)
    item = MediaItem(
        media_id=row.get("media_id") or default_media_id(frames or [uri]),
        uri=uri,
        frames=frames,
        sample_fps=facts.sample_fps,
        media_type=facts.media_type,
        start_seconds=None if frames else facts.start_seconds,
        end_seconds=None if frames else facts.end_seconds,
    )
    asked = Turn(role="user", parts=(0, definition.prompt(question, facts.media_type)))
    said = Turn(role="assistant", parts=(answer,))
    return Conversation(origin=origin, media=(item,), turns=(asked, said))


def _places(value: Any) -> Iterator[dict[str, float]]:
    """The boxes and points in pixels in a task's answer, at any depth."""
    if isinstance(value, dict):
        for key, member in value.items():
            if key in ("box", "point") and isinstance(member, dict):
                yield member
            else:
                yield from _places(member)
    elif isinstance(value, list):
        for item in value:
            yield from _places(item)


def _check_places(places: list[dict[str, float]], facts: _Facts) -> None:
    """Refuse what lies outside the picture: cut to it, it would teach a wrong place."""
    sides = {"x": facts.width, "y": facts.height}
    for place in places:
        if any(not -_SLACK_PIXELS <= at <= sides[k[0]] + _SLACK_PIXELS for k, at in place.items()):
            raise _RowError(
                ProblemType.BAD_BOX,
                f"{[round(at, 1) for at in place.values()]} is outside of the {facts.width} x "
                f"{facts.height} pixels that the row gives its media",
            )


def _folder(uri: str) -> str:
    """The folder of a file: where its relative paths start."""
    protocol = PROTOCOL.match(uri)
    head = protocol[0] if protocol else ""
    return head + uri.removeprefix(head).rpartition("/")[0]
