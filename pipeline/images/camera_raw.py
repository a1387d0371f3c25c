"""Find the preview that a camera stored in a raw file; the raw samples are not developed.

Raw files of most makers are TIFF files whose first picture is a thumbnail.

Source: TIFF 6.0; Adobe's DNG specification 1.7; TIFF/EP (ISO 12234-2) for the tags.
"""

import io
from collections.abc import Iterator
from typing import Any, BinaryIO

from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

MIN_PREVIEW_SIDE = 1000
"""Smallest longer side, in pixels, of a preview that is used instead of the raw picture."""

_MAX_DIRECTORIES = 32
_SUBFILE_TYPE, _COMPRESSION, _OFFSETS, _LENGTHS, _SUBDIRECTORIES = 254, 259, 273, 279, 330
_JPEG_OFFSET, _JPEG_LENGTH, _DNG_VERSION = 513, 514, 50706
_JPEG_COMPRESSIONS = (6, 7)
_PHOTOMETRIC, _RAW_PHOTOMETRICS = 262, (32803, 34892)  # colour filter array, linear raw

_OTHER_RAWS = {
    (0, b"FUJIFILMCCD-RAW"): "Fujifilm RAF",
    (0, b"IIU\0"): "Panasonic RW2",
    (0, b"IIRO"): "Olympus ORF",
    (0, b"IIRS"): "Olympus ORF",
    (0, b"MMOR"): "Olympus ORF",
    (0, b"FOVb"): "Sigma X3F",
    (0, b"\0MRM"): "Minolta MRW",
    (4, b"ftypcrx "): "Canon CR3",
    (6, b"HEAPCCDR"): "Canon CRW",
}


def other_raw_format(head: bytes) -> str | None:
    """Name of a camera's raw format that is not a TIFF file, from the first 16 bytes."""
    for (place, magic), name in _OTHER_RAWS.items():
        if head[place : place + len(magic)] == magic:
            return name
    return None


def is_camera_raw(image: Any, file: BinaryIO) -> bool:
    """Whether a TIFF that Pillow has opened is a camera's raw file.

    Its first picture is then marked as a smaller version of another one, or its header is of DNG
    or of Canon's CR2.
    """
    file.seek(8)
    tags = image.tag_v2
    return (
        file.read(2) == b"CR"
        or _DNG_VERSION in tags
        or (bool(tags.get(_SUBFILE_TYPE, 0) & 1) and _SUBDIRECTORIES in tags)
    )


def largest_preview(file: BinaryIO) -> Image.Image | None:
    """The largest JPEG picture in a raw file, without its pixels; None if there is none."""
    found = []
    for tags in _directories(file):
        place = _jpeg_place(tags)
        if place is None:
            continue
        file.seek(place[0])
        try:
            # Lossless JPEG, which raw samples have, is not read by Pillow.
            found.append(Image.open(io.BytesIO(file.read(place[1])), formats=["JPEG"]))
        except (OSError, ValueError, SyntaxError):
            continue
    return max(found, key=lambda image: image.width * image.height, default=None)


def _jpeg_place(tags: Any) -> tuple[int, int] | None:
    if tags.get(_PHOTOMETRIC) in _RAW_PHOTOMETRICS:
        return None
    if tags.get(_JPEG_OFFSET) and tags.get(_JPEG_LENGTH):
        return tags[_JPEG_OFFSET], tags[_JPEG_LENGTH]
    offsets, lengths = tags.get(_OFFSETS, ()), tags.get(_LENGTHS, ())
    if tags.get(_COMPRESSION) in _JPEG_COMPRESSIONS and len(offsets) == len(lengths) == 1:
        return offsets[0], lengths[0]
    return None


def _directories(file: BinaryIO) -> Iterator[Any]:
    """The tags of each picture: the chain of directories, and those that they name."""
    file.seek(0)
    head = file.read(8)
    waiting = [int.from_bytes(head[4:8], "little" if head[:2] == b"II" else "big")]
    seen: set[int] = set()
    while waiting and len(seen) < _MAX_DIRECTORIES:
        place = waiting.pop(0)
        if not place or place in seen:
            continue
        seen.add(place)
        tags = ImageFileDirectory_v2(head)
        file.seek(place)
        try:
            tags.load(file)
            inner = tags.get(_SUBDIRECTORIES, ())
            waiting += [inner] if isinstance(inner, int) else inner
            waiting.append(tags.next)
            yield tags
        except Exception:  # Pillow raises many types for malformed directories
            continue
