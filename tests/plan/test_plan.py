"""The plan: exact counts from headers, refusals with numbers, few bytes read."""

import dataclasses
import io
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.engines.transformers.batches import roots_of
from pipeline.media.container import open_video
from pipeline.media.decode import decode_unit
from pipeline.media.probe import VideoProbe
from pipeline.media.timestamps import pair_seconds
from pipeline.model.prompter import Prompter
from pipeline.plan.planner import Planner
from pipeline.plan.sampler import planned_pts
from pipeline.stages.prepare import Prepare
from pipeline.storage.storage import Storage
from pipeline.workers.code_version import code_digest
from schemas.job.job import Job
from schemas.tables.columns import to_table
from schemas.tables.manifest import Intrinsics, MediaItem
from schemas.tables.unit import UNIT, Unit
from tests.support.clips import ffprobe_pts, needs_ffprobe, numbered_frames, write_clip
from tests.support.job_files import TINY_BUDGET, make_job

CONTEXT = 32_768


def job(checkpoint: Path, **changes) -> Job:
    sections = {"tasks": ["caption", "events"], "budget": TINY_BUDGET | {"unit_tokens": 4096}}
    return make_job(checkpoint, **sections | changes)


def item(uri: str | Path, **fields) -> MediaItem:
    return MediaItem(media_id=str(uri), uri=str(uri), **fields)


def plan(
    checkpoint: Path, *items: MediaItem, max_model_len: int = CONTEXT, **changes
) -> list[Unit]:
    return Planner(job(checkpoint, **changes), max_model_len, Storage()).plan(items)


def assert_exact(checkpoint: Path, units: list[Unit], **changes) -> None:
    """What the plan promised is what the decoder and the prompt make."""
    prepare = Prepare(job(checkpoint, **changes), Storage(), code_digest())
    prompter = Prompter(str(checkpoint))
    pad_ids = prompter.pad_ids.values()
    for unit in units:
        assert unit.status == "planned", unit.error
        prepared = prepare.prepare(unit)
        assert prepared.error is None, (unit.uri, prepared.error)
        for prompt in prepared.prompts:
            assert len(prompt.input_ids) == prompt.num_prompt_tokens, (unit.uri, prompt.task)
        roots = roots_of(prepared, dict.fromkeys((p.task for p in unit.prompts), 1), pad_ids)
        assert sum(len(root.prefix) for root in roots) == unit.num_shared_tokens
        own = {b.prompt.task: len(b.suffix) for root in roots for b in root.branches}
        assert own == {p.task: p.num_own_tokens for p in unit.prompts}
        pads = prepared.prompts[0].input_ids
        pad = prompter.pad_ids[unit.media.media_type]
        assert pads.count(pad) == unit.sampling.num_vision_tokens
        size = unit.sampling.num_frames * unit.sampling.resized_height * unit.sampling.resized_width
        assert len(prepared.frame_data) == 3 * size


def test_every_whole_item_of_the_archive_is_planned_exactly(archive: Path, checkpoint: Path):
    broken = ("unreadable", "truncated")
    files = [p for p in sorted(archive.glob("*/*")) if not p.stem.startswith(broken)]
    units = plan(checkpoint, *map(item, files))
    assert len(units) == len(files)
    assert_exact(checkpoint, units)
    assert Counter(u.media.media_type for u in units)["video"] >= 14


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm"])
def test_a_frame_held_over_a_new_digit_does_not_change_the_count(
    tmp_path: Path, checkpoint: Path, suffix: str
):
    """From 4 s to 30 s one picture stands still: at 10 s, times still say <4.0 seconds>."""
    times = [n * 0.1 for n in range(41)] + [30.0 + n * 0.1 for n in range(80)]
    path = tmp_path / f"held.{suffix}"
    codec = "libvpx-vp9" if suffix == "webm" else "libx264"
    write_clip(path, numbered_frames(len(times)), pts_seconds=times, codec=codec)
    whole = {"segmentation": {"kind": "none"}}
    units = plan(checkpoint, item(path), sampling=whole)
    assert_exact(checkpoint, units, sampling=whole)
    windows = {"segmentation": {"kind": "window", "seconds": 7}}
    units = plan(checkpoint, item(path), sampling=windows)
    assert len(units) == 6
    assert_exact(checkpoint, units, sampling=windows)


