"""Figures of each task: by hand, and by the libraries that define them."""

import contextlib
import io
import random

import jiwer
import pytest
import sacrebleu
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jobs.evaluate.figures import Case
from jobs.evaluate.metrics import METRICS
from tests.support.gold import event


def figures(task: str, *cases: Case) -> dict[str, float | None]:
    return {figure.name: figure.value for figure in METRICS[task].figures(cases)}


def thing(label: str, *corners: float, pts_seconds: float | None = None) -> dict:
    box = dict(zip(("x1", "y1", "x2", "y2"), corners, strict=True)) if corners else None
    return {"label": label, "text": label, "box": box, "pts_seconds": pts_seconds}


def test_captions_are_those_of_sacrebleu_and_exact_but_for_white_space():
    gold = ["A red car drives on a wet road.", "Two people are talking.", "A dog."]
    predicted = ["A red car  drives on a\nwet road.", "Two people talk at a table.", ""]
    found = figures(
        "caption", *(Case(gold=g, predicted=p) for g, p in zip(gold, predicted, strict=True))
    )
    assert found["exact"] == 1 / 3
    flat = [" ".join(text.split()) for text in predicted]
    assert found["chrf"] == sacrebleu.corpus_chrf(flat, [gold]).score
    assert found["bleu"] == sacrebleu.corpus_bleu(flat, [gold]).score
    assert 0 < found["bleu"] < found["chrf"] < 100


def test_ocr_errors_are_all_edits_by_all_of_golds_length():
    gold, predicted = ["EXIT\nGate 12", "STOP"], ["EXIT\nGate  17 ", "SHOP"]
    found = figures(
        "ocr", *(Case(gold=g, predicted=p) for g, p in zip(gold, predicted, strict=True))
    )
    assert found["cer"] == 2 / 16  # "EXIT\nGate 12" is 12 characters
    assert found["cer"] == jiwer.cer(gold, ["EXIT\nGate 17", "SHOP"])
    assert found["wer"] == 2 / 4
    assert found["wer"] == jiwer.wer(["EXIT Gate 12", "STOP"], ["EXIT Gate 17", "SHOP"])
    assert found["exact"] == 0.0


def test_text_where_there_is_none_is_an_error_without_length():
    nothing = Case(gold="", predicted="ab c")
    assert figures("ocr", nothing) == {"exact": 0.0, "cer": None, "wer": None}
    found = figures("ocr", nothing, Case(gold="abcd efgh", predicted="abcd efgh"))
    assert found == {"exact": 0.5, "cer": 4 / 9, "wer": 2 / 2}


def test_no_answer_is_wrong_even_where_gold_is_empty():
    assert figures("ocr", Case(gold="", predicted=None))["exact"] == 0.0
    assert figures("ocr", Case(gold="", predicted=""))["exact"] == 1.0
    assert figures("ocr", Case(gold="ab", predicted=None))["cer"] == 1.0


def test_events_by_hand():
    gold = [event(0, 10, "a"), event(20, 30, "b"), event(40, 41, "c"), event(50, 60, None)]
    predicted = [
        event(25, 35, "b"),  # 5 of 15 s: a third
        event(0, 8, "other"),  # 0.8, and begins alike
        event(40.4, 41.5, "c"),  # 0.6 of 1.5 s, and near at both ends
        event(50, 60, "d"),
        event(50, 60, "d"),  # said twice: one of them is wrong
    ]
    found = METRICS["events"].figures([Case(gold=gold, predicted=predicted)])
    values = {figure.name: figure.value for figure in found}
    assert values == {
        "mean_tiou": pytest.approx((1 / 3 + 0.8 + 0.4 + 1.0) / 4),
        "r1_at_50": 2 / 4,
        "r1_at_70": 2 / 4,
        "within_half_second": 2 / 4,
        "precision": 2 / 5,
        "recall": 2 / 4,
        "f1": 4 / 9,
        "caption_exact": 0.0,  # of one: gold has no caption for the other
    }
    assert {figure.name: figure.n for figure in found}["caption_exact"] == 1


