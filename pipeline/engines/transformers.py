"""The reference engine: transformers' own model, in left-padded batches formed by token budget.

One vision encode for each unit, however many tasks ask about it. Frames stay uint8 until they are
on the device; normalisation and patches happen there.
"""

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    StoppingCriteriaList,
)
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures
from transformers.utils.logging import disable_progress_bar

from pipeline.budget import MERGE_SIZE, PATCH_SIZE, TEMPORAL_PATCH_SIZE
from pipeline.engines.sampling import RowLimits, row_processors
from pipeline.prompt import IMAGE, TEXT, VIDEO, Prompter
from schemas.errors import ErrorRecord, ErrorType, ModelError, UnitError
from schemas.job import Job, Model
from schemas.task import Question
from schemas.unit import AnsweredUnit, PreparedUnit, Prompt, RawAnswer, UnitStatus

logger = logging.getLogger(__name__)

PIXEL_MEAN = 0.5
PIXEL_STD = 0.5

_TYPE_IDS = {"image": IMAGE, "video": VIDEO}


@dataclass(frozen=True, kw_only=True)
class _Sequence:
    """One prompt of one unit: a row of a batch."""

    unit: PreparedUnit
    prompt: Prompt
    max_new_tokens: int

    @property
    def num_tokens(self) -> int:
        return len(self.prompt.input_ids or ()) + self.max_new_tokens


