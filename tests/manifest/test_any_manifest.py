"""Any manifest gives the same items in every format, and after it was written and read again."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.manifest.read import manifest_digest, read_manifest
from pipeline.manifest.write import write_manifest
from pipeline.storage.storage import Storage
from tests.support.manifests import as_csv, as_jsonl, as_parquet

STORAGE = Storage()

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NAMES = st.sampled_from(["title", "n", "Ünï", "select", "a b", 'quo"te'])
SECONDS = st.none() | st.floats(0, 1e6)
ROW_KINDS = st.sampled_from(
    [TEXT, st.integers(-(2**63), 2**63 - 1), st.booleans(), st.floats(allow_nan=False)]
)


@st.composite
def manifests(draw):
    kinds = draw(st.dictionaries(NAMES, ROW_KINDS, max_size=3))
    rows = []
    for k in range(draw(st.integers(1, 4))):
        row = {"uri": f"s3://b/{k}-{draw(TEXT)}x"}
        start, end = draw(SECONDS), draw(SECONDS)
        if end is not None and (start or 0.0) >= end:
            start, end = None, None
        row |= {"start_seconds": start, "end_seconds": end}
        row["media_type"] = draw(st.sampled_from([None, "image", "video"]))
        row["tasks"] = draw(st.lists(st.sampled_from(["caption", "ocr"]), unique=True))
        rows.append(row | {name: draw(st.none() | kind) for name, kind in kinds.items()})
    return rows


FOLDER_IS_SHARED = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=60,
)


@FOLDER_IS_SHARED
@given(rows=manifests())
def test_parquet_and_json_lines_give_the_same_items(rows, tmp_path):
    (tmp_path / "m.jsonl").write_bytes(as_jsonl(rows))
    (tmp_path / "m.parquet").write_bytes(as_parquet(rows))
    items = read_manifest(f"{tmp_path}/m.jsonl", STORAGE)
    assert items == read_manifest(f"{tmp_path}/m.parquet", STORAGE)


@FOLDER_IS_SHARED
@given(rows=manifests())
def test_csv_gives_the_same_items_where_text_is_not_a_number(rows, tmp_path):
    for row in rows:  # in CSV, "12" and 12 are the same cell, and so are "" and null
        row.update({k: f"t{v}" for k, v in row.items() if isinstance(v, str) and k != "media_type"})
        row["uri"] = row["uri"][1:]
        row.update({k: None for k, v in row.items() if v in (float("inf"), -float("inf"))})
    (tmp_path / "m.csv").write_bytes(as_csv(rows))
    (tmp_path / "m.jsonl").write_bytes(as_jsonl(rows))
    items = read_manifest(f"{tmp_path}/m.csv", STORAGE)
    assert items == read_manifest(f"{tmp_path}/m.jsonl", STORAGE)
    assert manifest_digest(items) == manifest_digest(read_manifest(f"{tmp_path}/m.jsonl", STORAGE))


@FOLDER_IS_SHARED
@given(rows=manifests(), extension=st.sampled_from(["jsonl", "parquet"]))
def test_any_manifest_can_be_written_and_read_again(rows, extension, tmp_path):
    (tmp_path / "m.jsonl").write_bytes(as_jsonl(rows))
    items = read_manifest(f"{tmp_path}/m.jsonl", STORAGE)
    write_manifest(items, f"{tmp_path}/again.{extension}", STORAGE)
    assert read_manifest(f"{tmp_path}/again.{extension}", STORAGE) == items
