"""Boxes in the answers of a data set: found, checked, and converted."""

import json
import random

import pytest

from jobs.train.box_units import choose_unit
from pipeline.tasks.registry import TASKS
from pipeline.training.check import AnswerBoxes
from pipeline.training.data.answer_boxes import (
    MarksError,
    are_inside,
    faults_1000,
    faults_pixels,
    find_marks,
    pixels_to_1000,
)
from schemas.task import Question, View


@pytest.mark.parametrize(
    ("answer", "places"),
    [
        ("A [red] car at (3, 4), {sic} bbox_2d or so.", []),
        ('{"bbox_2d": null, "bbox": []}', []),
        ('{"bbox_2d": [1, 2, 3, 4]}', [((1, 2, 3, 4),)]),
        ('Here:\n```json\n[{"box_2d":[1,2.5,3,4]},', [((1, 2.5, 3, 4),)]),  # cut, still found
        ("{'bbox' : [1, 2, 3, 4], 'point_2d': [5, 6]}", [((1, 2, 3, 4),), ((5, 6),)]),
        ('{"bbox": [[1, 2, 3, 4], [5, 6, 7, 8]]}', [((1, 2, 3, 4), (5, 6, 7, 8))]),
        ('{"bbox_3d": [1, 2, 3]}', []),
    ],
)
def test_boxes_are_found_by_their_keys(answer, places):
    assert [marks.places for marks in find_marks(answer)] == places


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ('{"bbox_2d": [1, 2, 3', r"bbox_2d is not valid JSON: \[1, 2, 3"),
        ('{"bbox_2d": [1, 2, 3]}', r"bbox_2d must be 4 numbers, got \[1, 2, 3\]"),
        ('{"bbox": "1, 2, 3, 4"}', "bbox must be 4 numbers"),
        ('{"bbox": [1, 2, 3, "4"]}', "bbox must be 4 numbers"),
        ('{"bbox": [1, 2, 3, NaN]}', "bbox must be 4 numbers"),
        ('{"bbox": [1, 2, 3, true]}', "bbox must be 4 numbers"),
        ('{"point_2d": [1, 2, 3]}', "point_2d must be 2 numbers"),
        ('{"bbox": {"x1": 1}}', "bbox must be 4 numbers"),
        ('{"bbox": ' + "[" * 100_000, "bbox is not valid JSON"),
    ],
)
def test_a_value_that_is_no_box_is_an_error(answer, message):
    with pytest.raises(MarksError, match=message):
        find_marks(answer)


@pytest.mark.parametrize(
    ("answer", "faults"),
    [
        ('{"bbox_2d": [0, 0, 1000, 1000]}', []),
        ('{"bbox_2d": [10, 20, 1001, 40]}', ["bbox_2d [10, 20, 1001, 40]: 1001 is not in 0..1000"]),
        ('{"bbox_2d": [-1, 20, 30, 40]}', ["bbox_2d [-1, 20, 30, 40]: -1 is not in 0..1000"]),
        (
            '{"bbox_2d": [90, 20, 30, 40]}',
            ["bbox_2d [90, 20, 30, 40]: x1 is over x2 (is it x, y, width, height?)"],
        ),
        ('{"bbox_2d": [10, 20, 30, 20]}', ["bbox_2d [10, 20, 30, 20]: it has no area"]),
        (
            '{"bbox_2d": [0.1, 0.2, 0.5, 1]}',
            ["bbox_2d [0.1, 0.2, 0.5, 1]: is it in 0..1? it must be in 0..1000"],
        ),
        ('{"point_2d": [500, 1200]}', ["point_2d [500, 1200]: 1200 is not in 0..1000"]),
        ('{"point_2d": [500, 500]}', []),
    ],
)
def test_faults_of_boxes_in_0_to_1000(answer, faults):
    assert faults_1000(find_marks(answer)) == faults


