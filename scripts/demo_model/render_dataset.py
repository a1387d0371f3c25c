"""Render a seeded data set with gold annotations: splits of images and clips of `random_scene`.

    python -m scripts.demo_model.render_dataset FOLDER --split train --images 2000 --clips 1000

FOLDER/train then has `images/`, `clips/` and, with `--signs`, `signs/`; `gold.parquet` (one row per
file: see `GOLD`) and `manifest.jsonl`. Each file has a seed of its own, so a later run with larger
numbers adds files and keeps the existing ones; after a change of this code, use an empty folder.
It needs the fonts of the extra `dataset`.
"""

import argparse
import json
import logging
import multiprocessing
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.demo.scene import gold
from schemas.errors import UserError
from schemas.task import box_type
from scripts.demo_model.fonts import font_files
from scripts.demo_model.plan_file import Kind, Split, plan_file
from scripts.demo_model.write_file import write_clip, write_image

logger = logging.getLogger(__name__)


def _boxed_list(name: str) -> pa.DataType:
    fields = [(name, pa.string()), ("box", box_type()), ("pts_seconds", pa.float64())]
    return pa.list_(pa.struct(fields))


_EVENT = pa.struct(
    [
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("caption", pa.string()),
    ]
)
_COLUMNS: list[tuple[str, pa.DataType]] = [
    ("uri", pa.string()),  # from the folder of the split
    ("media_id", pa.string()),
    ("media_type", pa.string()),
    ("codec", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("duration_seconds", pa.float64()),  # null for images
    ("caption", pa.string()),
    ("ocr", pa.string()),
    ("objects", _boxed_list("label")),
    ("text_spans", _boxed_list("text")),
    ("events", pa.list_(_EVENT)),  # null for images
]
GOLD = pa.schema(_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Number of files of each kind in a split."""

    images: int = 0
    clips: int = 0
    signs: int = 0
    quiet: int = 0


def render_dataset(
    folder: Path,
    split: Split,
    counts: Counts,
    *,
    seed: int = 0,
    num_workers: int = 2,
) -> Path:
    """Render the files of a split that are missing, and return the split's folder.

    Raises:
        UserError: a font is missing, or the folder has files of another seed.
    """
    font_files()  # raises before any worker starts
    place = folder / split
    for name in ("images", "clips", "signs", "quiet"):
        (place / name).mkdir(parents=True, exist_ok=True)
    _check_seed(place / "seed.json", seed)
    files: list[tuple[Kind, int]] = [("image", n) for n in range(counts.images)]
    files += [("video", n) for n in range(counts.clips)]
    files += [("sign", n) for n in range(counts.signs)]
    files += [("quiet", n) for n in range(counts.quiet)]
    rows = []
    started = logged = time.monotonic()
    for row in _rows(partial(_render, place, split, seed), files, num_workers):
        rows.append(row)
        if time.monotonic() - logged > 10:
            logged = time.monotonic()
            logger.info("%s: %d/%d files, %.0f s", split, len(rows), len(files), logged - started)
    _write_tables(place, rows)
    logger.info("%s: %d files, %.0f s", split, len(rows), time.monotonic() - started)
    return place


def _render(place: Path, split: str, seed: int, key: tuple[Kind, int]) -> dict[str, Any]:
    """Write a file unless it exists; return its row."""
    file = plan_file(split, *key, seed)
    path = place / file.uri
    if not path.exists():
        # Under another name until it is complete; the suffix stays, as it selects the format.
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


def _rows(
    render: "partial[dict[str, Any]]", files: list[tuple[Kind, int]], num_workers: int
) -> Iterator[dict[str, Any]]:
    if num_workers <= 1:
        yield from map(render, files)
        return
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        yield from pool.imap(render, files, chunksize=16)


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
    parser.add_argument("--quiet", type=int, default=0, help="clips without shapes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        render_dataset(
            args.folder,
            args.split,
            Counts(images=args.images, clips=args.clips, signs=args.signs, quiet=args.quiet),
            seed=args.seed,
            num_workers=args.workers,
        )
    except UserError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
