"""``reelscribe check-dataset``: find what is wrong with training data before a GPU is paid for.

Every row is read once, and every sample prepared as training would prepare it: its media decoded,
its tokens counted. Then the boxes in the answers are judged, and can be put from pixels to 0..1000.
"""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from jobs.check_report import DataSet, print_report, write_lines, write_report
from jobs.cluster import actor_errors, connected, plan_actors
from jobs.finetune import check_model, with_absolute_paths
from jobs.outputs import absolute, check_output
from jobs.progress import Progress, print_summary
from pipeline.manifest_item import resolve
from pipeline.storage import Storage, shown
from pipeline.training.answer_boxes import pixels_to_1000
from pipeline.training.check import AnswerBoxes, Checked, Work, build_check, from_checked
from pipeline.training.read import media_base, read_data, read_rows
from pipeline.training.sample import group_by_media
from schemas.conversation import Conversation, DataProblem, ProblemType
from schemas.errors import ManifestError, UserError
from schemas.finetune import DataSpec, FinetuneJob, load_finetune_job

BoxUnit = Literal["auto", "normalised", "pixels"]

_JSON = (".json", ".jsonl", ".ndjson")


def load(
    source: str,
    overrides: dict[str, Any],
    *,
    media_folder: str | None,
    tasks: Sequence[str],
) -> FinetuneJob:
    """Read a training job file; or make a job of one data set: .json or .jsonl, else a table.

    Raises:
        UserError: the job is not valid, or an option does not go with the source.
    """
    if source.lower().endswith((".yaml", ".yml")):
        if media_folder or tasks:
            raise UserError("--media-folder and --tasks do not go with a job file: it has its own")
        return load_finetune_job(Path(source), overrides)
    if "model.source" not in overrides:
        raise UserError("a data set needs --model, whose tokenizer counts its tokens")
    is_json = source.lower().endswith(_JSON)
    if not is_json and (suffix := Path(source).suffix.lower()) not in ("", ".parquet"):
        raise UserError(
            f"{shown(source)} has the suffix {suffix}: a data set is .json or .jsonl, a job file "
            ".yaml, a table .parquet or a folder"
        )
    if is_json == bool(tasks):
        raise UserError(
            f"{shown(source)} is taken for {'conversations: leave' if is_json else 'a table: give'}"
            " --tasks, whose columns are the answers"
        )
    kind = "conversations" if is_json else "annotations"
    data = {kind: source, "media_folder": media_folder, "tasks": list(tasks)}
    return load_finetune_job(None, {"output": ".", "data": [data], **overrides})


def run(
    job: FinetuneJob,
    *,
    headers_only: bool,
    boxes: BoxUnit,
    fix: str | None,
    report: str | None,
    console: Console,
) -> int:
    """Check all data sets of a job, print what was found, and return how many problems are left.

    Raises:
        UserError: with one clear message.
    """
    job = with_absolute_paths(job)
    storage = Storage(job.storage_options)
    specs = [spec.model_copy(update={"share": 100.0}) for spec in (*job.data, *job.validation)]
    specs = list(
        {s.model_dump_json(): s for s in specs}.values()
    )  # one data set may be there with several shares
    _check_outputs(specs, fix, report)
    data_sets = _read(specs, job, storage)
    check_model(job)  # after the files: a hub may be slow to say no
    data_sets = _check(data_sets, job, headers_only, storage, console)
    data_sets = [judge(data, boxes, is_fixed=fix is not None) for data in data_sets]
    print_report(data_sets, console)
    if report is not None:
        write_report(data_sets, report, storage)
        console.print(Text(f"All problems: {report}"), soft_wrap=True)
    if fix is not None:
        (data,) = data_sets
        if data.note and not data.sizes:
            raise UserError(
                "--fix must know what the boxes are in: --boxes pixels, or --boxes normalised"
            )
        _fix(data, fix, storage, console)
    return sum(len(data.problems) for data in data_sets)


