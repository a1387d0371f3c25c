"""Media that break decoders: some 300 files in 30 kinds, the same ones from the same seed.

Each case has what may come of it: an answer, or errors of certain types. ``make`` writes the file
and returns the name under which it is planned; ``later`` happens between plan and decode.
"""

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from clips import numbered_frames
from PIL import Image, TiffImagePlugin

from jobs.encode_clip import encode_clip

OK = "ok"
BROKEN = "media_unreadable"
UNSUPPORTED = "media_unsupported"
LARGE = "media_too_large"
CHANGED = "media_changed"
MISSING = "media_missing"
BAD = "bad_request"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One file, and what may come of it."""

    kind: str
    name: str
    make: Callable[[Path], None]
    allowed: frozenset[str]
    later: Callable[[Path], None] = field(default=lambda path: None)

    @property
    def id(self) -> str:
        return f"{self.kind}/{self.name}"


def cases(seed: int, folder: Path) -> list[Case]:
    """All cases. folder: where the sound files are made that they are spoilt from."""
    sound = Sound(folder)
    found = [case for kind in KINDS for case in kind(np.random.default_rng(seed), sound)]
    assert len({case.id for case in found}) == len(found)
    return found


class Sound:
    """Sound files, by name, as bytes: what the broken ones are made from."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, bytes] = {}

    def __getitem__(self, name: str) -> bytes:
        if name not in self._known:
            stem, _, suffix = name.partition(".")
            if suffix in PICTURES:
                buffer = io.BytesIO()
                numbered_frames(1, 64, 48)[0].save(buffer, PICTURES[suffix])
                self._known[name] = buffer.getvalue()
            else:
                codec = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(suffix, "libx264")
                options = {"faststart": {"movflags": "faststart"}}.get(stem, {})
                path = self._folder / name
                frames = numbered_frames(20, 64, 48)
                encode_clip(path, frames, codec=codec, gop_size=6, container_options=options)
                self._known[name] = path.read_bytes()
        return self._known[name]


PICTURES = {"jpg": "JPEG", "png": "PNG", "gif": "GIF", "tiff": "TIFF", "webp": "WEBP", "bmp": "BMP"}
VIDEOS = ("clip.mp4", "faststart.mp4", "clip.mkv", "clip.webm", "clip.ts", "clip.avi", "clip.mov")
IMAGES = tuple(f"image.{suffix}" for suffix in PICTURES)


def case(kind: str, name: str, content, *allowed: str, later=None) -> Case:
    """A case from bytes, an image to be saved by its name, or a function that writes the file."""
    if isinstance(content, bytes):
        make = lambda path: path.write_bytes(content)  # noqa: E731
    elif isinstance(content, Image.Image):
        make = content.save
    else:
        make = content
    more = {"later": later} if later else {}
    return Case(kind=kind, name=name, make=make, allowed=frozenset(allowed), **more)


def clip(frames=None, **options) -> Callable[[Path], None]:
    frames = numbered_frames(12, 64, 48) if frames is None else frames
    return lambda path: encode_clip(path, frames, **options)


