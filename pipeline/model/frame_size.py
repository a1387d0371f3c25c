"""Compute the size at which the model sees an image or a video frame, and its number of tokens.

A patch is 16 x 16 pixels and 2 frames; the model merges 2 x 2 patches to one token. So sides are
multiples of 32, an image token is 32 x 32 pixels, a video token 32 x 32 pixels of a frame pair.

Source: the model's reference code: qwen-vl-utils' ``vision_process`` (images, and videos frame by
frame) and transformers' ``Qwen3VLVideoProcessor`` (videos as a whole). Tests compare the sizes with
the functions of both.
"""

import math
from dataclasses import dataclass

from schemas.errors import ErrorType, UnitError
from schemas.job.sampling import Budget
from schemas.tables.manifest import PartSettings

PATCH_SIZE = 16
MERGE_SIZE = 2
TEMPORAL_PATCH_SIZE = 2
FACTOR = PATCH_SIZE * MERGE_SIZE
TOKEN_PIXELS = FACTOR * FACTOR
PIXEL_MEAN = 0.5
PIXEL_STD = 0.5
MAX_ASPECT_RATIO = 200
REQUESTED_SIZE_TOKENS = (4, 16384)
"""Range of the tokens of an image or frame whose sides a conversation sets."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Size of what the model sees. ``grid_thw`` counts patches; four patches make a token."""

    resized_height: int
    resized_width: int
    grid_thw: tuple[int, int, int]

    @property
    def num_tokens(self) -> int:
        """Number of vision tokens of the language model."""
        t, h, w = self.grid_thw
        return t * h * w // MERGE_SIZE**2


def smart_resize(height: int, width: int, *, min_pixels: int, max_pixels: float) -> tuple[int, int]:
    """Height and width of an image: multiples of 32, nearly the same aspect ratio, area in range.

    Source: ``smart_resize`` of qwen-vl-utils 0.0.14; that of transformers gives other sizes where a
    side has at most 16 pixels.

    Raises:
        UnitError: one side is more than 200 times the other.
    """
    _check_aspect_ratio(height, width)
    return _fit(1, 1, height, width, min_pixels, max_pixels)


