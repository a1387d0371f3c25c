"""Large jobs: items are planned slice by slice while units of others are annotated."""

import io
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

import jobs.run.slices
from jobs.plan import plan
from jobs.run import annotate, retry
from pipeline.output.table import read_committed
from pipeline.plan import slices
from pipeline.plan.slices import Slice, SliceSettings, bounds_of, cut_items, in_slices
from pipeline.storage.storage import Storage
from schemas.errors import CostError, JobFileError, StorageError
from schemas.job.job import Job
from schemas.tables.columns import to_table
from schemas.tables.error import ErrorRecord
from schemas.tables.manifest import MediaItem
from schemas.tables.unit import UNIT, Unit
from tests.support.job_files import TINY_BUDGET, make_job

NUM_MEDIA = 60


def items_of(*uris: str, **fields: Any) -> list[MediaItem]:
    return [MediaItem(media_id=f"{k}:{uri}", uri=uri, **fields) for k, uri in enumerate(uris)]


def spans_of(uri: str, number: int) -> list[MediaItem]:
    return [MediaItem(media_id=uri, uri=uri, start_seconds=float(k)) for k in range(number)]


def test_every_item_is_in_one_slice_and_the_first_are_small():
    chance = random.Random(1)
    items = [
        span for k in range(9_000) for span in spans_of(f"s3://b/{k}.jpg", chance.randrange(5))
    ]
    chance.shuffle(items)
    cut = cut_items(items)
    assert Counter(item.media_id for part in cut for item in part) == Counter(
        item.media_id for item in items
    )
    sizes = [len(part) for part in cut]
    first = sizes.index(max(sizes))
    assert sizes[:3] == pytest.approx([64, 128, 256], abs=16) and max(sizes) < 4096 + 16
    assert first >= 3 and min(sizes[first:]) > 2048
    media = [name for part in cut for name in {item.media_id for item in part}]
    assert len(media) == len(set(media)), "spans of one medium are in two slices"
    chance.shuffle(items)
    assert [{i.media_id for i in part} for part in cut_items(items)] == [
        {i.media_id for i in part} for part in cut
    ]


@pytest.mark.parametrize(
    ("kind", "number", "expected"),
    [("jpg", 4096, 1), ("jpg", 0, 0), ("mp4", 1024, 1), ("mp4", 1025, 7), ("jpg", 4097, 7)],
)
def test_few_items_are_one_slice(kind: str, number: int, expected: int):
    """A video counts as four images; of 4,097 the first slice is cut into 64, 128, ... ."""
    assert len(cut_items(items_of(*(f"{k}.{kind}" for k in range(number))))) == expected


