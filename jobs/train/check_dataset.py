"""``reelscribe check-dataset``: find mistakes in training data before training starts.

Every row is read once, and every sample is prepared as training would: media decoded, tokens
counted. Then the boxes in the answers are checked; boxes in pixels can be converted to 0..1000.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from jobs.cluster.session import actor_errors, plan_actors, ray_session
from jobs.console.output_path import absolute_uri, check_output, is_same_file
from jobs.console.progress import Progress, print_summary
from jobs.train.box_units import BoxUnit, add_problems
from jobs.train.check_report import DataSet, print_report, write_lines, write_report
from jobs.train.job_checks import check_model, with_absolute_paths
from pipeline.manifest.uris import resolve_uri, without_slash
from pipeline.model.prompter import Prompter
from pipeline.storage.storage import Storage
from pipeline.training.check import Checked, Work, build_check
from pipeline.training.data.answer_boxes import pixels_to_1000
from pipeline.training.data.conversations import read_rows
from pipeline.training.data.examples import Example, media_base
from pipeline.training.data.read import read_data
from pipeline.training.groups import group_by_media, one_answer_each
from schemas.conversation import Conversation, DataProblem
from schemas.errors import UserError
from schemas.job.finetune import DataSpec, FinetuneJob, load_finetune_job
from schemas.shown import redact_uri

_JSON = (".json", ".jsonl", ".ndjson")


def load(
    source: str,
    overrides: dict[str, Any],
    *,
    media_folder: str | None,
    tasks: Sequence[str],
) -> FinetuneJob:
    """Read a training job file, or make a job for one data set: .json or .jsonl, else a table.

    Raises:
        UserError: the job is not valid, or an option does not fit the source.
    """
    if source.lower().endswith((".yaml", ".yml")):
        if media_folder or tasks:
            raise UserError("--media-folder and --tasks do not go with a job file: set them in it")
        return load_finetune_job(Path(source), overrides)
    if "model.source" not in overrides:
        raise UserError("a data set needs --model: its tokenizer counts the tokens")
    is_json = source.lower().endswith(_JSON)
    if not is_json and (suffix := Path(source).suffix.lower()) not in ("", ".parquet"):
        raise UserError(
            f"{redact_uri(source)} has the suffix {suffix}: a data set is .json or .jsonl, a job "
            "file .yaml, a table .parquet or a folder"
        )
    if is_json == bool(tasks):
        raise UserError(
            f"{redact_uri(source)} is read as "
            f"{'conversations: leave out' if is_json else 'a table: give'} --tasks, whose columns "
            "are the answers"
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
    """Check all data sets of a job and print a report; returns the number of problems left.

    headers_only: read headers of media instead of decoding them.
    boxes: unit of the boxes in answers.
    fix: file to write the rows without problems to, with boxes in 0..1000.
    report: file to write all problems to.

    Raises:
        UserError: with one clear message.
    """
    job = with_absolute_paths(job)
    storage = Storage(job.storage_options)
    specs = [spec.model_copy(update={"share": 100.0}) for spec in (*job.data, *job.validation)]
    # A data set that the job lists several times is checked once.
    specs = list({spec.model_dump_json(): spec for spec in specs}.values())
    _check_outputs(specs, fix, report)
    examples = [read_data(spec, storage) for spec in specs]
    check_model(job)  # after the files, because a model hub may be slow to refuse
    data_sets = _with_works(specs, examples, job)
    data_sets = check_samples(data_sets, job, headers_only, storage, console)
    data_sets = [add_problems(data, boxes, will_fix=fix is not None) for data in data_sets]
    print_report(data_sets, console)
    if report is not None:
        write_report(data_sets, report, storage)
        console.print(Text(f"All problems: {report}"), soft_wrap=True)
    if fix is not None:
        (data,) = data_sets
        if data.note and not data.sizes:
            raise UserError(
                "--fix needs the unit of the boxes: add --boxes pixels or --boxes normalised"
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
    if report is not None and is_same_file(report, fix):
        raise UserError("--fix and --report name the same file")


def _with_works(
    specs: Sequence[DataSpec], read: Sequence[list[Example]], job: FinetuneJob
) -> list[DataSet]:
    """The data sets with the samples that training makes of what was read."""
    data_sets, number = [], 0
    prompter = Prompter(job.model.source, job.model.revision)
    for spec, examples in zip(specs, read, strict=True):
        good = [example for example in examples if isinstance(example, Conversation)]
        divided = one_answer_each(good, prompter)
        groups = group_by_media(divided, share_media=job.training.share_media)
        works = [Work(sample=number + k, conversations=g) for k, g in enumerate(groups)]
        number += len(works)
        problems = [example for example in examples if isinstance(example, DataProblem)]
        data_sets.append(DataSet(spec=spec, examples=examples, works=works, problems=problems))
    return data_sets


def check_samples(
    data_sets: Sequence[DataSet],
    job: FinetuneJob,
    headers_only: bool,
    storage: Storage,
    console: Console,
) -> list[DataSet]:
    """Prepare all samples on the cluster, and add the results to the data sets."""
    works = [work for data in data_sets for work in data.works]
    results = check_works(works, job, headers_only, storage, console)
    return [
        dataclasses.replace(data, checked=[results[work.sample] for work in data.works])
        for data in data_sets
    ]


def check_works(
    works: Sequence[Work], job: FinetuneJob, headers_only: bool, storage: Storage, console: Console
) -> dict[int, Checked]:
    """Prepare samples on the cluster; returns the results by the samples' numbers."""
    results: dict[int, Checked] = {}
    if works:
        with ray_session(console):
            # A decoded sample takes about as long as ten headers.
            actors = plan_actors(len(works) * (1 if headers_only else 10))
            dataset = build_check(works, job, storage, headers_only=headers_only, actors=actors)
            num = len(works)
            bar = Progress(console, "checking", total_units=num, total_cost=float(num))
            with bar, actor_errors():
                for batch in dataset.iter_batches(batch_size=None, batch_format="numpy"):
                    checked: list[Checked] = list(batch["checked"])
                    results |= {c.sample: c for c in checked}
                    failed = sum(1 for c in checked if c.problems)
                    bar.advance(len(checked), cost=float(len(checked)), failed=failed)
    if missing := {work.sample for work in works} - results.keys():
        raise RuntimeError(f"{len(missing):,} samples came back without a result")
    return results


