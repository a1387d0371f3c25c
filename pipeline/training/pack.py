"""Put samples into rows of a batch, and say which token sees which.

Packed or padded, with a shared prefix or without, the loss is the same: tests compare them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.budget import MERGE_SIZE, PATCH_SIZE
from pipeline.engines.patches import patchify
from pipeline.prompt import IMAGE, Vision
from pipeline.training.sample import IGNORED, ROOT, Picture, Sample

Batch = dict[str, Any]

_NOBODY = -1
"""Number of the sample that a padding token belongs to."""


def pack(samples: Sequence[Sample], max_tokens: int) -> list[list[Sample]]:
    """Fill rows of at most ``max_tokens``, longest samples first, each into the first that fits.

    A sample longer than that has a row of its own. Source: first-fit decreasing bin packing.
    """
    rows: list[list[Sample]] = []
    lengths: list[int] = []
    for sample in sorted(samples, key=lambda s: -s.num_tokens):
        for k, length in enumerate(lengths):
            if length + sample.num_tokens <= max_tokens:
                rows[k].append(sample)
                lengths[k] += sample.num_tokens
                break
        else:
            rows.append([sample])
            lengths.append(sample.num_tokens)
    return rows


def blank(image_pad_id: int) -> Sample:
    """A black picture of one token, of which nothing is learnt.

    In a batch without pictures: what learns is then always part of the computation, on every
    worker. Else a projector that learns alone would get no gradient, and shards would wait.
    """
    vision = Vision(media_type="image", pts_seconds=(), tokens_per_slot=1)
    side = PATCH_SIZE * MERGE_SIZE
    black = Picture(
        media_type="image",
        pixels=np.zeros((1, side, side, 3), np.uint8),
        grid_thw=(1, MERGE_SIZE, MERGE_SIZE),
        vision=vision,
    )
    return Sample(
        origin="blank",
        input_ids=np.array([image_pad_id]),
        labels=np.array([IGNORED]),
        types=np.array([IMAGE]),
        branches=np.array([ROOT]),
        positions=np.zeros((3, 1), np.int64),
        pictures=(black,),
    )


def collate(rows: Sequence[Sequence[Sample]], *, pad_id: int, attn_implementation: str) -> Batch:
    """Make the model's inputs of rows of samples.

    input_ids, labels: int64 [B, L], padded on the right.
    position_ids: int64 [4, B, L]: each token's place in its sample, then time, height, width.
    attention_mask: bool [B, 1, L, L], true where the row's token sees the column's (float32, 0 or
        the least number, for eager); with flash_attention_2 there is none: the samples' lengths
        (cu_seq_lens_q, ...) of the one row say it.
    pixel_values, pixel_values_videos: uint8 [N, 1536], not yet normalised; with their grids.

    Raises:
        ValueError: flash_attention_2, and samples with branches.
    """
    lengths = [sum(s.num_tokens for s in row) for row in rows]
    shape = (len(rows), max(lengths))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    types = np.zeros(shape, dtype=np.int64)
    owners = np.full(shape, _NOBODY, dtype=np.int64)
    branches = np.zeros(shape, dtype=np.int64)
    positions = np.zeros((4, *shape), dtype=np.int64)
    for k, row in enumerate(rows):
        at = 0
        for number, sample in enumerate(row):
            here = slice(at, at + sample.num_tokens)
            input_ids[k, here] = sample.input_ids
            labels[k, here] = sample.labels
            labels[k, at] = IGNORED  # it would be learnt from the sample before
            types[k, here] = sample.types
            owners[k, here] = number
            branches[k, here] = sample.branches
            positions[0, k, here] = np.arange(sample.num_tokens)
            positions[1:, k, here] = sample.positions
            at += sample.num_tokens
    batch: Batch = {
        "input_ids": torch.from_numpy(input_ids),
        "labels": torch.from_numpy(labels),
        "mm_token_type_ids": torch.from_numpy(types),
        "position_ids": torch.from_numpy(positions),
    }
    if attn_implementation == "flash_attention_2":
        batch |= _flash_lengths(rows)
    else:
        mask = torch.from_numpy(_visible(owners, branches))
        if attn_implementation == "eager":
            least = torch.finfo(torch.float32).min
            mask = torch.where(mask, 0.0, least)
        batch["attention_mask"] = mask
    return batch | _pixels(rows)


def _visible(owners: Any, branches: Any) -> Any:
    """bool [B, 1, L, L]: same sample, not after it, and of the root or of the same branch."""
    same_sample = owners[:, :, None] == owners[:, None, :]
    same_branch = branches[:, :, None] == branches[:, None, :]
    length = owners.shape[1]
    causal = np.tri(length, dtype=bool)
    seen = same_sample & causal & (same_branch | (branches == ROOT)[:, None, :])
    return seen[:, None]


def _flash_lengths(rows: Sequence[Sequence[Sample]]) -> Batch:
    if len(rows) != 1 or any(sample.branches.any() for row in rows for sample in row):
        raise ValueError("flash_attention_2 takes one packed row of samples without branches")
    lengths = [sample.num_tokens for sample in rows[0]]
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }


def _pixels(rows: Sequence[Sequence[Sample]]) -> Batch:
    """Patches and grids of all pictures, in the order of their tokens."""
    batch: Batch = {}
    names = {"image": ("pixel_values", "image"), "video": ("pixel_values_videos", "video")}
    for kind, (pixels, grid) in names.items():
        found = [p for row in rows for s in row for p in s.pictures if p.media_type == kind]
        if found:
            batch[pixels] = torch.cat([patchify(torch.tensor(p.pixels)) for p in found])
            batch[f"{grid}_grid_thw"] = torch.tensor([p.grid_thw for p in found])
    return batch
