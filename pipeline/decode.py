"""Decode one unit: the planned frames, at the planned size, with their true times.

Streaming: a video is decoded frame by frame and each chosen frame is resized at once, so memory
holds one full-size frame, however long the clip. torchcodec and PyAV give the same pixels and the
same PTS (tests hold them to it); which one ran is in the row.

Both choose frames by one rule: frame k is the one on display at the k-th planned time.
"""

import dataclasses
import functools
import io
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.video.reformatter import Interpolation
from PIL import Image

from pipeline.container import (
    alpha_decoder,
    displayed,
    header_end_seconds,
    open_video,
    packet_times,
    quarter_turn,
    to_ticks,
    unreadable,
)
from pipeline.images import load_image, resize, to_rgb
from pipeline.storage import MediaFile, Storage, shown
from schemas.errors import ErrorType, UnitError
from schemas.unit import Media, Part, Sampling, Unit

logger = logging.getLogger(__name__)

MAX_TORCHCODEC_BYTES = 64 << 20
"""torchcodec needs the times of all packets of a file, and remote files in memory. Above this size,
and for a small part of a remote file, PyAV reads just the stretch that the unit needs."""

_TRUNCATED_SECONDS = 1.0

Frame = np.ndarray[Any, np.dtype[np.uint8]]


@dataclass(frozen=True, kw_only=True)
class Frames:
    """What was decoded.

    pixels: uint8 [T, H, W, 3], RGB, T even for videos, H and W multiples of 32.
    pts_seconds, frame_indices: one for each frame; empty for images. An index is None where the
        decoder came there by a seek and the container has no even index.
    """

    pixels: Frame
    pts_seconds: tuple[float, ...] = ()
    frame_indices: tuple[int | None, ...] = ()
    decoder: str
    bytes_read: int | None = None

    def sampling(self, planned: Sampling) -> Sampling:
        """The planned sampling, with the times and indices found."""
        return dataclasses.replace(
            planned,
            pts_seconds=self.pts_seconds or None,
            frame_indices=self.frame_indices or None,
            decoder=self.decoder,
        )


@functools.cache
def torchcodec_problem() -> str | None:
    """Why torchcodec cannot be used here, or None if it can."""
    try:
        from torchcodec.decoders import VideoDecoder  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return None


def decode_unit(
    unit: Unit | Part, storage: Storage, *, decoder: str = "auto", num_threads: int = 1
) -> Frames:
    """Decode the planned frames of ``unit``, or of one part of a conversation.

    decoder: ``auto``, ``torchcodec`` or ``pyav``, for videos. Even ``torchcodec`` leaves to PyAV
        what it cannot do exactly: transparency, 10 bits, MPEG-TS, stretches of large files.
    num_threads: decoding threads.

    Raises:
        UnitError: the media is missing, unreadable, cut short, or not the one that was planned.
    """
    media, sampling = unit.media, unit.sampling
    if media is None or sampling is None:
        raise UnitError(ErrorType.BAD_REQUEST, "the unit was not planned")
    if unit.frames:
        return _decode_frame_list(unit.frames, media, sampling, storage)
    with storage.open_media(unit.uri) as file:
        _check_unchanged(media, file)
        if media.media_type == "image":
            image = load_image(file)
            _check_size(media, image.width, image.height)
            pixels = resize(image, sampling.resized_height, sampling.resized_width)[None]
            return Frames(pixels=pixels, decoder="pillow", bytes_read=file.bytes_read)
        if decoder != "pyav" and _suits_torchcodec(media, sampling, file):
            found = _by_torchcodec(media, sampling, file, num_threads)
            if found is not None:
                return dataclasses.replace(found, bytes_read=file.bytes_read)
        for seek in (True, False):  # a seek that lands too late is made good from the start
            with open_video(file) as (container, stream):
                found = _pyav_frames(container, stream, media, sampling, num_threads, seek=seek)
                if found is not None:
                    return dataclasses.replace(found, bytes_read=file.bytes_read)
        raise UnitError(ErrorType.MEDIA_UNREADABLE, "no frame could be decoded")


def _decode_frame_list(
    uris: tuple[str, ...], media: Media, sampling: Sampling, storage: Storage
) -> Frames:
    """A video given as images: every frame is used, the last is repeated if their number is odd."""
    frames = []
    for uri in uris:
        with storage.open_media(uri) as file:
            image = load_image(file)
        if image.size != (media.width, media.height):
            raise UnitError(
                ErrorType.BAD_REQUEST,
                f"frames of one list must have one size: {shown(uri)} has {image.size}, the first "
                f"has {(media.width, media.height)}",
            )
        frames.append(resize(image, sampling.resized_height, sampling.resized_width))
    frames += [frames[-1]] * (sampling.num_frames - len(frames))
    fps = sampling.sample_fps or 1.0
    indices = [min(k, len(uris) - 1) for k in range(sampling.num_frames)]
    return Frames(
        pixels=np.stack(frames),
        pts_seconds=tuple(index / fps for index in indices),
        frame_indices=tuple(indices),
        decoder="pillow",
    )


