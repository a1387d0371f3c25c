"""Media by http and https: ranges, servers that know less, and addresses that are refused."""

import base64
import io
import os
import random
import socket
import ssl
import subprocess
import sys

import pytest
from fsspec.implementations.http import HTTPFileSystem

from pipeline.storage.public_hosts import is_public
from pipeline.storage.storage import Storage
from schemas.errors import ErrorType, StorageError, UnitError
from tests.support.certificates import tls_server, write_certificate
from tests.support.media_server import BLOCKS, CONTENT
from tests.support.paths import ROOT
from tests.support.storage import OPEN, read, refused


@pytest.mark.parametrize("name", ["clip.mp4", "blocks.mp4"])
@pytest.mark.parametrize("header_only", [False, True])
def test_reading_by_ranges(http, name, header_only):
    content = BLOCKS if name == "blocks.mp4" else CONTENT
    with OPEN.open_media(f"{http.url}/ranges/{name}", header_only=header_only) as media:
        assert media.size_bytes == len(content)
        assert media.content_version == "the-etag"
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
    monkeypatch.setattr("pipeline.storage.media_file.MAX_WHOLE_BYTES", 1 << 20)
    for kind in ("no-length", "says-none"):
        error_type, message = refused(f"{http.url}/{kind}/clip.mp4")
        assert error_type == ErrorType.MEDIA_TOO_LARGE
        assert "is over 1,048,576 bytes, on a server without range requests" in message


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


PRIVATE = [
    *("169.254.169.254", "10.0.0.1", "100.64.0.1", "fd00::1", "fec0::1", "fe80::1", "::7f00:1"),
    *("168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254"),  # services of clouds
    *("224.0.1.1", "240.0.0.1", "255.255.255.255", "ff0e::1", "0.1.2.3"),
    *("192.88.99.1", "198.18.0.1", "203.0.113.1", "2001:db8::1", "3fff::1", "5f00::1", "4000::1"),
]
TRANSLATED = [
    *("::ffff:10.0.0.1", "::ffff:0:10.0.0.1", "::ffff:192.88.99.1", "::ffff:224.0.0.1"),
    *("64:ff9b::a00:1", "64:ff9b::c058:6301", "64:ff9b::a83f:8110", "64:ff9b:1::808:808"),  # NAT64
    *("2002:a00:1::1", "2002:808:808::1", "2001:0:808:808::1"),  # tunnels: 6to4, Teredo
]


@pytest.mark.parametrize("address", [*PRIVATE, *TRANSLATED])
def test_private_addresses_are_refused_whatever_name_led_there(address, monkeypatch):
    HTTPFileSystem.clear_instance_cache()  # with the names that it resolved
    monkeypatch.setattr(socket, "getaddrinfo", resolves_to(address))
    error_type, message = refused("http://innocent.example/a.mp4", Storage())
    assert error_type == ErrorType.MEDIA_DENIED
    assert f"{address} is a private address" in message


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::808:808", "2a00::1", "2606:4700::1111", "2003::1"),
        *("100.128.0.1", "172.32.0.1", "192.0.1.1", "169.253.0.1", "223.255.255.254"),
    ],
)
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
    monkeypatch.setattr(
        "pipeline.storage.public_hosts.is_public", lambda address: address == "127.0.0.1"
    )
    target = base64.urlsafe_b64encode(f"http://127.0.0.2:{http.server_port}/ranges/x".encode())
    error_type, message = refused(f"{http.url}/redirect/{target.decode()}", Storage())
    assert (error_type, "127.0.0.2 is a private" in message) == (ErrorType.MEDIA_DENIED, True)
    assert {path.split("/")[1] for _, path, _ in http.requests} == {"redirect"}


def test_a_redirect_is_followed(http):
    target = base64.urlsafe_b64encode(f"{http.url}/ranges/clip.mp4".encode()).decode()
    assert read(f"{http.url}/redirect/{target}") == CONTENT


SIGNED = [
    "/ranges/a%2Fb%40c%7Ed.mp4?X-Amz-Credential=K%2F2026%2Fs3&X-Amz-Signature=ab%2fcd",
    "/ranges/lower%c3%a9%2f.mp4?sig=a%2bb%3d%3D&se=2026-01-01T00%3A00%3A00Z",
    "/ranges/plus+%20%2B.mp4?q=a+b%20c&empty=&again=&again",
    "/ranges/a/../b//c/./d.mp4?~=%7E;x,y&p=(1)!*'$",
    "/ranges/colon:at@.mp4?redirect=https://other/a%3Fb&path=/x//y",
]