def test_items_come_back_to_their_slices():
    items = items_of(*(f"https://h/{k % 3_000}.jpg?signature={k}" for k in range(6_000)))
    cut = cut_items(items)
    bounds = bounds_of(cut)
    assert "signature" not in str(bounds["place"].to_pylist())
    assert in_slices(items, bounds) == cut
    some = in_slices(items[::7], bounds)
    assert len(some) == len(cut) and all(set(a) <= set(b) for a, b in zip(some, cut, strict=True))


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    chance = np.random.default_rng(0)
    for k in range(NUM_MEDIA):
        pixels = chance.integers(0, 255, (40 + k, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{k:03}.jpg")
    (folder / "broken.png").write_bytes(b"\x89PNG no more")
    return folder


@pytest.fixture
def job(
    ray_session, checkpoint: Path, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Job]:
    monkeypatch.setattr(slices, "SLICE_ITEMS", 16)
    monkeypatch.setattr(slices, "_FIRST_ITEMS", 4)
    simulated = {"speed": 1000.0, "output_tokens": 8}  # answers follow from the unit's id

    def make(**sections: Any) -> Job:
        given = {
            "model": {"source": str(checkpoint), "engine": "simulated", "simulated": simulated},
            "input": {"scan": str(media)},
            "output": str(tmp_path / "out"),
            "budget": TINY_BUDGET,
            "tasks": ["caption", "ocr"],
            "resources": {"ray": "always", "replicas": 1, "decoders": 1},
        }
        return make_job(tmp_path, **given | sections)

    return make


def said_by(job: Job) -> str:
    console = Console(file=io.StringIO(), width=200)
    annotate.run(job, console)
    return console.file.getvalue()


def rows_of(job: Job) -> dict[str, dict[str, Any]]:
    """Rows of the plain files, by the name of their media; every unit once."""
    columns = ["unit_id", "uri", "caption", "status", "run_id"]
    rows = ds.dataset(Path(job.output, "annotations"), format="parquet").to_table(columns)
    assert len(set(rows["unit_id"].to_pylist())) == rows.num_rows == NUM_MEDIA + 1
    assert not list(Path(job.output).glob("annotations-pieces/**/part-*.parquet"))
    return {row["uri"].rpartition("/")[2]: row for row in rows.to_pylist()}


def plans_of(job: Job) -> list[Path]:
    return sorted(Path(job.output).glob("runs/*/plan/*.parquet"))


def test_slices_give_the_rows_of_a_whole_plan(job, tmp_path: Path, monkeypatch):
    said = said_by(job())
    found = rows_of(job())
    assert "these are 4 of 61 media; others are planned meanwhile" in said
    assert "is complete" in said and "media_unreadable" in said
    plans = plans_of(job())
    assert len(plans) == len({plan.name for plan in plans}) > 4
    assert sum(pq.read_metadata(plan).num_rows for plan in plans) == NUM_MEDIA + 1
    assert "planned" not in said_by(job())  # complete
    monkeypatch.setattr(slices, "SLICE_ITEMS", 4096)
    whole = job(output=str(tmp_path / "whole"))
    said_by(whole)
    expected = rows_of(whole)
    assert {name: row["caption"] for name, row in found.items()} == {
        name: row["caption"] for name, row in expected.items()
    }
    assert found["broken.png"]["status"] == "failed"


@pytest.fixture
def stop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver stops when it has seen rows three times; at its next start it does not."""
    calls = 0
    seen_in = jobs.run.slices._Planned.seen_in

    def stops(self, rows):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise StorageError("stopped")
        return seen_in(self, rows)

    monkeypatch.setattr(jobs.run.slices._Planned, "seen_in", stops)


def test_a_run_that_was_stopped_goes_on_with_what_is_left(job, stop_once):
    """What has a row is not done again, however far the chain came before its driver stopped."""
    with pytest.raises(StorageError, match="stopped"):
        said_by(job(resources={"ray": "always", "replicas": 1, "units_per_file": 2}))
    plans_of(job())[-1].unlink()
    with pytest.raises(JobFileError, match="not planned to its end"):
        retry.run(job(), Console(file=io.StringIO()))
    before = read_committed(job().output, _recipes(job()), Storage({}))
    assert before.num_rows
    files = {plan: plan.stat().st_mtime_ns for plan in plans_of(job())}
    said = said_by(job())
    rows_of(job())
    assert all(plan.stat().st_mtime_ns == written for plan, written in files.items())
    (last,) = re.findall(r"the last of 2 starts, which did (\d+) units", said)
    assert int(last) <= NUM_MEDIA + 1 - before.num_rows


def _recipes(job: Job) -> set[str]:
    from jobs.plan.open_job import open_job

    return set(open_job(job)[0].run.recipe_ids)


def test_units_of_an_earlier_run_are_not_done_again(job, media: Path, tmp_path: Path):
    """Also where all units of a slice have rows."""
    said_by(job())
    again = job(input=manifest_of(tmp_path, *sorted(media.iterdir())), name="again")
    said = said_by(again)
    assert f"{NUM_MEDIA + 1} by earlier runs" in said


def test_media_that_cannot_be_read_are_planned_again_until_the_run_begins(job, media: Path):
    console = Console(file=io.StringIO(), width=200)
    whole = (media / "007.jpg").read_bytes()
    (media / "007.jpg").write_bytes(b"")
    try:
        planned = plan.run(job(), console)
    finally:
        (media / "007.jpg").write_bytes(whole)
    assert planned.num_rows == NUM_MEDIA + 1 and len(plans_of(job())) > 4
    said_by(job())
    assert rows_of(job())["007.jpg"]["status"] == "ok"


def test_failed_units_are_retried_in_their_slices(job, media: Path):
    whole = (media / "007.jpg").read_bytes()
    (media / "007.jpg").write_bytes(b"")
    try:
        said_by(job())
    finally:
        (media / "007.jpg").write_bytes(whole)
    assert rows_of(job())["007.jpg"]["status"] == "failed"
    retry.run(job(), Console(file=io.StringIO()), error_types=["media_unreadable"])
    assert rows_of(job())["007.jpg"]["status"] == "ok"


def test_a_run_stops_when_what_is_planned_costs_too_much(job):
    """By a sample before the engines start, then by the sum of what is planned."""
    cost = {"per_hour": 1.0}
    with pytest.raises(CostError, match="Nothing was annotated"):
        said_by(job(cost=cost, limits={"max_cost": 1e-9}))
    assert not list(Path(job().output).glob("annotations*/**/*.parquet"))


def test_only_new_media_are_sliced_too(job, media: Path, stop_once):
    """After a stop, media that have rows are not listed as new any more: the slices stay."""
    nightly = job(input={"scan": str(media), "only_new": True})
    with pytest.raises(StorageError, match="stopped"):
        said_by(nightly)
    (bounds,) = Path(nightly.output).glob("runs/*/slices.parquet")
    before = bounds.read_bytes()
    assert "is complete" in said_by(nightly)
    assert bounds.read_bytes() == before
    rows_of(nightly)
    assert "0 are taken as new" in said_by(nightly)


def manifest_of(tmp_path: Path, *files: object) -> dict[str, str]:
    manifest = tmp_path / f"{len(files)}.csv"
    manifest.write_text("uri\n" + "".join(f"{file}\n" for file in files))
    return {"manifest": str(manifest)}


def test_what_no_one_can_read_is_an_error_of_the_job(job, tmp_path: Path):
    """However often it is tried, and with a whole plan too; nothing is annotated."""
    barred = job(input=manifest_of(tmp_path, *(tmp_path / f"{k}.jpg" for k in range(40))))
    for _ in range(2):
        with pytest.raises(StorageError, match="none of the"):
            said_by(barred)
    with pytest.raises(StorageError, match="none of the"):
        plan.run(barred, Console(file=io.StringIO()))
    with pytest.raises(StorageError, match="none of the"):
        said_by(barred)
    assert not list(Path(barred.output).glob("annotations*/**/part-*.parquet"))


def test_media_that_are_gone_do_not_stop_a_manifest_that_grew(job, media: Path, tmp_path: Path):
    """Nothing of the slices that are left can be read, and they are not all."""
    files = sorted(media.iterdir())
    said_by(job(input=manifest_of(tmp_path, *files)))
    gone = [tmp_path / "gone" / f"{k}.jpg" for k in range(20)]
    said = said_by(job(input=manifest_of(tmp_path, *files, *gone)))
    assert "20 media_missing" in said and "is complete" in said


def test_a_plan_of_a_run_that_has_begun_stays(job):
    said_by(job())
    before = {file: file.stat().st_mtime_ns for file in plans_of(job())}
    plan.run(job(), Console(file=io.StringIO()))
    assert {file: file.stat().st_mtime_ns for file in plans_of(job())} == before


def test_a_storage_that_fails_while_planning_stops_the_run():
    items = items_of(*(f"s3://b/{k}.jpg" for k in range(slices.OUTAGE_ITEMS)))
    settings = SliceSettings(
        folder="memory://outage/plan", run_id="r", max_model_len=1, max_batch_tokens=1, attempt="a"
    )

    def planned(items: list[MediaItem]) -> pa.Table:
        error = ErrorRecord(type="storage_failed", message="503", stage="plan")
        units = [
            Unit(unit_id=item.media_id, unread_id="", media_id=item.media_id, uri=item.uri)
            for item in items
        ]
        return to_table([unit.failed(error) for unit in units], UNIT)

    some = Slice(number=0, items=tuple(items), num_items_later=0)
    with pytest.raises(StorageError, match="32 times in a row, the last time with: 503"):
        slices.plan_items(some, settings, Storage({}), planned)
    few = Slice(number=0, items=tuple(items[1:]), num_items_later=0)
    assert slices.plan_items(few, settings, Storage({}), planned).num_rows == len(few.items)
