"""Frames and times: the two decoders compared with each other, and with ffmpeg and ffprobe."""

import dataclasses
import gc
import subprocess
import sys
import tracemalloc
from bisect import bisect_right
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.media.decode import decode_unit
from pipeline.media.frame_walk import FrameWalk
from pipeline.media.torchcodec import torchcodec_problem
from pipeline.storage.storage import Storage
from schemas.errors import ErrorType, UnitError
from schemas.job.sampling import Budget, SamplingSpec
from schemas.tables.media import Media, Sampling
from schemas.tables.unit import Unit
from tests.support.clips import (
    ffmpeg_frames,
    ffprobe_pts,
    needs_ffprobe,
    number_in,
    numbered_frames,
    video_unit,
    write_clip,
)

needs_torchcodec = pytest.mark.skipif(
    torchcodec_problem() is not None, reason=f"torchcodec does not load: {torchcodec_problem()}"
)

PIXEL_TOLERANCE = 1
"""The two decoders use different FFmpeg versions; their pixels may differ by one level."""

VARIABLE = [0.0, 0.04, 0.1, 0.4, 0.44, 0.5, 1.2, 1.25, 4.9, 5.0, 5.3, 11.4, 11.5, 12.0, 12.04]


def clip(folder: Path, name: str, **options) -> Path:
    path = folder / name
    count = len(options.get("pts_seconds", [])) or options.pop("frames", 60)
    write_clip(path, numbered_frames(count), **options)
    return path


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    return {
        "constant": clip(folder, "constant.mp4", fps=25, max_b_frames=2),
        "ntsc": clip(folder, "ntsc.mkv", fps=Fraction(30000, 1001), max_b_frames=2),
        "variable mp4": clip(folder, "v.mp4", pts_seconds=VARIABLE, max_b_frames=2),
        "variable mkv": clip(folder, "v.mkv", pts_seconds=VARIABLE),
        "late mp4": clip(folder, "late.mp4", fps=10, start_seconds=1.5),
        "late ts": clip(folder, "late.ts", fps=25, start_seconds=600.0, max_b_frames=2),
        "hevc": clip(folder, "hevc.mp4", codec="libx265", fps=25),
        "hevc 10 bit": clip(folder, "hevc10.mp4", codec="libx265", fps=25, pix_fmt="yuv420p10le"),
        "vp9": clip(folder, "vp9.webm", codec="libvpx-vp9", fps=25),
        "av1": clip(folder, "av1.mp4", codec="libsvtav1", fps=25),
        "turned": clip(folder, "turned.mp4", fps=10, rotation=90),
        "upside down": clip(folder, "down.mov", fps=10, rotation=180),
    }


NAMES = [
    "constant",
    "ntsc",
    "variable mp4",
    "variable mkv",
    "late mp4",
    "late ts",
    "hevc",
    "hevc 10 bit",
    "vp9",
    "av1",
    "turned",
    "upside down",
]


@needs_ffprobe
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("decoder", ["pyav", "torchcodec"])
def test_times_are_those_of_ffprobe_and_frames_are_on_display(clips, name: str, decoder: str):
    unit = video_unit(clips[name], SamplingSpec(fps=7))
    frames = decode_unit(unit, Storage(), decoder=decoder)
    truth = ffprobe_pts(clips[name])
    wanted = [bisect_right(truth, t + 1e-6) - 1 for t in unit.sampling.times_seconds()]
    assert frames.frame_indices == tuple(wanted)
    assert np.allclose(frames.pts_seconds, [truth[i] for i in wanted], rtol=0, atol=1e-6)


@needs_ffprobe
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("decoder", ["pyav", "torchcodec"])
def test_pixels_are_those_of_ffmpeg_resized_bicubic(clips, name: str, decoder: str):
    unit = video_unit(clips[name], SamplingSpec(num_frames=8))
    frames = decode_unit(unit, Storage(), decoder=decoder)
    full = ffmpeg_frames(clips[name], unit.media.width, unit.media.height)
    height, width = unit.sampling.resized_height, unit.sampling.resized_width
    assert frames.pixels.shape == (unit.sampling.num_frames, height, width, 3)
    assert frames.pixels.dtype == np.uint8
    for pixels, index in zip(frames.pixels, frames.frame_indices, strict=True):
        difference = np.abs(pixels.astype(int) - reference_resize(full[index], height, width))
        if name == "hevc 10 bit":  # each version of FFmpeg interpolates deep chroma differently
            assert difference.mean() < 2
        else:
            assert difference.mean() < 0.1
            assert (difference > PIXEL_TOLERANCE).mean() < 1e-3
            # Where black and white meet, FFmpeg's scaler cuts off between its two passes.
            assert (difference > 2).mean() < 2e-4 and difference.max() <= 16


