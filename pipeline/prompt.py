"""Build the token ids of a prompt: one layout for every engine, from the checkpoint's own template.

The layout is that of the processor published with the model: a video is, for each frame pair,
its time and its tokens,

    <0.2 seconds><|vision_start|><|video_pad|>...<|vision_end|>

in place of the template's whole ``<|vision_start|><|video_pad|><|vision_end|>``. Times are PTS.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from schemas.errors import ModelError
from schemas.unit import Sampling

IMAGE_SLOT = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO_SLOT = "<|vision_start|><|video_pad|><|vision_end|>"
PAIR_LAYOUT = "<{seconds:.1f} seconds><|vision_start|><|video_pad|><|vision_end|>"
"""One frame pair of a video; its one pad stands for all the pair's tokens."""

TEXT, IMAGE, VIDEO = 0, 1, 2
"""``mm_token_type_ids``: what the model's position ids are made from."""


@dataclass(frozen=True, kw_only=True)
class Vision:
    """The vision part of a prompt: an image (``pts_seconds`` empty) or a video.

    pts_seconds: PTS of the frames, an even number.
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
            pts_seconds=tuple(pts_seconds),
            tokens_per_slot=sampling.num_vision_tokens // grid_t,
        )


class Prompter:
    """Builds prompts with a checkpoint's tokenizer and chat template."""

    def __init__(self, source: str, revision: str | None = None) -> None:
        """Load the tokenizer of a checkpoint folder or hub id.

        Raises:
            ModelError: there is none, or it lacks Qwen3-VL's vision tokens or a chat template.
        """
        from transformers import AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(source, revision=revision)
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot load the tokenizer of {source}: {error}") from None
        if not self.tokenizer.chat_template:
            raise ModelError(f"{source} has no chat template: is it a Qwen3-VL checkpoint?")
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
        return prompt.rstrip().endswith("<think>")

    def _special(self, token: str, source: str) -> int:
        ids = self.tokenizer.encode(token, add_special_tokens=False)
        if len(ids) != 1:
            raise ModelError(
                f"{source} does not know the token {token}: is it a Qwen3-VL checkpoint?"
            )
        return int(ids[0])

    def input_ids(self, vision: Vision, text: str) -> list[int]:
        """Token ids of one user turn, the media first, then ``text``, up to the answer's begin."""
        ids: list[int] = []
        pad = self.pad_ids[vision.media_type]
        for token in self._slotted_ids(vision, text):
            ids += [token] * (vision.tokens_per_slot if token == pad else 1)
        return ids

    def num_tokens(self, vision: Vision, text: str) -> int:
        """Length of ``input_ids``, without making them."""
        ids = self._slotted_ids(vision, text)
        slots = ids.count(self.pad_ids[vision.media_type])
        return len(ids) + slots * (vision.tokens_per_slot - 1)

    def _slotted_ids(self, vision: Vision, text: str) -> list[int]:
        """Token ids with a single pad for each image or frame pair."""
        content = [{"type": vision.media_type}, {"type": "text", "text": plain(text)}]
        prompt: str = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        if vision.media_type == "video":
            pairs = "".join(PAIR_LAYOUT.format(seconds=t) for t in pair_seconds(vision.pts_seconds))
            prompt = prompt.replace(VIDEO_SLOT, pairs, 1)
        ids: list[int] = self.tokenizer.encode(prompt, add_special_tokens=False)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, special tokens left out."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text


def pair_seconds(pts_seconds: Sequence[float]) -> list[float]:
    """The time of each frame pair: the mean of its two PTS, never negative."""
    pairs = zip(pts_seconds[::2], pts_seconds[1::2], strict=True)
    return [max((first + second) / 2, 0.0) for first, second in pairs]


def plain(text: str) -> str:
    """Break up special tokens in a user's text, so that it cannot forge media or turns."""
    return text.replace("<|", "< |")
