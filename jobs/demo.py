"""``reelscribe demo``: the main job on an archive that it renders itself, and what came out."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs import annotate
from jobs.printable import printable
from jobs.render_archive import render_archive
from jobs.tiny_checkpoint import write_tiny_checkpoint
from schemas.job import load_job

SPEC = Path(__file__).parent / "specs" / "demo.yaml"


def run(folder: Path, console: Console) -> None:
    """Render an archive and a checkpoint into ``folder``, annotate, and print the rows.

    What is there already is kept, so a second call finds the run complete.

    Raises:
        UserError: with one clear message.
    """
    archive, checkpoint, output = folder / "archive", folder / "checkpoint", folder / "output"
    if not (archive / ".rendered").exists():
        console.print(f"rendering images and clips into {archive}", style="dim")
        render_archive(archive)
        (archive / ".rendered").touch()
    if not (checkpoint / "config.json").exists():
        console.print(f"writing a tiny checkpoint with random weights: {checkpoint}", style="dim")
        write_tiny_checkpoint(checkpoint)
    job = load_job(
        SPEC,
        {"input.scan": str(archive), "output": str(output), "model.source": str(checkpoint)},
    )
    finished = annotate.run(job, console)
    rows = ds.dataset(output / "annotations", partitioning="hive").to_table(
        filter=ds.field("recipe_id") == finished.fingerprint["recipe"]
    )
    print_rows(rows, archive, console)
    console.print(
        "The checkpoint is random: rows, times and counts are real, the answers are noise.",
        style="yellow",
    )
    console.print(Text(f"The table: {output / 'annotations'}"), soft_wrap=True)


def print_rows(rows: pa.Table, archive: Path, console: Console) -> None:
    """Print one line for each row."""
    table = Table(title=f"{rows.num_rows} rows", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("media", "seconds", "frames", "tokens", "status", "error, or caption"):
        table.add_column(name, no_wrap=True)
    for row in sorted(rows.to_pylist(), key=lambda row: (row["uri"], _start(row))):
        sampling = row["sampling"] or {}
        end = sampling.get("end_seconds")
        said = row["error"]["message"] if row["error"] else row["caption"] or ""
        table.add_row(
            Text(printable(str(Path(row["uri"]).relative_to(archive.resolve())))),
            "" if end is None else f"{_start(row):.1f} to {end:.1f}",
            str(sampling.get("num_frames", "")),
            str(sampling.get("num_vision_tokens", "")),
            row["status"],
            Text(printable(said)[:34]),
        )
    console.print(table)


def _start(row: dict[str, Any]) -> float:
    return (row["sampling"] or {}).get("start_seconds") or 0.0
