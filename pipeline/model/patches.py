"""Cut frames into patches, the input rows of the vision tower."""

import math

import numpy as np
import torch

from pipeline.model.frame_size import (
    MERGE_SIZE,
    PATCH_SIZE,
    PIXEL_MEAN,
    PIXEL_STD,
    TEMPORAL_PATCH_SIZE,
)
from schemas.tables.unit import PreparedUnit


def seen_pixels(unit: PreparedUnit) -> list[torch.Tensor]:
    """Frames of each image and video of the unit, ``uint8 [T, H, W, 3]``; empty for text alone."""
    if not unit.seen:
        return []
    assert unit.frame_data is not None
    shapes = [
        (part.sampling.num_frames, part.sampling.resized_height, part.sampling.resized_width, 3)
        for part in unit.seen
    ]
    # torch warns of a buffer that is not writable.
    data = torch.from_numpy(np.frombuffer(bytearray(unit.frame_data), np.uint8))
    parts = torch.split(data, [math.prod(shape) for shape in shapes])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def patches(pixels: torch.Tensor) -> torch.Tensor:
    """Cut frames into rows and normalise them, on the device of ``pixels``.

    pixels: uint8 [T, H, W, 3]; T is 1 for an image, whose frame is used twice, else even.

    Returns float32 [T/2 * H/16 * W/16, 1536].
    """
    return normalise(patchify(pixels))


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Scale uint8 0..255 to float32 -1..1."""
    return (pixels.to(torch.float32) * (1 / 255) - PIXEL_MEAN) / PIXEL_STD


def patchify(pixels: torch.Tensor) -> torch.Tensor:
    """Cut frames [T, H, W, 3] into rows [T/2 * H/16 * W/16, 1536] of the same dtype.

    A row is 3 channels x 2 frames x 16 x 16; rows are ordered (t, h/2, w/2, 2, 2) over the grid.

    Source: ``Qwen2VLImageProcessor.patchify`` of transformers; tests compare with it.
    """
    if pixels.shape[0] == 1:
        pixels = pixels.expand(TEMPORAL_PATCH_SIZE, -1, -1, -1)
    frames, height, width, channels = pixels.shape
    side = PATCH_SIZE * MERGE_SIZE
    values = pixels.reshape(
        frames // TEMPORAL_PATCH_SIZE,
        TEMPORAL_PATCH_SIZE,
        height // side,
        MERGE_SIZE,
        PATCH_SIZE,
        width // side,
        MERGE_SIZE,
        PATCH_SIZE,
        channels,
    )
    rows = values.permute(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return rows.reshape(-1, channels * TEMPORAL_PATCH_SIZE * PATCH_SIZE**2)
