"""Prepare a training sample as the pipeline prepares a unit: plan, decode, prompt.

In training the model sees what it sees in annotation: the same frames at the same times, the same
sizes, the same token ids. Tests compare the two.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.media.frames import Pixels
from pipeline.model.checkpoint import load_config
from pipeline.model.positions import TEXT, Grid, Ints, mrope_positions, token_types
from pipeline.model.prompter import Prompter, Vision
from pipeline.plan.planner import PROBE_THREADS, Planner
from pipeline.storage.storage import Storage
from pipeline.training.groups import Group
from pipeline.training.turns import conversation_ids
from pipeline.workers.child_limits import ChildLimits
from pipeline.workers.child_process import Isolated
from pipeline.workers.isolated_decoder import IsolatedDecoder
from schemas.conversation import Conversation, DataProblem, ProblemType
from schemas.errors import ErrorType, UnitError
from schemas.job.finetune import FinetuneJob
from schemas.shown import redact_text
from schemas.tables.manifest import MediaItem
from schemas.tables.unit import UnitStatus

logger = logging.getLogger(__name__)

IGNORED = -100
"""Label of a token that is not learnt."""

ROOT = 0
"""Branch number of the tokens that all conversations of a sample share."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What all workers of a job train on and validate with, and the storage of its media."""

    train: Sequence[Group]
    validation: Sequence[Group]
    storage: Storage


@dataclass(frozen=True, kw_only=True)
class PreparedMedia:
    """An image or video as the model sees it.

    pixels: uint8 [T, H, W, 3].
    grid_thw: (t, h, w) in patches.
    vision: frame times and tokens, from which the prompt is made.
    """

    media_type: str
    pixels: Pixels
    grid_thw: Grid
    vision: Vision


