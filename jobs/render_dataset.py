"""Render a seeded data set with gold annotations: splits of images and clips of `random_scene`.

    python -m jobs.render_dataset FOLDER --split train --images 2000 --clips 1000

FOLDER/train then has `images/`, `clips/` and, with `--signs`, `signs/`; `gold.parquet` (one row a
file: see `GOLD`) and `manifest.jsonl`. File k of a split comes from a seed of its own, so a later
run with larger numbers adds files and leaves those that are there: start with an empty folder when
this code has changed.
It needs the extra fonts of `reelscribe[dataset]`.
"""

import argparse
import json
import logging
import multiprocessing
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from jobs.encode_clip import encode_clip
from jobs.scene import Scene, draw, gold, load_font
from jobs.scene_random import irregular_times, random_scene, random_sign
from schemas.errors import UserError
from schemas.task import box_type

logger = logging.getLogger(__name__)

Split = Literal["train", "validation", "test"]
Kind = Literal["image", "video", "sign", "quiet"]

# Sans, sans bold, serif, serif bold and round, beside the one inside Pillow.
FONTS = (
    "",
    "font_roboto/Roboto-Regular.ttf",
    "font_roboto/Roboto-Bold.ttf",
    "font_source_serif_pro/SourceSerifPro-Regular.ttf",
    "font_source_serif_pro/SourceSerifPro-Bold.ttf",
    "font_fredoka_one/FredokaOne-Regular.ttf",
)
# fmt: off
IMAGE_SIZES = (
    (480, 360), (360, 480), (320, 240), (640, 480), (400, 400), (480, 270), (800, 600),
)
# fmt: on
CLIP_SIZES = ((320, 240), (426, 240), (240, 320), (320, 180))
# suffix, codec, share in percent, options of `encode_clip`
CLIP_KINDS: tuple[tuple[str, str, int, dict[str, Any]], ...] = (
    (".mp4", "libx264", 45, {}),
    (".mp4", "libx264", 25, {"max_b_frames": 2}),
    (".mp4", "libx265", 8, {}),
    (".webm", "libvpx-vp9", 8, {}),
    (".mkv", "libsvtav1", 4, {}),
    (".mov", "libx264", 10, {"max_b_frames": 2}),
)


def _seen(name: str) -> pa.DataType:
    fields = [(name, pa.string()), ("box", box_type()), ("pts_seconds", pa.float64())]
    return pa.list_(pa.struct(fields))


