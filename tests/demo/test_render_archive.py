"""The archive is what the other tests stand on, so ffprobe, which did not write it, looks at it."""

import json
import os
import re
import shutil
import subprocess
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from jobs.demo.archive import render_archive
from jobs.demo.scene import COLORS, Label, Scene, Shape, draw
from pipeline.images.read_image import to_rgb
from tests.support.clips import write_clip

needs_ffprobe = pytest.mark.skipif(
    shutil.which("ffprobe") is None, reason="ffprobe, the oracle of this test, is not on PATH"
)


def probe(path: Path, *, entries: str = "stream:format") -> dict[str, Any]:
    command = ["ffprobe", "-v", "error", "-of", "json", "-count_frames", "-show_entries", entries]
    done = subprocess.run([*command, str(path)], capture_output=True, check=True, timeout=300)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def probe_video(path: Path) -> dict[str, Any]:
    streams = probe(path)["streams"]
    (video,) = (stream for stream in streams if stream["codec_type"] == "video")
    return video


def shown_pts_seconds(path: Path) -> list[float]:
    frames = probe(path, entries="frame=media_type,pts_time")["frames"]
    return [float(frame["pts_time"]) for frame in frames if frame["media_type"] == "video"]


def gold_of(archive: Path) -> dict[str, dict[str, Any]]:
    lines = (archive / "gold.jsonl").read_text(encoding="utf-8").splitlines()
    return {answer["uri"]: answer for answer in map(json.loads, lines)}


def centre(box: dict[str, float]) -> tuple[slice, slice]:
    """Rows and columns of some pixels around the middle of a box; inside every kind of shape."""
    x, y = round((box["x1"] + box["x2"]) / 2), round((box["y1"] + box["y2"]) / 2)
    return slice(y - 2, y + 3), slice(x - 2, x + 3)


def colours_said(caption: str) -> list[str]:
    """Of the shapes, in the order of the caption."""
    return [word for word in re.findall(r"\w+", caption) if word in COLORS]


def colour_seen(picture: np.ndarray, box: dict[str, float]) -> str:
    """The name of the colour that is nearest to the one in the middle of the box."""
    seen = np.median(picture[centre(box)].reshape(-1, 3), axis=0)
    return min(COLORS, key=lambda name: float(np.abs(seen - COLORS[name]).sum()))


def colour_frames(num_frames: int, *, height: int = 64, width: int = 96) -> list[np.ndarray]:
    """Plain frames, each 20 levels brighter than the one before; uint8 [64, 96, 3]."""
    return [np.full((height, width, 3), 20 + 20 * n, np.uint8) for n in range(num_frames)]


def test_archive_has_enough_of_each_kind(archive: Path) -> None:
    assert len(list((archive / "images").iterdir())) >= 24
    assert len(list((archive / "clips").iterdir())) >= 16
    kinds = Counter(path.suffix for path in archive.glob("*/*"))
    image_kinds = {".jpg", ".png", ".webp", ".gif", ".tiff", ".avif", ".heic"}
    assert set(kinds) == image_kinds | {".mp4", ".mkv", ".webm", ".mov", ".ts"}


@needs_ffprobe
def test_every_codec_is_in_every_container_it_usually_lives_in(archive: Path) -> None:
    damaged = {"truncated.mp4", "unreadable.mp4"}
    clips = [path for path in (archive / "clips").iterdir() if path.name not in damaged]
    found = Counter((path.suffix, probe_video(path)["codec_name"]) for path in clips)
    assert found == {
        (".mp4", "h264"): 8,
        (".mkv", "h264"): 2,
        (".mov", "h264"): 2,
        (".ts", "h264"): 1,
        (".mp4", "hevc"): 1,
        (".mkv", "hevc"): 1,
        (".mp4", "av1"): 1,
        (".mkv", "av1"): 1,
        (".webm", "vp9"): 2,
    }


@needs_ffprobe
@pytest.mark.parametrize(
    ("name", "start_seconds"), [("starts-late.mp4", 1.5), ("broadcast.ts", 600.0)]
)
def test_first_pts_is_not_zero(archive: Path, name: str, start_seconds: float) -> None:
    pts_seconds = shown_pts_seconds(archive / "clips" / name)
    assert pts_seconds[0] == start_seconds
    assert min(pts_seconds) == start_seconds