def test_an_event_is_matched_once_with_the_best():
    gold = [event(0, 10), event(5, 15)]
    found = figures("events", Case(gold=gold, predicted=[event(4, 14), event(1, 11)]))
    assert found["mean_tiou"] == pytest.approx(9 / 11)
    found = figures("events", Case(gold=gold, predicted=[event(5, 15)]))
    assert (found["mean_tiou"], found["recall"], found["precision"]) == (0.5, 0.5, 1.0)


def test_instants_overlap_if_they_are_the_same():
    assert figures("events", Case(gold=[event(3, 3)], predicted=[event(3, 3)]))["f1"] == 1.0
    assert figures("events", Case(gold=[event(3, 3)], predicted=[event(4, 4)]))["f1"] == 0.0


def test_of_moments_the_first_answer_counts():
    """As in moment retrieval (R1 at IoU 0.5, 0.7): one sentence, the answer ranked first."""
    gold = [{"start_seconds": 0, "end_seconds": 10}, {"start_seconds": 50, "end_seconds": 60}]
    late = {"start_seconds": 50, "end_seconds": 56}
    wrong = {"start_seconds": 80, "end_seconds": 90}
    found = figures(
        "moments",
        Case(gold=gold, predicted=[late, wrong]),
        Case(gold=gold, predicted=[wrong, gold[0], gold[1]]),
        Case(gold=gold, predicted=None),
    )
    assert (found["r1_at_50"], found["r1_at_70"]) == (1 / 3, 0.0)
    assert (found["recall"], found["precision"]) == (3 / 6, 3 / 5)
    assert "caption_exact" not in found


def test_objects_by_hand():
    gold = [thing("car", 0, 0, 100, 100), thing("car", 200, 0, 300, 100), thing("dog", 0, 0, 9, 9)]
    predicted = [
        thing("car", 0, 0, 100, 50),  # half of the first
        thing(" Car", 0, 0, 100, 80),  # more of it
        thing("cat", 200, 0, 300, 100),  # right place, wrong label
    ]
    found = figures("objects", Case(gold=gold, predicted=predicted))
    assert found["precision"] == found["recall"] == found["f1"] == 1 / 3
    assert found["mean_iou"] == pytest.approx(0.8)
    # car: COCO takes the boxes in order, and has the first, half of gold, for right; dog: none.
    assert found["ap50"] == pytest.approx((51 / 101) / 2)


def coco_ap50(cases: list[Case]) -> float:
    """One COCOeval over all labels, as its users call it."""
    names = sorted({e["label"] for case in cases for e in [*case.gold, *case.predicted]})

    def coco(sides: list[list[dict]]) -> COCO:
        data = COCO()
        data.dataset = {
            "images": [{"id": i} for i in range(len(sides))],
            "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
            "annotations": [
                {
                    "image_id": image,
                    "category_id": names.index(e["label"]),
                    "bbox": [b["x1"], b["y1"], b["x2"] - b["x1"], b["y2"] - b["y1"]],
                    "area": (b["x2"] - b["x1"]) * (b["y2"] - b["y1"]),
                    "iscrowd": 0,
                    "score": 1.0,
                }
                for image, side in enumerate(sides)
                for e in side
                for b in [e["box"]]
            ],
        }
        for number, annotation in enumerate(data.dataset["annotations"], 1):
            annotation["id"] = number
        data.createIndex()
        return data

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(
            coco([case.gold for case in cases]), coco([case.predicted for case in cases]), "bbox"
        )
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[1]


