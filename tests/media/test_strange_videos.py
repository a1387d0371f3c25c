"""Sound videos with wrong headers, mirrored pictures, joined clocks and guessed times."""

import dataclasses
import io
import json
import re
import struct
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from jobs.demo.encode import mp4_boxes
from pipeline.media.decode import decode_unit
from pipeline.storage.storage import Storage
from schemas.errors import ErrorType, UnitError
from schemas.job.sampling import SamplingSpec
from tests.support.clips import (
    ffmpeg_frames,
    needs_ffprobe,
    numbered_frames,
    probe,
    video_unit,
    write_clip,
)


def ffmpeg(*arguments: str) -> None:
    subprocess.run(["ffmpeg", "-v", "error", "-y", *arguments], check=True)


def best_times(path: Path) -> list[float]:
    """Times of all frames in presentation order, as ffprobe finds them."""
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-of", "json"]
    command += ["-show_entries", "frame=best_effort_timestamp_time", str(path)]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    times = [frame.get("best_effort_timestamp_time") for frame in json.loads(output)["frames"]]
    return [float(time) for time in times if time not in (None, "N/A")]


def decode(path: Path, fps: float = 2.0, **span: float):
    spec = SamplingSpec(fps=fps, max_frames=768)
    return decode_unit(video_unit(path, spec, **span), Storage())


@pytest.mark.parametrize(
    ("name", "codec", "tag", "unknown"),
    [
        ("a.avi", "mpeg4", b"FMP4", b"\x1b[2J"),
        ("b.avi", "mpeg4", b"FMP4", b"ZZZZ"),
        ("a.mkv", "libvpx", b"V_VP8", b"V_\x1b[8"),
        ("b.mkv", "mpeg4", b"V_MPEG4/ISO/ASP", b"V_UNKNOWN/XYZ/1"),
    ],
)
def test_a_codec_without_a_decoder_is_unsupported(tmp_path, name, codec, tag, unknown):
    path = tmp_path / name
    ffmpeg("-f", "lavfi", "-i", "testsrc=d=1:s=64x64:r=5", "-c:v", codec, str(path))
    content = path.read_bytes()
    assert tag in content
    path.write_bytes(content.replace(tag, unknown))
    with pytest.raises(UnitError, match="FFmpeg has no decoder") as error:
        probe(path)
    assert error.value.error_type == ErrorType.MEDIA_UNSUPPORTED
    assert str(error.value).isprintable()


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    """Ten seconds of numbered pictures, 10 a second, with B-frames."""
    path = tmp_path_factory.mktemp("strange") / "plain.mp4"
    write_clip(path, numbered_frames(100), fps=10, max_b_frames=2)
    return path


# A header's figure is no proof of loss.


def test_a_stale_tag_of_matroska_is_no_proof_of_loss(plain: Path, tmp_path: Path):
    path = tmp_path / "stale.mkv"
    tag = "DURATION-eng=00:00:30.000000000"
    ffmpeg("-i", str(plain), "-t", "4", "-c", "copy", "-metadata:s:v:0", tag, str(path))
    found = probe(path)
    assert found.duration_seconds == pytest.approx(max(best_times(path)) + 0.1, abs=0.002)
    assert len(decode(path).pixels) == pytest.approx(2 * found.duration_seconds, abs=2)


def test_both_tags_of_matroska_may_be_stale(plain: Path, tmp_path: Path):
    path = tmp_path / "stale.mkv"
    ffmpeg("-i", str(plain), "-t", "4", "-c", "copy", str(path))
    tag = b"00:00:04."
    data = path.read_bytes()
    assert data.count(tag) == 1
    path.write_bytes(data.replace(tag, b"00:00:30."))
    assert probe(path).duration_seconds == pytest.approx(max(best_times(path)) + 0.1, abs=0.002)


