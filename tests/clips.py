"""Small real clips for tests, and what FFmpeg itself says of them."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipeline.budget import video_size
from pipeline.container import open_video
from pipeline.probe import VideoProbe
from pipeline.segment import num_frames, stretches
from pipeline.storage import Storage
from schemas.job import Budget, SamplingSpec
from schemas.unit import Media, Sampling, Unit

needs_ffprobe = pytest.mark.skipif(
    shutil.which("ffprobe") is None, reason="ffprobe is not installed: it is the oracle here"
)


def numbered_frames(count: int, width: int = 160, height: int = 120) -> list[Image.Image]:
    """Frames that differ from each other: a moving bar, a block grid that counts in binary."""
    frames = []
    for n in range(count):
        image = Image.new("RGB", (width, height), (40, 90, 60))
        draw = ImageDraw.Draw(image)
        x = (n * 7) % (width - 20)
        draw.rectangle((x, height // 2, x + 20, height - 10), fill=(230, 40, 30))
        for bit in range(10):
            on = (n >> bit) & 1
            left = 4 + bit * 15
            draw.rectangle((left, 4, left + 11, 16), fill=(255, 255, 255) if on else (0, 0, 0))
        frames.append(image)
    return frames


def number_in(frame: np.ndarray) -> int:
    """Read the number of a frame of 160 x 120 back from its pixels (uint8 [120, 160, 3])."""
    return sum(int(frame[10, 4 + bit * 15 + 5].mean() > 128) << bit for bit in range(10))


def ffprobe_pts(path: Path) -> list[float]:
    """PTS of all video frames in presentation order, as ffprobe prints them."""
    command = [
        "ffprobe",
        "-v",
        "error",
        "-select_streams",
        "v:0",
        "-show_entries",
        "frame=pts_time",
    ]
    output = subprocess.run(
        [*command, "-of", "json", str(path)], check=True, capture_output=True
    ).stdout
    return [float(frame["pts_time"]) for frame in json.loads(output)["frames"]]


def ffmpeg_frames(path: Path, width: int, height: int) -> np.ndarray:
    """All frames as ffmpeg decodes and turns them: uint8 [n, height, width, 3]."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-fps_mode", "passthrough"]
    output = subprocess.run(
        [*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], check=True, capture_output=True
    ).stdout
    return np.frombuffer(output, np.uint8).reshape(-1, height, width, 3)


def probe(path: Path) -> Media:
    """Header facts of a clip."""
    with Storage().open_media(str(path), header_only=True) as file, open_video(file) as opened:
        return VideoProbe(file, *opened).media


def video_unit(path: Path, *args: Any, **kwargs: Any) -> Unit:
    """A planned unit of a clip, without tasks: its first stretch."""
    return video_units(path, *args, **kwargs)[0]


def video_units(
    path: Path,
    spec: SamplingSpec | None = None,
    budget: Budget | None = None,
    *,
    start: float | None = None,
    end: float | None = None,
) -> list[Unit]:
    """The planned units of a clip, without tasks."""
    spec = spec or SamplingSpec()
    media = probe(path)
    units = []
    for begin, stop in stretches(media, start, end, spec):
        count = num_frames(begin, stop, media.average_fps, spec)
        size = video_size(count, media.height, media.width, budget or Budget())
        sampling = Sampling(
            frames=spec.frames,
            start_seconds=begin,
            end_seconds=stop,
            sample_fps=count / (stop - begin),
            num_frames=count,
            resized_height=size.resized_height,
            resized_width=size.resized_width,
            grid_thw=size.grid_thw,
            num_vision_tokens=size.num_tokens,
        )
        units.append(Unit(unit_id="u", media_id="m", uri=str(path), media=media, sampling=sampling))
    return units