@pytest.mark.parametrize("fps", [10, 24, 25, 29.97, 30])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_counts_are_exact_across_ten_and_a_hundred_seconds(
    tmp_path: Path, checkpoint: Path, fps: float, suffix: str
):
    from fractions import Fraction

    rate = Fraction(30000, 1001) if fps == 29.97 else Fraction(fps)
    begin = 95.0
    path = tmp_path / f"clip.{suffix}"
    write_clip(path, numbered_frames(int(fps * 9)), fps=rate, start_seconds=begin, max_b_frames=2)
    for sampling_fps in (2.0, 3.3, 7.0):
        sampling = {"fps": sampling_fps}
        units = plan(checkpoint, item(path), sampling=sampling)
        assert_exact(checkpoint, units, sampling=sampling)


@given(
    gaps=st.lists(st.floats(0.001, 40), min_size=2, max_size=60),
    step=st.floats(0.05, 20),
    begin=st.floats(0, 120),
    is_unit=st.booleans(),
)
def test_digits_follow_from_the_planned_times(gaps, step: float, begin: float, is_unit: bool):
    """For any frame times at all: the planned times format to the same lengths as the true ones."""
    origin = begin if is_unit else 0.0
    truth = np.cumsum([begin, *gaps]).tolist()
    times = [begin + k * step for k in range(40)]
    shown = [max((t for t in truth if t <= now), default=truth[0]) for now in times]
    times_read = []

    def displayed(t: float) -> float:
        times_read.append(t)
        return shown[times.index(t)]

    planned = planned_pts(times, begin, displayed, origin)
    lengths, truth = (
        [len(f"{t:.1f}") for t in pair_seconds([t - origin for t in pts])]
        for pts in (planned, shown)
    )
    assert lengths == truth


@needs_ffprobe
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_the_probe_finds_the_frame_on_display_at_any_time(tmp_path: Path, suffix: str):
    times = np.cumsum(np.random.default_rng(3).choice([0.04, 0.08, 0.5, 2.0], 120)).tolist()
    path = tmp_path / f"v.{suffix}"
    write_clip(path, numbered_frames(120), pts_seconds=times, gop_size=12, max_b_frames=2)
    truth = ffprobe_pts(path)
    with Storage().open_media(str(path), header_only=True) as file, open_video(file) as opened:
        probe = VideoProbe(file, *opened)
        for t in [truth[5], 37.0, 3.0, truth[-1] + 5, truth[60] + 1e-4, truth[0]]:
            expected = max((p for p in truth if p <= t + 1e-6), default=truth[0])
            assert probe.displayed_pts(t) == pytest.approx(expected, abs=1e-6)


def test_ids_are_stable_and_follow_the_content(tmp_path: Path, checkpoint: Path):
    path = tmp_path / "a.mp4"
    write_clip(path, numbered_frames(20), fps=10)
    first = plan(checkpoint, item(path))
    again = plan(checkpoint, item(path))
    assert [u.unit_id for u in first] == [u.unit_id for u in again]
    camera = Intrinsics(fx=900, fy=900, cx=640, cy=360)
    seen = plan(checkpoint, dataclasses.replace(item(path), intrinsics=camera))
    assert seen[0].unit_id != first[0].unit_id
    (one_task,) = plan(checkpoint, dataclasses.replace(item(path), tasks=("caption",)))
    assert one_task.unit_id != first[0].unit_id
    listed = dataclasses.replace(item(tmp_path / "f"), uri="", frames=("a.png", "b.png"))
    rates = [plan(checkpoint, dataclasses.replace(listed, sample_fps=fps)) for fps in (1.0, 4.0)]
    assert rates[0][0].unit_id != rates[1][0].unit_id
    write_clip(path, numbered_frames(30), fps=10)
    assert plan(checkpoint, item(path))[0].unit_id != first[0].unit_id


def test_small_units_go_on_together_and_large_ones_alone(
    archive: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    """Ray takes milliseconds for each piece of a table that goes from one actor to another."""
    paths = sorted((archive / "images").glob("scene-*"))[:4]
    planned = to_table(plan(checkpoint, *map(item, paths)), UNIT)
    prepare = Prepare(job(checkpoint), Storage(), code_digest())
    (together,) = prepare(planned)
    monkeypatch.setattr("pipeline.stages.prepare.TABLE_BYTES", 1)
    alone = list(prepare(planned))
    assert [table.num_rows for table in alone] == [1] * len(paths)
    ids = [row for table in alone for row in table["unit_id"].to_pylist()]
    assert together["unit_id"].to_pylist() == ids == planned["unit_id"].to_pylist()
    frames = pa.concat_tables(alone)["frame_data"].to_pylist()
    assert together["frame_data"].to_pylist() == frames


def test_a_unit_over_the_context_is_refused_with_the_numbers(archive: Path, checkpoint: Path):
    (unit,) = plan(checkpoint, item(archive / "images" / "large.jpg"), max_model_len=300)
    assert unit.status == "failed"
    assert unit.error.type == "over_context"
    tokens = unit.prompts[0].num_prompt_tokens
    vision = unit.sampling.num_vision_tokens
    assert f"{tokens} prompt tokens ({vision} of them vision)" in unit.error.message
    assert "over the context of 300" in unit.error.message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start_seconds": 1.0}, "an image has no start_seconds"),
        ({"tasks": ("events",)}, "no task fits"),
    ],
)
def test_an_impossible_request_is_a_row_that_says_so(
    archive: Path, checkpoint: Path, fields: dict, message: str
):
    (unit,) = plan(checkpoint, item(archive / "images" / "scene-0.jpg", **fields))
    assert unit.error.type == "bad_request"
    assert message in unit.error.message


