"""Put samples into the rows of a batch, with the mask that keeps them apart.

The loss is the same packed or padded, with or without a shared prefix; tests compare them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pipeline.model.frame_size import MERGE_SIZE, PATCH_SIZE
from pipeline.model.patches import patchify
from pipeline.model.positions import IMAGE
from pipeline.model.prompter import Vision
from pipeline.training.sample import IGNORED, ROOT, PreparedMedia, Sample

Batch = dict[str, Any]

_PADDING = -1
"""The sample number of padding."""


def pack(samples: Sequence[Sample], max_tokens: int) -> list[list[Sample]]:
    """Pack samples into rows of at most ``max_tokens``; a longer sample is alone in its row.

    Source: first-fit decreasing bin packing (D. S. Johnson, 1973).
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


def blank_sample(image_pad_id: int) -> Sample:
    """A black image of one token, from which nothing is learnt.

    For batches without media, so that the vision encoder and the projector are part of every
    computation. Without it they would have no gradient, and other workers would wait for theirs.
    """
    vision = Vision(media_type="image", pts_seconds=(), tokens_per_slot=1)
    side = PATCH_SIZE * MERGE_SIZE
    black = PreparedMedia(
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
        media=(black,),
    )


def collate(rows: Sequence[Sequence[Sample]], *, pad_id: int, attn_implementation: str) -> Batch:
    """Make the model's inputs from rows of samples.

    Returns:
        input_ids, labels, mm_token_type_ids: int64 [B, L], padded on the right.
        position_ids: int64 [4, B, L]: the token's index in its sample, then M-RoPE's time, height
            and width.
        attention_mask: bool [B, 1, L, L], true where the query (dim 2) sees the key (dim 3). For
            eager attention float32 instead: 0 for true, the minimum for false.
        cu_seq_lens_q, cu_seq_lens_k, max_length_q, max_length_k: for flash_attention_2, in place
            of attention_mask: the ends of the samples, int32 [samples + 1], and their maximum
            length.
        pixel_values, pixel_values_videos: uint8 [N, 1536], not normalised yet.
        image_grid_thw, video_grid_thw: int64 [num_media, 3].

    Raises:
        ValueError: flash_attention_2 with several rows, or with samples that have branches.

    Source: M-RoPE, arXiv 2409.12191; positions of packed rows as in transformers' Qwen3-VL.
    """
    lengths = [sum(s.num_tokens for s in row) for row in rows]
    shape = (len(rows), max(lengths))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    types = np.zeros(shape, dtype=np.int64)
    owners = np.full(shape, _PADDING, dtype=np.int64)
    branches = np.zeros(shape, dtype=np.int64)
    positions = np.zeros((4, *shape), dtype=np.int64)
    for k, row in enumerate(rows):
        at = 0
        for number, sample in enumerate(row):
            here = slice(at, at + sample.num_tokens)
            input_ids[k, here] = sample.input_ids
            labels[k, here] = sample.labels
            labels[k, at] = IGNORED  # it would be predicted from the previous sample
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
            mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
        batch["attention_mask"] = mask
    return batch | _pixels(rows)


def _visible(owners: Any, branches: Any) -> Any:
    """The mask, bool [B, 1, L, L]: earlier tokens of the same sample's root and branch."""
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
    """Patches and grids of all media, in the order of their tokens."""
    batch: Batch = {}
    names = {"image": ("pixel_values", "image"), "video": ("pixel_values_videos", "video")}
    for kind, (pixels, grid) in names.items():
        found = [m for row in rows for s in row for m in s.media if m.media_type == kind]
        if found:
            batch[pixels] = torch.cat([patchify(torch.tensor(m.pixels)) for m in found])
            batch[f"{grid}_grid_thw"] = torch.tensor([m.grid_thw for m in found])
    return batch