@pytest.mark.parametrize("container", ["mkv", "ts", "mp4", "avi"])
@pytest.mark.parametrize("fps", ["1", "1/2", "1/5"])
def test_sound_may_be_longer_than_slow_pictures(tmp_path: Path, container: str, fps: str):
    path = tmp_path / f"slow.{container}"
    source = f"testsrc=s=160x120:r={fps}:d=10"
    ffmpeg("-f", "lavfi", "-i", source, "-f", "lavfi", "-i", "sine=d=13.5", "-c:v", "libx264",
           "-bf", "0", "-c:a", "mp2", str(path))  # fmt: skip
    times = best_times(path)
    found = probe(path)
    assert found.begin_seconds == pytest.approx(times[0], abs=0.001)
    step = times[1] - times[0]
    assert found.duration_seconds == pytest.approx(times[-1] + step - times[0], abs=0.03)
    shown = decode(path)
    assert all(min(abs(pts - time) for time in times) < 0.001 for pts in shown.pts_seconds)
    assert shown.notes == ()


@pytest.mark.parametrize("container", ["mkv", "ts", "mp4"])
@pytest.mark.parametrize("keeps_tag", [True, False])
def test_a_recording_may_begin_late_in_a_stream(
    plain: Path, tmp_path: Path, container: str, keeps_tag: bool
):
    path = tmp_path / f"late.{container}"
    ffmpeg("-i", str(plain), "-c", "copy", "-output_ts_offset", "3600", str(path))
    if container == "mkv" and not keeps_tag:
        path.write_bytes(path.read_bytes().replace(b"DURATION", b"LONGNESS"))
    times = best_times(path)
    found = probe(path)
    assert found.begin_seconds == pytest.approx(times[0], abs=0.001)
    assert found.duration_seconds == pytest.approx(10.0, abs=0.15)
    assert decode(path).pts_seconds[-1] > times[0] + 9


def test_a_last_picture_is_held_and_noted(plain: Path, tmp_path: Path):
    """All lengths of the header are too long, and no byte is missing."""
    path = tmp_path / "held.mkv"
    ffmpeg("-i", str(plain), "-t", "4", "-c", "copy", str(path))
    data = path.read_bytes().replace(b"00:00:04.", b"00:00:09.")
    (at,) = (found.end() for found in re.finditer(b"\x44\x89\x88", data))
    length = struct.unpack(">d", data[at : at + 8])[0] + 5000
    path.write_bytes(data[:at] + struct.pack(">d", length) + data[at + 8 :])
    found = decode(path)
    (note,) = found.notes
    assert re.match(r"the last frame ends at 4\..* it was held up to 9\.", note)
    assert found.pts_seconds[-1] == pytest.approx(max(best_times(path)), abs=0.001)


@pytest.mark.parametrize("name", ["cut.mkv", "cut.mp4", "cut.avi", "parts.mp4", "cut.wmv"])
def test_missing_bytes_are_proof_of_loss(plain: Path, tmp_path: Path, name: str):
    path = tmp_path / name
    options = {"cut.mp4": ["-movflags", "faststart"], "parts.mp4": ["-movflags", "frag_keyframe"]}
    codec = {"cut.wmv": ["-c:v", "wmv2"], "parts.mp4": ["-c:v", "libx264", "-g", "10"]}
    codec["cut.avi"] = ["-c:v", "mpeg4"]
    ffmpeg("-i", str(plain), *codec.get(name, ["-c", "copy"]), *options.get(name, []), str(path))
    unit = video_unit(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    media = dataclasses.replace(unit.media, content_version=None)
    with pytest.raises(
        UnitError, match="the file is cut short: [0-9,]+ bytes are missing"
    ) as error:
        decode_unit(dataclasses.replace(unit, media=media), Storage())
    assert error.value.error_type == ErrorType.MEDIA_UNREADABLE


# Orientation.

MATRICES = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}
"""Display matrices a, b, c, d of the eight EXIF orientations."""


