"""Decode one unit: the planned frames, at the planned size, with their true times.

Streaming: a video is decoded frame by frame and each chosen frame is resized at once, so memory
holds one full-size frame, however long the clip. PyAV does it, or torchcodec where a job asks for
it: both give the same pixels and the same PTS (tests hold them to it); which ran is in the row.
"""

import dataclasses
import functools
import io
import logging
from typing import Any

import numpy as np

from pipeline.choose import digest
from pipeline.container import open_video, packet_times
from pipeline.frames import Frames, check_not_truncated, check_size
from pipeline.images import load_image, resize
from pipeline.pyav_frames import is_deep, pyav_frames
from pipeline.storage import MediaFile, Storage, shown
from pipeline.torchcodec_frames import torchcodec_frames, torchcodec_problem
from schemas.errors import ErrorType, UnitError
from schemas.unit import Media, Part, Sampling, Unit

logger = logging.getLogger(__name__)

MAX_TORCHCODEC_BYTES = 64 << 20
"""torchcodec needs the times of all packets of a file, and remote files in memory. Above this size,
and for a small part of a remote file, PyAV reads just the stretch that the unit needs."""


def decoder_modules(decoder: str) -> set[str]:
    """What takes long to import of a decoder of videos."""
    return {"torchcodec.decoders"} if decoder == "torchcodec" else set()


def decode_unit(
    unit: Unit | Part, storage: Storage, *, decoder: str = "auto", num_threads: int = 1
) -> Frames:
    """Decode the planned frames of ``unit``, or of one part of a conversation.

    decoder: ``auto`` (PyAV), ``torchcodec`` or ``pyav``, for videos. torchcodec leaves to PyAV what
        it cannot do exactly: transparency, 10 bits, MPEG-TS, stretches of large files.
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
        _check_unchanged(media, file.content_version)
        if media.media_type == "image":
            image = load_image(file)
            check_size(media, image.width, image.height)
            pixels = resize(image, sampling.resized_height, sampling.resized_width)[None]
            return Frames(pixels=pixels, decoder="pillow", bytes_read=file.bytes_read)
        if decoder == "torchcodec" and _suits_torchcodec(media, sampling, file):
            found = _by_torchcodec(media, sampling, file, num_threads)
            if found is not None:
                return dataclasses.replace(found, bytes_read=file.bytes_read)
        exact = dataclasses.replace(sampling, frames="exact")
        for way, lead in [(sampling, 1.0), (sampling, 10.0), (exact, 10.0), (exact, None)]:
            with open_video(file) as (container, stream):
                found = pyav_frames(container, stream, media, way, num_threads, lead_seconds=lead)
                if found is not None:
                    return dataclasses.replace(found, bytes_read=file.bytes_read)
        raise UnitError(ErrorType.MEDIA_UNREADABLE, "no frame could be decoded")


def _decode_frame_list(
    uris: tuple[str, ...], media: Media, sampling: Sampling, storage: Storage
) -> Frames:
    """A video given as images: every frame is used, the last is repeated if their number is odd."""
    frames, versions = [], []
    for uri in uris:
        with storage.open_media(uri) as file:
            versions.append(file.content_version)
            image = load_image(file)
        if image.size != (media.width, media.height):
            raise UnitError(
                ErrorType.BAD_REQUEST,
                f"frames of one list must have one size: {shown(uri)} has {image.size}, the first "
                f"has {(media.width, media.height)}",
            )
        frames.append(resize(image, sampling.resized_height, sampling.resized_width))
    _check_unchanged(media, digest(*versions))
    frames += [frames[-1]] * (sampling.num_frames - len(frames))
    fps = sampling.sample_fps or 1.0
    indices = [min(k, len(uris) - 1) for k in range(sampling.num_frames)]
    return Frames(
        pixels=np.stack(frames),
        pts_seconds=tuple(index / fps for index in indices),
        frame_indices=tuple(indices),
        decoder="pillow",
    )


def _check_unchanged(media: Media, version: str | None) -> None:
    if media.content_version and version != media.content_version:
        raise UnitError(
            ErrorType.MEDIA_CHANGED,
            f"the object changed after the plan: {media.content_version} was planned, "
            f"{version} is there now; a new run plans it anew",
        )


def _suits_torchcodec(media: Media, sampling: Sampling, file: MediaFile) -> bool:
    """Whether torchcodec gives exactly PyAV's frames here, and without reading more than it."""
    if sampling.frames != "exact":
        return False  # it decodes every frame
    if torchcodec_problem() is not None or file.size_bytes > MAX_TORCHCODEC_BYTES:
        return False
    if media.has_alpha or is_deep(media.pixel_format):
        return False  # RGB without alpha; and FFmpeg's versions round 10 bits differently
    if media.container and "mpegts" in media.container:
        return False  # no index: torchcodec 0.13 seeks to wrong frames there
    stretch = (sampling.end_seconds or 0.0) - (sampling.start_seconds or 0.0)
    return file.local_path is not None or stretch >= 0.5 * (media.duration_seconds or 0.0)


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
        found = torchcodec_frames(source, stream, times, media, sampling, num_threads)
        check_not_truncated(container, stream, times[-1] if times else None, sampling)
        return found