_EVENT = pa.struct(
    [
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("caption", pa.string()),
    ]
)
GOLD = pa.schema(
    [
        ("uri", pa.string()),  # from the folder of the split
        ("media_id", pa.string()),
        ("media_type", pa.string()),
        ("codec", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("duration_seconds", pa.float64()),  # null for images
        ("caption", pa.string()),
        ("ocr", pa.string()),
        ("objects", _seen("label")),
        ("text_spans", _seen("text")),
        ("events", pa.list_(_EVENT)),  # null for images
    ]
)


@dataclass(frozen=True, kw_only=True)
class File:
    """One file as its seed has it, before anything is drawn; enough for its gold.

    `noise` is the standard deviation of Gaussian noise in levels, `salt` a share of the pixels,
    `quality` that of a lossy image, and `pts_seconds` begin at 0, to which `start_seconds` come.
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
    options: tuple[tuple[str, Any], ...] = ()


def render_dataset(
    folder: Path,
    split: Split,
    *,
    num_images: int,
    num_clips: int,
    num_signs: int = 0,
    num_quiet: int = 0,
    seed: int = 0,
    num_workers: int = 2,
) -> Path:
    """Render a split, or what is missing of it, and return its folder.

    Raises:
        UserError: a font is missing, or the folder has files of another seed.
    """
    for font in FONTS:
        load_font(font, 20)  # before any worker starts
    place = folder / split
    for name in ("images", "clips", "signs", "quiet"):
        (place / name).mkdir(parents=True, exist_ok=True)
    _check_seed(place / "seed.json", seed)
    jobs: list[tuple[Kind, int]] = [("image", n) for n in range(num_images)]
    jobs += [("video", n) for n in range(num_clips)]
    jobs += [("sign", n) for n in range(num_signs)]
    jobs += [("quiet", n) for n in range(num_quiet)]
    rows = []
    started = shown = time.monotonic()
    for row in _rows(partial(_render, place, split, seed), jobs, num_workers):
        rows.append(row)
        if time.monotonic() - shown > 10:
            shown = time.monotonic()
            logger.info("%s: %d/%d files, %.0f s", split, len(rows), len(jobs), shown - started)
    _write_tables(place, rows)
    logger.info("%s: %d files, %.0f s", split, len(rows), time.monotonic() - started)
    return place


def plan_file(split: str, kind: Kind, number: int, seed: int = 0) -> File:
    """File `number` of its kind in a split: the same whatever else is rendered."""
    rng = random.Random(f"{seed}/{split}/{kind}/{number}")
    if kind in ("video", "quiet"):
        return _plan_clip(rng, number, is_quiet=kind == "quiet")
    if kind == "sign":
        return _plan_image(rng, random_sign(rng, fonts=FONTS), f"signs/{number:06}")
    width, height = rng.choice(IMAGE_SIZES)
    scene = random_scene(rng, width, height, easy=rng.random() < 0.3, fonts=FONTS)
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
        # In pixels of a picture some 290 wide, which is about what the model sees.
        blur=rng.uniform(0.4, 0.8) * max(1.0, max(scene.width, scene.height) / 290)
        if rng.random() < 0.1
        else 0.0,
        quality=rng.randint(40, 95),
    )


def _plan_clip(rng: random.Random, number: int, *, is_quiet: bool) -> File:
    width, height = rng.choice(CLIP_SIZES)
    duration_seconds, fps = rng.randint(6, 12) / 2, rng.choice((6, 8, 10, 12))
    scene = random_scene(
        rng, width, height, duration_seconds=duration_seconds, fonts=FONTS, empty=is_quiet
    )
    shares = [share for _, _, share, _ in CLIP_KINDS]
    suffix, codec, _, options = rng.choices(CLIP_KINDS, shares)[0]
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
        options=tuple(options.items()),
    )


def _render(place: Path, split: str, seed: int, job: tuple[Kind, int]) -> dict[str, Any]:
    """Write a file that is not there yet; return its row."""
    file = plan_file(split, *job, seed)
    path = place / file.uri
    if not path.exists():
        # Under another name until it is whole; the suffix stays, as it says the format.
        part = path.with_name(f".part-{path.name}")
        (write_image if file.media_type == "image" else write_clip)(file, part)
        part.rename(path)
    scene = file.scene
    clip = file.media_type == "video"
    return {
        "uri": file.uri,
        "media_id": f"{split}/{file.uri}",
        "media_type": file.media_type,
        "codec": file.codec,
        "width": scene.width,
        "height": scene.height,
        "duration_seconds": scene.duration_seconds if clip else None,
        **gold(scene, start_seconds=file.start_seconds),
    }


def write_image(file: File, path: Path) -> None:
    """Draw an image and spoil it a little, as its seed has it."""
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
    """Draw and encode a clip; all of its times come from the file, none from the encoder."""
    scene = file.scene
    times: Sequence[float] = file.pts_seconds
    options = dict(file.options)
    if times:
        options |= {
            "pts_seconds": times,
            "last_frame_seconds": scene.duration_seconds - times[-1],
        }
    else:
        times = [n / file.fps for n in range(round(scene.duration_seconds * file.fps))]
    encode_clip(
        path,
        _frames(file, times),
        codec=file.codec,
        fps=file.fps,
        start_seconds=file.start_seconds,
        **options,
    )


def _frames(file: File, times: Sequence[float]) -> Iterator[NDArray[np.uint8]]:
    # The same noise on each frame, as dust on the lens: new noise would be slow to encode.
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


def _rows(
    render: "partial[dict[str, Any]]", jobs: list[tuple[Kind, int]], num_workers: int
) -> Iterator[dict[str, Any]]:
    if num_workers <= 1:
        yield from map(render, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        yield from pool.imap(render, jobs, chunksize=16)


def _check_seed(path: Path, seed: int) -> None:
    if not path.exists():
        path.write_text(json.dumps({"seed": seed}))
    found = json.loads(path.read_text())["seed"]
    if found != seed:
        raise UserError(f"{path.parent} has files of seed {found}, not {seed}: take another folder")


def _write_tables(place: Path, rows: list[dict[str, Any]]) -> None:
    table = pa.Table.from_pylist(rows, schema=GOLD)
    part = place / ".part-gold.parquet"
    pq.write_table(table, part)
    part.rename(place / "gold.parquet")
    part = place / ".part-manifest.jsonl"
    with part.open("w") as lines:
        for row in rows:
            entry = {name: row[name] for name in ("uri", "media_id", "media_type", "codec")}
            entry |= {"num_shapes": len(row["objects"]), "num_lines": len(row["text_spans"])}
            lines.write(json.dumps(entry) + "\n")
    part.rename(place / "manifest.jsonl")


def main() -> None:
    """Render the split named on the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", choices=get_args(Split), required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--clips", type=int, required=True)
    parser.add_argument("--signs", type=int, default=0, help="small pictures of a line of text")
    parser.add_argument("--quiet", type=int, default=0, help="clips in which nothing happens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        render_dataset(
            args.folder,
            args.split,
            num_images=args.images,
            num_clips=args.clips,
            num_signs=args.signs,
            num_quiet=args.quiet,
            seed=args.seed,
            num_workers=args.workers,
        )
    except UserError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
