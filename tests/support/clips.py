"""Small real clips for tests, and their frames and times by FFmpeg's own tools."""

import json
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jobs.demo.encode import ClipSpec, encode_clip
from pipeline.media.container import open_video
from pipeline.media.probe import VideoProbe
from pipeline.model.frame_size import video_size
from pipeline.plan.segment import num_frames, segment_spans
from pipeline.storage.storage import Storage
from schemas.job.sampling import Budget, SamplingSpec
from schemas.tables.media import Media, Sampling
from schemas.tables.unit import Unit

needs_ffprobe = pytest.mark.skipif(
    shutil.which("ffprobe") is None, reason="ffprobe is not installed: it is the oracle here"
)


def numbered_frames(count: int, width: int = 160, height: int = 120) -> list[Image.Image]:
    """Draw frames that differ: a moving bar, and the frame's number in binary as blocks."""
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
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-of", "json"]
    command += ["-show_entries", "frame=pts_time", str(path)]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    return [float(frame["pts_time"]) for frame in json.loads(output)["frames"]]


def ffmpeg_frames(path: Path, width: int, height: int) -> np.ndarray:
    """All frames as ffmpeg decodes and rotates them: uint8 [n, height, width, 3]."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-fps_mode", "passthrough"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(output, np.uint8).reshape(-1, height, width, 3)


def write_clip(path: Path, frames: Iterable[Image.Image | np.ndarray], **options: Any) -> None:
    """Encode frames; ``options`` are the fields of ``ClipSpec``."""
    encode_clip(path, frames, ClipSpec(**options))


def probe(path: Path) -> Media:
    """Header facts of a clip."""
    with Storage().open_media(str(path), header_only=True) as file, open_video(file) as opened:
        return VideoProbe(file, *opened).media


def video_unit(
    path: Path,
    spec: SamplingSpec | None = None,
    budget: Budget | None = None,
    *,
    start: float | None = None,
    end: float | None = None,
) -> Unit:
    """Plan the first unit of a clip, without tasks."""
    spec = spec or SamplingSpec()
    media = probe(path)
    begin, stop = segment_spans(media, start, end, spec)[0]
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
    return Unit(unit_id="u", media_id="m", uri=str(path), media=media, sampling=sampling)
