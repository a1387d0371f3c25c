"""vLLM's inputs: token ids and patches of a unit, and the sampling parameters of its answers.

By default vLLM decodes, samples and resizes media and expands prompts. Its engine also accepts the
output of that preprocessing, which is made here from prepared units. So vLLM is fed exactly the
planned tokens, whatever a later version's preprocessing does.
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

from pipeline.engines.base import token_mismatch
from pipeline.engines.token_sampling import LOOP_CHECK_TOKENS, row_seed
from pipeline.model.frame_size import MERGE_SIZE
from pipeline.model.patches import patchify, seen_pixels
from schemas.errors import ErrorType, UnitError
from schemas.job.generation import Generation
from schemas.tables.media import Part
from schemas.tables.unit import PreparedUnit, Prompt
from schemas.task import Question

_PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
_GRID = {"image": "image_grid_thw", "video": "video_grid_thw"}


@dataclass(frozen=True, kw_only=True)
class Medium:
    """An image or video as vLLM's model takes it.

    content_hash: SHA-256 of the media type and pixels, by which vLLM recognises media that it has
        encoded already: equal for all tasks of a unit, different for different media.
    num_slots: 1 for an image, the number of frame pairs for a video.
    num_tokens: vision tokens of each slot.
    item: patches ``uint8 [N, 1536]`` and the grid (t, h, w).
    """

    media_type: str
    content_hash: str
    num_slots: int
    num_tokens: int
    item: MultiModalKwargsItem


def media_of(unit: PreparedUnit) -> list[Medium]:
    """Cut a unit's images and videos into uint8 patches, in order; vLLM normalises them."""
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


def engine_input(prompt: Prompt, media: Sequence[Medium], pad_ids: dict[str, int]) -> Any:
    """Make vLLM's preprocessed input of a prompt and the unit's media.

    pad_ids: the token id that stands for each media type.

    Raises:
        UnitError: the prompt's length differs from the plan, or its pads do not match the media.
    """
    ids = list(prompt.input_ids or ())
    if len(ids) != prompt.num_prompt_tokens:
        raise token_mismatch(prompt, len(ids))
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


def check_read(ids: Sequence[int], request: Any) -> None:
    """Check that vLLM read the prompt of a request.

    ids: that it says it read.

    Raises:
        UnitError: they are others.
    """
    prepared = request["prompt_token_ids"]
    if list(ids) != prepared:
        raise UnitError(
            ErrorType.TOKEN_MISMATCH,
            f"vLLM read {len(ids)} prompt tokens, not the {len(prepared)} that were prepared",
        )


def _placeholders(
    ids: Sequence[int], media: Sequence[Medium], pad_ids: dict[str, int]
) -> list[PlaceholderRange]:
    """The range of each medium in a prompt, from its first pad to its last.

    The range of a video includes the text between its frame pairs, which ``is_embed`` excludes. It
    begins one token earlier, at ``<|vision_start|>``, by which vLLM finds the frame pairs.
    """
    runs = _pad_runs(ids, pad_ids)
    expected = [(m.media_type, m.num_tokens) for m in media for _ in range(m.num_slots)]
    if [(kind, length) for kind, _, length in runs] != expected:
        raise UnitError(
            ErrorType.TOKEN_MISMATCH,
            f"the prompt has {sum(n for _, _, n in runs)} vision tokens in {len(runs)} images and "
            f"frame pairs, the frames have {sum(n for _, n in expected)} in {len(expected)}",
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
    """Media type, start and length of each run of pads."""
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
    """Translate the job's generation settings to vLLM's.

    row: names the prompt; with the job's seed it gives the seed of the answer.
    grammar: of the task's answers, in llguidance's syntax.
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
        stream_interval=LOOP_CHECK_TOKENS,
    )
