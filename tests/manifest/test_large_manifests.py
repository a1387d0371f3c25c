"""A manifest of any size is read in bounded memory, or refused with a message that says what to do.

Memory is the peak of a child process of its own; time is that of the CPU.
"""

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.manifest.distinct import Distinct
from pipeline.manifest.formats.rows import MAX_COLUMNS
from pipeline.manifest.kept import Kept
from pipeline.manifest.messages import split_messages
from pipeline.manifest.read import manifest_items, read_manifest
from pipeline.manifest.select import select
from pipeline.storage.storage import Storage
from pipeline.workers.free_memory import free_bytes
from schemas.errors import ManifestError
from schemas.job.job import Input
from schemas.tables.manifest import MediaItem
from tests.support.paths import ROOT

STORAGE = Storage()
MB = 1 << 20
MAX_PEAK = 500 * MB

_READ = """
import resource, sys
from pipeline.manifest.read import manifest_items
from pipeline.storage.storage import Storage
from schemas.errors import ManifestError
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    print(sum(1 for _ in manifest_items(sys.argv[1], Storage())))
except ManifestError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) * 1024)
"""


def peak(path: Path) -> tuple[str, int]:
    """What a child says of a manifest: the number of rows or the error, and its peak memory."""
    command = [sys.executable, "-c", _READ, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    *said, num_bytes = done.stdout.splitlines()
    return "\n".join(said), int(num_bytes)


def test_one_long_line_of_gzip(tmp_path):
    path = tmp_path / "m.jsonl.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(b'{"uri": "')
        for _ in range(600):
            file.write(b"a" * MB)
    assert path.stat().st_size < 5 * MB
    said, num_bytes = peak(path)
    assert "line 1: over 67,108,864 bytes; store large media as files" in said
    assert num_bytes < MAX_PEAK


@pytest.mark.parametrize(
    ("name", "begin", "line", "said"),
    [
        ("m.jsonl.gz", b"", b'{"uri": "a", "x": "' + b"a" * MB + b'"}\n', "200 times as large"),
        ("m.csv.gz", b"uri,x\n", b"a," + b"a" * MB + b"\n", "200 times as large"),
        ("m.csv.gz", b"uri\n", b"\n" * MB, "over 1,000,000 blank lines"),
        ("m.csv.gz", b'uri\n"', b"a\n" * (MB // 2), "line 2: over 67,108,864 bytes"),
        ("m.ndjson.gz", b"", b"\n" * MB, "over 1,000,000 blank lines"),
    ],
    ids=["rows of JSON", "rows of CSV", "blank lines of CSV", "an open quote", "blank lines"],
)
def test_gzip_that_grows(tmp_path, name, begin, line, said):
    with gzip.open(tmp_path / name, "wb", 1) as file:
        file.write(begin + line * 2)
        for _ in range(298 if "200" in said else 1):
            file.write(line)
    found, num_bytes = peak(tmp_path / name)
    assert said in found
    assert num_bytes < MAX_PEAK


def test_a_large_text_that_parquet_stores_once(tmp_path):
    """A file of some MB whose rows are gigabytes: they are read, and share the text."""
    path, text = tmp_path / "m.parquet", "0123456789abcdef" * (MB // 4)
    uris = [f"s3://b/{k}.mp4" for k in range(200)]
    table = pa.table({"uri": uris, "x": [text] * len(uris)})
    pq.write_table(table, path, compression="none", dictionary_pagesize_limit=1 << 30)
    del table
    assert path.stat().st_size < 6 * MB
    said, num_bytes = peak(path)
    assert said == "200"
    assert num_bytes < MAX_PEAK


def test_parquet_that_grows_row_by_row(tmp_path):
    path, text = tmp_path / "m.parquet", "a" * 100_000
    with pq.ParquetWriter(
        path,
        pa.schema({"uri": pa.string(), "x": pa.string()}),
        compression="zstd",
        use_dictionary=False,
    ) as writer:
        for begin in range(0, 6000, 1000):
            numbers = range(begin, begin + 1000)
            writer.write_table(
                pa.table(
                    {"uri": [f"{k}.mp4" for k in numbers], "x": [f"{k}{text}" for k in numbers]}
                )
            )
    assert path.stat().st_size < 2 * MB
    said, num_bytes = peak(path)
    assert said == "6000"
    assert num_bytes < MAX_PEAK


def test_a_value_and_a_list_that_are_too_large(tmp_path):
    text = "a" * (65 * MB)
    pq.write_table(pa.table({"uri": ["a"], "x": [text]}), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="rows 1 to 1: over 67,108,864 bytes"):
        read_manifest(f"{tmp_path}/m.parquet", STORAGE)
    (tmp_path / "m.csv").write_text(f"uri,x\na,{text}\n")
    with pytest.raises(ManifestError, match="line 2: over 67,108,864 bytes"):
        read_manifest(f"{tmp_path}/m.csv", STORAGE)
    nulls = pa.ListArray.from_arrays(pa.array([0, 70 * MB], pa.int32()), pa.nulls(70 * MB))
    table = pa.table({"uri": ["a"], "x": nulls.cast(pa.list_(pa.int8()))})
    pq.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match="over 67,108,864 values in one row group"):
        read_manifest(f"{tmp_path}/m.parquet", STORAGE)


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl", "jsonl in many rows", "folder"])
def test_too_many_columns_are_refused_quickly(tmp_path, form):
    names = [f"column_{k}" for k in range(2 * MAX_COLUMNS)]
    uri = tmp_path / f"m.{form.split()[0]}"
    if form == "parquet":
        pq.write_table(pa.table({"uri": ["a"]} | {name: [1] for name in names}), uri)
    elif form == "csv":
        uri.write_text(",".join(["uri", *names, *(f"x{k}" for k in range(100_000))]) + "\n")
    elif form == "jsonl":
        uri.write_text(json.dumps({"uri": "a"} | dict.fromkeys(names)) + "\n")
    elif form == "folder":
        uri.mkdir()
        for k in (0, 1):
            half = {name: [1] for name in names[k::2]}
            pq.write_table(pa.table({"uri": [f"a{k}"]} | half), uri / f"{k}.parquet")
    else:
        lines = (json.dumps({"uri": str(k), name: 1}) + "\n" for k, name in enumerate(names))
        uri.write_text("".join(lines))
    began = time.process_time()
    with pytest.raises(ManifestError, match="has over 2,000 columns; leave out"):
        read_manifest(str(uri), STORAGE)
    assert time.process_time() - began < 20


def test_many_columns_are_read(tmp_path):
    values = {f"column_{k}": k for k in range(1900)}
    (tmp_path / "m.jsonl").write_text(json.dumps({"uri": "a"} | values) + "\n")
    (item,) = read_manifest(f"{tmp_path}/m.jsonl", STORAGE)
    assert json.loads(item.attributes or "") == values


def test_many_parts_of_text_take_linear_time():
    parts = [{"type": "text", "text": f"word {k} " * 20} for k in range(100_000)]
    began = time.process_time()
    turns, media = split_messages(json.dumps([{"role": "user", "content": parts}]))
    assert time.process_time() - began < 10
    assert media == ()
    ((part,),) = [turn["content"] for turn in json.loads(turns)]
    assert part["text"] == "".join(part["text"] for part in parts)


def no_table():
    pytest.fail("the job has no only_new")


def test_more_items_than_memory_are_refused(tmp_path, monkeypatch):
    assert free_bytes() > 100 * MB
    (tmp_path / "m.csv").write_text("uri\n" + "".join(f"{k}.mp4\n" for k in range(10_000)))
    spec = Input(manifest=f"{tmp_path}/m.csv")
    assert len(select(spec, STORAGE, no_table).items) == 10_000
    monkeypatch.setattr("pipeline.manifest.select.free_bytes", lambda: 4 * MB)
    assert len(select(spec, STORAGE, no_table).items) == 10_000  # few are never refused
    monkeypatch.setattr("pipeline.manifest.kept._SMALL_ITEMS", 1000)
    with pytest.raises(ManifestError, match="half of the free memory; divide them into several"):
        select(spec, STORAGE, no_table)
    limited = Input(manifest=f"{tmp_path}/m.csv", limit=10)
    assert len(select(limited, STORAGE, no_table).items) == 10


def test_cached_files_are_free_memory(tmp_path, monkeypatch):
    """A container that has read much has its limit nearly full of them all the time."""
    monkeypatch.setattr("pipeline.workers.free_memory._CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(f"{50 * MB}\n")
    (tmp_path / "memory.current").write_text(f"{49 * MB}\n")
    stat = f"anon {9 * MB}\nactive_file {10 * MB}\ninactive_file {20 * MB}\n"
    (tmp_path / "memory.stat").write_text(stat)
    assert free_bytes() == 31 * MB
    (tmp_path / "memory.max").write_text("1\n")
    assert free_bytes() == 0


def test_attributes_that_rows_share_count_once():
    attributes = '{"x": "' + "a" * MB + '"}'
    items = [MediaItem(media_id=str(k), uri=str(k), attributes=attributes) for k in range(100)]
    assert Kept(2 * MB).added(items) == items


def test_rows_after_the_limit_are_checked(tmp_path):
    (tmp_path / "m.csv").write_text("uri,end_seconds\na,\nb,-1\n")
    with pytest.raises(ManifestError, match="line 3: end_seconds must not be negative"):
        select(
            Input(manifest=f"{tmp_path}/m.csv", limit=1), STORAGE, lambda: pytest.fail("only_new")
        )


def test_ids_of_one_hash_are_compared(tmp_path, monkeypatch):
    """Hashes only choose which rows are compared."""
    (tmp_path / "m.csv").write_text("uri,media_id\n" + "".join(f"{k},m{k}\n" for k in range(50)))
    monkeypatch.setattr("pipeline.manifest.distinct.hash", lambda value: 7, raising=False)
    distinct = Distinct()
    for item in manifest_items(f"{tmp_path}/m.csv", STORAGE):
        distinct.add(item)
    assert distinct.repeated() == {7}
    assert len(read_manifest(f"{tmp_path}/m.csv", STORAGE)) == 50


@pytest.mark.long
@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl.gz"])
def test_ten_million_rows(tmp_path, form):
    path, step = tmp_path / f"m.{form}", 500_000
    parquet = None
    with gzip.open(path, "wt", 1) if form == "jsonl.gz" else path.open("w") as text:
        text.write("" if form == "jsonl.gz" else "uri,camera,n\n")
        for begin in range(0, 10_000_000, step):
            numbers = range(begin, begin + step)
            uris = [f"s3://archive/clips/2026/{k % 365:03}/{k:09}.mp4" for k in numbers]
            if form == "csv":
                text.writelines(
                    f"{u},cam-{k % 97},{k}\n" for k, u in zip(numbers, uris, strict=True)
                )
            elif form == "jsonl.gz":
                text.writelines(
                    f'{{"uri": "{u}", "camera": "cam-{k % 97}", "n": {k}}}\n'
                    for k, u in zip(numbers, uris, strict=True)
                )
            else:
                cameras = [f"cam-{k % 97}" for k in numbers]
                table = pa.table({"uri": uris, "camera": cameras, "n": list(numbers)})
                parquet = parquet or pq.ParquetWriter(tmp_path / "big.parquet", table.schema)
                parquet.write_table(table)
    if parquet:
        parquet.close()
        path = tmp_path / "big.parquet"
    said, num_bytes = peak(path)
    assert said == "10000000"
    assert num_bytes < 2_000 * MB
