"""Render a small archive of real images and clips: what `make demo` annotates and the tests read.

A list of files, each there for a trait or a fault met in real archives. Pillow and PyAV do all the
work. Same seed, same files. Nothing else is written: `reelscribe scan` makes the manifest.

    python -m jobs.render_archive FOLDER
"""

import argparse
import logging
import random
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jobs.encode_clip import NUM_THREADS, encode_clip
from jobs.scene import BACKGROUNDS, Label, Scene, draw, random_scene

logger = logging.getLogger(__name__)


def render_archive(folder: Path, *, seed: int = 0) -> None:
    """Render `images/` and `clips/` into `folder`: made if missing, same names are replaced."""
    for name in ("images", "clips"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _render_images(folder / "images", seed)
    _render_clips(folder / "clips", seed)
    num_files = sum(1 for path in folder.glob("*/*") if path.is_file())
    logger.info("rendered %d files into %s", num_files, folder)


def _render_images(folder: Path, seed: int) -> None:
    def still(name: str, width: int = 480, height: int = 360, **scene: Any) -> Image.Image:
        return draw(random_scene(random.Random(f"{seed}/{name}"), width, height, **scene), 0.0)

    for n in range(5):
        still(f"scene-{n}").save(folder / f"scene-{n}.jpg", quality=90)
    for n in range(3):
        still(f"plate-{n}", 320, 240).save(folder / f"plate-{n}.png")
    still("café no 7").save(folder / "café no 7.jpg")  # a name that must be quoted in a uri
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees clockwise to show
    upright = still("orientation-6", 360, 480)
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "orientation-6.jpg", exif=exif)
    still("gray").convert("L").save(folder / "gray.jpg")
    still("cmyk").convert("CMYK").save(folder / "cmyk.jpg")
    still("progressive").save(folder / "progressive.jpg", progressive=True)
    still("large", 1600, 1200).save(folder / "large.jpg", quality=85)
    still("alpha", transparent=True).save(folder / "alpha.png")
    palette = still("palette", transparent=True).quantize(16, Image.Quantize.FASTOCTREE)
    palette.save(folder / "palette-transparent.png")
    gray16 = np.asarray(still("gray16").convert("L"), dtype=np.uint16) * 257
    Image.fromarray(gray16).save(folder / "gray16.png")
    still("photo").save(folder / "photo.webp", quality=80)
    still("alpha-webp", transparent=True).save(folder / "alpha.webp")
    steps = random_scene(random.Random(f"{seed}/steps"), 240, 180, duration_seconds=2.0)
    first, *rest = (draw(steps, n / 5) for n in range(10))
    first.save(folder / "animated.gif", save_all=True, append_images=rest, duration=200, loop=0)
    still("page").save(folder / "page.tiff", compression="tiff_lzw")
    still("scene-avif").save(folder / "scene.avif", quality=70, max_threads=NUM_THREADS)
    still("tiny", 20, 14).save(folder / "tiny.png")
    sign = Label(
        text="PLATFORM 9: TRAINS TO HARBOUR NORTH EVERY 20 MINUTES", position=(12, 4), size=28
    )
    banner = Scene(width=1200, height=40, background=(BACKGROUNDS[0],) * 2, labels=(sign,))
    draw(banner, 0.0).save(folder / "wide.png")
    still("truncated").save(folder / "truncated.jpg", quality=90)
    _cut_file(folder / "truncated.jpg", 0.4)
    try:
        import pillow_heif
    except ImportError:
        logger.warning("pillow_heif is not installed, so images/scene.heic is left out")
    else:
        pillow_heif.register_heif_opener()
        still("scene-heic").save(folder / "scene.heic", quality=70)


def _render_clips(folder: Path, seed: int) -> None:
    def clip(
        name: str,
        width: int,
        height: int,
        seconds: float,
        *,
        transparent: bool = False,
        **options: Any,
    ) -> None:
        rng = random.Random(f"{seed}/{name}")
        fps = options.setdefault("fps", 12)
        if options.pop("irregular", False):
            options["pts_seconds"] = times = _irregular_times(rng, seconds)
        else:
            times = [float(n / Fraction(fps)) for n in range(max(1, round(seconds * fps)))]
        scene = random_scene(
            rng,
            width,
            height,
            duration_seconds=seconds,
            show_clock=not transparent and rng.random() < 0.6,
            transparent=transparent,
        )
        encode_clip(folder / name, (draw(scene, t) for t in times), **options)

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
    clip("rotated-90.mp4", 320, 240, 3, rotation=90)
    clip("rotated-180.mov", 320, 240, 2, rotation=180)
    # Alternate reference frames and alpha do not go together in libvpx.
    alpha = {"pix_fmt": "yuva420p", "codec_options": {"auto-alt-ref": "0"}}
    clip("alpha.webm", 320, 240, 3, codec="libvpx-vp9", transparent=True, **alpha)
    clip("long-audio.mp4", 320, 240, 4, audio_seconds=7.0)
    clip("one-frame.mp4", 320, 240, 0.1, fps=10)
    # The index comes first, so a player opens it and is told of frames that are not there.
    clip("truncated.mp4", 320, 240, 8, container_options={"movflags": "faststart"})
    _cut_file(folder / "truncated.mp4", 0.5)
    (folder / "unreadable.mp4").write_bytes(random.Random(f"{seed}/unreadable").randbytes(20000))


def _irregular_times(rng: random.Random, seconds: float) -> list[float]:
    """Uneven times from 0 up to `seconds`, with one picture held from 7.2 s to 11 s."""
    times = [0.0]
    while times[-1] < seconds - 0.4:
        gap = rng.choice((0.02, 0.04, 0.1, 0.25, 0.4))
        later = 11.0 if times[-1] >= 7.2 and times[-1] + gap < 11.0 else times[-1] + gap
        times.append(round(later, 3))
    return times


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
