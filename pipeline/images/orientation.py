"""How a picture is turned to stand upright: the eight orientations, of images and of videos."""

import struct
import warnings
from dataclasses import dataclass
from typing import Any

from av.video.frame import VideoFrame
from PIL import Image

_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Orientation:
    """What makes a picture upright.

    rotation: clockwise degrees: 0, 90, 180 or 270.
    is_mirrored: left and right are exchanged after the rotation.
    """

    rotation: int = 0
    is_mirrored: bool = False

    def upright_size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of the upright picture."""
        return (height, width) if self.rotation in (90, 270) else (width, height)


UPRIGHT = Orientation()

EXIF = {
    1: UPRIGHT,
    2: Orientation(0, True),
    3: Orientation(180),
    4: Orientation(180, True),
    5: Orientation(90, True),
    6: Orientation(90),
    7: Orientation(270, True),
    8: Orientation(270),
}

_BY_SIGNS: dict[tuple[int, ...], int] = {
    (1, 0, 0, 1): 1,
    (-1, 0, 0, 1): 2,
    (-1, 0, 0, -1): 3,
    (1, 0, 0, -1): 4,
    (0, 1, 1, 0): 5,
    (0, 1, -1, 0): 6,
    (0, -1, -1, 0): 7,
    (0, -1, 1, 0): 8,
}
"""EXIF orientations by the signs of a display matrix: (x, y) is shown at (ax + cy, bx + dy)."""


def image_orientation(image: Image.Image) -> Orientation:
    """Read an image's orientation from its header: EXIF, raw profile or XMP.

    A value that means nothing gives an upright picture, as in viewers. EXIF after the pixels of a
    PNG is ignored.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the EXIF that is handled below
            # A PNG's own getexif() would decode the pixels first.
            value = Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1)
        return EXIF.get(int(value), UPRIGHT)
    except Exception:  # Pillow raises many types for malformed EXIF
        return UPRIGHT


def frame_orientation(frame: VideoFrame) -> Orientation:
    """Read a video frame's orientation from its display matrix.

    A matrix of another angle gives an upright picture: it comes from a broken header.

    Source: ISO/IEC 14496-12, 6.2.2: matrix a, b, u, c, d, v, x, y, w.
    """
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return UPRIGHT
    a, b, _, c, d = struct.unpack_from("=5i", bytes(data))
    largest = max(abs(value) for value in (a, b, c, d))
    # Matrices written as sines and cosines are not exactly zero.
    signs = [0 if abs(value) * 50 < largest else (1 if value > 0 else -1) for value in (a, b, c, d)]
    return EXIF[_BY_SIGNS.get(tuple(signs), 1)] if largest else UPRIGHT
