"""A training example: media, and a conversation about them; the assistant's turns are learnt."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from schemas.tables.manifest import MediaItem


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One turn. ``parts`` are texts, and indices of the conversation's media."""

    role: str
    parts: tuple[str | int, ...]


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """One training example.

    origin: file and row, for messages.
    only_last: of its answers, only the last is learnt. Not in its text, of which the digest of a
        training's data is made.
    """

    origin: str
    media: tuple[MediaItem, ...]
    turns: tuple[Turn, ...]
    only_last: bool = field(default=False, repr=False)

    def shares_media(self, other: "Conversation") -> bool:
        """Whether both have the same media, so that they can share one vision encode."""
        return bool(self.media) and _keys(self.media) == _keys(other.media)


def _keys(media: Sequence[MediaItem]) -> list[tuple[object, ...]]:
    return [
        (m.uri, m.media_type, m.frames, m.sample_fps, m.start_seconds, m.end_seconds) for m in media
    ]


class ProblemType(StrEnum):
    """Problems of a training example; a closed list, as ErrorType."""

    BAD_ROW = "bad_row"  # not a conversation: columns, roles, types
    TAG_MISMATCH = "tag_mismatch"  # <image> and <video> tags do not match the files
    BAD_BOX = "bad_box"  # a box out of range, or not normalised to 0..1000
    MEDIA_MISSING = "media_missing"
    MEDIA_UNREADABLE = "media_unreadable"
    OVER_LONG = "over_long"  # more tokens than max_model_len
    NO_ANSWER = "no_answer"  # nothing to learn from it


@dataclass(frozen=True, kw_only=True)
class DataProblem:
    """One problem of one training example."""

    origin: str
    type: ProblemType
    message: str
