"""``reelscribe report``: the rows of a run as a page to look at, with the frames the model saw.

One HTML file that holds everything, or a folder: ``index.html``, which has an index of all units,
their details in ``units/*.js``, some units each, and their frames in ``pictures/*.webp``. The page
loads those as it needs them; nothing is fetched from anywhere else.
"""

import base64
import json
import secrets
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from rich.console import Console
from rich.text import Text

from jobs.evaluate_report import Report
from jobs.outputs import absolute, check_output
from jobs.pictures import (
    choose_frames,
    decode_again,
    make_sheet,
    planned_sources,
    seen_parts,
)
from jobs.progress import Progress
from jobs.read_annotations import Row, output_and_run, read_annotations
from jobs.report_units import index_entry, mark_times, unit_values
from jobs.unit_scores import PRIMARY, Scored, score_units
from pipeline.storage import Storage, join, shown
from schemas.errors import StorageError, UnitError, UserError
from schemas.part import Part

PAGE = Path(__file__).parent / "report_page"
UNITS_PER_PIECE = 20
"""Units whose details the page loads together."""

MAX_SINGLE_PAGE = 300
"""Units up to which the report is one file, if not asked otherwise."""

_SCRIPTS = ("page.js", "picture.js", "unit.js", "list.js", "charts.js")


@dataclass(frozen=True, kw_only=True)
class Looks:
    """How units are shown. frames: the most for each media. longest: of a frame's sides, px."""

    frames: int = 12
    longest: int = 448


def run(
    annotations: str,
    *,
    output: str | None,
    gold: str | None,
    recipe_id: str | None,
    run_id: str | None,
    looks: Looks,
    storage: Storage,
    console: Console,
) -> str:
    """Write the report of an annotation table.

    output: an .html file, or a folder; None: ``report.html``, or for many units ``report/``.
    gold: as of ``reelscribe evaluate``; the worst units come first then.

    Returns the uri of the page.

    Raises:
        UserError: there is no such table, recipe, run or gold, or the output cannot be written.
    """
    table = read_annotations(annotations, storage, recipe_id=recipe_id, run_id=run_id)
    scored: dict[str, Scored] = {}
    evaluation = None
    if gold is not None:
        scored, evaluation = score_units(table, gold, shown(annotations), storage)
    rows = sorted(table.rows, key=_order)
    if output is None:
        output = "report.html" if len(rows) <= MAX_SINGLE_PAGE else "report"
    is_single = output.lower().endswith((".html", ".htm"))
    folder = absolute(output)
    if is_single:
        check_output("--output", output, [annotations, *([gold] if gold else [])])
    else:
        _check_folder(folder, storage)
    source = output_and_run(annotations)[0]
    planned = planned_sources(source, table.run_ids, storage)
    values = _units(rows, planned, scored, looks, storage, None if is_single else folder, console)
    pieces = [values[k : k + UNITS_PER_PIECE] for k in range(0, len(values), UNITS_PER_PIECE)]
    if not is_single:
        for number, piece in enumerate(pieces):
            # A script, since a page in a local folder may load scripts from there, but not JSON.
            text = f"reelscribe.arrived({number}, {htmlsafe_json_dumps(piece)});\n"
            storage.write_bytes(join(folder, "units", f"{number:05}.js"), text.encode())
    data = {
        "title": shown(annotations),
        "recipe": table.recipe_id,
        "runs": [_run(source, name, storage) for name in table.run_ids],
        "units_per_piece": UNITS_PER_PIECE,
        "units": [index_entry(row, scored.get(row["unit_id"])) for row in rows],
        "evaluation": _figures(evaluation),
        "version": version("reelscribe"),
    }
    page = render_page(data, pieces if is_single else None)
    uri = folder if is_single else join(folder, "index.html")
    storage.write_bytes(uri, page.encode())
    missing = sum(any(part["problem"] for part in unit["parts"]) for unit in values)
    remark = f"; the media of {missing:,} cannot be read now" if missing else ""
    console.print(Text(f"{len(rows):,} units{remark}\nThe report: {uri}"), soft_wrap=True)
    return uri


def render_page(data: dict[str, Any], pieces: Sequence[Any] | None) -> str:
    """Make the page. pieces: the units, some each; None: they are files beside the page.

    Values go in as JSON in which ``<``, ``>``, ``&`` and ``'`` are escapes, and the page makes text
    nodes of them, never markup. Should something slip through all the same, the page's own policy
    lets no script run that does not carry this page's nonce, and nothing be fetched.
    """
    environment = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        data=data,
        pieces=pieces,
        nonce=secrets.token_urlsafe(18),
        style="page.css",
        scripts=["chart.umd.min.js", *_SCRIPTS],
        asset=_asset,
    )


