"""List a folder or a prefix, and write the listing as a manifest."""

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from pipeline.manifest.listing import as_items, list_media
from pipeline.manifest.read import manifest_digest, read_manifest
from pipeline.manifest.write import write_manifest
from pipeline.storage.storage import Storage
from schemas.errors import ManifestError, StorageError
from schemas.tables.manifest import MediaItem, default_media_id, guess_media_type

STORAGE = Storage()

FILES = {
    "a.mp4": b"12345",
    "b.JPG": b"123",
    "empty.mov": b"",
    "notes.txt": b"1",
    "README": b"1",
    ".hidden.mp4": b"1",
    "sub/c.MKV": b"1",
    "sub/d?e#f [1].webm": b"1",
    "sub/.cache/thumb.jpg": b"1",
}


def scan(prefix, glob):
    return as_items(list_media(prefix, glob, STORAGE))


@pytest.fixture(params=["local", "s3"])
def archive_root(request, tmp_path):
    """The same files in a folder and below a prefix, under a name that is itself hidden."""
    if request.param == "local":
        root = str(tmp_path / ".media")
    else:
        s3_env = request.getfixturevalue("s3_env")
        root = s3_env.uri(".media")
        fs, _ = STORAGE.filesystem(root)
        for key in (".media/", ".media/folder.mp4/"):  # as consoles make "folders"
            fs.call_s3("put_object", Bucket=s3_env.bucket, Key=key, Body=b"")
    for name, content in FILES.items():
        STORAGE.write_bytes(f"{root}/{name}", content)
    return root


def test_media_are_known_by_their_extension(archive_root):
    found = list_media(archive_root, "**/*", STORAGE)
    assert [
        (m.uri.removeprefix(f"{archive_root}/"), m.media_type, m.size_bytes) for m in found
    ] == [
        ("a.mp4", "video", 5),
        ("b.JPG", "image", 3),
        ("empty.mov", "video", 0),
        ("sub/c.MKV", "video", 1),
        ("sub/d?e#f [1].webm", "video", 1),
    ]
    for media in found:
        with STORAGE.open_media(media.uri) as opened:
            assert media.content_version == opened.content_version


def test_a_scan_is_a_list_of_items(archive_root):
    (item,) = scan(f"{archive_root}/", "*.mp4")
    assert item.content_version
    assert replace(item, content_version=None) == MediaItem(
        uri=f"{archive_root}/a.mp4",
        media_id=default_media_id([f"{archive_root}/a.mp4"]),
        media_type="video",
    )


def test_a_changed_object_is_another_manifest(archive_root):
    before = manifest_digest(scan(archive_root, "**/*"))
    assert manifest_digest(scan(archive_root, "**/*")) == before
    STORAGE.write_bytes(f"{archive_root}/a.mp4", b"other")
    assert manifest_digest(scan(archive_root, "**/*")) != before


def test_listed_media_can_be_opened(archive_root):
    for item in scan(archive_root, "**/*"):
        with STORAGE.open_media(item.uri) as media:
            assert media.file.read() == FILES[item.uri.removeprefix(f"{archive_root}/")]


@pytest.mark.parametrize(
    ("glob", "message"),
    [
        ("*.txt", r"no images or videos among the 1 files .* \(seen: 1 x .txt\)"),
        ("R*", r"match R\* \(seen: 1 x no extension\).*in a manifest, with media_type"),
        (
            "*.avi",
            r"no files below .*\.media match \*\.avi; .*; \*.avi matches directly below it only",
        ),
        ("*.{mp4,mov}", r"\{a,b\} is not supported, give one pattern"),
    ],
)
def test_a_listing_without_media_names_the_other_files(archive_root, glob, message):
    with pytest.raises(ManifestError, match=message):
        scan(archive_root, glob)


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(ManifestError, match=r"/nope does not exist"):
        scan(f"{tmp_path}/nope", "**/*")


def test_an_invalid_glob(tmp_path):
    with pytest.raises(StorageError, match=r"'\*\*' can only be an entire path component"):
        scan(str(tmp_path), "**.mp4")


def test_a_bucket_that_does_not_exist(s3_env):
    with pytest.raises(StorageError, match="the bucket does not exist"):
        scan("s3://no-such-bucket-here/clips/", "**/*")


