"""Storage: the same bytes, versions and errors from folders, data: uris, https and S3."""

import base64
import contextlib
import hashlib
import io
import os
import pickle
import random
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from fsspec.implementations.http import HTTPFileSystem

from pipeline.public_hosts import is_public
from pipeline.storage import Storage, join, shown
from schemas.errors import ErrorType, StorageError, UnitError

CONTENT = random.Random(0).randbytes((3 << 20) + 17)
BLOCKS = CONTENT[: 2 << 20]  # a whole number of the reader's blocks
OPEN = Storage(allow_private_hosts=True)


class Handler(BaseHTTPRequestHandler):
    """Serves byte ranges of /clip.mp4 and /blocks.mp4; the other paths are what servers also do."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_PUT(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(with_body=True)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, *, with_body):
        self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        kind, _, name = self.path.lstrip("/").partition("/")
        if kind == "status":
            return self.reply(int(name), b"")
        if kind == "s3-denied":  # as S3 answers to a key that it does not know
            body = b"<Error><Code>InvalidAccessKeyId</Code><Message>No such key</Message></Error>"
            return self.reply(403, body)
        if kind == "redirect":
            return self.reply(302, b"", Location=base64.urlsafe_b64decode(name).decode())
        if kind == "head-forbidden" and not with_body:
            return self.reply(403, b"")
        content = BLOCKS if name == "blocks.mp4" else CONTENT
        if kind == "no-length":  # chunked, as a script generates it
            return self.reply_chunked(content, with_body)
        if kind == "breaks" and with_body and self.headers.get("Range") != "bytes=0-1048575":
            return self.reply(500, b"")
        wanted = self.headers.get("Range")
        if kind in ("no-ranges", "says-none") or not wanted:
            headers = {"Accept-Ranges": "none"} if kind == "says-none" else {}
            return self.reply(200, content, **headers)
        start, end = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        if start > end or start >= len(content):
            self.server.bad_ranges.append(wanted)
            return self.reply(416, b"")
        part = content[start : end + 1]
        last = start + len(part) - 1
        return self.reply(206, part, **{"Content-Range": f"bytes {start}-{last}/{len(content)}"})

    def reply(self, status, body, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"the-etag"')
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):  # the client has what it wanted
                self.wfile.write(body)
            self.server.num_bytes += len(body)

    def reply_chunked(self, content, with_body):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for begin in range(0, len(content) if with_body else 0, 100_000):
            part = content[begin : begin + 100_000]
            self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        if with_body:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # clients that close early


@pytest.fixture(scope="module")
def http_server():
    server = Server(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def http(http_server):
    HTTPFileSystem.clear_instance_cache()  # with the connections that another test was allowed
    http_server.requests, http_server.bad_ranges, http_server.num_bytes = [], [], 0
    return http_server


def read(uri, storage=OPEN, **kwargs):
    with storage.open_media(uri, **kwargs) as media:
        return media.file.read()


def refused(uri, storage=OPEN):
    with pytest.raises(UnitError) as error, storage.open_media(uri) as media:
        media.file.read()
    return error.value.error_type, str(error.value)


# Local files and data: uris


def test_a_local_file(tmp_path):
    path = tmp_path / "Interview:: [1] 100%.mp4"
    path.write_bytes(CONTENT)
    for uri in (str(path), f"file://{path}"):
        with Storage().open_media(uri) as media:
            assert media.file.read() == CONTENT
            assert media.size_bytes == len(CONTENT)
            assert media.local_path == str(path)
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
    assert shown("data:image/png;base64,AAAA") == "data:image/png;base64,sha256=63c1dd951ffedf6f"
    assert shown("s3://b/a.mp4") == "s3://b/a.mp4"


def test_join():
    assert join("s3://b/out/", "runs", "r1") == "s3://b/out/runs/r1"


def test_storage_is_picklable_and_never_shows_its_options():
    storage = Storage({"s3": {"secret": "hunter2"}})
    assert pickle.loads(pickle.dumps(storage)).options == storage.options
    assert "hunter2" not in repr(storage)


# http


@pytest.mark.parametrize("name", ["clip.mp4", "blocks.mp4"])
@pytest.mark.parametrize("header_only", [False, True])
def test_reading_by_ranges(http, name, header_only):
    content = BLOCKS if name == "blocks.mp4" else CONTENT
    with OPEN.open_media(f"{http.url}/ranges/{name}", header_only=header_only) as media:
        assert media.size_bytes == len(content)
        assert media.content_version == "the-etag"
        assert media.local_path is None
        whole = b"".join(iter(lambda: media.file.read(70_001), b""))
    assert whole == content
    assert media.bytes_read == len(content)  # each byte once
    assert http.num_bytes == len(content)
    assert http.bad_ranges == []


def test_a_probe_reads_little(http):
    with OPEN.open_media(f"{http.url}/ranges/clip.mp4", header_only=True) as media:
        assert media.file.read(100) == CONTENT[:100]
        media.file.seek(-100, io.SEEK_END)
        assert media.file.read() == CONTENT[-100:]
        assert media.file.tell() == len(CONTENT)
        assert media.bytes_read == http.num_bytes == 2 * (1 << 16) + 17
    assert [command for command, _, _ in http.requests] == ["HEAD", "GET", "GET", "GET"]


def test_reading_is_that_of_any_file(http):
    with OPEN.open_media(f"{http.url}/ranges/clip.mp4") as media:
        file, local = media.file, io.BytesIO(CONTENT)
        random_ = random.Random(1)
        for _ in range(200):
            position, size = random_.randrange(len(CONTENT) + 9), random_.randrange(300_000)
            assert file.seek(position) == local.seek(position)
            assert file.read(size) == local.read(size)
            assert file.tell() == local.tell()
        assert file.seek(-5, io.SEEK_CUR) == local.seek(-5, io.SEEK_CUR)
        assert file.readinto(bytearray(3)) == 3
        with pytest.raises(ValueError, match="negative position -1"):
            file.seek(-1)


@pytest.mark.parametrize("kind", ["no-ranges", "says-none", "no-length", "head-forbidden"])
def test_servers_that_know_less(http, kind):
    with OPEN.open_media(f"{http.url}/{kind}/clip.mp4") as media:
        assert media.size_bytes == len(CONTENT)
        media.file.seek(2_000_000)
        assert media.file.read(1000) == CONTENT[2_000_000:2_001_000]
        media.file.seek(0)
        assert media.file.read() == CONTENT
        assert media.bytes_read >= len(CONTENT)


def test_a_server_without_ranges_and_too_much(http, monkeypatch):
    monkeypatch.setattr("pipeline.storage.MAX_WHOLE_BYTES", 1 << 20)
    for kind in ("no-length", "says-none"):
        error_type, message = refused(f"{http.url}/{kind}/clip.mp4")
        assert error_type == ErrorType.MEDIA_TOO_LARGE
        assert "is over 1048576 bytes on a server without ranges" in message


@pytest.mark.parametrize(
    ("status", "error_type", "message"),
    [
        (404, ErrorType.MEDIA_MISSING, "does not exist"),
        (410, ErrorType.MEDIA_MISSING, "does not exist"),
        (401, ErrorType.MEDIA_DENIED, "access denied"),
        (403, ErrorType.MEDIA_DENIED, "access denied"),
        (500, ErrorType.STORAGE_FAILED, "500, message='Internal Server Error'.*try again later"),
    ],
)
def test_http_errors(http, status, error_type, message):
    uri = f"{http.url}/status/{status}"
    with pytest.raises(UnitError, match=f"{uri}.*{message}") as error, OPEN.open_media(uri):
        pass
    assert error.value.error_type == error_type


def test_a_server_that_fails_while_it_is_read(http):
    with OPEN.open_media(f"{http.url}/breaks/clip.mp4") as media:
        assert media.file.read(10) == CONTENT[:10]
        media.file.seek(1 << 20)
        with pytest.raises(UnitError, match="500") as error:
            media.file.read(10)
    assert error.value.error_type == ErrorType.STORAGE_FAILED


def test_no_server():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}/a.mp4"
        error_type, message = refused(uri)
    assert error_type == ErrorType.STORAGE_FAILED
    assert "Connect call failed" in message or "refused" in message


def test_a_malformed_url():
    assert refused("http://[::1/a.mp4")[0] == ErrorType.BAD_REQUEST


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "0.0.0.0"])
def test_private_addresses_are_refused(http, host):
    uri = f"http://{host}:{http.server_port}/ranges/clip.mp4"
    error_type, message = refused(uri, Storage())
    assert error_type == ErrorType.MEDIA_DENIED
    assert "is a private address; set input.allow_private_hosts to allow it" in message
    with pytest.raises(StorageError, match=r"private address; set input\.allow_private_hosts"):
        Storage().read_bytes(uri)
    assert http.requests == []


PRIVATE = ["169.254.169.254", "10.0.0.1", "::ffff:10.0.0.1", "fd00::1"]
TRANSLATED = ["64:ff9b::a00:1", "64:ff9b:1::808:808", "2002:a00:1::1"]  # by NAT64, and by 6to4


@pytest.mark.parametrize("address", [*PRIVATE, *TRANSLATED])
def test_private_addresses_are_refused_whatever_name_led_there(address, monkeypatch):
    HTTPFileSystem.clear_instance_cache()  # with the names that it resolved
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to(address))
    error_type, message = refused("http://innocent.example/a.mp4", Storage())
    assert error_type == ErrorType.MEDIA_DENIED
    assert f"{address} is a private address" in message


@pytest.mark.parametrize("address", ["8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::808:808", "2a00::1"])
def test_public_addresses_are_no_private_ones(address):
    assert is_public(address)


def resolves_to(address):
    if ":" in address:
        found = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, 80, 0, 0))
    else:
        found = (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80))
    return lambda *args, **kwargs: [found]


def test_private_addresses_are_refused_through_a_redirect(http, monkeypatch):
    """The first server is allowed (as a public one is), the one it sends us to is not."""
    monkeypatch.setattr("pipeline.public_hosts.is_public", lambda address: address == "127.0.0.1")
    target = base64.urlsafe_b64encode(f"http://127.0.0.2:{http.server_port}/ranges/x".encode())
    error_type, message = refused(f"{http.url}/redirect/{target.decode()}", Storage())
    assert (error_type, "127.0.0.2 is a private" in message) == (ErrorType.MEDIA_DENIED, True)
    assert {path.split("/")[1] for _, path, _ in http.requests} == {"redirect"}


def test_a_redirect_is_followed(http):
    target = base64.urlsafe_b64encode(f"{http.url}/ranges/clip.mp4".encode()).decode()
    assert read(f"{http.url}/redirect/{target}") == CONTENT


@pytest.mark.parametrize("uri", ["ftp://10.0.0.1/a.mp4", "sftp://db/a.mp4", "webhdfs://nn/a.mp4"])
def test_protocols_that_name_a_host_are_refused(uri):
    error_type, message = refused(uri, Storage())
    assert error_type == ErrorType.MEDIA_DENIED
    assert "may reach private hosts; set input.allow_private_hosts" in message


@pytest.mark.parametrize("chain", ["simplecache::", "filecache::", "blockcache::", "zip://a::"])
def test_chained_file_systems_do_not_lead_around_the_check(http, chain):
    refused(f"{chain}{http.url}/ranges/clip.mp4", Storage())
    assert http.requests == []


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
    with pytest.raises(StorageError, match="storage_options: aws is no protocol; s3, gs"):
        Storage({"aws": {"key": "k"}})


def test_an_unknown_protocol():
    with pytest.raises(StorageError, match="cannot open s33://b/a: Protocol not known: s33"):
        Storage().read_bytes("s33://b/a")


@pytest.mark.parametrize(
    ("uri", "safe"),
    [
        ("https://user:pass@host/a.mp4", "https://host/a.mp4"),
        ("https://host/a.mp4?X-Amz-Signature=abc&x=1", "https://host/a.mp4?..."),
        ("https://host/a.mp4?auth=abc", "https://host/a.mp4?..."),
        ("https://host/a.mp4?width=10", "https://host/a.mp4?width=10"),
        ("s3://bucket/a?token=b.mp4", "s3://bucket/a?token=b.mp4"),
    ],
)
def test_secrets_of_a_url_are_not_shown(uri, safe):
    assert shown(uri) == safe
