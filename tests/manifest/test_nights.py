"""`latest` follows the listing, night after night; DuckDB and a dictionary are the oracles."""

import io
import random
from pathlib import Path

import pytest
from rich.console import Console

from jobs.results import compact
from jobs.results.read import Selection, read_annotations
from pipeline.output.rows import RunKey
from pipeline.storage.storage import Storage
from schemas.errors import ManifestError, StorageError
from tests.support.annotation_rows import row as any_row
from tests.support.nights import PREFIX, Archive, etag, media_id


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path)


def check(archive: Archive, recipe: str = "abc") -> None:
    expected = archive.expected(recipe)
    assert archive.latest() == expected
    found: dict[str, list[str]] = {}
    for row in read_annotations(Selection(uri=archive.output, recipe_id=recipe), Storage()).rows:
        found.setdefault(row["uri"].removeprefix(f"{PREFIX}/"), []).append(row["caption"])
    assert found == expected


def test_content_that_is_back_is_the_latest_again(archive: Archive):
    for content in ("A", "B", "A", "B", "A"):
        archive.bucket.names = {"x.jpg": content, "other.jpg": "C"}
        archive.night()
        check(archive)
    assert archive.num_answered == 3  # A, B and C: each once


def test_bytes_that_are_known_under_another_key_have_its_answers(archive: Archive):
    archive.bucket.names = {"x.mp4": "A", "y.mp4": "B"}
    archive.night()
    archive.bucket.names = {"x.mp4": "B", "y.mp4": "B"}
    assert archive.night().items == []
    check(archive)
    copied = archive.query("SELECT copied_from.media_id, copied_from.uri FROM latest ORDER BY ALL")
    assert copied == [(media_id("y.mp4"), f"{PREFIX}/y.mp4")] * 3 + [(None, None)] * 3
    assert archive.query("SELECT count(DISTINCT unit_id) FROM latest") == [(6,)]


@pytest.mark.parametrize("name", ["x.jpg", "x.mp4"])
def test_a_renamed_object_is_under_its_new_name_only(archive: Archive, name: str):
    archive.bucket.names = {name: "A"}
    archive.night()
    archive.bucket.names = {f"moved-{name}": "A"}
    chosen = archive.night()
    check(archive)
    assert chosen.items == []
    gone = archive.query("SELECT uri FROM listing WHERE is_gone")
    assert gone == [(f"{PREFIX}/{name}",)]
    archive.bucket.names = {name: "A"}  # and back
    assert archive.night().items == []
    check(archive)


def test_copies_of_one_object(archive: Archive):
    archive.bucket.names = {"x.mp4": "A"}
    archive.night()
    archive.bucket.names |= {f"copy-{k}.mp4": "A" for k in range(7)}
    assert archive.night().items == []
    check(archive)


def test_gone_and_back_with_other_content(archive: Archive):
    archive.bucket.names = {"x.jpg": "A", "y.jpg": "B"}
    archive.night()
    del archive.bucket.names["x.jpg"]
    archive.night()
    check(archive)
    archive.bucket.names["x.jpg"] = "C"
    archive.night()
    check(archive)


def test_gone_while_another_name_has_the_same_bytes(archive: Archive):
    """The rows of the name that is gone stay the answers of the other."""
    archive.bucket.names = {"x.mp4": "A", "y.jpg": "B"}
    archive.night()
    archive.bucket.names["copy.mp4"] = "A"
    archive.night()
    del archive.bucket.names["x.mp4"]
    archive.night()
    check(archive)


def test_nothing_changes_nothing(archive: Archive):
    archive.bucket.names = {"x.jpg": "A", "y.jpg": "A", "z.mp4": "C"}
    archive.night()
    archive.bucket.names |= {"copy.jpg": "A"}
    del archive.bucket.names["z.mp4"]
    archive.night()
    assert archive.query("SELECT count(*) FROM listing") == [(2,)]
    assert archive.night().listing.num_rows == 0
    assert archive.query("SELECT count(*) FROM listing") == [(2,)]


def test_a_listing_that_fails_marks_nothing(archive: Archive):
    archive.bucket.names = {f"{k}.jpg": str(k) for k in range(9)}
    archive.night()
    archive.bucket.fails = True
    with pytest.raises(StorageError):
        archive.night()
    archive.bucket.names, archive.bucket.fails = {}, False
    with pytest.raises(ManifestError, match="no files below"):
        archive.night()
    archive.bucket.names = {f"{k}.jpg": str(k) for k in range(9)}
    check(archive)