@pytest.mark.parametrize(
    ("uri", "media_type"),
    [
        ("s3://b/a.mp4", "video"),
        ("s3://b/what? #1.Jpeg", "image"),
        ("https://host/a.mp4?token=x.jpg", "video"),
        ("/data/a", None),
        ("/data.mp4/a.bin", None),
        ("data:image/png;base64,AAAA", "image"),
        ("data:text/plain,a.mp4", None),
        *((f"DCIM/DSC_1.{e}", "image") for e in ("NEF", "dng", "CR3", "hif", "heics", "apng")),
        *((f"card/M1.{e}", "video") for e in ("MOD", "insv", "3gpp", "divx")),
    ],
)
def test_guess_media_type(uri, media_type):
    assert guess_media_type(uri) == media_type


@pytest.mark.parametrize("extension", ["parquet", "jsonl"])
def test_a_scan_becomes_a_manifest_elsewhere(archive_root, tmp_path, extension):
    items = scan(archive_root, "**/*")
    path = f"{tmp_path}/elsewhere/manifest.{extension}"
    write_manifest(items, path, STORAGE)
    assert read_manifest(path, STORAGE) == items
    if extension == "parquet":
        assert pq.read_table(path).column_names == ["uri", "media_type", "content_version"]


def test_relative_uris_of_a_manifest_in_s3(s3_env):
    STORAGE.write_bytes(s3_env.uri("a/m.jsonl"), b'{"uri": "../b/c.mp4"}\n{"uri": "/data/d.mp4"}')
    items = read_manifest(s3_env.uri("a/m.jsonl"), STORAGE)
    assert [item.uri for item in items] == [s3_env.uri("b/c.mp4"), "/data/d.mp4"]


def test_a_prefix_of_parquet_files_in_s3(s3_env):
    for part, name in enumerate(["x.mp4", "y.mp4"]):
        item = MediaItem(media_id="m" + name, uri=name)
        write_manifest([item], s3_env.uri(f"manifests/part-{part}.parquet"), STORAGE)
    items = read_manifest(s3_env.uri("manifests/"), STORAGE)
    assert [item.uri for item in items] == [
        s3_env.uri("manifests/x.mp4"),
        s3_env.uri("manifests/y.mp4"),
    ]


def test_a_manifest_that_is_not_in_its_bucket(s3_env):
    for name in ("m.parquet", "m.csv"):
        with pytest.raises(ManifestError, match=f"there is no manifest s3://.*/{name}"):
            read_manifest(s3_env.uri(name), STORAGE)
    with pytest.raises(StorageError, match="the bucket does not exist"):
        read_manifest("s3://no-such-bucket-here/m.csv", STORAGE)


def test_all_fields_of_an_item_are_written(tmp_path):
    items = [
        MediaItem(
            media_id="a",
            uri="/f/1.png",
            frames=("/f/1.png", "/f/2.png"),
            sample_fps=4.0,
            media_type="video",
            start_seconds=0.5,
            end_seconds=1.5,
            tasks=("ocr",),
            attributes=json.dumps({"title": "Ü", "n": 1}, ensure_ascii=False),
        ),
        MediaItem(media_id="b", uri="/b", attributes='{"title": null, "n": null}'),
    ]
    for extension in ("jsonl", "parquet"):
        write_manifest(items, f"{tmp_path}/m.{extension}", STORAGE)
        assert read_manifest(f"{tmp_path}/m.{extension}", STORAGE) == items


def test_attributes_that_do_not_fit_into_parquet(tmp_path):
    items = [
        MediaItem(media_id="a", uri="/a", attributes='{"x": 1}'),
        MediaItem(media_id="b", uri="/b", attributes='{"x": "text"}'),
    ]
    with pytest.raises(ManifestError, match=r"'x' does not fit into Parquet .*write \.jsonl"):
        write_manifest(items, f"{tmp_path}/m.parquet", STORAGE)
    empty = [MediaItem(media_id="a", uri="/a", attributes='{"x": {}}')]
    with pytest.raises(ManifestError, match=r"write \.jsonl instead"):
        write_manifest(empty, f"{tmp_path}/m.parquet", STORAGE)
    with pytest.raises(ManifestError, match=r"written as \.parquet or \.jsonl, got .*m\.csv"):
        write_manifest(items, f"{tmp_path}/m.csv", STORAGE)