def test_what_is_missing_empty_or_no_media_is_a_row_that_says_so(tmp_path: Path, checkpoint: Path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "page.mp4").write_text("<html>404</html>")
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "folder.jpg").mkdir()
    names = ["nowhere.jpg", "empty.mp4", "page.mp4", "page.jpg", "folder.jpg"]
    units = plan(checkpoint, *(item(tmp_path / name) for name in names))
    assert [u.error.type for u in units] == ["media_missing"] + ["media_unreadable"] * 3 + [
        "media_missing"
    ]
    assert len({u.unit_id for u in units}) == 5


def test_a_sound_file_has_no_video_stream(tmp_path: Path, checkpoint: Path):
    import wave

    with wave.open(str(tmp_path / "a.mp4"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(b"\0" * 1600)
    (unit,) = plan(checkpoint, item(tmp_path / "a.mp4"))
    assert (unit.error.type, unit.error.message) == (
        "media_unsupported",
        "the file has no video stream",
    )


def test_a_name_without_extension_is_identified_by_its_content(
    archive: Path, tmp_path: Path, checkpoint
):
    picture, film = tmp_path / "picture", tmp_path / "film"
    picture.write_bytes((archive / "images" / "photo.webp").read_bytes())
    film.write_bytes((archive / "clips" / "vp9.webm").read_bytes())
    units = plan(checkpoint, item(picture), item(film))
    assert [u.media.media_type for u in units] == ["image", "video"]


def test_frame_lists_are_planned_exactly(tmp_path: Path, checkpoint: Path):
    for n, image in enumerate(numbered_frames(25)):
        image.save(tmp_path / f"{n:02}.jpg")
    frames = tuple(str(p) for p in sorted(tmp_path.glob("*.jpg")))
    units = plan(checkpoint, item(frames[0], frames=frames, sample_fps=2.0))
    assert units[0].sampling.num_frames == 26
    assert_exact(checkpoint, units)
    numbered_frames(1)[0].save(frames[7])
    prepared = Prepare(job(checkpoint), Storage(), code_digest()).prepare(units[0])
    assert prepared.error.type == "media_changed"


class Counting(BaseHTTPRequestHandler):
    """Serves one file by ranges and counts the bytes of it that went out."""

    content = b""
    sent = 0

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        bounds = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")
        start = int(bounds[0])
        end = min(int(bounds[1]) + 1 if bounds[1] else len(self.content), len(self.content))
        part = self.content[start:end]
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(self.content)}")
        self.send_header("ETag", '"one"')
        self.end_headers()
        if body:
            type(self).sent += len(part)
            self.wfile.write(part)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    handler = type("Handler", (Counting,), {"sent": 0})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield handler, f"http://127.0.0.1:{running.server_port}/large"
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.mark.parametrize(
    ("name", "max_share"), [("end.mp4", 0.10), ("front.mp4", 0.10), ("cues.mkv", 0.25)]
)
def test_planning_a_large_file_reads_headers_not_the_file(
    tmp_path: Path, checkpoint: Path, server, name: str, max_share: float
):
    """40 s of noise, about 20 MB. Without an index, the packets around 10 s are read too."""
    handler, url = server
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 255, (400, 240, 320, 3), dtype=np.uint8)
    faststart = {"movflags": "+faststart"} if name == "front.mp4" else {}
    write_clip(path, noise, fps=10, gop_size=10, container_options=faststart)
    handler.content = path.read_bytes()
    assert len(handler.content) > 10_000_000
    planner = Planner(job(checkpoint), CONTEXT, Storage(allow_private_hosts=True))
    (unit,) = planner.plan([item(f"{url}/{name}")])
    assert unit.error is None, unit.error
    assert unit.media.size_bytes == len(handler.content)
    assert 0 < handler.sent < max_share * len(handler.content), handler.sent / len(handler.content)
    local = plan(checkpoint, item(path))[0]
    assert local.sampling == unit.sampling
    assert local.prompts == unit.prompts
    # Decoding it from there reads each byte once and gives the same frames.
    handler.sent = 0
    remote = decode_unit(unit, Storage(allow_private_hosts=True), decoder="pyav")
    assert remote.bytes_read == handler.sent
    assert handler.sent < 1.1 * len(handler.content)
    assert (remote.pixels == decode_unit(local, Storage(), decoder="pyav").pixels).all()


