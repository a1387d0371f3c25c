"""Run one batch of units through the model: encode media, prefill, generate the answers."""

import dataclasses
from collections.abc import Sequence

import torch

from pipeline.engines.base import token_mismatch
from pipeline.engines.grammar import Grammars
from pipeline.engines.token_sampling import row_processors
from pipeline.engines.transformers.batches import Branch, Root, split
from pipeline.engines.transformers.branches import Branches, spare_tokens
from pipeline.engines.transformers.decoding import AnswersTooLong, Generated, generate_answers
from pipeline.engines.transformers.limit import AnswerLengths, batch_limit
from pipeline.engines.transformers.load import choose_device, end_token_ids, load_model
from pipeline.engines.transformers.prefix import Prefix, RootTokens
from pipeline.engines.transformers.vision import Encoded, VisionEncoder
from pipeline.model.prompter import Prompter
from pipeline.tasks.embedding import vector_text
from schemas.job.generation import Generation
from schemas.job.job import Job
from schemas.tables.unit import RawAnswer


class Generator:
    """Answers batches of units with one model on one device.

    model: of transformers' class for its type, such as ``Qwen3VLForConditionalGeneration``.
    end_ids: token ids that end an answer.
    attn_implementation: of the language model, as in the job.
    limit: what fits into a batch.
    """

    def __init__(self, job: Job) -> None:
        """Load the checkpoint.

        Raises:
            ModelError: the weights cannot be loaded.
        """
        self.prompter = Prompter.of(job)
        self._embeds = any(question.is_vector for question in job.questions())
        self._opens_reasoning = self.prompter.opens_reasoning
        self._device = choose_device(job.model)
        self.model = load_model(job.model, self._device, needs_head=not self._embeds)
        answers = AnswerLengths({q.name: q.max_new_tokens for q in job.questions()})
        self.limit = batch_limit(self.model, job, answers)
        self._vision = VisionEncoder(self.model)
        self.attn_implementation: str = job.model.attn_implementation
        self.end_ids = end_token_ids(self.model, self.prompter)
        self._vocab_size = int(self.model.config.text_config.vocab_size)
        self._grammars = Grammars(
            job.questions() if job.generation.constrained else (),
            self.prompter.tokenizer,
            self._vocab_size,
            has_reasoning=self.prompter.expects_reasoning,
            is_opened=self._opens_reasoning,
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
        roots = [root for of_unit in units for root in of_unit]
        if self._embeds:
            vectors = iter(self._embed(roots))
            return [{raw.task: raw for _ in of_unit for raw in next(vectors)} for of_unit in units]
        if not self.limit.fits(roots):  # a unit that is alone, or answers are longer than expected
            return [
                {
                    raw.task: raw
                    for root in of_unit
                    for raw in self._answer_in_pieces(root, generation)
                }
                for of_unit in units
            ]
        answers = iter(self.answer_branches(roots, self.prefill(roots), generation))
        return [{raw.task: raw for _ in of_unit for raw in next(answers)} for of_unit in units]

    def _embed(self, roots: Sequence[Root]) -> list[list[RawAnswer]]:
        """Embed each root's branches, in order: their prompts are run, and nothing is generated.

        Raises:
            UnitError: a prompt was fed with another number of tokens than planned.
        """
        whole = [
            dataclasses.replace(
                root,
                prefix=root.prefix + branch.suffix,
                branches=(dataclasses.replace(branch, suffix=()),),
            )
            for root in roots
            for branch in root.branches
        ]
        parts = [whole] if self.limit.fits(whole) else [[root] for root in whole]
        answers = iter([raw for part in parts for raw in self._embed_prompts(part)])
        return [[next(answers) for _ in root.branches] for root in roots]

    def _embed_prompts(self, roots: Sequence[Root]) -> list[RawAnswer]:
        """Embed a batch of whole prompts, each a root with one empty branch."""
        prefix = self.prefill(roots)
        states = torch.cat(prefix.last_hidden).float().cpu().numpy()
        answers = []
        for root, num_fed, state in zip(roots, prefix.num_tokens, states, strict=True):
            prompt = root.branches[0].prompt
            if num_fed != prompt.num_prompt_tokens:
                raise token_mismatch(prompt, num_fed)
            answers.append(
                RawAnswer(
                    task=prompt.task,
                    raw_text=vector_text(state),
                    finish_reason="stop",
                    num_prompt_tokens=num_fed,
                    num_output_tokens=0,
                )
            )
        return answers

    def _answer_in_pieces(self, root: Root, generation: Generation) -> list[RawAnswer]:
        """Answer a root's branches, as many at a time as fit."""
        pieces = list(split(root, self.limit.fits))
        prefix = self.prefill(pieces[:1])
        answers = self.answer_branches(pieces[:1], prefix, generation)[0]
        for piece in pieces[1:]:
            prefix.rewind()
            answers += self.answer_branches([piece], prefix, generation)[0]
        return answers

    def prefill(self, roots: Sequence[Root]) -> Prefix:
        """Run the shared prefixes of a batch through the model, with their images and videos."""
        pad_ids = self.prompter.pad_ids
        grids = [[part.sampling.grid_thw for part in root.unit.seen] for root in roots]
        prefix = Prefix(
            self.model,
            [RootTokens.of(r.prefix, pad_ids, of) for r, of in zip(roots, grids, strict=True)],
            self.attn_implementation,
            spare_tokens(_suffixes(roots), copies_prefix=self.limit.copies_prefix),
        )
        encoded: dict[str, Encoded | None] = {}
        for rows in prefix.passes():
            units = {root.unit.unit_id: root.unit for root in roots[rows]}
            # A unit whose tasks have tools has several roots, next to each other.
            encoded = {k: found for k, found in encoded.items() if k in units}
            missing = [k for k in units if k not in encoded]
            found = self._vision.encode([units[k] for k in missing])
            encoded |= zip(missing, found, strict=True)
            prefix.run(rows, [encoded[root.unit.unit_id] for root in roots[rows]])
        return prefix

    def answer_branches(
        self, roots: Sequence[Root], prefix: Prefix, generation: Generation
    ) -> list[list[RawAnswer]]:
        """Generate the answers to each root's branches, in order.

        Raises:
            UnitError: a prompt was fed with another number of tokens than planned.
            AnswersTooLong: the answers do not fit into the memory that was reserved for them.
        """
        rows = [(root, branch) for root in roots for branch in root.branches]
        # An answer that is alone can only be tried.
        limit = self.limit.max_cached_tokens(roots) if len(rows) > 1 else None
        branches = Branches(self.model, prefix, _suffixes(roots), self.attn_implementation, limit)
        shared = [
            n for n, root in zip(prefix.num_tokens, roots, strict=True) for _ in root.branches
        ]
        num_fed = [a + b for a, b in zip(shared, branches.num_suffix_tokens, strict=True)]
        for (_, branch), fed in zip(rows, num_fed, strict=True):
            if fed != branch.prompt.num_prompt_tokens:
                raise token_mismatch(branch.prompt, fed)
        tasks = [branch.prompt.task for _, branch in rows]
        processors = row_processors(
            generation,
            [f"{root.unit.unit_id}/{branch.prompt.task}" for root, branch in rows],
            self._penalised_prompts(rows, generation),
            self._vocab_size,
            self._grammars.processors(tasks, self._device),
        )
        try:
            generated = generate_answers(
                branches,
                processors,
                [branch.max_new_tokens for _, branch in rows],
                self.end_ids,
                stop_loops=generation.stop_loops,
            )
        except AnswersTooLong as error:
            self.limit.answers.add(tasks, error.expected)
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


def _suffixes(roots: Sequence[Root]) -> list[list[tuple[int, ...]]]:
    return [[branch.suffix for branch in root.branches] for root in roots]