@needs_ffprobe
@pytest.mark.parametrize("name", ["variable.mp4", "variable.mkv"])
def test_variable_frame_rate_holds_one_picture_across_ten_seconds(archive: Path, name: str) -> None:
    pts_seconds = shown_pts_seconds(archive / "clips" / name)
    gaps = [round(later - earlier, 3) for earlier, later in pairwise(pts_seconds)]
    assert len(set(gaps)) >= 5
    assert max(gaps) > 3.0
    before = pts_seconds[gaps.index(max(gaps))]
    assert before < 10.0 < before + max(gaps)


@needs_ffprobe
def test_variable_matroska_header_claims_a_constant_rate(archive: Path) -> None:
    video = probe_video(archive / "clips" / "variable.mkv")
    assert video["avg_frame_rate"] == video["r_frame_rate"] == "12/1"
    assert int(video["nb_read_frames"]) < 6.5 * 12


@needs_ffprobe
def test_ntsc_rate_is_exact(archive: Path) -> None:
    video = probe_video(archive / "clips" / "ntsc.mp4")
    assert (video["avg_frame_rate"], video["nb_read_frames"]) == ("30000/1001", "120")
    assert (video["width"], video["height"]) == (640, 360)


@needs_ffprobe
def test_b_frames_are_there(archive: Path) -> None:
    for name in ("h264-bframes.mp4", "h264-long-gop.mkv", "h265.mp4"):
        frames = probe(archive / "clips" / name, entries="frame=pict_type")["frames"]
        assert "B" in {frame["pict_type"] for frame in frames}, name


@needs_ffprobe
def test_audio_outlasts_the_pictures(archive: Path) -> None:
    streams = probe(archive / "clips" / "long-audio.mp4")["streams"]
    seconds = {stream["codec_type"]: float(stream["duration"]) for stream in streams}
    assert seconds["video"] == 4.0
    assert seconds["audio"] == pytest.approx(7.0, abs=0.05)


@needs_ffprobe
def test_one_frame(archive: Path) -> None:
    assert probe_video(archive / "clips" / "one-frame.mp4")["nb_read_frames"] == "1"


def test_truncated_clip_opens_and_ends_early(archive: Path) -> None:
    with av.open(str(archive / "clips" / "truncated.mp4")) as container:
        assert container.streams.video[0].frames == 96
        frames = container.decode(video=0)
        for _ in range(20):
            next(frames)
        with pytest.raises(av.error.InvalidDataError):
            list(frames)


def test_unreadable_clip_does_not_open(archive: Path) -> None:
    with pytest.raises(av.error.InvalidDataError):
        av.open(str(archive / "clips" / "unreadable.mp4"))


def test_transparent_clip_keeps_its_alpha(archive: Path) -> None:
    # FFmpeg's own VP9 decoder, the default, leaves the alpha layer out; libvpx's shows it.
    decoder = av.CodecContext.create("libvpx-vp9", "r")
    with av.open(str(archive / "clips" / "alpha.webm")) as container:
        assert container.streams.video[0].metadata["alpha_mode"] == "1"
        packets = [packet for packet in container.demux(video=0) if packet.size]
    first, *_ = (frame for packet in packets for frame in decoder.decode(packet))
    assert first.format.name == "yuva420p"
    (star,) = gold_of(archive)["clips/alpha.webm"]["objects"]
    assert star["pts_seconds"] == 0.0
    alpha = first.to_ndarray(format="rgba")[..., 3]
    assert (alpha == 0).mean() > 0.5
    assert alpha[centre(star["box"])].min() == 255


@pytest.mark.skipif(not hasattr(os, "SCHED_OTHER"), reason="schedulers are Linux's")
def test_av1_leaves_no_priority_that_others_would_starve_under(tmp_path: Path) -> None:
    before = os.sched_getscheduler(0)
    write_clip(tmp_path / "a.mp4", [np.zeros((64, 64, 3), np.uint8)] * 4, codec="libsvtav1")
    threads = Path("/proc/self/task").glob("*")
    assert {os.sched_getscheduler(int(thread.name)) for thread in threads} == {before}