def _check_outputs(specs: Sequence[DataSpec], fix: str | None, report: str | None) -> None:
    inputs = [spec.conversations or spec.annotations or "" for spec in specs]
    if report is not None:
        if not report.endswith((".jsonl", ".ndjson", ".parquet")):
            raise UserError(f"--report must be .jsonl or .parquet, got {report}")
        check_output("--report", report, inputs)
    if fix is None:
        return
    if len(specs) != 1 or specs[0].conversations is None:
        raise UserError("--fix writes one file of conversations: check one such data set at a time")
    if not fix.endswith((".jsonl", ".ndjson")):
        raise UserError(f"--fix writes JSON lines: give it a .jsonl, got {fix}")
    check_output("--fix", fix, inputs)
    if report is not None and absolute(report) == absolute(fix):
        raise UserError("--fix and --report name the same file")


def _read(specs: Sequence[DataSpec], job: FinetuneJob, storage: Storage) -> list[DataSet]:
    # flash_attention_2 has no branches, so that training shows each conversation alone.
    share = job.training.share_media and job.model.attn_implementation != "flash_attention_2"
    data_sets, number = [], 0
    for spec in specs:
        examples = read_data(spec, storage)
        if not examples:
            name = shown(spec.conversations or spec.annotations or "")
            where = f", or `where` ({spec.where}) selects none" if spec.where else ""
            raise ManifestError(f"{name} has no answers to learn: no rows, all null{where}")
        good = [example for example in examples if isinstance(example, Conversation)]
        groups = group_by_media(good, share_media=share)
        works = [Work(sample=number + k, conversations=g) for k, g in enumerate(groups)]
        number += len(works)
        problems = [example for example in examples if isinstance(example, DataProblem)]
        data_sets.append(DataSet(spec=spec, examples=examples, works=works, problems=problems))
    return data_sets


def _check(
    data_sets: Sequence[DataSet],
    job: FinetuneJob,
    headers_only: bool,
    storage: Storage,
    console: Console,
) -> list[DataSet]:
    """Prepare all samples on the cluster."""
    works = [work for data in data_sets for work in data.works]
    results: dict[int, Checked] = {}
    if works:
        with connected(console):
            # A decoded sample takes about as long as ten headers.
            actors = plan_actors(len(works) * (1 if headers_only else 10))
            dataset = build_check(works, job, storage, headers_only=headers_only, actors=actors)
            num = len(works)
            bar = Progress(console, "checking", total_units=num, total_cost=float(num))
            with bar, actor_errors():
                for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                    checked = from_checked(batch)
                    results |= {c.sample: c for c in checked}
                    failed = sum(1 for c in checked if c.problems)
                    bar.advance(len(checked), cost=float(len(checked)), failed=failed)
    if missing := {work.sample for work in works} - results.keys():
        raise RuntimeError(f"{len(missing):,} samples came back without a result")
    return [
        dataclasses.replace(data, checked=[results[work.sample] for work in data.works])
        for data in data_sets
    ]


def judge(data: DataSet, unit: BoxUnit, *, is_fixed: bool) -> DataSet:
    """Add what the actors found, and what is wrong with boxes; problems in the rows' order.

    is_fixed: boxes in pixels that can be converted are no problem.
    """
    problems = data.problems + [p for checked in data.checked for p in checked.problems]
    boxes = [b for checked in data.checked for b in checked.boxes]
    if data.spec.annotations is not None:
        unit, note = "normalised", None  # the pipeline has just written them
    else:
        unit, note = choose_unit(boxes, unit)
    bad = {problem.origin for problem in problems}
    sizes = {}
    for b in boxes:
        fault = b.fault_1000
        if unit == "pixels":
            fault = b.fault_pixels
            if b.width is None or b.height is None:
                fault = None if b.origin in bad else fault  # why it has no size is told already
            elif fault is None:
                sizes[b.origin] = (b.width, b.height)
                fault = f"in pixels of {b.width} x {b.height}, not in 0..1000: --fix converts it"
                fault = None if is_fixed else fault
        if fault is not None:
            problems.append(DataProblem(origin=b.origin, type=ProblemType.BAD_BOX, message=fault))
    order = {example.origin: k for k, example in enumerate(data.examples)}
    problems.sort(key=lambda problem: order[problem.origin])
    return dataclasses.replace(data, problems=problems, sizes=sizes, note=note)


