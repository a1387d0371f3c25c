"""``reelscribe export``: write the rows in another tool's format; import corrected labels."""

import json
from collections import Counter
from collections.abc import Callable
from functools import partial

from rich.console import Console
from rich.text import Text

from jobs.console.output_path import absolute_uri, check_output
from jobs.export.boxes import coco, yolo
from jobs.export.label_studio import gold_rows, label_studio
from jobs.export.source import Files, Source, requested_labels
from jobs.export.subtitles import subtitles
from jobs.export.training import conversations, huggingface, webdataset
from jobs.results.frames import planned_sources, run_decoder
from jobs.results.read import Selection, output_and_run, read_annotations
from pipeline.storage.storage import Storage, join
from pipeline.tasks.registry import TASKS
from schemas.errors import UserError
from schemas.shown import one_line, redact_uri

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
_BOXES = "pictures with boxes of objects or tracks"
_SUBTITLES = "events, captions and text of videos"
_FRAMES = "the frames of units whose media can be read now"
_HOLDS = {
    "coco": _BOXES,
    "yolo": _BOXES,
    "webvtt": _SUBTITLES,
    "srt": _SUBTITLES,
    "conversations": "answers about whole images and videos",
    "webdataset": _FRAMES,
    "huggingface": _FRAMES,
    "labelstudio": "answers about images and videos",
}
"""What a format needs, for messages."""

_MAX_REASONS = 5


def run(selection: Selection, form: str, output: str, storage: Storage, console: Console) -> None:
    """Write the rows of a run's recipes to a folder, in one of ``FORMATS``.

    Raises:
        UserError: there is no such table, recipe or run, the folder is not empty, or no row has
            what the format holds.
    """
    folder = absolute_uri(output)
    if storage.list_files(folder, "**"):
        raise UserError(f"--output {redact_uri(output)} is not empty; give a new folder")
    table = read_annotations(selection, storage)
    rows = sorted(
        table.rows,
        key=lambda row: (row["uri"], (row.get("sampling") or {}).get("start_seconds") or 0.0),
    )
    source = Source(
        rows=rows,
        recipe_ids=table.recipe_ids,
        planned=planned_sources(selection, table.run_ids, storage),
        decoder=run_decoder(selection, table.run_ids, storage),
        labels=requested_labels(output_and_run(selection.uri)[0], table.run_ids, storage),
        named=list(table.named.values()),
    )
    num_files = 0
    for name, content in FORMATS[form](source):
        storage.write_bytes(join(folder, name), content)
        num_files += 1
    if not num_files:
        raise UserError(_nothing_to_export(form, source))
    console.print(Text(f"{num_files:,} files: {redact_uri(folder)}"), soft_wrap=True)
    for remark in source.remarks:
        console.print(Text(one_line(remark)), soft_wrap=True)
    _print_skipped(source, console)


def _nothing_to_export(form: str, source: Source) -> str:
    """Say what the format holds, what the rows have instead, and what was left out."""
    columns = [*TASKS, *(field.name for field in source.named)]
    tasks = [name for name in columns if any(row.get(name) is not None for row in source.rows)]
    text = (
        f"there is nothing to export: {form} holds {_HOLDS[form]}, and these "
        f"{len(source.rows):,} rows give no file; they answer {', '.join(tasks) or 'no task'}"
    )
    reasons = [f"{count:,}: {reason[:160]}" for reason, count in _reasons(source).most_common(3)]
    return text + (f"; left out {', '.join(reasons)}" if reasons else "")


def _reasons(source: Source) -> Counter[str]:
    return Counter(reason for _, reason in source.skipped)


def _print_skipped(source: Source, console: Console) -> None:
    if not source.skipped:
        return
    reasons = _reasons(source)
    example = {reason: redact_uri(name) for name, reason in reversed(source.skipped)}
    console.print(f"left out {len(source.skipped):,}:")
    for reason, count in reasons.most_common(_MAX_REASONS):
        more = f", such as {example[reason]}" if example[reason] else ""
        line = f"  {count:,}: {reason[:160]}{more}"
        console.print(Text(one_line(line)), soft_wrap=True)
    if len(reasons) > _MAX_REASONS:
        console.print(f"  and {len(reasons) - _MAX_REASONS:,} more reasons")


def import_labels(labels: str, *, output: str, storage: Storage, console: Console) -> None:
    """Convert Label Studio's JSON export to gold, JSON lines for ``evaluate`` and ``finetune``.

    Raises:
        UserError: ``labels`` is not such an export, or the output cannot be written.
    """
    check_output("--output", output, (labels,))
    rows = gold_rows(labels, storage)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    storage.write_bytes(absolute_uri(output), "".join(lines).encode())
    console.print(Text(f"{len(rows):,} rows of gold: {absolute_uri(output)}"), soft_wrap=True)
