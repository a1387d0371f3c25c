"""Render a small archive of real images and clips: what `make demo` annotates and the tests read.

A list of files, each there for a trait or a fault met in real archives, and `gold.jsonl`: what is
to be said of those that can be seen as they were drawn. Pillow and PyAV do all the work. Same seed,
same files. `reelscribe scan` makes the manifest.

    python -m jobs.render_archive FOLDER
"""

import argparse
import json
import logging
import random
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jobs.encode_clip import NUM_THREADS, encode_clip
from jobs.scene import Background, Label, Scene, draw, gold
from jobs.scene_random import BACKGROUNDS, irregular_times, random_scene

logger = logging.getLogger(__name__)

HELD_SECONDS = (7.2, 11.0)
"""From when to when the clips of variable frame rate show one picture."""

MAX_GOLD_SECONDS = 6.0
"""The demo's window: a longer clip is several units, and its gold is that of none of them."""


def render_archive(folder: Path, *, seed: int = 0) -> None:
    """Render `images/`, `clips/` and `gold.jsonl` into `folder`: made if missing, or replaced.

    A line of `gold.jsonl` has the file's path from `folder` as its `uri`, and what `gold` says.
    Boxes are in the picture as it is displayed. Files that are broken, too small to see, grey, a
    single frame of a clip or longer than one unit have no line.
    """
    for name in ("images", "clips"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    answers = _render_images(folder / "images", seed) | _render_clips(folder / "clips", seed)
    with (folder / "gold.jsonl").open("w", encoding="utf-8") as lines:
        for uri, answer in answers.items():
            lines.write(json.dumps({"uri": uri, **answer}, ensure_ascii=False) + "\n")
    num_files = sum(1 for path in folder.glob("*/*") if path.is_file())
    logger.info("rendered %d files into %s", num_files, folder)


def _render_images(folder: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Render all, and return the gold of each that has it, by uri."""
    answers = {}

    def still(
        name: str, width: int = 480, height: int = 360, *, telling: bool = True, **options: Any
    ) -> Image.Image:
        scene = random_scene(random.Random(f"{seed}/{name}"), width, height, **options)
        if telling:
            answers[f"images/{name}"] = gold(scene)
        return draw(scene, 0.0)

    def save(name: str, picture: Image.Image, **options: Any) -> None:
        picture.save(folder / name, **options)

    for n in range(5):
        save(f"scene-{n}.jpg", still(f"scene-{n}.jpg"), quality=90)
    for n in range(3):
        save(f"plate-{n}.png", still(f"plate-{n}.png", 320, 240))
    save("café no 7.jpg", still("café no 7.jpg"))  # a name that must be quoted in a uri
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees clockwise to show
    upright = still("orientation-6.jpg", 360, 480)
    save("orientation-6.jpg", upright.transpose(Image.Transpose.ROTATE_90), exif=exif)
    save("gray.jpg", still("gray.jpg", telling=False).convert("L"))
    save("cmyk.jpg", still("cmyk.jpg").convert("CMYK"))
    save("progressive.jpg", still("progressive.jpg"), progressive=True)
    save("large.jpg", still("large.jpg", 1600, 1200), quality=85)
    save("alpha.png", still("alpha.png", transparent=True))
    palette = still("palette-transparent.png", transparent=True)
    save("palette-transparent.png", palette.quantize(16, Image.Quantize.FASTOCTREE))
    gray16 = np.asarray(still("gray16.png", telling=False).convert("L"), dtype=np.uint16) * 257
    save("gray16.png", Image.fromarray(gray16))
    save("photo.webp", still("photo.webp"), quality=80)
    save("alpha.webp", still("alpha.webp", transparent=True))
    first, *rest = _drift(random.Random(f"{seed}/animated.gif"), answers)
    save("animated.gif", first, save_all=True, append_images=rest, duration=200, loop=0)
    save("page.tiff", still("page.tiff"), compression="tiff_lzw")
    save("scene.avif", still("scene.avif"), quality=70, max_threads=NUM_THREADS)
    save("tiny.png", still("tiny.png", 20, 14, telling=False))
    sign = Label(
        text="PLATFORM 9: TRAINS TO HARBOUR NORTH EVERY 20 MINUTES", position=(12, 4), size=28
    )
    plain = Background(top=BACKGROUNDS[0], bottom=BACKGROUNDS[0])
    banner = Scene(width=1200, height=40, background=plain, labels=(sign,))
    save("wide.png", draw(banner, 0.0))
    save("truncated.jpg", still("truncated.jpg", telling=False), quality=90)
    _cut_file(folder / "truncated.jpg", 0.4)
    try:
        import pillow_heif
    except ImportError:
        logger.warning("pillow_heif is not installed, so images/scene.heic is left out")
    else:
        pillow_heif.register_heif_opener()
        save("scene.heic", still("scene.heic"), quality=70)
    return answers


def _drift(rng: random.Random, answers: dict[str, dict[str, Any]]) -> Iterator[Image.Image]:
    """Ten frames of a GIF: no two alike, as Pillow leaves out a repeated one."""
    scene = random_scene(rng, 240, 180)
    answers["images/animated.gif"] = gold(scene)  # an image is its first frame
    for n in range(10):
        moved = [
            replace(shape, start=(shape.start[0] + n, shape.start[1])) for shape in scene.shapes
        ]
        yield draw(replace(scene, shapes=tuple(moved)), 0.0)


def _render_clips(folder: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Render all, and return the gold of each that has it, by uri."""
    answers = {}

    def clip(
        name: str,
        width: int,
        height: int,
        seconds: float,
        *,
        transparent: bool = False,
        telling: bool = True,
        irregular: bool = False,
        **options: Any,
    ) -> None:
        rng = random.Random(f"{seed}/{name}")
        fps = options.setdefault("fps", 12)
        if irregular:
            times = [t for t in irregular_times(rng, seconds, most=3) if not _is_held(t)]
            options["pts_seconds"] = times
        else:
            times = [float(n / Fraction(fps)) for n in range(max(1, round(seconds * fps)))]
        turns = options.get("rotation", 0) // 90
        if turns % 2:
            width, height = height, width  # of the picture as it is displayed
        scene = random_scene(rng, width, height, duration_seconds=seconds, transparent=transparent)
        while irregular and any(
            _is_held(t) for s in scene.shapes for t in (s.appears_seconds, s.vanishes_seconds)
        ):
            scene = random_scene(rng, width, height, duration_seconds=seconds)
        if telling and seconds <= MAX_GOLD_SECONDS:
            answers[f"clips/{name}"] = gold(scene, start_seconds=options.get("start_seconds", 0.0))
        # Turned against the clock here, as the player turns the picture with it.
        frames = (np.rot90(np.asarray(draw(scene, t)), turns) for t in times)
        encode_clip(folder / name, frames, **options)

    clip("h264-bframes.mp4", 320, 240, 8, fps=25, max_b_frames=2)
    clip("h264-long-gop.mkv", 426, 240, 10, max_b_frames=3, gop_size=250)
    clip("h264.mov", 320, 240, 4)
    clip("h265.mp4", 320, 240, 5, codec="libx265", max_b_frames=2)
    clip("h265.mkv", 426, 240, 4, codec="libx265")
    clip("vp9.webm", 426, 240, 6, codec="libvpx-vp9")
    clip("av1.mp4", 320, 240, 5, codec="libsvtav1")
    clip("av1.mkv", 320, 240, 3, codec="libsvtav1")
    ntsc = Fraction(30000, 1001)
    clip("ntsc.mp4", 640, 360, 4, fps=ntsc, max_b_frames=2)
    clip("starts-late.mp4", 320, 240, 4, start_seconds=1.5, max_b_frames=2)
    clip("broadcast.ts", 320, 240, 5, fps=25, start_seconds=600.0, max_b_frames=2)
    clip("variable.mp4", 320, 240, 12, irregular=True, max_b_frames=2)
    clip("variable.mkv", 320, 240, 12, irregular=True)
    clip("irregular.mp4", 320, 240, 6, irregular=True)
    clip("rotated-90.mp4", 320, 240, 3, rotation=90)
    clip("rotated-180.mov", 320, 240, 2, rotation=180)
    # Alternate reference frames and alpha do not go together in libvpx.
    alpha: dict[str, Any] = {"pix_fmt": "yuva420p", "codec_options": {"auto-alt-ref": "0"}}
    clip("alpha.webm", 320, 240, 3, codec="libvpx-vp9", transparent=True, **alpha)
    clip("long-audio.mp4", 320, 240, 4, audio_seconds=7.0)
    clip("one-frame.mp4", 320, 240, 0.1, fps=10, telling=False)
    # The index comes first, so a player opens it and is told of frames that are not there.
    faststart = {"movflags": "faststart"}
    clip("truncated.mp4", 320, 240, 8, telling=False, container_options=faststart)
    _cut_file(folder / "truncated.mp4", 0.5)
    (folder / "unreadable.mp4").write_bytes(random.Random(f"{seed}/unreadable").randbytes(20000))
    return answers


def _is_held(t: float) -> bool:
    return HELD_SECONDS[0] <= t < HELD_SECONDS[1]


def _cut_file(path: Path, share: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def main() -> None:
    """Render the archive into the folder named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    render_archive(args.folder, seed=args.seed)


if __name__ == "__main__":
    main()