def truncated(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    for name in VIDEOS + IMAGES:
        content = sound[name]
        places = np.unique(np.linspace(1, len(content) - 1, 7).astype(int))
        for at in places:
            yield case("truncated", f"{at} of {name}", content[:at], OK, BROKEN, UNSUPPORTED)


def bit_flipped(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    for name in VIDEOS + IMAGES:
        for k in range(5):
            content = bytearray(sound[name])
            for at in rng.integers(0, len(content), size=1 + 4 * k):
                content[at] ^= 1 << int(rng.integers(8))
            allowed = (OK, BROKEN, UNSUPPORTED, LARGE)
            yield case("bit-flipped", f"{k} {name}", bytes(content), *allowed)


def zeroed(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    for name in (*VIDEOS, "image.jpg", "image.png", "image.gif"):
        content = bytearray(sound[name])
        start = int(rng.integers(len(content) // 3, len(content) // 2))
        content[start : start + len(content) // 4] = bytes(len(content) // 4)
        yield case("zero bytes", f"inside {name}", bytes(content), OK, BROKEN, UNSUPPORTED)
        yield case("zero bytes", f"all of {name}", bytes(len(content)), BROKEN)
        yield case("empty", name, b"", BROKEN)


def wrong_extension(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    yield case("wrong extension", "png.mp4", sound["image.png"], OK)
    yield case("wrong extension", "jpg.mp4", sound["image.jpg"], OK)
    yield case("wrong extension", "jpg.png", sound["image.jpg"], OK)
    yield case("wrong extension", "mp4.jpg", sound["clip.mp4"], BROKEN)
    yield case("wrong extension", "mkv.mp4", sound["clip.mkv"], OK)
    yield case("wrong extension", "avi.dat", sound["clip.avi"], OK)
    yield case("wrong extension", "png.dat", sound["image.png"], OK)
    yield case("wrong extension", "mp4", sound["clip.mp4"], OK)


def not_media(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    page = b"<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>\n" * 20
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    concat = b"ffconcat version 1.0\nfile '/etc/passwd'\n"
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    sdp = b"v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n(/etc/passwd) (r) file\n"
    texts = {"page": page, "list": playlist, "concat": concat, "svg": svg, "sdp": sdp, "eps": eps}
    for name, text in texts.items():
        for suffix in ("mp4", "jpg", "dat"):
            yield case("not media", f"{name}.{suffix}", text, BROKEN, UNSUPPORTED)
    noise = rng.bytes(5000)
    for suffix in ("mp4", "mkv", "ts", "jpg", "png"):
        yield case("noise", f"noise.{suffix}", noise, BROKEN, UNSUPPORTED)


def without_pictures(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    def tone(codec: str, layout: str = "mono", cover: bool = False) -> Callable[[Path], None]:
        def make(path: Path) -> None:
            with av.open(str(path), "w") as out:
                stream = out.add_stream(codec, rate=48000)
                picture = out.add_stream("mjpeg", rate=1) if cover else None
                if picture is not None:
                    picture.width, picture.height, picture.pix_fmt = 64, 48, "yuvj420p"
                    picture.disposition = av.stream.Disposition.attached_pic
                    image = numbered_frames(1, 64, 48)[0]
                    frame = av.VideoFrame.from_image(image).reformat(format="yuvj420p")
                    for packet in picture.encode(frame):
                        out.mux(packet)
                size = stream.codec_context.frame_size or 1024
                for k in range(20):
                    data = np.zeros((1, size), np.float32)
                    sound_ = av.AudioFrame.from_ndarray(data, format="fltp", layout=layout)
                    sound_.sample_rate, sound_.pts = 48000, k * size
                    for packet in stream.encode(sound_):
                        out.mux(packet)
                for packet in stream.encode(None):
                    out.mux(packet)

        return make

    yield case("audio only", "tone.mp4", tone("aac"), UNSUPPORTED)
    yield case("audio only", "tone.mkv", tone("aac"), UNSUPPORTED)
    yield case("audio only", "tone.ts", tone("aac"), UNSUPPORTED)
    yield case("audio only", "tone.webm", tone("libopus"), UNSUPPORTED)
    yield case("no video stream", "cover.mp4", tone("aac", cover=True), UNSUPPORTED)


def odd_counts(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    one = numbered_frames(1, 64, 48)
    for name in ("one.mp4", "one.mkv", "one.ts", "one.mov"):
        yield case("one frame", name, clip(one), OK)
    yield case("one frame", "one.webm", clip(one, codec="libvpx-vp9"), OK)
    yield case("one frame", "one.avi", clip(one, codec="mpeg4"), OK)
    mp4 = sound["clip.mp4"]
    for box, name in ((b"mdhd", "media"), (b"tkhd", "track"), (b"mvhd", "movie")):
        yield case("zero duration", f"{name}.mp4", without_duration(mp4, box), OK, BROKEN)
    stay = clip(one, last_frame_seconds=0.0)
    yield case("zero duration", "one.mp4", stay, OK, BROKEN)


def without_duration(content: bytes, box: bytes) -> bytes:
    """An MP4 file with the duration in a header box set to zero."""
    spoilt = bytearray(content)
    at = spoilt.index(box) + 4 + {b"mdhd": 16, b"tkhd": 20, b"mvhd": 16}[box]
    spoilt[at : at + 4] = bytes(4)
    return bytes(spoilt)


def absurd_rates(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    for fps in (Fraction(1_000_000), Fraction(90_000), Fraction(1, 1000), Fraction(1000, 1001)):
        for suffix in ("mp4", "mkv"):
            name = f"{float(fps):g}.{suffix}"
            allowed = (OK, BROKEN) if suffix == "mkv" and fps > 1000 else (OK,)
            yield case("absurd fps", name, clip(fps=fps), *allowed)
    times = [0.0, 1e-3, 2e4, 2e4 + 1e-3]
    for suffix in ("mp4", "mkv"):
        frames = numbered_frames(4, 64, 48)
        yield case("absurd fps", f"gap.{suffix}", clip(frames, pts_seconds=times), OK)


def chunk(kind: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png(width: int, height: int, content: bytes, *more: bytes) -> bytes:
    """A PNG file of 8-bit gray with these compressed pixels and further chunks."""
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
    """A TIFF of 64 x 48 whose one compressed strip unpacks to 100 MB."""
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


def timestamps(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    for start in (-0.5, -100.0):
        for suffix in ("mp4", "mkv", "ts", "mov"):
            make = clip(start_seconds=start)
            # MP4 puts what is before zero out of its edit list: nothing is left to show.
            allowed = (BROKEN,) if start < -10 and suffix in ("mp4", "mov") else (OK,)
            yield case("negative timestamps", f"{start:g}.{suffix}", make, *allowed)
    keep = {"avoid_negative_ts": "disabled"}
    for suffix in ("mp4", "ts"):
        make = clip(start_seconds=-0.5, container_options=keep)
        yield case("negative timestamps", f"kept.{suffix}", make, OK, BROKEN)
    wrap = 2**33 / 90_000
    for before in (0.5, 3.0):
        make = clip(numbered_frames(40, 64, 48), start_seconds=wrap - before, max_b_frames=2)
        yield case("wrapped timestamps", f"{before:g} before.ts", make, OK)
    make = clip(start_seconds=1e6)
    for suffix in ("mp4", "mkv"):
        yield case("wrapped timestamps", f"days.{suffix}", make, OK)


def edit_lists(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    frames = numbered_frames(30, 64, 48)
    for name in ("edits.mp4", "edits.mov"):
        yield case("edit lists", f"reordered {name}", clip(frames, max_b_frames=2), OK)
        yield case("edit lists", f"late {name}", clip(frames, start_seconds=2.0), OK)
        make = clip(frames, max_b_frames=2, container_options={"use_editlist": "0"})
        yield case("edit lists", f"none {name}", make, OK)
        for shift in (5, 12, 29, 60):

            def inside(path: Path, shift: int = shift, honest: bool = shift < 30) -> None:
                clip(frames, max_b_frames=2)(path)
                path.write_bytes(begun_later(path.read_bytes(), shift / 10, honest))

            allowed = (OK,) if shift < 30 else (OK, BROKEN)
            yield case("edit lists", f"from frame {shift} {name}", inside, *allowed)


def begun_later(content: bytes, seconds: float, honest: bool) -> bytes:
    """An MP4 file whose edit list begins later in its media, as a cut on a phone leaves it.

    honest: its durations are what is left then.
    """
    spoilt = bytearray(content)
    movie, track, media, edit = (
        spoilt.index(box) + 4 for box in (b"mvhd", b"tkhd", b"mdhd", b"elst")
    )
    movie_scale = struct.unpack_from(">I", spoilt, movie + 12)[0]
    media_scale = struct.unpack_from(">I", spoilt, media + 12)[0]
    begin = struct.unpack_from(">i", spoilt, edit + 12)[0]
    struct.pack_into(">i", spoilt, edit + 12, begin + round(seconds * media_scale))
    if honest:
        left = struct.unpack_from(">I", spoilt, movie + 16)[0] - round(seconds * movie_scale)
        for at in (movie + 16, track + 20, edit + 8):
            struct.pack_into(">I", spoilt, at, left)
    return bytes(spoilt)


def rewritten(path: Path, source: bytes, change: Callable[[int, av.Packet], None]) -> None:
    """Copy a clip's packets, each with its times changed."""
    with av.open(io.BytesIO(source)) as given, av.open(str(path), "w") as out:
        stream = given.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for n, packet in enumerate(given.demux(stream)):
            if packet.size:
                change(n, packet)
                packet.stream = copy
                out.mux(packet)


def duplicate_times(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    def pairs(n: int, packet: av.Packet) -> None:
        step = packet.duration
        packet.pts = packet.dts = n // 2 * 2 * step

    def all_equal(n: int, packet: av.Packet) -> None:
        packet.pts = packet.dts = 0

    def back(n: int, packet: av.Packet) -> None:
        step = packet.duration
        packet.dts = n * step
        packet.pts = (n if n < 12 else n - 6) * step + 10 * step

    changes = {"pairs": pairs, "all": all_equal, "back": back}
    for name, change in changes.items():
        for suffix in ("mkv", "avi"):

            def make(path: Path, change=change, suffix=suffix) -> None:
                try:
                    rewritten(path, sound[f"clip.{suffix}"], change)
                except (av.error.FFmpegError, ValueError):
                    path.write_bytes(sound[f"clip.{suffix}"])  # the muxer refuses to write it

            yield case("duplicate PTS", f"{name}.{suffix}", make, OK, BROKEN, UNSUPPORTED)


def changing_resolution(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    for first, second in (((64, 48), (96, 64)), ((96, 64), (64, 48)), ((64, 48), (48, 64))):

        def joined(path: Path, first=first, second=second) -> None:
            """Two MPEG-TS streams, one after the other, as a channel that switches."""
            parts = []
            for k, (width, height) in enumerate((first, second)):
                piece = path.with_name(f"{path.name}.{k}.ts")
                frames = numbered_frames(20, width, height)
                encode_clip(piece, frames, start_seconds=2.0 * k + 1, gop_size=5)
                parts.append(piece.read_bytes())
                piece.unlink()
            path.write_bytes(b"".join(parts))

        name = f"{first[0]}x{first[1]} to {second[0]}x{second[1]}"
        yield case("changing resolution", f"{name}.ts", joined, OK)
        yield case("changing resolution", f"{name}.mpg", joined, OK)


def formats(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    for order in ("tff", "bff"):
        options = {"x264-params": f"{order}=1:asm=sse4.2", "preset": "veryfast"}
        for suffix in ("mp4", "ts"):
            yield case("interlaced", f"{order}.{suffix}", clip(codec_options=options), OK)
    flags = {"flags": "+ilme+ildct"}
    yield case("interlaced", "mpeg2.mpg", clip(codec="mpeg2video", fps=25, codec_options=flags), OK)
    for codec, pix_fmt, suffix in (
        ("libx264", "yuv420p10le", "mp4"),
        ("libx265", "yuv420p10le", "mp4"),
        ("libx264", "yuv444p10le", "mkv"),
        ("prores_ks", "yuv422p10le", "mov"),
        ("ffv1", "gray16le", "mkv"),
        ("ffv1", "yuv420p16le", "mkv"),
    ):
        make = clip(codec=codec, pix_fmt=pix_fmt)
        yield case("10-bit", f"{codec} {pix_fmt}.{suffix}", make, OK)
    clear = [image.convert("RGBA") for image in numbered_frames(6, 64, 48)]
    for image in clear:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    for codec, pix_fmt, suffix in (
        ("libvpx-vp9", "yuva420p", "webm"),
        ("libvpx", "yuva420p", "webm"),
        ("ffv1", "bgra", "mkv"),
        ("qtrle", "argb", "mov"),
        ("prores_ks", "yuva444p10le", "mov"),
        ("png", "rgba", "mov"),
    ):
        options = {"auto-alt-ref": "0"} if codec == "libvpx" else {}
        make = clip(clear, codec=codec, pix_fmt=pix_fmt, codec_options=options)
        yield case("alpha video", f"{codec} {pix_fmt}.{suffix}", make, OK)
    for codec, pix_fmt, suffix in (("gif", "rgb8", "gif"), ("mjpeg", "yuvj420p", "avi")):
        yield case("rare codecs", f"{codec}.{suffix}", clip(codec=codec, pix_fmt=pix_fmt), OK)


def boxes(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    for name in ("clip.mp4", "clip.mov", "faststart.mp4"):
        spoilt = sound[name].replace(b"moov", b"mooq")
        yield case("missing moov", name, spoilt, BROKEN)
    for box in (b"stco", b"stsz", b"stts", b"stsc", b"stsd", b"avcC", b"trak", b"mdat", b"ctts"):
        spoilt = sound["clip.mp4"].replace(box, b"free")
        yield case("missing boxes", f"{box.decode()}.mp4", spoilt, OK, BROKEN, UNSUPPORTED)
    for box in (b"stco", b"stsz", b"stts", b"stsc"):
        spoilt = bytearray(sound["clip.mp4"])
        at = spoilt.index(box) + 8
        spoilt[at : at + 12] = b"\xff" * 12
        allowed = (OK, BROKEN, UNSUPPORTED, LARGE)
        yield case("missing boxes", f"absurd {box.decode()}.mp4", bytes(spoilt), *allowed)


def growing(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    for name in ("clip.mkv", "clip.ts", "faststart.mp4", "image.png"):
        content = sound[name]

        def grow(path: Path, content: bytes = content) -> None:
            path.write_bytes(content + content[len(content) // 2 :])

        yield case("growing file", name, content, CHANGED, later=grow)
        yield case("removed file", name, content, MISSING, later=Path.unlink)


def names(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    for name in (
        "new\nline.png",
        "quo'te\".png",
        "tab\t.mp4",
        "per%20cent%.png",
        "ques?tion#hash.png",
        "c:olon::chain.png",
        "  spaces  .mp4",
        "-i dash.mp4",
        "$(touch x).png",
        "\u202eleft.png",
        "émoji 🎬.mp4",
        "*star[0-9].png",
        "{brace}.png",
        "back\\slash.png",
        "x" * 240 + ".png",
    ):
        content = sound["clip.mp4" if name.endswith("mp4") else "image.png"]
        yield case("names", name, content, OK)


def not_files(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    def good(path: Path) -> None:
        (path.parent / "target.png").write_bytes(sound["image.png"])
        path.symlink_to("target.png")

    yield case("symlinks", "good.png", good, OK)
    yield case("symlinks", "dangling.png", lambda path: path.symlink_to("nowhere"), MISSING)
    yield case("symlinks", "loop.png", lambda path: path.symlink_to(path.name), MISSING)
    yield case("symlinks", "folder.mp4", lambda path: path.symlink_to("."), MISSING)
    yield case("symlinks", "endless.png", lambda path: path.symlink_to("/dev/zero"), MISSING)
    for suffix in ("mp4", "png", "dat"):
        yield case("FIFOs", f"pipe.{suffix}", os.mkfifo, MISSING)
    yield case("FIFOs", "folder.mp4", Path.mkdir, MISSING)


KINDS = (
    truncated,
    bit_flipped,
    zeroed,
    wrong_extension,
    not_media,
    without_pictures,
    odd_counts,
    absurd_rates,
    huge,
    bombs,
    depths,
    palettes,
    odd_sizes,
    timestamps,
    edit_lists,
    duplicate_times,
    changing_resolution,
    formats,
    boxes,
    growing,
    names,
    not_files,
)
