"""Run images and videos through the vision tower: many at a time, frames of equal size together."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from pipeline.engines.transformers.attention import FRAMES
from pipeline.model.frame_size import MERGE_SIZE, PATCH_SIZE, TEMPORAL_PATCH_SIZE
from pipeline.model.memory import VISION_PASS_PATCHES
from pipeline.model.patches import patches, seen_pixels
from schemas.tables.unit import PreparedUnit


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Features of the images and videos of a unit, in the order of their tokens.

    embeddings: float [N, hidden].
    deepstack: float [N, hidden] for each DeepStack layer; some families have none.
    """

    embeddings: torch.Tensor
    deepstack: tuple[torch.Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class _Frames:
    """Frames of one image or video, all or some.

    unit: index of the unit.
    place: the unit's parts, and the pieces of a part, in order.
    pixels: uint8 [T, H, W, 3].
    """

    unit: int
    place: tuple[int, int]
    pixels: torch.Tensor

    @property
    def grid(self) -> tuple[int, int, int]:
        """Frame pairs, and rows and columns of patches."""
        frames, height, width, _ = self.pixels.shape
        return -(-frames // TEMPORAL_PATCH_SIZE), height // PATCH_SIZE, width // PATCH_SIZE

    def split(self, pairs: int) -> tuple["_Frames", "_Frames"]:
        """The first ``pairs`` frame pairs, and the others."""
        at = pairs * TEMPORAL_PATCH_SIZE
        part, piece = self.place
        first = _Frames(unit=self.unit, place=self.place, pixels=self.pixels[:at])
        rest = _Frames(unit=self.unit, place=(part, piece + 1), pixels=self.pixels[at:])
        return first, rest


class VisionEncoder:
    """Encodes the images and videos of units with a model's vision tower."""

    def __init__(self, model: Any, max_patches: int = VISION_PASS_PATCHES) -> None:
        """Take the vision tower of ``model``, and replace its patch convolution by a product.

        max_patches: bounds the memory of a pass.
        """
        self._tower = model.model.visual
        self._max_patches = max_patches
        self._is_framed = self._tower.config._attn_implementation == FRAMES
        self._tower.patch_embed = PatchProduct(self._tower.patch_embed.proj)
        self._positions = lru_cache(maxsize=256)(self._positions_of_a_frame)

    def encode(self, units: Sequence[PreparedUnit]) -> list[Encoded | None]:
        """Encode units; None for one without images and videos.

        Attention stays within a frame pair, so a video may be cut between any two of them.
        """
        pieces: list[list[tuple[tuple[int, int], list[torch.Tensor]]]] = [[] for _ in units]
        for some in _passes(_all_frames(units), self._max_patches):
            for frames, found in zip(some, self._run(some), strict=True):
                pieces[frames.unit].append((frames.place, found))
        encoded: list[Encoded | None] = []
        for of_unit in pieces:
            in_order = [found for _, found in sorted(of_unit, key=lambda item: item[0])]
            of_unit.clear()
            joined = [torch.cat(layer) for layer in zip(*in_order, strict=True)]
            encoded.append(
                Encoded(embeddings=joined[0], deepstack=tuple(joined[1:])) if joined else None
            )
        return encoded

    def _run(self, some: Sequence[_Frames]) -> list[list[torch.Tensor]]:
        """One pass. Gives the features of each: the tower's output, and of each DeepStack layer."""
        device = self._tower.device
        dtype = self._tower.dtype
        rows = torch.cat([patches(frames.pixels.to(device)).to(dtype) for frames in some])
        grids = [frames.grid for frames in some]
        repeated = [
            [each.repeat(t, 1) for each in self._positions(h, w, device)] for t, h, w in grids
        ]
        indices, weights, positions = (torch.cat(of) for of in zip(*repeated, strict=True))
        output = self._tower(
            rows,
            grid_thw=torch.tensor(grids),
            interp_indices=indices,
            interp_weights=weights,
            position_ids=positions,
            return_dict=True,
            **self._lengths(grids, device),
        )
        counts = [t * h * w // MERGE_SIZE**2 for t, h, w in grids]
        layers = [output.pooler_output, *(getattr(output, "deepstack_features", None) or ())]
        return [list(of) for of in zip(*(layer.split(counts) for layer in layers), strict=True)]

    def _positions_of_a_frame(
        self, height: int, width: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the tower needs of a frame's grid: indices and weights, and rotary positions."""
        grid = torch.tensor([[1, height, width]])
        indices, weights = get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=self._tower.num_grid_per_side,
            mode=self._tower.interpolation_mode,
            align_corners=self._tower.interpolation_align_corners,
            spatial_merge_size=MERGE_SIZE,
        )
        positions = get_vision_position_ids(grid, MERGE_SIZE)
        return indices.to(device), weights.to(device), positions.to(device)

    def _lengths(
        self, grids: Sequence[tuple[int, int, int]], device: torch.device
    ) -> dict[str, Any]:
        """Tell attention how long each frame is."""
        if self._is_framed:
            total = sum(t * h * w for t, h, w in grids)
            # On the CPU: the tower reads it in each layer.
            return {"cu_seqlens": torch.tensor([0, total]), "frames": _runs(grids)}
        lengths = torch.tensor([h * w for t, h, w in grids for _ in range(t)])
        ends = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32)
        return {"cu_seqlens": ends, "max_seqlen": int(lengths.max())}


class PatchProduct(nn.Module):
    """The patch embedding as a matrix product.

    It is a convolution whose kernel is a whole patch, so both give the same sums. Some versions of
    torch (2.9) are said to compute it many times slower than a product on GPUs; not measured here.
    """

    def __init__(self, convolution: nn.Conv3d) -> None:
        """Take ``convolution``, whose weights keep their name and shape."""
        super().__init__()
        self.proj = convolution

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Embed patches, float [N, 1536], as float [N, hidden] of the weights' dtype."""
        weight = self.proj.weight.flatten(1)  # a view
        return nn.functional.linear(rows.to(weight.dtype), weight, self.proj.bias)


def _all_frames(units: Sequence[PreparedUnit]) -> list[_Frames]:
    """All images and videos of the units, those with frames of equal size next to each other."""
    found = [
        _Frames(unit=k, place=(part, 0), pixels=pixels)
        for k, unit in enumerate(units)
        for part, pixels in enumerate(seen_pixels(unit))
    ]
    return sorted(found, key=lambda frames: frames.grid[1:])


def _passes(some: Sequence[_Frames], max_patches: int) -> Iterator[list[_Frames]]:
    """Fill passes of at most ``max_patches`` patches, or of one frame pair that has more."""
    batch: list[_Frames] = []
    free = max_patches
    for frames in some:
        rest = frames
        while (pairs := rest.grid[0]) > 0:
            _, height, width = rest.grid
            fit = min(pairs, free // (height * width))
            if fit < 1 and batch:
                yield batch
                batch, free = [], max_patches
                continue
            fit = max(fit, 1)
            first, rest = rest.split(fit)
            batch.append(first)
            free -= fit * height * width
    if batch:
        yield batch


def _runs(grids: Sequence[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """(number of frames, patches of each), of each run of frames of equal length."""
    runs: list[tuple[int, int]] = []
    for t, height, width in grids:
        length = height * width
        if runs and runs[-1][1] == length:
            runs[-1] = (runs[-1][0] + t, length)
        else:
            runs.append((t, length))
    return runs