def _asset(name: str) -> str:
    """The text of our own style or script."""
    text = (PAGE / name).read_text(encoding="utf-8")
    assert "</script" not in text and "</style" not in text and "<!--" not in text, name
    return text


def _units(
    rows: Sequence[Row],
    planned: dict[str, dict[str, Any]],
    scored: dict[str, Scored],
    looks: Looks,
    storage: Storage,
    folder: str | None,
    console: Console,
) -> list[dict[str, Any]]:
    """The details of each unit; with a folder, their pictures are written there."""

    def unit(number: int) -> dict[str, Any]:
        row = rows[number]
        parts = [
            _part(part, mark_times(row), looks, storage, partial(_place, folder, number, k))
            for k, part in enumerate(seen_parts(row, planned.get(row["unit_id"])))
        ]
        return unit_values(row, parts, scored.get(row["unit_id"]))

    def _place(folder: str | None, number: int, k: int, content: bytes) -> str:
        if folder is None:
            return "data:image/webp;base64," + base64.b64encode(content).decode()
        name = f"pictures/{number:06}-{k}.webp"
        storage.write_bytes(join(folder, name), content)
        return name

    values = []
    with (
        Progress(console, "decoding", total_units=len(rows), total_cost=0.0) as bar,
        ThreadPoolExecutor(4) as pool,
    ):
        for value in pool.map(unit, range(len(rows))):
            values.append(value)
            bar.advance(units=1, cost=1.0, failed=0, tokens=0)
    return values


def _part(
    part: Part, marked: list[float], looks: Looks, storage: Storage, place: Any
) -> dict[str, Any]:
    """A part's picture and times; ``problem`` says why there is no picture."""
    sampling = part.sampling
    times = sampling.pts_seconds or ()
    value: dict[str, Any] = {
        "name": shown(part.uri),
        "type": part.media.media_type,
        "width": part.media.width,
        "height": part.media.height,
        "start": sampling.start_seconds,
        "end": sampling.end_seconds,
        "num_frames": sampling.num_frames,
        "resized": [sampling.resized_width, sampling.resized_height],
        "frames": [],
        "times": [],
        "problem": None,
    }
    try:
        pixels = decode_again(part, storage)
    except (UnitError, StorageError) as error:
        return value | {"problem": str(error)}
    sheet = make_sheet(
        pixels, choose_frames(len(pixels), looks.frames, times, marked), looks.longest
    )
    return value | {
        "sheet": place(sheet.content),
        "columns": sheet.columns,
        "cell": [sheet.cell_width, sheet.cell_height],
        "frames": list(sheet.frames),
        "times": [times[k] for k in sheet.frames] if times else [],
    }


def _order(row: Row) -> tuple[str, float]:
    return row["uri"], (row.get("sampling") or {}).get("start_seconds") or 0.0


def _run(output: str, run_id: str, storage: Storage) -> dict[str, Any]:
    """What ``run.json`` says of a run; only its id where there is none."""
    try:
        content = json.loads(storage.read_bytes(join(output, "runs", run_id, "run.json")))
    except (FileNotFoundError, StorageError, ValueError):
        return {"run_id": run_id}
    known = ("run_id", "status", "created_at", "seconds", "starts", "counts", "versions", "recipe")
    return {key: content[key] for key in known if key in content}


def _figures(report: Report | None) -> dict[str, Any] | None:
    """The figures of each task, and the one that orders the units."""
    if report is None:
        return None
    return {
        "gold": report.gold,
        "primary": PRIMARY,
        "tasks": {
            task: [[figure.name, figure.value] for figure in found.whole.figures]
            for task, found in report.tasks.items()
        },
    }


def _check_folder(folder: str, storage: Storage) -> None:
    """Refuse a folder that has something else in it than a report.

    Raises:
        UserError: says which.
    """
    files = storage.list_files(folder, "*")
    if files and not any(file["uri"].endswith("/index.html") for file in files):
        raise UserError(
            f"--output {shown(folder)} has files that are no report; give an empty folder, a new "
            "one, or an .html file"
        )


if __name__ == "__main__":
    from jobs.cli import main

    main(prog_name="reelscribe", args=["report", *sys.argv[1:]])