@needs_ffprobe
@pytest.mark.parametrize(("rotation", "reported"), [(90, {-90}), (180, {180, -180}), (270, {90})])
def test_rotation_is_what_ffprobe_reports(
    tmp_path: Path, rotation: int, reported: set[int]
) -> None:
    path = tmp_path / "turned.mp4"
    write_clip(path, colour_frames(3), rotation=rotation, audio_seconds=0.2)
    (side_data,) = probe_video(path)["side_data_list"]
    assert side_data["rotation"] in reported


@needs_ffprobe
def test_rotated_clips_of_the_archive(archive: Path) -> None:
    found = {
        name: probe_video(archive / "clips" / name)["side_data_list"][0]["rotation"]
        for name in ("rotated-90.mp4", "rotated-180.mov")
    }
    assert found == {"rotated-90.mp4": -90, "rotated-180.mov": -180}


def test_rotation_outside_mp4_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot rotate clip\.mkv: only MP4 and MOV"):
        write_clip(tmp_path / "clip.mkv", colour_frames(1), rotation=90)


@needs_ffprobe
@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("clip.mp4", "libx264"),
        ("clip.mkv", "libx265"),
        ("clip.webm", "libvpx-vp9"),
        ("clip.mp4", "libsvtav1"),
        ("clip.ts", "libx264"),
    ],
)
def test_given_times_are_the_times_in_the_file(tmp_path: Path, name: str, codec: str) -> None:
    times = [0.0, 0.04, 0.5, 0.54, 3.0]
    write_clip(tmp_path / name, colour_frames(5), codec=codec, pts_seconds=times, start_seconds=2.0)
    assert shown_pts_seconds(tmp_path / name) == [2.0, 2.04, 2.5, 2.54, 5.0]


@needs_ffprobe
def test_last_frame_stays_as_long_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(path, colour_frames(5), fps=Fraction(30000, 1001), last_frame_seconds=2.002)
    assert float(probe_video(path)["duration"]) == pytest.approx(4 * 1001 / 30000 + 2.002)


def test_frames_come_back_in_order_and_colour(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mkv", colour_frames(10), max_b_frames=2, gop_size=250)
    with av.open(str(tmp_path / "clip.mkv")) as container:
        means = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]
    assert means == pytest.approx([20 + 20 * n for n in range(10)], abs=3)


def test_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.mkv", "two.mkv"):
        write_clip(tmp_path / name, colour_frames(10), max_b_frames=2)
    assert (tmp_path / "one.mkv").read_bytes() == (tmp_path / "two.mkv").read_bytes()


def test_images_are_what_their_names_say(archive: Path) -> None:
    def opened(name: str) -> tuple[str | None, str, tuple[int, int]]:
        with Image.open(archive / "images" / name) as image:
            return image.format, image.mode, image.size

    assert opened("gray.jpg") == ("JPEG", "L", (480, 360))
    assert opened("cmyk.jpg") == ("JPEG", "CMYK", (480, 360))
    assert opened("alpha.png") == ("PNG", "RGBA", (480, 360))
    assert opened("palette-transparent.png") == ("PNG", "P", (480, 360))
    assert opened("gray16.png") == ("PNG", "I;16", (480, 360))
    assert opened("alpha.webp") == ("WEBP", "RGBA", (480, 360))
    assert opened("page.tiff") == ("TIFF", "RGB", (480, 360))
    assert opened("scene.avif") == ("AVIF", "RGB", (480, 360))
    assert opened("tiny.png") == ("PNG", "RGB", (20, 14))
    assert opened("wide.png") == ("PNG", "RGB", (1200, 40))
    assert opened("large.jpg") == ("JPEG", "RGB", (1600, 1200))
    with Image.open(archive / "images" / "progressive.jpg") as image:
        assert image.info["progressive"]
    with Image.open(archive / "images" / "animated.gif") as image:
        assert image.n_frames == 10


def test_heic_opens(archive: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="pillow_heif writes the HEIC image")
    image = pillow_heif.open_heif(archive / "images" / "scene.heic")
    assert (image.mode, image.size) == ("RGB", (480, 360))


def test_exif_orientation_turns_the_image_upright(archive: Path) -> None:
    with Image.open(archive / "images" / "orientation-6.jpg") as image:
        assert image.size == (480, 360)
        assert image.getexif()[0x0112] == 6
        assert ImageOps.exif_transpose(image).size == (360, 480)


