"""What a model is trained to write is read back as the same value: ``write``, then ``parse``.

Not covered, since answers cannot hold it: white space around a text, a blank text, special tokens
such as ``<|im_end|>`` (training breaks them up), ``</think>`` (what is before it is reasoning), and
times of objects closer than a tenth of a second.
"""

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.tasks.parse import parse_answer
from pipeline.tasks.registry import TASKS
from schemas.task import Question, View

IMAGE = View(media_type="image", width=1919, height=1081)
CLIP = View(
    media_type="video",
    width=640,
    height=360,
    pts_seconds=tuple(k * 0.5 for k in range(24)),
    start_seconds=0.0,
    end_seconds=12.0,
)
LONG = View(media_type="video", width=640, height=360, start_seconds=0.0, end_seconds=40_000.0)

# Arrow's text: no lone surrogates. Then what has a meaning in JSON, in Markdown or to a tokenizer.
WORDS = ["```json\n[]\n```", "\n```\n", '"}', "7", "page\x0cone", "A:\new.txt", "$5\tan\ne"]
plain_texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
nasty_texts = st.text(
    st.sampled_from("\"\\`\n\r\t{}[]:,<>|/\u2028\u00e9\U0001f600 0a'-"), max_size=20
)
texts = (
    st.one_of(plain_texts, nasty_texts, st.sampled_from(WORDS))
    .map(str.strip)
    .filter(lambda text: text and not any(s in text for s in ("<|", "<think>", "</think>")))
)


def written(task: str, value, view: View, **settings) -> str:
    return TASKS[task].write(value, Question(task=task, **settings), view)


def read(task: str, answer: str, view: View, **settings):
    return parse_answer(answer, Question(task=task, **settings), view)


def box(view: View):
    """Boxes in the picture as an Arrow column gives them: float32 pixels."""

    def made(corners: tuple[float, float, float, float]) -> dict[str, float]:
        (x1, x2), (y1, y2) = sorted(corners[::2]), sorted(corners[1::2])
        pixels = (x1 * view.width, y1 * view.height, x2 * view.width, y2 * view.height)
        rounded = pa.array(pixels, pa.float32()).to_pylist()
        return dict(zip(("x1", "y1", "x2", "y2"), rounded, strict=True))

    side = st.floats(0, 1, width=32)
    return (
        st.tuples(side, side, side, side)
        .map(made)
        .filter(lambda b: b["x1"] < b["x2"] and b["y1"] < b["y2"])
    )


def assert_same_boxes(found: list[dict], value: list[dict], view: View):
    assert len(found) == len(value)
    for one, other in zip(found, value, strict=True):
        assert (one["box"] is None) == (other["box"] is None)
        if one["box"] is not None:
            for corner, side in (("x1", view.width), ("y1", view.height)):
                for name in (corner, corner.replace("1", "2")):
                    assert abs(one["box"][name] - other["box"][name]) <= side / 1000 + 1e-3


@settings(max_examples=200)
@given(text=texts)
@pytest.mark.parametrize("task", ["caption", "ocr"])
def test_text(task: str, text: str):
    answer = read(task, written(task, text, IMAGE), IMAGE)
    assert (answer.value, answer.status, answer.note) == (text, "ok", None)


times = st.floats(0, 39_000)


@settings(max_examples=200)
@given(events=st.lists(st.tuples(times, times, texts), max_size=6))
def test_events(events):
    value = [
        {"start_seconds": min(a, b), "end_seconds": max(a, b), "caption": c} for a, b, c in events
    ]
    answer = read("events", written("events", value, LONG), LONG)
    assert (answer.status, answer.note) == ("ok", None)
    assert [e["caption"] for e in answer.value] == [e["caption"] for e in value]
    for found, true in zip(answer.value, value, strict=True):
        for key in ("start_seconds", "end_seconds"):
            assert abs(found[key] - true[key]) <= 0.005 + 1e-9


def test_events_over_an_hour_and_at_the_same_time():
    value = [
        {"start_seconds": 3725.5, "end_seconds": 7199.999, "caption": 'He says "hi".'},
        {"start_seconds": 3725.5, "end_seconds": 7199.999, "caption": "She answers."},
    ]
    answer = written("events", value, LONG)
    assert answer == (
        '```json\n[{"caption": "He says \\"hi\\".", "start": "62:05.50", "end": "120:00.00"}, '
        '{"caption": "She answers.", "start": "62:05.50", "end": "120:00.00"}]\n```'
    )
    found = read("events", answer, LONG).value
    assert found == [{**e, "end_seconds": 7200.0} for e in value]


def test_events_at_the_end_stay_inside_the_time_span():
    view = View(media_type="video", width=64, height=64, start_seconds=60.0, end_seconds=119.996)
    value = [{"start_seconds": 60.0, "end_seconds": 119.996, "caption": "x"}]
    answer = read("events", written("events", value, view), view)
    assert (answer.value, answer.status) == (value, "ok")