@dataclass(frozen=True, kw_only=True)
class Size:
    """Tokens of a sample: all, those that are learnt, those of media, and those of branches.

    num_conversations: how many there are after the tokens that they share.
    """

    num_tokens: int
    num_learnt: int
    num_vision: int = 0
    num_branched: int = 0
    num_conversations: int = 1

    @property
    def num_repeated(self) -> int:
        """Tokens that a linear layer reads again: shared ones, for each further conversation."""
        return (self.num_conversations - 1) * (self.num_tokens - self.num_branched)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One or more conversations about the same media, with the media once.

    The tokens that all conversations begin with (at least the media) come once, as branch 0; then
    the rest of each conversation, as branch 1, 2, ... A token sees the earlier tokens of branch 0
    and of its own branch. A single conversation is entirely branch 0.

    origin: rows of the conversations, for messages.
    input_ids, labels, types, branches: int64 [L]; labels are -100 where nothing is learnt, types
        are ``mm_token_type_ids``.
    positions: int64 [3, L], M-RoPE position ids as if each conversation were alone.
    media: in the order of their tokens.
    """

    origin: str
    input_ids: Ints
    labels: Ints
    types: Ints
    branches: Ints
    positions: Ints
    media: tuple[PreparedMedia, ...]

    @property
    def num_tokens(self) -> int:
        """Number of tokens."""
        return len(self.input_ids)

    @property
    def num_learnt(self) -> int:
        """Number of tokens that count in the loss."""
        return int((self.labels != IGNORED).sum())

    @property
    def size(self) -> Size:
        """Its numbers of tokens."""
        return Size(
            num_tokens=self.num_tokens,
            num_learnt=self.num_learnt,
            num_vision=int((self.types != TEXT).sum()),
            num_branched=int((self.branches != ROOT).sum()),
            num_conversations=max(1, len(np.unique(self.branches[self.branches != ROOT]))),
        )


def max_tokens(job: FinetuneJob) -> int:
    """Maximum tokens of a sample: the job's limit, or the checkpoint's context."""
    model = job.model
    if model.max_model_len is not None:
        return model.max_model_len
    config = load_config(model.source, model.revision, model.yarn)
    return int(config.text_config.max_position_embeddings)


class Preparer:
    """Makes samples from conversations.

    prompter: the checkpoint's tokenizer and chat template.
    """

    def __init__(self, job: FinetuneJob, storage: Storage) -> None:
        """Load the tokenizer.

        Raises:
            ModelError: the checkpoint has no tokenizer.
        """
        annotate = job.annotate_job()
        self._max_tokens = max_tokens(job)
        self._storage = storage
        # No limit for the planner: `prepare` checks the whole sample, with its answers.
        self._probes = Isolated("pipeline.plan.sampler", PROBE_THREADS)
        self._limits = ChildLimits.of(annotate.resources)
        self._planner = Planner(annotate, 1 << 40, storage, self._probes)
        self._decoder = IsolatedDecoder(annotate.resources, storage)
        self._decoder_name = annotate.sampling.decoder
        self.prompter = Prompter(job.model.source, job.model.revision)

    def prepare(self, group: Sequence[Conversation]) -> Sample | DataProblem:
        """Prepare conversations about the same media as one sample.

        Returns a problem if media cannot be read or the sample exceeds ``model.max_model_len``.
        """
        origin = ", ".join(dict.fromkeys(conversation.origin for conversation in group))
        try:
            media = tuple(self.prepare_media(item) for item in group[0].media)
        except UnitError as error:
            missing = error.error_type in (ErrorType.MEDIA_MISSING, ErrorType.MEDIA_DENIED)
            kind = ProblemType.MEDIA_MISSING if missing else ProblemType.MEDIA_UNREADABLE
            message = f"{error.error_type}: {error}"
            return DataProblem(origin=origin, type=kind, message=message)
        except Exception as error:  # damaged media must not fail the other samples
            logger.exception("decoding the media of %s", origin)
            message = redact_text(f"decoding failed: {type(error).__name__}: {error}")
            return DataProblem(origin=origin, type=ProblemType.MEDIA_UNREADABLE, message=message)
        try:
            sample = self._sample(origin, group, media)
        except ValueError as error:
            return DataProblem(origin=origin, type=ProblemType.BAD_ROW, message=str(error))
        if sample.num_tokens > self._max_tokens:
            return DataProblem(
                origin=origin,
                type=ProblemType.OVER_LONG,
                message=f"{sample.num_tokens} tokens are over model.max_model_len = "
                f"{self._max_tokens}; lower budget or sampling, or raise it",
            )
        return sample

    def prepare_media(self, item: MediaItem) -> PreparedMedia:
        """Plan and decode one image or video.

        Raises:
            UnitError: it cannot be read.
        """
        (unit,) = self._planner.plan_item(item)
        if unit.status == UnitStatus.FAILED:
            assert unit.error is not None
            raise UnitError(ErrorType[unit.error.type.upper()], unit.error.message)
        assert unit.media is not None and unit.sampling is not None
        frames = self._decoder.decode(unit.seen[0], self._decoder_name)
        vision = Vision.of(unit.media.media_type, unit.sampling, frames.pts_seconds)
        return PreparedMedia(
            media_type=unit.media.media_type,
            pixels=frames.pixels,
            grid_thw=unit.sampling.grid_thw,
            vision=vision,
        )

    def _sample(
        self, origin: str, group: Sequence[Conversation], media: tuple[PreparedMedia, ...]
    ) -> Sample:
        visions = [part.vision for part in media]
        grids = [part.grid_thw for part in media]
        tokenized = [
            conversation_ids(self.prompter, c.turns, visions, only_last=c.only_last) for c in group
        ]
        root = _num_shared(tokenized) if len(group) > 1 else len(tokenized[0][0])
        parts: list[tuple[Ints, ...]] = []
        for k, (ids, learnt) in enumerate(tokenized):
            types = token_types(ids, self.prompter.pad_ids)
            positions = mrope_positions(types, grids)
            input_ids = np.asarray(ids, dtype=np.int64)
            labels = np.where(learnt, input_ids, IGNORED)
            begin = 0 if k == 0 else root
            branches = np.where(np.arange(len(ids)) < root, ROOT, k + 1)
            columns = (input_ids, labels, types, branches, positions)
            parts.append(tuple(column[..., begin:] for column in columns))
        joined = [np.concatenate(column, axis=-1) for column in zip(*parts, strict=True)]
        input_ids, labels, types, branches, positions = joined
        if root < len(tokenized[0][0]) and types[root:].any():
            raise ValueError(
                "conversations that share media must have all of it in their first turn"
            )
        return Sample(
            origin=origin,
            input_ids=input_ids,
            labels=labels,
            types=types,
            branches=branches,
            positions=positions,
            media=media,
        )


def _num_shared(tokenized: Sequence[tuple[list[int], list[bool]]]) -> int:
    """Length of the prefix that all conversations share and that is not learnt.

    Each branch must begin with a token that is not learnt: the loss predicts a token from the one
    before it in the row, and the one before a branch belongs to another branch.
    """
    first_learnt = [
        learnt.index(True) if True in learnt else len(learnt) for _, learnt in tokenized
    ]
    shared = 0
    for column in zip(*(ids[: min(first_learnt) - 1] for ids, _ in tokenized), strict=False):
        if any(token != column[0] for token in column):
            break
        shared += 1
    return shared


def too_many_skipped(skipped: Mapping[str, str], num_samples: int, limit: float) -> str:
    """The message of a training that is ended because of samples that cannot be learnt.

    skipped: a line for each such sample.
    limit: ``max_skipped``, in percent.
    """
    first = next(iter(skipped.values()))
    return (
        f"{len(skipped):,} of {num_samples:,} samples cannot be learnt, which is over "
        f"training.max_skipped = {limit:g} %. The first is {first}. `reelscribe check-dataset` "
        "finds all of them: correct or remove them, or raise training.max_skipped"
    )
