"""Build the token ids of a prompt with the checkpoint's own chat template, for every engine.

For a video, the template's ``<|vision_start|><|video_pad|><|vision_end|>`` is replaced by the time
(PTS) and the tokens of each frame pair:

    <0.2 seconds><|vision_start|><|video_pad|>...<|vision_end|>

Source: transformers' ``Qwen3VLProcessor``; tests compare the ids.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.media.timestamps import pair_seconds
from pipeline.model.reasoning import SWITCHES, Setting, TemplateReasoning, is_open
from schemas.conversation import Turn
from schemas.errors import ModelError
from schemas.job.job import Job
from schemas.tables.media import Sampling

IMAGE_SLOT = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO_SLOT = "<|vision_start|><|video_pad|><|vision_end|>"
PAIR_LAYOUT = "<{seconds:.1f} seconds><|vision_start|><|video_pad|><|vision_end|>"
"""A frame pair of a video; the pad is later repeated for each token of the pair."""

_OTHER = "model.source: {} is not a checkpoint of Qwen3-VL or its family: {}"
END_OF_TURN = "<|im_end|>"
SLOT = re.compile(f"{re.escape(IMAGE_SLOT)}|{re.escape(VIDEO_SLOT)}")


@dataclass(frozen=True, kw_only=True)
class Vision:
    """The vision part of a prompt: an image (``pts_seconds`` empty) or a video.

    pts_seconds: times of the frames in the prompt, an even number.
    tokens_per_slot: number of tokens of the image, or of each frame pair.
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
        """Number of pads before they are repeated: one, or one for each frame pair."""
        return max(1, len(self.pts_seconds) // 2)


class PromptLength(NamedTuple):
    """Number of tokens of a prompt.

    num_own_tokens: number of tokens after the last image or video; 1 without media. The tokens
        before are common to the prompts of a unit, and an engine computes them once.
    """

    num_tokens: int
    num_own_tokens: int


class Prompter:
    """Builds prompts with a checkpoint's tokenizer and chat template.

    reasoning: the setting for which prompts are rendered.
    embeds: prompts are for vectors, maybe those of special tokens that the tokenizer adds.
    """

    embeds: bool = False

    def __init__(
        self, source: str, revision: str | None = None, reasoning: Setting = "off"
    ) -> None:
        """Load the tokenizer of a checkpoint folder or hub id.

        reasoning: as ``generation.reasoning``: whether the template's switch is off or on; auto:
            the template gets no switch.

        Raises:
            ModelError: there is no tokenizer, or it lacks vision tokens or a chat template.
        """
        # As its file has it: types split text in their own ways. AutoTokenizer would import torch.
        from transformers import TokenizersBackend

        self.reasoning: Setting = reasoning
        try:
            self.tokenizer: Any = TokenizersBackend.from_pretrained(source, revision=revision)
        except (OSError, ValueError) as error:
            # In a folder without its file, the class lists the ways in which it could be made.
            if not Path(source).is_dir() or (Path(source) / "tokenizer.json").exists():
                raise ModelError(
                    f"model.source: cannot load the tokenizer of {source}: {error}"
                ) from None
            self.tokenizer = None
        if not getattr(self.tokenizer, "chat_template", None):
            raise ModelError(_OTHER.format(source, "it has no tokenizer with a chat template"))
        self.pad_ids = {
            "image": self._special("<|image_pad|>", source),
            "video": self._special("<|video_pad|>", source),
        }

    @classmethod
    def of(cls, job: Job) -> "Prompter":
        """The prompter of a job's checkpoint and setting of reasoning.

        Raises:
            ModelError: see ``Prompter``.
        """
        embeds = any(question.is_vector for question in job.questions())
        setting = "auto" if embeds else job.generation.reasoning
        found = cls(job.model.source, job.model.revision, setting)
        found.embeds = embeds
        return found

    @property
    def template_reasoning(self) -> TemplateReasoning:
        """What the template does about reasoning."""
        question = [_message(Turn(role="user", parts=("?",)), [])]
        return TemplateReasoning.of(lambda setting: self._render(question, reasoning=setting))

    @property
    def opens_reasoning(self) -> bool:
        """Whether prompts end inside ``<think>``, so that answers begin with reasoning."""
        return is_open(self.template_reasoning.prompts[self.reasoning])

    @property
    def expects_reasoning(self) -> bool:
        """Whether answers begin with reasoning, in a ``<think>`` of the prompt or their own."""
        return self.template_reasoning.may_come(self.reasoning)

    def _special(self, token: str, source: str) -> int:
        ids = self.tokenizer.encode(token, add_special_tokens=False)
        if len(ids) != 1:
            raise ModelError(_OTHER.format(source, f"its tokenizer has no {token}"))
        return int(ids[0])

    def input_ids(self, vision: Vision | None, text: str, tools: str | None = None) -> list[int]:
        """Token ids of one user turn, the media first, then ``text``, up to the answer.

        vision: None for text alone.
        tools: JSON list of functions, which the template writes into a system turn.
        """
        prompt = self._render_question(vision, text, tools)
        return self.prompt_ids(prompt, [vision] if vision else [])

    def length(self, vision: Vision, text: str, tools: str | None = None) -> PromptLength:
        """Length of ``input_ids``, without building them."""
        return self._length(self._render_question(vision, text, tools), [vision])

    def chat_ids(
        self, messages: str, visions: Sequence[Vision], *, add_vision_id: bool = False
    ) -> list[int]:
        """Token ids of a conversation, up to the answer to its last turn.

        messages: JSON list of turns for the chat template.
        visions: the images and videos in them, in order.
        add_vision_id: let the template number them: "Picture 1: ", "Video 1: ".
        """
        prompt = self._render(json.loads(escape(messages)), add_vision_id=add_vision_id)
        return self.prompt_ids(prompt, visions)

    def chat_length(
        self, messages: str, visions: Sequence[Vision], *, add_vision_id: bool = False
    ) -> PromptLength:
        """Length of ``chat_ids``, without building them."""
        prompt = self._render(json.loads(escape(messages)), add_vision_id=add_vision_id)
        return self._length(prompt, visions)

    def turns_prompt(
        self, turns: Sequence[Turn], visions: Sequence[Vision], reasoning: Setting | None = None
    ) -> str:
        """The prompt of turns up to the next answer, before it is tokenised.

        visions: of the whole conversation; a turn's parts are places in it.
        reasoning: default: the prompter's own.
        """
        return self._render([_message(turn, visions) for turn in turns], reasoning=reasoning)

    def prompt_ids(self, prompt: str, visions: Sequence[Vision]) -> list[int]:
        """Token ids of a prompt, or of a part of it, with the images and videos in it, in order."""
        return self._expand(self._slot_ids(prompt, visions), visions)

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of an answer as it is generated, with the token that ends the turn."""
        ids: list[int] = self.tokenizer.encode(answer + END_OF_TURN, add_special_tokens=False)
        return ids

    def _render_question(self, vision: Vision | None, text: str, tools: str | None) -> str:
        turn = Turn(role="user", parts=(0, text) if vision else (text,))
        return self._render(
            [_message(turn, [vision] if vision else [])],
            json.loads(escape(tools)) if tools else None,
        )

    def _render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        *,
        add_vision_id: bool = False,
        reasoning: Setting | None = None,
    ) -> str:
        prompt: str = self.tokenizer.apply_chat_template(
            messages,
            tools=tools,
            tokenize=False,
            add_generation_prompt=True,
            add_vision_id=add_vision_id,
            **SWITCHES[reasoning or self.reasoning],
        )
        return prompt

    def _slot_ids(self, prompt: str, visions: Sequence[Vision]) -> list[int]:
        """Token ids with a single pad for each image or frame pair."""
        remaining = iter(visions)

        def layout(slot: re.Match[str]) -> str:
            vision = next(remaining)
            if vision.media_type == "image":
                return slot[0]
            seconds = pair_seconds(vision.pts_seconds)
            return "".join(PAIR_LAYOUT.format(seconds=t) for t in seconds)

        prompt = SLOT.sub(layout, prompt)
        ids: list[int] = self.tokenizer.encode(prompt, add_special_tokens=self.embeds)
        return ids

    def _expand(self, ids: Sequence[int], visions: Sequence[Vision]) -> list[int]:
        """Repeat each pad for the tokens of its image or frame pair."""
        counts = iter(v.tokens_per_slot for v in visions for _ in range(v.num_slots))
        pads = set(self.pad_ids.values())
        expanded: list[int] = []
        for token in ids:
            expanded += [token] * (next(counts) if token in pads else 1)
        return expanded

    def _length(self, prompt: str, visions: Sequence[Vision]) -> PromptLength:
        ids = self._slot_ids(prompt, visions)
        num_repeated = sum(v.num_slots * (v.tokens_per_slot - 1) for v in visions)
        pads = set(self.pad_ids.values())
        own = next((k for k, token in enumerate(reversed(ids)) if token in pads), 1)
        return PromptLength(len(ids) + num_repeated, own)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without special tokens."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


def _message(turn: Turn, visions: Sequence[Vision]) -> dict[str, Any]:
    """Convert a turn for the chat template."""
    content: list[dict[str, str]] = []
    for part in turn.parts:
        if isinstance(part, int):
            content.append({"type": visions[part].media_type})
        else:
            content.append({"type": "text", "text": escape(part)})
    if turn.role == "user":
        return {"role": turn.role, "content": content}
    return {"role": turn.role, "content": "".join(part["text"] for part in content)}


def escape(text: str) -> str:
    """Break up special tokens in a user's text, so that it cannot forge media or turns."""
    return text.replace("<|", "< |")
