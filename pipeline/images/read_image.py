"""Read images with Pillow: upright, RGB, transparency on white, resized.

Source: the model's reference code, qwen-vl-utils' ``vision_process``.
"""

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from PIL import Image, UnidentifiedImageError

from pipeline.images.camera_raw import (
    MIN_PREVIEW_SIDE,
    is_camera_raw,
    largest_preview,
    other_raw_format,
)
from pipeline.images.orientation import UPRIGHT, Orientation, image_orientation
from pipeline.storage.media_file import MediaFile
from schemas.errors import ErrorType, UnitError

logger = logging.getLogger(__name__)

MAX_IMAGE_PIXELS = 1 << 28
"""Largest image that is decoded: 268 megapixels, 0.8 GB as RGB. Guards against image bombs."""

Image.MAX_IMAGE_PIXELS = None  # open_image checks the limit above

_TRANSPOSES = {
    Orientation(0, True): Image.Transpose.FLIP_LEFT_RIGHT,
    Orientation(180): Image.Transpose.ROTATE_180,
    Orientation(180, True): Image.Transpose.FLIP_TOP_BOTTOM,
    Orientation(90, True): Image.Transpose.TRANSPOSE,
    Orientation(90): Image.Transpose.ROTATE_270,  # Pillow counts counter-clockwise
    Orientation(270, True): Image.Transpose.TRANSVERSE,
    Orientation(270): Image.Transpose.ROTATE_90,
}
_UPRIGHT_FORMATS = ("TIFF",)
"""Pillow rotates these formats itself: its size is the displayed one."""

_SMALLER_DEPTHS = (8, 10, 12, 14)
"""Bits that cameras and scanners store in samples of 16 bits."""

_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# fmt: off
_SELF_CONTAINED = (
    "JPEG", "PNG", "HEIF", "GIF", "BMP", "PPM", "AVIF", "TIFF", "WEBP", "JPEG2000", "CUR", "DCX",
    "DDS", "DIB", "ICNS", "ICO", "PCX", "PSD", "QOI", "SGI", "SUN", "XBM", "XPM", "PCD",
    "TGA",  # the last: it has no magic number
)
# fmt: on
"""Formats that Pillow reads from the file's own bytes.

EPS starts Ghostscript, WMF calls Windows, IPTC opens what it contains in any format.
"""

try:
    import pillow_heif

    pillow_heif.register_heif_opener()
except ImportError:  # there is no wheel for this platform
    logger.warning("pillow-heif is not installed: HEIC images will be error rows")

Image.init()
FORMATS = tuple(name for name in _SELF_CONTAINED if name in Image.OPEN)
"""Pillow's names of the formats that are read, whatever a file is called."""


@dataclass(frozen=True, kw_only=True)
class OpenedImage:
    """An image whose pixels are not decoded yet.

    orientation: that the header requests.
    """

    image: Image.Image
    orientation: Orientation
    notes: tuple[str, ...] = ()

    @property
    def turn(self) -> Image.Transpose | None:
        """What is still to be done for an upright picture after Pillow has decoded it."""
        is_upright = self.image.format in _UPRIGHT_FORMATS
        return None if is_upright else _TRANSPOSES.get(self.orientation)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as displayed."""
        if self.image.format in _UPRIGHT_FORMATS:
            return self.image.size
        return self.orientation.upright_size(*self.image.size)


def open_image(media: MediaFile) -> OpenedImage:
    """Open an image without decoding its pixels; of a camera's raw file its largest preview.

    Raises:
        UnitError: the format is none of FORMATS, the header is broken, the image has more than
            MAX_IMAGE_PIXELS, or a raw file has only a small preview.
    """
    media.file.seek(0)
    head = media.file.read(16)
    media.file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of EXIF that it cannot read
            image = Image.open(media.file, formats=FORMATS)
            found = OpenedImage(image=image, orientation=image_orientation(image))
            if image.format == "TIFF" and is_camera_raw(image, media.file):
                found = _open_preview(media, found.orientation)
    except UnidentifiedImageError as error:
        raise _unidentified(head) from error
    except UnitError:
        raise
    except Exception as error:  # each Pillow plugin raises its own types
        raise UnitError(ErrorType.MEDIA_UNREADABLE, f"broken image header: {error}") from error
    width, height = found.image.size
    if width * height > MAX_IMAGE_PIXELS:
        raise UnitError(
            ErrorType.MEDIA_TOO_LARGE,
            f"{width}x{height} is over the limit of {MAX_IMAGE_PIXELS} pixels",
        )
    return found


def _open_preview(media: MediaFile, orientation: Orientation) -> OpenedImage:
    """Open the preview of a camera's raw file. orientation: of the raw file."""
    preview = largest_preview(media.file)
    size = (
        "no preview" if preview is None else f"a preview of only {preview.width}x{preview.height}"
    )
    if preview is None or max(preview.size) < MIN_PREVIEW_SIDE:
        raise UnitError(
            ErrorType.MEDIA_UNSUPPORTED,
            f"a camera's raw file with {size}: develop it to JPEG, HEIC or TIFF",
        )
    own = image_orientation(preview)
    note = f"a camera's raw file: its preview of {preview.width}x{preview.height} was used"
    return OpenedImage(
        image=preview, orientation=own if own != UPRIGHT else orientation, notes=(note,)
    )


