"""Pictures with Pillow: opened, upright, RGB on white, resized as in the model's reference."""

import logging
from typing import Any

import numpy as np
from PIL import Image

from pipeline.storage import MediaFile
from schemas.errors import ErrorType, UnitError

logger = logging.getLogger(__name__)

MAX_IMAGE_PIXELS = 1 << 28
"""Largest image that is decoded (268 megapixels, 0.8 GB as RGB): a guard against bombs."""

Image.MAX_IMAGE_PIXELS = None  # checked here, against the limit above, with a message of our own

# EXIF orientation -> clockwise degrees; 2, 4, 5 and 7 are mirrored as well.
_ROTATIONS = {1: 0, 2: 0, 3: 180, 4: 180, 5: 90, 6: 90, 7: 270, 8: 270}
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112
_TURNED = ("TIFF",)
"""Pillow turns these itself: their size is the displayed one from the start."""

try:
    import pillow_heif

    pillow_heif.register_heif_opener()
except ImportError:  # no wheel for this platform: HEIC files become error rows that say so
    logger.warning("pillow-heif is not installed: HEIC images cannot be read")


def open_image(media: MediaFile) -> Image.Image:
    """Open an image without decoding its pixels.

    Raises:
        UnitError: not an image Pillow knows, broken, or more than MAX_IMAGE_PIXELS.
    """
    media.file.seek(0)
    try:
        image = Image.open(media.file)
    except Image.UnidentifiedImageError as error:
        raise UnitError(ErrorType.MEDIA_UNREADABLE, "not an image in any known format") from error
    except (
        Exception
    ) as error:  # a broken header: each of Pillow's readers raises its own exceptions
        raise UnitError(ErrorType.MEDIA_UNREADABLE, f"broken image header: {error}") from error
    if image.width * image.height > MAX_IMAGE_PIXELS:
        raise UnitError(
            ErrorType.MEDIA_TOO_LARGE,
            f"{image.width}x{image.height} is over the limit of {MAX_IMAGE_PIXELS} pixels",
        )
    return image


def upright_size(image: Image.Image) -> tuple[int, int, int]:
    """Width, height and clockwise rotation of an image as displayed, by its EXIF orientation."""
    rotation = _ROTATIONS.get(_orientation(image), 0)
    if rotation in (90, 270) and image.format not in _TURNED:
        return image.height, image.width, rotation
    return image.width, image.height, rotation


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8, from the header; a PNG's EXIF after its pixels does not count."""
    if image.format != "PNG":
        return int(image.getexif().get(_ORIENTATION, 1))
    exif = Image.Exif()  # getexif() of a PNG would decode the pixels to look behind them
    exif.load(image.info.get("exif", b""))
    return int(exif.get(_ORIENTATION, 1))


def load_image(media: MediaFile) -> Image.Image:
    """Decode an image (the first frame of an animation) to upright RGB on white.

    Raises:
        UnitError: as open_image, or the pixel data are broken or cut short.
    """
    image = open_image(media)
    try:
        turn = None if image.format in _TURNED else _TURNS.get(_orientation(image))
        image.load()
        return to_rgb(image.transpose(turn) if turn is not None else image)
    except MemoryError as error:
        raise UnitError(ErrorType.MEDIA_TOO_LARGE, f"no memory for {image.size} pixels") from error
    except (
        Exception
    ) as error:  # hostile pixels: each of Pillow's decoders raises its own exceptions
        raise UnitError(ErrorType.MEDIA_UNREADABLE, f"broken image data: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB, with transparency put onto white as the model's reference does."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    white = Image.new("RGB", rgba.size, (255, 255, 255))
    white.paste(rgba, mask=rgba.getchannel("A"))
    return white


def _to_8_bit(image: Image.Image) -> Image.Image:
    """16-bit gray keeps its upper eight bits; Pillow's own conversion would clip at 255."""
    values = np.asarray(image)
    if image.mode == "F":
        top = float(np.nanmax(values)) if values.size else 0.0
        scaled: Any = values * (255.0 if top <= 1.0 else 1.0)
        return Image.fromarray(np.nan_to_num(scaled).clip(0, 255).astype(np.uint8))
    return Image.fromarray((values.astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))


def resize(image: Image.Image, height: int, width: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Resize RGB to ``uint8 [height, width, 3]``: bicubic with antialias, as in training."""
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.uint8)
