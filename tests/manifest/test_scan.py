"""List a folder or a prefix, and write the listing as a manifest."""

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.manifest.listing import LeftOut, as_items, list_media
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
        ("*.txt", r"no images or videos below .*: files of another kind: 1 \(1 x .txt\), such as"),
        ("R*", r"match R\*\. .* \(1 x no extension\).*in a manifest, with media_type"),
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


def test_what_is_left_out_is_counted_by_extension(archive_root):
    left_out = LeftOut()
    list_media(archive_root, "**/*", STORAGE, left_out)
    assert left_out.lines() == [
        "files of another kind: 2 (1 x no extension, 1 x .txt), such as README",
        "hidden files (a dot in front of their name or folder): 2 (1 x .mp4, 1 x .jpg), "
        "such as .hidden.mp4",
    ]


def test_links_pipes_and_folders_that_are_left_out_are_counted(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"1")
    (tmp_path / "b.mp4").symlink_to("a.mp4")
    for k in range(3):
        (tmp_path / f"gone{k}.JPG").symlink_to("nowhere")
    (tmp_path / "again").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.mov")
    (tmp_path / "secret").mkdir()
    scandir = os.scandir

    def denies(path):  # not by chmod: root may read every folder
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denies)
    left_out = LeftOut()
    found = list_media(str(tmp_path), "**/*", STORAGE, left_out)
    assert [media.uri for media in found] == [f"{tmp_path}/a.mp4", f"{tmp_path}/b.mp4"]
    lines = left_out.lines()
    assert lines[0] == "folders that may not be read: 1, such as secret"
    assert lines[1].startswith("links to files that do not exist: 3 (3 x .jpg), such as gone")
    assert lines[2:] == [
        "links to folders, which are not followed: 1, such as again",
        "pipes, sockets and devices: 1 (1 x .mov), such as pipe.mov",
    ]
    with pytest.raises(ManifestError, match=r"match \*\.JPG\. .* do not exist: 3 \(3 x \.jpg\)"):
        scan(str(tmp_path), "*.JPG")


def test_each_file_is_taken_or_counted(tmp_path):
    """The listing and what it left out are all that the disk has, by pathlib."""
    names = [f"{kind}{k}.{kind}" for k in range(5) for kind in ("mp4", "braw", "xmp", "nef", "r3d")]
    for name in names:
        (tmp_path / name).write_bytes(b"1")
    left_out = LeftOut()
    found = list_media(str(tmp_path), "**/*", STORAGE, left_out)
    counts = Counter(path.suffix for path in tmp_path.iterdir())
    assert len(found) == counts[".mp4"] + counts[".nef"]
    (line,) = left_out.lines()
    assert line.startswith("files of another kind: 15 (")
    for suffix in (".braw", ".xmp", ".r3d"):
        assert f"{counts[suffix]} x {suffix}" in line


@pytest.mark.parametrize(
    "key",
    [
        *("a//b.jpg", "/lead.jpg", "//two.jpg", "a///b//c.jpg"),
        *("a/./b.jpg", "a/../b.jpg", "./c.jpg", "../d.jpg", ".../e.jpg"),
        *("h#a.jpg", "q?x=1&y.jpg", "p%20c.jpg", "p%2Fc.jpg", "s p+.jpg", "em😀/ü.jpg", "a\\b.jpg"),
    ],
)
def test_keys_are_opaque(s3_env, key, tmp_path):
    """botocore's own client writes the object; it is listed, written, read and opened as it is."""
    fs, _ = STORAGE.filesystem(s3_env.uri())
    fs.call_s3("put_object", Bucket=s3_env.bucket, Key=key, Body=key.encode())
    fs.call_s3("put_object", Bucket=s3_env.bucket, Key="other.jpg", Body=b"")
    items = [item for item in scan(s3_env.uri(), "**/*") if item.uri != s3_env.uri("other.jpg")]
    assert [item.uri for item in items] == [s3_env.uri(key)]
    write_manifest(items, f"{tmp_path}/m.parquet", STORAGE)
    assert read_manifest(f"{tmp_path}/m.parquet", STORAGE) == items
    with STORAGE.open_media(items[0].uri) as media:
        assert media.file.read() == key.encode()
        assert media.content_version == items[0].content_version