@pytest.mark.parametrize(("format", "max_share"), [("PNG", 0.05), ("JPEG", 0.2), ("TIFF", 0.2)])
def test_planning_a_large_image_reads_its_header(
    tmp_path: Path, checkpoint: Path, server, format: str, max_share: float
):
    handler, url = server
    pixels = np.random.default_rng(0).integers(0, 255, (1200, 1600, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format)
    handler.content = buffer.getvalue()
    planner = Planner(job(checkpoint), CONTEXT, Storage(allow_private_hosts=True))
    (unit,) = planner.plan([item(f"{url}/a.{format.lower()}")])
    assert (unit.media.width, unit.media.height) == (1600, 1200)
    assert handler.sent < max_share * len(handler.content), handler.sent / len(handler.content)


def test_windows_of_a_remote_clip_read_about_what_they_need(
    tmp_path: Path, checkpoint: Path, server
):
    handler, url = server
    path = tmp_path / "noise.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (400, 240, 320, 3), dtype=np.uint8)
    write_clip(path, noise, fps=10, gop_size=10, container_options={"movflags": "+faststart"})
    handler.content = path.read_bytes()
    sampling = {"segmentation": {"kind": "window", "seconds": 8}}
    storage = Storage(allow_private_hosts=True)
    planner = Planner(job(checkpoint, sampling=sampling), CONTEXT, storage)
    units = planner.plan([item(f"{url}/a.mp4")])
    assert len(units) == 5
    handler.sent = 0
    for unit in units:
        decode_unit(unit, storage)
    # Each window of 3 MB costs the header, a second before it, and blocks of 1 MB read ahead.
    assert handler.sent < 2.5 * len(handler.content)


@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4", "list.ffconcat"])
@pytest.mark.parametrize("kind", ["hls", "concat"])
def test_a_playlist_opens_nothing_else(
    tmp_path: Path, checkpoint: Path, server, archive: Path, name: str, kind: str
):
    handler, url = server
    handler.content = (archive / "clips" / "h264-bframes.mp4").read_bytes()
    local = archive / "clips" / "h264-bframes.mp4"
    text = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:8\n#EXTINF:8,\n{url}/a.mp4\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile '{local}'\n",
    }[kind]
    (tmp_path / name).write_text(text)
    (unit,) = plan(checkpoint, item(tmp_path / name, media_type="video"))
    assert unit.error.type == "media_unreadable"
    assert handler.sent == 0


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("clock", ["media", "unit"])
def test_counts_are_exact_in_windows_that_overlap(tmp_path, checkpoint, suffix, clock):
    times = np.cumsum(np.random.default_rng(4).choice([0.04, 0.08, 0.5, 1.5], 120)).tolist()
    path = tmp_path / f"v.{suffix}"
    write_clip(path, numbered_frames(120), pts_seconds=times, start_seconds=85.0, max_b_frames=2)
    cut = {"kind": "window", "seconds": 6, "overlap_seconds": 2.5}
    sampling = {"fps": 2.0, "segmentation": cut, "clock": clock}
    units = plan(checkpoint, item(path), sampling=sampling)
    assert len(units) > 12
    assert_exact(checkpoint, units, sampling=sampling)
    for unit in units:
        begin = unit.sampling.start_seconds
        assert unit.sampling.origin_seconds == (begin if clock == "unit" else 0.0)


def test_a_units_own_clock_gives_the_prompt_of_a_clip_that_begins_there(tmp_path, checkpoint):
    """The model reads the same as of a file of the unit's frames alone that begins at 0."""
    frames = numbered_frames(80)
    write_clip(tmp_path / "whole.mp4", frames, fps=10, start_seconds=3600.0)
    write_clip(tmp_path / "part.mp4", frames[40:], fps=10)
    cut = {"kind": "window", "seconds": 4}
    sampling = {"segmentation": cut, "clock": "unit"}
    windows = job(checkpoint, sampling=sampling)
    prepare = Prepare(windows, Storage(), code_digest())
    last = prepare.prepare(plan(checkpoint, item(tmp_path / "whole.mp4"), sampling=sampling)[1])
    alone = prepare.prepare(plan(checkpoint, item(tmp_path / "part.mp4"), sampling=sampling)[0])
    assert last.sampling.pts_seconds[0] == pytest.approx(3604.0)
    assert [p.input_ids for p in last.prompts] == [p.input_ids for p in alone.prompts]
