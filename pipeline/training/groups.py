"""Which conversations become one sample: those about the same media."""

import dataclasses
from collections.abc import Sequence

from pipeline.model.prompter import Prompter, Vision
from pipeline.training.turns import keeps_turns
from schemas.conversation import Conversation, Turn

Group = tuple[Conversation, ...]
"""Conversations about the same media."""


def one_answer_each(
    conversations: Sequence[Conversation], prompter: Prompter
) -> list[Conversation]:
    """Divide conversations whose earlier turns the chat template rewrites: one for each answer.

    Each begins as the whole does, and ends with the answer that is learnt. Others stay as they are.
    """
    return [part for c in conversations for part in _divided(c, prompter)]


def _divided(conversation: Conversation, prompter: Prompter) -> list[Conversation]:
    turns = conversation.turns
    ends = [k for k, turn in enumerate(turns, start=1) if turn.role == "assistant"]
    if len(ends) < 2 or keeps_turns(prompter, turns, _any_visions(conversation)):
        return [conversation]
    parts = []
    for end in ends:
        num_media = sum(isinstance(part, int) for turn in turns[:end] for part in turn.parts)
        media = conversation.media[:num_media]
        parts.append(
            dataclasses.replace(conversation, turns=turns[:end], media=media, only_last=True)
        )
    return parts


def _any_visions(conversation: Conversation) -> list[Vision]:
    """Media of the conversation's types: how long they are does not change what is rewritten."""
    return [
        Vision(media_type=item.media_type or "image", pts_seconds=(), tokens_per_slot=1)
        for item in conversation.media
    ]


def group_by_media(conversations: Sequence[Conversation], *, share_media: bool) -> list[Group]:
    """Group neighbouring conversations about the same media.

    A conversation with text before its media is alone in its group: it cannot share their tokens.

    share_media: false: each conversation is alone in its group.
    """
    groups: list[Group] = []
    for conversation in conversations:
        if share_media and groups and _can_share(groups[-1][0], conversation):
            groups[-1] = (*groups[-1], conversation)
        else:
            groups.append((conversation,))
    return groups


def _can_share(first: Conversation, second: Conversation) -> bool:
    if not second.shares_media(first):
        return False
    if _begins_with_media(first) and _begins_with_media(second):
        return True
    is_same_opening = bool(_opening(first)) and _opening(first) == _opening(second)
    return first.only_last and second.only_last and is_same_opening


def _opening(conversation: Conversation) -> tuple[Turn, ...]:
    """The turns before the first answer; empty if later ones have media too."""
    turns = conversation.turns
    opening = turns[: [turn.role for turn in turns].index("assistant")]
    num_media = sum(isinstance(part, int) for turn in opening for part in turn.parts)
    return opening if num_media == len(conversation.media) else ()


def _begins_with_media(conversation: Conversation) -> bool:
    num_media = len(conversation.media)
    return conversation.turns[0].parts[:num_media] == tuple(range(num_media))


def halves(group: Group) -> tuple[Group, Group]:
    """What training makes of a group whose conversations are too long together."""
    half = len(group) // 2
    return group[:half], group[half:]
