"""How much an engine's batch may hold: by the job's number of tokens, or by the free memory."""

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from pipeline.engines.transformers.batches import Root
from pipeline.model.frame_size import MERGE_SIZE
from pipeline.model.memory import (
    CPU_BATCH_TOKENS,
    START_ANSWER_TOKENS,
    BatchShape,
    ModelMemory,
    copies_prefix,
    gpu_share,
    usable_bytes,
)
from pipeline.model.sizes import ModelSize
from pipeline.workers.free_memory import free_bytes
from schemas.job.job import Job

_NUM_REMEMBERED = 256
_MIN_ANSWERS = 8
_QUANTILE, _MARGIN = 0.95, 1.2


class AnswerLengths:
    """Expected lengths of the answers to each task, learnt from those that this engine gave.

    Before that, an answer is expected to have 256 tokens. Never more than its maximum.
    """

    def __init__(self, max_new_tokens: Mapping[str, int]) -> None:
        """max_new_tokens: by task."""
        self._max_new_tokens = max_new_tokens
        self._seen: dict[str, deque[int]] = defaultdict(lambda: deque(maxlen=_NUM_REMEMBERED))
        self._expected: dict[str, int] = {}

    def add(self, tasks: Sequence[str], lengths: Sequence[int]) -> None:
        """Learn the lengths of answers, in tokens."""
        for task, length in zip(tasks, lengths, strict=True):
            self._seen[task].append(length)
            self._expected.pop(task, None)

    def expected(self, task: str) -> int:
        """Tokens that an answer reserves: 19 of 20 were shorter, with a margin of a fifth."""
        if task not in self._expected:  # requested for each answer of each batch that is tried
            self._expected[task] = self._find_expected(task)
        return self._expected[task]

    def _find_expected(self, task: str) -> int:
        found, longest = sorted(self._seen[task]), self._max_new_tokens[task]
        if len(found) < _MIN_ANSWERS:
            return min(longest, max([START_ANSWER_TOKENS, *found]))
        return min(longest, int(_MARGIN * found[int(_QUANTILE * len(found))]) + 1)


@dataclass(frozen=True, kw_only=True)
class BatchLimit:
    """Decides which roots fit into a batch.

    memory: of the model. answers: how long they will be.
    max_tokens: in the cache, padding included; None: as many as memory holds.
    free_bytes: of the device, for batches; None: only ``max_tokens`` counts.
    copies_prefix: each branch has a copy of its root's prefix in the cache (FlashAttention, and
        models with linear layers).
    """

    memory: ModelMemory
    answers: AnswerLengths
    max_tokens: int | None
    free_bytes: int | None
    copies_prefix: bool = False

    def shape(self, roots: Sequence[Root]) -> BatchShape:
        """The size of a batch of roots, whose answers have their expected lengths."""
        branches = [branch for root in roots for branch in root.branches]
        # Roots of the same unit share its features.
        num_vision_tokens = {
            root.unit.unit_id: sum(part.sampling.num_vision_tokens for part in root.unit.seen)
            for root in roots
        }
        num_branches = max(len(root.branches) for root in roots)
        return BatchShape(
            num_roots=len(branches) if self.copies_prefix else len(roots),
            prefix_tokens=max(len(root.prefix) for root in roots),
            num_branches=1 if self.copies_prefix else num_branches,
            suffix_tokens=max(len(branch.suffix) for branch in branches),
            answer_tokens=max(self.answers.expected(branch.prompt.task) for branch in branches),
            num_patches=sum(num_vision_tokens.values()) * MERGE_SIZE**2,
        )

    def max_cached_tokens(self, roots: Sequence[Root]) -> int:
        """Tokens that the cache of a batch may hold.

        A root alone has at least a quarter of ``max_tokens`` for its branches: its prefix is in the
        cache in any case, and to divide its branches would not make that smaller.
        """
        shape, limits = self.shape(roots), []
        if self.max_tokens is not None:
            alone = shape.prefix_tokens + self.max_tokens // 4 if len(roots) == 1 else 0
            limits.append(max(self.max_tokens, alone))
        if self.free_bytes is not None:
            limits.append(self.memory.max_cached_tokens(shape, self.free_bytes))
        return min(limits)

    def fits(self, roots: Sequence[Root]) -> bool:
        """Whether the roots fit into one batch, if answers are as long as expected."""
        return self.shape(roots).cached_tokens <= self.max_cached_tokens(roots)


def batch_limit(model: Any, job: Job, answers: AnswerLengths) -> BatchLimit:
    """The limit of batches of a loaded model, by ``resources.max_batch_tokens``."""
    memory = ModelMemory(
        size=ModelSize.of(model.config.to_dict()), value_bytes=model.dtype.itemsize
    )
    resources = job.resources
    given: int | Literal["auto"] = resources.max_batch_tokens
    max_tokens: int | None = None if given == "auto" else given
    free: int | None = None
    if given == "auto" and model.device.type == "cuda":
        free = _free_on_gpu(model.device, gpu_share(resources.gpus_per_replica))
    elif given == "auto":
        max_tokens, free = CPU_BATCH_TOKENS, usable_bytes(free_bytes(), device="cpu")
    return BatchLimit(
        memory=memory,
        answers=answers,
        max_tokens=max_tokens,
        free_bytes=free,
        copies_prefix=copies_prefix(job.model) or memory.is_hybrid,
    )


def _free_on_gpu(device: torch.device, share: float) -> int:
    """Bytes that batches may take on a GPU, of which this engine has a share."""
    free, total = torch.cuda.mem_get_info(device)
    others = total - free - torch.cuda.memory_reserved(device)
    own = usable_bytes(total, share) - torch.cuda.memory_allocated(device)
    return max(0, min(own, usable_bytes(total) - others - torch.cuda.memory_allocated(device)))
