"""``reelscribe report``: an HTML page that shows the rows, with the frames that the model saw.

One HTML file that holds everything, or a folder: ``index.html`` with an index of all units, their
details in ``units/*.js``, ``UNITS_PER_PIECE`` units each, those of whole videos in ``videos/*.js``,
and the frames in ``pictures/*.webp``.
The page loads details and frames when it needs them, and fetches nothing from elsewhere.
"""

import base64
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from rich.console import Console
from rich.text import Text

from jobs.console.json_values import json_values
from jobs.console.output_path import absolute_uri, check_output
from jobs.console.progress import Progress
from jobs.evaluate.metrics import Metric, metrics_of
from jobs.evaluate.report import Report
from jobs.evaluate.unit_scores import Scored, score_units
from jobs.report.runs import run_values
from jobs.report.units import index_entry, mark_times, unit_values
from jobs.report.videos import read_items, video_values
from jobs.results.frames import (
    choose_frames,
    decode_again,
    make_sheet,
    planned_sources,
    run_decoder,
    seen_parts,
)
from jobs.results.read import Row, Selection, output_and_run, read_annotations
from pipeline.storage.storage import Storage, join
from pipeline.workers.isolated_decoder import IsolatedDecoder
from schemas.errors import StorageError, UnitError, UserError
from schemas.shown import redact_uri
from schemas.tables.media import Part

PAGE = Path(__file__).parent / "page"
UNITS_PER_PIECE = 20
"""Number of units, or of videos, whose details the page loads together."""

MAX_SINGLE_PAGE = 300
"""Maximum number of units of a one-file report, if no output is given."""

_NUM_DECODERS = 4

_Details = Callable[[Row, list[dict[str, Any]]], dict[str, Any]]
"""Takes a row and its pictures; returns the details of the unit."""

