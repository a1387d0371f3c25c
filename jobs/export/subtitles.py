"""WebVTT and SRT: events, captions and text, with times from the first frame, as players count.

A video has one track of each kind, beside the video's name in the video's own folders. Cues are
in order and do not overlap.
"""

import dataclasses
import math
import re
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import get_args

from jobs.export.names import mirrored_names
from jobs.export.source import Files, Source, drawings
from jobs.results.read import Row
from pipeline.output.stitch import UnitEvents, stitch
from pipeline.tasks.registry import TASKS
from schemas.task import SubtitleTrack

MIN_SECONDS = 0.5
"""Minimum length of a cue: a shorter one could not be read."""

MAX_TOGETHER = 16
"""Cues that are shown at a time; more would fill the screen, and a file many times over."""

_MIN_MILLISECONDS = round(1000 * MIN_SECONDS)

_DASHES = re.compile(r"-++>?+")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
_MARKUP = re.compile(r"<(?=[A-Za-z/])|\{(?=[\\A-Za-z])|^(?=\s*+\d++:)", re.MULTILINE)
_JOINED = "\\g<0>\u2060"

Cue = tuple[int, int, str]
"""Start and end in milliseconds from the first frame, and text."""


def subtitles(source: Source, *, form: str) -> Files:
    """Yield files ``<folders>/<name>.<events|captions|text>.<vtt|srt>`` of each video.

    Folders and name are those of the video, relative to the folder that holds all media.

    form: ``webvtt`` or ``srt``.
    """
    write, extension = (_webvtt, "vtt") if form == "webvtt" else (_srt, "srt")
    videos = _videos(source)
    first = {key: (rows[0]["uri"], rows[0]["media_id"]) for key, rows in videos.items()}
    archive = {row["uri"] for row in source.rows if row["status"] != "failed"}
    root, names = mirrored_names(first, archive - {""})
    num_tracks = num_videos = 0
    for key, rows in videos.items():
        rows.sort(key=_span)
        tracks = {track: whole_track(rows, track) for track in get_args(SubtitleTrack)}
        written = {track: cues for track, cues in tracks.items() if cues}
        for track, cues in written.items():
            yield f"{names[key]}.{track}.{extension}", write(cues).encode()
        num_tracks += len(written)
        num_videos += bool(written)
        if not written:
            source.skipped.append((rows[0]["uri"], "a video without captions, events or text"))
    if num_videos:
        source.remarks.append(
            f"{num_tracks:,} tracks of {num_videos:,} videos, named as the videos below {root}"
        )


def whole_track(rows: Sequence[Row], track: SubtitleTrack) -> list[Cue]:
    """Return the cues of a video: in order, without overlaps, on the clock of players.

    rows: the video's units, ascending by start. Events of neighbouring units are stitched, as in
    the table ``items``. A caption or a text ends where the next unit begins. What still overlaps
    is shown together, a line each; an overlap that is too short to be read is cut.
    """
    cues = [
        (event["start_seconds"], event["end_seconds"], event["caption"])
        for event in stitch([_unit_events(row, track) for row in rows])
    ]
    spans = [_span(row) for row in rows]
    for k, (row, (start, end)) in enumerate(zip(rows, spans, strict=True)):
        later = (spans[j] for j in range(k + 1, len(spans)))
        # A unit inside this one ends earlier: this one goes on after it.
        cut = next((s for s, e in later if s >= end or (s > start and e > end)), end)
        texts = ((max(a, start), min(b, cut), text) for a, b, text in _texts(row, track))
        cues += [(a, b, text) for a, b, text in texts if a < b]
    begin = rows[0]["media"].get("begin_seconds") or 0.0
    return _in_sequence([_cue(*cue, begin) for cue in cues if cue[2].strip()])


def _videos(source: Source) -> dict[str, list[Row]]:
    """Return the rows of each video, by its uri; other rows are added to ``source.skipped``."""
    videos: dict[str, list[Row]] = defaultdict(list)
    for row in source.rows:
        if row["status"] == "failed":
            kind = (row["error"] or {}).get("type")
            source.skipped.append((_named(row), f"failed, {kind}"))
        elif (row.get("media") or {}).get("media_type") != "video" or not row.get("sampling"):
            source.skipped.append((_named(row), "not a video"))
        else:
            # The uri of a list of frames is its first frame's, which other lists may have too.
            frames = (source.planned.get(row["unit_id"]) or {}).get("frames")
            videos[row["media_id"] if frames else row["uri"]].append(row)
            source.skipped.extend((_named(row), reason) for reason in _unread(row))
    return videos


def _unread(row: Row) -> Iterator[str]:
    """Yield what is wrong with each answer of a track that has no value."""
    for answer in row["responses"]:
        task = TASKS.get(answer["task"])
        if task is not None and task.subtitles and row.get(task.name) is None:
            yield f"{task.name} {answer['status']}"