@needs_ffprobe
@pytest.mark.parametrize("width", [320, 322, 328, 336])
def test_the_last_columns_are_right_for_any_width(tmp_path: Path, width: int):
    ramp = np.linspace(0, 255, width)[None, :, None] * np.ones((192, 1, 3))
    write_clip(tmp_path / "a.mp4", [ramp.astype(np.uint8)] * 4, fps=2)
    unit = video_unit(tmp_path / "a.mp4")
    height, width = unit.sampling.resized_height, unit.sampling.resized_width
    full = ffmpeg_frames(tmp_path / "a.mp4", unit.media.width, unit.media.height)
    pixels = decode_unit(unit, Storage()).pixels[0]
    difference = pixels - reference_resize(full[0], height, width)
    assert np.abs(difference).max() <= PIXEL_TOLERANCE


def reference_resize(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    """torchvision's bicubic resize with antialias, which qwen-vl-utils uses for videos."""
    planes = torch.from_numpy(frame.copy()).permute(2, 0, 1)[None].float()
    resized = torch.nn.functional.interpolate(
        planes, size=(height, width), mode="bicubic", antialias=True
    )
    return resized.clamp(0, 255).round()[0].permute(1, 2, 0).numpy().astype(int)


@needs_torchcodec
@pytest.mark.parametrize("name", NAMES)
def test_both_decoders_give_the_same(clips, name: str):
    unit = video_unit(clips[name], SamplingSpec(fps=5))
    pyav = decode_unit(unit, Storage(), decoder="pyav")
    other = decode_unit(unit, Storage(), decoder="torchcodec")
    exact_by_pyav_only = name in ("late ts", "hevc 10 bit")
    assert other.decoder == ("pyav" if exact_by_pyav_only else "torchcodec")
    assert other.pts_seconds == pyav.pts_seconds
    assert other.frame_indices == pyav.frame_indices
    difference = np.abs(pyav.pixels.astype(int) - other.pixels)
    assert difference.max() <= PIXEL_TOLERANCE


@pytest.mark.parametrize("decoder", ["pyav", "torchcodec"])
@pytest.mark.parametrize("name", ["constant", "variable mp4", "variable mkv", "late ts"])
def test_a_span_in_the_middle_has_the_same_frames_as_the_whole(clips, name: str, decoder: str):
    whole = video_unit(clips[name], SamplingSpec(num_frames=30))
    begin, end = whole.sampling.start_seconds, whole.sampling.end_seconds
    half = video_unit(clips[name], SamplingSpec(num_frames=14), start=(begin + end) / 2)
    times = half.sampling.times_seconds()
    frames = decode_unit(half, Storage(), decoder=decoder)
    # The frames of the whole clip around these times.
    every = decode_unit(
        dataclasses.replace(
            whole,
            sampling=dataclasses.replace(
                whole.sampling,
                start_seconds=begin,
                end_seconds=begin + (times[1] - times[0]) * 40,
                num_frames=40,
            ),
        ),
        Storage(),
        decoder="pyav",
    )
    numbers = {
        pts: number_in(small_to_full(f))
        for pts, f in zip(every.pts_seconds, every.pixels, strict=True)
    }
    found = {
        pts: number_in(small_to_full(f))
        for pts, f in zip(frames.pts_seconds, frames.pixels, strict=True)
    }
    assert all(numbers[pts] == number for pts, number in found.items() if pts in numbers)
    assert all(pts <= t + 1e-6 for pts, t in zip(frames.pts_seconds, times, strict=True))


def small_to_full(frame: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize((160, 120), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("decoder", ["pyav", "torchcodec"])
def test_the_picture_is_the_one_of_its_pts(clips, decoder: str):
    unit = video_unit(clips["variable mp4"], SamplingSpec(fps=4))
    frames = decode_unit(unit, Storage(), decoder=decoder)
    for pixels, pts in zip(frames.pixels, frames.pts_seconds, strict=True):
        assert number_in(small_to_full(pixels)) == min(
            range(len(VARIABLE)), key=lambda n: abs(VARIABLE[n] - pts)
        )


def test_transparent_video_goes_onto_white(tmp_path: Path):
    frames = []
    for _ in range(10):
        image = Image.new("RGBA", (160, 120), (0, 0, 0, 0))
        image.paste((0, 0, 255, 255), (0, 0, 80, 120))
        frames.append(image)
    path = tmp_path / "alpha.webm"
    write_clip(path, frames, codec="libvpx-vp9", pix_fmt="yuva420p", fps=10)
    unit = video_unit(path)
    assert unit.media.has_alpha
    pixels = decode_unit(unit, Storage()).pixels[0]
    assert pixels[60, -20].min() > 245
    blue = pixels[60, 20].astype(int)
    assert blue[2] > 200
    assert blue[:2].max() < 40


def test_one_frame_is_shown_twice(tmp_path: Path):
    path = clip(tmp_path, "one.mp4", frames=1, fps=10)
    frames = decode_unit(video_unit(path), Storage())
    assert frames.pixels.shape[0] == 2
    assert frames.frame_indices == (0, 0)
    assert frames.pts_seconds == (0.0, 0.0)


@pytest.mark.parametrize("decoder", ["pyav", "torchcodec"])
def test_a_matroska_file_cut_in_half_is_an_error_only_where_frames_are_missing(
    tmp_path: Path, decoder: str
):
    path = clip(tmp_path, "whole.mkv", frames=200, fps=10, gop_size=10)
    cut = tmp_path / "cut.mkv"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UnitError, match=r"cut short: [\d,]+ bytes are missing at its end"):
        decode_unit(video_unit(cut), Storage(), decoder=decoder)
    begin = video_unit(cut, start=0.0, end=4.0)
    assert len(decode_unit(begin, Storage(), decoder=decoder).pts_seconds) == 8


def test_a_changed_file_is_noticed(tmp_path: Path):
    path = clip(tmp_path, "c.mp4", frames=20, fps=10)
    unit = video_unit(path)
    clip(tmp_path, "c.mp4", frames=30, fps=10)
    with pytest.raises(UnitError, match="the object changed after the plan") as caught:
        decode_unit(unit, Storage())
    assert caught.value.error_type == ErrorType.MEDIA_CHANGED


def test_a_frame_list_is_a_video(tmp_path: Path):
    uris = []
    for n, image in enumerate(numbered_frames(5)):
        image.save(tmp_path / f"{n}.png")
        uris.append(str(tmp_path / f"{n}.png"))
    sampling = Sampling(
        start_seconds=0.0,
        end_seconds=2.5,
        sample_fps=2.0,
        num_frames=6,
        resized_height=128,
        resized_width=160,
        grid_thw=(3, 8, 10),
        num_vision_tokens=60,
    )
    media = Media(media_type="video", width=160, height=120)
    unit = Unit(
        unit_id="u", media_id="m", uri=uris[0], frames=tuple(uris), media=media, sampling=sampling
    )
    frames = decode_unit(unit, Storage())
    assert frames.pts_seconds == (0.0, 0.5, 1.0, 1.5, 2.0, 2.0)
    assert frames.frame_indices == (0, 1, 2, 3, 4, 4)
    assert [number_in(small_to_full(f)) for f in frames.pixels] == [0, 1, 2, 3, 4, 4]


def test_a_data_uri_is_decoded(tmp_path: Path):
    import base64

    path = clip(tmp_path, "c.mp4", frames=20, fps=10)
    unit = video_unit(path)
    content = base64.b64encode(path.read_bytes()).decode()
    media = dataclasses.replace(unit.media, content_version=None)
    inline = dataclasses.replace(unit, uri=f"data:video/mp4;base64,{content}", media=media)
    assert decode_unit(inline, Storage()).pts_seconds == decode_unit(unit, Storage()).pts_seconds


def test_memory_does_not_grow_with_the_clip(tmp_path: Path):
    """Measured with tracemalloc, which sees numpy: a clip six times as long takes no more."""
    peaks = []
    for count in (20, 120):
        path = tmp_path / f"{count}.mp4"
        write_clip(path, numbered_frames(count, 960, 540), fps=10)
        unit = video_unit(path, SamplingSpec(num_frames=4), Budget(frame_tokens=(4, 32)))
        tracemalloc.start()
        decode_unit(unit, Storage(), decoder="pyav")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.5
    assert peaks[1] < 6 * 960 * 540 * 3


DECODE_ALL = """
import re, sys
from pathlib import Path
from pipeline.media.decode import decode_unit
from pipeline.plan.planner import Planner
from pipeline.storage.storage import Storage
from schemas.job.job import check_job
from schemas.tables.manifest import MediaItem

spec = {"input": {"scan": "x"}, "output": "y", "model": {"source": sys.argv[1]}}
spec["sampling"] = {"fps": 1.0, "segmentation": {"kind": "window", "seconds": 60}}
spec["budget"] = {"frame_tokens": [4, 30], "unit_tokens": 2048}
planner = Planner(check_job(spec, "test"), 4096, Storage())
for uri in sys.argv[2:]:
    units = planner.plan_item(MediaItem(media_id=uri, uri=uri))
    frames = sum(decode_unit(unit, Storage()).pixels.shape[0] for unit in units)
    # ru_maxrss would begin at its parent's peak.
    status = Path("/proc/self/status").read_text()
    print(len(units), frames, *re.findall(r"VmHWM:\\s+(\\d+)", status))
"""


def test_an_hour_takes_no_more_memory_than_two_minutes(tmp_path: Path, checkpoint: Path):
    """Peak memory of the process; all frames of the hour together would be 466 MB."""
    few = [np.asarray(image) for image in numbered_frames(40, 240, 180)]
    paths = {seconds: tmp_path / f"{seconds}.mp4" for seconds in (120, 3600)}
    for seconds, path in paths.items():
        write_clip(path, (few[k % 40] for k in range(seconds)), fps=1)
    command = [sys.executable, "-c", DECODE_ALL, str(checkpoint), *map(str, paths.values())]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    short, long = ([int(number) for number in line.split()] for line in done.stdout.splitlines())
    assert (short[:2], long[:2]) == ([2, 120], [60, 3600])
    assert long[2] - short[2] < 32 * 1024  # KiB
    assert long[2] < 200 * 1024


def test_a_decoder_is_freed_with_its_unit(tmp_path: Path):
    """Freed at once, not later by the garbage collector: at 1080p each decoder holds 28 MB."""
    unit = video_unit(clip(tmp_path, "c.mp4", frames=20, fps=10))
    gc.collect()
    gc.disable()
    try:
        decode_unit(unit, Storage())
        assert not [found for found in gc.get_objects() if type(found) is FrameWalk]
    finally:
        gc.enable()


def test_frames_of_one_list_must_have_one_size(tmp_path: Path):
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    Image.new("RGB", (160, 120)).save(first)
    Image.new("RGB", (120, 160)).save(second)
    sampling = Sampling(
        num_frames=2,
        resized_height=128,
        resized_width=160,
        grid_thw=(1, 8, 10),
        num_vision_tokens=20,
    )
    unit = Unit(
        unit_id="u",
        media_id="m",
        uri=str(first),
        frames=(str(first), str(second)),
        media=Media(media_type="video", width=160, height=120),
        sampling=sampling,
    )
    with pytest.raises(UnitError, match="must have one size: .*b.png has"):
        decode_unit(unit, Storage())


@pytest.mark.parametrize("decoder", ["pyav", "torchcodec"])
def test_a_picture_named_like_a_video_is_one_frame(tmp_path: Path, decoder: str):
    path = tmp_path / "image.mp4"
    Image.new("RGB", (160, 120), (200, 30, 30)).save(path, "JPEG")
    frames = decode_unit(video_unit(path), Storage(), decoder=decoder)
    assert frames.decoder == "pyav"
    assert len(frames.pts_seconds) == 2


def test_an_avi_file_cut_in_half_is_an_error_only_where_frames_are_missing(tmp_path: Path):
    path = tmp_path / "whole.avi"
    write_clip(path, numbered_frames(100), codec="mpeg4", fps=25, container_format="avi")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UnitError, match=r"cut short: [\d,]+ bytes are missing at its end"):
        decode_unit(video_unit(path), Storage())
    begin = video_unit(path, start=0.0, end=1.5)
    assert len(decode_unit(begin, Storage()).pts_seconds) >= 2
