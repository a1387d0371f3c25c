"""Storage: the same bytes, versions and errors from folders, data: uris, https and S3."""

import hashlib
import os
import pickle
import random

import pytest

from pipeline.storage.storage import Storage, join
from schemas.errors import ErrorType, StorageError
from schemas.shown import redact_uri
from tests.support.storage import read, refused

CONTENT = random.Random(0).randbytes((3 << 20) + 17)


# Local files and data: uris


def test_a_local_file(tmp_path):
    path = tmp_path / "Interview:: [1] 100%.mp4"
    path.write_bytes(CONTENT)
    for uri in (str(path), f"file://{path}"):
        with Storage().open_media(uri) as media:
            assert media.file.read() == CONTENT
            assert media.size_bytes == len(CONTENT)
            assert media.bytes_read is None
            assert media.content_version == f"{len(CONTENT)}-{os.stat(path).st_mtime_ns}"


def test_a_local_path_that_is_no_file(tmp_path):
    assert refused(f"{tmp_path}/a.mp4") == (
        ErrorType.MEDIA_MISSING,
        f"{tmp_path}/a.mp4 does not exist",
    )
    assert refused(str(tmp_path)) == (
        ErrorType.MEDIA_MISSING,
        f"{tmp_path} is not a regular file",
    )
    os.mkfifo(tmp_path / "pipe.mp4")  # opening it would wait for ever
    assert refused(f"{tmp_path}/pipe.mp4")[0] == ErrorType.MEDIA_MISSING


@pytest.mark.parametrize(
    "uri", ["data:text/plain;base64,aHR0cDovLw==", "data:,http://", "data:,http%3A%2F%2F"]
)
def test_a_data_uri(uri):
    with Storage().open_media(uri) as media:
        assert media.file.read() == b"http://"
        assert media.content_version == hashlib.sha256(b"http://").hexdigest()[:32]


def test_a_broken_data_uri():
    assert refused("data:image/png;base64")[0] == ErrorType.BAD_REQUEST
    assert refused("data:image/png;base64,A")[0] == ErrorType.BAD_REQUEST


def test_a_data_uri_is_shown_as_its_hash():
    assert (
        redact_uri("data:image/png;base64,AAAA") == "data:image/png;base64,sha256=63c1dd951ffedf6f"
    )
    assert redact_uri("s3://b/a.mp4") == "s3://b/a.mp4"


def test_join():
    assert join("s3://b/out/", "runs", "r1") == "s3://b/out/runs/r1"


def test_storage_is_picklable_and_never_shows_its_options():
    storage = Storage({"s3": {"secret": "hunter2"}})
    assert pickle.loads(pickle.dumps(storage)).options == storage.options
    assert "hunter2" not in repr(storage)


# S3


def test_s3_reads_ranges(s3_env):
    Storage().write_bytes(s3_env.uri("a b/clip?#[1]*.mp4"), CONTENT)
    with Storage().open_media(s3_env.uri("a b/clip?#[1]*.mp4")) as media:
        whole = b"".join(iter(lambda: media.file.read(70_001), b""))
    assert whole == CONTENT
    assert media.bytes_read == media.size_bytes == len(CONTENT)
    assert media.content_version == hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    with Storage().open_media(s3_env.uri("a b/clip?#[1]*.mp4"), header_only=True) as media:
        media.file.read(100)
        assert media.bytes_read == 1 << 16


def test_s3_through_storage_options(s3):
    storage = Storage({"s3": {"endpoint_url": s3.endpoint_url, "key": "k", "secret": "s"}})
    storage.write_bytes(s3.uri("options/a"), b"abc")
    assert storage.read_bytes(s3.uri("options/a")) == b"abc"


def test_s3_empty_object(s3_env):
    Storage().write_bytes(s3_env.uri("empty.mp4"), b"")
    assert read(s3_env.uri("empty.mp4")) == b""


def test_s3_what_is_missing(s3_env):
    Storage().write_bytes(s3_env.uri("clips/a.mp4"), b"abc")
    assert refused(s3_env.uri("b.mp4")) == (
        ErrorType.MEDIA_MISSING,
        f"{s3_env.uri('b.mp4')} does not exist",
    )
    assert refused(s3_env.uri("clips"))[0] == ErrorType.MEDIA_MISSING
    error_type, message = refused("s3://no-such-bucket-here/a.mp4")
    assert error_type == ErrorType.MEDIA_MISSING
    assert message == "s3://no-such-bucket-here/a.mp4 does not exist, nor does its bucket"
    assert refused("s3://no bucket/a.mp4")[0] == ErrorType.BAD_REQUEST
    with pytest.raises(FileNotFoundError):
        Storage().read_bytes(s3_env.uri("b.mp4"))


