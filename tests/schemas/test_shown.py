"""Nothing that is shown or written has the secret of an address, or acts on a terminal."""

import io
import logging
import time

import pytest
from rich.table import Table

from jobs.console.text import console
from schemas.shown import (
    ShownFormatter,
    one_line,
    printable,
    redact_text,
    redact_uri,
)

SECRET = "PLANTED-5EC12E7"
NAMES = ["hdnts", "hmac", "md5", "verify", "code", "pw", "e", "st", "X-Amz-Signature", "id"]

WITH_SECRET = [
    *(f"https://host/a.mp4?{name}={SECRET}" for name in NAMES),
    f"HTTP://host/a.mp4?x={SECRET}",
    f"hTTps://user:{SECRET}@host/a.mp4",
    f"https://user:p@{SECRET}@host/a.mp4",
    f"https://{SECRET}@host/a.mp4",
    f"https://user:p/{SECRET}@host/a.mp4",
    f"https://user:p?{SECRET}@host/a.mp4",
    f"https://user:1#{SECRET}@host/a.mp4",
    f"https://host/a.mp4#token={SECRET}",
    f"https://host/a.mp4;x?{SECRET}",
    f"https:/host/a.mp4?x={SECRET}",
    f"https:host/a.mp4?x={SECRET}",
    f"/base/ https:/user:{SECRET}@host/a.mp4?x={SECRET}",
    f"sftp://user:{SECRET}@host/a.mp4",
    f"webdav://host/a.mp4?x={SECRET}",
    f"s3://key:{SECRET}@host/a.mp4",
    f"s3://host/a.mp4?X-Amz-Signature={SECRET}&x=1",
    f"gs://host/a.mp4?x=1&X-Goog-Signature={SECRET}",
    f"abfs://host@host/a.mp4?sv=1&sig={SECRET}",
]


@pytest.mark.parametrize("uri", WITH_SECRET)
def test_no_form_of_an_address_shows_its_secret(uri):
    assert SECRET not in redact_uri(uri)
    assert "host/a.mp4" in redact_uri(uri)
    assert redact_uri(redact_uri(uri)) == redact_uri(uri)


@pytest.mark.parametrize("uri", WITH_SECRET)
@pytest.mark.parametrize(
    "text",
    [
        "404, message='Not Found', url='{uri}'",
        "Cannot connect to {uri}, try again ({uri}).",
        'InvalidURL(URL("{uri}"))',
        "Could not connect to the endpoint URL: {uri}\n  File x, line 1\n{uri}\n",
        "{uri}",
    ],
)
def test_no_message_shows_it(uri, text):
    assert SECRET not in redact_text(text.format(uri=uri), uri)
    if not uri.startswith("/"):
        assert SECRET not in redact_text(text.format(uri=uri))


def test_a_part_of_a_known_address_is_hidden_too():
    uri = f"https://user:{SECRET}@host/a.mp4?x={SECRET}9&y=b"
    text = f"the query x={SECRET}9&y=b, the value {SECRET}9 and the password {SECRET}"
    assert SECRET not in redact_text(text, uri)
    assert redact_text("host/a.mp4 is not there", uri) == "host/a.mp4 is not there"


@pytest.mark.parametrize(
    "uri",
    [
        "/clips/a b?c#d@e.mp4",
        "clips/a@2x.png",
        "file:///a/b?c.mp4",
        "s3://bucket/a?token=b.mp4",
        "s3://bucket/user@host/a:b.mp4",
        "gs://bucket/100%?.mp4",
        "abfs://container@account.dfs.core.windows.net/a.mp4",
        "https://host:8443/a@2x.png",
        "https://[::1]:8443/a@2x.png",
        "https://host/b/user:pw@x.png",
    ],
)
def test_what_is_part_of_a_name_stays(uri):
    assert redact_uri(uri) == uri
    assert redact_text(f"{uri} is not there.") == f"{uri} is not there."


@pytest.mark.parametrize(
    "text",
    ["a", "https:", "://", "a:", "http://", "data:a/", "'", "?", "h://'a", "@", "\\", "a.b-c+"],
)
def test_time_is_linear_in_the_text(text):
    long = "https://h/" + text * (200_000 // len(text)) + "x"
    began = time.process_time()
    redact_text(long, "https://h/a?x=1234567")
    redact_uri(long)
    assert time.process_time() - began < 5.0


def test_printable():
    assert printable("Ünï 日本.mp4") == "Ünï 日本.mp4"
    assert printable("two\nlines") == "two\nlines"
    assert one_line("two\nlines") == "two\\nlines"
    assert printable("می\u200cخواهم") == "می\u200cخواهم"  # letters that do not join
    assert printable("a\x1b[2J\r\u202eb\x9b") == "a\\x1b[2J\\r\\u202eb\\x9b"


HOSTILE = ["\x1b[2J", "\x1b]0;t\x07", "\x9b31m", "\u202e", "\u2066", "\x00", "\r", "\udcff"]


@pytest.mark.parametrize("sequence", HOSTILE)
def test_a_log_line_is_printable_and_is_one_record(sequence):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(ShownFormatter("%(levelname)s: %(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    name = f"a{sequence}.mp4\nERROR: forged https://host/a?x={SECRET}"
    logger.warning("planning %s", name)
    try:
        raise ValueError(name)
    except ValueError:
        logger.exception("decoding")
    shown = stream.getvalue()
    assert sequence not in shown
    assert SECRET not in shown
    assert printable(shown, keep="\n") == shown
    assert [line.split(" ")[0] for line in shown.splitlines() if line[0] != " "] == [
        "WARNING:",
        "ERROR:",
    ]
    assert "Traceback" in shown


@pytest.mark.parametrize("sequence", HOSTILE)
def test_what_reaches_the_console_is_printable(sequence):
    out = console()
    out.file = io.StringIO()
    grid = Table(title=f"title {sequence}", caption=sequence)
    grid.add_column(f"head {sequence}")
    grid.add_row(f"cell {sequence}")
    out.print(grid)
    out.print(f"text {sequence}", style="dim")
    out.print(f"text {sequence}", soft_wrap=True)
    shown = out.file.getvalue()
    assert shown.count("text") == 2
    assert sequence not in shown
    assert printable(shown) == shown
