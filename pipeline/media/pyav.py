"""Decode a video's planned frames with PyAV, in one pass, with seeks over unneeded frames.

``sampling.frames`` sets which frame a sample time gets:

    exact      the frame on display: the one with the latest PTS at or before the sample time
    nearest    the closest of the frames that other frames refer to; the others are not decoded
    keyframes  the key frame on display, as if there were only key frames

The plan counts the tokens of the exact frames' times. If another frame's time could have more or
fewer tokens, the exact frame is decoded instead, so that each prompt has its planned length.
"""

from collections.abc import Sequence
from contextlib import closing
from fractions import Fraction
from typing import Any

from pipeline.media.container import ffmpeg_errors, to_ticks
from pipeline.media.frame_walk import FrameChoice, FrameWalk
from pipeline.media.frames import Frames, empty_pixels
from pipeline.media.resize import FrameConverter
from pipeline.media.timestamps import num_characters, pair_seconds
from schemas.errors import ErrorType, UnitError
from schemas.tables.media import Media, Sampling


def pyav_frames(
    container: Any,
    stream: Any,
    media: Media,
    sampling: Sampling,
    num_threads: int,
    *,
    lead_seconds: float | None,
) -> Frames | None:
    """Decode the frames of a unit from a container at its start.

    lead_seconds: seek to the key frame this long before a sample time, because FFmpeg seeks by
        DTS, which may be earlier than PTS. None: decode from the start, without seeks.

    Returns None if a seek landed too late, or if the video has no frame of the requested kind.

    Raises:
        UnitError: a frame cannot be decoded, there is none, or the video's clock starts again.
        SeekError: a seek failed.
    """
    base = stream.time_base
    targets = [to_ticks(t, base) for t in sampling.times_seconds()]
    walk = FrameWalk(container, stream, num_threads, lead_seconds)
    pixels, convert = empty_pixels(sampling), FrameConverter(media, sampling, num_threads)
    chosen: dict[int, FrameChoice] = {}

    def decode(numbers: Sequence[int], rule: str) -> bool:
        """Fill the pixels of these frames; return False if the walk ended early."""
        before = -1
        choices = walk.choose([targets[k] for k in numbers], rule)
        for k, (frame, choice) in zip(numbers, choices, strict=False):
            if before >= 0 and chosen[before].pts == choice.pts:
                pixels[k] = pixels[before]  # a held frame
            else:
                pixels[k] = convert(frame)
            chosen[k], before = choice, k
        return before == numbers[-1]

    with closing(walk), ffmpeg_errors("decoding failed"):
        walk.seek_before(targets[0], begin=to_ticks(media.begin_seconds or 0.0, base))
        is_done = decode(range(len(targets)), sampling.frames)
        end = walk.end if walk.at_end else None
        if is_done and sampling.frames != "exact":
            unsure = _unsure_numbers(chosen, targets, base, sampling.origin_seconds)
            if unsure and lead_seconds is None:
                return None
            if unsure:
                walk.seek_before(targets[unsure[0]])
                is_done = decode(unsure, "exact")
    if not is_done:
        if sampling.frames == "exact" and not walk.has_sought:
            raise UnitError(ErrorType.MEDIA_UNREADABLE, "no frame could be decoded")
        return None
    found = [chosen[k] for k in range(len(targets))]
    return Frames(
        pixels=pixels,
        pts_seconds=tuple(float(choice.pts * base) for choice in found),
        frame_indices=tuple(
            _index_at_constant_rate(choice.pts, media, base)
            if choice.index is None
            else choice.index
            for choice in found
        ),
        decoder="pyav",
        end_seconds=None if end is None else float((end.pts + end.duration) * base),
    )


def _unsure_numbers(
    chosen: dict[int, FrameChoice],
    targets: list[int],
    time_base: Fraction,
    origin_seconds: float,
) -> list[int]:
    """Return the numbers of frames, in pairs, whose times may differ from the plan in tokens.

    The exact frame is between the floor and the sample time. If the texts of both times and of the
    chosen frame's time are equally long, so is the text of the exact frame's time.
    """

    def lengths(ticks: Sequence[int]) -> list[int]:
        seconds = [float(t * time_base) - origin_seconds for t in ticks]
        return [num_characters(t) for t in pair_seconds(seconds)]

    choices = [chosen[k] for k in range(len(targets))]
    floors = [choice.floor for choice in choices]
    tops = [max(pair) for pair in zip(targets, floors, strict=True)]
    found = [choice.pts for choice in choices]
    of_pairs = zip(lengths(floors), lengths(tops), lengths(found), strict=True)
    unsure = [pair for pair, of_pair in enumerate(of_pairs) if len(set(of_pair)) > 1]
    return [k for pair in unsure for k in (2 * pair, 2 * pair + 1)]


def _index_at_constant_rate(pts: int, media: Media, time_base: Fraction) -> int | None:
    """Index of a frame in presentation order, if the frame rate is constant."""
    if media.is_vfr is False and media.average_fps and media.begin_seconds is not None:
        return round((float(pts * time_base) - media.begin_seconds) * media.average_fps)
    return None
