"""Small MP4 files whose headers claim more than their bytes hold."""

import io
import struct

from PIL import Image


def claiming_mp4(*, num_samples: int = 1, sample_seconds: int = 1, missing_bytes: int = 0) -> bytes:
    """An MP4 with one picture, as Motion JPEG.

    num_samples, sample_seconds: what its tables claim, in few bytes, whatever the number.
    missing_bytes: that the picture's box claims, behind the end of the file.
    """
    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), (40, 90, 60)).save(buffer, "JPEG")
    picture = buffer.getvalue()
    seconds = min(num_samples * sample_seconds, 0xFFFFFFFF)
    matrix = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    entry = _box(
        "jpeg",
        bytes(6) + struct.pack(">H", 1) + bytes(16),
        struct.pack(">HHIIIH", 64, 48, 0x480000, 0x480000, 0, 1),
        bytes(32) + struct.pack(">Hh", 24, -1),
    )
    head = _box("ftyp", b"isom", bytes(4), b"isom")
    table = _box(
        "stbl",
        _full("stsd", _ints(1), entry),
        _full("stts", _ints(1, num_samples, sample_seconds)),
        _full("stsc", _ints(1, 1, num_samples, 1)),
        _full("stsz", _ints(len(picture) if num_samples == 1 else 1, num_samples)),
        _full("stco", _ints(1, 0)),
    )
    index = _box(
        "moov",
        _full(
            "mvhd",
            _ints(0, 0, 1, seconds, 0x10000),
            struct.pack(">H10x", 0x100),
            matrix + bytes(24) + _ints(2),
        ),
        _box(
            "trak",
            _box(
                "tkhd", _ints(3, 0, 0, 1, 0, seconds), bytes(16), matrix, _ints(64 << 16, 48 << 16)
            ),
            _box(
                "mdia",
                _full("mdhd", _ints(0, 0, 1, seconds), struct.pack(">HH", 0x55C4, 0)),
                _full("hdlr", _ints(0), b"vide", bytes(12), b"\0"),
                _box("minf", _full("vmhd", bytes(8)), table),
            ),
        ),
    )
    place = len(head) + len(index) + 8
    index = index.replace(_full("stco", _ints(1, 0)), _full("stco", _ints(1, place)))
    return head + index + struct.pack(">I4s", 8 + len(picture) + missing_bytes, b"mdat") + picture


def _box(name: str, *content: bytes) -> bytes:
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), name.encode()) + body


def _full(name: str, *content: bytes) -> bytes:
    return _box(name, bytes(4), *content)


def _ints(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)
