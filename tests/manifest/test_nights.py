"""`latest` follows the listing, night after night; DuckDB and a dictionary are the oracles."""

import io
import os
import random
from pathlib import Path

import pytest
from rich.console import Console

from jobs.results import compact
from jobs.results.read import Selection, read_annotations
from pipeline.manifest.existing import ExistingMedia
from pipeline.manifest.listing import scope
from pipeline.manifest.select import select
from pipeline.storage.protocols import uri_of_path
from pipeline.storage.storage import Storage
from schemas.errors import ManifestError, StorageError
from schemas.job.job import Input
from schemas.tables.manifest import MediaItem, default_media_id
from tests.support.annotation_rows import row as any_row
from tests.support.nights import PREFIX, Archive, etag, media_id
from tests.support.run_key import run_key
from tests.support.sealed import commit_rows


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path)


def check(archive: Archive, recipe: str = "abc") -> None:
    expected = archive.expected(recipe)
    assert archive.latest() == expected
    assert captions(archive, recipe) == expected


def captions(archive: Archive, recipe: str) -> dict[str, list[str]]:
    """What readers of the newest run of a recipe get, by name."""
    found: dict[str, list[str]] = {}
    selection = Selection(uri=archive.output, run_id=archive.run_of[recipe])
    for row in read_annotations(selection, Storage()).rows:
        found.setdefault(row["uri"].removeprefix(f"{PREFIX}/"), []).append(row["caption"])
    return found


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
    archive.commit([mine], run_key("r", "abc", "2026-01-01"))
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


def test_a_setting_of_videos_asks_no_image_again(archive: Archive):
    archive.bucket.names = {"x.mp4": "A", "y.jpg": "B", "z.jpg": "C"}
    archive.failing = {"z.jpg": "media_unreadable"}  # of unknown kind: asked again, like a video
    archive.night("i1+v1")
    archive.bucket.names["copy.jpg"] = "B"
    chosen = archive.night("i1+v2")
    assert sorted(item.uri.rpartition("/")[2] for item in chosen.items) == ["x.mp4", "z.jpg"]
    archive.failing = {}
    archive.bucket.names["z.jpg"] = "D"
    archive.night("i1+v2")
    check(archive, "i1+v2")
    assert captions(archive, "i1+v1") == {
        "x.mp4": ["v1: A"] * 3, "y.jpg": ["i1: B"], "copy.jpg": ["i1: B"], "z.jpg": ["i1: D"]
    }  # fmt: skip
    chosen = archive.night("i2+v2")
    assert sorted(item.uri.rpartition("/")[2] for item in chosen.items) == [
        "copy.jpg", "y.jpg", "z.jpg"
    ]  # fmt: skip
    check(archive, "i2+v2")
    compacted(archive)
    check(archive, "i2+v2")
    assert archive.query("SELECT DISTINCT recipe_id FROM annotations ORDER BY 1") == [
        ("i2",), ("v2",)
    ]  # fmt: skip


def test_two_jobs_on_one_output_write_no_row_for_what_did_not_change(archive: Archive):
    archive.bucket.names = {"x.jpg": "A", "y.jpg": "B"}
    archive.night("captions")
    archive.bucket.names = {"x.jpg": "A", "copy.jpg": "A"}
    for _ in range(2):
        for recipe in ("captions", "texts"):
            archive.night(recipe)
    assert [archive.night(r).listing.num_rows for r in ("captions", "texts")] == [0, 0]
    check(archive, "texts")


def test_another_question_about_a_span_replaces_the_earlier_one(archive: Archive):
    """As a changed column `tasks` of a manifest asks it; the earlier row stays in the table."""
    archive.bucket.names = {"x.mp4": "A", "y.jpg": "B"}
    archive.night()
    for name in archive.bucket.names:
        item = MediaItem(media_id=media_id(name), uri=f"{PREFIX}/{name}",
                         content_version=etag(archive.bucket.names[name]))  # fmt: skip
        row, *_ = archive.answers(item, "abc")
        row |= {"unit_id": f"other {name}", "caption": "another question"}
        archive.commit([row], run_key("r9", "abc", "2026-01-01"))
    expected = {"x.mp4": ["another question"] + ["abc: A"] * 2, "y.jpg": ["another question"]}
    assert archive.latest() == expected
    assert {k: sorted(v) for k, v in captions(archive, "abc").items()} == {
        k: sorted(v) for k, v in expected.items()
    }


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
    rng, image, video = random.Random(seed), 1, 1
    names = archive.bucket.names
    names |= {"0.jpg": "first", "0.mp4": "first film"}
    archive.night("i1+v1")
    for _ in range(8):
        for _ in range(rng.randrange(4)):
            change(names, rng)
        image += rng.random() < 0.1
        video += rng.random() < 0.1
        recipe = f"i{image}+v{video}"
        if rng.random() < 0.2:
            archive.bucket.fails = True
            with pytest.raises(StorageError):
                archive.night(recipe)
            archive.bucket.fails = False
        if rng.random() < 0.1:
            compacted(archive)
        if rng.random() < 0.3:
            archive.night(recipe, cut=rng)
            if rng.random() < 0.5:
                change(names, rng)
        archive.night(recipe)
        check(archive, recipe)
        assert archive.night(recipe).listing.num_rows == 0
        assert archive.query("SELECT unit_id FROM latest GROUP BY ALL HAVING count(*) > 1") == []