def test_average_precision_is_that_of_one_coco_evaluation_of_all_labels(capsys):
    draw = random.Random(7)

    def boxes(near: list[dict]) -> list[dict]:
        found = [
            thing(e["label"], *(corner + draw.uniform(-12, 12) for corner in e["box"].values()))
            for e in near
            if draw.random() < 0.8
        ]
        for _ in range(draw.randrange(4)):
            x, y = draw.uniform(0, 500), draw.uniform(0, 500)
            found.append(thing(draw.choice("abcd"), x, y, x + 60, y + 40))
        return found

    golds = [boxes([]) for _ in range(40)]
    cases = [Case(gold=gold, predicted=boxes(gold)) for gold in golds]
    found = figures("objects", *cases)
    assert found["ap50"] == pytest.approx(coco_ap50(cases))
    assert 0.2 < found["ap50"] < 0.9
    assert capsys.readouterr().out == ""


def test_no_box_is_too_large_or_one_too_many_for_average_precision():
    many = [thing("a", x, 0, x + 1, 1) for x in range(0, 1000, 2)]
    huge = [thing("b", 0, 0, 1e6, 1e6)]
    assert figures("objects", Case(gold=[*many, *huge], predicted=[*many, *huge]))["ap50"] == 1.0


def test_boxes_of_a_video_are_compared_in_the_frame_nearest_to_their_time():
    gold = [thing("a", 0, 0, 10, 10, pts_seconds=1.2), thing("a", 5, 0, 15, 10, pts_seconds=1.3)]
    predicted = [
        thing("a", 0, 0, 10, 10, pts_seconds=1.0),
        thing("a", 5, 0, 15, 10, pts_seconds=1.5),
    ]
    found = figures("objects", Case(gold=gold, predicted=predicted, pts_seconds=(0.5, 1.0, 1.5)))
    assert (found["f1"], found["ap50"]) == (1.0, 1.0)
    found = figures("objects", Case(gold=gold, predicted=predicted[::-1], pts_seconds=(1.0,)))
    assert found["f1"] == 1.0  # all in one frame now
    later = [{**element, "pts_seconds": 0.5} for element in predicted]
    found = figures("objects", Case(gold=gold, predicted=later, pts_seconds=(0.5, 1.0, 1.5)))
    assert (found["f1"], found["ap50"]) == (0.0, 0.0)


def test_a_time_means_nothing_in_an_image():
    gold = [thing("a", 0, 0, 10, 10, pts_seconds=0.0)]
    assert figures("objects", Case(gold=gold, predicted=[thing("a", 0, 0, 10, 10)]))["f1"] == 1.0


def test_text_spans_by_hand():
    gold = [thing("EXIT", 0, 0, 100, 20), thing("Gate 12", 0, 50, 100, 70)]
    predicted = [
        thing("EXIT", 0, 0, 100, 20),
        thing("Gate 17", 0, 50, 100, 68),
        thing("EXIT"),  # a text without a box
    ]
    found = figures(
        "text_spans",
        Case(gold=gold, predicted=predicted),
        Case(gold=[thing("no box")], predicted=[thing("no box", 0, 0, 1, 1)]),  # texts only
    )
    assert (found["text_precision"], found["text_recall"]) == (2 / 3, 2 / 3)
    assert (found["box_precision"], found["box_recall"], found["box_f1"]) == (2 / 3, 1.0, 4 / 5)
    assert found["mean_iou"] == pytest.approx((1.0 + 0.9) / 2)
    assert found["matched_cer"] == 1 / 11


def test_what_is_equal_is_right_even_without_area():
    flat = [thing("a", 5, 5, 5, 9), thing("b", 3, 3, 3, 3)]
    found = figures("objects", Case(gold=flat, predicted=flat))
    assert set(found.values()) == {1.0}
    found = figures("text_spans", Case(gold=flat, predicted=flat))
    assert found.pop("matched_cer") == 0.0
    assert set(found.values()) == {1.0}


def test_nothing_where_nothing_is_has_no_value():
    found = figures("objects", Case(gold=[], predicted=[]))
    assert set(found.values()) == {None}
    found = figures("objects", Case(gold=[], predicted=[thing("a", 0, 0, 1, 1)]))
    assert (found["precision"], found["recall"], found["f1"]) == (0.0, None, 0.0)
