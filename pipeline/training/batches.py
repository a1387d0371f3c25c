"""The data set and the collator of the Trainer: prepare samples when needed, join them to a row."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from pipeline.model.frame_size import MERGE_SIZE, PATCH_SIZE
from pipeline.model.patches import normalise, patchify
from pipeline.model.positions import IMAGE
from pipeline.model.prompter import Prompter, Vision
from pipeline.storage.storage import Storage
from pipeline.training.attention import branch_masks
from pipeline.training.groups import Group, halves
from pipeline.training.sample import (
    IGNORED,
    ROOT,
    PreparedMedia,
    Preparer,
    Sample,
)
from schemas.conversation import DataProblem, ProblemType
from schemas.job.finetune import FinetuneJob

Batch = dict[str, Any]
Prepared = list[Sample | DataProblem]

_PIXELS = ("pixel_values", "pixel_values_videos")


class Samples(Dataset[Prepared]):
    """Groups of conversations, prepared on access, in the data loader's process.

    A group gives one sample, or several if all its conversations together are too long. Empty
    groups at the end pad the length to a multiple of ``multiple``, the number of groups that all
    workers take at a time; without them Trainer would repeat samples.
    """

    def __init__(
        self, groups: Sequence[Group], job: FinetuneJob, storage: Storage, multiple: int = 1
    ) -> None:
        self._groups, self._job, self._storage = groups, job, storage
        self._length = -(-len(groups) // multiple) * multiple
        self._preparer: Preparer | None = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, k: int) -> Prepared:
        if k >= len(self._groups):
            return []
        if self._preparer is None:
            self._preparer = Preparer(self._job, self._storage)
        return self._prepare(self._preparer, self._groups[k])

    def _prepare(self, preparer: Preparer, group: Group) -> Prepared:
        prepared = preparer.prepare(group)
        is_long = isinstance(prepared, DataProblem) and prepared.type == ProblemType.OVER_LONG
        if isinstance(prepared, Sample):
            return [prepared]
        if not is_long or len(group) == 1:
            origins = dict.fromkeys(c.origin for c in group)
            return [dataclasses.replace(prepared, origin=origin) for origin in origins]
        return [part for half in halves(group) for part in self._prepare(preparer, half)]


class Collator:
    """Joins samples to a row, and appends those that failed to a file.

    failed: a JSON lines file: sample, type, message.
    """

    def __init__(self, prompter: Prompter, failed: Path) -> None:
        self._blank = blank_sample(prompter.pad_ids["image"])
        self._failed = failed

    def __call__(self, prepared: Sequence[Prepared]) -> Batch:
        """Make a batch from the samples that could be prepared; see ``collate``.

        ``problems`` has a line for each that failed, by its name: the data loader's process cannot
        know how many have failed before, and its exceptions would reach the user as tracebacks.
        """
        samples = [sample for group in prepared for sample in group]
        problems = [sample for sample in samples if isinstance(sample, DataProblem)]
        for problem in problems:
            self._write_failed(problem)
        row = [sample for sample in samples if isinstance(sample, Sample)]
        if not any(sample.media for sample in row):
            row.append(self._blank)
        batch = collate(row)
        if problems:
            batch["problems"] = {p.origin: f"{p.origin}: {p.type}: {p.message}" for p in problems}
        return batch

    def _write_failed(self, problem: DataProblem) -> None:
        line = json.dumps(
            {"sample": problem.origin, "type": problem.type, "message": problem.message}
        )
        # One write: lines of several processes must not mix.
        with self._failed.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


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


def collate(samples: Sequence[Sample]) -> Batch:
    """Join samples to one row: the model's inputs, complete after ``on_device``.

    One row needs no padding, and its length costs memory linearly; see ``attention``.

    Returns:
        input_ids, labels, mm_token_type_ids: int64 [1, L].
        position_ids: int64 [3, 1, L]: M-RoPE's time, height and width.
        logits_to_keep: int64 [K]: the places whose next token is learnt. Logits of all places,
            151,936 numbers each, would take more memory than anything else.
        branches: int32 [L]: the branch numbers.
        spans: the place of each sample.
        pixel_values, pixel_values_videos: uint8 [N, 1536], not normalised yet.
        image_grid_thw, video_grid_thw: int64 [num_media, 3].

    Source: M-RoPE, arXiv 2409.12191.
    """
    spans, labels, at = [], [], 0
    for sample in samples:
        spans.append((at, *(at + np.cumsum(np.bincount(sample.branches))).tolist()))
        # The first token would be predicted from the previous sample.
        labels.append(np.concatenate([[IGNORED], sample.labels[1:]]))
        at += sample.num_tokens
    joined = torch.from_numpy(np.concatenate(labels))

    def row(columns: Sequence[Any]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(columns, axis=-1))

    batch: Batch = {
        "input_ids": row([s.input_ids for s in samples])[None],
        "labels": joined[None],
        "mm_token_type_ids": row([s.types for s in samples])[None],
        "position_ids": row([s.positions for s in samples])[:, None],
        "logits_to_keep": (joined[1:] != IGNORED).nonzero()[:, 0],
        "branches": row([s.branches for s in samples]).to(torch.int32),
        "spans": tuple(spans),
    }
    media = [m for sample in samples for m in sample.media]
    for kind, pixels in (("image", _PIXELS[0]), ("video", _PIXELS[1])):
        if found := [m for m in media if m.media_type == kind]:
            batch[pixels] = torch.cat([patchify(torch.tensor(m.pixels)) for m in found])
            batch[f"{kind}_grid_thw"] = torch.tensor([m.grid_thw for m in found])
    return batch


def on_device(batch: Batch) -> Batch:
    """Complete a batch on its device: normalise the patches, and make the masks of the branches.

    Nothing is generated, so the model keeps no keys and values.
    """
    made = batch | {name: normalise(batch[name]) for name in _PIXELS if name in batch}
    branches = made.pop("branches")
    masks = branch_masks(branches, batch["spans"])
    return made | {"branch_masks": masks, "use_cache": False}
