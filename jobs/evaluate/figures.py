"""Parts of all metrics: cases, figures, shares, error rates, matching."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Matrix = np.ndarray[Any, np.dtype[np.float64]]
Element = dict[str, Any]
Pairs = list[tuple[int, int, float]]

MIN_IOU = 0.5
"""Minimum IoU of two boxes or two time spans that match."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One answer that gold judges.

    gold: the right answer, never None. predicted: the model's answer; None if there is none.
    pts_seconds: PTS of the frames that the model saw, ascending; empty for images.
    """

    gold: Any
    predicted: Any
    pts_seconds: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number.

    value: None where there is nothing to divide by.
    n: the number of elements in the share or mean; ``of`` names them.
    """

    name: str
    value: float | None
    n: int
    of: str


ERROR_RATES = frozenset({"cer", "wer", "matched_cer"})
"""Figures for which lower is better; for all others higher is."""

OUT_OF_100 = frozenset({"chrf", "bleu"})
"""Figures from 0 to 100; the others are from 0 to 1, error rates from 0."""


def exact(cases: Sequence[Case], normal: Callable[[str], str]) -> Figure:
    """Return the share of texts equal to gold's; a missing answer is never equal."""
    right = [c.predicted is not None and normal(c.gold) == normal(c.predicted) for c in cases]
    return mean("exact", right, of="rows")


def error_rate(name: str, gold: list[str], predicted: list[str], *, by: str) -> Figure:
    """Return edits by gold's length, counted with jiwer over all texts.

    A predicted text where gold's is empty adds insertions and no length.
    """
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
    """Return precision, recall and F1 over all elements of all rows. of: their name."""
    return [
        share(f"{prefix}precision", num_matched, num_predicted, of=f"predicted {of}"),
        share(f"{prefix}recall", num_matched, num_gold, of=f"gold {of}"),
        share(
            f"{prefix}f1", 2 * num_matched, num_gold + num_predicted, of=f"gold and predicted {of}"
        ),
    ]


def mean(name: str, values: Sequence[float], *, of: str) -> Figure:
    """Return the mean of ``values``; of booleans the share of true ones."""
    return share(name, sum(values), len(values), of=of)


def share(name: str, part: float, n: int, *, of: str) -> Figure:
    """Return ``part / n``; None if ``n`` is 0."""
    return Figure(name=name, value=part / n if n else None, n=n, of=of)


def one_line(text: str) -> str:
    """Collapse all white space, also line breaks, to single spaces."""
    return " ".join(text.split())


def lines(text: str) -> str:
    """Collapse white space within lines, and remove empty lines."""
    collapsed = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in collapsed if line)


def match_pairs(ious: Matrix, min_iou: float) -> Pairs:
    """Match one to one, the greatest IoU first.

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