@pytest.mark.parametrize(
    "act",
    [
        lambda storage, uri: storage.read_bytes(f"{uri}/a"),
        lambda storage, uri: storage.write_bytes(f"{uri}/a", b""),
        lambda storage, uri: storage.list_files(uri, "*"),
        lambda storage, uri: storage.list_files(f"{uri}/x", "**/*"),
    ],
    ids=["read", "write", "list", "list-below"],
)
class TestS3Refuses:
    def test_a_missing_bucket(self, s3_env, act):
        with pytest.raises(StorageError, match=r"s3://no-such-bucket.*: the bucket does not exist"):
            act(Storage(), "s3://no-such-bucket-here")

    def test_without_credentials(self, s3_env, act, monkeypatch):
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(StorageError, match="no credentials; set AWS_ACCESS_KEY_ID"):
            act(Storage(), f"s3://{s3_env.bucket}")

    def test_wrong_credentials(self, s3_env, act, http):
        options = {"s3": {"endpoint_url": f"{http.url}/s3-denied"}}
        with pytest.raises(StorageError, match="access denied; check credentials") as error:
            act(Storage(options), "s3://bucket")
        assert "test-secret" not in str(error.value)


def test_s3_endpoint_without_a_scheme(s3_env):
    options = {"s3": {"endpoint_url": "127.0.0.1:9"}}
    with pytest.raises(StorageError, match="it must begin with https:// or http://"):
        Storage(options).list_files("s3://bucket/a", "*")


def test_s3_media_without_credentials(s3_env, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert refused(s3_env.uri("a.mp4")) == (
        ErrorType.MEDIA_DENIED,
        f"{s3_env.uri('a.mp4')}: no credentials found",
    )


# Listing and writing


@pytest.fixture(params=["local", "s3"])
def tree(request, tmp_path):
    """A folder and a prefix with the same files, under a name full of wildcards."""
    if request.param == "local":
        root = str(tmp_path / "[a]*")
    else:
        root = request.getfixturevalue("s3_env").uri("[a]*")
    for name in ("x.mp4", "y.jpg", "sub/z.mp4", "sub/deep/w.mp4"):
        Storage().write_bytes(f"{root}/{name}", b"abc")
    return root


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*", ["x.mp4", "y.jpg"]),
        ("*.mp4", ["x.mp4"]),
        ("**/*.mp4", ["sub/deep/w.mp4", "sub/z.mp4", "x.mp4"]),
        ("**", ["sub/deep/w.mp4", "sub/z.mp4", "x.mp4", "y.jpg"]),
        ("*/*.mp4", ["sub/z.mp4"]),
        ("sub/?.mp4", ["sub/z.mp4"]),
        ("[xy].*", ["x.mp4", "y.jpg"]),
        ("nope/*", []),
    ],
)
def test_list_files(tree, pattern, names):
    for root in (tree, f"{tree}/"):
        found = Storage().list_files(root, pattern)
        assert [file["uri"] for file in found] == [f"{tree}/{name}" for name in names]
        assert [file["size"] for file in found] == [3] * len(names)


def test_listed_versions_are_those_of_opened_files(tree):
    (file,) = Storage().list_files(tree, "x.mp4")
    with Storage().open_media(file["uri"]) as media:
        assert media.content_version == file["version"]


def test_a_folder_that_does_not_exist_is_empty(tree):
    assert Storage().list_files(f"{tree}/nope", "**/*") == []
    assert Storage().list_files(f"{tree}/x.mp4", "**/*") == []


def test_s3_folder_keys_are_no_files(s3_env):
    for key in ("clips/", "clips/sub/", "clips/a.mp4"):
        Storage().filesystem("s3://x")[0].call_s3(
            "put_object", Bucket=s3_env.bucket, Key=key, Body=b""
        )
    found = Storage().list_files(s3_env.uri("clips"), "**/*")
    assert [file["uri"] for file in found] == [s3_env.uri("clips/a.mp4")]


def test_links_to_files_are_files_and_loops_end(tmp_path):
    (tmp_path / "real.mp4").write_bytes(b"abc")
    (tmp_path / "link.mp4").symlink_to("real.mp4")
    (tmp_path / "dangling.mp4").symlink_to("nowhere.mp4")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.mp4")
    found = Storage().list_files(str(tmp_path), "**/*")
    assert [(file["uri"], file["size"]) for file in found] == [
        (f"{tmp_path}/link.mp4", 3),
        (f"{tmp_path}/real.mp4", 3),
    ]


