"""Videos that break decoders: rare streams, rates, times, edit lists, sizes and formats."""

import io
import struct
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tests.support.clips import numbered_frames, write_clip
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
    """Set the duration in a header box of an MP4 file to zero."""
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


def timestamps(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    for start in (-0.5, -100.0):
        for suffix in ("mp4", "mkv", "ts", "mov"):
            make = clip(start_seconds=start)
            # MP4's edit list leaves out frames before zero: here all of them.
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
    """Move the start in an MP4 file's edit list, as phones do to cut a video.

    honest: shorten the durations in the headers too.
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
    """Copy a clip, with the times of each packet changed."""
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
                    path.write_bytes(sound[f"clip.{suffix}"])  # the muxer refuses these times

            yield case("duplicate PTS", f"{name}.{suffix}", make, OK, BROKEN, UNSUPPORTED)


def changing_resolution(rng: np.random.Generator, sound: Sound) -> Iterator[Case]:
    for first, second in (((64, 48), (96, 64)), ((96, 64), (64, 48)), ((64, 48), (48, 64))):

        def joined(path: Path, first=first, second=second) -> None:
            """Write two MPEG-TS streams, one after the other, as in a TV recording."""
            parts = []
            for k, (width, height) in enumerate((first, second)):
                piece = path.with_name(f"{path.name}.{k}.ts")
                frames = numbered_frames(20, width, height)
                write_clip(piece, frames, start_seconds=2.0 * k + 1, gop_size=5)
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
