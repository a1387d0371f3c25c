"""Subtitles of whole videos, read by ffprobe and PyAV: where they are, which cues, what is said."""

import json
import os
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path, PureWindowsPath

import av
import pytest
import srt
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from jobs.cli.main import main
from jobs.export.names import mirrored_names
from jobs.export.subtitles import whole_track
from pipeline.output.rows import annotation_row
from pipeline.storage.protocols import uri_of_path
from schemas.tables.unit import AnsweredUnit
from tests.support.clips import needs_ffprobe
from tests.support.units import KEY, QUESTIONS, clip_unit, failed_unit, image_unit, write_table
from tests.support.units import draw_image as draw


def window(uri: str, start: float, end: float, begin: float = 0.0, **texts: str) -> AnsweredUnit:
    """A window of the video at ``uri``, whose first frame has the PTS ``begin``."""
    found = clip_unit(uri, start, end, **texts)
    return replace(found, uri=uri, media=replace(found.media, begin_seconds=begin))


def events(*found: tuple[float, float, str]) -> str:
    listed = [{"start": f"{a:.2f}", "end": f"{b:.2f}", "caption": c} for a, b, c in found]
    return json.dumps(listed)


def export(tmp_path: Path, form: str, *units: AnsweredUnit) -> tuple[Path, str]:
    """Export the units; returns the folder and what was printed."""
    output = write_table(tmp_path / "out", *units)
    folder = tmp_path / form
    result = CliRunner().invoke(
        main, ["export", str(output), form, "-o", str(folder)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return folder, result.output


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def ffprobe_cues(path: Path) -> list[tuple[float, float]]:
    """Start and end of each cue, as ffprobe reads them."""
    command = ["ffprobe", "-v", "error", "-of", "json", "-show_packets", str(path)]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    return [
        (float(p["pts_time"]), round(float(p["pts_time"]) + float(p["duration_time"]), 3))
        for p in json.loads(output)["packets"]
    ]


def pyav_cues(path: Path) -> list[tuple[float, float]]:
    with av.open(str(path)) as opened:
        packets = [p for p in opened.demux(opened.streams.subtitles[0]) if p.pts is not None]
        return [
            (float(p.pts * p.time_base), round(float((p.pts + p.duration) * p.time_base), 3))
            for p in packets
        ]


@needs_ffprobe
@pytest.mark.parametrize(("form", "extension"), [("srt", "srt"), ("webvtt", "vtt")])
@pytest.mark.parametrize(
    ("name", "units", "expected"),
    [
        # A caption ends where the next window begins. The first frame has the PTS 1.4 s.
        (
            "captions",
            [
                window("/a/film.mp4", 1.4, 11.4, 1.4, caption="one"),
                window("/a/film.mp4", 17.4, 27.4, 1.4, caption="three"),
                window("/a/film.mp4", 9.4, 19.4, 1.4, caption="two"),
            ],
            [(0.0, 8.0), (8.0, 16.0), (16.0, 26.0)],
        ),
        # Both windows saw the walk; the dog barks during it.
        (
            "events",
            [
                window("/a/film.mp4", 0, 10, events=events((6, 9.5, "A man walks."))),
                window(
                    "/a/film.mp4", 5, 15,
                    events=events((6, 9.5, "A man walks."), (7, 8, "A dog barks.")),
                ),
            ],
            [(6.0, 7.0), (7.0, 8.0), (8.0, 9.5)],
        ),
        # An overlap of 0.2 s could not be read; a blink is shown until it can be.
        (
            "events",
            [
                window(
                    "/a/film.mp4", 0, 10,
                    events=events((1, 3.2, "It rains."), (3, 5, "Sun."), (7, 7, "A flash.")),
                )
            ],
            [(1.0, 3.0), (3.0, 5.0), (7.0, 7.5)],
        ),
        # A span of a manifest row inside another one: the outer one goes on after it.
        (
            "captions",
            [
                window("/a/film.mp4", 0, 60, caption="A whole day."),
                window("/a/film.mp4", 10, 20, caption="The morning."),
            ],
            [(0.0, 10.0), (10.0, 20.0), (20.0, 60.0)],
        ),
        # Windows that touch, and one second without any.
        (
            "captions",
            [window("/a/film.mp4", k, k + 1, caption=f"second {k}") for k in (0, 1, 3)],
            [(0.0, 1.0), (1.0, 2.0), (3.0, 4.0)],
        ),
    ],
)  # fmt: skip
def test_a_video_has_one_track_without_overlaps(tmp_path, form, extension, name, units, expected):
    folder, _ = export(tmp_path, form, *units)
    path = folder / f"film.{name}.{extension}"
    assert files(folder) == [path.name]
    assert ffprobe_cues(path) == pytest.approx(expected)
    assert pyav_cues(path) == pytest.approx(expected)


def test_what_overlaps_is_shown_together(tmp_path: Path):
    spans = events((0, 4, "A man walks."), (2, 6, "A dog barks."))
    folder, _ = export(tmp_path, "srt", window("/a/b.mp4", 0, 10, events=spans))
    cues = list(srt.parse((folder / "b.events.srt").read_text()))
    assert [cue.content for cue in cues] == [
        "A man walks.",
        "A man walks.\nA dog barks.",
        "A dog barks.",
    ]


@given(
    st.lists(
        st.tuples(st.integers(0, 200), st.integers(0, 60)), min_size=1, max_size=12, unique=True
    )
)
def test_no_event_is_lost_and_no_cue_overlaps(spans: list[tuple[int, int]]):
    found = [(s / 10, (s + d) / 10, f"event{k}") for k, (s, d) in enumerate(spans)]
    row = annotation_row(window("/a.mp4", 0, 30, events=events(*found)), QUESTIONS, KEY)
    cues = whole_track([row], "events")
    assert all(start < end for start, end, _ in cues)
    assert all(a[1] <= b[0] for a, b in pairwise(cues))
    for start, end, name in found:
        shown = [cue for cue in cues if name in cue[2].split("\n")]
        seconds = sum(stop - first for first, stop, _ in shown) / 1000
        assert shown[0][0] == round(1000 * start)
        # Only an overlap under half a second is cut; a short event is shown for half a second.
        assert max(end - start, 0.5) - 0.5 <= seconds <= max(end - start, 0.5) + 0.001


URIS = {
    "folders": ("s3://b/2024/talks/opening.mp4", "2024/talks/opening"),
    "a space, an accent": ("s3://b/2024/café terrace.mov", "2024/café terrace"),
    "one of two kinds": ("s3://b/2024/gate.mp4", "2024/gate.mp4"),
    "the other kind": ("s3://b/2024/gate.mkv", "2024/gate.mkv"),
    "lower case": ("s3://b/clips/dog.mp4", "clips/dog.mp4"),
    "upper case": ("s3://b/clips/DOG.MP4", "clips/DOG.MP4.upper case"),
    "composed": ("s3://b/clips/\u00e9.mp4", "clips/\u00e9.mp4"),
    "decomposed": ("s3://b/clips/e\u0301.mp4", "clips/e\u0301.mp4.decomposed"),
    "dots": ("s3://b/../../etc/passwd.mp4", "_/_/etc/passwd"),
    "a dot": ("s3://b/./x.mp4", "_/x"),
    "empty parts": ("s3://b//double//y.mp4", "double/y"),
    "refused": ('s3://b/a<b>:"c|d?*\\e\n.mp4', "a_b___c_d___e_"),
    "reserved": ("s3://b/con/NUL.mp4", "_con/_NUL"),
    "a dot at the end": ("s3://b/w. /v. .mp4", "w/v"),
    "no extension": ("s3://b/No. 7", "No. 7"),
    "long": (f"s3://b/{'é' * 300}.mp4", "é" * 100),
    "not UTF-8": ("s3://b/clip\udce9.mp4", "clip_"),
    "a folder like a track": ("s3://b/z/k.mp4", "z/k"),
}


def test_tracks_have_the_folders_and_names_of_their_videos():
    media = {name: (uri, name) for name, (uri, _) in URIS.items()}
    root, names = mirrored_names(media)
    assert root == "s3://b"
    assert names == {name: path for name, (_, path) in URIS.items()}


def test_names_are_safe_on_every_file_system(tmp_path: Path):
    """Each is written, below the folder, under a name that Windows does not reserve."""
    others = (
        "https://h.example/a%2Fb/../c%3F.mp4?token=1", "https://h.example/get?id=1",
        "https://h.example/get?id=2", "data:video/mp4;base64,sha256=12ab", "/etc/../../up.mp4",
        "/a/b.mp4", "/A/B.mp4", "gs://g/aux.mp4/aux.mp4", "/" + "x" * 300 + "/" + "y" * 300,
        "/a/b.mp4/c.mp4", "/tabs\tand\x7f/c.mp4", "/a/..mp4", "/a/.mp4", "/a/   .mp4", "",
    )  # fmt: skip
    media = {
        uri: (uri, f"id/{k}") for k, uri in enumerate([*others, *(u for u, _ in URIS.values())])
    }
    _, names = mirrored_names(media)
    assert len({name.casefold() for name in names.values()}) == len(media)
    for name in names.values():
        path = tmp_path / f"{name}.events.srt"
        assert tmp_path in Path(os.path.normpath(path)).parents
        parts = PureWindowsPath(name).parts
        assert "/".join(parts) == name and not set('<>:"|?*\\') & set(name)
        assert not any(PureWindowsPath(part).is_reserved() for part in (*parts, path.name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    assert len(files(tmp_path)) == len(media)


def test_names_that_are_not_utf8_are_readable_and_stay_apart():
    """Only uris that Reelscribe made are decoded: in another name, %F6 is what it says."""
    raw = [b"/a/h\xf6r/x.mp4", b"/a/na\xefve.mp4", b"/a/na\xeeve.mp4", b"/a/100%.mp4"]
    uris = [uri_of_path(os.fsdecode(path)) for path in raw] + ["/a/h%F6r.mp4"]
    _, names = mirrored_names({str(k): (uri, f"id{k}") for k, uri in enumerate(uris)})
    assert list(names.values()) == [
        "h\ufffdr/x", "na\ufffdve.mp4", "na\ufffdve.mp4.id2", "100%", "h%F6r"
    ]  # fmt: skip


def test_the_folder_of_the_whole_archive_is_left_out():
    """Also where its videos have a folder of their own; what has no folder changes nothing."""
    videos = {"v": ("/archive/clips/v.mp4", "v"), "d": ("data:video/mp4,sha256=1", "d")}
    root, names = mirrored_names(videos, ["/archive/images/i.jpg", "data:image/png,sha256=2"])
    assert (root, names) == ("/archive", {"v": "clips/v", "d": "data"})


def test_manifest_rows_of_one_video_are_one_track(tmp_path: Path):
    """Each row has its own media_id; players know the video only."""
    units = [
        replace(window("/a/film.mp4", s, s + 5, caption=f"at {s}"), media_id=f"row-{s}")
        for s in (0, 5, 20)
    ]
    folder, _ = export(tmp_path, "srt", *units)
    assert files(folder) == ["film.captions.srt"]
    cues = list(srt.parse((folder / "film.captions.srt").read_text()))
    assert [cue.content for cue in cues] == ["at 0", "at 5", "at 20"]


def test_what_has_no_track_is_printed(tmp_path: Path):
    units = [
        window("/root/day/a.mp4", 0, 10, caption="Cars.", events=events((1, 2, "a car"))),
        window("/root/day/a.mp4", 10, 20, caption="", events=events((11, 12, "a bus"))),
        window("/root/night/b.mp4", 0, 10, caption="Dark."),
        window("/root/night/none.mp4", 0, 10, events="[]"),
        replace(
            failed_unit("w2", "the decoder stopped"), uri="/root/night/b.mp4", media_id="b",
            media=window("/", 10, 20).media, sampling=window("/", 10, 20).sampling,
        ),
        failed_unit("broken.mp4"),
        image_unit(draw(tmp_path / "i.png"), uri="/root/pictures/i.png"),
    ]  # fmt: skip
    folder, printed = export(tmp_path, "webvtt", *units)
    assert files(folder) == ["day/a.captions.vtt", "day/a.events.vtt", "night/b.captions.vtt"]
    assert "3 tracks of 2 videos, named as the videos below /root\n" in printed
    assert "left out 5:" in printed
    assert "2: failed, media_unreadable, such as /nowhere/broken.mp4" in printed
    assert "1: not a video, such as " in printed
    assert "1: caption unparsed, such as /root/day/a.mp4 00:00:10.000 to 00:00:20.000" in printed
    assert "1: a video without captions, events or text, such as /root/night/none.mp4" in printed
