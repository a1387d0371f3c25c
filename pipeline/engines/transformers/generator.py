"""Run one batch of units through the model: encode media, prefill, generate the answers."""

from collections.abc import Sequence

import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    BaseModelOutputWithDeepstackFeatures as Features,
)

from pipeline.engines.base import token_mismatch
from pipeline.engines.grammar import Grammars
from pipeline.engines.token_sampling import row_processors
from pipeline.engines.transformers.batches import Branch, Root, split
from pipeline.engines.transformers.branches import (
    AnswersTooLong,
    Branches,
    Generated,
    Prefix,
    generate_answers,
)
from pipeline.engines.transformers.limit import AnswerLengths, batch_limit
from pipeline.engines.transformers.load import choose_device, end_token_ids, load_model
from pipeline.model.patches import patches, seen_pixels
from pipeline.model.positions import token_types
from pipeline.model.prompter import Prompter
from schemas.job.generation import Generation
from schemas.job.job import Job
from schemas.tables.unit import PreparedUnit, RawAnswer


class Generator:
    """Answers batches of units with one model on one device.

    model: transformers' ``Qwen3VLForConditionalGeneration`` or its MoE variant.
    end_ids: token ids that end an answer.
    attn_implementation: of the language model, as in the job.
    limit: what fits into a batch.
    """

    def __init__(self, job: Job) -> None:
        """Load the checkpoint.

        Raises:
            ModelError: the weights cannot be loaded.
        """
        self.prompter = Prompter(job.model.source, job.model.revision)
        self._opens_reasoning = self.prompter.opens_reasoning
        self._device = choose_device(job.model)
        self.model = load_model(job.model, self._device)
        answers = AnswerLengths({q.name: q.max_new_tokens for q in job.questions()})
        self.limit = batch_limit(self.model, job, answers)
        self.attn_implementation: str = job.model.attn_implementation
        self.end_ids = end_token_ids(self.model, self.prompter)
        self._pad_id = int(self.prompter.tokenizer.pad_token_id or 0)
        self._grammars = Grammars(
            job.questions() if job.generation.constrained else (),
            self.prompter.tokenizer,
            self.model.config.text_config.vocab_size,
            has_reasoning=self._opens_reasoning,
        )

    @torch.inference_mode()
    def answer(
        self, units: Sequence[Sequence[Root]], generation: Generation
    ) -> list[dict[str, RawAnswer]]:
        """Answer a batch of units.

        units: the roots of each unit.

        Returns the answers of each unit, by task.

        Raises:
            UnitError: a prompt was fed with another number of tokens than planned.
            AnswersTooLong: the answers do not fit into the memory that was reserved for them.
        """
        encoded = [self._encode(roots[0].unit) for roots in units]
        features = [found for roots, found in zip(units, encoded, strict=True) for _ in roots]
        flat = [root for roots in units for root in roots]
        if not self.limit.fits(flat):  # only a unit that is alone in its batch
            pieces = (
                self._answer_in_pieces(root, found, generation)
                for root, found in zip(flat, features, strict=True)
            )
            return [{raw.task: raw for piece in pieces for raw in piece}]
        answers = iter(self.answer_branches(flat, self.prefill(flat, features), generation))
        return [{raw.task: raw for _ in roots for raw in next(answers)} for roots in units]

    def _answer_in_pieces(
        self, root: Root, features: Sequence[Features], generation: Generation
    ) -> list[RawAnswer]:
        """Answer a root's branches, as many at a time as fit."""
        prefix = self.prefill([root], [features])
        return [
            raw
            for piece in split(root, self.limit.fits)
            for raw in self.answer_branches([piece], prefix, generation)[0]
        ]

    def _encode(self, unit: PreparedUnit) -> list[Features]:
        """Run a unit's images and videos through the vision encoder, in order.

        Each is cut into patches ``float32 [N, 1536]`` and gives features ``[N / 4, hidden]``: the
        encoder's output, and one tensor for each DeepStack layer.
        """
        features = []
        for part, pixels in zip(unit.seen, seen_pixels(unit), strict=True):
            is_image = part.media.media_type == "image"
            encode = self.model.get_image_features if is_image else self.model.get_video_features
            grid = torch.tensor([part.sampling.grid_thw], device=self._device)
            features.append(encode(patches(pixels.to(self._device)), grid, return_dict=True))
        return features

    def prefill(self, roots: Sequence[Root], features: Sequence[Sequence[Features]]) -> Prefix:
        """Run the shared prefixes of a batch through the model.

        features: of each root's images and videos, in order.
        """
        by_kind: dict[str, list[Features]] = {}
        for root, found in zip(roots, features, strict=True):
            for part, of_part in zip(root.unit.seen, found, strict=True):
                by_kind.setdefault(part.media.media_type, []).append(of_part)
        return Prefix(
            self.model,
            [root.prefix for root in roots],
            [token_types(root.prefix, self.prompter.pad_ids) for root in roots],
            [[part.sampling.grid_thw for part in root.unit.seen] for root in roots],
            {kind: _join(of_kind) for kind, of_kind in by_kind.items()},
            self._pad_id,
        )

    def answer_branches(
        self, roots: Sequence[Root], prefix: Prefix, generation: Generation
    ) -> list[list[RawAnswer]]:
        """Generate the answers to each root's branches, in order.

        Raises:
            UnitError: a prompt was fed with another number of tokens than planned.
            AnswersTooLong: the answers do not fit into the memory that was reserved for them.
        """
        rows = [(root, branch) for root in roots for branch in root.branches]
        branches = Branches(
            self.model,
            prefix,
            [[branch.suffix for branch in root.branches] for root in roots],
            self._pad_id,
            self.attn_implementation,
            # An answer that is alone can only be tried.
            self.limit.max_cached_tokens(roots) if len(rows) > 1 else None,
        )
        shared = [
            n for n, root in zip(prefix.num_tokens, roots, strict=True) for _ in root.branches
        ]
        num_fed = [a + b for a, b in zip(shared, branches.num_suffix_tokens, strict=True)]
        for (_, branch), fed in zip(rows, num_fed, strict=True):
            if fed != branch.prompt.num_prompt_tokens:
                raise token_mismatch(branch.prompt, fed)
        tasks = [branch.prompt.task for _, branch in rows]
        prompts = self._penalised_prompts(rows, generation)
        prompt_length = prompts.shape[1]
        processors = row_processors(
            generation,
            [f"{root.unit.unit_id}/{branch.prompt.task}" for root, branch in rows],
            prompt_length,
            self._device,
            self._grammars.processors(tasks, prompt_length),
        )
        try:
            generated = generate_answers(
                branches,
                processors,
                prompts,
                [branch.max_new_tokens for _, branch in rows],
                self.end_ids,
                stop_loops=generation.stop_loops,
            )
        except AnswersTooLong as error:
            self.limit.answers.add_unfinished(tasks, error.lengths)
            raise
        self.limit.answers.add(tasks, [len(one.ids) for one in generated])
        answers = iter(map(self._raw_answer, tasks, num_fed, generated))
        return [[next(answers) for _ in root.branches] for root in roots]

    def _penalised_prompts(
        self, rows: Sequence[tuple[Root, Branch]], generation: Generation
    ) -> torch.Tensor:
        """The prompts that a repetition penalty reads, int64 [rows, L]; L is 0 without a penalty.

        Padded with a token that the prompt contains: padding must not add a penalised token.
        """
        if generation.repetition_penalty == 1:
            return torch.zeros((len(rows), 0), dtype=torch.long, device=self._device)
        prompts = [root.prefix + branch.suffix for root, branch in rows]
        longest = max(map(len, prompts))
        padded = [ids[:1] * (longest - len(ids)) + ids for ids in prompts]
        return torch.tensor(padded, device=self._device)

    def _raw_answer(self, task: str, num_prompt_tokens: int, generated: Generated) -> RawAnswer:
        return RawAnswer(
            task=task,
            raw_text=self.prompter.decode(generated.ids),
            finish_reason=generated.finish_reason,
            num_prompt_tokens=num_prompt_tokens,
            num_output_tokens=len(generated.ids),
            opens_reasoning=self._opens_reasoning,
        )


def _join(features: list[Features]) -> Features:
    """Join the features of several images or videos, in the form that the model takes."""
    layers = range(len(features[0].deepstack_features or ()))
    return Features(
        pooler_output=tuple(f.pooler_output[0] for f in features),
        deepstack_features=[
            tuple(f.deepstack_features[layer][0] for f in features) for layer in layers
        ],
    )