def test_transparent_images_show_shapes_on_nothing(archive: Path) -> None:
    for name in ("alpha.png", "alpha.webp", "palette-transparent.png"):
        with Image.open(archive / "images" / name) as image:
            alpha = np.asarray(image.convert("RGBA"))[..., 3]
        assert (alpha == 0).mean() > 0.5, name
        assert (alpha == 255).mean() > 0.03, name


def test_truncated_image_opens_but_does_not_load(archive: Path) -> None:
    with (
        Image.open(archive / "images" / "truncated.jpg") as image,
        pytest.raises(OSError, match="truncated"),
    ):
        image.load()


def test_same_seed_gives_the_same_files(archive: Path, tmp_path: Path) -> None:
    render_archive(tmp_path)
    names = {path.relative_to(archive) for path in archive.glob("*/*")} | {Path("gold.jsonl")}
    for name in names:
        assert (tmp_path / name).read_bytes() == (archive / name).read_bytes(), name


def test_gold_is_of_what_can_be_seen(archive: Path) -> None:
    names = {path.relative_to(archive).as_posix() for path in archive.glob("*/*")}
    assert names - set(gold_of(archive)) == {
        "images/gray.jpg",
        "images/gray16.png",
        "images/tiny.png",
        "images/truncated.jpg",
        "images/wide.png",
        "clips/one-frame.mp4",
        "clips/h264-bframes.mp4",
        "clips/h264-long-gop.mkv",
        "clips/variable.mp4",
        "clips/variable.mkv",
        "clips/truncated.mp4",
        "clips/unreadable.mp4",
    }
    assert set(gold_of(archive)) < names


def test_images_show_what_their_gold_says(archive: Path) -> None:
    for uri, answer in gold_of(archive).items():
        if uri.startswith("images/"):
            with Image.open(archive / uri) as image:
                shown = np.asarray(to_rgb(ImageOps.exif_transpose(image)))
            seen = [colour_seen(shown, found["box"]) for found in answer["objects"]]
            assert seen == colours_said(answer["caption"]), uri
            assert answer["events"] is None


def test_clips_show_what_their_gold_says(archive: Path) -> None:
    for uri, answer in gold_of(archive).items():
        if not uri.startswith("clips/"):
            continue
        with av.open(str(archive / uri)) as container:
            frames = list(container.decode(video=0))
        last = 0.0
        for found, event, colour in zip(
            answer["objects"], answer["events"], colours_said(answer["caption"]), strict=True
        ):
            # Where a rate has no frame on the half second, the first one after it.
            frame = next(frame for frame in frames if frame.time > found["pts_seconds"] - 0.002)
            shown = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
            assert frame.time - found["pts_seconds"] < 0.04, uri
            assert colour_seen(shown, found["box"]) == colour, uri
            assert found["pts_seconds"] == event["start_seconds"] >= last
            assert event["end_seconds"] <= round(frames[-1].time + 0.5, 1), uri
            last = event["start_seconds"]


def test_shape_moves_in_a_straight_line_while_it_is_shown() -> None:
    shape = Shape(
        kind="square",
        color="red",
        size=20,
        start=(20, 30),
        end=(60, 30),
        appears_seconds=1.0,
        vanishes_seconds=3.0,
    )
    assert shape.box(0.9) is None
    assert shape.box(1.0) == (10, 20, 30, 40)
    assert shape.box(2.0) == (30, 20, 50, 40)
    assert shape.box(3.0) is None


@pytest.mark.parametrize("kind", ["circle", "square", "triangle", "star"])
def test_box_is_tight_around_what_is_drawn(kind: str) -> None:
    shape = Shape(kind=kind, color="red", size=60, start=(100, 70), end=(100, 70))
    scene = Scene(width=200, height=140, background=None, shapes=(shape,))
    drawn = draw(scene, 0.0).getchannel("A").getbbox()
    assert drawn == pytest.approx(shape.box(0.0), abs=1.5)


def test_label_box_holds_the_ink() -> None:
    label = Label(text="EXIT 24", position=(30, 40), size=24)
    scene = Scene(width=200, height=100, background=None, labels=(label,))
    assert draw(scene, 0.0).getchannel("A").getbbox() == pytest.approx(label.box(0.0), abs=1.5)
