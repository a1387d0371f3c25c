"""Decode one unit: the planned frames, at the planned size, with their true times.

A video is decoded frame by frame, and each chosen frame is resized at once: memory holds one
full-size frame, however long the clip. PyAV decodes, or torchcodec where a job requests it. Both
give the same pixels and PTS (tests compare them); the row says which one ran.
"""

import contextlib
import dataclasses
import functools
import io
import re

import numpy as np

from pipeline.images.read_image import load_image, resize
from pipeline.media.colour import matrix_notes
from pipeline.media.container import SeekError, open_video, packet_times
from pipeline.media.frames import Frames, check_end, check_size, names_missing_bytes
from pipeline.media.pyav import pyav_frames
from pipeline.media.resize import is_deep
from pipeline.media.torchcodec import torchcodec_frames, torchcodec_problem
from pipeline.storage.ids import digest
from pipeline.storage.media_file import MediaFile
from pipeline.storage.storage import Storage
from schemas.errors import ErrorType, UnitError
from schemas.shown import redact_uri
from schemas.tables.media import Media, Part, Sampling
from schemas.tables.unit import Unit

MAX_TORCHCODEC_BYTES = 64 << 20
"""Largest file for torchcodec, which needs all packet times, and the file in memory."""

_SELF_CONTAINED = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "asf", "ogg"}
"""FFmpeg's names of containers that torchcodec reads. In MPEG-TS it seeks to wrong frames."""

_PLAYLIST = re.compile(rb"#EXTM3U|ffconcat|<MPD|<CompositionPlaylist|c=IN |rtsp:", re.IGNORECASE)
"""By what FFmpeg takes a file for a list of others: torchcodec's FFmpeg may know more of them."""


def decoder_modules(decoder: str) -> set[str]:
    """Modules of a video decoder that take long to import."""
    return {"torchcodec.decoders"} if decoder == "torchcodec" else set()


def decode_unit(
    unit: Unit | Part, storage: Storage, *, decoder: str = "auto", num_threads: int = 1
) -> Frames:
    """Decode the planned frames of ``unit``, or of one part of a conversation.

    decoder: of videos: ``auto`` (PyAV), ``pyav`` or ``torchcodec``. With torchcodec, PyAV still
        decodes what torchcodec cannot do exactly: transparency, 10 bits, MPEG-TS, large files,
        short spans of remote files.
    num_threads: decoding threads.

    Raises:
        UnitError: the media is missing, unreadable, cut short, or changed since the plan.
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
        found = None
        if decoder == "torchcodec" and _suits_torchcodec(media, sampling, file):
            found = _decode_with_torchcodec(media, sampling, file, num_threads)
        if found is None:
            found = _decode_with_pyav(media, sampling, file, num_threads)
        return dataclasses.replace(found, bytes_read=file.bytes_read)


def _decode_with_pyav(
    media: Media, sampling: Sampling, file: MediaFile, num_threads: int
) -> Frames:
    """Decode with seeks. If one fails or lands too late, use a longer lead, then none at all."""
    exact = dataclasses.replace(sampling, frames="exact")
    for wanted, lead in [(sampling, 1.0), (sampling, 10.0), (exact, 10.0), (exact, None)]:
        with (
            open_video(file) as (container, stream),
            names_missing_bytes(file, container, stream),
            contextlib.suppress(SeekError),
        ):
            found = pyav_frames(container, stream, media, wanted, num_threads, lead_seconds=lead)
            if found is not None:
                return check_end(found, file, container, stream, sampling)
    raise UnitError(ErrorType.MEDIA_UNREADABLE, "no frame could be decoded")


def _decode_frame_list(
    uris: tuple[str, ...], media: Media, sampling: Sampling, storage: Storage
) -> Frames:
    """Read a video given as images. All are used; the last one twice if their number is odd."""
    frames, versions = [], []
    for uri in uris:
        with storage.open_media(uri) as file:
            versions.append(file.content_version)
            image = load_image(file)
        if image.size != (media.width, media.height):
            raise UnitError(
                ErrorType.BAD_REQUEST,
                "frames of one list must have one size: "
                f"{redact_uri(uri)} has {image.width}x{image.height}, "
                f"the first has {media.width}x{media.height}",
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
            f"the object changed after the plan: its version was {media.content_version}, it is "
            f"{version} now; `reelscribe retry` plans it again",
        )


def _suits_torchcodec(media: Media, sampling: Sampling, file: MediaFile) -> bool:
    """Whether torchcodec returns exactly PyAV's frames here, and does not read more of the file."""
    if sampling.frames != "exact":
        return False  # torchcodec decodes every frame
    if torchcodec_problem() is not None or file.size_bytes > MAX_TORCHCODEC_BYTES:
        return False
    if media.has_alpha or is_deep(media.pixel_format):
        return False  # torchcodec drops alpha, and FFmpeg versions round 10 bits differently
    if media.is_mirrored:
        return False  # torchcodec only rotates
    span = (sampling.end_seconds or 0.0) - (sampling.start_seconds or 0.0)
    is_local = file.bytes_read is None
    return is_local or span >= 0.5 * (media.duration_seconds or 0.0)


def _decode_with_torchcodec(
    media: Media, sampling: Sampling, file: MediaFile, num_threads: int
) -> Frames | None:
    """Decode a whole file, read once into memory; None if PyAV is to decode it.

    torchcodec gets bytes, never a path, and only those in which PyAV, without any protocol, found
    a container that holds its own frames: torchcodec would open the files that a playlist names.
    """
    content = b"".join(iter(functools.partial(file.file.read, 1 << 20), b""))
    file = dataclasses.replace(file, file=io.BytesIO(content))
    with open_video(file) as (container, stream), names_missing_bytes(file, container, stream):
        if container.format.name not in _SELF_CONTAINED or _PLAYLIST.search(content, 0, 1 << 20):
            return None
        if matrix_notes(stream.codec_context):
            return None  # torchcodec has its own idea of such colours
        times, _ = packet_times(container, stream)
        found = torchcodec_frames(content, stream, times, media, sampling, num_threads)
        return None if found is None else check_end(found, file, container, stream, sampling)