def test_a_folder_that_may_not_be_read_marks_nothing(archive: Archive):
    """Media that are not listed may be in it."""
    archive.bucket.names = {"a.jpg": "A", "b.jpg": "B"}
    archive.night()
    names, archive.bucket.names = archive.bucket.names, {"a.jpg": "A"}
    archive.bucket.denied = ["private"]
    assert archive.night().listing.num_rows == 0
    archive.bucket.names = names
    check(archive)


@pytest.mark.parametrize(
    "part", [{"since": "24h"}, {"sample": 0.5}, {"glob": "a*"}, {"mark_gone": False}]
)
def test_a_part_of_the_source_marks_nothing_outside_it(archive: Archive, part: dict):
    archive.bucket.names = {"a.jpg": "A", "b.jpg": "B"}
    archive.night()
    names, archive.bucket.names = archive.bucket.names, {"a.jpg": "A"}
    assert archive.night(**part).listing.num_rows == 0
    archive.bucket.names = names
    check(archive)


def test_another_prefix_and_a_manifests_own_ids_are_not_gone(archive: Archive):
    archive.bucket.names = {"x.jpg": "A", "y.jpg": "B"}
    archive.night()
    archive.bucket.names = {"y.jpg": "B"}
    assert archive.night(scan="s3://media/cli").listing.num_rows == 0
    mine = any_row("u", "my id", "v1") | {"uri": f"{PREFIX}/z.jpg"}
    archive.commit([mine], RunKey(run_id="r", recipe_id="abc", run_date="2026-01-01"))
    listing = archive.night().listing.to_pylist()
    assert [row["uri"] for row in listing] == [f"{PREFIX}/x.jpg"]


def manifest(tmp_path: Path, names: dict[str, str]) -> dict:
    path = tmp_path / "m.csv"
    rows = [f"{PREFIX}/{name},{etag(content)}\n" for name, content in names.items()]
    path.write_text("uri,content_version\n" + "".join(rows))
    return {"scan": None, "manifest": str(path)}


def test_a_manifest_by_hand_marks_what_it_lacks_only_if_asked(archive: Archive, tmp_path: Path):
    archive.bucket.names = {"x.jpg": "A", "y.jpg": "B"}
    archive.night()
    less = manifest(tmp_path, {"x.jpg": "A"})
    assert archive.night(**less).listing.num_rows == 0
    check(archive)
    archive.night(**less, mark_gone=True)
    del archive.bucket.names["y.jpg"]
    check(archive)


def test_a_new_recipe(archive: Archive):
    """Everything is new; names that went meanwhile are gone too."""
    archive.bucket.names = {"x.mp4": "A", "y.jpg": "B", "copy.jpg": "B", "gone.jpg": "C"}
    archive.night("r1")
    del archive.bucket.names["gone.jpg"]
    archive.night("r2")
    check(archive, "r2")
    archive.bucket.names["x.mp4"] = "D"
    archive.night("r2")
    archive.bucket.names["x.mp4"] = "A"
    archive.night("r2")
    check(archive, "r2")


def test_two_jobs_on_one_output_write_no_row_for_what_did_not_change(archive: Archive):
    archive.bucket.names = {"x.jpg": "A", "y.jpg": "B"}
    archive.night("captions")
    archive.bucket.names = {"x.jpg": "A", "copy.jpg": "A"}
    for _ in range(2):
        for recipe in ("captions", "texts"):
            archive.night(recipe)
    assert [archive.night(r).listing.num_rows for r in ("captions", "texts")] == [0, 0]
    check(archive, "texts")


def statuses(archive: Archive) -> list[tuple]:
    return archive.query("SELECT parse_filename(uri), status, caption FROM latest ORDER BY ALL")


def test_new_content_that_cannot_be_read_hides_the_old_answer(archive: Archive):
    archive.bucket.names = {"x.jpg": "A"}
    archive.night()
    archive.bucket.names, archive.failing = {"x.jpg": "B"}, {"x.jpg": "media_unreadable"}
    archive.night()
    assert statuses(archive) == [("x.jpg", "failed", None)]
    archive.bucket.names = {"x.jpg": "A"}
    archive.night()
    assert statuses(archive) == [("x.jpg", "ok", "abc: A")]


