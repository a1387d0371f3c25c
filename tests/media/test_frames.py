"""sampling.frames nearest and keyframes: true times, exact plans; seeks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream
from PIL import Image

from pipeline.media.container import open_video, packet_times
from pipeline.media.decode import decode_unit
from pipeline.media.pyav import pyav_frames
from pipeline.plan.planner import Planner
from pipeline.stages.prepare import Prepare
from pipeline.storage.storage import Storage
from pipeline.workers.code_version import code_digest
from schemas.job.sampling import SamplingSpec, Segmentation
from schemas.tables.manifest import MediaItem
from schemas.tables.unit import Unit
from tests.support.clips import number_in, numbered_frames, video_unit, write_clip
from tests.support.job_files import TINY_BUDGET, make_job

NUM_FRAMES, FPS = 260, 10
IN_ONE = Segmentation(kind="none")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    frames = numbered_frames(NUM_FRAMES)
    uneven = np.cumsum([0.04, 0.15, 0.1, 0.11] * (NUM_FRAMES // 4)).tolist()
    options = {
        "b.mp4": {"max_b_frames": 3, "gop_size": 40},
        "b.mkv": {"max_b_frames": 3, "gop_size": 40, "start_seconds": 90.0},
        "b.ts": {"max_b_frames": 3, "gop_size": 25, "start_seconds": 1.0},
        "uneven.mkv": {"max_b_frames": 2, "gop_size": 30, "pts_seconds": uneven},
        "hevc.mp4": {"codec": "libx265", "max_b_frames": 3, "gop_size": 50},
    }
    for name, given in options.items():
        write_clip(folder / name, frames, fps=FPS, **given)
    return {name: folder / name for name in options}


NAMES = ["b.mp4", "b.mkv", "b.ts", "uneven.mkv", "hevc.mp4"]


def all_packets(path: Path) -> list[tuple[float, bool]]:
    """PTS in seconds and key flag of every packet, ascending."""
    with Storage().open_media(str(path)) as file, open_video(file) as (container, stream):
        times, _ = packet_times(container, stream)
        return [(float(pts * stream.time_base), is_key) for pts, _, is_key in times]


def numbers(pixels: np.ndarray) -> list[int]:
    small = [Image.fromarray(frame).resize((160, 120)) for frame in pixels]
    return [number_in(np.asarray(frame)) for frame in small]


def unit_of(path: Path, frames: str, **spec) -> Unit:
    unit = video_unit(path, SamplingSpec(segmentation=IN_ONE, **spec))
    object.__setattr__(unit.sampling, "frames", frames)
    return unit


@pytest.mark.parametrize("name", NAMES)
def test_nearest_frames_are_close_and_have_their_true_times(clips, name: str):
    unit = unit_of(clips[name], "nearest", fps=2)
    found = decode_unit(unit, Storage())
    every = [pts for pts, _ in all_packets(clips[name])]
    shown = [int(np.argmin(np.abs(np.array(every) - pts))) for pts in found.pts_seconds]
    assert np.allclose([every[n] for n in shown], found.pts_seconds, atol=1e-6)
    assert numbers(found.pixels) == shown
    distance = np.abs(np.array(found.pts_seconds) - unit.sampling.times_seconds())
    assert distance.max() < 0.5
    exact = decode_unit(unit_of(clips[name], "exact", fps=2), Storage())
    assert found.pts_seconds != exact.pts_seconds  # some frames are not there


@pytest.mark.parametrize("name", NAMES)
def test_keyframes_are_those_on_display(clips, name: str):
    unit = unit_of(clips[name], "keyframes", fps=2)
    found = decode_unit(unit, Storage())
    packets = all_packets(clips[name])
    keys = [pts for pts, is_key in packets if is_key]
    assert 2 < len(keys) < 20
    times = unit.sampling.times_seconds()
    wanted = [max([k for k in keys if k <= t + 1e-6], default=keys[0]) for t in times]
    exact = decode_unit(unit_of(clips[name], "exact", fps=2), Storage()).pts_seconds
    for k in range(0, len(times), 2):  # where a time gains a digit, the frames are the exact ones
        if len(f"{sum(wanted[k : k + 2]) / 2:.1f}") != len(f"{sum(times[k : k + 2]) / 2:.1f}"):
            wanted[k : k + 2] = exact[k : k + 2]
    assert np.allclose(found.pts_seconds, wanted, atol=1e-6)
    every = np.array([pts for pts, _ in packets])
    assert numbers(found.pixels) == [
        int(np.argmin(np.abs(every - pts))) for pts in found.pts_seconds
    ]


@pytest.mark.parametrize("frames", ["exact", "nearest", "keyframes"])
@pytest.mark.parametrize("seconds", [60, 4.7])
@pytest.mark.parametrize("clock", ["media", "unit"])
def test_the_plan_has_the_exact_tokens(clips, checkpoint, frames: str, seconds: float, clock: str):
    """Across 10 s, where the text of a time gains a digit, and in windows."""
    sampling = {"frames": frames, "clock": clock}
    sampling |= {"segmentation": {"kind": "window", "seconds": seconds}}
    job = make_job(checkpoint, sampling=sampling, budget=TINY_BUDGET | {"unit_tokens": 256})
    items = [MediaItem(media_id=name, uri=str(path)) for name, path in clips.items()]
    prepare = Prepare(job, Storage(), code_digest())
    units = Planner(job, 262_144, Storage()).plan(items)
    assert len(units) >= 5
    for unit in units:
        prepared = prepare.prepare(unit)
        assert prepared.error is None
        (prompt,) = prepared.prompts
        assert len(prompt.input_ids) == prompt.num_prompt_tokens
        assert prepared.sampling.frames == frames


@pytest.mark.parametrize("name", NAMES)
def test_seeks_lead_to_the_same_frames(clips, name: str):
    unit = unit_of(clips[name], "exact", num_frames=4)
    found = []
    for lead in (1.0, 10.0, None):
        with Storage().open_media(unit.uri) as file, open_video(file) as (container, stream):
            frames = pyav_frames(container, stream, unit.media, unit.sampling, 1, lead_seconds=lead)
            found.append(frames)
    for other in found[1:]:
        assert found[0].pts_seconds == other.pts_seconds
        assert np.array_equal(found[0].pixels, other.pixels)


class CountingContainer:
    """A container that counts the packets that are read from it."""

    def __init__(self, container: InputContainer) -> None:
        self.container, self.num_packets = container, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.container, name)

    def demux(self, stream: VideoStream) -> Iterator[Packet]:
        for packet in self.container.demux(stream):
            self.num_packets += 1
            yield packet


def test_frames_that_no_sample_needs_are_not_decoded(clips):
    """Four frames of 26 s, with a key frame every 4 s: almost half of the packets are skipped."""
    unit = unit_of(clips["b.mp4"], "exact", num_frames=4)
    with Storage().open_media(unit.uri) as file, open_video(file) as (container, stream):
        counting = CountingContainer(container)
        assert pyav_frames(counting, stream, unit.media, unit.sampling, 1, lead_seconds=1.0)
    assert 4 < counting.num_packets < 0.6 * NUM_FRAMES
