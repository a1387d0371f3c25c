"""Render one file of the data set: draw its scene, add noise, and encode it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from jobs.demo.encode import ClipSpec, encode_clip
from jobs.demo.scene import draw
from scripts.demo_model.plan_file import File


def write_image(file: File, path: Path) -> None:
    """Draw an image, with its blur and noise, and save it."""
    image = draw(file.scene, 0.0)
    if file.blur:
        image = image.filter(ImageFilter.GaussianBlur(file.blur))
    noise = np.random.default_rng(file.noise_seed)
    if file.noise:
        image = Image.fromarray(_add(np.asarray(image), _gaussian(file, noise)))
    if file.salt:
        pixels = np.array(image)
        rows, columns = noise.integers(
            0, pixels.shape[:2], (int(file.salt * image.width * image.height), 2)
        ).T
        pixels[rows, columns] = noise.integers(0, 2, (len(rows), 1)) * 255
        image = Image.fromarray(pixels)
    options: dict[str, dict[str, Any]] = {
        "jpeg": {"quality": file.quality},
        "png": {"compress_level": 1},
        "webp": {"quality": file.quality, "method": 2},
    }
    image.save(path, format=file.codec, **options[file.codec])


def write_clip(file: File, path: Path) -> None:
    """Draw and encode a clip, with its frame times."""
    scene = file.scene
    times: Sequence[float] = file.pts_seconds
    spec = ClipSpec(
        codec=file.codec,
        fps=file.fps,
        start_seconds=file.start_seconds,
        max_b_frames=file.max_b_frames,
    )
    if times:
        last = scene.duration_seconds - times[-1]
        spec = replace(spec, pts_seconds=times, last_frame_seconds=last)
    else:
        times = [n / file.fps for n in range(round(scene.duration_seconds * file.fps))]
    encode_clip(path, _frames(file, times), spec)


def _frames(file: File, times: Sequence[float]) -> Iterator[NDArray[np.uint8]]:
    # The same noise on each frame, because changing noise is slow to encode.
    pattern = _gaussian(file, np.random.default_rng(file.noise_seed)) if file.noise else None
    for t in times:
        pixels = np.asarray(draw(file.scene, t))
        yield pixels if pattern is None else _add(pixels, pattern)


def _gaussian(file: File, noise: np.random.Generator) -> NDArray[np.int16]:
    """Levels of brightness to add, [height, width, 1]."""
    shape = (file.scene.height, file.scene.width, 1)
    levels: NDArray[np.int16] = np.rint(
        file.noise * noise.standard_normal(shape, np.float32)
    ).astype(np.int16)
    return levels


def _add(pixels: NDArray[np.uint8], levels: NDArray[np.int16]) -> NDArray[np.uint8]:
    noisy: NDArray[np.uint8] = np.clip(pixels + levels, 0, 255).astype(np.uint8)
    return noisy