def test_what_failed_gets_the_answer_that_another_name_has(archive: Archive):
    archive.bucket.names, archive.failing = {"x.jpg": "A", "y.jpg": "A"}, {"x.jpg": "media_denied"}
    archive.night()
    assert statuses(archive)[0] == ("x.jpg", "failed", None)
    assert archive.night().items == []
    check(archive)


def compacted(archive: Archive) -> None:
    options = compact.CompactOptions(target_bytes=128_000_000, superseded_days=0)
    compact.run(archive.output, options, Storage(), Console(file=io.StringIO()))


def test_compaction_keeps_what_latest_shows(archive: Archive):
    archive.bucket.names = {"x.mp4": "A", "y.jpg": "B"}
    archive.night()
    archive.bucket.names = {"moved.mp4": "A", "y.jpg": "C"}
    archive.night()
    archive.bucket.names = {"moved.mp4": "A", "y.jpg": "B"}
    archive.night()
    compacted(archive)
    check(archive)
    assert archive.query("SELECT count(*) FROM annotations") == [(4,)]  # C has gone
    archive.night()
    check(archive)


def test_a_copy_that_is_gone_stays_gone_after_compaction(archive: Archive):
    """It has no rows of its own, so its mark goes too, and with it that it was a copy."""
    archive.bucket.names = {"x.mp4": "A"}
    archive.night()
    archive.bucket.names = {"x.mp4": "A", "copy.mp4": "A"}
    archive.night()
    archive.bucket.names = {"x.mp4": "A"}
    archive.night()
    compacted(archive)
    check(archive)


def test_rows_of_what_is_gone_are_deleted_for_good(archive: Archive):
    archive.bucket.names = {"x.mp4": "A", "y.jpg": "B", "copy.jpg": "B"}
    archive.night()
    archive.bucket.names = {"copy.jpg": "B"}
    archive.night()
    compacted(archive)
    check(archive)
    for table in ("annotations", "listing", "latest"):
        assert archive.query(f"SELECT uri FROM {table} WHERE uri LIKE '%x.mp4'") == []
    archive.bucket.names = {"other.jpg": "C"}
    archive.night()
    compacted(archive)
    check(archive)
    assert archive.query("SELECT parse_filename(uri) FROM annotations") == [("other.jpg",)]


CONTENTS = [f"content {k}" for k in range(6)]
NAMES = [f"{k}.{extension}" for k in range(4) for extension in ("jpg", "mp4")]


def change(names: dict[str, str], rng: random.Random) -> None:
    """One change of a bucket: write, copy, move or delete an object."""
    extension = rng.choice([".jpg", ".mp4"])
    there = [name for name in names if name.endswith(extension)]
    target = rng.choice([name for name in NAMES if name.endswith(extension)])
    kind = rng.choice(["write", "copy", "move", "delete"])
    if kind == "write" or len(there) < 2:
        names[target] = rng.choice(CONTENTS) + extension
    elif kind == "delete":
        del names[rng.choice(there)]
    else:
        source = rng.choice(there)
        names[target] = names[source]
        if kind == "move" and source != target:
            del names[source]


@pytest.mark.parametrize("seed", range(6))
def test_any_series_of_nights(archive: Archive, seed: int):
    """Killed runs, failed listings and new recipes included; no content is answered twice."""
    rng, version = random.Random(seed), 1
    names = archive.bucket.names
    names |= {"0.jpg": "first", "0.mp4": "first film"}
    archive.night("r1")
    for _ in range(8):
        for _ in range(rng.randrange(4)):
            change(names, rng)
        version += rng.random() < 0.1
        if rng.random() < 0.2:
            archive.bucket.fails = True
            with pytest.raises(StorageError):
                archive.night(f"r{version}")
            archive.bucket.fails = False
        if rng.random() < 0.1:
            compacted(archive)
        if rng.random() < 0.3:
            archive.night(f"r{version}", cut=rng)
            if rng.random() < 0.5:
                change(names, rng)
        archive.night(f"r{version}")
        check(archive, f"r{version}")
        assert archive.night(f"r{version}").listing.num_rows == 0
        assert archive.query("SELECT unit_id FROM latest GROUP BY ALL HAVING count(*) > 1") == []
