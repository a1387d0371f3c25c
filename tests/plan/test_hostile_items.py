"""What a file claims costs no more than its bytes hold; sound files of few bytes are planned."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.plan.planner import PROBE_THREADS, Planner
from pipeline.storage.storage import Storage
from pipeline.workers.child_process import Isolated
from schemas.tables.manifest import MediaItem
from schemas.tables.unit import Unit
from tests.support.clips import numbered_frames, write_clip
from tests.support.hostile.claims import claiming_mp4
from tests.support.job_files import make_job

DAY = 86400
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\nshowpage\n%%EOF\n"


def plan(path: Path, checkpoint: Path, **sections: object) -> list[Unit]:
    planner = Planner(make_job(checkpoint, **sections), 262_144, Storage())
    return planner.plan([MediaItem(media_id="m", uri=str(path))])


def claimed(path: Path, **claims: int) -> Path:
    path.write_bytes(claiming_mp4(**claims))
    return path


@pytest.mark.parametrize(
    "claims",
    [
        {"sample_seconds": 100 * DAY},
        {"sample_seconds": 2_000_000_000},
        {"sample_seconds": 100 * DAY, "missing_bytes": 4000},
    ],
    ids=["100 days", "63 years", "cut short"],
)
def test_a_length_that_the_bytes_cannot_hold_is_one_error(tmp_path, checkpoint, claims):
    path = claimed(tmp_path / "a.mp4", **claims)
    (unit,) = plan(path, checkpoint)
    assert unit.error.type == "media_unreadable"
    assert f"which its {path.stat().st_size:,} bytes cannot hold" in unit.error.message


def test_frames_years_apart_are_one_error(tmp_path, checkpoint):
    """Matroska: 12 hours are the most from frame to frame, and here are too many of them."""
    frames = [Image.new("RGB", (16, 16))] * 100
    times = [k * 11.9 * 3600 for k in range(100)]
    write_clip(tmp_path / "a.mkv", frames, fps=1, pts_seconds=times, gop_size=1000)
    (unit,) = plan(tmp_path / "a.mkv", checkpoint)
    assert (unit.error.type, "cannot hold" in unit.error.message) == ("media_unreadable", True)


def grey(count: int) -> list[np.ndarray]:
    return [np.full((48, 64, 3), 90, np.uint8)] * count


SPARSE = {
    "a slideshow of one frame a minute.mp4": (grey(360), [60.0 * k for k in range(360)]),
    "a slideshow of one frame a minute.mkv": (grey(360), [60.0 * k for k in range(360)]),
    "a time lapse of one frame in 10 s.mp4": (grey(400), [10.0 * k for k in range(400)]),
    "one frame an hour for two days.mp4": (grey(48), [3600.0 * k for k in range(48)]),
    "black at 1 fps for half an hour.mkv": ([f * 0 for f in grey(1800)], None),
}


@pytest.mark.parametrize("name", SPARSE)
def test_sound_files_of_few_bytes_are_planned(tmp_path, checkpoint, name):
    frames, times = SPARSE[name]
    path = tmp_path / name
    write_clip(path, frames, fps=1, pts_seconds=times, gop_size=10_000)
    units = plan(path, checkpoint)
    assert not [unit.error for unit in units if unit.error]
    seconds = units[-1].sampling.end_seconds
    assert seconds == pytest.approx((times or [len(frames) - 1])[-1], rel=0.03)
    assert len(units) == pytest.approx(seconds / 60, abs=2)


def test_one_frame_for_ten_hours_is_planned(tmp_path, checkpoint):
    units = plan(claimed(tmp_path / "a.mp4", sample_seconds=36_000), checkpoint)
    assert len(units) == 600 and not any(unit.error for unit in units)


@pytest.mark.parametrize(
    ("segmentation", "num_units"),
    [
        ({"kind": "window", "seconds": 60}, 360),
        ({"kind": "window", "seconds": 60, "overlap_seconds": 30}, 719),
        ({"kind": "shots", "seconds": 30}, 720),
        ({"kind": "window", "seconds": 0.1, "min_seconds": 0}, 216_000),
    ],
)
def test_an_item_of_too_many_units_is_one_error(tmp_path, checkpoint, segmentation, num_units):
    if segmentation["kind"] == "shots":
        pytest.importorskip("scenedetect")
    path = claimed(tmp_path / "a.mp4", sample_seconds=21_600)
    sections = {"sampling": {"segmentation": segmentation}}
    limit = num_units - 1
    (unit,) = plan(path, checkpoint, limits={"max_units_per_item": limit}, **sections)
    assert unit.error.type == "too_many_units"
    assert f"{num_units:,} units, over limits.max_units_per_item {limit:,}" in unit.error.message
    if num_units < 1000:
        units = plan(path, checkpoint, limits={"max_units_per_item": num_units}, **sections)
        assert len(units) == num_units and not any(unit.error for unit in units)


def test_headers_that_are_read_at_a_time_share_one_limit_of_memory(tmp_path, checkpoint):
    """Each claims a table of 2 GB in 1,300 bytes; a sound clip among them is planned."""
    for k in range(4):
        claimed(tmp_path / f"{k}.mp4", num_samples=89_000_000)
    write_clip(tmp_path / "sound.mp4", numbered_frames(10), fps=10)
    isolated = Isolated("pipeline.plan.sampler", PROBE_THREADS, quiet=True)
    job = make_job(checkpoint, resources={"decode_memory_gib": 0.125})
    items = [MediaItem(media_id=p.stem, uri=str(p)) for p in sorted(tmp_path.iterdir())]
    units = Planner(job, 262_144, Storage(), isolated).plan(items)
    isolated.close()
    found = {unit.media_id: unit.error and unit.error.type for unit in units}
    assert found == {str(k): "media_too_large" for k in range(4)} | {"sound": None}


@pytest.mark.parametrize("name", ["photo.jpg", "photo", "photo.eps"])
def test_a_format_that_is_not_read_is_named_whatever_the_file_is_called(tmp_path, checkpoint, name):
    (tmp_path / name).write_bytes(EPS)
    (unit,) = plan(tmp_path / name, checkpoint)
    assert (unit.error.type, "EPS" in unit.error.message) == ("media_unsupported", True)
