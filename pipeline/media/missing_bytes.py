"""Count the bytes that a container's own lengths place beyond the end of the file.

A time in a header proves nothing: tools copy old tags, and a sound track may be longer than the
pictures. Bytes that are not there prove that a file was cut short.

Source: RFC 8794 (EBML), RFC 9559 (Matroska), ISO/IEC 14496-12 (boxes), Microsoft's RIFF and ASF
specifications.
"""

from collections.abc import Callable
from typing import Any, BinaryIO

from av.container import InputContainer
from av.video.stream import VideoStream

_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067
_ASF_OBJECTS = tuple(
    map(bytes.fromhex, ("3026b275", "3626b275", "90080033", "d329e2d6", "f803b1fe"))
)
"""How the GUIDs begin of header, data, simple index, index and media object index."""
_BOXES = b"ftyp styp moov moof mdat mfra sidx free skip wide uuid".split()
_HEAD_BYTES = 24
_MAX_PIECES = 100_000


def missing_bytes(
    file: BinaryIO, size_bytes: int, container: InputContainer, stream: VideoStream
) -> int:
    """Return how many bytes the container promises beyond the end of the file.

    0 if none is missing, or if the container has no lengths, as MPEG streams, Ogg and FLV.
    """
    entries: Any = stream.index_entries
    length_of = next((read for name, read in _LENGTHS if name in container.format.name), None)
    if length_of is None:
        return 0
    if length_of is _box_length and stream.frames and len(entries) == stream.frames:
        # The index has each sample's place; what follows the last one does not matter.
        return max(0, max(int(entry.pos + entry.size) for entry in entries) - size_bytes)
    place, start = file.tell(), 0
    for _ in range(_MAX_PIECES):
        file.seek(start)
        length = length_of(file.read(_HEAD_BYTES)) if start < size_bytes else None
        if length is None:
            break
        start += length
    file.seek(place)
    return max(0, start - size_bytes)


def _segment_length(head: bytes) -> int | None:
    """Bytes of a Matroska file's EBML header or segment; None: unknown, as in live recordings."""
    element, id_bytes = _ebml_number(head, keeps_marker=True)
    length, length_bytes = _ebml_number(head[id_bytes:], keeps_marker=False)
    if element not in (_EBML, _SEGMENT) or length is None:
        return None
    return id_bytes + length_bytes + length


def _ebml_number(data: bytes, *, keeps_marker: bool) -> tuple[int | None, int]:
    """Read a variable-length number; returns it, None if unknown, and its bytes."""
    count = 9 - data[0].bit_length() if data and data[0] else 0
    if not count or len(data) < count:
        return None, 0
    value = int.from_bytes(data[:count], "big")
    if keeps_marker:
        return value, count
    mask = (1 << 7 * count) - 1
    return (None if value & mask == mask else value & mask), count


def _box_length(head: bytes) -> int | None:
    """Bytes of an MP4 box; None: it ends with the file, or is no box."""
    if len(head) < 8:
        return 8  # not even its length is there
    length = int.from_bytes(head[:4], "big")
    if length == 1:
        length = int.from_bytes(head[8:16], "big")
    return length if length >= 8 and head[4:8] in _BOXES else None


def _riff_length(head: bytes) -> int | None:
    """Bytes of a RIFF chunk, of which an AVI of more than a gigabyte has several.

    None: recorders that were switched off leave 0 as the length.
    """
    length = int.from_bytes(head[4:8], "little")
    return None if head[:4] != b"RIFF" or length in (0, 0xFFFFFFFF) else 8 + length


def _asf_length(head: bytes) -> int | None:
    """Bytes of an ASF object; None: a broadcast's data object has no length."""
    length = int.from_bytes(head[16:24], "little")
    return None if head[:4] not in _ASF_OBJECTS or length < _HEAD_BYTES else length


_LENGTHS: tuple[tuple[str, Callable[[bytes], int | None]], ...] = (
    ("matroska", _segment_length),
    ("mp4", _box_length),
    ("avi", _riff_length),
    ("asf", _asf_length),
)
"""FFmpeg's name of a container, and what reads the length of one of its outermost pieces."""