def _unidentified(head: bytes) -> UnitError:
    """The error for a file in none of FORMATS. head: its first 16 bytes."""
    raw = other_raw_format(head)
    if raw is not None:
        return UnitError(
            ErrorType.MEDIA_UNSUPPORTED,
            f"a camera's raw file ({raw}): develop it to JPEG, HEIC or TIFF",
        )
    if head[:4] in _TIFF_MAGIC:
        return UnitError(
            ErrorType.MEDIA_UNSUPPORTED,
            "a TIFF file of a kind that Pillow does not read: convert it to 8-bit RGB",
        )
    name = _refused_format(head)
    if name is not None:
        return UnitError(
            ErrorType.MEDIA_UNSUPPORTED,
            f"an image in the format {name}, which is not read: convert it to PNG or JPEG",
        )
    return UnitError(
        ErrorType.MEDIA_UNREADABLE, f"not an image in any known format: {', '.join(FORMATS)}"
    )


def _refused_format(head: bytes) -> str | None:
    """Name of a format that Pillow would read, from the first 16 bytes; its reader does not run."""
    for name, (_, accept) in Image.OPEN.items():
        if name not in FORMATS and accept is not None and accept(head):
            return name
    return None


def load_image(media: MediaFile) -> Image.Image:
    """Decode an image (the first frame of an animation) to upright RGB on white.

    Raises:
        UnitError: as ``open_image``; or the pixel data are broken or cut short.
    """
    opened = open_image(media)
    image, turn = opened.image, opened.turn
    try:
        is_deep = any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))
        image.load()
        if (
            is_deep
            and image.mode == "RGB"
            and np.asarray(image).max(initial=0) < 1 << _SMALLER_DEPTHS[-1] - 8
        ):
            image, turn = _deep_rgb(media), _TRANSPOSES.get(opened.orientation)
        return to_rgb(image.transpose(turn) if turn is not None else image)
    except MemoryError as error:
        raise UnitError(
            ErrorType.MEDIA_TOO_LARGE, f"not enough memory for {image.width}x{image.height} pixels"
        ) from error
    except Exception as error:  # each Pillow plugin raises its own types
        raise UnitError(ErrorType.MEDIA_UNREADABLE, f"broken image data: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB; transparent pixels are blended with white."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Keep the upper 8 bits of 16-bit gray; Pillow's own conversion would clip at 255."""
    values = np.asarray(image)
    if image.mode == "F":
        top = float(np.nanmax(values)) if values.size else 0.0
        scaled: Any = values * (255.0 if top <= 1.0 else 1.0)
        return Image.fromarray(np.nan_to_num(scaled).clip(0, 255).astype(np.uint8))
    return Image.fromarray(_upper_8_bits(values.astype(np.int64).clip(0, 65535)))


def _upper_8_bits(values: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The upper 8 of the bits that the samples use: cameras store 10 or 12 bits in 16."""
    bits = int(values.max(initial=0)).bit_length()
    used = next(depth for depth in (*_SMALLER_DEPTHS, 16) if bits <= depth)
    return (values >> (used - 8)).astype(np.uint8)


def _deep_rgb(media: MediaFile) -> Image.Image:
    """Decode RGB of 16 bits, of which Pillow keeps the upper 8, as it is stored."""
    media.file.seek(0)
    with av.open(media.file, "r", options={"protocol_whitelist": ""}) as container:
        frame = next(container.decode(video=0))
    return Image.fromarray(_upper_8_bits(frame.to_ndarray(format="rgb48le")))


def resize(image: Image.Image, height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Resize RGB to ``uint8 [height, width, 3]``: bicubic with antialias."""
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)