def _named(row: Row) -> str:
    if not row.get("sampling") or row["sampling"].get("start_seconds") is None:
        return str(row["uri"])
    start, end = _span(row)
    return f"{row['uri']} {_clock(round(1000 * start), '.')} to {_clock(round(1000 * end), '.')}"


def _span(row: Row) -> tuple[float, float]:
    """Return start and end of a unit, on the clock of the media's PTS."""
    sampling = row["sampling"]
    start = sampling.get("start_seconds") or 0.0
    end = sampling.get("end_seconds")
    if end is None or not math.isfinite(end):
        end = max(sampling.get("pts_seconds") or [start]) + MIN_SECONDS
    return start, end


def _unit_events(row: Row, track: SubtitleTrack) -> UnitEvents:
    start, end = _span(row)
    found = drawings(row, lambda task: task.subtitles == track)
    return UnitEvents(
        start_seconds=start,
        end_seconds=end,
        step_seconds=2 * (end - start) / max(1, row["sampling"]["num_frames"]),
        events=[dataclasses.asdict(event) for drawing in found for event in drawing.events],
    )


def _texts(row: Row, track: SubtitleTrack) -> Iterator[tuple[float, float, str]]:
    """Yield a unit's texts, on the clock of the media's PTS.

    A mark with a time lasts until the next frame that the model saw. Without marks, texts are about
    the whole unit.
    """
    found = drawings(row, lambda task: task.subtitles == track)
    start, end = _span(row)
    marks = [m for drawing in found for m in drawing.marks if m.pts_seconds is not None]
    if marks:
        times = sorted({*(row["sampling"].get("pts_seconds") or ()), end})
        for time, stop in pairwise(times):
            lines = [m.label for m in marks if abs((m.pts_seconds or 0.0) - time) < 1e-6]
            yield time, stop, "\n".join(lines)
        return
    for drawing in found:
        if text := drawing.headline or drawing.text:
            yield start, end, text


def _cue(start: float, end: float, text: str, begin: float) -> Cue:
    first = max(0, round(1000 * (start - begin)))
    return first, max(round(1000 * (end - begin)), first + _MIN_MILLISECONDS), _lines(text)


def _in_sequence(cues: list[Cue]) -> list[Cue]:
    """Return cues that do not overlap: cues of one time become one, with the lines of all.

    Of more than ``MAX_TOGETHER``, the first are shown, and then "…".
    """
    waiting = deque(_without_short_overlaps(sorted(cues)))
    times = sorted({time for cue in waiting for time in cue[:2]})
    found: list[Cue] = []
    shown: list[Cue] = []
    hidden_until = 0
    for start, end in pairwise(times):
        before = shown
        shown = [cue for cue in before if cue[1] > start]
        while waiting and waiting[0][0] <= start:
            cue = waiting.popleft()
            if len(shown) < MAX_TOGETHER:
                shown.append(cue)
            else:
                hidden_until = max(hidden_until, cue[1])
        text = _together([cue[2] for cue in shown] + ["…"] * (start < hidden_until))
        if found and found[-1][2] == text and set(before) & set(shown):
            found[-1] = (found[-1][0], end, text)  # windows that overlap wrote the same
        elif text:
            found.append((start, end, text))
    return found


def _without_short_overlaps(cues: list[Cue]) -> list[Cue]:
    """Return cues, of which one that is over soon after the next begins ends there instead."""
    found = []
    for k, (start, end, text) in enumerate(cues):
        for j in range(k + 1, len(cues)):
            later, stop, _ = cues[j]
            if later >= end:
                break
            if start < later and end - later < _MIN_MILLISECONDS and stop > end:
                end = later
                break
        found.append((start, end, text))
    return found


def _together(texts: Sequence[str]) -> str:
    if len(texts) == 1:
        return texts[0]
    return "\n".join(dict.fromkeys(line for text in texts for line in text.split("\n")))


def _webvtt(cues: list[Cue]) -> str:
    blocks = [
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{_escaped(text)}\n"
        for start, end, text in cues
    ]
    return "WEBVTT\n\n" + "\n".join(blocks)


def _srt(cues: list[Cue]) -> str:
    """SRT has no escapes: an invisible joiner takes tags and lines of times their meaning."""
    return "\n".join(
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{_MARKUP.sub(_JOINED, text)}\n"
        for number, (start, end, text) in enumerate(cues, 1)
    )


def _lines(text: str) -> str:
    """Remove empty lines, which would end the cue, and arrows, which would start another.

    Control characters become U+FFFD: some players end lines and texts at them.
    """
    kept = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return _CONTROL.sub("\ufffd", _DASHES.sub(_without_arrow, "\n".join(kept)))


def _without_arrow(dashes: re.Match[str]) -> str:
    return "->" if dashes[0].endswith("->") else dashes[0]


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(milliseconds: int, point: str) -> str:
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{point}{rest % 1000:03}"
