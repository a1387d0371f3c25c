"""What all metrics are made of: cases in, figures out; shares, error rates, matching."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Matrix = np.ndarray[Any, np.dtype[np.float64]]
Element = dict[str, Any]
Pairs = list[tuple[int, int, float]]

MIN_IOU = 0.5
"""Least overlap of boxes, and of stretches of time, that are taken for the same thing."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One answer that gold judges.

    gold: what is right, never None. predicted: the answer; None where there is none.
    pts_seconds: PTS of the frames that the model saw, ascending; empty for images.
    """

    gold: Any
    predicted: Any
    pts_seconds: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number.

    value: None where there is nothing to divide by. n: what it is a share or mean of, in ``of``.
    """

    name: str
    value: float | None
    n: int
    of: str


ERROR_RATES = frozenset({"cer", "wer", "matched_cer"})
"""Figures of which less is better; of all others, more is."""


def exact(cases: Sequence[Case], normal: Callable[[str], str]) -> Figure:
    """Share of texts equal to gold; no answer is not, not even where gold is empty."""
    right = [c.predicted is not None and normal(c.gold) == normal(c.predicted) for c in cases]
    return mean("exact", right, of="rows")


def error_rate(name: str, gold: list[str], predicted: list[str], *, by: str) -> Figure:
    """Count edits with jiwer; a text that gold does not have is insertions and no length."""
    import jiwer

    if by == "words":
        # jiwer splits words at spaces only.
        found: Any = jiwer.process_words(
            [one_line(text) for text in gold], [one_line(text) for text in predicted]
        )
    else:
        found = jiwer.process_characters(gold, predicted)
    length = found.hits + found.substitutions + found.deletions
    num_edits = found.substitutions + found.deletions + found.insertions
    return share(name, num_edits, length, of=f"gold {by}")


def precision_recall(
    num_matched: int, num_gold: int, num_predicted: int, *, of: str, prefix: str = ""
) -> list[Figure]:
    """Precision, recall and F1 of ``of``, such as boxes: all elements of all rows together."""
    return [
        share(f"{prefix}precision", num_matched, num_predicted, of=f"predicted {of}"),
        share(f"{prefix}recall", num_matched, num_gold, of=f"gold {of}"),
        share(
            f"{prefix}f1", 2 * num_matched, num_gold + num_predicted, of=f"gold and predicted {of}"
        ),
    ]


def mean(name: str, values: Sequence[float], *, of: str) -> Figure:
    """Mean of ``values``; of booleans, the share of true ones."""
    return share(name, sum(values), len(values), of=of)


def share(name: str, part: float, n: int, *, of: str) -> Figure:
    """``part / n``, None if ``n`` is 0."""
    return Figure(name=name, value=part / n if n else None, n=n, of=of)


def one_line(text: str) -> str:
    """Collapse all white space, line breaks too."""
    return " ".join(text.split())


def lines(text: str) -> str:
    """Collapse white space within lines, and leave out empty lines."""
    collapsed = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in collapsed if line)


def match_pairs(ious: Matrix, min_iou: float) -> Pairs:
    """Match one to one, the greatest overlap first.

    ious: ``float64 [gold, predicted]``. Returns (gold, predicted, IoU); an IoU of 0 is no match.
    """
    pairs: Pairs = []
    gold_left, predicted_left = set(range(ious.shape[0])), set(range(ious.shape[1]))
    for flat in np.argsort(-ious, axis=None, kind="stable"):
        g, p = divmod(int(flat), ious.shape[1])
        iou = float(ious[g, p])
        if iou < min_iou or iou <= 0.0 or not gold_left or not predicted_left:
            break
        if g in gold_left and p in predicted_left:
            gold_left.remove(g)
            predicted_left.remove(p)
            pairs.append((g, p, iou))
    return pairs
