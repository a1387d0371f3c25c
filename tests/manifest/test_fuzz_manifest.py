"""Any bytes are read as a manifest or refused with a message; nothing else is raised."""

import gzip
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.manifest.read import read_manifest
from pipeline.storage.storage import Storage
from pipeline.workers.child_limits import ChildLimits
from pipeline.workers.child_process import Isolated
from schemas.errors import ManifestError, StorageError
from schemas.tables.manifest import MediaItem

ROWS = [
    {"uri": "s3://b/a.mp4", "media_id": "a", "start_seconds": 1.5, "tasks": ["ocr"], "note": "x"},
    {"uri": "b.jpg", "frames": None, "sample_fps": None, "price": 3, "when": {"year": 2026}},
    {"messages": [{"role": "user", "content": [{"type": "image", "image": "c.png"}]}]},
    {
        "frames": ["1.png", "2.png"],
        "sample_fps": 4.0,
        "intrinsics": {"fx": 9, "fy": 9, "cx": 6, "cy": 3},
    },
]


def as_jsonl() -> bytes:
    return "\n".join(json.dumps(row) for row in ROWS).encode()


def as_csv() -> bytes:
    rows = ('s3://b/a.mp4,a,1.5,"x, y"', "b.jpg,,,", '"c ""d"".png",c,0,1')
    return "\n".join(("uri,media_id,start_seconds,note", *rows)).encode()


def as_parquet(compression: str = "snappy") -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS[:2]), out, compression=compression)
    return out.getvalue()


def read(content: bytes, extension: str) -> list[MediaItem] | None:
    """The items, or None if the manifest is refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"manifest.{extension}"
        path.write_bytes(content)
        try:
            return read_manifest(str(path), Storage())
        except (ManifestError, StorageError):
            return None


@pytest.mark.parametrize(
    ("make", "extension"), [(as_jsonl, "jsonl"), (as_csv, "csv"), (as_parquet, "parquet")]
)
def test_sound_manifests_are_read(make: Callable[[], bytes], extension: str):
    assert len(read(make(), extension)) in (2, 3, 4)


ANY = st.binary(max_size=200) | st.text(max_size=100).map(
    lambda text: text.encode("utf-8", "replace")
)
EDIT = st.tuples(st.integers(0, 10_000), st.integers(0, 30), st.binary(max_size=12))


def edited(content: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for position, length, inserted in edits:
        at = position % (len(content) + 1)
        content = content[:at] + inserted + content[at + length :]
    return content


@settings(max_examples=150)
@given(content=ANY, extension=st.sampled_from(["jsonl", "csv", "jsonl.gz", "csv.gz", "parquet"]))
def test_any_bytes(content: bytes, extension: str):
    read(content, extension)


@settings(max_examples=200)
@given(edits=st.lists(EDIT, min_size=1, max_size=4), packed=st.booleans())
def test_damaged_text(edits: list[tuple[int, int, bytes]], packed: bool):
    for extension, content in (("jsonl", as_jsonl()), ("csv", as_csv())):
        if packed:
            read(edited(gzip.compress(content, mtime=0), edits), f"{extension}.gz")
        read(edited(content, edits), extension)


VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
KEY = st.sampled_from(sorted({key for row in ROWS for key in row} | {"end_seconds", "media_type"}))


@settings(max_examples=200)
@given(rows=st.lists(st.dictionaries(KEY, VALUE, max_size=4), min_size=1, max_size=3))
def test_any_values_in_the_known_columns(rows: list[dict]):
    read("\n".join(json.dumps({"uri": "a.png"} | row) for row in rows).encode(), "jsonl")


def read_damaged_parquet(seed: int, count: int) -> int:
    """Read ``count`` damaged files; returns how many were not refused."""
    rng = np.random.default_rng(seed)
    num_read = 0
    for k in range(count):
        content = bytearray(as_parquet("zstd" if k % 2 else "none"))
        for at in rng.integers(0, len(content), size=1 + k % 5):
            content[at] = rng.integers(256)
        if k % 7 == 0:
            content = content[: rng.integers(len(content))]
        num_read += read(bytes(content), "parquet") is not None
    return num_read


def test_damaged_parquet():
    """In a child process, since Arrow's C++ code may crash."""
    isolated = Isolated("tests.manifest.test_fuzz_manifest")
    limits = ChildLimits(timeout_seconds=120, max_resident_bytes=1 << 30)
    assert 0 < isolated.call(read_damaged_parquet, 7, 400, limits=limits) < 400
    isolated.close()
