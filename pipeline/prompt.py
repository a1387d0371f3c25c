"""Build the token ids of a prompt: one layout for every engine, from the checkpoint's own template.

The layout is that of the processor published with the model: a video is, for each frame pair,
its time and its tokens,

    <0.2 seconds><|vision_start|><|video_pad|>...<|vision_end|>

in place of the template's whole ``<|vision_start|><|video_pad|><|vision_end|>``. Times are PTS.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from schemas.conversation import Turn
from schemas.errors import ModelError
from schemas.unit import Sampling

IMAGE_SLOT = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO_SLOT = "<|vision_start|><|video_pad|><|vision_end|>"
PAIR_LAYOUT = "<{seconds:.1f} seconds><|vision_start|><|video_pad|><|vision_end|>"
"""One frame pair of a video; its one pad stands for all the pair's tokens."""

END_OF_TURN = "<|im_end|>"

TEXT, IMAGE, VIDEO = 0, 1, 2
"""``mm_token_type_ids``: what the model's position ids are made from."""


_SLOT = re.compile(f"{re.escape(IMAGE_SLOT)}|{re.escape(VIDEO_SLOT)}")


@dataclass(frozen=True, kw_only=True)
class Vision:
    """The vision part of a prompt: an image (``pts_seconds`` empty) or a video.

    pts_seconds: times of the frames, an even number, on the clock that the model is told.
    tokens_per_slot: tokens of the image, or of each frame pair.
    """

    media_type: str
    pts_seconds: tuple[float, ...]
    tokens_per_slot: int

    @classmethod
    def of(cls, media_type: str, sampling: Sampling, pts_seconds: Sequence[float]) -> "Vision":
        """The vision part of a unit, with planned or decoded frame times."""
        grid_t = sampling.grid_thw[0]
        return cls(
            media_type=media_type,
            pts_seconds=tuple(t - sampling.origin_seconds for t in pts_seconds),
            tokens_per_slot=sampling.num_vision_tokens // grid_t,
        )

    @property
    def num_slots(self) -> int:
        """Its places in the prompt: one, or one for each frame pair."""
        return max(1, len(self.pts_seconds) // 2)


class Length(NamedTuple):
    """How many tokens a prompt has, and how many of them are its own.

    num_own_tokens: those after the last image or video, or, without any, the last one. What comes
        before, prompts of a unit have in common, and an engine reads it once.
    """

    num_tokens: int
    num_own_tokens: int


class Prompter:
    """Builds prompts with a checkpoint's tokenizer and chat template."""

    def __init__(self, source: str, revision: str | None = None) -> None:
        """Load the tokenizer of a checkpoint folder or hub id.

        Raises:
            ModelError: there is none, or it lacks Qwen3-VL's vision tokens or a chat template.
        """
        # What AutoTokenizer takes for Qwen3-VL; that one would import torch, for each decoder.
        from transformers import Qwen2Tokenizer

        try:
            self.tokenizer: Any = Qwen2Tokenizer.from_pretrained(source, revision=revision)
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot load the tokenizer of {source}: {error}") from None
        if not self.tokenizer.chat_template:
            raise ModelError(
                f"{source} has no tokenizer with a chat template: is it a Qwen3-VL checkpoint?"
            )
        self.pad_ids = {
            "image": self._special("<|image_pad|>", source),
            "video": self._special("<|video_pad|>", source),
        }

    @property
    def opens_reasoning(self) -> bool:
        """Whether the template itself opens ``<think>``: an answer then begins as reasoning."""
        prompt: str = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": ""}], tokenize=False, add_generation_prompt=True
        )
        return _is_open_reasoning(prompt)

    def _special(self, token: str, source: str) -> int:
        ids = self.tokenizer.encode(token, add_special_tokens=False)
        if len(ids) != 1:
            raise ModelError(
                f"{source} does not know the token {token}: is it a Qwen3-VL checkpoint?"
            )
        return int(ids[0])

    def input_ids(self, vision: Vision | None, text: str, tools: str | None = None) -> list[int]:
        """Token ids of one user turn, the media first, then ``text``, up to the answer's begin.

        vision: None for text alone.
        tools: JSON list of functions, which the template puts into a system turn.
        """
        asked = self._question(vision, text, tools)
        visions = [vision] if vision else []
        return self._expand(self._slotted_ids(asked, visions), visions)

    def length(self, vision: Vision, text: str, tools: str | None = None) -> Length:
        """Length of ``input_ids``, without making them."""
        return self._length(self._question(vision, text, tools), [vision])

    def chat_ids(
        self, messages: str, visions: Sequence[Vision], *, add_vision_id: bool = False
    ) -> list[int]:
        """Token ids of a conversation, up to the begin of the answer to its last turn.

        messages: JSON list of turns as the chat template takes them.
        visions: of the images and videos in them, in order.
        add_vision_id: let the template number them: "Picture 1: ", "Video 1: ".
        """
        prompt = self._rendered(json.loads(plain(messages)), add_vision_id=add_vision_id)
        return self._expand(self._slotted_ids(prompt, visions), visions)

    def chat_length(
        self, messages: str, visions: Sequence[Vision], *, add_vision_id: bool = False
    ) -> Length:
        """Length of ``chat_ids``, without making them."""
        prompt = self._rendered(json.loads(plain(messages)), add_vision_id=add_vision_id)
        return self._length(prompt, visions)

    def conversation_ids(
        self, turns: Sequence[Turn], visions: Sequence[Vision]
    ) -> tuple[list[int], list[bool]]:
        """Token ids of a whole conversation, and which of them are learnt.

        Learnt are the assistant's turns, with the token that ends them. Their place follows from
        the turns, not from what is written in them. Each turn's question is tokenised up to the
        answer's begin, as ``input_ids`` does, and the answer by itself, as it is generated. Where
        the template opens ``<think>``, an answer without reasoning learns to close it at once.

        Raises:
            ValueError: the template rewrites earlier turns (Thinking checkpoints drop reasoning),
                so that no one sequence is what the model sees at each of its answers.
        """
        messages = [_message(turn, visions) for turn in turns]
        ids: list[int] = []
        learnt: list[bool] = []
        before, shown = "", list(visions)
        for k, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            prompt = self._rendered(messages[:k])
            if not prompt.startswith(before):
                raise ValueError("the chat template rewrites earlier turns: train one answer each")
            asked = self._slotted_ids(prompt[len(before) :], shown)
            question = self._expand(asked, shown)
            shown = shown[_num_slots(prompt[len(before) :]) :]
            answer = "".join(plain(part) for part in turn.parts if isinstance(part, str))
            if _is_open_reasoning(prompt):
                answer = _from_open_reasoning(answer)
            said = self.tokenizer.encode(answer + END_OF_TURN, add_special_tokens=False)
            ids += question + said
            learnt += [False] * len(question) + [True] * len(said)
            before = prompt + answer + END_OF_TURN
        return ids, learnt

    def _question(self, vision: Vision | None, text: str, tools: str | None) -> str:
        turn = _message(Turn(role="user", parts=(0, text)), [vision]) if vision else _text(text)
        return self._rendered([turn], json.loads(plain(tools)) if tools else None)

    def _rendered(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        *,
        add_vision_id: bool = False,
    ) -> str:
        prompt: str = self.tokenizer.apply_chat_template(
            messages,
            tools=tools,
            tokenize=False,
            add_generation_prompt=True,
            add_vision_id=add_vision_id,
        )
        return prompt

    def _slotted_ids(self, prompt: str, visions: Sequence[Vision]) -> list[int]:
        """Token ids with a single pad for each image or frame pair; ``visions`` in order."""
        shown = iter(visions)

        def layout(slot: re.Match[str]) -> str:
            vision = next(shown)
            if vision.media_type == "image":
                return slot[0]
            seconds = pair_seconds(vision.pts_seconds)
            return "".join(PAIR_LAYOUT.format(seconds=t) for t in seconds)

        ids: list[int] = self.tokenizer.encode(_SLOT.sub(layout, prompt), add_special_tokens=False)
        return ids

    def _expand(self, ids: Sequence[int], visions: Sequence[Vision]) -> list[int]:
        """Repeat each single pad as often as its picture has tokens."""
        counts = iter(v.tokens_per_slot for v in visions for _ in range(v.num_slots))
        pads = set(self.pad_ids.values())
        expanded: list[int] = []
        for token in ids:
            expanded += [token] * (next(counts) if token in pads else 1)
        return expanded

    def _length(self, prompt: str, visions: Sequence[Vision]) -> Length:
        ids = self._slotted_ids(prompt, visions)
        more = sum(vision.num_slots * (vision.tokens_per_slot - 1) for vision in visions)
        pads = set(self.pad_ids.values())
        own = next((k for k, token in enumerate(reversed(ids)) if token in pads), 1)
        return Length(len(ids) + more, own)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, special tokens left out."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