class TransformersEngine:
    """Generates answers with a Qwen3-VL checkpoint, dense or MoE, on one device.

    Not safe for threads: the model keeps the position offsets of its current batch as state.
    """

    def __init__(self, job: Job, *, num_threads: int | None = None) -> None:
        """Load the checkpoint.

        num_threads: CPU threads to use; None leaves torch's default.

        Raises:
            ModelError: the weights cannot be loaded.
        """
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._generation = job.generation
        self._questions: dict[str, Question] = {q.task: q for q in job.questions()}
        self._max_batch_tokens = job.resources.max_batch_tokens
        self._prompter = Prompter(job.model.source, job.model.revision)
        self._opens_reasoning = self._prompter.opens_reasoning
        self._device = _device(job.model)
        self._model = _load(job.model, self._device)
        self._eos_ids = _eos_ids(self._model, self._prompter)
        self._pad_id = int(self._prompter.tokenizer.pad_token_id or 0)
        # The checkpoint's own generation settings must not leak into the job's.
        self._model.generation_config = GenerationConfig(
            eos_token_id=self._eos_ids, pad_token_id=self._pad_id
        )

    def generate(self, units: Sequence[PreparedUnit]) -> list[AnsweredUnit]:
        """Answer every prompt of every unit; units come back in order, failed ones as they were.

        Raises:
            torch.AcceleratorError: the device is broken; the actor must be replaced.
        """
        answered: dict[int, AnsweredUnit] = {
            k: _answered(unit) for k, unit in enumerate(units) if unit.status == UnitStatus.FAILED
        }
        for k, unit in enumerate(units):
            if k not in answered and (error := _token_mismatch(unit)):
                answered[k] = _answered(unit.failed(ErrorRecord.from_error("engine", error)))
        todo = [k for k in range(len(units)) if k not in answered]
        for batch in self._batches(units, todo):
            self._run(units, batch, answered)
        return [answered[k] for k in range(len(units))]

    def _batches(self, units: Sequence[PreparedUnit], todo: list[int]) -> Iterator[list[int]]:
        """Group units of similar length, so that rows x longest row is within the token budget."""
        sequences = {k: self._sequences(units[k]) for k in todo}
        longest = {k: max(s.num_tokens for s in sequences[k]) for k in todo}
        batch: list[int] = []
        rows = 0
        for k in sorted(todo, key=lambda k: -longest[k]):
            rows += len(sequences[k])
            if batch and rows * longest[batch[0]] > self._max_batch_tokens:
                yield batch
                batch, rows = [], len(sequences[k])
            batch.append(k)
        if batch:
            yield batch

    def _sequences(self, unit: PreparedUnit) -> list[_Sequence]:
        return [
            _Sequence(unit=unit, prompt=p, max_new_tokens=self._questions[p.task].max_new_tokens)
            for p in unit.prompts
        ]

    def _run(
        self, units: Sequence[PreparedUnit], batch: list[int], answered: dict[int, AnsweredUnit]
    ) -> None:
        """Run a batch; if it fails, its halves; a unit that fails alone becomes an error row."""
        started = time.perf_counter()
        try:
            answers = self._generate([units[k] for k in batch])
        except torch.OutOfMemoryError as error:
            problem = UnitError(
                ErrorType.OUT_OF_MEMORY,
                f"the device ran out of memory: {str(error).splitlines()[0]}; lower "
                "budget.unit_tokens or resources.max_batch_tokens",
            )
        except torch.AcceleratorError:
            raise  # the CUDA context is lost: only a new process helps
        except UnitError as error:
            problem = error
        except Exception as error:  # the stage's boundary: one unit's trouble stays its own
            logger.exception("generating for %s", [units[k].unit_id for k in batch])
            problem = UnitError(ErrorType.ENGINE_FAILED, f"{type(error).__name__}: {error}")
        else:
            seconds = time.perf_counter() - started
            total = sum(units[k].predicted_cost for k in batch) or 1.0
            for k, raw in zip(batch, answers, strict=True):
                share = seconds * units[k].predicted_cost / total
                answered[k] = dataclasses.replace(
                    _answered(units[k]), answers=tuple(raw), engine_seconds=share
                )
            return
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if len(batch) == 1:
            failed = units[batch[0]].failed(ErrorRecord.from_error("engine", problem))
            answered[batch[0]] = _answered(failed)
            return
        middle = len(batch) // 2
        self._run(units, batch[:middle], answered)
        self._run(units, batch[middle:], answered)

    @torch.inference_mode()
    def _generate(self, units: list[PreparedUnit]) -> list[list[RawAnswer]]:
        """Answer units in one batch, or in several where the prompts of one are over the budget."""
        vision = {unit.unit_id: self._encode(unit) for unit in units}
        rows = [s for unit in units for s in self._sequences(unit)]
        batches = list(self._split(rows)) if len(units) == 1 else [rows]
        flat = [answer for batch in batches for answer in self._answer(batch, vision)]
        raw = iter(flat)
        return [[next(raw) for _ in unit.prompts] for unit in units]

    def _split(self, rows: list[_Sequence]) -> Iterator[list[_Sequence]]:
        """Cut the prompts of one unit into batches within the token budget, one at the least."""
        batch: list[_Sequence] = []
        for row in rows:
            longest = max(s.num_tokens for s in [*batch, row])
            if batch and (len(batch) + 1) * longest > self._max_batch_tokens:
                yield batch
                batch = []
            batch.append(row)
        yield batch

    def _encode(self, unit: PreparedUnit) -> BaseModelOutputWithDeepstackFeatures:
        """Vision features of a unit: encoded once, used by all its prompts."""
        assert unit.sampling is not None and unit.media is not None
        grid = torch.tensor([unit.sampling.grid_thw], device=self._device)
        pixels = patches(unit_pixels(unit).to(self._device))
        if unit.media.media_type == "image":
            return self._model.get_image_features(pixels, grid, return_dict=True)
        return self._model.get_video_features(pixels, grid, return_dict=True)

    def _answer(
        self, rows: list[_Sequence], vision: dict[str, BaseModelOutputWithDeepstackFeatures]
    ) -> list[RawAnswer]:
        inputs = self._inputs(rows, vision)
        fed = inputs["attention_mask"].sum(dim=1).tolist()
        for row, tokens in zip(rows, fed, strict=True):  # what the plan promised, on the tensor
            if tokens != row.prompt.num_prompt_tokens:
                raise _mismatch(row.prompt, tokens)
        limits = torch.tensor([row.max_new_tokens for row in rows], device=self._device)
        padded = inputs["input_ids"].shape[1]
        names = [f"{row.unit.unit_id}/{row.prompt.task}" for row in rows]
        output = self._model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=int(limits.max()),
            repetition_penalty=self._generation.repetition_penalty,
            logits_processor=row_processors(self._generation, names, self._device),
            stopping_criteria=StoppingCriteriaList([RowLimits(padded, limits)]),
        )
        answers = []
        for row, ids, tokens in zip(rows, output[:, padded:].tolist(), fed, strict=True):
            kept, reason = _until_stop(ids, row.max_new_tokens, self._eos_ids)
            answers.append(
                RawAnswer(
                    task=row.prompt.task,
                    raw_text=self._prompter.decode(kept),
                    finish_reason=reason,
                    num_prompt_tokens=int(tokens),
                    num_output_tokens=len(kept),
                    opens_reasoning=self._opens_reasoning,
                )
            )
        return answers

    def _inputs(
        self, rows: list[_Sequence], vision: dict[str, BaseModelOutputWithDeepstackFeatures]
    ) -> dict[str, Any]:
        """Left-padded ids, their masks and types, and each row's grid and vision features."""
        longest = max(len(row.prompt.input_ids or ()) for row in rows)
        shape = (len(rows), longest)
        input_ids = torch.full(shape, self._pad_id, dtype=torch.long)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        type_ids = torch.full(shape, TEXT, dtype=torch.long)
        grids: dict[str, list[Any]] = {"image": [], "video": []}
        features: dict[str, list[BaseModelOutputWithDeepstackFeatures]] = {"image": [], "video": []}
        for k, row in enumerate(rows):
            assert row.unit.media is not None and row.unit.sampling is not None
            ids = torch.tensor(row.prompt.input_ids, dtype=torch.long)
            input_ids[k, longest - len(ids) :] = ids
            attention_mask[k, longest - len(ids) :] = 1
            kind = row.unit.media.media_type
            type_ids[k][input_ids[k] == self._prompter.pad_ids[kind]] = _TYPE_IDS[kind]
            grids[kind].append(row.unit.sampling.grid_thw)
            features[kind].append(vision[row.unit.unit_id])
        inputs: dict[str, Any] = {
            "input_ids": input_ids.to(self._device),
            "attention_mask": attention_mask.to(self._device),
            "mm_token_type_ids": type_ids.to(self._device),
            "mm_encoder_outputs": {
                kind: _joined(found) for kind, found in features.items() if found
            },
        }
        for kind, found in grids.items():
            if found:
                inputs[f"{kind}_grid_thw"] = torch.tensor(found, device=self._device)
        return inputs


