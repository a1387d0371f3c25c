"""Compare answers with gold: a list of cases in, figures out. Pure functions, one for each task.

sacrebleu, jiwer and pycocotools do the counting where they can; the package installs them with its
extra ``evaluate``. A figure over several cases is of all their elements together (a micro average).
"""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version

import numpy as np

from jobs.box_metrics import object_figures, text_span_figures
from jobs.figures import (
    MIN_IOU,
    Case,
    Element,
    Figure,
    Matrix,
    error_rate,
    exact,
    lines,
    match_pairs,
    mean,
    one_line,
    precision_recall,
    share,
)

LIBRARIES = ("jiwer", "sacrebleu", "pycocotools")
"""Packages that the metrics need; each has the name of its module."""

NEAR_SECONDS = 0.5


def caption_figures(cases: Sequence[Case]) -> list[Figure]:
    """Exact matches (0..1), chrF and BLEU (0..100, of the corpus, with sacrebleu's defaults).

    BLEU is None where no caption of gold has four words.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    gold = [one_line(case.gold) for case in cases]
    predicted = [one_line(case.predicted or "") for case in cases]
    n = len(cases)
    # force: do not warn of captions that end in " .".
    scored = BLEU(force=True).corpus_score(predicted, [gold]) if n else None
    # Of texts under four words no four are in a row: BLEU would be 0 for the right answers too.
    bleu = scored.score if scored and any(len(text.split()) >= 4 for text in gold) else None
    chrf = CHRF().corpus_score(predicted, [gold]).score if n else None
    return [
        exact(cases, one_line),
        Figure(name="chrf", value=chrf, n=n, of="rows"),
        Figure(name="bleu", value=bleu, n=n, of="rows"),
    ]


def ocr_figures(cases: Sequence[Case]) -> list[Figure]:
    """Exact matches, character and word error rate: all edits by all that gold has (0 is best)."""
    gold = [lines(case.gold) for case in cases]
    predicted = [lines(case.predicted or "") for case in cases]
    return [
        exact(cases, lines),
        error_rate("cer", gold, predicted, by="characters"),
        error_rate("wer", gold, predicted, by="words"),
    ]


def temporal_figures(
    cases: Sequence[Case], *, of: str, is_query: bool, has_caption: bool
) -> list[Figure]:
    """Stretches of time: elements with ``start_seconds`` and ``end_seconds``.

    mean_tiou: of each gold stretch and the one matched with it, 0 where none is.
    is_query: R@1 is of rows: the first answer and the gold stretch nearest to it, as in moment
        retrieval; else of gold stretches and those matched with them.
    has_caption: also say how many of those matched at 0.5 have gold's caption.
    """
    overlaps: list[float] = []
    firsts: list[float] = []
    right_captions: list[float] = []
    num_near = num_gold = num_predicted = 0
    for case in cases:
        gold, predicted = case.gold, case.predicted or []
        num_gold, num_predicted = num_gold + len(gold), num_predicted + len(predicted)
        ious = _temporal_ious(gold, predicted)
        pairs = match_pairs(ious, 0.0)
        overlaps += [iou for _, _, iou in pairs]
        if gold:
            firsts.append(float(ious[:, 0].max()) if predicted else 0.0)
        num_near += sum(_is_near(gold[g], predicted[p]) for g, p, _ in pairs)
        if has_caption:
            right_captions += [
                one_line(gold[g]["caption"]) == one_line(predicted[p]["caption"])
                for g, p, iou in pairs
                if iou >= MIN_IOU and gold[g]["caption"] is not None
            ]
    best, best_of = (firsts, "rows") if is_query else (overlaps, f"gold {of}")
    num_best = len(firsts) if is_query else num_gold
    num_matched = sum(iou >= MIN_IOU for iou in overlaps)
    return [
        share("mean_tiou", sum(overlaps), num_gold, of=f"gold {of}"),
        share("r1_at_50", sum(iou >= 0.5 for iou in best), num_best, of=best_of),
        share("r1_at_70", sum(iou >= 0.7 for iou in best), num_best, of=best_of),
        share("within_half_second", num_near, num_gold, of=f"gold {of}"),
        *precision_recall(num_matched, num_gold, num_predicted, of=of),
        *([mean("caption_exact", right_captions, of=f"matched {of}")] if has_caption else []),
    ]


METRICS: dict[str, Callable[[Sequence[Case]], list[Figure]]] = {
    "caption": caption_figures,
    "events": partial(temporal_figures, of="events", is_query=False, has_caption=True),
    "ocr": ocr_figures,
    "text_spans": text_span_figures,
    "objects": object_figures,
    "moments": partial(temporal_figures, of="moments", is_query=True, has_caption=False),
}
"""The tasks that can be evaluated, each with its figures."""


def library_versions() -> dict[str, str]:
    """Versions of what computed the figures, and sacrebleu's signatures of its settings."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    found = {name: version(name) for name in LIBRARIES}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        metric.corpus_score(["a"], [["a"]])
        found[f"{name}_signature"] = str(metric.get_signature())
    return found


def _temporal_ious(gold: list[Element], predicted: list[Element]) -> Matrix:
    """``float64 [gold, predicted]``; two instants overlap wholly if they are the same."""
    starts, ends = (
        [np.array([e[key] for e in side], np.float64) for side in (gold, predicted)]
        for key in ("start_seconds", "end_seconds")
    )
    begin = np.maximum(starts[0][:, None], starts[1][None, :])
    shared = np.maximum(np.minimum(ends[0][:, None], ends[1][None, :]) - begin, 0.0)
    either = (ends[0] - starts[0])[:, None] + (ends[1] - starts[1])[None, :] - shared
    same: Matrix = (starts[0][:, None] == starts[1][None, :]).astype(np.float64)
    np.divide(shared, either, out=same, where=either > 0)
    return same


def _is_near(gold: Element, predicted: Element) -> bool:
    return all(
        abs(gold[key] - predicted[key]) <= NEAR_SECONDS for key in ("start_seconds", "end_seconds")
    )
