"""Sound images that viewers show and Pillow alone does not: raw files, deep samples, odd TIFFs."""

import io
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from pipeline.images.read_image import load_image, open_image
from pipeline.media.probe import probe_image
from pipeline.storage.media_file import MediaFile
from schemas.errors import ErrorType, UnitError


def as_file(content: bytes) -> MediaFile:
    return MediaFile(file=io.BytesIO(content), size_bytes=len(content), content_version="1")


def jpeg(width: int, height: int) -> bytes:
    image = Image.new("RGB", (width, height), (255, 255, 255))
    image.paste((255, 0, 0), (0, 0, width // 2, height // 2))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    return buffer.getvalue()


def raw_file(
    preview: bytes | None, *, kind: str, orientation: int = 1, by_strip: bool = False
) -> bytes:
    """A TIFF as cameras write it: a thumbnail, and a preview in another directory."""
    order = ">" if kind == "NEF" else "<"
    head = (b"MM\0*" if kind == "NEF" else b"II*\0") + struct.pack(order + "I", 16)
    head += b"CR\2\0" if kind == "CR2" else bytes(4)
    head += bytes(4)
    thumbnail = bytes([0, 0, 255]) * 64 * 48
    tags: dict[int, tuple[int, int]] = {
        254: (4, 1), 256: (4, 64), 257: (4, 48), 258: (3, 8), 259: (3, 1), 262: (3, 2),
        274: (3, orientation), 277: (3, 3), 278: (4, 48), 279: (4, len(thumbnail)),
    }  # fmt: skip
    if kind == "DNG":
        tags |= {254: (4, 0), 50706: (4, 0x00000401)}

    def directory(entries: dict[int, tuple[int, int]]) -> bytes:
        packed = struct.pack(order + "H", len(entries))
        for tag, (form, value) in sorted(entries.items()):
            inline = struct.pack(order + ("HH" if form == 3 else "I"), *(
                (value, 0) if form == 3 else (value,)))  # fmt: skip
            packed += struct.pack(order + "HHI", tag, form, 1) + inline
        return packed + bytes(4)

    count = len(tags) + 1 + (preview is not None)
    first = 16 + 2 + 12 * count + 4
    tags[273] = (4, first)
    second = first + len(thumbnail)
    if preview is None:
        return head + directory(tags) + thumbnail
    tags[330] = (4, second)
    names = {259: (3, 7), 273: 0, 279: 0} if by_strip else {259: (3, 6), 513: 0, 514: 0}
    inner: dict[int, tuple[int, int]] = {254: (4, 1), 256: (4, 1), 257: (4, 1)}
    start = second + 2 + 12 * (len(inner) + len(names)) + 4
    places = iter([(4, start), (4, len(preview))])
    inner |= {tag: value or next(places) for tag, value in names.items()}
    return head + directory(tags) + thumbnail + directory(inner) + preview


@pytest.mark.parametrize("by_strip", [False, True])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind", ["NEF", "DNG", "CR2", "ARW"])
def test_the_large_preview_of_a_raw_file_is_used_and_noted(
    kind: str, orientation: int, by_strip: bool
):
    content = raw_file(jpeg(1200, 800), kind=kind, orientation=orientation, by_strip=by_strip)
    assert Image.open(io.BytesIO(content)).size in ((64, 48), (48, 64))  # what Pillow would show
    media = probe_image(as_file(content))
    size = (800, 1200) if orientation == 6 else (1200, 800)
    assert (media.width, media.height) == size
    assert media.notes == ("a camera's raw file: its preview of 1200x800 was used",)
    image = load_image(as_file(content))
    assert image.size == size
    red = (size[0] - 5, 5) if orientation == 6 else (5, 5)
    assert image.getpixel(red)[0] > 240
    assert image.getpixel(red)[1] < 20


@pytest.mark.parametrize(
    ("kind", "preview"),
    [("NEF", jpeg(160, 120)), ("DNG", jpeg(160, 120)), ("DNG", None), ("CR2", None)],
)
def test_a_raw_file_without_a_large_preview_is_not_supported(kind: str, preview: bytes | None):
    with pytest.raises(UnitError, match="a camera's raw file with .*: develop it") as error:
        open_image(as_file(raw_file(preview, kind=kind)))
    assert error.value.error_type == ErrorType.MEDIA_UNSUPPORTED


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"FUJIFILMCCD-RAW 0201", "Fujifilm RAF"),
        (b"IIU\0\x18\0\0\0", "Panasonic RW2"),
        (b"IIRO\x08\0\0\0", "Olympus ORF"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "Canon CR3"),
    ],
)
def test_raw_files_of_other_forms_are_named(head: bytes, name: str):
    with pytest.raises(UnitError, match=name) as error:
        open_image(as_file(head + bytes(1000)))
    assert error.value.error_type == ErrorType.MEDIA_UNSUPPORTED


def test_an_ordinary_tiff_is_no_raw_file():
    buffer = io.BytesIO()
    pages = [Image.new("RGB", (64, 48), color) for color in ("red", "blue")]
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    assert load_image(as_file(buffer.getvalue())).getpixel((1, 1)) == (255, 0, 0)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize(
    ("suffix", "channels"), [("png", 1), ("png", 3), ("tif", 1), ("tif", 3), ("pgm", 1)]
)
def test_samples_of_fewer_bits_in_16_are_shown_at_their_depth(
    tmp_path: Path, bits: int, suffix: str, channels: int
):
    """Written by FFmpeg; expected is the sample divided by its depth, as viewers of 10 bits do."""
    values = np.linspace(0, (1 << bits) - 1, 64 * 64 * channels).astype(np.uint16)
    values = values.reshape((64, 64, 3) if channels == 3 else (64, 64))
    path = tmp_path / f"deep.{suffix}"
    frame = av.VideoFrame.from_ndarray(values, format="rgb48le" if channels == 3 else "gray16le")
    codec = {"tif": "tiff"}.get(suffix, suffix)
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream(codec)
        stream.width = stream.height = 64
        pix = ("rgb48" if channels == 3 else "gray16") + ("le" if suffix == "tif" else "be")
        stream.pix_fmt = pix
        for packet in [*stream.encode(frame.reformat(format=pix)), *stream.encode()]:
            container.mux(packet)
    found = np.asarray(load_image(as_file(path.read_bytes())))
    expected = (values >> (bits - 8)).astype(np.uint8)
    expected = expected if channels == 3 else np.repeat(expected[..., None], 3, axis=2)
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("change", ["JPEG 2000", "JBIG", "bits", "big"])
def test_a_tiff_that_pillow_does_not_read_is_not_supported(change: str):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (9, 9, 9)).save(buffer, "TIFF")
    data = bytearray(buffer.getvalue())
    if change == "big":
        data = bytearray(b"II+\0\x08\0\0\0") + data[8:]
    else:
        tag, value = {"JPEG 2000": (259, 34712), "JBIG": (259, 34661), "bits": (258, 5)}[change]
        (at,) = struct.unpack_from("<I", data, 4)
        count = struct.unpack_from("<H", data, at)[0]
        for place in range(at + 2, at + 2 + 12 * count, 12):
            if struct.unpack_from("<H", data, place)[0] == tag:
                struct.pack_into("<HIHH", data, place + 2, 3, 1, value, 0)
    with pytest.raises(UnitError, match="TIFF") as error:
        load_image(as_file(bytes(data)))
    assert error.value.error_type == ErrorType.MEDIA_UNSUPPORTED
