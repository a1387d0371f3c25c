"""Compute token types and M-RoPE positions: rotary positions in time, height and width.

The model computes both for a single prompt. A packed row or a shared prefix needs them for each
conversation. Tests compare with the model's own.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from pipeline.model.frame_size import MERGE_SIZE

Ints = np.ndarray[Any, np.dtype[np.int64]]
Grid = tuple[int, int, int]

TEXT, IMAGE, VIDEO = 0, 1, 2
"""Values of ``mm_token_type_ids``."""


def token_types(input_ids: Sequence[int], pad_ids: dict[str, int]) -> Ints:
    """``mm_token_type_ids`` of a prompt, int64 [L]: TEXT, IMAGE or VIDEO."""
    ids = np.asarray(input_ids, dtype=np.int64)
    types = np.full(ids.shape, TEXT, dtype=np.int64)
    types[ids == pad_ids["image"]] = IMAGE
    types[ids == pad_ids["video"]] = VIDEO
    return types


def mrope_positions(types: Ints, grids: Sequence[Grid]) -> Ints:
    """Positions of one conversation, int64 [3, L]: time, height, width.

    types: int64 [L] from ``token_types``.
    grids: (t, h, w) in patches of each image and video, in order; each frame pair of a video has
        its own run of tokens, with text before it.

    A text token adds 1 to all three positions. The tokens of a picture share one time position;
    their height and width positions count rows and columns. The text after a picture continues
    after its longer side.

    Raises:
        ValueError: the runs of vision tokens do not match the grids.

    Source: ``Qwen3VLModel.get_rope_index`` of transformers.
    """
    pairs = [(h // MERGE_SIZE, w // MERGE_SIZE) for t, h, w in grids for _ in range(t)]
    positions = np.zeros((3, len(types)), dtype=np.int64)
    begin, at, num_used = 0, 0, 0
    for kind, run in groupby(types.tolist()):
        length = len(list(run))
        here = slice(at, at + length)
        if kind == TEXT:
            positions[:, here] = begin + np.arange(length)
            begin += length
        else:
            height, width = pairs[num_used] if num_used < len(pairs) else (0, 0)
            if length != height * width:
                raise ValueError(f"{length} vision tokens for a picture of {height} x {width}")
            positions[0, here] = begin
            positions[1, here] = begin + np.repeat(np.arange(height), width)
            positions[2, here] = begin + np.tile(np.arange(width), height)
            begin += max(height, width)
            num_used += 1
        at += length
    if num_used != len(pairs):
        raise ValueError(f"{num_used} runs of vision tokens for {len(pairs)} pictures")
    return positions