def test_prefixes_with_two_slashes(s3_env):
    for key in ("a/1.jpg", "a//2.jpg", "/3.jpg", "/b/4.jpg"):
        STORAGE.write_bytes(s3_env.uri(key), b"1")

    def keys(prefix):
        return [item.uri.removeprefix(s3_env.uri()) for item in scan(s3_env.uri(prefix), "**/*")]

    assert keys("a") == keys("a/") == ["a//2.jpg", "a/1.jpg"]
    assert keys("a//") == ["a//2.jpg"]
    assert keys("/") == ["/3.jpg", "/b/4.jpg"]
    assert keys("") == ["/3.jpg", "/b/4.jpg", "a//2.jpg", "a/1.jpg"]


def test_relative_uris_below_a_key_with_two_slashes(s3_env):
    for manifest in ("x//m.jsonl", "/m.jsonl"):
        folder = manifest.removesuffix("m.jsonl")
        rows = b'{"uri": "a.mp4"}\n{"uri": "c//./d.mp4"}\n{"uri": "e/../f.mp4"}'
        STORAGE.write_bytes(s3_env.uri(manifest), rows)
        assert [item.uri for item in read_manifest(s3_env.uri(manifest), STORAGE)] == [
            s3_env.uri(f"{folder}{name}") for name in ("a.mp4", "c//d.mp4", "f.mp4")
        ]


NAMES = [
    b"Z\xfcrich.mp4",
    b"100% Z\xfcrich %41.jpg",
    b"\xff\xfe/\xc3.png",
    "日本.mp4".encode("shift_jis"),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_not_utf8(tmp_path, name):
    """Its uri is the one that pathlib makes, and leads from scan to manifest to the bytes."""
    path = os.fsencode(tmp_path) + b"/a b%20/" + name
    os.makedirs(os.path.dirname(path))
    with open(path, "wb") as file:
        file.write(b"123")
    items = scan(str(tmp_path), "**/*")
    assert [item.uri for item in items] == [Path(os.fsdecode(path)).as_uri()]
    for extension in ("jsonl", "parquet"):
        write_manifest(items, f"{tmp_path}/m.{extension}", STORAGE)
        (item,) = read_manifest(f"{tmp_path}/m.{extension}", STORAGE)
        assert item == items[0]
        with STORAGE.open_media(item.uri) as media:
            assert media.file.read() == b"123"
            assert media.content_version == item.content_version


def test_uris_of_other_files_stay_as_they_are_written(tmp_path):
    """Only names that are not UTF-8 are percent-encoded; a file may also be named a%FF.jpg."""
    for name in (b"a%20b.jpg", b"a%FF.jpg", b"a\xff.jpg", b"c%FF.jpg", b"d #?.jpg"):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(name)
    for item in scan(str(tmp_path), "**/*"):
        with STORAGE.open_media(item.uri) as media:
            name = media.file.read()
        is_utf8 = b"\xff" not in name
        assert item.uri == (
            f"{tmp_path}/{name.decode()}" if is_utf8 else f"file://{tmp_path}/a%FF.jpg"
        )
    for name in ("a%20b.jpg", "c%FF.jpg"):
        with STORAGE.open_media(f"file://{tmp_path}/{name}") as media:
            assert media.file.read() == name.encode()


def test_a_manifest_in_a_folder_whose_name_is_not_utf8(tmp_path):
    folder = tmp_path / os.fsdecode(b"Z\xfcrich")
    folder.mkdir()
    (folder / "a b.mp4").write_bytes(b"1")
    (folder / "m.csv").write_text("uri\na b.mp4\n")
    for uri in (f"{folder}/m.csv", (folder / "m.csv").as_uri()):
        (item,) = read_manifest(uri, STORAGE)
        assert item.uri == (folder / "a b.mp4").as_uri()
        with STORAGE.open_media(item.uri) as media:
            assert media.file.read() == b"1"


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


def test_what_is_left_out_can_be_written_down(tmp_path):
    """Also a name that is not UTF-8, in a place where only text fits: run.json."""
    (tmp_path / "a.jpg").write_bytes(b"1")
    (tmp_path / os.fsdecode(b"Z\xfcrich.t\xfct")).write_bytes(b"1")
    left_out = LeftOut()
    list_media(str(tmp_path), "**/*", STORAGE, left_out)
    (line,) = left_out.lines()
    assert json.loads(json.dumps(line).encode()) == (
        "files of another kind: 1 (1 x .t\\xfct), such as Z\\xfcrich.t\\xfct"
    )
    line.encode()
