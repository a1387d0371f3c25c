"""Times in the prompt: one for each frame pair, in seconds with one decimal."""

from collections.abc import Sequence


def num_characters(seconds: float) -> int:
    """Number of characters of a time in the prompt, from which its number of tokens follows."""
    return len(f"{max(seconds, 0.0):.1f}")


def pair_seconds(pts_seconds: Sequence[float]) -> list[float]:
    """Time of each frame pair: the mean of its two PTS, at least 0."""
    pairs = zip(pts_seconds[::2], pts_seconds[1::2], strict=True)
    return [max((first + second) / 2, 0.0) for first, second in pairs]


def time_tokens(seconds: float) -> int:
    """Count the tokens of ``<0.2 seconds><|vision_start|><|vision_end|>``.

    Qwen's tokenizer takes each digit and the point by themselves; ``<``, `` seconds``, ``>`` and
    the two special tokens are one each.
    """
    return num_characters(seconds) + 5
