"""WebVTT and SRT: events, captions and text, with times from the first frame, as players count."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from typing import get_args

from jobs.export.boxed_frames import file_name
from jobs.export.source import Files, Source, drawings
from jobs.results.read import Row
from schemas.task import SubtitleTrack

MIN_SECONDS = 0.5
"""Minimum length of a cue: a shorter one could not be read."""

Cue = tuple[float, float, str]


def subtitles(source: Source, *, form: str) -> Files:
    """Yield files ``<number>-<name>.<events|captions|text>.<vtt|srt>`` of each video.

    form: ``webvtt`` or ``srt``.
    """
    videos: dict[str, list[Row]] = defaultdict(list)
    for row in source.rows:
        if (row.get("media") or {}).get("media_type") == "video" and row.get("sampling"):
            videos[row["media_id"]].append(row)
        elif row["status"] != "failed":
            source.skipped.append(f"{row['uri']}: not a video")
    write, extension = (_webvtt, "vtt") if form == "webvtt" else (_srt, "srt")
    for number, rows in enumerate(videos.values()):
        begin = rows[0]["media"].get("begin_seconds") or 0.0
        rows.sort(key=lambda row: row["sampling"]["start_seconds"] or 0.0)
        for track in get_args(SubtitleTrack):
            cues = sorted(
                (max(0.0, start - begin), max(end - begin, start - begin + MIN_SECONDS), text)
                for row in rows
                for start, end, text in _cues(row, track)
                if text.strip()
            )
            if cues:
                name = file_name(number, rows[0]["uri"])
                yield f"{name}.{track}.{extension}", write(cues).encode()


def _cues(row: Row, track: SubtitleTrack) -> Iterator[Cue]:
    """Yield a unit's cues, on the clock of the media's PTS.

    Events have their own times. A mark with a time lasts until the next frame that the model saw.
    If there are neither, texts are about the whole unit.
    """
    found = drawings(row, lambda task: task.subtitles == track)
    for drawing in found:
        for event in drawing.events:
            yield event.start_seconds, event.end_seconds, event.caption
    sampling = row["sampling"]
    marks = [m for drawing in found for m in drawing.marks if m.pts_seconds is not None]
    if marks:
        times = sorted({*(sampling["pts_seconds"] or ()), sampling["end_seconds"]})
        for start, end in pairwise(times):
            lines = [m.label for m in marks if abs((m.pts_seconds or 0.0) - start) < 1e-6]
            yield start, end, "\n".join(lines)
        return
    for drawing in found:
        if text := drawing.headline or drawing.text:
            yield sampling["start_seconds"] or 0.0, sampling["end_seconds"] or 0.0, text


def _webvtt(cues: list[Cue]) -> str:
    blocks = [
        f"{_clock(start, '.')} --> {_clock(end, '.')}\n{_escaped(_lines(text))}\n"
        for start, end, text in cues
    ]
    return "WEBVTT\n\n" + "\n".join(blocks)


def _srt(cues: list[Cue]) -> str:
    return "\n".join(
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{_lines(text)}\n"
        for number, (start, end, text) in enumerate(cues, 1)
    )


def _lines(text: str) -> str:
    """Remove empty lines, which would end the cue, and arrows, which would start another."""
    kept = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return "\n".join(kept).replace("-->", "->")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{point}{rest % 1000:03}"
