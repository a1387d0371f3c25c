"""Prepared units made without files: random frames of given sizes, and made-up token ids."""

import numpy as np

from schemas.tables.media import Media, Part, Sampling
from schemas.tables.unit import PreparedUnit


def unit_of_frames(unit_id: str, *shapes: tuple[int, int, int]) -> PreparedUnit:
    """A unit of images and videos with random pixels.

    shapes: (frames, height, width) of each; one frame is an image.
    """
    rng = np.random.default_rng(sum(map(sum, shapes)))
    pixels = [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    return PreparedUnit(
        unit_id=unit_id,
        media_id=unit_id,
        uri=unit_id,
        parts=tuple(_part(unit_id, *shape) for shape in shapes),
        frame_data=b"".join(each.tobytes() for each in pixels),
    )


def _part(uri: str, frames: int, height: int, width: int) -> Part:
    grid = (-(-frames // 2), height // 16, width // 16)
    return Part(
        uri=uri,
        media=Media(media_type="image" if frames == 1 else "video", width=width, height=height),
        sampling=Sampling(
            num_frames=frames,
            resized_height=height,
            resized_width=width,
            grid_thw=grid,
            num_vision_tokens=grid[0] * grid[1] * grid[2] // 4,
        ),
    )
