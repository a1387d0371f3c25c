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

import torch
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    StoppingCriteriaList,
)
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    BaseModelOutputWithDeepstackFeatures as Features,
)
from transformers.utils.logging import disable_progress_bar

from pipeline.checkpoint import load_config
from pipeline.engines.grammar import Grammars
from pipeline.engines.patches import patches, seen_pixels
from pipeline.engines.sampling import RowLimits, RowLoops, row_processors
from pipeline.prompt import IMAGE, TEXT, VIDEO, Prompter
from schemas.errors import ErrorRecord, ErrorType, ModelError, UnitError
from schemas.job import Generation, Job, Model
from schemas.task import Question
from schemas.unit import AnsweredUnit, PreparedUnit, Prompt, RawAnswer, UnitStatus

logger = logging.getLogger(__name__)


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
        self._grammars = Grammars(
            job.questions() if job.generation.constrained else (),
            self._prompter.tokenizer,
            self._model.config.text_config.vocab_size,
            reasons=self._opens_reasoning,
        )
        # The checkpoint's own generation settings must not leak into the job's.
        self._model.generation_config = GenerationConfig(
            eos_token_id=self._eos_ids, pad_token_id=self._pad_id
        )

    def generate(
        self, units: Sequence[PreparedUnit], generation: Generation | None = None
    ) -> list[AnsweredUnit]:
        """Answer every prompt of every unit; units come back in order, failed ones as they were.

        generation: instead of the job's; max_new_tokens stays that of the question.

        Raises:
            torch.AcceleratorError: the device is broken; the actor must be replaced.
        """
        answered: dict[int, AnsweredUnit] = {
            k: AnsweredUnit.of(unit)
            for k, unit in enumerate(units)
            if unit.status == UnitStatus.FAILED
        }
        for k, unit in enumerate(units):
            if k not in answered and (error := _token_mismatch(unit)):
                answered[k] = AnsweredUnit.of(unit.failed(ErrorRecord.from_error("engine", error)))
        todo = [k for k in range(len(units)) if k not in answered]
        for batch in self._batches(units, todo):
            self._run(units, batch, answered, generation or self._generation)
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
        self,
        units: Sequence[PreparedUnit],
        batch: list[int],
        answered: dict[int, AnsweredUnit],
        generation: Generation,
    ) -> None:
        """Run a batch; if it fails, its halves; a unit that fails alone becomes an error row."""
        started = time.perf_counter()
        try:
            answers = self._generate([units[k] for k in batch], generation)
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
                    AnsweredUnit.of(units[k], tuple(raw)), engine_seconds=share
                )
            return
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if len(batch) == 1:
            failed = units[batch[0]].failed(ErrorRecord.from_error("engine", problem))
            answered[batch[0]] = AnsweredUnit.of(failed)
            return
        middle = len(batch) // 2
        self._run(units, batch[:middle], answered, generation)
        self._run(units, batch[middle:], answered, generation)

    @torch.inference_mode()
    def _generate(self, units: list[PreparedUnit], generation: Generation) -> list[list[RawAnswer]]:
        """Answer units in one batch, or in several where the prompts of one are over the budget."""
        vision = {unit.unit_id: self._encode(unit) for unit in units if unit.seen}
        rows = [s for unit in units for s in self._sequences(unit)]
        batches = list(self._split(rows)) if len(units) == 1 else [rows]
        flat = [a for batch in batches for a in self._answer(batch, vision, generation)]
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

    def _encode(self, unit: PreparedUnit) -> list[Features]:
        """Features of what a unit sees, in order: encoded once, used by all its prompts."""
        features = []
        for part, pixels in zip(unit.seen, seen_pixels(unit), strict=True):
            is_image = part.media.media_type == "image"
            encode = self._model.get_image_features if is_image else self._model.get_video_features
            grid = torch.tensor([part.sampling.grid_thw], device=self._device)
            features.append(encode(patches(pixels.to(self._device)), grid, return_dict=True))
        return features

    def _answer(
        self,
        rows: list[_Sequence],
        vision: dict[str, list[Features]],
        generation: Generation,
    ) -> list[RawAnswer]:
        inputs = self._inputs(rows, vision)
        fed = inputs["attention_mask"].sum(dim=1).tolist()
        for row, tokens in zip(rows, fed, strict=True):  # what the plan promised, on the tensor
            if tokens != row.prompt.num_prompt_tokens:
                raise _mismatch(row.prompt, tokens)
        limits = torch.tensor([row.max_new_tokens for row in rows], device=self._device)
        padded = inputs["input_ids"].shape[1]
        names = [f"{row.unit.unit_id}/{row.prompt.task}" for row in rows]
        grammars = self._grammars.processors([row.prompt.task for row in rows], padded)
        over = [*self._eos_ids, self._pad_id]
        loops = RowLoops(padded, len(rows) if generation.stop_loops else 0, over)
        stopping = [RowLimits(padded, limits), *([loops] if loops.at else [])]
        output = self._model.generate(
            **inputs,
            do_sample=False,
            max_new_tokens=int(limits.max()),
            repetition_penalty=generation.repetition_penalty,
            logits_processor=row_processors(generation, names, padded, self._device, grammars),
            stopping_criteria=StoppingCriteriaList(stopping),
        )
        answers = []
        for k, (row, ids) in enumerate(zip(rows, output[:, padded:].tolist(), strict=True)):
            kept, reason = _until_stop(ids, row.max_new_tokens, self._eos_ids)
            if loops.at and (at := loops.at[k]) is not None and at <= len(kept):
                kept, reason = ids[:at], "loop"
            answers.append(
                RawAnswer(
                    task=row.prompt.task,
                    raw_text=self._prompter.decode(kept),
                    finish_reason=reason,
                    num_prompt_tokens=int(fed[k]),
                    num_output_tokens=len(kept),
                    opens_reasoning=self._opens_reasoning,
                )
            )
        return answers

    def _inputs(self, rows: list[_Sequence], vision: dict[str, list[Features]]) -> dict[str, Any]:
        """Left-padded ids, their masks and types, and each row's grids and vision features."""
        longest = max(len(row.prompt.input_ids or ()) for row in rows)
        shape = (len(rows), longest)
        input_ids = torch.full(shape, self._pad_id, dtype=torch.long)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        type_ids = torch.full(shape, TEXT, dtype=torch.long)
        grids: dict[str, list[Any]] = {"image": [], "video": []}
        features: dict[str, list[Features]] = {"image": [], "video": []}
        for k, row in enumerate(rows):
            ids = torch.tensor(row.prompt.input_ids, dtype=torch.long)
            input_ids[k, longest - len(ids) :] = ids
            attention_mask[k, longest - len(ids) :] = 1
            for kind, pad in self._prompter.pad_ids.items():
                type_ids[k][input_ids[k] == pad] = _TYPE_IDS[kind]
            for part, found in zip(row.unit.seen, vision.get(row.unit.unit_id, ()), strict=True):
                grids[part.media.media_type].append(part.sampling.grid_thw)
                features[part.media.media_type].append(found)
        inputs: dict[str, Any] = {
            "input_ids": input_ids.to(self._device),
            "attention_mask": attention_mask.to(self._device),
            "mm_token_type_ids": type_ids.to(self._device),
        }
        if any(features.values()):
            inputs["mm_encoder_outputs"] = {
                kind: _joined(of_kind) for kind, of_kind in features.items() if of_kind
            }
        for kind, sizes in grids.items():
            if sizes:
                inputs[f"{kind}_grid_thw"] = torch.tensor(sizes, device=self._device)
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


def _joined(features: list[Features]) -> Features:
    """Features of several images or videos, in order, in the form the model takes."""
    layers = range(len(features[0].deepstack_features or ()))
    return Features(
        pooler_output=tuple(f.pooler_output[0] for f in features),
        deepstack_features=[
            tuple(f.deepstack_features[layer][0] for f in features) for layer in layers
        ],
    )


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
            config=load_config(model.source, model.revision, model.yarn),
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