def _check_unchanged(media: Media, file: MediaFile) -> None:
    if media.content_version and file.content_version != media.content_version:
        raise UnitError(
            ErrorType.MEDIA_CHANGED,
            f"the object changed after the plan: {media.content_version} was planned, "
            f"{file.content_version} is there now; a new run plans it anew",
        )


def _check_size(media: Media, width: int, height: int) -> None:
    if (width, height) != (media.width, media.height):
        raise UnitError(
            ErrorType.MEDIA_CHANGED,
            f"decoded {width}x{height}, but its header says {media.width}x{media.height}",
        )


def _suits_torchcodec(media: Media, sampling: Sampling, file: MediaFile) -> bool:
    """Whether torchcodec gives exactly PyAV's frames here, and without reading more than it."""
    if torchcodec_problem() is not None or file.size_bytes > MAX_TORCHCODEC_BYTES:
        return False
    if media.has_alpha or _is_deep(media.pixel_format):
        return False  # RGB without alpha; and FFmpeg's versions round 10 bits differently
    if media.container and "mpegts" in media.container:
        return False  # no index: torchcodec 0.13 seeks to wrong frames there
    stretch = (sampling.end_seconds or 0.0) - (sampling.start_seconds or 0.0)
    return file.local_path is not None or stretch >= 0.5 * (media.duration_seconds or 0.0)


def _is_deep(pixel_format: str | None) -> bool:
    """Whether a pixel format has more than 8 bits a component."""
    if pixel_format is None:
        return False
    return any(c.bits > 8 for c in av.VideoFormat(pixel_format).components)


def _by_torchcodec(
    media: Media, sampling: Sampling, file: MediaFile, num_threads: int
) -> Frames | None:
    """Decode a whole file with torchcodec; a remote one is read once, into memory."""
    if file.local_path is not None:
        source: Any = file.local_path
    else:
        parts = iter(functools.partial(file.file.read, 1 << 20), b"")
        source = b"".join(parts)
        file = dataclasses.replace(file, file=io.BytesIO(source))
    with open_video(file) as (container, stream):
        times, _ = packet_times(container, stream)
        found = _torchcodec_frames(source, stream, times, media, sampling, num_threads)
        _check_not_truncated(container, stream, times[-1] if times else None, sampling)
        return found


def _torchcodec_frames(
    source: Any,
    stream: Any,
    times: list[tuple[int, int, bool]],
    media: Media,
    sampling: Sampling,
    num_threads: int,
) -> Frames | None:
    """Decode with torchcodec, by frame index. None: its times are not the container's, use PyAV.

    The packets' times, read without decoding, serve as its frame index, in place of the scan of
    its own ``exact`` mode; its ``approximate`` mode is wrong for variable frame rates.
    """
    from torchcodec.decoders import VideoDecoder

    pts = [time[0] for time in times]
    if not pts or len(set(pts)) != len(pts):
        return None
    mapping = {
        "frames": [
            {"pts": ticks, "duration": duration, "key_frame": int(key)}
            for ticks, duration, key in times
        ]
    }
    try:
        decoder = VideoDecoder(
            source,
            stream_index=stream.index,
            dimension_order="NHWC",
            num_ffmpeg_threads=num_threads,
            custom_frame_mappings=json.dumps(mapping),
        )
    except (RuntimeError, ValueError):
        return None  # an odd container: PyAV has opened it already
    indices = [displayed(pts, to_ticks(t, stream.time_base)) for t in sampling.times_seconds()]
    pixels = _empty(sampling)
    last: int | None = None
    for k, index in enumerate(indices):
        if index == last:  # a held frame
            pixels[k] = pixels[k - 1]
            continue
        with _torchcodec_errors(f"decoding failed at {float(pts[index] * stream.time_base):.3f} s"):
            frame = decoder.get_frame_at(index)
        if abs(frame.pts_seconds - float(pts[index] * stream.time_base)) > 1e-6:
            return None
        picture = Image.fromarray(frame.data.numpy())
        if picture.size != (media.width, media.height):
            return None  # it turns what PyAV does not, or the file changes its size
        pixels[k] = resize(picture, sampling.resized_height, sampling.resized_width)
        last = index
    return Frames(
        pixels=pixels,
        pts_seconds=tuple(float(pts[index] * stream.time_base) for index in indices),
        frame_indices=tuple(indices),
        decoder="torchcodec",
    )