def test_two_recipes_see_what_is_gone_and_back(archive: Archive):
    """Readers of one recipe do not wait for a row of the other."""
    archive.bucket.names = {"x.jpg": "A", "y.jpg": "B"}
    for recipe in ("aaa", "bbb"):
        archive.night(recipe)
    del archive.bucket.names["x.jpg"]
    for recipe in ("aaa", "bbb"):
        archive.night(recipe)
    archive.bucket.names["x.jpg"] = "A"
    archive.night("aaa")
    assert captions(archive, "bbb") == archive.expected("bbb")  # before its own night, too
    archive.night("bbb")
    for recipe in ("aaa", "bbb"):
        assert captions(archive, recipe) == archive.expected(recipe)


def test_content_that_is_back_under_another_recipe_first(archive: Archive):
    archive.bucket.names = {"x.jpg": "A"}
    archive.night("aaa")
    archive.bucket.names = {"x.jpg": "B"}
    archive.night("aaa")
    archive.bucket.names = {"x.jpg": "A"}
    archive.night("bbb")
    assert archive.night("aaa").items == []
    assert captions(archive, "aaa") == {"x.jpg": ["aaa: A"]}


def test_a_retry_of_what_is_gone_does_not_bring_it_back(archive: Archive):
    """A unit that had failed is tried again, and the object is not there."""
    archive.bucket.names = {"x.mp4": "A", "y.jpg": "B"}
    archive.night()
    del archive.bucket.names["x.mp4"]
    archive.night()
    unit = any_row(
        "u4", media_id("x.mp4"), etag("A"), video=(0.0, 9.0, 6.0, 9.0), error="media_missing"
    )
    key = run_key("r1", "abc", "2026-01-01")
    archive.commit([unit | {"uri": f"{PREFIX}/x.mp4"}], key)
    check(archive)
    assert archive.night().listing.num_rows == 0


def test_local_files_that_are_there_are_not_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Behind a link to a folder, on a disk that is away, in a folder that may not be entered."""
    folder, elsewhere, disk = tmp_path / "media", tmp_path / "elsewhere", tmp_path / "disk"
    for path in (folder / "in", folder / "closed", elsewhere, disk):
        path.mkdir(parents=True)
    (folder / "link").symlink_to(elsewhere)
    (folder / "far.jpg").symlink_to(disk / "far.jpg")
    bytes_name = os.fsdecode(b"Z\xfcrich.jpg")
    names = ["in/a.jpg", "closed/b.jpg", "link/c.jpg", "far.jpg", "away.jpg", bytes_name]
    for name in names:
        (folder / name).write_bytes(b"1")
    (folder / "stays.jpg").write_bytes(b"1")
    storage, output = Storage(), str(tmp_path / "out")

    def night(scan: Path) -> list[str]:
        spec = Input(scan=str(scan), only_new=True)
        chosen = select(
            spec, storage, lambda: ExistingMedia(output, run_key("r", "abc").recipe_ids, storage)
        )
        rows = [
            any_row(f"u{item.media_id}", item.media_id, item.content_version) | {"uri": item.uri}
            for item in chosen.items
        ]
        number = len(list(tmp_path.glob("out/annotations/*/*")))
        key = run_key(f"r{number}", "abc", "2026-01-01")
        commit_rows([row | {"run_id": key.run_id} for row in rows], output, key, storage)
        return sorted(row["uri"] for row in chosen.listing.to_pylist() if row["is_gone"])

    assert night(folder / "link") == night(folder) == []
    (disk / "far.jpg").unlink()
    (folder / "away.jpg").unlink()
    (folder / bytes_name).unlink()
    stat, lstat = os.stat, os.lstat

    def denies(call):  # not by chmod: root may enter every folder
        def asked(path, *args, **options):
            if "closed/" in os.fsdecode(path):
                raise PermissionError(13, "Permission denied", path)
            return call(path, *args, **options)

        return asked

    monkeypatch.setattr(os, "stat", denies(stat))
    monkeypatch.setattr(os, "lstat", denies(lstat))
    assert night(folder) == [f"{folder}/away.jpg", f"file://{folder}/Z%FCrich.jpg"]


def test_a_root_that_is_not_utf8(tmp_path: Path):
    root = tmp_path / os.fsdecode(b"Z\xfcrich")
    root.mkdir()
    for name in ("a.jpg", "b.jpg"):
        (root / name).write_bytes(b"1")
    begins, is_in_scope = scope(uri_of_path(str(root)), "**/*", Storage())
    (root / "b.jpg").unlink()
    uris = [uri_of_path(str(root / name)) for name in ("a.jpg", "b.jpg")]
    assert all(uri.startswith(begins) for uri in uris)
    assert [is_in_scope(default_media_id([uri]), uri) for uri in uris] == [False, True]
