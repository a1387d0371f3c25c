"""``reelscribe show``: one unit on the terminal, and the frames the model saw as pictures."""

import io
import json
import sys
from typing import Any

from PIL import Image
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from jobs.outputs import absolute, check_output
from jobs.pictures import decode_again, planned_sources, seen_parts
from jobs.printable import printable
from jobs.progress import print_summary
from jobs.read_annotations import Row, output_and_run, read_annotations
from jobs.report_units import facts
from pipeline.frames import Pixels
from pipeline.storage import Storage, join, shown
from schemas.errors import UnitError, UserError

_GAP = 8
_CELL_PIXELS = 320
_SHEET_COLUMNS = 4


def run(
    annotations: str,
    unit: str,
    *,
    contact_sheet: str | None,
    what_the_model_saw: str | None,
    recipe_id: str | None,
    run_id: str | None,
    storage: Storage,
    console: Console,
) -> None:
    """Print one unit: its facts, and what was asked and answered.

    unit: the begin of its id, or the end of its uri.
    contact_sheet: PNG to write, of all frames. what_the_model_saw: folder to write each frame to,
        as PNG with the very pixels that the model was fed.

    Raises:
        UserError: there is no such unit, or its media cannot be read now.
    """
    table = read_annotations(annotations, storage, recipe_id=recipe_id, run_id=run_id)
    row = _find(table.rows, unit)
    _print(row, console)
    if contact_sheet is None and what_the_model_saw is None:
        return
    if contact_sheet is not None:
        check_output("--contact-sheet", contact_sheet, (annotations,))
    planned = planned_sources(output_and_run(annotations)[0], [row["run_id"]], storage)
    try:
        seen = [
            (decode_again(part, storage), part.sampling.pts_seconds or ())
            for part in seen_parts(row, planned.get(row["unit_id"]))
        ]
    except UnitError as error:
        raise UserError(f"the frames cannot be shown: {error}") from None
    if not seen:
        raise UserError("the frames cannot be shown: the model saw none")
    if contact_sheet is not None:
        frames = [frame for pixels, _ in seen for frame in pixels]
        storage.write_bytes(absolute(contact_sheet), _png(_sheet(frames)))
        console.print(Text(f"{len(frames)} frames: {absolute(contact_sheet)}"), soft_wrap=True)
    if what_the_model_saw is not None:
        folder = absolute(what_the_model_saw)
        for k, (pixels, times) in enumerate(seen):
            for j, frame in enumerate(pixels):
                time = f"-{times[j]:.3f}s" if times else ""
                name = f"{k:02}-{j:03}{time}.png"
                storage.write_bytes(join(folder, name), _png(Image.fromarray(frame)))
        console.print(Text(f"{sum(len(p) for p, _ in seen)} files: {folder}"), soft_wrap=True)


def _find(rows: list[Row], unit: str) -> Row:
    found = [row for row in rows if row["unit_id"].startswith(unit)]
    found = found or [row for row in rows if row["uri"].endswith(unit)]
    if len(found) == 1:
        return found[0]
    if not found:
        some = ", ".join(f"{row['unit_id'][:12]} ({shown(row['uri'])})" for row in rows[:3])
        raise UserError(f"no unit's id begins, and no uri ends, with {unit!r}; there are {some}")
    found.sort(key=lambda row: (row["sampling"] or {}).get("start_seconds") or 0.0)
    some = ", ".join(
        f"{row['unit_id']} from {(row['sampling'] or {}).get('start_seconds')} s"
        for row in found[:5]
    )
    raise UserError(f"{unit!r} is {len(found)} units; give the id of one: {some}")


def _print(row: Row, console: Console) -> None:
    print_summary(console, printable(shown(row["uri"])), [("status", row["status"]), *facts(row)])
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
        console.print(Text(printable(head.plain), spans=head.spans), soft_wrap=True)
        _print_block(console, "asked", answer["prompt"])
        _print_block(console, "reasoning", answer["reasoning"])
        _print_block(console, "answered", answer["raw_text"])
        value = row.get(answer["task"])
        if value is not None and value != answer["raw_text"]:
            _print_block(console, "read as", _text(value))


def _print_block(console: Console, title: str, text: str | None) -> None:
    if text:
        console.print(Text(f"  {title}", style="dim"))
        console.print(Padding(Text(printable(text)), (0, 0, 0, 4)))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(json.dumps(each, ensure_ascii=False) for each in value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _sheet(frames: list[Pixels]) -> Image.Image:
    """All frames on one picture, each scaled down to a cell."""
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


if __name__ == "__main__":
    from jobs.cli import main

    main(prog_name="reelscribe", args=["show", *sys.argv[1:]])
