"""Draw the scene, format, noise and frame times of each file of the data set from its seed."""

import random
from dataclasses import dataclass
from typing import Literal

from jobs.demo.random_scene import SceneSpec, irregular_times, random_scene
from jobs.demo.scene import Scene
from scripts.demo_model.fonts import font_files
from scripts.demo_model.signs import random_sign

Split = Literal["train", "validation", "test"]
Kind = Literal["image", "video", "sign", "quiet"]

# fmt: off
IMAGE_SIZES = (
    (480, 360), (360, 480), (320, 240), (640, 480), (400, 400), (480, 270), (800, 600),
)
# fmt: on
CLIP_SIZES = ((320, 240), (426, 240), (240, 320), (320, 180))
# suffix, codec, share in percent, maximum of B-frames in a row
CLIP_KINDS = (
    (".mp4", "libx264", 45, 0),
    (".mp4", "libx264", 25, 2),
    (".mp4", "libx265", 8, 0),
    (".webm", "libvpx-vp9", 8, 0),
    (".mkv", "libsvtav1", 4, 0),
    (".mov", "libx264", 10, 2),
)


@dataclass(frozen=True, kw_only=True)
class File:
    """One file of the data set, before it is rendered; its gold follows from it.

    noise: standard deviation of Gaussian noise, in levels of 0..255.
    salt: share of pixels that are black or white. blur: radius in pixels.
    quality: of a lossy image.
    pts_seconds: frame times from 0, to which ``start_seconds`` is added; empty: every 1 / fps.
    """

    uri: str
    media_type: str
    codec: str
    scene: Scene
    noise: float = 0.0
    salt: float = 0.0
    noise_seed: int = 0
    blur: float = 0.0
    quality: int = 0
    fps: int = 0
    pts_seconds: tuple[float, ...] = ()
    start_seconds: float = 0.0
    max_b_frames: int = 0


def plan_file(split: str, kind: Kind, number: int, seed: int = 0) -> File:
    """Draw file `number` of its kind in a split, independent of all other files."""
    rng = random.Random(f"{seed}/{split}/{kind}/{number}")
    if kind in ("video", "quiet"):
        return _plan_clip(rng, number, is_quiet=kind == "quiet")
    if kind == "sign":
        return _plan_image(rng, random_sign(rng, fonts=font_files()), f"signs/{number:06}")
    width, height = rng.choice(IMAGE_SIZES)
    spec = SceneSpec(easy=rng.random() < 0.3, fonts=font_files())
    scene = random_scene(rng, width, height, spec)
    return _plan_image(rng, scene, f"images/{number:06}")


def _plan_image(rng: random.Random, scene: Scene, name: str) -> File:
    suffix, codec = rng.choices(
        ((".jpg", "jpeg"), (".png", "png"), (".webp", "webp")), (70, 18, 12)
    )[0]
    noisy, gaussian = rng.random() < 0.4, rng.random() < 0.6
    return File(
        uri=name + suffix,
        media_type="image",
        codec=codec,
        scene=scene,
        noise=rng.uniform(3, 14) if noisy and gaussian else 0.0,
        salt=rng.uniform(0.002, 0.015) if noisy and not gaussian else 0.0,
        noise_seed=rng.getrandbits(32),
        # In pixels of a picture 290 wide, which is about the size that the model sees.
        blur=rng.uniform(0.4, 0.8) * max(1.0, max(scene.width, scene.height) / 290)
        if rng.random() < 0.1
        else 0.0,
        quality=rng.randint(40, 95),
    )


def _plan_clip(rng: random.Random, number: int, *, is_quiet: bool) -> File:
    width, height = rng.choice(CLIP_SIZES)
    duration_seconds, fps = rng.randint(6, 12) / 2, rng.choice((6, 8, 10, 12))
    spec = SceneSpec(duration_seconds=duration_seconds, fonts=font_files(), empty=is_quiet)
    scene = random_scene(rng, width, height, spec)
    shares = [share for _, _, share, _ in CLIP_KINDS]
    suffix, codec, _, max_b_frames = rng.choices(CLIP_KINDS, shares)[0]
    variable, late = rng.random() < 0.2, rng.random() < 0.4
    offset = rng.randint(1, 120) / 2
    return File(
        uri=f"{'quiet' if is_quiet else 'clips'}/{number:06}{suffix}",
        media_type="video",
        codec=codec,
        scene=scene,
        noise=rng.uniform(2, 7) if rng.random() < 0.2 else 0.0,
        noise_seed=rng.getrandbits(32),
        fps=fps,
        pts_seconds=irregular_times(rng, duration_seconds) if variable else (),
        start_seconds=offset if late and suffix in (".mp4", ".mkv") else 0.0,
        max_b_frames=max_b_frames,
    )
