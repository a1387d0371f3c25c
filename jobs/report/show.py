"""``reelscribe show``: print one unit, and write the frames that the model saw as pictures."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from jobs.console.output_path import absolute_uri, check_output
from jobs.console.progress import print_summary
from jobs.report.units import facts
from jobs.results.frames import decode_again, planned_sources, run_decoder, seen_parts
from jobs.results.read import Row, Selection, read_annotations
from pipeline.media.frames import Pixels
from pipeline.storage.storage import Storage, join
from pipeline.tasks.registry import TASKS
from schemas.errors import UnitError, UserError
from schemas.shown import one_line, printable, redact_uri
from schemas.tables.manifest import default_media_id
from schemas.task import EMBEDDING

_MAX_NAMES = 5
_GAP = 8
_CELL_PIXELS = 320
_SHEET_COLUMNS = 4


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Which pictures to write.

    contact_sheet: PNG of all frames, scaled down.
    frames_folder: folder for PNG files, one for each frame, with the pixels that the model saw.
    """

    contact_sheet: str | None = None
    frames_folder: str | None = None


def run(
    selection: Selection, unit: str, options: ShowOptions, storage: Storage, console: Console
) -> None:
    """Print one unit: its facts, prompts and answers; write its frames if requested.

    unit: its id or the start of it, its media's id, or its uri or the end of it.

    Raises:
        UserError: there is no such unit, or its media cannot be read now.
    """
    table = read_annotations(selection, storage)
    row = _find(table.rows, unit)
    _print(row, console)
    if options.contact_sheet is None and options.frames_folder is None:
        return
    if options.contact_sheet is not None:
        check_output("--contact-sheet", options.contact_sheet, (selection.uri,))
    planned = planned_sources(selection, [row["run_id"]], storage)
    decoder = run_decoder(selection, [row["run_id"]], storage)
    try:
        seen = [
            (decode_again(part, decoder), part.sampling.pts_seconds or ())
            for part in seen_parts(row, planned.get(row["unit_id"]))
        ]
    except UnitError as error:
        raise UserError(f"the frames cannot be shown: {error}") from None
    if not seen:
        raise UserError("the frames cannot be shown: the model saw none")
    if options.contact_sheet is not None:
        uri = absolute_uri(options.contact_sheet)
        frames = [frame for pixels, _ in seen for frame in pixels]
        storage.write_bytes(uri, _png(_sheet(frames)))
        console.print(Text(f"{len(frames)} frames: {uri}"), soft_wrap=True)
    if options.frames_folder is not None:
        folder = absolute_uri(options.frames_folder)
        for k, (pixels, times) in enumerate(seen):
            for j, frame in enumerate(pixels):
                time = f"-{times[j]:.3f}s" if times else ""
                name = f"{k:02}-{j:03}{time}.png"
                storage.write_bytes(join(folder, name), _png(Image.fromarray(frame)))
        console.print(Text(f"{sum(len(p) for p, _ in seen)} files: {folder}"), soft_wrap=True)


def _find(rows: list[Row], unit: str) -> Row:
    """Return the row that a text names: by unit id or its start, media id, uri or its end."""
    uri = redact_uri(unit)
    found = (
        [row for row in rows if row["unit_id"] == unit]
        or [row for row in rows if row["media_id"] in (unit, default_media_id([unit]))]
        or [row for row in rows if row["uri"] == uri and uri == unit]
        or [row for row in rows if row["unit_id"].startswith(unit)]
        or [row for row in rows if row["uri"].endswith(uri) and uri == unit]
    )
    if len(found) == 1:
        return found[0]
    if not found:
        some = _listed(rows, lambda row: f"{row['unit_id'][:12]} ({redact_uri(row['uri'])})")
        raise UserError(
            f"no unit has the id, media id or uri {uri!r}, nor does an id start or a uri end with "
            f"it; units are {some}"
        )
    found.sort(key=lambda row: (row["uri"], (row["sampling"] or {}).get("start_seconds") or 0.0))
    some = _listed(found, _id_and_place)
    raise UserError(f"{uri!r} matches {len(found)} units; give the id of one: {some}")


def _listed(rows: list[Row], name_of: Callable[[Row], str]) -> str:
    more = f" and {len(rows) - _MAX_NAMES} more" if len(rows) > _MAX_NAMES else ""
    return ", ".join(map(name_of, rows[:_MAX_NAMES])) + more


def _id_and_place(row: Row) -> str:
    start = (row["sampling"] or {}).get("start_seconds")
    place = redact_uri(row["uri"]) if start is None else f"from {start:g} s"
    return f"{row['unit_id']} ({place})"


def _print(row: Row, console: Console) -> None:
    print_summary(console, redact_uri(row["uri"]), [("status", row["status"]), *facts(row)])
    if error := row["error"]:
        _print_block(console, f"{error['type']} at {error['stage']}", error["message"])
    for answer in row["responses"]:
        tokens = (
            f", {answer['num_prompt_tokens']:,} tokens in, {answer['num_output_tokens']:,} out"
            if answer["num_prompt_tokens"] is not None
            else ""
        )
        note = f", {answer['note']}" if answer["note"] else ""
        console.print()
        head = Text.assemble((answer["task"], "bold"), f"  {answer['status']}{tokens}{note}")
        console.print(Text(one_line(head.plain), spans=head.spans), soft_wrap=True)
        _print_block(console, "prompt", answer["prompt"])
        _print_block(console, "reasoning", answer["reasoning"])
        _print_block(console, "raw answer", answer["raw_text"])
        value = row.get(answer["task"])
        if value is not None and value != answer["raw_text"]:
            _print_block(console, "value", _text(value))


def _print_block(console: Console, title: str, text: str | None) -> None:
    if text:
        console.print(Text(f"  {title}", style="dim"))
        console.print(Padding(Text(printable(text)), (0, 0, 0, 4)))


def _text(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], float):
        return TASKS[EMBEDDING].draw(value).text or ""
    if isinstance(value, list):
        return "\n".join(json.dumps(each, ensure_ascii=False) for each in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _sheet(frames: list[Pixels]) -> Image.Image:
    """Return one picture of all frames, each scaled down to a cell."""
    pictures = [Image.fromarray(frame) for frame in frames]
    for picture in pictures:
        picture.thumbnail((_CELL_PIXELS, _CELL_PIXELS))
    columns = min(_SHEET_COLUMNS, len(pictures))
    width = max(picture.width for picture in pictures) + _GAP
    height = max(picture.height for picture in pictures) + _GAP
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), (16, 19, 28))
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        sheet.paste(picture, (column * width + _GAP, row * height + _GAP))
    return sheet


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
