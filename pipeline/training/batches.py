"""The data set and the collator of the Trainer: prepare samples when they are needed, pack them."""

import json
from collections.abc import Sequence
from pathlib import Path

from torch.utils.data import Dataset

from pipeline.model.prompter import Prompter
from pipeline.storage.storage import Storage
from pipeline.training.pack import Batch, blank_sample, collate, pack
from pipeline.training.sample import Group, Preparer, Sample
from schemas.conversation import DataProblem, ProblemType
from schemas.job.finetune import FinetuneJob

Prepared = list[Sample | DataProblem]


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
        if not is_long or len(group) == 1:
            return [prepared]
        half = len(group) // 2
        return [*self._prepare(preparer, group[:half]), *self._prepare(preparer, group[half:])]


class Collator:
    """Packs samples into a batch, and appends those that failed to a file.

    failed: a JSON lines file: sample, type, message.
    """

    def __init__(
        self, job: FinetuneJob, prompter: Prompter, *, attn_implementation: str, failed: Path
    ) -> None:
        self._training = job.training
        self._pad_id = int(prompter.tokenizer.pad_token_id or 0)
        self._blank = blank_sample(prompter.pad_ids["image"])
        max_tokens = job.training.packed_tokens or job.model.max_model_len
        self._max_tokens = max_tokens if job.training.packing else 0
        self._attn, self._failed = attn_implementation, failed

    def __call__(self, prepared: Sequence[Prepared]) -> Batch:
        """Make a batch from the samples that could be prepared; see ``collate``.

        With ``on_bad_sample: stop`` the batch names the failed sample under ``problem``. An
        exception from the data loader's process would reach the user as a traceback.
        """
        samples = [sample for group in prepared for sample in group]
        problems = [sample for sample in samples if isinstance(sample, DataProblem)]
        for problem in problems:
            self._write_failed(problem)
        good = [sample for sample in samples if isinstance(sample, Sample)]
        rows = pack(good, self._max_tokens)
        if not any(sample.media for sample in good):
            rows = [*rows[:-1], [*(rows[-1] if rows else ()), self._blank]]
        if self._attn == "flash_attention_2":
            rows = [[sample for row in rows for sample in row]]
        batch = collate(rows, pad_id=self._pad_id, attn_implementation=self._attn)
        if problems and self._training.on_bad_sample == "stop":
            first = problems[0]
            batch["problem"] = f"{first.origin}: {first.type}: {first.message}"
        return batch

    def _write_failed(self, problem: DataProblem) -> None:
        line = json.dumps(
            {"sample": problem.origin, "type": problem.type, "message": problem.message}
        )
        # One write: lines of several processes must not mix.
        with self._failed.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
