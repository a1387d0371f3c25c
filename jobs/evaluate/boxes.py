"""Compare boxes: one-to-one matching within a frame, and average precision by pycocotools."""

import contextlib
import io
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jobs.evaluate.figures import (
    MIN_IOU,
    Case,
    Element,
    Figure,
    Matrix,
    error_rate,
    match_pairs,
    mean,
    one_line,
    precision_recall,
)

Frame = tuple[list[Element], list[Element]]

_MIN_SIDE_PIXELS = 1e-3  # so that a box without area has IoU 1 with itself


def text_span_figures(cases: Sequence[Case]) -> list[Figure]:
    """Return figures of the texts as a set for each row, of the boxes, and of matched boxes' texts.

    Boxes are matched without their texts. Rows in which a gold text has no box count for the
    figures of texts only.
    """
    texts = [
        tuple({one_line(span["text"]) for span in spans} for spans in (c.gold, c.predicted or []))
        for c in cases
    ]
    matched, num_gold, num_predicted = _match_boxes(
        [case for case in cases if all(span["box"] for span in case.gold)],
        group=lambda span: "",
    )
    return [
        *precision_recall(
            sum(len(gold & predicted) for gold, predicted in texts),
            sum(len(gold) for gold, _ in texts),
            sum(len(predicted) for _, predicted in texts),
            of="texts",
            prefix="text_",
        ),
        *precision_recall(len(matched), num_gold, num_predicted, of="boxes", prefix="box_"),
        mean("mean_iou", [iou for _, _, iou in matched], of="matched boxes"),
        error_rate(
            "matched_cer",
            [one_line(gold["text"]) for gold, _, _ in matched],
            [one_line(predicted["text"]) for _, predicted, _ in matched],
            by="characters",
        ),
    ]


def object_figures(cases: Sequence[Case]) -> list[Figure]:
    """Return precision, recall and F1 at IoU 0.5 within labels, mean IoU of matches, and AP50."""
    matched, num_gold, num_predicted = _match_boxes(cases, group=label_key)
    return [
        *precision_recall(len(matched), num_gold, num_predicted, of="boxes"),
        mean("mean_iou", [iou for _, _, iou in matched], of="matched boxes"),
        _average_precision(cases),
    ]


def label_key(element: dict[str, Any]) -> str:
    """Return the label without case and extra white space."""
    return one_line(element["label"]).casefold()


def _frames(case: Case) -> Iterator[Frame]:
    """Group gold and predicted elements by the sampled frame nearest to their time."""
    frames: dict[float | None, Frame] = defaultdict(lambda: ([], []))
    for side, elements in enumerate((case.gold, case.predicted or [])):
        for element in elements:
            frames[_nearest(element["pts_seconds"], case.pts_seconds)][side].append(element)
    return iter(frames.values())


def _nearest(seconds: float | None, pts_seconds: tuple[float, ...]) -> float | None:
    if seconds is None or not pts_seconds:  # an image, or no answer
        return None
    after = bisect_left(pts_seconds, seconds)
    near = pts_seconds[max(after - 1, 0) : after + 1]
    return min(near, key=lambda pts: abs(pts - seconds))


def _by_group(frame: Frame, group: Callable[[Element], str]) -> dict[str, Frame]:
    groups: dict[str, Frame] = defaultdict(lambda: ([], []))
    for side, elements in enumerate(frame):
        for element in elements:
            groups[group(element)][side].append(element)
    return groups


def _match_boxes(
    cases: Iterable[Case], group: Callable[[Element], str]
) -> tuple[list[tuple[Element, Element, float]], int, int]:
    """Match boxes of the same frame and group at IoU 0.5.

    Returns (gold, predicted, IoU) of each match, and the numbers of gold and predicted elements. A
    predicted element without a box has no match, but counts.
    """
    matched: list[tuple[Element, Element, float]] = []
    num_gold = num_predicted = 0
    for case in cases:
        num_gold += len(case.gold)
        num_predicted += len(case.predicted or [])
        for frame in _frames(case):
            for gold, predicted in _by_group(frame, group).values():
                boxed = [element for element in predicted if element["box"]]
                pairs = match_pairs(_box_ious(gold, boxed), MIN_IOU)
                matched += [(gold[g], boxed[p], iou) for g, p, iou in pairs]
    return matched, num_gold, num_predicted


def _box_ious(gold: list[Element], predicted: list[Element]) -> Matrix:
    from pycocotools import mask  # type: ignore[import-untyped]

    if not gold or not predicted:
        return np.zeros((len(gold), len(predicted)))
    boxes = [np.array([_corner_and_size(e["box"]) for e in side]) for side in (gold, predicted)]
    ious: Matrix = mask.iou(boxes[0], boxes[1], [0] * len(predicted))
    return np.round(ious, 9)  # rounding errors must not make equal boxes less than 1


def _corner_and_size(box: dict[str, float]) -> list[float]:
    """Return COCO's form of a box: x, y, width, height."""
    width, height = box["x2"] - box["x1"], box["y2"] - box["y1"]
    return [box["x1"], box["y1"], max(width, _MIN_SIDE_PIXELS), max(height, _MIN_SIDE_PIXELS)]


def _average_precision(cases: Sequence[Case]) -> Figure:
    """Return AP at IoU 0.5 by COCOeval: the mean over gold's labels.

    One evaluation for each label, over the frames that have it, gives the same result as a single
    evaluation, but its time grows with the number of boxes, not with frames times labels.
    """
    frames_of: dict[str, list[Frame]] = defaultdict(list)
    for case in cases:
        for frame in _frames(case):
            for label, found in _by_group(frame, label_key).items():
                frames_of[label].append(found)
    in_gold = [frames for frames in frames_of.values() if any(gold for gold, _ in frames)]
    return mean("ap50", [_label_ap50(frames) for frames in in_gold], of="labels in gold")


def _label_ap50(frames: list[Frame]) -> float:
    from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(_coco(frames, 0), _coco(frames, 1), "bbox")
        evaluation.params.iouThrs = np.array([MIN_IOU])
        evaluation.params.maxDets = [max(1, *(len(predicted) for _, predicted in frames))]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0.0, np.inf]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
    # COCOeval adds 2e-16 to its divisors, so that a perfect result would be slightly below 1.
    return round(float(np.mean(evaluation.eval["precision"])), 9)


def _coco(frames: list[Frame], side: int) -> Any:
    """Return gold's (side 0) or predicted boxes of one label as COCO data, one image a frame."""
    from pycocotools.coco import COCO  # type: ignore[import-untyped]

    boxes = [(i, _corner_and_size(e["box"])) for i, frame in enumerate(frames) for e in frame[side]]
    data = COCO()
    data.dataset = {
        "images": [{"id": i} for i in range(len(frames))],
        "categories": [{"id": 1}],
        "annotations": [
            {
                "id": number,  # from 1: COCOeval takes 0 for "not matched"
                "image_id": image,
                "category_id": 1,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                "score": 1.0,
            }
            for number, (image, box) in enumerate(boxes, 1)
        ],
    }
    data.createIndex()
    return data
