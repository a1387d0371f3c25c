"""``reelscribe demo``: render an archive, annotate it, and print the rows."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.demo.archive import render_archive
from jobs.run import annotate
from schemas.job.job import load_job
from schemas.shown import printable

SPEC = Path(__file__).parents[1] / "specs" / "demo.yaml"
MODEL = Path(__file__).parents[1] / "demo_model"
"""A small Qwen3-VL for such archives; docs/demo-model.md describes its training."""


_CELL_CHARS = 140


def run(folder: Path, console: Console) -> None:
    """Render an archive into ``folder``, annotate it, and print the rows.

    Existing files are kept, so a second call finds the run complete.

    Raises:
        UserError: with one clear message.
    """
    archive, output = folder / "archive", folder / "output"
    if not (archive / ".rendered").exists():
        console.print(f"rendering images and clips into {archive}", style="dim")
        render_archive(archive)
        (archive / ".rendered").touch()
    job = load_job(
        SPEC, {"input.scan": str(archive), "output": str(output), "model.source": str(MODEL)}
    )
    finished = annotate.run(job, console)
    rows = ds.dataset(output / "annotations", partitioning="hive").to_table(
        filter=ds.field("recipe_id").isin(list(finished.recipe_ids))
    )
    print_rows(rows, archive, console)
    console.print(Text(f"The table: {output / 'annotations'}"), soft_wrap=True)


def print_rows(rows: pa.Table, archive: Path, console: Console) -> None:
    """Print one line for each row, and one for each further event in it."""
    table = Table(title=f"{rows.num_rows} rows", title_justify="left", box=box.SIMPLE_HEAD)
    widths = {"media": 24, "seconds": 10, "caption, or error": 30, "text": 12, "events": 34}
    for name, width in widths.items():
        table.add_column(name, width=width)
    for row in sorted(rows.to_pylist(), key=lambda row: (row["uri"], _start(row))):
        end = (row["sampling"] or {}).get("end_seconds")
        error = row["error"] and f"{row['error']['type']}: {row['error']['message'][:60]}"
        events = [
            f"{e['start_seconds']:.1f} to {e['end_seconds']:.1f} {e['caption']}"
            for e in row["events"] or ()
        ]
        cells = (
            str(Path(row["uri"]).relative_to(archive.absolute())),
            "" if end is None else f"{_start(row):.3g} to {end:.3g}",
            error or row["caption"] or "",
            row["ocr"] or "",
            "\n".join(events),
        )
        table.add_row(*(Text(printable(cell)[:_CELL_CHARS]) for cell in cells))
    console.print(table)


def _start(row: dict[str, Any]) -> float:
    return (row["sampling"] or {}).get("start_seconds") or 0.0
