"""The reference engine: transformers' own model, in batches formed by token budget.

One vision encode and one prefill of it for each unit, however many tasks ask about it. Frames stay
uint8 until they are on the device; normalisation and patches happen there.
"""

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import AutoModelForImageTextToText
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    BaseModelOutputWithDeepstackFeatures as Features,
)
from transformers.utils.logging import disable_progress_bar

from pipeline.checkpoint import load_config
from pipeline.engines.attention import GROUPED
from pipeline.engines.batches import Branch, Root, num_tokens, roots_of, split, unit_batches
from pipeline.engines.branches import Branches, Prefix, Said, say
from pipeline.engines.grammar import Grammars
from pipeline.engines.patches import patches, seen_pixels
from pipeline.engines.sampling import row_processors
from pipeline.positions import token_types
from pipeline.prompt import Prompter
from schemas.errors import ErrorRecord, ErrorType, ModelError, UnitError
from schemas.job import Generation, Job
from schemas.model import Model
from schemas.unit import AnsweredUnit, PreparedUnit, Prompt, RawAnswer, UnitStatus

logger = logging.getLogger(__name__)


class TransformersEngine:
    """Generates answers with a Qwen3-VL checkpoint, dense or MoE, on one device."""

    def __init__(self, job: Job, *, num_threads: int | None = None) -> None:
        """Load the checkpoint.

        num_threads: CPU threads to use; None leaves torch's default.

        Raises:
            ModelError: the weights cannot be loaded.
        """
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self._generation = job.generation
        self._max_new_tokens = {q.task: q.max_new_tokens for q in job.questions()}
        self._max_batch_tokens = job.resources.max_batch_tokens
        self._prompter = Prompter(job.model.source, job.model.revision)
        self._opens_reasoning = self._prompter.opens_reasoning
        self._device = _device(job.model)
        self._model = _load(job.model, self._device)
        self._attn_implementation = job.model.attn_implementation
        self._eos_ids = _eos_ids(self._model, self._prompter)
        self._pad_id = int(self._prompter.tokenizer.pad_token_id or 0)
        self._grammars = Grammars(
            job.questions() if job.generation.constrained else (),
            self._prompter.tokenizer,
            self._model.config.text_config.vocab_size,
            reasons=self._opens_reasoning,
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
        roots = {
            k: roots_of(unit, self._max_new_tokens, self._prompter.pad_ids.values())
            for k, unit in enumerate(units)
            if k not in answered
        }
        for batch in unit_batches(roots, self._max_batch_tokens):
            self._run(units, roots, batch, answered, generation or self._generation)
        return [answered[k] for k in range(len(units))]

    def _run(
        self,
        units: Sequence[PreparedUnit],
        roots: Mapping[int, list[Root]],
        batch: list[int],
        answered: dict[int, AnsweredUnit],
        generation: Generation,
    ) -> None:
        """Run a batch; if it fails, its halves; a unit that fails alone becomes an error row."""
        started = time.perf_counter()
        try:
            answers = self._generate([roots[k] for k in batch], generation)
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
                in_order = tuple(raw[prompt.task] for prompt in units[k].prompts)
                answered[k] = dataclasses.replace(
                    AnsweredUnit.of(units[k], in_order), engine_seconds=share
                )
            return
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        if len(batch) == 1:
            failed = units[batch[0]].failed(ErrorRecord.from_error("engine", problem))
            answered[batch[0]] = AnsweredUnit.of(failed)
            return
        middle = len(batch) // 2
        self._run(units, roots, batch[:middle], answered, generation)
        self._run(units, roots, batch[middle:], answered, generation)

    @torch.inference_mode()
    def _generate(
        self, units: Sequence[Sequence[Root]], generation: Generation
    ) -> list[dict[str, RawAnswer]]:
        """Answer units, each given by its roots, in one batch: answers by task."""
        encoded = [self._encode(roots[0].unit) for roots in units]
        features = [found for roots, found in zip(units, encoded, strict=True) for _ in roots]
        flat = [root for roots in units for root in roots]
        if num_tokens(flat) > self._max_batch_tokens:  # then it is one unit, alone
            pieces = (
                self._pieces(root, found, generation)
                for root, found in zip(flat, features, strict=True)
            )
            return [{raw.task: raw for some in pieces for raw in some}]
        found = iter(self._answer(flat, self._prefix(flat, features), generation))
        return [{raw.task: raw for _ in roots for raw in next(found)} for roots in units]

    def _pieces(
        self, root: Root, features: Sequence[Features], generation: Generation
    ) -> list[RawAnswer]:
        """Answers to a root's branches, as many together as the token budget allows."""
        prefix = self._prefix([root], [features])
        pieces = [
            dataclasses.replace(root, branches=some) for some in split(root, self._max_batch_tokens)
        ]
        return [raw for piece in pieces for raw in self._answer([piece], prefix, generation)[0]]

    def _encode(self, unit: PreparedUnit) -> list[Features]:
        """Features of what a unit sees, in order: encoded once, used by all its prompts."""
        features = []
        for part, pixels in zip(unit.seen, seen_pixels(unit), strict=True):
            is_image = part.media.media_type == "image"
            encode = self._model.get_image_features if is_image else self._model.get_video_features
            grid = torch.tensor([part.sampling.grid_thw], device=self._device)
            features.append(encode(patches(pixels.to(self._device)), grid, return_dict=True))
        return features

    def _prefix(self, roots: Sequence[Root], features: Sequence[Sequence[Features]]) -> Prefix:
        """Run what prompts share through the model, with what its images and videos look like."""
        by_kind: dict[str, list[Features]] = {}
        for root, found in zip(roots, features, strict=True):
            for part, of_part in zip(root.unit.seen, found, strict=True):
                by_kind.setdefault(part.media.media_type, []).append(of_part)
        return Prefix(
            self._model,
            [root.prefix for root in roots],
            [token_types(root.prefix, self._prompter.pad_ids) for root in roots],
            [[part.sampling.grid_thw for part in root.unit.seen] for root in roots],
            {kind: _joined(of_kind) for kind, of_kind in by_kind.items()},
            self._pad_id,
        )

    def _answer(
        self, roots: Sequence[Root], prefix: Prefix, generation: Generation
    ) -> list[list[RawAnswer]]:
        """The answers to each root's branches."""
        branches = Branches(
            self._model,
            prefix,
            [[branch.suffix for branch in root.branches] for root in roots],
            self._pad_id,
            self._attn_implementation,
        )
        rows = [(root, branch) for root in roots for branch in root.branches]
        shared = [
            n for n, root in zip(prefix.num_tokens, roots, strict=True) for _ in root.branches
        ]
        fed = [a + b for a, b in zip(shared, branches.num_suffix_tokens, strict=True)]
        for (_, branch), tokens in zip(rows, fed, strict=True):  # what the plan promised
            if tokens != branch.prompt.num_prompt_tokens:
                raise _mismatch(branch.prompt, tokens)
        tasks = [branch.prompt.task for _, branch in rows]
        prompts = self._penalised(rows, generation)
        padded = prompts.shape[1]
        said = say(
            branches,
            row_processors(
                generation,
                [f"{root.unit.unit_id}/{branch.prompt.task}" for root, branch in rows],
                padded,
                self._device,
                self._grammars.processors(tasks, padded),
            ),
            prompts,
            [branch.max_new_tokens for _, branch in rows],
            self._eos_ids,
            stop_loops=generation.stop_loops,
        )
        answers = iter(map(self._raw_answer, tasks, fed, said))
        return [[next(answers) for _ in root.branches] for root in roots]

    def _penalised(
        self, rows: Sequence[tuple[Root, Branch]], generation: Generation
    ) -> torch.Tensor:
        """The prompts that a repetition penalty reads, int64 [rows, L]; L is 0 where there is none.

        Padded with a token that the prompt has anyway: padding must not be penalised.
        """
        if generation.repetition_penalty == 1:
            return torch.zeros((len(rows), 0), dtype=torch.long, device=self._device)
        prompts = [root.prefix + branch.suffix for root, branch in rows]
        longest = max(map(len, prompts))
        padded = [ids[:1] * (longest - len(ids)) + ids for ids in prompts]
        return torch.tensor(padded, device=self._device)

    def _raw_answer(self, task: str, num_prompt_tokens: int, said: Said) -> RawAnswer:
        return RawAnswer(
            task=task,
            raw_text=self._prompter.decode(said.ids),
            finish_reason=said.finish_reason,
            num_prompt_tokens=num_prompt_tokens,
            num_output_tokens=len(said.ids),
            opens_reasoning=self._opens_reasoning,
        )


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
            attn_implementation=_attention(model),
            trust_remote_code=False,
            use_safetensors=True,  # a pickle could run anything
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"cannot load {model.source}: {error}") from None
    if model.adapter is not None:
        loaded = _adapted(loaded, model.adapter)
    return loaded.to(device).eval()


def _attention(model: Model) -> str | dict[str, str]:
    if model.attn_implementation != "sdpa":
        return model.attn_implementation
    return {"": "sdpa", "text_config": GROUPED, "vision_config": "sdpa"}


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
