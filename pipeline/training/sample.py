"""Prepare a training sample exactly as the pipeline prepares a unit: plan, decode, prompt.

What the model sees in training is what it sees in annotation: the same frames at the same times,
the same sizes, the same token ids. Tests compare the two.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.decode import decode_unit
from pipeline.frames import Pixels
from pipeline.plan import Planner
from pipeline.positions import Grid, Ints, mrope_positions, token_types
from pipeline.prompt import Prompter, Vision
from pipeline.storage import Storage
from schemas.conversation import Conversation, DataProblem, ProblemType
from schemas.errors import ErrorType, UnitError
from schemas.finetune import FinetuneJob
from schemas.manifest import MediaItem
from schemas.unit import UnitStatus

logger = logging.getLogger(__name__)

IGNORED = -100
"""Label of a token that is not learnt."""

ROOT = 0
"""Branch of the tokens that all conversations of a sample share."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image or a video as the model sees it. pixels: uint8 [T, H, W, 3]."""

    media_type: str
    pixels: Pixels
    grid_thw: Grid
    vision: Vision


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One or more conversations about the same media, with the media once.

    The conversations begin with the same tokens (the media, at least): these are there once, as
    branch 0; then the rest of each, as branch 1, 2, ... A token sees those before it that are of
    branch 0 or of its own branch. A single conversation is all branch 0.

    input_ids, labels, types, branches: int64 [L]; labels are -100 where nothing is learnt.
    positions: int64 [3, L], in each branch as if it were alone.
    """

    origin: str
    input_ids: Ints
    labels: Ints
    types: Ints
    branches: Ints
    positions: Ints
    pictures: tuple[Picture, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the sample."""
        return len(self.input_ids)

    @property
    def num_learnt(self) -> int:
        """Tokens that count in the loss."""
        return int((self.labels != IGNORED).sum())


class Preparer:
    """Makes samples of conversations."""

    def __init__(self, job: FinetuneJob, storage: Storage) -> None:
        """Load the tokenizer.

        Raises:
            ModelError: the checkpoint has none.
        """
        annotate = job.annotate_job()
        self._max_model_len = job.model.max_model_len
        self._storage = storage
        # The plan's own limit is not asked: here the whole sample counts, with its answers.
        self._planner = Planner(annotate, 1 << 40, storage)
        self._decoder = annotate.sampling.decoder
        self.prompter = Prompter(job.model.source, job.model.revision)

    def prepare(self, group: Sequence[Conversation]) -> Sample | DataProblem:
        """Prepare conversations about the same media as one sample.

        Returns what is wrong, if a medium cannot be read or the sample is too long.
        """
        origin = ", ".join(conversation.origin for conversation in group)
        try:
            pictures = tuple(self._picture(item) for item in group[0].media)
        except UnitError as error:
            missing = error.error_type in (ErrorType.MEDIA_MISSING, ErrorType.MEDIA_DENIED)
            kind = ProblemType.MEDIA_MISSING if missing else ProblemType.MEDIA_UNREADABLE
            message = f"{error.error_type}: {error}"
            return DataProblem(origin=origin, type=kind, message=message)
        except Exception as error:  # the boundary: hostile media costs its own sample only
            logger.exception("decoding the media of %s", origin)
            message = f"decoding failed: {type(error).__name__}: {error}"
            return DataProblem(origin=origin, type=ProblemType.MEDIA_UNREADABLE, message=message)
        try:
            sample = self._sample(origin, group, pictures)
        except ValueError as error:
            return DataProblem(origin=origin, type=ProblemType.BAD_ROW, message=str(error))
        if sample.num_tokens > self._max_model_len:
            return DataProblem(
                origin=origin,
                type=ProblemType.OVER_LONG,
                message=f"{sample.num_tokens} tokens are over model.max_model_len = "
                f"{self._max_model_len}; lower budget or sampling, or raise it",
            )
        return sample

    def _picture(self, item: MediaItem) -> Picture:
        (unit,) = self._planner.plan_item(item)
        if unit.status == UnitStatus.FAILED:
            assert unit.error is not None
            raise UnitError(ErrorType[unit.error.type.upper()], unit.error.message)
        assert unit.media is not None and unit.sampling is not None
        frames = decode_unit(unit, self._storage, decoder=self._decoder)
        vision = Vision.of(unit.media.media_type, unit.sampling, frames.pts_seconds)
        return Picture(
            media_type=unit.media.media_type,
            pixels=frames.pixels,
            grid_thw=unit.sampling.grid_thw,
            vision=vision,
        )

    def _sample(
        self, origin: str, group: Sequence[Conversation], pictures: tuple[Picture, ...]
    ) -> Sample:
        visions = [picture.vision for picture in pictures]
        grids = [picture.grid_thw for picture in pictures]
        made = [self.prompter.conversation_ids(c.turns, visions) for c in group]
        root = _num_shared(made) if len(made) > 1 else len(made[0][0])
        parts: list[tuple[Ints, ...]] = []
        for k, (ids, learnt) in enumerate(made):
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
        if root < len(made[0][0]) and types[root:].any():
            raise ValueError("conversations that share media must have it all in their first turn")
        return Sample(
            origin=origin,
            input_ids=input_ids,
            labels=labels,
            types=types,
            branches=branches,
            positions=positions,
            pictures=pictures,
        )


def _num_shared(made: Sequence[tuple[list[int], list[bool]]]) -> int:
    """Length of the beginning that all have in common and that is not learnt.

    Each keeps a token of its own that is not learnt: the next token is predicted from the one
    before it in the row, which at a branch's first is another branch's last.
    """
    most = min(learnt.index(True) if True in learnt else len(learnt) for _, learnt in made) - 1
    shared = 0
    for column in zip(*(ids[:most] for ids, _ in made), strict=False):
        if any(token != column[0] for token in column):
            break
        shared += 1
    return shared


def group_by_media(
    conversations: Sequence[Conversation], *, share_media: bool
) -> list[tuple[Conversation, ...]]:
    """Put neighbours that look at the same media together, if they show it in their first turn."""
    groups: list[tuple[Conversation, ...]] = []
    for conversation in conversations:
        alike = (
            groups and share_media and _shows_first(conversation) and _shows_first(groups[-1][0])
        )
        if alike and conversation.shares_media(groups[-1][0]):
            groups[-1] = (*groups[-1], conversation)
        else:
            groups.append((conversation,))
    return groups


def _shows_first(conversation: Conversation) -> bool:
    """Whether all media come before any word."""
    num = len(conversation.media)
    return conversation.turns[0].parts[:num] == tuple(range(num))
