"""Read a table of annotations: each task of each row becomes a conversation.

The question is the pipeline's own; the answer is the text of the task's column as the model would
write it.
"""

from collections.abc import Iterator
from typing import Any

from pipeline.storage.storage import Storage, join
from pipeline.tasks.registry import TASKS
from pipeline.training.data.answer_boxes import SLACK_PIXELS
from pipeline.training.data.examples import Example, RowError, media_base, media_uri
from schemas.conversation import Conversation, DataProblem, ProblemType, Turn
from schemas.errors import ManifestError
from schemas.job.finetune import DataSpec
from schemas.job.task_spec import TaskSpec, task_questions
from schemas.shown import redact_uri
from schemas.tables.annotation import ANNOTATIONS, PIECES
from schemas.tables.manifest import MEDIA_TYPES, MediaItem, default_media_id, guess_media_type
from schemas.task import View

_COLUMNS = (
    *("uri", "frames", "sample_fps", "media_id", "media", "sampling", "media_type"),
    *("width", "height", "start_seconds", "end_seconds"),
)
"""Columns that are read in addition to those of the tasks."""

_ROW = "reelscribe_row"


def read_annotations(spec: DataSpec, storage: Storage) -> Iterator[Example]:
    """Read the tasks' answers that are not null, row by row.

    Raises:
        ManifestError: the table is missing, not Parquet, or lacks a column, or ``where`` is wrong.
        StorageError: the bucket or the credentials do not work.
    """
    assert spec.annotations is not None
    name = redact_uri(spec.annotations)
    rows, columns = _query(spec, storage)
    if missing := [task.name for task in spec.tasks if task.name not in columns]:
        raise ManifestError(f"{name} has no column {missing}; it has {columns}")
    if "uri" not in columns:
        raise ManifestError(f"{name} has no column uri; it has {columns}")
    base = media_base(spec)
    for row in rows:
        for task in spec.tasks:
            if row[task.name] is None:
                continue
            origin = f"{name}:{row[_ROW]}/{task.name}"
            try:
                yield _conversation(row, task, base, origin)
            except RowError as error:
                yield DataProblem(origin=origin, type=error.type, message=str(error))
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                # The table may be anyone's, with columns of any type.
                message = f"{task.name} does not have the column's form: {error!r}"
                yield DataProblem(origin=origin, type=ProblemType.BAD_ROW, message=message)


def _query(spec: DataSpec, storage: Storage) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows that ``where`` selects, in the table's order, and the names of its columns."""
    import duckdb
    import pyarrow as pa
    import pyarrow.dataset as ds

    assert spec.annotations is not None
    name = redact_uri(spec.annotations)
    fs, path = storage.filesystem(spec.annotations)
    files = [storage.filesystem(file)[1] for file in _parquet_files(spec.annotations, storage)]
    try:
        data: Any = ds.dataset(
            files or [path], filesystem=fs, format="parquet", partitioning="hive"
        )
        # Later files may have more columns, and more members in a column: named questions do.
        schemas = [data.schema, *(part.physical_schema for part in data.get_fragments())]
        schema = pa.unify_schemas(schemas, promote_options="permissive")
        annotations = data.replace_schema(schema).to_table()
    except FileNotFoundError:
        raise ManifestError(f"{name} does not exist, or holds no Parquet files") from None
    except (OSError, ValueError) as error:
        raise ManifestError(f"{name} is not a Parquet table: {error}") from None
    # Messages name a row by its place in the table, whatever `where` selects.
    annotations = annotations.append_column(_ROW, pa.array(range(1, annotations.num_rows + 1)))
    if spec.where is not None:
        with duckdb.connect() as connection:
            connection.execute("SET enable_external_access = false")
            connection.register("annotations", annotations)
            try:
                # `filter` parses one condition: it cannot contain a second statement.
                chosen = connection.view("annotations").filter(spec.where)
                annotations = chosen.to_arrow_table()
            except duckdb.Error as error:
                raise ManifestError(f"where: {error}") from None
    names = annotations.column_names
    needed = {*_COLUMNS, _ROW, *(task.name for task in spec.tasks)}
    rows = annotations.select([n for n in names if n in needed]).to_pylist()
    return rows, [name for name in names if name != _ROW]