def write_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    data = bytearray(path.read_bytes())
    (trak,) = mp4_boxes(data, (b"moov", b"trak"))
    _, end = next(mp4_boxes(data, (b"tkhd",), *trak))
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", data, end - 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@pytest.mark.parametrize("orientation", MATRICES)
def test_videos_have_eight_orientations_as_images_have(
    plain: Path, tmp_path: Path, orientation: int
):
    """As Pillow shows an image of the same pixels with the EXIF orientation."""
    path = tmp_path / "turned.mp4"
    path.write_bytes(plain.read_bytes())
    write_matrix(path, MATRICES[orientation])
    with av.open(str(plain)) as container:
        coded = next(container.decode(video=0)).to_image()
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    coded.save(file, "png", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(file)).convert("RGB")
    found = probe(path)
    assert (found.width, found.height) == expected.size
    unit = video_unit(path)
    pixels = decode_unit(unit, Storage()).pixels[0]
    expected = expected.resize(pixels.shape[1::-1], Image.Resampling.BICUBIC)
    assert np.abs(pixels.astype(int) - np.asarray(expected)).mean() < 2
    assert found.is_mirrored == (orientation in (2, 4, 5, 7))
    assert found.rotation == {3: 180, 4: 180, 5: 90, 6: 90, 7: 270, 8: 270}.get(orientation, 0)


# Clocks.


@pytest.fixture(scope="module")
def parts(plain: Path) -> dict[str, bytes]:
    found = {}
    for name, offset, options in (
        ("ts", "0", ["-c", "copy"]),
        ("late ts", "500", ["-c", "copy"]),
        ("vob", "0", ["-c:v", "mpeg2video", "-r", "25"]),
    ):
        path = plain.parent / f"{name}.{name[-2:] if 'ts' in name else name}"
        ffmpeg("-i", str(plain), *options, "-output_ts_offset", offset, str(path))
        found[name] = path.read_bytes()
    return found


@pytest.mark.parametrize(
    "names",
    [("ts", "ts"), ("late ts", "ts"), ("vob", "vob"), ("ts", "ts", "ts"), ("ts", "late ts", "ts")],
)
def test_a_clock_that_starts_anew_is_not_supported(
    parts: dict[str, bytes], tmp_path: Path, names: tuple[str, ...]
):
    path = tmp_path / ("joined.vob" if "vob" in names else "joined.ts")
    path.write_bytes(b"".join(parts[name] for name in names))
    with pytest.raises(UnitError, match="the video's clock starts again") as error:
        decode(path)
    assert error.value.error_type == ErrorType.MEDIA_UNSUPPORTED
    one = tmp_path / "one.mkv"
    command = re.search("`ffmpeg (.*)`", str(error.value))[1]
    ffmpeg(*(str({"FILE": path, "NEW.mkv": one}.get(word, word)) for word in command.split()))
    assert probe(one).duration_seconds == pytest.approx(10.0 * len(names), abs=1.0)


# Times that containers do not have.


def frames_shown(pixels: np.ndarray, path: Path) -> list[int]:
    """The number of ffmpeg's frame of a 160 x 120 clip that each of our frames is most like."""
    size = pixels.shape[2], pixels.shape[1]
    frames = [Image.fromarray(frame) for frame in ffmpeg_frames(path, 160, 120)]
    theirs = np.stack([np.asarray(f.resize(size, Image.Resampling.BICUBIC)) for f in frames])
    return [
        int(np.abs(theirs - frame.astype(int)).mean(axis=(1, 2, 3)).argmin()) for frame in pixels
    ]


@needs_ffprobe
@pytest.mark.parametrize("codec", ["mpeg4", "libx264", "msmpeg4v3"])
@pytest.mark.parametrize("start", [None, 6.0])
def test_frames_of_avi_have_the_times_of_ffprobe(
    plain: Path, tmp_path: Path, codec: str, start: float | None
):
    """Each picture has its own time, in order, also after a seek."""
    path = tmp_path / "b.avi"
    b_frames = [] if codec == "msmpeg4v3" else ["-bf", "2"]
    ffmpeg("-i", str(plain), "-c:v", codec, "-q:v", "2", *b_frames, "-g", "25", str(path))
    times = best_times(path)  # of the last pictures it has none
    found = decode(path, fps=10, **({} if start is None else {"start": start, "end": start + 2}))
    shown = frames_shown(found.pixels, path)
    timed = [(k, pts) for k, pts in zip(shown, found.pts_seconds, strict=True) if k < len(times)]
    assert len(timed) >= len(shown) - 2
    assert [pts for _, pts in timed] == pytest.approx([times[k] for k, _ in timed], abs=0.001)
    assert len(set(shown)) == len(shown)


