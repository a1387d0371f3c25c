"""The metrics of each task: the type of its gold, and the functions that compare answers with gold.

The functions are pure: a list of cases in, figures out. sacrebleu, jiwer and pycocotools do the
counting where they can; the extra ``evaluate`` installs them. A figure over several cases counts
all their elements together (a micro average).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import numpy as np
import pyarrow as pa

from jobs.evaluate.boxes import object_figures, text_span_figures
from jobs.evaluate.figures import (
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
from pipeline.tasks.columns import questions_by_name
from pipeline.tasks.registry import TASKS
from schemas.task import MetricKind, Question, box_type

LIBRARIES = ("jiwer", "sacrebleu", "pycocotools")
"""Packages that the metrics need; each has the name of its module."""

NEAR_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How the answers of one task are compared with gold.

    figures: cases -> figures. primary: the figure that scores a single answer.
    gold_type: the Arrow type of gold's column. required: fields that no element of it may lack.
    example: a value of that type, for messages.
    """

    figures: Callable[[Sequence[Case]], list[Figure]]
    primary: str
    gold_type: pa.DataType
    required: tuple[str, ...] = ()
    example: str


def caption_figures(cases: Sequence[Case]) -> list[Figure]:
    """Return exact matches (0..1), chrF and BLEU (0..100, of the corpus, sacrebleu's defaults).

    BLEU is None where no caption of gold has four words.
    """
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    gold = [one_line(case.gold) for case in cases]
    predicted = [one_line(case.predicted or "") for case in cases]
    n = len(cases)
    # force: no warning about captions that end in " .".
    scored = BLEU(force=True).corpus_score(predicted, [gold]) if n else None
    # BLEU counts four words in a row: for shorter texts it would be 0 even if all are right.
    bleu = scored.score if scored and any(len(text.split()) >= 4 for text in gold) else None
    chrf = CHRF().corpus_score(predicted, [gold]).score if n else None
    return [
        exact(cases, one_line),
        Figure(name="chrf", value=chrf, n=n, of="rows"),
        Figure(name="bleu", value=bleu, n=n, of="rows"),
    ]


def ocr_figures(cases: Sequence[Case]) -> list[Figure]:
    """Return exact matches, and the character and word error rates: edits by gold's length."""
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
    """Compare time spans: elements with ``start_seconds`` and ``end_seconds``.

    mean_tiou is the mean over gold spans of the IoU with the matched span, 0 without a match.

    is_query: R@1 counts rows, by the first answer and the gold span nearest to it, as in moment
        retrieval; else it counts gold spans and the spans matched with them.
    has_caption: add the share of spans matched at IoU 0.5 that have gold's caption.
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


_INTERVAL = [("start_seconds", pa.float64()), ("end_seconds", pa.float64())]
_BOX = [("box", box_type()), ("pts_seconds", pa.float64())]
_BOX_EXAMPLE = '"box": {"x1": 0, "y1": 0, "x2": 9, "y2": 9}, "pts_seconds": null}'
_KINDS: dict[MetricKind, Metric] = {
    "caption": Metric(
        figures=caption_figures, primary="chrf", gold_type=pa.string(), example="text"
    ),
    "events": Metric(
        figures=partial(temporal_figures, of="events", is_query=False, has_caption=True),
        primary="mean_tiou",
        gold_type=pa.list_(pa.struct([*_INTERVAL, ("caption", pa.string())])),
        required=("start_seconds", "end_seconds"),
        example='a list of {"start_seconds": 1.0, "end_seconds": 2.5, "caption": "..."}',
    ),
    "text": Metric(figures=ocr_figures, primary="cer", gold_type=pa.string(), example="text"),
    "text_boxes": Metric(
        figures=text_span_figures,
        primary="text_f1",
        gold_type=pa.list_(pa.struct([("text", pa.string()), *_BOX])),
        required=("text",),
        example=f'a list of {{"text": "...", {_BOX_EXAMPLE}',
    ),
    "label_boxes": Metric(
        figures=object_figures,
        primary="f1",
        gold_type=pa.list_(pa.struct([("label", pa.string()), *_BOX])),
        required=("label", "box"),
        example=f'a list of {{"label": "...", {_BOX_EXAMPLE}',
    ),
    "moments": Metric(
        figures=partial(temporal_figures, of="moments", is_query=True, has_caption=False),
        primary="mean_tiou",
        gold_type=pa.list_(pa.struct(_INTERVAL)),
        required=("start_seconds", "end_seconds"),
        example='a list of {"start_seconds": 1.0, "end_seconds": 2.5}',
    ),
}


def metrics_of(questions: Mapping[str, Question]) -> dict[str, Metric]:
    """Return the metrics of the questions that gold can judge, by name."""
    kinds = {name: TASKS[question.task].metric for name, question in questions.items()}
    return {name: _KINDS[kind] for name, kind in kinds.items() if kind is not None}


METRICS = metrics_of(questions_by_name())
"""Of all tasks, by name."""


def library_versions() -> dict[str, str]:
    """Return the versions of the libraries, and sacrebleu's signatures of its settings."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    found = {name: version(name) for name in LIBRARIES}
    for name, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        metric.corpus_score(["a"], [["a"]])
        found[f"{name}_signature"] = str(metric.get_signature())
    return found


def _temporal_ious(gold: list[Element], predicted: list[Element]) -> Matrix:
    """Return IoUs, ``float64 [gold, predicted]``; two equal instants have 1."""
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