def _message(turn: Turn, visions: Sequence[Vision]) -> dict[str, Any]:
    """A turn as the chat template takes it."""
    content: list[dict[str, str]] = []
    for part in turn.parts:
        if isinstance(part, int):
            content.append({"type": visions[part].media_type})
        else:
            content.append({"type": "text", "text": plain(part)})
    if turn.role == "user":
        return {"role": turn.role, "content": content}
    return {"role": turn.role, "content": "".join(part["text"] for part in content)}


def _text(text: str) -> dict[str, Any]:
    return _message(Turn(role="user", parts=(text,)), [])


def _is_open_reasoning(prompt: str) -> bool:
    return prompt.rstrip().endswith("<think>")


def _from_open_reasoning(answer: str) -> str:
    """An answer as it goes on where the template has written ``<think>`` and a line break.

    One without reasoning closes it at once: else it would be read as reasoning without an answer.
    """
    if "</think>" in answer:
        return answer.removeprefix("<think>").removeprefix("\n")
    return f"\n</think>\n\n{answer}"


def _num_slots(prompt: str) -> int:
    return len(_SLOT.findall(prompt))


def num_digits(seconds: float) -> int:
    """Length of a time as the prompt tells it, on which the number of its tokens depends."""
    return len(f"{max(seconds, 0.0):.1f}")


def pair_seconds(pts_seconds: Sequence[float]) -> list[float]:
    """The time of each frame pair: the mean of its two PTS, never negative."""
    pairs = zip(pts_seconds[::2], pts_seconds[1::2], strict=True)
    return [max((first + second) / 2, 0.0) for first, second in pairs]


def plain(text: str) -> str:
    """Break up special tokens in a user's text, so that it cannot forge media or turns."""
    return text.replace("<|", "< |")
