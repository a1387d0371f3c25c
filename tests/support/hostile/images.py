"""Images that break decoders: huge ones, bombs, rare depths, palettes and sizes."""

import io
import struct
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, TiffImagePlugin

from tests.support.clips import numbered_frames
from tests.support.hostile.case import (
    BROKEN,
    LARGE,
    OK,
    UNSUPPORTED,
    Case,
    Sound,
    case,
    clip,
)


def chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png(width: int, height: int, content: bytes, *more: bytes) -> bytes:
    """Build a PNG file of 8-bit gray with these compressed pixels and more chunks."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    tail = chunk(b"IDAT", content) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + tail


def huge(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    little = zlib.compress(bytes(100))
    for width, height in ((100_000, 100_000), (2**31 - 1, 2**31 - 1)):
        yield case("huge dimensions", f"{width}.png", png(width, height, little), LARGE, BROKEN)
    yield case("huge dimensions", "wide.png", png(2**31 - 1, 1, little), LARGE)
    gif = bytearray(sound["image.gif"])
    gif[6:10] = b"\xff\xff\xff\xff"
    yield case("huge dimensions", "huge.gif", bytes(gif), LARGE)
    jpg = bytearray(sound["image.jpg"])
    at = jpg.index(b"\xff\xc0")
    jpg[at + 5 : at + 9] = b"\xff\xdc\xff\xdc"
    yield case("huge dimensions", "huge.jpg", bytes(jpg), LARGE)
    bmp = bytearray(sound["image.bmp"])
    struct.pack_into("<ii", bmp, 18, 2**30, 2**30)
    yield case("huge dimensions", "huge.bmp", bytes(bmp), LARGE, BROKEN)
    avi = bytearray(sound["clip.avi"])
    at = avi.index(b"strf") + 12
    struct.pack_into("<ii", avi, at, 32_000, 32_000)
    yield case("huge dimensions", "huge.avi", bytes(avi), OK, LARGE, BROKEN)


def bombs(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    side = 20_000
    squeezed = zlib.compressobj(9)
    line = bytes(side + 1)
    zeros = b"".join(squeezed.compress(line) for _ in range(600)) + squeezed.flush()
    yield case("bombs", "pixels.png", png(side, side, zeros), LARGE)
    yield case("bombs", "short.png", png(9_000, 9_000, zeros[:1000]), BROKEN)
    text = chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(200 << 20), 9))
    small = zlib.compress((b"\0" + bytes(64)) * 48)
    yield case("bombs", "text.png", png(64, 48, small, text), OK, BROKEN)
    profile = chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(200 << 20), 9))
    yield case("bombs", "profile.png", png(64, 48, small, profile), OK, BROKEN)

    def many(path: Path) -> None:
        frames = [Image.new("P", (200, 200), k % 7) for k in range(400)]
        frames[0].save(path, save_all=True, append_images=frames[1:])

    yield case("bombs", "many.gif", many, OK)
    yield case("bombs", "strip.tiff", tiff_bomb, OK, BROKEN, LARGE)

    def pages(path: Path) -> None:
        page = Image.new("1", (100, 100))
        page.save(path, save_all=True, append_images=[page] * 300)

    yield case("bombs", "pages.tiff", pages, OK)


def tiff_bomb(path: Path) -> None:
    """Write a TIFF of 64 x 48 pixels whose compressed strip unpacks to 100 MB."""
    image = Image.new("L", (64, 48))
    buffer = io.BytesIO()
    image.save(buffer, "TIFF", compression="tiff_adobe_deflate")
    content = bytearray(buffer.getvalue())
    bomb = zlib.compress(bytes(100 << 20), 9)
    tags = TiffImagePlugin.ImageFileDirectory_v2(bytes(content[:8]))
    stream = io.BytesIO(bytes(content))
    stream.seek(struct.unpack_from("<I", content, 4)[0])
    tags.load(stream)
    start, end = len(content), struct.unpack_from("<I", content, 4)[0]
    for k in range(struct.unpack_from("<H", content, end)[0]):
        at = end + 2 + 12 * k
        tag = struct.unpack_from("<H", content, at)[0]
        if tag == 273:
            struct.pack_into("<I", content, at + 8, start)
        if tag == 279:
            struct.pack_into("<HII", content, at + 2, 4, 1, len(bomb))
    path.write_bytes(bytes(content) + bomb)


def depths(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    deep = rng.integers(0, 65536, (48, 64), dtype=np.uint16)
    yield case("16-bit", "gray.png", Image.fromarray(deep), OK)
    yield case("16-bit", "gray.tiff", Image.fromarray(deep), OK)
    real = rng.normal(size=(48, 64)).astype(np.float32)
    real[0, :4] = [np.nan, np.inf, -np.inf, 1e38]
    yield case("16-bit", "float.tiff", Image.fromarray(real), OK)
    yield case("16-bit", "nothing.tiff", Image.fromarray(np.full((48, 64), np.nan, np.float32)), OK)
    whole = rng.integers(-(2**31), 2**31, (48, 64), dtype=np.int64).astype(np.int32)
    yield case("16-bit", "int32.tiff", Image.fromarray(whole), OK)

    def rgb48(path: Path) -> None:
        frame = av.VideoFrame(64, 48, "rgb48be")
        codec = av.CodecContext.create("png", "w")
        codec.width, codec.height, codec.pix_fmt = 64, 48, "rgb48be"
        codec.time_base = Fraction(1, 1)
        frame.pts = 0
        path.write_bytes(b"".join(bytes(p) for p in [*codec.encode(frame), *codec.encode(None)]))

    yield case("16-bit", "rgb48.png", rgb48, OK)
    cmyk = Image.fromarray(rng.integers(0, 256, (48, 64, 4), dtype=np.uint8), "CMYK")
    yield case("CMYK", "cmyk.jpg", cmyk, OK)
    yield case("CMYK", "cmyk.tiff", cmyk, OK)
    yield case("CMYK", "lab.tiff", Image.new("LAB", (64, 48), (100, 130, 90)), OK)
    yield case("CMYK", "ycbcr.jpg", Image.new("YCbCr", (64, 48), (100, 130, 90)), OK)


def palettes(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    image = numbered_frames(1, 64, 48)[0].convert("P")
    for suffix in ("png", "gif", "bmp", "tiff"):
        yield case("palette", f"plain.{suffix}", image, OK)
    yield case("palette", "clear.png", lambda path: image.save(path, transparency=0), OK)
    yield case("palette", "clear.gif", lambda path: image.save(path, transparency=3), OK)
    clear = bytes(range(256))
    yield case("palette", "shades.png", lambda path: image.save(path, transparency=clear), OK)
    yield case("palette", "bits.png", image.convert("1"), OK)
    yield case("palette", "gray with alpha.png", image.convert("LA"), OK)
    content = bytearray(sound["image.gif"])
    content[10] &= 0x7F  # no colour table
    yield case("palette", "none.gif", bytes(content), OK, BROKEN)


def odd_sizes(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    for width, height in ((1, 1), (1, 7), (3, 5), (31, 33), (199, 1), (1, 200)):
        image = Image.new("RGB", (width, height), (9, 99, 199))
        yield case("odd sizes", f"{width}x{height}.png", image, OK)
    for width, height in ((1, 1), (3, 5), (17, 13), (161, 9)):
        frames = [Image.new("RGB", (width, height), (9, 99, 20 * n)) for n in range(4)]
        make = clip(frames, codec="ffv1", pix_fmt="yuv444p")
        yield case("odd sizes", f"{width}x{height}.mkv", make, OK)
    frames = [Image.new("RGB", (2, 2), (9, 99, 20 * n)) for n in range(4)]
    yield case("odd sizes", "2x2.mp4", clip(frames), OK)
    for width, height in ((5000, 10), (10, 5000), (201, 1)):
        image = Image.new("RGB", (width, height))
        yield case("aspect over 200", f"{width}x{height}.png", image, UNSUPPORTED)
        frames = [image] * 2
        make = clip(frames, codec="ffv1", pix_fmt="yuv444p")
        yield case("aspect over 200", f"{width}x{height}.mkv", make, UNSUPPORTED)
