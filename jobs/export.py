"""``reelscribe export``: the table in the formats of other tools; and corrected labels back."""

import json
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial

from rich.console import Console
from rich.text import Text

from jobs.export_boxes import coco, yolo
from jobs.export_source import Files, Source
from jobs.export_subtitles import subtitles
from jobs.export_training import conversations, huggingface, webdataset
from jobs.label_studio import gold_rows, label_studio
from jobs.outputs import absolute, check_output
from jobs.pictures import planned_sources
from jobs.printable import printable
from jobs.read_annotations import output_and_run, read_annotations
from pipeline.storage import Storage, join, shown
from schemas.errors import UserError

FORMATS: dict[str, Callable[[Source], Files]] = {
    "coco": coco,
    "yolo": yolo,
    "webvtt": partial(subtitles, form="webvtt"),
    "srt": partial(subtitles, form="srt"),
    "conversations": conversations,
    "webdataset": webdataset,
    "huggingface": huggingface,
    "labelstudio": label_studio,
}
_SHOWN = 5


def run(
    annotations: str,
    form: str,
    *,
    output: str,
    recipe_id: str | None,
    run_id: str | None,
    storage: Storage,
    console: Console,
) -> None:
    """Write the rows of a recipe into a folder, in one of ``FORMATS``.

    Raises:
        UserError: there is no such table, recipe or run, or the folder is not empty.
    """
    folder = absolute(output)
    if storage.list_files(folder, "**"):
        raise UserError(f"--output {shown(output)} is not empty; give a new folder")
    table = read_annotations(annotations, storage, recipe_id=recipe_id, run_id=run_id)
    rows = sorted(
        table.rows,
        key=lambda row: (row["uri"], (row.get("sampling") or {}).get("start_seconds") or 0.0),
    )
    planned = planned_sources(output_and_run(annotations)[0], table.run_ids, storage)
    source = Source(rows=rows, recipe_id=table.recipe_id, planned=planned, storage=storage)
    num_files = 0
    for name, content in FORMATS[form](source):
        storage.write_bytes(join(folder, name), content)
        num_files += 1
    console.print(Text(f"{num_files:,} files: {shown(folder)}"), soft_wrap=True)
    _print_skipped(source, console)


def _print_skipped(source: Source, console: Console) -> None:
    if not source.skipped:
        return
    reasons = Counter(text.partition(": ")[2] for text in source.skipped)
    console.print(f"left out {len(source.skipped):,}:")
    for reason, count in reasons.most_common(_SHOWN):
        console.print(Text(printable(f"  {count:,}: {reason[:160]}")), soft_wrap=True)
    if len(reasons) > _SHOWN:
        console.print(f"  and {len(reasons) - _SHOWN:,} more reasons")


def import_labels(labels: str, *, output: str, storage: Storage, console: Console) -> None:
    """Write Label Studio's JSON export as gold: JSON lines, as ``evaluate`` and ``finetune`` read.

    Raises:
        UserError: it is not such an export, or the output cannot be written.
    """
    check_output("--output", output, (labels,))
    rows = gold_rows(labels, storage)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    storage.write_bytes(absolute(output), "".join(lines).encode())
    console.print(Text(f"{len(rows):,} rows of gold: {absolute(output)}"), soft_wrap=True)


if __name__ == "__main__":
    from jobs.cli import main

    main(prog_name="reelscribe", args=["export", *sys.argv[1:]])
