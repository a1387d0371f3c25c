"""Rotary positions in time, height and width, and which kind each token is of.

The model makes these itself from a prompt; a packed row or a shared prefix needs them made per
conversation. Tests compare with the model's own.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from pipeline.budget import MERGE_SIZE
from pipeline.prompt import IMAGE, TEXT, VIDEO

Ints = np.ndarray[Any, np.dtype[np.int64]]
Grid = tuple[int, int, int]


def token_types(input_ids: Sequence[int], pad_ids: dict[str, int]) -> Ints:
    """``mm_token_type_ids``, int64 [L]: 0 text, 1 image, 2 video."""
    ids = np.asarray(input_ids, dtype=np.int64)
    types = np.full(ids.shape, TEXT, dtype=np.int64)
    types[ids == pad_ids["image"]] = IMAGE
    types[ids == pad_ids["video"]] = VIDEO
    return types


def mrope_positions(types: Ints, grids: Sequence[Grid]) -> Ints:
    """Positions of one conversation, int64 [3, L]: time, height, width.

    types: int64 [L] from ``token_types``.
    grids: (t, h, w) in patches of each image and video, in their order; each frame pair of a video
        has its own run of tokens, with text before it.

    Text counts on in all three; the tokens of a picture have its begin in time, and their row and
    column from there; the text after it goes on behind its longer side.

    Raises:
        ValueError: the runs of vision tokens are not those of the grids.

    Source: ``Qwen3VLModel.get_rope_index`` of transformers.
    """
    pairs = [(h // MERGE_SIZE, w // MERGE_SIZE) for t, h, w in grids for _ in range(t)]
    positions = np.zeros((3, len(types)), dtype=np.int64)
    begin, at, used = 0, 0, 0
    for kind, run in groupby(types.tolist()):
        length = len(list(run))
        here = slice(at, at + length)
        if kind == TEXT:
            positions[:, here] = begin + np.arange(length)
            begin += length
        else:
            height, width = pairs[used] if used < len(pairs) else (0, 0)
            if length != height * width:
                raise ValueError(f"{length} vision tokens for a picture of {height} x {width}")
            positions[0, here] = begin
            positions[1, here] = begin + np.repeat(np.arange(height), width)
            positions[2, here] = begin + np.tile(np.arange(width), height)
            begin += max(height, width)
            used += 1
        at += length
    if used != len(pairs):
        raise ValueError(f"{used} runs of vision tokens for {len(pairs)} pictures")
    return positions