def _parquet_files(uri: str, storage: Storage) -> list[str]:
    """The Parquet files of a folder, or of the annotations in an output folder, pieces first."""
    for folders in ((join(uri, PIECES), join(uri, ANNOTATIONS)), (uri,)):
        listed = [file for one in folders for file in storage.list_files(one, "**/*.parquet")]
        uris = [file["uri"] for file in listed]
        if found := [uri for uri in uris if not uri.rpartition("/")[2].startswith((".", "_"))]:
            return found
    return []


def _conversation(row: dict[str, Any], task: TaskSpec, base: str, origin: str) -> Conversation:
    frames = tuple(media_uri(frame, base) for frame in row.get("frames") or ())
    view = _view(row, has_frames=bool(frames))
    definition = TASKS[task.task]
    if view.media_type not in definition.media_types:
        kinds = " or ".join(sorted(definition.media_types))
        raise RowError(ProblemType.BAD_ROW, f"{task.name} is a task for {kinds} only")
    value = row[task.name]
    _check_places(list(_places(value)), view)
    (question,) = task_questions([task])
    answer = definition.write(value, question, view)
    if not answer.strip():
        raise RowError(
            ProblemType.NO_ANSWER,
            f"{task.name} is empty: write what the model should answer, such as 'There is no "
            "text.', or null to leave it out",
        )
    uri = frames[0] if frames else media_uri(row["uri"], base)
    sample_fps = row.get("sample_fps") or (row.get("sampling") or {}).get("sample_fps")
    item = MediaItem(
        media_id=row.get("media_id") or default_media_id(frames or [uri]),
        uri=uri,
        frames=frames,
        sample_fps=sample_fps if frames else None,
        media_type=view.media_type,
        start_seconds=None if frames else view.start_seconds,
        end_seconds=None if frames else view.end_seconds,
    )
    prompt = Turn(role="user", parts=(0, definition.prompt(question, view.media_type)))
    written = Turn(role="assistant", parts=(answer,))
    return Conversation(origin=origin, media=(item,), turns=(prompt, written))


def _view(row: dict[str, Any], *, has_frames: bool) -> View:
    """The media of a row, from the structs of the output table or from plain columns."""
    media, sampling = row.get("media") or row, row.get("sampling") or row
    if media.get("container") == "frames" and not has_frames:
        raise RowError(
            ProblemType.BAD_ROW, "a video given as frames: add the manifest's column `frames`"
        )
    guessed = "video" if has_frames else guess_media_type(str(row["uri"]))
    media_type = media.get("media_type") or guessed
    if media_type not in MEDIA_TYPES:
        raise RowError(ProblemType.BAD_ROW, f"media_type must be image or video: {media_type!r}")
    is_video = media_type == "video"
    return View(
        media_type=media_type,
        width=int(media.get("width") or 0),
        height=int(media.get("height") or 0),
        start_seconds=sampling.get("start_seconds") if is_video else None,
        end_seconds=sampling.get("end_seconds") if is_video else None,
    )


def _places(value: Any) -> Iterator[dict[str, float]]:
    """The boxes and points, in pixels, in the value of a task's column, at any depth."""
    if isinstance(value, dict):
        for key, member in value.items():
            if key in ("box", "point") and isinstance(member, dict):
                yield member
            else:
                yield from _places(member)
    elif isinstance(value, list):
        for item in value:
            yield from _places(item)


def _check_places(places: list[dict[str, float]], view: View) -> None:
    """Refuse boxes and points outside of the media: clipped, they would teach a wrong place."""
    if places and not (view.width and view.height):
        raise RowError(ProblemType.BAD_ROW, "boxes and points need the media's width and height")
    sides = {"x": view.width, "y": view.height}
    for place in places:
        if any(not -SLACK_PIXELS <= at <= sides[k[0]] + SLACK_PIXELS for k, at in place.items()):
            raise RowError(
                ProblemType.BAD_BOX,
                f"{[round(at, 1) for at in place.values()]} is outside of the {view.width} x "
                f"{view.height} pixels that the row gives its media",
            )
