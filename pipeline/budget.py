"""How large an image or a video frame is for the model, and how many tokens it costs.

A patch is 16 x 16 pixels and 2 frames; the model merges 2 x 2 patches to one token. So sides are
multiples of 32, an image token is 32 x 32 pixels, a video token 32 x 32 pixels of a frame pair.

Source: the size rules are those of the model's reference code, qwen-vl-utils' ``vision_process``
(images, and videos frame by frame) and transformers' ``Qwen3VLVideoProcessor`` (videos as a
whole); tests compare with transformers' functions.
"""

import math
from dataclasses import dataclass

from schemas.errors import ErrorType, UnitError
from schemas.job import Budget
from schemas.manifest import PartSettings

PATCH_SIZE = 16
MERGE_SIZE = 2
TEMPORAL_PATCH_SIZE = 2
FACTOR = PATCH_SIZE * MERGE_SIZE
TOKEN_PIXELS = FACTOR * FACTOR
MAX_ASPECT_RATIO = 200
IMAGE_TOKENS = (4, 16384)
"""What the reference holds a size to that is asked for by its sides."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Size of what the model sees. grid_thw counts patches; four patches make a token."""

    resized_height: int
    resized_width: int
    grid_thw: tuple[int, int, int]

    @property
    def num_tokens(self) -> int:
        """Vision tokens that the language model gets."""
        t, h, w = self.grid_thw
        return t * h * w // MERGE_SIZE**2


def smart_resize(height: int, width: int, *, min_pixels: int, max_pixels: float) -> tuple[int, int]:
    """Size of an image: sides multiples of 32, area within the range, aspect ratio about kept.

    Raises:
        UnitError: one side is more than 200 times the other.
    """
    _check_aspect(height, width)
    resized_height = round(height / FACTOR) * FACTOR
    resized_width = round(width / FACTOR) * FACTOR
    if resized_height * resized_width > max_pixels:
        beta = math.sqrt((height * width) / max_pixels)
        resized_height = max(FACTOR, math.floor(height / beta / FACTOR) * FACTOR)
        resized_width = max(FACTOR, math.floor(width / beta / FACTOR) * FACTOR)
    elif resized_height * resized_width < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        resized_height = math.ceil(height * beta / FACTOR) * FACTOR
        resized_width = math.ceil(width * beta / FACTOR) * FACTOR
    return resized_height, resized_width


def smart_resize_clip(
    num_frames: int, height: int, width: int, *, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Size of a clip's frames by transformers' video rule: the area counts frames x height x width.

    Raises:
        UnitError: one side is more than 200 times the other.
    """
    if height < FACTOR or width < FACTOR:
        scale = max(FACTOR / height, FACTOR / width)
        height, width = int(height * scale), int(width * scale)
    _check_aspect(height, width)
    resized_height = round(height / FACTOR) * FACTOR
    resized_width = round(width / FACTOR) * FACTOR
    frames = round(num_frames / TEMPORAL_PATCH_SIZE) * TEMPORAL_PATCH_SIZE
    if frames * resized_height * resized_width > max_pixels:
        beta = math.sqrt((num_frames * height * width) / max_pixels)
        resized_height = max(FACTOR, math.floor(height / beta / FACTOR) * FACTOR)
        resized_width = max(FACTOR, math.floor(width / beta / FACTOR) * FACTOR)
    elif frames * resized_height * resized_width < min_pixels:
        beta = math.sqrt(min_pixels / (num_frames * height * width))
        resized_height = math.ceil(height * beta / FACTOR) * FACTOR
        resized_width = math.ceil(width * beta / FACTOR) * FACTOR
    return resized_height, resized_width


def image_size(
    height: int, width: int, budget: Budget, settings: PartSettings | None = None
) -> Size:
    """Size of an image under the job's budget, and its own settings where it has some.

    Raises:
        UnitError: the aspect ratio is over 200.
    """
    settings = settings or PartSettings()
    if resized := _asked_size(settings):
        return _size(1, *resized)
    least, most = _limits(budget.image_tokens, settings)
    return _size(1, *smart_resize(height, width, min_pixels=least, max_pixels=most))


def video_size(
    num_frames: int,
    height: int,
    width: int,
    budget: Budget,
    settings: PartSettings | None = None,
) -> Size:
    """Size of the frames of a video of ``num_frames`` frames (even), as ``image_size``.

    Limits of its own are those of a frame, whatever the job's rule; as in the reference, its
    ``max_pixels`` lowers the job's most and does not raise it.

    Raises:
        UnitError: the aspect ratio is over 200.
    """
    settings = settings or PartSettings()
    grid_t = num_frames // TEMPORAL_PATCH_SIZE
    if resized := _asked_size(settings):
        return _size(grid_t, *resized)
    least, asked = _limits(budget.frame_tokens, settings)
    total = settings.total_pixels or budget.unit_tokens * TOKEN_PIXELS
    has_limits = settings.min_pixels or settings.max_pixels or settings.total_pixels
    if budget.video_rule == "per_clip" and not has_limits:
        resized = smart_resize_clip(
            num_frames, height, width, min_pixels=least, max_pixels=total * TEMPORAL_PATCH_SIZE
        )
    else:
        # Two frames share a token, hence the factor; the floor wins over the total, as there.
        frame_most = budget.frame_tokens[1] * TOKEN_PIXELS
        most = max(min(frame_most, total / num_frames * TEMPORAL_PATCH_SIZE), int(least * 1.05))
        if settings.max_pixels:
            most = min(most, asked)
        resized = smart_resize(height, width, min_pixels=least, max_pixels=most)
    return _size(grid_t, *resized)


def _limits(tokens: tuple[int, int], settings: PartSettings) -> tuple[int, int]:
    """[least, most] pixels; a limit of the job's that crosses the part's own gives way."""
    least = settings.min_pixels or tokens[0] * TOKEN_PIXELS
    most = settings.max_pixels or tokens[1] * TOKEN_PIXELS
    if settings.min_pixels:
        return least, max(least, most)
    return (least if least <= most else TOKEN_PIXELS), most


def _asked_size(settings: PartSettings) -> tuple[int, int] | None:
    """The size that a part asks for by its sides, as multiples of 32 within the model's range."""
    if settings.resized_height is None or settings.resized_width is None:
        return None
    least, most = IMAGE_TOKENS
    return smart_resize(
        settings.resized_height,
        settings.resized_width,
        min_pixels=least * TOKEN_PIXELS,
        max_pixels=most * TOKEN_PIXELS,
    )


def _size(grid_t: int, resized_height: int, resized_width: int) -> Size:
    return Size(
        resized_height=resized_height,
        resized_width=resized_width,
        grid_thw=(grid_t, resized_height // PATCH_SIZE, resized_width // PATCH_SIZE),
    )


def _check_aspect(height: int, width: int) -> None:
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise UnitError(
            ErrorType.MEDIA_UNSUPPORTED,
            f"{width}x{height}: one side is more than {MAX_ASPECT_RATIO} times the other, "
            "the model takes none such",
        )