@contextmanager
def _torchcodec_errors(doing: str) -> Iterator[None]:
    """torchcodec raises RuntimeError for whatever FFmpeg refuses."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError) as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        reason = re.sub(r"^.*\.cpp:\d+, ", "", first_line)  # its place in torchcodec's source
        raise UnitError(ErrorType.MEDIA_UNREADABLE, f"{doing}: {reason[:300]}") from error


def _empty(sampling: Sampling) -> Frame:
    shape = (sampling.num_frames, sampling.resized_height, sampling.resized_width, 3)
    return np.empty(shape, dtype=np.uint8)


def _check_not_truncated(
    container: Any, stream: Any, last: tuple[int, int, bool] | None, sampling: Sampling
) -> None:
    """Refuse a file that ends well before its header says, where the unit needs what is missing.

    Matroska files that were cut off read like shorter ones, without any error.
    """
    end, certain = header_end_seconds(container, stream)
    if last is None or end is None or not certain:
        return
    last_end = float((last[0] + last[1]) * stream.time_base)
    wanted = sampling.times_seconds()[-1]
    if end - last_end > _TRUNCATED_SECONDS and wanted > last_end:
        raise UnitError(
            ErrorType.MEDIA_UNREADABLE,
            f"the file is cut short: its header promises frames up to {end:.3f} s, "
            f"the last one ends at {last_end:.3f} s",
        )


def _pyav_frames(
    container: Any, stream: Any, media: Media, sampling: Sampling, num_threads: int, *, seek: bool
) -> Frames | None:
    """Decode with PyAV: one pass over the frames, keeping the planned ones.

    seek: start from the key frame before the first planned time; else from the start of the file.
    None: there is no frame, or the seek landed after the first planned time.
    """
    time_base = stream.time_base
    targets = [to_ticks(t, time_base) for t in sampling.times_seconds()]
    # A packet's DTS runs ahead of its PTS, and seeks go by DTS: aim a second early.
    start = targets[0] - int(1 / time_base)
    sought = seek and start > to_ticks(media.begin_seconds or 0.0, time_base)
    if sought:
        with unreadable("seeking"):
            container.seek(start, stream=stream, backward=True)
    pixels = _empty(sampling)
    chosen: list[tuple[int, int]] = []  # (pts, position) of the frame of each target so far
    current: Any = None
    position = -1

    def keep(frame: Any, position: int) -> None:
        k = len(chosen)
        if chosen and chosen[-1][0] == frame.pts:  # a held frame
            pixels[k] = pixels[k - 1]
        else:
            picture = _upright_rgb(frame, media.has_alpha)
            if not chosen:
                _check_size(media, picture.width, picture.height)
            pixels[k] = resize(picture, sampling.resized_height, sampling.resized_width)
        chosen.append((frame.pts, position))

    with unreadable("decoding failed"):
        for frame in _decoded(container, stream, num_threads):
            if frame.pts is None:
                continue
            if current is None and sought and frame.pts > targets[0]:
                return None
            while current is not None and len(chosen) < len(targets):
                if frame.pts <= targets[len(chosen)]:
                    break
                keep(current, position)
            if len(chosen) == len(targets):
                break
            current, position = frame, position + 1
        else:
            if current is None:
                return None
            last = (current.pts, current.duration or 0, False)
            _check_not_truncated(container, stream, last, sampling)
            while len(chosen) < len(targets):
                keep(current, position)
    return Frames(
        pixels=pixels,
        pts_seconds=tuple(float(pts * time_base) for pts, _ in chosen),
        frame_indices=tuple(_index(pts, at, media, time_base, sought) for pts, at in chosen),
        decoder="pyav",
    )


def _decoded(container: Any, stream: Any, num_threads: int) -> Iterator[Any]:
    decoder = alpha_decoder(stream)
    decoder.thread_count = num_threads
    decoder.thread_type = "AUTO"
    for packet in container.demux(stream):
        yield from decoder.decode(packet)


def _index(pts: int, position: int, media: Media, time_base: Any, sought: bool) -> int | None:
    """Index of a frame in presentation order: counted from the start, or by an even frame rate."""
    if not sought:
        return position
    if media.is_vfr is False and media.average_fps and media.begin_seconds is not None:
        return round((float(pts * time_base) - media.begin_seconds) * media.average_fps)
    return None


def _upright_rgb(frame: Any, has_alpha: bool) -> Image.Image:
    """A decoded frame as RGB, turned as its display matrix asks, transparency onto white."""
    if has_alpha:
        picture = to_rgb(Image.fromarray(frame.to_ndarray(format="rgba"), mode="RGBA"))
    else:
        # Deeper chroma is interpolated as FFmpeg's own tools do.
        way = Interpolation.BICUBIC if _is_deep(frame.format.name) else None
        picture = Image.fromarray(frame.to_ndarray(format="rgb24", interpolation=way))
    turn = {
        90: Image.Transpose.ROTATE_90,
        180: Image.Transpose.ROTATE_180,
        270: Image.Transpose.ROTATE_270,
    }.get(quarter_turn(frame))
    return picture.transpose(turn) if turn is not None else picture