def smart_resize_clip(
    num_frames: int, height: int, width: int, *, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Height and width of a clip's frames, where the pixels of all frames together are in range.

    Source: ``smart_resize`` of transformers' ``video_processing_qwen3_vl``.

    Raises:
        UnitError: one side is more than 200 times the other.
    """
    if height < FACTOR or width < FACTOR:
        scale = max(FACTOR / height, FACTOR / width)
        height, width = int(height * scale), int(width * scale)
    _check_aspect_ratio(height, width)
    even_frames = round(num_frames / TEMPORAL_PATCH_SIZE) * TEMPORAL_PATCH_SIZE
    return _fit(num_frames, even_frames, height, width, min_pixels, max_pixels)


def _fit(
    num_frames: int,
    even_frames: int,
    height: int,
    width: int,
    min_pixels: int,
    max_pixels: float,
) -> tuple[int, int]:
    # At least one token: transformers rounds a side of 16 pixels to 0, and then shrinks the other.
    resized_height = max(FACTOR, round(height / FACTOR) * FACTOR)
    resized_width = max(FACTOR, round(width / FACTOR) * FACTOR)
    if even_frames * resized_height * resized_width > max_pixels:
        beta = math.sqrt((num_frames * height * width) / max_pixels)
        resized_height = max(FACTOR, math.floor(height / beta / FACTOR) * FACTOR)
        resized_width = max(FACTOR, math.floor(width / beta / FACTOR) * FACTOR)
    elif even_frames * resized_height * resized_width < min_pixels:
        beta = math.sqrt(min_pixels / (num_frames * height * width))
        resized_height = math.ceil(height * beta / FACTOR) * FACTOR
        resized_width = math.ceil(width * beta / FACTOR) * FACTOR
    return resized_height, resized_width


def image_size(
    height: int, width: int, budget: Budget, settings: PartSettings | None = None
) -> Size:
    """Size of an image under the job's budget, or its own settings in a conversation.

    Raises:
        UnitError: one side is more than 200 times the other.
    """
    settings = settings or PartSettings()
    if resized := _requested_size(settings):
        return _size(1, *resized)
    min_pixels, max_pixels = _pixel_range(budget.image_tokens, settings)
    return _size(1, *smart_resize(height, width, min_pixels=min_pixels, max_pixels=max_pixels))


def video_size(
    num_frames: int,
    height: int,
    width: int,
    budget: Budget,
    settings: PartSettings | None = None,
) -> Size:
    """Size of the frames of a video under the job's budget, or its own settings.

    num_frames: even.

    Limits in ``settings`` apply to each frame, also if the job's rule is ``per_clip``. As in the
    reference, its ``max_pixels`` lowers the job's maximum and does not raise it.

    Raises:
        UnitError: one side is more than 200 times the other.
    """
    settings = settings or PartSettings()
    grid_t = num_frames // TEMPORAL_PATCH_SIZE
    if resized := _requested_size(settings):
        return _size(grid_t, *resized)
    min_pixels, own_max = _pixel_range(budget.frame_tokens, settings)
    total = settings.total_pixels or budget.unit_tokens * TOKEN_PIXELS
    has_limits = settings.min_pixels or settings.max_pixels or settings.total_pixels
    if budget.video_rule == "per_clip" and not has_limits:
        resized = smart_resize_clip(
            num_frames,
            height,
            width,
            min_pixels=min_pixels,
            max_pixels=total * TEMPORAL_PATCH_SIZE,
        )
    else:
        # Two frames share a token, hence the factor. The minimum of a frame wins over the total.
        frame_max = budget.frame_tokens[1] * TOKEN_PIXELS
        share = total / num_frames * TEMPORAL_PATCH_SIZE
        max_pixels = max(min(frame_max, share), int(min_pixels * 1.05))
        if settings.max_pixels:
            max_pixels = min(max_pixels, own_max)
        resized = smart_resize(height, width, min_pixels=min_pixels, max_pixels=max_pixels)
    return _size(grid_t, *resized)


def _pixel_range(tokens: tuple[int, int], settings: PartSettings) -> tuple[int, int]:
    """Minimum and maximum of pixels. A limit in ``settings`` wins over one of the job."""
    min_pixels = settings.min_pixels or tokens[0] * TOKEN_PIXELS
    max_pixels = settings.max_pixels or tokens[1] * TOKEN_PIXELS
    if settings.min_pixels:
        return min_pixels, max(min_pixels, max_pixels)
    return (min_pixels if min_pixels <= max_pixels else TOKEN_PIXELS), max_pixels


def _requested_size(settings: PartSettings) -> tuple[int, int] | None:
    """Height and width that ``settings`` requests, as multiples of 32 in the model's range."""
    if settings.resized_height is None or settings.resized_width is None:
        return None
    min_tokens, max_tokens = REQUESTED_SIZE_TOKENS
    return smart_resize(
        settings.resized_height,
        settings.resized_width,
        min_pixels=min_tokens * TOKEN_PIXELS,
        max_pixels=max_tokens * TOKEN_PIXELS,
    )


def _size(grid_t: int, resized_height: int, resized_width: int) -> Size:
    return Size(
        resized_height=resized_height,
        resized_width=resized_width,
        grid_thw=(grid_t, resized_height // PATCH_SIZE, resized_width // PATCH_SIZE),
    )


def _check_aspect_ratio(height: int, width: int) -> None:
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise UnitError(
            ErrorType.MEDIA_UNSUPPORTED,
            f"{width}x{height}: one side is more than {MAX_ASPECT_RATIO} times the other, "
            "which the model does not support; crop the picture",
        )