def choose_unit(boxes: Sequence[AnswerBoxes], asked: BoxUnit) -> tuple[BoxUnit, str | None]:
    """Whether a data set's boxes are in pixels or in 0..1000, and what to say of the choice."""
    if asked != "auto":
        return asked, None
    sized = [b for b in boxes if b.width is not None]
    over = sum(b.is_over_1000 for b in sized)
    outside = sum(not b.is_inside for b in sized)
    if over:
        seen = f"in {over:,} of {len(sized):,} conversations with boxes some are over 1000"
        if not outside:
            return "pixels", (
                f"boxes are taken to be in pixels: {seen}, and all lie within their pictures; if "
                "that is wrong, use --boxes normalised"
            )
        return "normalised", (
            f"boxes are taken to be in 0..1000: {seen}, but in {outside:,} some lie beyond their "
            "pictures; if most are in pixels, use --boxes pixels"
        )
    if not outside and any(min(b.width or 0, b.height or 0) < 1000 for b in sized):
        return "normalised", (
            "boxes are taken to be in 0..1000, but all lie within their pictures of fewer pixels: "
            "look at some, and use --boxes pixels if they are in pixels"
        )
    return "normalised", None


def _fix(data: DataSet, out: str, storage: Storage, console: Console) -> None:
    """Write the rows without problems, boxes in 0..1000, and say what was done."""
    assert data.spec.conversations is not None
    bad = {problem.origin for problem in data.problems}
    base = media_base(data.spec)
    is_beside = data.spec.media_folder is None and str(Path(absolute(out)).parent) == base
    kept = []
    for origin, row in read_rows(data.spec.conversations, storage):
        if origin in bad:
            continue
        row = row if is_beside else _with_absolute_media(row, base)
        kept.append(_converted(row, data.sizes[origin]) if origin in data.sizes else row)
    converted = [b for c in data.checked for b in c.boxes if b.origin in data.sizes.keys() - bad]
    boxes = sum(b.num_places for b in converted)
    if kept:
        write_lines(kept, out, storage)
    print_summary(
        console,
        f"fixed: {out}" if kept else f"no row can be kept, {out} was not written",
        [
            ("converted", f"{len(converted):,} rows, {boxes:,} boxes and points in them"),
            ("kept", f"{len(kept) - len(converted):,} rows as they are"),
            ("left out", f"{len(bad):,} rows, with the problems above"),
        ],
    )


def _converted(row: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    turns = []
    for turn in row["conversations"]:
        key = "value" if "value" in turn else "content"
        if turn.get("from", turn.get("role")) in ("gpt", "assistant"):
            turn = turn | {key: pixels_to_1000(turn[key], *size)}
        turns.append(turn)
    return row | {"conversations": turns}


def _with_absolute_media(row: dict[str, Any], base: str) -> dict[str, Any]:
    """The row for a file in another folder."""
    base = resolve(row["data_path"], base) if isinstance(row.get("data_path"), str) else base

    def resolved(value: Any) -> Any:
        if isinstance(value, list):
            return [resolved(path) for path in value]
        return resolve(value, base) if isinstance(value, str) else value

    keys = ("image", "images", "video", "videos")
    rest = {key: value for key, value in row.items() if key != "data_path"}
    return rest | {key: resolved(row[key]) for key in keys if key in row}


if __name__ == "__main__":
    from jobs.cli import main

    main(prog_name="reelscribe", args=["check-dataset", *sys.argv[1:]])
