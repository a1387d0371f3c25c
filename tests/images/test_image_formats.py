"""Only formats that are read from the file's own bytes are opened, whatever a file is called."""

import ast
import io
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import EpsImagePlugin, Image

from pipeline.images.read_image import FORMATS, load_image
from pipeline.storage.media_file import MediaFile
from pipeline.storage.storage import Storage
from schemas.errors import ErrorType, UnitError
from tests.support.paths import ROOT

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\nshowpage\n%%EOF\n"
DOS_EPS = struct.pack("<IIIIIIIH", 0xC6D3D0C5, 30, len(EPS), 0, 0, 0, 0, 0xFFFF) + EPS
WMF = (
    struct.pack("<IHhhhhHI", 0x9AC6CDD7, 0, 0, 0, 64, 48, 96, 0)
    + bytes(2)
    + b"\1\0\t\0"
    + bytes(60)
)
HDF5 = b"\x89HDF\r\n\x1a\n" + bytes(200)
FITS = b"SIMPLE  =                    T".ljust(80) + bytes(2800)


def iptc(content: bytes) -> bytes:
    """An IPTC file, which holds a file of any format."""

    def field(record: int, dataset: int, value: bytes) -> bytes:
        return struct.pack(">BBBH", 0x1C, record, dataset, len(value)) + value

    head = field(3, 60, b"\1\0") + field(3, 20, struct.pack(">H", 64))
    head += field(3, 30, struct.pack(">H", 48)) + field(3, 120, b"\5")
    return head + field(8, 10, content)


def as_file(content: bytes) -> MediaFile:
    return MediaFile(file=io.BytesIO(content), size_bytes=len(content), content_version="1")


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Ghostscript that leaves this file when it is started."""
    mark = tmp_path / "started"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n: > {mark}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # where Pillow keeps what it found
    return mark


def test_the_fake_is_what_pillow_would_start(started: Path):
    with suppress(OSError):
        Image.open(io.BytesIO(EPS)).load()
    assert started.exists()


@pytest.mark.parametrize("content", [EPS, DOS_EPS, iptc(EPS)], ids=["text", "binary", "in IPTC"])
def test_no_image_starts_a_program(started: Path, content: bytes):
    with pytest.raises(UnitError):
        load_image(as_file(content))
    assert not started.exists()


REFUSED = {"EPS": EPS, "WMF": WMF, "HDF5": HDF5, "FITS": FITS}


@pytest.mark.parametrize("name", REFUSED)
def test_a_format_that_is_not_read_is_named(name: str):
    with pytest.raises(UnitError, match=rf"in the format {name}, .* convert it") as caught:
        load_image(as_file(REFUSED[name]))
    assert caught.value.error_type == ErrorType.MEDIA_UNSUPPORTED


def test_what_is_no_image_gets_the_list_of_formats():
    with pytest.raises(UnitError, match=r"JPEG, PNG, .*TIFF") as caught:
        load_image(as_file(b"<html>404</html>"))
    assert caught.value.error_type == ErrorType.MEDIA_UNREADABLE


def writable() -> list[str]:
    """The formats that are read, and that Pillow can write here."""
    return sorted(name for name in FORMATS if name in Image.SAVE)


@pytest.mark.parametrize("name", writable())
def test_every_format_of_the_list_is_read(name: str):
    buffer = io.BytesIO()
    mode = "1" if name == "XBM" else "RGB"
    Image.new(mode, (64, 64), 0).save(buffer, name)
    assert load_image(as_file(buffer.getvalue())).getpixel((9, 9)) is not None


def test_the_list_has_what_archives_hold():
    wanted = {"JPEG", "PNG", "HEIF", "AVIF", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "ICO"}
    assert wanted <= set(FORMATS)
    assert len(writable()) >= 18


def test_every_opening_of_an_image_names_the_formats():
    """Also those to come: without them Pillow tries all that it has."""
    for path in [*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("jobs/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open":
                assert "formats" in {keyword.arg for keyword in node.keywords}, path


def test_storage_is_read_by_content_not_by_name(started: Path, tmp_path: Path):
    (tmp_path / "photo.jpg").write_bytes(EPS)
    with (
        Storage().open_media(str(tmp_path / "photo.jpg")) as file,
        pytest.raises(UnitError, match="EPS"),
    ):
        load_image(file)
    assert not started.exists()
