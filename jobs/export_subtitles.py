"""WebVTT and SRT: events, captions and text, timed as players count: from the first frame."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

from jobs.boxed_frames import file_name
from jobs.export_source import Files, Source
from jobs.read_annotations import Row

MIN_SECONDS = 0.5
"""Least length of a cue: an instant would not be seen."""

Cue = tuple[float, float, str]


def subtitles(source: Source, *, form: str) -> Files:
    """Files ``<number>-<name>.<events|captions|text>.<vtt|srt>`` for each video, where it has any.

    form: ``webvtt`` or ``srt``.
    """
    videos: dict[str, list[Row]] = defaultdict(list)
    for row in source.rows:
        if (row.get("media") or {}).get("media_type") == "video" and row.get("sampling"):
            videos[row["media_id"]].append(row)
        elif row["status"] != "failed":
            source.skipped.append(f"{row['uri']}: not a video")
    write, extension = (_webvtt, "vtt") if form == "webvtt" else (_srt, "srt")
    kinds: dict[str, Callable[[Row], Iterator[Cue]]] = {
        "events": _events,
        "captions": partial(_whole, column="caption"),
        "text": _text,
    }
    for number, rows in enumerate(videos.values()):
        begin = rows[0]["media"].get("begin_seconds") or 0.0
        rows.sort(key=lambda row: row["sampling"]["start_seconds"] or 0.0)
        for kind, cues_of in kinds.items():
            cues = sorted(
                (max(0.0, start - begin), max(end - begin, start - begin + MIN_SECONDS), text)
                for row in rows
                for start, end, text in cues_of(row)
                if text.strip()
            )
            if cues:
                name = file_name(number, rows[0]["uri"])
                yield f"{name}.{kind}.{extension}", write(cues).encode()


def _events(row: Row) -> Iterator[Cue]:
    for event in row.get("events") or []:
        yield event["start_seconds"], event["end_seconds"], event["caption"]


def _whole(row: Row, column: str) -> Iterator[Cue]:
    """A text about the whole unit."""
    sampling = row["sampling"]
    if row.get(column):
        yield sampling["start_seconds"] or 0.0, sampling["end_seconds"] or 0.0, row[column]


def _text(row: Row) -> Iterator[Cue]:
    """Spans, each from its frame to the next that the model saw; else the unit's whole text."""
    spans = [span for span in row.get("text_spans") or [] if span["pts_seconds"] is not None]
    if not spans:
        yield from _whole(row, "ocr")
        return
    sampling = row["sampling"]
    times = sorted({*(sampling["pts_seconds"] or ()), sampling["end_seconds"]})
    for start, end in pairwise(times):
        lines = [span["text"] for span in spans if abs(span["pts_seconds"] - start) < 1e-6]
        yield start, end, "\n".join(lines)


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
    """An empty line would end the cue, and an arrow begin another."""
    kept = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    return "\n".join(kept).replace("-->", "->")


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(seconds: float, point: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{point}{rest % 1000:03}"