_SCRIPTS = ("page.js", "picture.js", "unit.js", "list.js", "videos.js", "runs.js", "charts.js")


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Where the report goes, and what it shows.

    output: an .html file, or a folder; None: ``report.html``, or ``report/`` for many units.
    gold: as for ``reelscribe evaluate``; the page then shows the worst units first.
    max_frames: frames shown of each media. max_side: longer side of a frame in pixels.
    """

    output: str | None = None
    gold: str | None = None
    max_frames: int = 12
    max_side: int = 448


def run(selection: Selection, options: ReportOptions, storage: Storage, console: Console) -> str:
    """Write the report of an annotation table, and return the uri of the page.

    Raises:
        UserError: there is no such table, recipe, run or gold, or the output cannot be written.
    """
    table = read_annotations(selection, storage)
    title = redact_uri(selection.uri)
    scored: dict[str, Scored] = {}
    evaluation = None
    if options.gold is not None:
        scored, evaluation = score_units(table, options.gold, title, storage)
    rows = sorted(table.rows, key=_order)
    output = options.output or ("report.html" if len(rows) <= MAX_SINGLE_PAGE else "report")
    is_single = output.lower().endswith((".html", ".htm"))
    folder = absolute_uri(output)
    if is_single:
        inputs = [selection.uri, *([options.gold] if options.gold else [])]
        check_output("--output", output, inputs)
    else:
        _check_folder(folder, storage)
    source = output_and_run(selection.uri)[0]
    pictures = _Pictures(
        planned=planned_sources(selection, table.run_ids, storage),
        decoder=run_decoder(selection, table.run_ids, storage, _NUM_DECODERS),
        options=options,
        folder=None if is_single else folder,
        storage=storage,
    )
    questions = table.questions

    def details(row: Row, parts: list[dict[str, Any]]) -> dict[str, Any]:
        return unit_values(row, parts, scored.get(row["unit_id"]), questions)

    units = _units(rows, details, pictures, console)
    runs = [run_values(source, name, storage) for name in table.run_ids]
    created = {run["run_id"]: str(run.get("created_at", "")) for run in runs}
    items = read_items(source, table.recipe_ids, storage)
    videos, whole = video_values(rows, items, created, questions)
    pieces = {"units": _pieces(units), "videos": _pieces(whole)}
    if not is_single:
        for kind, found in pieces.items():
            for number, piece in enumerate(found):
                # A script: a page in a local folder may load scripts from there, but not JSON.
                value = htmlsafe_json_dumps(json_values(piece))
                text = f"reelscribe.arrived('{kind}', {number}, {value});\n"
                storage.write_bytes(join(folder, kind, f"{number:05}.js"), text.encode())
    data = {
        "title": title,
        "recipe": ", ".join(table.recipe_ids),
        "runs": runs,
        "units_per_piece": UNITS_PER_PIECE,
        "units": [index_entry(row, scored.get(row["unit_id"]), questions) for row in rows],
        "videos": videos,
        "evaluation": _evaluation(evaluation, metrics_of(questions)),
        "version": version("reelscribe"),
    }
    page = render_page(data, pieces if is_single else None)
    uri = folder if is_single else join(folder, "index.html")
    storage.write_bytes(uri, page.encode())
    missing = sum(any(part["problem"] for part in unit["parts"]) for unit in units)
    remark = f"; the media of {missing:,} cannot be read now" if missing else ""
    console.print(Text(f"{len(rows):,} units{remark}\nThe report: {uri}"), soft_wrap=True)
    return uri


def _pieces(details: Sequence[Any]) -> list[Sequence[Any]]:
    return [details[k : k + UNITS_PER_PIECE] for k in range(0, len(details), UNITS_PER_PIECE)]


def render_page(data: dict[str, Any], pieces: dict[str, list[Sequence[Any]]] | None) -> str:
    """Return the page's HTML.

    pieces: the details of units and of videos; None: they are files beside the page.

    Values are embedded as JSON with ``<``, ``>``, ``&`` and ``'`` escaped, and numbers that JSON
    lacks as null; the page turns them into text nodes, never into markup. As a second defence, the
    page's Content-Security-Policy allows only scripts with this page's nonce, and no requests.
    """
    environment = Environment(
        loader=FileSystemLoader(PAGE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        data=json_values(data),
        pieces=json_values(pieces),
        nonce=secrets.token_urlsafe(18),
        style="page.css",
        scripts=["chart.umd.min.js", *_SCRIPTS],
        asset=_asset,
    )


def _asset(name: str) -> str:
    """Return the text of a style or script in ``page/``."""
    text = (PAGE / name).read_text(encoding="utf-8")
    assert "</script" not in text and "</style" not in text and "<!--" not in text, name
    return text


@dataclass(frozen=True, kw_only=True)
class _Pictures:
    """Makes the pictures of units. folder: of the page; None: the page holds its pictures.

    planned: unit id -> the unit's row of the plan, as ``planned_sources`` returns it.
    """

    planned: dict[str, dict[str, Any]]
    decoder: IsolatedDecoder
    options: ReportOptions
    folder: str | None
    storage: Storage

    def parts(self, number: int, row: Row) -> list[dict[str, Any]]:
        """Return the parts of a unit as JSON; write their pictures to the folder."""
        marked = mark_times(row)
        seen = seen_parts(row, self.planned.get(row["unit_id"]))
        return [self._part(part, marked, f"{number:06}-{k}.webp") for k, part in enumerate(seen)]

    def _part(self, part: Part, marked: list[float], name: str) -> dict[str, Any]:
        """Return a part's picture and times; ``problem`` says why there is no picture."""
        sampling = part.sampling
        times = sampling.pts_seconds or ()
        value: dict[str, Any] = {
            "name": redact_uri(part.uri),
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
            pixels = decode_again(part, self.decoder)
        except (UnitError, StorageError) as error:
            return value | {"problem": str(error)}
        frames = choose_frames(len(pixels), self.options.max_frames, times, marked)
        sheet = make_sheet(pixels, frames, self.options.max_side)
        return value | {
            "sheet": self._store(name, sheet.content),
            "columns": sheet.columns,
            "cell": [sheet.cell_width, sheet.cell_height],
            "frames": list(sheet.frames),
            "times": [times[k] for k in sheet.frames] if times else [],
        }

    def _store(self, name: str, content: bytes) -> str:
        """Write a picture to the folder; return its url as the page needs it."""
        if self.folder is None:
            return "data:image/webp;base64," + base64.b64encode(content).decode()
        self.storage.write_bytes(join(self.folder, "pictures", name), content)
        return f"pictures/{name}"


def _units(
    rows: Sequence[Row], details: _Details, pictures: _Pictures, console: Console
) -> list[dict[str, Any]]:
    """Return the details of each unit, with progress on the console."""

    def unit(number: int) -> dict[str, Any]:
        row = rows[number]
        return details(row, pictures.parts(number, row))

    values = []
    with (
        Progress(console, "decoding", total_units=len(rows), total_cost=0.0) as bar,
        ThreadPoolExecutor(_NUM_DECODERS) as pool,
    ):
        for value in pool.map(unit, range(len(rows))):
            values.append(value)
            bar.advance(units=1, cost=1.0, failed=0, tokens=0)
    return values


def _order(row: Row) -> tuple[str, float]:
    return row["uri"], (row.get("sampling") or {}).get("start_seconds") or 0.0


def _evaluation(report: Report | None, metrics: Mapping[str, Metric]) -> dict[str, Any] | None:
    """Return the figures of each task, and the name of the figure that scores its answers."""
    if report is None:
        return None
    return {
        "gold": report.gold,
        "primary": {task: metric.primary for task, metric in metrics.items()},
        "tasks": {
            task: [[figure.name, figure.value] for figure in found.whole.figures]
            for task, found in report.tasks.items()
        },
    }


def _check_folder(folder: str, storage: Storage) -> None:
    """Refuse a folder that has files but no report.

    Raises:
        UserError: it has such files.
    """
    files = storage.list_files(folder, "*")
    if files and not any(file["uri"].endswith("/index.html") for file in files):
        raise UserError(
            f"--output {redact_uri(folder)} has files that are not a report; give a new or empty "
            "folder, or an .html file"
        )
