"""Render a small archive of real images and clips: the input of `make demo` and of many tests.

Each file has a property or a fault that real archives have. `gold.jsonl` has the correct answers
for the files that show their scene as it was drawn. The same seed gives the same bytes.
"""

import json
import logging
import random
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jobs.demo.encode import NUM_THREADS, ClipSpec, encode_clip
from jobs.demo.random_scene import BACKGROUNDS, SceneSpec, irregular_times, random_scene
from jobs.demo.scene import Background, Label, Scene, draw, gold

logger = logging.getLogger(__name__)

HELD_SECONDS = (7.2, 11.0)
"""Time span in which clips of variable frame rate hold one frame."""

MAX_GOLD_SECONDS = 6.0
"""The window of the demo's job. A longer clip has several units, so none has the clip's gold."""

Answers = dict[str, dict[str, Any]]
"""Gold by uri."""


@dataclass(frozen=True)
class Clip:
    """A clip of the archive; width and height are the encoded ones, before any rotation."""

    name: str
    width: int
    height: int
    seconds: float
    encoding: ClipSpec = field(default_factory=lambda: ClipSpec(fps=12))
    _: KW_ONLY
    is_irregular: bool = False
    is_transparent: bool = False
    has_gold: bool = True


def render_archive(folder: Path, *, seed: int = 0) -> None:
    """Write `images/`, `clips/` and `gold.jsonl` into `folder`; existing files are replaced.

    A line of `gold.jsonl` has the file's path relative to `folder` as `uri`, and its `gold`. Boxes
    are in the displayed picture. Files that are broken, too small to see, grey, a single frame of
    a clip, or longer than one unit have no line.
    """
    for name in ("images", "clips"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    answers = _render_images(folder / "images", seed) | _render_clips(folder / "clips", seed)
    with (folder / "gold.jsonl").open("w", encoding="utf-8") as lines:
        for uri, answer in answers.items():
            lines.write(json.dumps({"uri": uri, **answer}, ensure_ascii=False) + "\n")
    num_files = sum(1 for path in folder.glob("*/*") if path.is_file())
    logger.info("rendered %d files into %s", num_files, folder)


def _render_images(folder: Path, seed: int) -> Answers:
    answers: Answers = {}

    def still(
        name: str,
        width: int = 480,
        height: int = 360,
        *,
        is_transparent: bool = False,
        has_gold: bool = True,
    ) -> Image.Image:
        spec = SceneSpec(transparent=is_transparent)
        scene = random_scene(random.Random(f"{seed}/{name}"), width, height, spec)
        if has_gold:
            answers[f"images/{name}"] = gold(scene)
        return draw(scene, 0.0)

    def save(name: str, picture: Image.Image, **options: Any) -> None:
        picture.save(folder / name, **options)

    for n in range(5):
        save(f"scene-{n}.jpg", still(f"scene-{n}.jpg"), quality=90)
    for n in range(3):
        save(f"plate-{n}.png", still(f"plate-{n}.png", 320, 240))
    save("café no 7.jpg", still("café no 7.jpg"))  # a name that a uri has to escape
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: displayed after a turn by 90 degrees clockwise
    upright = still("orientation-6.jpg", 360, 480)
    save("orientation-6.jpg", upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    save("gray.jpg", still("gray.jpg", has_gold=False).convert("L"))
    save("cmyk.jpg", still("cmyk.jpg").convert("CMYK"))
    save("progressive.jpg", still("progressive.jpg"), progressive=True)
    save("large.jpg", still("large.jpg", 1600, 1200), quality=85)
    save("alpha.png", still("alpha.png", is_transparent=True))
    palette = still("palette-transparent.png", is_transparent=True)
    save("palette-transparent.png", palette.quantize(16, Image.Quantize.FASTOCTREE))
    gray16 = np.asarray(still("gray16.png", has_gold=False).convert("L"), dtype=np.uint16) * 257
    save("gray16.png", Image.fromarray(gray16))
    save("photo.webp", still("photo.webp"), quality=80)
    save("alpha.webp", still("alpha.webp", is_transparent=True))
    first, *rest = _drift(random.Random(f"{seed}/animated.gif"), answers)
    save("animated.gif", first, save_all=True, append_images=rest, duration=200, loop=0)
    save("page.tiff", still("page.tiff"), compression="tiff_lzw")
    save("scene.avif", still("scene.avif"), quality=70, max_threads=NUM_THREADS)
    save("tiny.png", still("tiny.png", 20, 14, has_gold=False))
    sign = Label(
        text="PLATFORM 9: TRAINS TO HARBOUR NORTH EVERY 20 MINUTES", position=(12, 4), size=28
    )
    plain = Background(top=BACKGROUNDS[0], bottom=BACKGROUNDS[0])
    banner = Scene(width=1200, height=40, background=plain, labels=(sign,))
    save("wide.png", draw(banner, 0.0))
    save("truncated.jpg", still("truncated.jpg", has_gold=False), quality=90)
    _cut_file(folder / "truncated.jpg", 0.4)
    try:
        import pillow_heif
    except ImportError:
        logger.warning("pillow_heif is not installed, so images/scene.heic is left out")
    else:
        pillow_heif.register_heif_opener()
        save("scene.heic", still("scene.heic"), quality=70)
    return answers


def _drift(rng: random.Random, answers: Answers) -> Iterator[Image.Image]:
    """Yield ten frames of a GIF, all different, because Pillow drops repeated ones."""
    scene = random_scene(rng, 240, 180)
    answers["images/animated.gif"] = gold(scene)  # an image is its first frame
    for n in range(10):
        moved = [
            replace(shape, start=(shape.start[0] + n, shape.start[1])) for shape in scene.shapes
        ]
        yield draw(replace(scene, shapes=tuple(moved)), 0.0)


# Alternate reference frames and alpha exclude each other in libvpx.
_ALPHA = ClipSpec(
    codec="libvpx-vp9", fps=12, pix_fmt="yuva420p", codec_options={"auto-alt-ref": "0"}
)
# The index comes first, so that the file opens although its last frames are missing.
_INDEX_FIRST = ClipSpec(fps=12, container_options={"movflags": "faststart"})
_NTSC = ClipSpec(fps=Fraction(30000, 1001), max_b_frames=2)

CLIPS = (
    Clip("h264-bframes.mp4", 320, 240, 8, ClipSpec(fps=25, max_b_frames=2)),
    Clip("h264-long-gop.mkv", 426, 240, 10, ClipSpec(fps=12, max_b_frames=3, gop_size=250)),
    Clip("h264.mov", 320, 240, 4),
    Clip("h265.mp4", 320, 240, 5, ClipSpec(fps=12, codec="libx265", max_b_frames=2)),
    Clip("h265.mkv", 426, 240, 4, ClipSpec(fps=12, codec="libx265")),
    Clip("vp9.webm", 426, 240, 6, ClipSpec(fps=12, codec="libvpx-vp9")),
    Clip("av1.mp4", 320, 240, 5, ClipSpec(fps=12, codec="libsvtav1")),
    Clip("av1.mkv", 320, 240, 3, ClipSpec(fps=12, codec="libsvtav1")),
    Clip("ntsc.mp4", 640, 360, 4, _NTSC),
    Clip("starts-late.mp4", 320, 240, 4, ClipSpec(fps=12, start_seconds=1.5, max_b_frames=2)),
    Clip("broadcast.ts", 320, 240, 5, ClipSpec(fps=25, start_seconds=600.0, max_b_frames=2)),
    Clip("variable.mp4", 320, 240, 12, ClipSpec(fps=12, max_b_frames=2), is_irregular=True),
    Clip("variable.mkv", 320, 240, 12, is_irregular=True),
    Clip("irregular.mp4", 320, 240, 6, is_irregular=True),
    Clip("rotated-90.mp4", 320, 240, 3, ClipSpec(fps=12, rotation=90)),
    Clip("rotated-180.mov", 320, 240, 2, ClipSpec(fps=12, rotation=180)),
    Clip("alpha.webm", 320, 240, 3, _ALPHA, is_transparent=True),
    Clip("long-audio.mp4", 320, 240, 4, ClipSpec(fps=12, audio_seconds=7.0)),
    Clip("one-frame.mp4", 320, 240, 0.1, ClipSpec(fps=10), has_gold=False),
    Clip("truncated.mp4", 320, 240, 8, _INDEX_FIRST, has_gold=False),
)


def _render_clips(folder: Path, seed: int) -> Answers:
    answers: Answers = {}
    for clip in CLIPS:
        scene = _render_clip(clip, folder / clip.name, random.Random(f"{seed}/{clip.name}"))
        if clip.has_gold and clip.seconds <= MAX_GOLD_SECONDS:
            start_seconds = clip.encoding.start_seconds
            answers[f"clips/{clip.name}"] = gold(scene, start_seconds=start_seconds)
    _cut_file(folder / "truncated.mp4", 0.5)
    (folder / "unreadable.mp4").write_bytes(random.Random(f"{seed}/unreadable").randbytes(20000))
    return answers


def _render_clip(clip: Clip, path: Path, rng: random.Random) -> Scene:
    encoding = clip.encoding
    if clip.is_irregular:
        drawn = irregular_times(rng, clip.seconds, max_after=3)
        times = [t for t in drawn if not _is_held(t)]
        encoding = replace(encoding, pts_seconds=times)
    else:
        fps = Fraction(encoding.fps)
        times = [float(n / fps) for n in range(max(1, round(clip.seconds * encoding.fps)))]
    turns = encoding.rotation // 90
    shown = (clip.height, clip.width) if turns % 2 else (clip.width, clip.height)
    spec = SceneSpec(duration_seconds=clip.seconds, transparent=clip.is_transparent)
    scene = random_scene(rng, *shown, spec)
    while clip.is_irregular and any(
        _is_held(t) for s in scene.shapes for t in (s.appears_seconds, s.vanishes_seconds)
    ):
        scene = random_scene(rng, *shown, spec)
    # Rotated anticlockwise here, because the player rotates the picture clockwise.
    frames = (np.rot90(np.asarray(draw(scene, t)), turns) for t in times)
    encode_clip(path, frames, encoding)
    return scene


def _is_held(t: float) -> bool:
    return HELD_SECONDS[0] <= t < HELD_SECONDS[1]


def _cut_file(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
