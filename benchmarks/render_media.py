"""Images and clips for benchmarks: scenes with a little noise, others for every seed."""

import random
from pathlib import Path

import numpy as np

from jobs.encode_clip import encode_clip
from jobs.render_dataset import FONTS
from jobs.scene import draw
from jobs.scene_random import random_scene

FPS = 15


def render_images(folder: Path, count: int, seed: int, width: int, height: int) -> list[Path]:
    """JPEG files of that size."""
    rng = random.Random(f"images {seed}")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{seed}-{k:03}.jpg" for k in range(count)]
    for path in paths:
        draw(random_scene(rng, width, height, fonts=FONTS), 0.0).save(path, quality=90)
    return paths


def render_clips(
    folder: Path, count: int, seed: int, width: int, height: int, seconds: float
) -> list[Path]:
    """H.264 clips of that size and length, with B-frames, 15 frames a second."""
    rng = random.Random(f"clips {seed}")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{seed}-{k:03}.mp4" for k in range(count)]
    for k, path in enumerate(paths):
        scene = random_scene(rng, width, height, duration_seconds=seconds, fonts=FONTS)
        noise = np.random.default_rng([seed, k]).integers(-6, 7, (height, width, 1), dtype=np.int16)
        frames = (
            np.clip(np.asarray(draw(scene, n / FPS), np.int16) + noise, 0, 255).astype(np.uint8)
            for n in range(round(seconds * FPS))
        )
        encode_clip(path, frames, fps=FPS)
    return paths