def _token_mismatch(unit: PreparedUnit) -> UnitError | None:
    """What is wrong if a prompt is not as long as planned: found before it costs a batch."""
    for prompt in unit.prompts:
        tokens = len(prompt.input_ids or ())
        if tokens != prompt.num_prompt_tokens:
            return _mismatch(prompt, tokens)
    return None


def _mismatch(prompt: Prompt, tokens: int) -> UnitError:
    return UnitError(
        ErrorType.TOKEN_MISMATCH,
        f"{prompt.task}: {prompt.num_prompt_tokens} prompt tokens were planned, {tokens} would be "
        "fed: the header and the frames disagree",
    )


def unit_pixels(unit: PreparedUnit) -> torch.Tensor:
    """The unit's frames, ``uint8 [T, H, W, 3]``."""
    sampling = unit.sampling
    assert sampling is not None and unit.frame_data is not None
    shape = (sampling.num_frames, sampling.resized_height, sampling.resized_width, 3)
    # torch wants a writable buffer; nothing writes to it.
    return torch.from_numpy(np.frombuffer(bytearray(unit.frame_data), np.uint8).reshape(shape))


def patches(pixels: torch.Tensor) -> torch.Tensor:
    """Cut frames into the vision tower's rows and normalise them, on the device of ``pixels``.

    pixels: uint8 [T, H, W, 3]; T is 1 (an image: its frame is used twice) or even.
    Returns float32 [T/2 * H/16 * W/16, 1536].
    """
    return normalise(patchify(pixels))


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Take uint8 0..255 to float32 -1..1."""
    return (pixels.to(torch.float32) * (1 / 255) - PIXEL_MEAN) / PIXEL_STD


def patchify(pixels: torch.Tensor) -> torch.Tensor:
    """Cut frames [T, H, W, 3] into rows [T/2 * H/16 * W/16, 1536] of the same dtype.

    A row is 3 channels x 2 frames x 16 x 16; rows are ordered (t, h/2, w/2, 2, 2) over the grid.

    Source: ``Qwen2VLImageProcessor.patchify`` of transformers, which tests compare with.
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


def _joined(
    features: list[BaseModelOutputWithDeepstackFeatures],
) -> BaseModelOutputWithDeepstackFeatures:
    """Features of several rows, in order, in the form the model takes."""
    layers = range(len(features[0].deepstack_features or ()))
    return BaseModelOutputWithDeepstackFeatures(
        pooler_output=tuple(f.pooler_output[0] for f in features),
        deepstack_features=[
            tuple(f.deepstack_features[layer][0] for f in features) for layer in layers
        ],
    )


def _answered(unit: PreparedUnit) -> AnsweredUnit:
    names = {field.name for field in dataclasses.fields(AnsweredUnit)}
    kept = {f.name: getattr(unit, f.name) for f in dataclasses.fields(unit) if f.name in names}
    prompts = tuple(dataclasses.replace(p, input_ids=None) for p in unit.prompts)
    return AnsweredUnit(**(kept | {"prompts": prompts}))


def _until_stop(ids: list[int], limit: int, eos_ids: list[int]) -> tuple[list[int], str]:
    """Generated ids up to and with the end of the turn, or as many as were allowed."""
    for k, token in enumerate(ids[:limit]):
        if token in eos_ids:
            return ids[: k + 1], "stop"
    return ids[:limit], "length"


def _device(model: Model) -> torch.device:
    if model.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if model.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("model.device is cuda, but torch sees no GPU here")
    return torch.device(model.device)


def _load(model: Model, device: torch.device) -> Any:
    disable_progress_bar()
    dtype = "auto" if model.dtype == "auto" else getattr(torch, model.dtype)
    try:
        loaded = AutoModelForImageTextToText.from_pretrained(
            model.source,
            revision=model.revision,
            dtype=dtype,
            attn_implementation=model.attn_implementation,
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"cannot load {model.source}: {error}") from None
    if model.adapter is not None:
        loaded = _adapted(loaded, model.adapter)
    return loaded.to(device).eval()


def _adapted(loaded: Any, adapter: str) -> Any:
    """The model with a LoRA adapter merged into its weights."""
    try:
        from peft import PeftModel

        return PeftModel.from_pretrained(loaded, adapter).merge_and_unload()
    except ImportError:
        raise ModelError(
            "model.adapter needs the package peft: pip install 'reelscribe[finetune]'"
        ) from None
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"cannot load the adapter {adapter}: {error}") from None


def _eos_ids(model: Any, prompter: Prompter) -> list[int]:
    """Tokens that end an answer: the checkpoint's own list, and the end of a turn."""
    eos = model.generation_config.eos_token_id
    ids = set(eos if isinstance(eos, list) else [eos] if eos is not None else [])
    ids.add(int(prompter.tokenizer.eos_token_id))
    return sorted(ids)