@pytest.mark.parametrize("target", SIGNED)
@pytest.mark.parametrize("redirect", ["no", "absolute", "relative"])
def test_signed_addresses_are_sent_as_they_are_written(http, target, redirect):
    """The server compares its raw request line with the address."""
    uri = f"{http.url}{target}"
    if redirect == "relative" and "/../" in target:
        pytest.skip("the dots of a relative reference are resolved: RFC 3986, 5.2.4")
    if redirect != "no":
        to = uri if redirect == "absolute" else target
        uri = f"{http.url}/redirect/{base64.urlsafe_b64encode(to.encode()).decode()}"
    assert read(uri) == CONTENT
    sent = [found for found in http.targets if not found.startswith("/redirect/")]
    assert sent
    assert set(sent) == {target}


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        ("/ranges/a b.mp4", "/ranges/a%20b.mp4"),
        ("/ranges/ü😀.mp4?q=é", "/ranges/%C3%BC%F0%9F%98%80.mp4?q=%C3%A9"),
        ("/ranges/100%.mp4", "/ranges/100%25.mp4"),
        ("/ranges/a.mp4?x=1#t=10,20", "/ranges/a.mp4?x=1"),
        ('/ranges/a"<b>{c}.mp4', "/ranges/a%22%3Cb%3E%7Bc%7D.mp4"),
    ],
)
def test_what_no_address_can_have_is_encoded(http, written, sent):
    assert read(f"{http.url}{written}") == CONTENT
    assert set(http.targets) == {sent}


def test_a_host_with_letters_outside_of_ascii(http, monkeypatch):
    names = []

    def resolves(host, *args, **kwargs):
        names.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", http.server_port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolves)
    assert read(f"http://münchen.example:{http.server_port}/ranges/a.mp4") == CONTENT
    assert set(names) == {"münchen.example".encode("idna").decode()}


CERTIFICATES = [
    ({}, False, "self-signed certificate"),
    ({"days": -1}, True, "certificate has expired"),
    ({"address": "192.0.2.1"}, True, "IP address mismatch"),
]


@pytest.mark.parametrize(("made", "is_trusted", "reason"), CERTIFICATES)
def test_a_certificate_that_is_not_trusted(tmp_path, made, is_trusted, reason):
    path = write_certificate(tmp_path / "a.pem", **made)
    options = {"ssl": ssl.create_default_context(cafile=str(path))} if is_trusted else {}
    storage = Storage({"https": options}, allow_private_hosts=True)
    with tls_server(path) as server:
        uri = f"{server.url}/ranges/clip.mp4?token=PLANTED"
        error_type, message = refused(uri, storage)
        assert server.num_connections <= 2  # HEAD and GET: no retries
        with pytest.raises(StorageError, match=f"is not trusted .*{reason}"):
            storage.read_bytes(uri)
    assert error_type == ErrorType.MEDIA_DENIED
    assert f"the server's certificate is not trusted ({reason}" in message
    assert "SSL_CERT_FILE" in message
    assert "PLANTED" not in message


def test_an_s3_server_whose_certificate_is_not_trusted(s3_env, tmp_path):
    with tls_server(write_certificate(tmp_path / "a.pem")) as server:
        storage = Storage({"s3": {"endpoint_url": server.url}})
        error_type, message = refused("s3://bucket/a.mp4", storage)
        with pytest.raises(StorageError, match="certificate is not trusted .*AWS_CA_BUNDLE"):
            storage.list_files("s3://bucket/a")
    assert error_type == ErrorType.MEDIA_DENIED
    assert "certificate is not trusted" in message


def test_an_authority_of_your_own(tmp_path):
    """SSL_CERT_FILE, which the message names, is read when a process starts."""
    path = write_certificate(tmp_path / "a.pem")
    code = (
        "import sys; from pipeline.storage.storage import Storage\n"
        "sys.stdout.buffer.write(Storage({}, True).read_bytes(sys.argv[1]))"
    )
    with tls_server(path) as server:
        done = subprocess.run(
            [sys.executable, "-c", code, f"{server.url}/ranges/blocks.mp4"],
            env=os.environ | {"SSL_CERT_FILE": str(path)},
            cwd=ROOT,
            capture_output=True,
        )
    assert done.stdout == BLOCKS, done.stderr.decode()


@pytest.mark.parametrize("uri", ["ftp://10.0.0.1/a.mp4", "sftp://db/a.mp4", "webhdfs://nn/a.mp4"])
def test_protocols_that_name_a_host_are_refused(uri):
    error_type, message = refused(uri, Storage())
    assert error_type == ErrorType.MEDIA_DENIED
    assert "may reach private hosts; set input.allow_private_hosts" in message


@pytest.mark.parametrize("chain", ["simplecache::", "filecache::", "blockcache::", "zip://a::"])
def test_chained_file_systems_do_not_lead_around_the_check(http, chain):
    refused(f"{chain}{http.url}/ranges/clip.mp4", Storage())
    assert http.requests == []