def _fix(data: DataSet, out: str, storage: Storage, console: Console) -> None:
    """Write the rows without problems, with boxes in 0..1000, and print a summary."""
    assert data.spec.conversations is not None
    bad = {problem.origin for problem in data.problems}
    base = media_base(data.spec)
    is_beside = data.spec.media_folder is None and str(Path(absolute_uri(out)).parent) == base
    kept = []
    for origin, row in read_rows(data.spec.conversations, storage):
        if origin in bad:
            continue
        row = row if is_beside else _with_absolute_media(row, base)
        kept.append(_convert_boxes(row, data.sizes[origin]) if origin in data.sizes else row)
    converted = [b for c in data.checked for b in c.boxes if b.origin in data.sizes.keys() - bad]
    boxes, rows = sum(b.num_places for b in converted), {b.origin for b in converted}
    if kept:
        write_lines(kept, out, storage)
    print_summary(
        console,
        f"fixed: {out}" if kept else f"no row can be kept, {out} was not written",
        [
            ("converted", f"{len(rows):,} rows, {boxes:,} boxes and points in them"),
            ("kept", f"{len(kept) - len(rows):,} rows as they are"),
            ("left out", f"{len(bad):,} rows, with the problems above"),
        ],
    )


def _convert_boxes(row: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    turns = []
    for turn in row["conversations"]:
        key = "value" if "value" in turn else "content"
        if turn.get("from", turn.get("role")) in ("gpt", "assistant"):
            turn = turn | {key: pixels_to_1000(turn[key], *size)}
        turns.append(turn)
    return row | {"conversations": turns}


def _with_absolute_media(row: dict[str, Any], base: str) -> dict[str, Any]:
    """The row for a file in another folder: relative media paths would not be valid there."""
    if isinstance(row.get("data_path"), str):
        base = without_slash(resolve_uri(row["data_path"], base))

    def resolved(value: Any) -> Any:
        if isinstance(value, list):
            return [resolved(path) for path in value]
        return resolve_uri(value, base) if isinstance(value, str) else value

    keys = ("image", "images", "video", "videos")
    rest = {key: value for key, value in row.items() if key != "data_path"}
    return rest | {key: resolved(row[key]) for key in keys if key in row}
