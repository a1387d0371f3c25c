"""Shots: cuts are found at the times where the test put them, in real files."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.media.shots import shot_starts
from pipeline.plan.planner import Planner
from pipeline.storage.storage import Storage
from schemas.tables.manifest import MediaItem
from tests.support.clips import write_clip
from tests.support.job_files import make_job

pytest.importorskip("scenedetect", reason="shots need it: pip install -e '.[shots]'")

COLORS = [(200, 40, 40), (40, 160, 60), (40, 60, 200), (230, 220, 60), (20, 20, 20)]
CUTS = (3.0, 4.5, 11.0, 12.5)


def picture(t: float, offset: float = 0.0) -> np.ndarray:
    """A plain colour for each shot, with a bar that moves all the time."""
    shot = sum(t - offset >= cut for cut in CUTS)
    pixels = np.full((96, 160, 3), COLORS[shot], np.uint8)
    x = int(20 * t) % 140
    pixels[40:60, x : x + 16] = 255
    return pixels


def film(path: Path, times: list[float], **options) -> Path:
    write_clip(path, (picture(t) for t in times), pts_seconds=times, **options)
    return path


def starts(path: Path) -> list[float]:
    with Storage().open_media(str(path), header_only=True) as file:
        return shot_starts(file, 27.0)


EVEN = [k / 10 for k in range(150)]
UNEVEN = sorted({k / 2 for k in range(30)} | {round((k * 0.37) % 15, 2) for k in range(150)})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("x264.mp4", {}),
        ("b-frames.mp4", {"max_b_frames": 2}),
        ("one-key.mp4", {"gop_size": 600, "codec_options": {"x264-params": "scenecut=0"}}),
        ("rare-keys.mkv", {"gop_size": 40, "codec_options": {"x264-params": "scenecut=0"}}),
        ("vp9.webm", {"codec": "libvpx-vp9"}),
        ("x265.mp4", {"codec": "libx265"}),
        ("late.mp4", {"start_seconds": 30.25}),
    ],
)
@pytest.mark.parametrize("times", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_cuts_are_found_at_their_pts(tmp_path, name, options, times):
    begin = options.get("start_seconds", 0.0)
    assert starts(film(tmp_path / name, times, **options)) == pytest.approx(
        [begin + cut for cut in CUTS], abs=0.002
    )


def test_only_key_frames_are_compared_where_nothing_cuts(tmp_path, monkeypatch):
    """A film without a cut costs its key frames, 1 in 50, and the frames after the last one."""
    compared = []
    monkeypatch.setattr(
        "scenedetect.detectors.ContentDetector.process_frame",
        lambda self, timecode, frame: compared.append(frame) or [],
    )
    path = tmp_path / "long.mp4"
    write_clip(path, (picture(0.5) for _ in range(500)), fps=10, gop_size=50)
    assert starts(path) == []
    assert len(compared) == 10 + 50


def test_a_still_picture_is_one_shot(tmp_path):
    path = tmp_path / "still.mp4"
    write_clip(path, (picture(0.5) for _ in range(60)), fps=10)
    assert starts(path) == []


def test_units_are_shots_with_short_ones_joined_and_long_ones_cut(tmp_path, checkpoint):
    path = film(tmp_path / "film.mp4", EVEN, start_seconds=2.0)
    cut = {"kind": "shots", "seconds": 4, "overlap_seconds": 1, "min_seconds": 2}
    job = make_job(checkpoint, sampling={"segmentation": cut})
    item = MediaItem(media_id="film", uri=str(path))
    units = Planner(job, 262_144, Storage()).plan([item])
    spans = [(u.sampling.start_seconds, u.sampling.end_seconds) for u in units]
    # Shots begin at 2, 5, 6.5 (too short: joined to the one at 5), 13 and 14.5 (the same). The
    # last second of the second one is too short for a window of its own.
    expected = [(2, 5), (5, 9), (8, 13), (13, 17)]
    assert np.asarray(spans) == pytest.approx(np.asarray(expected), abs=0.002)
