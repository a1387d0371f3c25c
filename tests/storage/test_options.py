"""Keys and headers of a job reach the host that they are given for, and no other."""

import base64
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipeline.storage.options import options_for
from pipeline.storage.storage import Storage
from schemas.errors import StorageError
from tests.support.media_server import CONTENT
from tests.support.storage import read, refused

KEY = "PLANTED-5EC12E7"


def storage(host, **headers):
    return Storage({host: {"headers": headers or {"X-Api-Key": KEY}}}, allow_private_hosts=True)


def keys(server):
    """The host and the key of each request that the server got."""
    return {(found["Host"].partition(":")[0], found.get("X-Api-Key")) for found in server.headers}


@pytest.mark.parametrize("form", ["{}", "{}/", "HTTP://127.0.0.1:{}"])
def test_headers_are_sent_to_their_host(http, form):
    host = form.format(http.server_port if "HTTP" in form else http.url)
    assert read(f"{http.url}/ranges/clip.mp4", storage(host)) == CONTENT
    assert keys(http) == {("127.0.0.1", KEY)}
    assert all("Range" in found for found in http.headers[1:])


@pytest.mark.parametrize(
    "other",
    ["http://localhost:{port}", "https://127.0.0.1:{port}", "http://127.0.0.1", "http://0.0.0.0"],
)
def test_headers_are_sent_to_no_other_host(http, other):
    """Another name, another protocol, another port: each is another origin."""
    host = other.format(port=http.server_port)
    assert read(f"{http.url}/ranges/clip.mp4", storage(host)) == CONTENT
    assert keys(http) == {("127.0.0.1", None)}


@pytest.mark.parametrize("name", ["X-Api-Key", "Authorization", "Cookie", "Private-Token"])
def test_a_redirect_takes_no_header_to_another_host(http, name):
    mine = f"http://127.0.0.1:{http.server_port}"
    for target, goes in (("127.0.0.1", True), ("localhost", False)):
        http.headers = []
        to = f"http://{target}:{http.server_port}/ranges/clip.mp4"
        uri = f"{mine}/redirect/{base64.urlsafe_b64encode(to.encode()).decode()}"
        assert read(uri, storage(mine, **{name: KEY})) == CONTENT
        sent = {(found["Host"].partition(":")[0], found.get(name)) for found in http.headers}
        assert sent == {("127.0.0.1", KEY)} | (set() if goes else {("localhost", None)})


def test_two_hosts_have_their_own_headers(http):
    both = Storage(
        {
            f"http://127.0.0.1:{http.server_port}": {"headers": {"X-Api-Key": "one"}},
            f"http://localhost:{http.server_port}": {"headers": {"X-Api-Key": "two"}},
            "https": {"block_size": 1 << 20},
        },
        allow_private_hosts=True,
    )
    to = f"http://localhost:{http.server_port}/ranges/clip.mp4"
    uri = f"{http.url}/redirect/{base64.urlsafe_b64encode(to.encode()).decode()}"
    assert read(uri, both) == CONTENT
    assert keys(http) == {("127.0.0.1", "one"), ("localhost", "two")}


def test_a_host_with_letters_outside_of_ascii():
    Storage({"https://münchen.example": {"headers": {"X-Api-Key": KEY}}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"https": {"headers": {"X-Api-Key": KEY}}}, "headers would be sent to every host"),
        ({"http": {"auth": ["u", KEY]}}, "auth would be sent to every host"),
        ({"https": {"cookies": {"a": KEY}}}, "cookies would be sent to every host"),
        ({"https": {"params": {"key": KEY}}}, "params would be sent to every host"),
        ({"https": {"client_kwargs": {"headers": {"a": KEY}}}}, "headers would be sent to every"),
        ({"sftp": {"username": "u", "password": KEY}}, "would be used for every host"),
        ({"ftp": {"password": KEY}}, r'\{"ftp://HOST": ...\}'),
        ({"https://h/a": {"headers": {}}}, "without a path, user or query"),
        ({f"https://u:{KEY}@h": {"headers": {}}}, "without a path, user or query"),
        ({"https://": {"headers": {}}}, "without a path, user or query"),
        ({"https://[::1": {"headers": {}}}, "without a path, user or query"),
        ({"https://h:x": {"headers": {}}}, "without a path, user or query"),
        ({"https://h": {"auth": KEY}}, "give headers, such as"),
        ({"https://h": {"headers": KEY}}, "give headers, such as"),
        ({"https://h": {"headers": {"a": 1}}}, "headers must be texts"),
        ({"s3://bucket": {"key": KEY}}, "name no host; give its options as `s3: ...`"),
        ({"none://h": {"key": KEY}}, "unknown protocol none"),
    ],
)
def test_options_that_could_reach_another_host_are_refused(options, message):
    with pytest.raises(StorageError, match=message) as error:
        Storage(options)
    assert KEY not in str(error.value)


def test_other_protocols_that_name_a_host_have_options_by_host():
    options = {"sftp://db:2222": {"password": KEY}, "ftp": {"host": "db", "password": KEY}}
    assert options_for("sftp://db:2222/a.mp4", options) == {"password": KEY}
    for other in ("sftp://db/a.mp4", "sftp://evil:2222/a.mp4", "https://db:2222/a", "sftp://[x"):
        assert options_for(other, options) == {}
    Storage(options)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_keys_of_s3_stay_with_its_endpoint(http, s3_env, status):
    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("Location", f"{http.url}/ranges/clip.mp4")
            self.send_header("x-amz-bucket-region", "eu-west-1")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        given = {"s3": {"endpoint_url": endpoint, "key": "k", "secret": KEY}}
        refused("s3://bucket/a.mp4", Storage(given, allow_private_hosts=True))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert http.headers == []


def test_an_address_that_lost_its_query_is_not_read(http):
    """It could be another object, and its frames would be shown as those of the row."""
    error_type, message = refused(f"{http.url}/ranges/clip.mp4?...")
    assert error_type == "media_denied"
    assert "was written without its query" in message
    assert http.requests == []