def test_theora_may_repeat_frames(tmp_path: Path):
    """A packet without bytes repeats the last frame: it is on display until the next one."""
    path = tmp_path / "repeats.ogv"
    pictures = [picture for picture in numbered_frames(10) for _ in range(5)]
    write_clip(tmp_path / "still.mp4", pictures, fps=25)
    ffmpeg("-i", str(tmp_path / "still.mp4"), "-c:v", "libtheora", "-q:v", "8", str(path))
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.dts is not None]
    assert any(p.size == 0 for p in packets)
    new = [float(p.pts * p.time_base) for p in packets if p.size]
    unit = video_unit(path, SamplingSpec(fps=10))
    expected = [max(t for t in new if t <= time + 1e-6) for time in unit.sampling.times_seconds()]
    assert decode_unit(unit, Storage()).pts_seconds == pytest.approx(expected, abs=0.001)


def test_a_live_recording_without_a_length_is_decoded_from_its_start(plain: Path, tmp_path: Path):
    for name, kind in (("live.wmv", "asf"), ("live.mkv", "matroska"), ("live.ts", "mpegts")):
        path = tmp_path / name
        codec = ["-c:v", "wmv2", "-g", "10"] if kind == "asf" else ["-c", "copy"]
        with path.open("wb") as file:
            command = ["ffmpeg", "-v", "error", "-i", str(plain), *codec, "-f", kind, "-"]
            subprocess.run(command, check=True, stdout=file)  # a pipe: nothing is written later
        times = best_times(path)
        assert probe(path).duration_seconds == pytest.approx(10.0, abs=0.2)
        for start in (times[0], times[0] + 7.0):
            found = decode(path, start=start, end=start + 2.0)
            assert found.pts_seconds[0] == pytest.approx(start, abs=0.11)


# Colours.


def encode_as(plain: Path, path: Path, parameters: str, pixel_format: str = "yuv420p") -> None:
    ffmpeg("-i", str(plain), "-frames:v", "4", "-c:v", "libx264", "-pix_fmt", pixel_format,
           "-x264-params", parameters, str(path))  # fmt: skip


@pytest.mark.parametrize("transfer", ["smpte2084", "arib-std-b67"])
def test_hdr_is_shown_as_ffmpeg_shows_it_without_a_filter(
    plain: Path, tmp_path: Path, transfer: str
):
    path = tmp_path / "hdr.mp4"
    colours = f"colormatrix=bt2020nc:colorprim=bt2020:transfer={transfer}"
    encode_as(plain, path, colours, "yuv420p10le")
    found = decode(path, fps=10).pixels
    height, width = found.shape[1:3]
    scaled = tmp_path / "scaled.mkv"
    ffmpeg("-i", str(path), "-vf", f"scale={width}:{height}:flags=bicubic", "-c:v", "ffv1",
           "-pix_fmt", "gbrp", str(scaled))  # fmt: skip
    expected = ffmpeg_frames(scaled, width, height)
    assert np.abs(found.astype(int) - expected[: len(found)]).mean() < 1.5


@pytest.mark.parametrize("matrix", ["bt2020c", "chroma-derived-nc", "chroma-derived-c"])
def test_a_close_matrix_is_used_and_noted(plain: Path, tmp_path: Path, matrix: str):
    path, close = tmp_path / "own.mp4", tmp_path / "close.mp4"
    encode_as(plain, path, f"colormatrix={matrix}")
    encode_as(plain, close, f"colormatrix={'bt2020nc' if matrix == 'bt2020c' else 'bt709'}")
    (note,) = probe(path).notes
    assert "were converted as BT." in note
    assert np.array_equal(decode(path).pixels, decode(close).pixels)


@pytest.mark.parametrize("matrix", ["YCgCo", "ICtCp", "smpte2085"])
def test_a_matrix_that_cannot_be_converted_is_named(plain: Path, tmp_path: Path, matrix: str):
    path = tmp_path / "own.mp4"
    encode_as(plain, path, f"colormatrix={matrix}")
    with pytest.raises(UnitError, match="the video's colours are stored as") as error:
        probe(path)
    assert error.value.error_type == ErrorType.MEDIA_UNSUPPORTED
