"""What vLLM is given: a unit's own token ids and patches, and the settings of its answers.

vLLM would decode, sample, resize, number and expand media by itself. Its engine also takes inputs
that are ready, as its own preprocessing would hand them over; ours are made so. The tokens that
are fed are then those of the plan, whatever vLLM's preprocessing does in a later version.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from vllm.inputs import mm_input, tokens_input
from vllm.multimodal.inputs import (
    MultiModalFieldConfig,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)
from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

from pipeline.budget import MERGE_SIZE
from pipeline.engines.patches import patchify, seen_pixels
from pipeline.engines.sampling import row_seed
from schemas.errors import ErrorType, UnitError
from schemas.job import Generation
from schemas.part import Part
from schemas.task import Question
from schemas.unit import PreparedUnit, Prompt

_STREAMED = 16
"""Tokens between two looks at an answer that may be a loop."""

_PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
_GRID = {"image": "image_grid_thw", "video": "video_grid_thw"}


@dataclass(frozen=True, kw_only=True)
class Medium:
    """An image or video as vLLM's model takes it.

    content_hash: of what the model sees. By it vLLM knows media that it has encoded already: the
        same for all tasks of a unit, and never the same for two that differ.
    num_tokens: of the image, or of each frame pair.
    """

    media_type: str
    content_hash: str
    num_slots: int
    num_tokens: int
    item: MultiModalKwargsItem


def media_of(unit: PreparedUnit) -> list[Medium]:
    """What a unit sees, in order, cut into patches, uint8: vLLM normalises them on its device."""
    if not unit.seen:
        return []
    pixels = seen_pixels(unit)
    return [_medium(part, seen) for part, seen in zip(unit.seen, pixels, strict=True)]


def _medium(part: Part, pixels: torch.Tensor) -> Medium:
    kind, grid = part.media.media_type, part.sampling.grid_thw
    digest = hashlib.sha256(f"{kind}{tuple(pixels.shape)}".encode())
    digest.update(pixels.numpy().data)
    rows = patchify(pixels)
    fields = {
        _PIXELS[kind]: MultiModalFieldConfig.flat_from_sizes(kind, torch.tensor([len(rows)])),
        _GRID[kind]: MultiModalFieldConfig.batched(kind, keep_on_cpu=True),
    }
    data: Any = {_PIXELS[kind]: rows, _GRID[kind]: torch.tensor([grid])}
    return Medium(
        media_type=kind,
        content_hash=digest.hexdigest(),
        num_slots=grid[0],
        num_tokens=grid[1] * grid[2] // MERGE_SIZE**2,
        item=MultiModalKwargsItems.from_hf_inputs(data, fields)[kind][0],
    )


def rendered(prompt: Prompt, media: Sequence[Medium], pad_ids: dict[str, int]) -> Any:
    """A prompt as vLLM's engine takes it: ready, nothing in it is expanded or resized any more.

    Raises:
        UnitError: it is not as long as planned, or its places for media are not those of the media.
    """
    ids = list(prompt.input_ids or ())
    if len(ids) != prompt.num_prompt_tokens:
        raise UnitError(
            ErrorType.TOKEN_MISMATCH,
            f"{prompt.task}: {prompt.num_prompt_tokens} prompt tokens were planned, {len(ids)} "
            "would be fed: the header and the frames disagree",
        )
    ranges = _placeholders(ids, media, pad_ids)
    if not media:
        return tokens_input(ids)
    kinds = sorted({medium.media_type for medium in media})
    return mm_input(
        ids,
        MultiModalKwargsItems(
            {kind: [m.item for m in media if m.media_type == kind] for kind in kinds}
        ),
        {kind: [m.content_hash for m in media if m.media_type == kind] for kind in kinds},
        {
            kind: [r for m, r in zip(media, ranges, strict=True) if m.media_type == kind]
            for kind in kinds
        },
    )


def _placeholders(
    ids: Sequence[int], media: Sequence[Medium], pad_ids: dict[str, int]
) -> list[PlaceholderRange]:
    """Where each medium stands in a prompt: from its first pad to its last.

    A video's has the text between its frame pairs in it, which is not replaced. It begins one token
    before, with ``<|vision_start|>``: by these vLLM finds the frame pairs.
    """
    runs = _pad_runs(ids, pad_ids)
    expected = [(m.media_type, m.num_tokens) for m in media for _ in range(m.num_slots)]
    if [(kind, length) for kind, _, length in runs] != expected:
        raise UnitError(
            ErrorType.TOKEN_MISMATCH,
            f"the prompt has places for {sum(n for _, _, n in runs)} vision tokens in {len(runs)} "
            f"pictures, the frames are {sum(n for _, n in expected)} in {len(expected)}",
        )
    found, at = [], 0
    for medium in media:
        own = runs[at : at + medium.num_slots]
        at += medium.num_slots
        start, end = own[0][1], own[-1][1] + own[-1][2]
        if medium.media_type == "image":
            found.append(PlaceholderRange(offset=start, length=end - start))
            continue
        mask = torch.tensor(ids[start - 1 : end]) == pad_ids["video"]
        found.append(PlaceholderRange(offset=start - 1, length=len(mask), is_embed=mask))
    return found


def _pad_runs(ids: Sequence[int], pad_ids: dict[str, int]) -> list[tuple[str, int, int]]:
    """Kind, begin and length of each run of pads."""
    kinds = {pad: kind for kind, pad in pad_ids.items()}
    runs, at = [], 0
    for token, run in groupby(ids):
        length = sum(1 for _ in run)
        if token in kinds:
            runs.append((kinds[token], at, length))
        at += length
    return runs


def sampling_params(
    generation: Generation, question: Question, row: str, grammar: str | None
) -> SamplingParams:
    """The job's generation settings as vLLM's.

    row: what names the prompt; with the job's seed it seeds the answer.
    grammar: of the task's answers, for llguidance.
    """
    return SamplingParams(
        temperature=generation.temperature,
        top_p=generation.top_p,
        top_k=generation.top_k,
        seed=row_seed(generation.seed, row) if generation.temperature else None,
        repetition_penalty=generation.repetition_penalty,
        presence_penalty=generation.presence_penalty,
        max_tokens=question.max_new_tokens,
        structured_outputs=StructuredOutputsParams(grammar=grammar) if grammar else None,
        detokenize=False,
        output_kind=RequestOutputKind.CUMULATIVE
        if generation.stop_loops
        else RequestOutputKind.FINAL_ONLY,
        stream_interval=_STREAMED,
    )
