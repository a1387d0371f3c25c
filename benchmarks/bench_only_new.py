"""Cost of `only_new` for the driver when the table has millions of media.

Writes a synthetic table in the output's own schema (images, one row each; ids, versions and media
facts as in a real one, no answers), then looks up as many listed media; one in a thousand is
new. Prints seconds, the peak memory of the process, and the share of bytes read.

    python benchmarks/bench_only_new.py --rows 10000000
"""

import resource
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.common import call, is_child, parser  # noqa: E402
from pipeline.manifest.existing import ExistingMedia  # noqa: E402
from pipeline.output.rows import ANNOTATION  # noqa: E402
from pipeline.storage.ids import digest  # noqa: E402
from pipeline.storage.parquet import write_parquet  # noqa: E402
from pipeline.storage.storage import Storage  # noqa: E402
from schemas.tables.annotation import RecipeIds  # noqa: E402
from schemas.tables.manifest import MediaItem  # noqa: E402

ROWS_PER_FILE = 100_000
BATCH = 50_000


def etag(k: int) -> str:
    return f"{k * 0x9E3779B97F4A7C15 % (1 << 128):032x}"


def write_table(folder: str, rows: int) -> None:
    for start in range(0, rows, ROWS_PER_FILE):
        count = min(ROWS_PER_FILE, rows - start)
        ks = range(start, start + count)
        fixed = pa.Table.from_pylist([ROW] * 1, schema=ANNOTATION)
        table = fixed.take(pa.array([0] * count))
        for name, values in (
            ("unit_id", [digest(f"{k:020x}", None, None, None) for k in ks]),
            ("media_id", [f"{k:020x}" for k in ks]),
            ("uri", [f"s3://media/archive/{k // 1000:06d}/{k:09d}.jpg" for k in ks]),
            ("content_version", [etag(k) for k in ks]),
        ):
            at = table.schema.get_field_index(name)
            table = table.set_column(at, table.schema.field(at), pa.array(values))
        uri = f"{folder}/annotations/run_date=2026-01-01/part-r-abc-{start:016x}.parquet"
        write_parquet(table, uri, Storage())


ROW = {
    "unit_id": "", "media_id": "", "run_id": "nightly-20260101-abcdef", "recipe_id": "abc",
    "uri": "", "status": "ok", "parts": [], "timings": {},
    "media": {"media_type": "image", "has_alpha": False, "width": 1920, "height": 1080,
              "rotation": 0, "size_bytes": 300_000, "container": "JPEG"},
    "sampling": {"origin_seconds": 0.0, "num_frames": 1, "resized_height": 1088,
                 "resized_width": 1920, "grid_thw": [1, 68, 120], "num_vision_tokens": 2040},
    "caption": "A street with parked cars, seen from above, in the rain.",
    "responses": [{"task": "caption", "prompt": "Describe this image.", "raw_text": "A street with "
                   "parked cars, seen from above, in the rain.", "status": "ok"}],
}  # fmt: skip


def ask(folder: str, num_rows: str) -> str:
    """Look up listed media; returns a line with the figures."""
    rows = int(num_rows)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    started = time.perf_counter()
    with ExistingMedia(folder, RecipeIds("abc", "abc", "abc", "abc"), Storage()) as known:
        opened = time.perf_counter() - started
        new = 0
        for start in range(0, rows, BATCH):
            items = [
                MediaItem(
                    media_id=f"{k:020x}",
                    uri=f"s3://media/archive/{k:09d}.jpg",
                    content_version=etag(k + (rows if k % 1000 == 0 else 0)),
                )
                for k in range(start, min(start + BATCH, rows))
            ]
            new += len(known.new_items(items)[0])
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert new == len(range(0, rows, 1000)), new
    return (
        f"{rows:,} known, {rows:,} listed, {new:,} new: {opened:.1f} s to read the table, "
        f"{seconds - opened:.1f} s to look up; peak memory {peak:,.0f} MB ({before:,.0f} MB of it "
        "before)"
    )


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rows", type=int, default=1_000_000)
    options = arguments.parse_args(argv)
    rows = 2_000 if options.small else options.rows
    build = ROOT / "build"
    with tempfile.TemporaryDirectory(dir=build if build.is_dir() else None) as folder:
        write_table(folder, rows)
        print(call(ask, folder, str(rows), small=options.small))


if __name__ == "__main__":
    if not is_child(globals()):
        main()