@settings(max_examples=200)
@given(data=st.lists(st.tuples(box(IMAGE), texts), max_size=6))
def test_objects_of_an_image(data):
    value = [{"label": label, "box": corners, "pts_seconds": None} for corners, label in data]
    answer = read("objects", written("objects", value, IMAGE), IMAGE)
    assert (answer.status, answer.note) == ("ok", None)
    assert [e["label"] for e in answer.value] == [e["label"] for e in value]
    assert_same_boxes(answer.value, value, IMAGE)


@settings(max_examples=100)
@given(data=st.lists(st.tuples(box(CLIP), texts, st.sampled_from(CLIP.pts_seconds)), max_size=6))
@pytest.mark.parametrize("task", ["objects", "text_spans"])
def test_boxes_of_a_video_have_their_frames_times(task: str, data):
    name = "label" if task == "objects" else "text"
    value = [{name: text, "box": corners, "pts_seconds": pts} for corners, text, pts in data]
    answer = read(task, written(task, value, CLIP), CLIP)
    assert (answer.status, answer.note) == ("ok", None)
    assert [e[name] for e in answer.value] == [e[name] for e in value]
    assert [e["pts_seconds"] for e in answer.value] == [e["pts_seconds"] for e in value]
    assert_same_boxes(answer.value, value, CLIP)


def test_a_thin_box_keeps_an_area():
    """2 px of 1919 are one thousandth: rounded to the same number, the box would be empty."""
    corners = [
        {"x1": 100.4, "y1": 5.0, "x2": 100.9, "y2": 9.0},
        {"x1": 1918.5, "y1": 1080.5, "x2": 1919.0, "y2": 1081.0},
        {"x1": 0.0, "y1": 0.0, "x2": 0.5, "y2": 0.5},
    ]
    value = [{"label": "line", "box": box, "pts_seconds": None} for box in corners]
    answer = read("objects", written("objects", value, IMAGE), IMAGE)
    assert (answer.status, answer.note) == ("ok", None)
    assert_same_boxes(answer.value, value, IMAGE)


def test_a_box_beyond_the_picture_is_cut_to_it():
    value = [{"label": "a", "box": {"x1": -9.0, "y1": 3.0, "x2": 5000.0, "y2": 1081.0}}]
    assert written("objects", value, IMAGE) == (
        '```json\n[{"bbox_2d": [0, 3, 1000, 1000], "label": "a"}]\n```'
    )


def test_a_text_without_a_box_is_the_same_value_though_noted():
    value = [{"text": "EXIT 5", "box": None, "box_1000": None, "pts_seconds": None}]
    answer = read("text_spans", written("text_spans", value, IMAGE), IMAGE)
    assert answer.value == value
    assert (answer.status, answer.note) == (
        "repaired",
        "without its box: not a box of four numbers",
    )


def test_nothing_there_is_an_answer():
    for task in ("objects", "text_spans", "events"):
        answer = read(task, written(task, [], CLIP), CLIP)
        assert (answer.value, answer.status) == ([], "ok")


def test_labels_choose_which_objects_are_written():
    corners = {"x1": 0.0, "y1": 0.0, "x2": 640.0, "y2": 180.0}
    labels = ("car", "Car", "bus")
    value = [{"label": label, "box": corners, "pts_seconds": None} for label in labels]
    answer = written("objects", value, IMAGE, labels=("bus", "car"))
    found = read("objects", answer, IMAGE, labels=("bus", "car")).value
    assert [e["label"] for e in found] == ["car", "bus"]
    everything = read("objects", written("objects", value, IMAGE), IMAGE).value
    assert [e["label"] for e in everything] == list(labels)


def test_values_as_the_output_table_gives_them(annotated):
    import pyarrow.dataset as ds

    _, output, _ = annotated
    gold = {
        "caption": "A red circle.",
        "ocr": "EXIT\n5",
        "events": [{"start_seconds": 0.25, "end_seconds": 1.5, "caption": "It moves."}],
        "objects": [{"label": "a", "box": {"x1": 1.0, "y1": 2.0, "x2": 30.0, "y2": 40.0}}],
        "text_spans": [{"text": "EXIT", "box": {"x1": 1.0, "y1": 2.0, "x2": 30.0, "y2": 40.0}}],
    }
    schema = ds.dataset(str(output), format="parquet", partitioning="hive").schema
    for task, value in gold.items():
        typed = pa.array([value], schema.field(task).type).to_pylist()[0]
        view = CLIP if task == "events" else IMAGE
        answer = read(task, written(task, typed, view), view)
        assert answer.status == "ok"
        again = pa.array([answer.value], schema.field(task).type).to_pylist()[0]
        if task in ("objects", "text_spans"):
            assert_same_boxes(again, typed, view)
        else:
            assert again == typed
