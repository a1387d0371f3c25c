"""Images and clips for benchmarks: scenes with a little noise; another seed gives other media."""

import random
from pathlib import Path

import numpy as np

from jobs.demo.archive import render_archive
from jobs.demo.encode import ClipSpec, encode_clip
from jobs.demo.random_scene import SceneSpec, random_scene
from jobs.demo.scene import draw
from scripts.demo_model.fonts import font_files

FPS = 15


def render_some(folder: Path, seed: int, *, small: bool) -> list[str]:
    """The demo's archive; in the small form, two images and two clips."""
    if small:
        paths = render_images(folder, 2, seed, 96, 64)
        paths += render_clips(folder, 2, seed, 96, 64, 1.0)
    else:
        render_archive(folder, seed=seed)
        paths = sorted(folder.glob("*/*"))
    return [str(path) for path in paths]


def render_images(folder: Path, count: int, seed: int, width: int, height: int) -> list[Path]:
    """Render JPEG files of this size."""
    rng = random.Random(f"images {seed}")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{seed}-{k:03}.jpg" for k in range(count)]
    for path in paths:
        draw(random_scene(rng, width, height, SceneSpec(fonts=font_files())), 0.0).save(
            path, quality=90
        )
    return paths


def render_clips(
    folder: Path, count: int, seed: int, width: int, height: int, seconds: float
) -> list[Path]:
    """Render H.264 clips of this size and length, with B-frames, 15 frames a second."""
    rng = random.Random(f"clips {seed}")
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{seed}-{k:03}.mp4" for k in range(count)]
    for k, path in enumerate(paths):
        scene = random_scene(
            rng, width, height, SceneSpec(duration_seconds=seconds, fonts=font_files())
        )
        noise = np.random.default_rng([seed, k]).integers(-6, 7, (height, width, 1), dtype=np.int16)
        frames = (
            np.clip(np.asarray(draw(scene, n / FPS), np.int16) + noise, 0, 255).astype(np.uint8)
            for n in range(round(seconds * FPS))
        )
        encode_clip(path, frames, ClipSpec(fps=FPS))
    return paths