def test_a_file_that_goes_while_its_folder_is_listed_is_left_out(tmp_path, monkeypatch):
    for name in ("arriving.tmp", "there.mp4"):
        (tmp_path / name).write_bytes(b"abc")
    stat = os.stat

    def then_goes(path, *args, **options):
        found = stat(path, *args, **options)
        if str(path).endswith(".tmp"):
            os.remove(path)
        return found

    monkeypatch.setattr(os, "stat", then_goes)
    found = Storage().list_files(str(tmp_path), "**/*")
    assert [file["uri"] for file in found] == [f"{tmp_path}/there.mp4"]


def test_a_folder_that_may_not_be_read_is_not_passed_over(tmp_path, monkeypatch):
    (tmp_path / "secret").mkdir()
    scandir = os.scandir

    def denies(path):  # not by chmod: root may read every folder
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denies)
    with pytest.raises(StorageError, match="access denied"):
        Storage().list_files(str(tmp_path), "**/*")


def test_written_files_are_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "a.json"
    Storage().write_bytes(str(path), b"old")

    def fails(*args):
        assert path.read_bytes() == b"old"  # all is written, and still nobody sees it
        raise OSError(28, "No space left on device")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, fails)
            with pytest.raises(StorageError, match="No space left on device"):
                Storage().write_bytes(str(path), b"new")
        assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]
        assert path.read_bytes() == b"old"
    Storage().write_bytes(str(path), b"new")
    assert path.read_bytes() == b"new"


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(StorageError, match="Is a directory"):
        Storage().read_bytes(str(tmp_path))
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(StorageError, match="File exists"):
        Storage().write_bytes(f"{tmp_path}/a/b", b"")


@pytest.mark.parametrize(
    ("name", "uri"),
    [("s3a", "s3://bucket/a"), ("s3", "s3a://bucket/a"), ("http", "https://host/a")],
)
def test_options_are_found_under_any_name_of_the_protocol(name, uri):
    fs, _ = Storage({name: {"use_listings_cache": "marker"}}).filesystem(uri)
    assert fs.storage_options["use_listings_cache"] == "marker"


def test_options_of_no_protocol():
    with pytest.raises(StorageError, match="storage_options: unknown protocol aws; known"):
        Storage({"aws": {"key": "k"}})


def test_an_unknown_protocol():
    with pytest.raises(StorageError, match="cannot open s33://b/a: Protocol not known: s33"):
        Storage().read_bytes("s33://b/a")


# Writing to a local disk


def test_writers_with_one_process_id_do_not_share_a_temporary_file(tmp_path, monkeypatch):
    """As in two containers, where the first process has the number 1."""
    monkeypatch.setattr("os.getpid", lambda: 1)
    names, replace = [], os.replace

    def interrupted(pending: str, path: str) -> None:
        names.append(pending)
        if len(names) == 1:  # another container writes the same object meanwhile
            Storage().write_bytes(path, b"other")
        replace(pending, path)

    monkeypatch.setattr("os.replace", interrupted)
    Storage().write_bytes(f"{tmp_path}/a.json", b"mine")
    assert len(set(names)) == 2
    assert (tmp_path / "a.json").read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("target", ["file", "folder", "nothing", "pipe"])
def test_a_planted_link_or_file_is_not_written_through(tmp_path, monkeypatch, target: str):
    """Names are random; one that was guessed all the same is refused."""
    victim = tmp_path / "victim"
    if target == "file":
        victim.write_text("precious")
    elif target == "folder":
        victim.mkdir()
    elif target == "pipe":
        os.mkfifo(victim)
    monkeypatch.setattr("uuid.uuid4", lambda: type("Guessed", (), {"hex": "0"}))
    (tmp_path / "out").mkdir()
    planted = tmp_path / "out" / ".a.json.pending-0"
    planted.symlink_to(victim)
    with pytest.raises(StorageError, match="File exists"):
        Storage().write_bytes(f"{tmp_path}/out/a.json", b"mine")
    assert target != "file" or victim.read_text() == "precious"
    assert target != "nothing" or not victim.exists()
    assert not (tmp_path / "out" / "a.json").exists()


def test_a_link_in_the_place_of_an_object_is_replaced(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "a.json").symlink_to(tmp_path / "victim")
    Storage().write_bytes(f"{tmp_path}/a.json", b"mine")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "a.json").read_bytes() == b"mine"