def test_faults_of_boxes_in_pixels():
    def faults(numbers):
        return faults_pixels(find_marks(json.dumps({"bbox": numbers})), 4000, 500)

    assert faults([0, 0, 4000, 500]) == []
    assert faults([0, 0, 4001, 501]) == []  # counted from 1
    assert faults([0, 0, 4002, 500]) == [
        "bbox [0, 0, 4002, 500]: 4002 is outside the 4000 x 500 pixels"
    ]
    assert faults([400, 0, 40, 500])[0].endswith("x1 is over x2 (is it x, y, width, height?)")
    # 100 / 4000 and 101 / 4000 are both 25 / 1000.
    assert faults([100, 0, 101, 500]) == [
        "bbox [100, 0, 101, 500]: in 0..1000 it would be [25, 0, 25, 1000]: it has no area"
    ]


def test_pixels_become_thousandths_and_all_else_stays():
    before = (
        'Two 640 x 480 cars [1, 2]:\n```json\n[\n\t{"bbox_2d": [64, 48,  320.5,\n480], "n": 64},\n'
        '{"point_2d":[639,1], "bbox": [[32,24, 64,48],[0,0,641,480]]}]\n``` done'
    )
    # 64/640 = 100, 48/480 = 100, 320.5/640 = 500.78, 639/640 = 998.4, 1/480 = 2.08, 641 is the edge
    after = (
        'Two 640 x 480 cars [1, 2]:\n```json\n[\n\t{"bbox_2d": [100, 100,  501,\n1000], "n": 64},\n'
        '{"point_2d":[998,2], "bbox": [[50,50, 100,100],[0,0,1000,1000]]}]\n``` done'
    )
    assert pixels_to_1000(before, 640, 480) == after


def test_pixels_become_what_the_pipeline_writes():
    rng = random.Random(7)
    width, height = 1234, 567
    view = View(media_type="image", width=width, height=height)
    elements = []
    for _ in range(200):
        x1, x2 = sorted(rng.uniform(0, width) for _ in range(2))
        y1, y2 = sorted(rng.uniform(0, height) for _ in range(2))
        elements.append({"label": "x", "box": {"x1": x1, "y1": y1, "x2": x2, "y2": y2}})
    pixels = [{"bbox_2d": [*e["box"].values()], "label": "x"} for e in elements]
    written = TASKS["objects"].write(elements, Question(task="objects"), view)
    assert pixels_to_1000(f"```json\n{json.dumps(pixels)}\n```", width, height) == written


def seen(numbers, width, height):
    found = find_marks(json.dumps({"bbox": numbers}))
    return AnswerBoxes(
        origin="o",
        num_places=1,
        width=width,
        height=height,
        is_over_1000=max(numbers) > 1000,
        is_inside=are_inside(found, width, height),
        fault_1000=None,
        fault_pixels=None,
    )


def test_the_unit_of_boxes_follows_from_the_whole_data_set():
    over, small = seen([9, 9, 1600, 900], 1920, 1080), seen([9, 9, 600, 400], 640, 480)
    beyond, large = seen([9, 9, 990, 990], 640, 480), seen([9, 9, 990, 990], 1920, 1080)
    unit, note = choose_unit([over, small, large], "auto")
    assert unit == "pixels" and "in 1 of 3 conversations with boxes some are over 1000" in note
    assert choose_unit([over, small], "normalised") == ("normalised", None)
    unit, note = choose_unit([over, small, beyond], "auto")
    assert unit == "normalised" and "but in 1 some lie beyond their pictures" in note
    unit, note = choose_unit([small, large], "auto")
    assert unit == "normalised" and "check some of them" in note
    assert choose_unit([small, large], "pixels") == ("pixels", None)
    assert choose_unit([beyond, small], "auto") == ("normalised", None)
    assert choose_unit([large], "auto") == ("normalised", None)
    assert choose_unit([], "auto") == ("normalised", None)
