"""What all parsers read answers with: JSON as models write it, times and boxes."""

from collections import Counter

import pytest

from pipeline.tasks.answers.boxes import read_box
from pipeline.tasks.answers.read_json import JsonObject, read_json, text_of
from pipeline.tasks.answers.times import (
    clamp_seconds,
    nearest_pts_seconds,
    read_interval,
    read_seconds,
)
from schemas.task import View
from tests.support.views import IMAGE, VIDEO, corners


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (12.5, 12.5),
        (12, 12.0),
        ("12.5", 12.5),
        ("12.5 seconds", 12.5),
        ("12.5s", 12.5),
        ("<12.5 seconds>", 12.5),
        ("00:23.00", 23.0),
        ("01:02", 62.0),
        ("00:00:23,500", 23.5),
        ("1:02:03.5", 3723.5),
        (-1, -1.0),
        ("", None),
        ("soon", None),
        ("1:2:3:4", None),
        ("-5", None),
        ("1e3", None),
        ("nan", None),
        ("٣", None),
        ("9" * 100, None),
        (float("nan"), None),
        (float("inf"), None),
        (10**400, None),
        (True, None),
        (None, None),
        ([12.5], None),
    ],
)
def test_read_seconds(value: object, expected: float | None) -> None:
    assert read_seconds(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("00:23.00 - 00:48.00", (23.0, 48.0)),
        ("00:23.00-00:48.00", (23.0, 48.0)),
        ("<23.0 seconds> – <48.0 seconds>", (23.0, 48.0)),
        ("23s to 48s", (23.0, 48.0)),
        ("00:00:23,000 --> 00:00:48,000", (23.0, 48.0)),
        ("[23.0, 48.0]", (23.0, 48.0)),
        ([23, "00:48"], (23.0, 48.0)),
        ("00:23.00", None),
        ("event 1 - 2", None),
        ([23], None),
        (" " * 100, None),
        (23, None),
    ],
)
def test_read_interval(value: object, expected: tuple[float, float] | None) -> None:
    assert read_interval(value) == expected


def test_the_earlier_of_two_frames_as_near_is_taken() -> None:
    assert nearest_pts_seconds(10.25, VIDEO) == 10.0
    assert nearest_pts_seconds(10.26, VIDEO) == 10.5
    assert nearest_pts_seconds(1.0, IMAGE) is None


def test_without_a_time_span_times_are_clamped_to_the_frames() -> None:
    view = View(media_type="video", width=8, height=8, pts_seconds=(1.0, 2.0))
    notes: Counter[str] = Counter()
    assert [clamp_seconds(time, view, notes) for time in (0.0, 1.5, 9.0)] == [1.0, 1.5, 2.0]
    assert notes == {"time clamped to the unit": 2}


def test_read_box_scales_to_pixels() -> None:
    box = read_box([0, 1, 999, 1000], width=1920, height=1080)
    assert box.box == corners(0.0, 1.08, 1918.08, 1080.0)
    assert box.box_1000 == corners(0, 1, 999, 1000)
    assert box.notes == ()


@pytest.mark.parametrize(
    ("value", "box_1000", "note"),
    [
        ([-5, 0, 1200, 1000], (0, 0, 1000, 1000), "box clamped to 0..1000"),
        ([10, 40, 30, 20], (10, 20, 30, 40), "corners sorted"),
        ([10, 20, 10, 40], (10, 20, 10, 40), "box without area"),
        ([10.4, 20, 30, 40], (10, 20, 30, 40), "fractions of 1/1000 rounded in box_1000"),
        (["10", 20, 30, 40], (10, 20, 30, 40), "coordinates were text"),
    ],
)
def test_read_box_repairs(value: object, box_1000: tuple[int, ...], note: str) -> None:
    box = read_box(value, width=1000, height=1000)
    assert tuple(box.box_1000.values()) == box_1000
    assert note in box.notes


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        [1, 2, 3, True],
        [1, 2, 3, None],
        [1, 2, 3, "x"],
        [1, 2, 3, "1_0"],
        [1, 2, 3, "nan"],
        [1, 2, 3, float("nan")],
        [1, 2, 3, float("inf")],
        [1, 2, 3, 10**400],
        [[1, 2, 3, 4]] * 2,
        {"x1": 1},
        "1,2,3",
        7,
    ],
)
def test_read_box_refuses(value: object) -> None:
    with pytest.raises(ValueError, match="not a box of four numbers"):
        read_box(value, width=1000, height=1000)


@pytest.mark.parametrize("text", ["[NaN]", "[Infinity]", "[1,]", "{'a': 1}", "[1] and so on"])
def test_only_valid_json_has_no_note(text: str) -> None:
    assert read_json('[1, {"a": null}]').note is None
    assert read_json(text).note is not None


def test_read_json_reports_a_cut() -> None:
    reading = read_json('Here:\n```json\n{"events": [{"a": 1}, {"a": 2')
    assert reading.value == {"events": [{"a": 1}]}
    assert reading.truncated
    assert not read_json('{"events": [{"a": 1}, {"a": 2}]}').truncated


def test_repeated_keys_are_remembered() -> None:
    value = read_json('{"a": 1, "a": 2}').value
    assert isinstance(value, JsonObject)
    assert value == {"a": 2}
    assert value.pairs == (("a", 1), ("a", 2))


@pytest.mark.parametrize(
    ("value", "expected"),
    [(" a ", "a"), (7, "7"), (["a", 7, None, {}], "a, 7"), (True, None), ({}, None), ("", None)],
)
def test_text_of(value: object, expected: str | None) -> None:
    assert text_of(value) == expected
    assert text_of(10**5000) is None
