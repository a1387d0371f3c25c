"""Each task's prompt and parser, on answers as models write them: good, odd and broken."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.tasks import caption, events, objects, ocr, text_spans
from schemas.task import Parsed, Question, Task, View
from tests.support.views import IMAGE, VIDEO, corners


def parse(task: Task, answer: str, view: View = IMAGE, **question: object) -> Parsed:
    """Parse, and check that the value fits the task's column."""
    parsed = task.parse(answer, Question(task=task.name, **question), view)  # type: ignore[arg-type]
    column = pa.array([parsed.value], task.column.type)
    column.validate(full=True)
    assert (parsed.note is None) == (parsed.status == "ok")
    return parsed


# Prompts


@pytest.mark.parametrize(
    ("task", "media_type", "expected"),
    [
        (caption.TASK, "image", "Describe this image in detail."),
        (caption.TASK, "video", "Describe this video in detail."),
        (ocr.TASK, "image", "Read all the text in the image."),
        (
            objects.TASK,
            "image",
            "Locate every object in the image. Report bbox coordinates in JSON format.",
        ),
        (
            text_spans.TASK,
            "image",
            "Spot all the text in the image with line-level, and output in JSON format.",
        ),
    ],
)
def test_prompts(task: Task, media_type: str, expected: str) -> None:
    assert task.prompt(Question(task=task.name), media_type) == expected
    assert task.prompt(Question(task=task.name, prompt="What now?"), media_type) == "What now?"


def test_objects_prompt_names_the_categories() -> None:
    prompt = objects.TASK.prompt(Question(task="objects", labels=("person", "car")), "image")
    assert prompt == (
        'Locate every instance that belongs to the following categories: "person, car". '
        "Report bbox coordinates in JSON format."
    )


@pytest.mark.parametrize("task", [objects.TASK, text_spans.TASK])
def test_video_prompts_ask_for_the_time_of_each_box(task: Task) -> None:
    assert '{"time": seconds, "bbox_2d"' in task.prompt(Question(task=task.name), "video")


def test_events_prompt_asks_for_clock_times_and_is_for_videos_only() -> None:
    assert "mm:ss.ff" in events.TASK.prompt(Question(task="events"), "video")
    assert events.TASK.media_types == {"video"}


@pytest.mark.parametrize(
    "task", [caption.TASK, events.TASK, ocr.TASK, text_spans.TASK, objects.TASK]
)
def test_columns_are_nullable_and_described(task: Task) -> None:
    assert task.column.name == task.name
    assert task.column.nullable
    assert task.column.metadata[b"description"]


# Caption and OCR


@pytest.mark.parametrize("task", [caption.TASK, ocr.TASK])
def test_plain_text_is_stripped_and_else_untouched(task: Task) -> None:
    assert parse(task, "\n EXIT\n  → 5\u00a0km \n").value == "EXIT\n  → 5\u00a0km"


@pytest.mark.parametrize("task", [caption.TASK, ocr.TASK])
def test_an_empty_answer_is_unparsed(task: Task) -> None:
    parsed = parse(task, " \n")
    assert (parsed.value, parsed.status) == (None, "unparsed")
    assert parsed.note == "the answer is empty"


def test_lone_surrogates_are_replaced_and_nul_survives_parquet(tmp_path) -> None:
    parsed = parse(ocr.TASK, "a\ud800b\x00c")
    assert parsed.value == "a\ufffdb\x00c"
    pq.write_table(pa.table({"ocr": [parsed.value]}), tmp_path / "ocr.parquet")
    assert pq.read_table(tmp_path / "ocr.parquet")["ocr"].to_pylist() == ["a\ufffdb\x00c"]


# Objects

GOOD = '```json\n[\n\t{"bbox_2d": [100, 250, 300, 500], "label": "cat"}\n]\n```'
CAT = {
    "label": "cat",
    "box": corners(64.0, 120.0, 192.0, 240.0),
    "box_1000": corners(100, 250, 300, 500),
    "pts_seconds": None,
}


def test_objects_as_the_model_is_trained_to_answer() -> None:
    parsed = parse(objects.TASK, GOOD)
    assert (parsed.value, parsed.status) == ([CAT], "ok")


@pytest.mark.parametrize("answer", ["[]", "```json\n[]\n```"])
def test_an_empty_list_means_nothing_there(answer: str) -> None:
    parsed = parse(objects.TASK, answer)
    assert (parsed.value, parsed.status) == ([], "ok")


@pytest.mark.parametrize(
    ("answer", "note"),
    [
        ('Sure! [{"bbox_2d": [100, 250, 300, 500], "label": "cat"}]', "text around the JSON"),
        ('See [below]: [{"bbox_2d": [100, 250, 300, 500], "label": "cat"}]', "text around"),
        ('{"bbox_2d": [100, 250, 300, 500], "label": "cat"}', "an object instead of a list"),
        ('{"objects": [{"bbox_2d": [100, 250, 300, 500], "label": "cat"}]}', "inside an object"),
        ('[{"bbox": [100, 250, 300, 500], "name": "cat"}]', "read 'name' as 'label'"),
        ('[{"box_2d": [100, 250, 300, 500], "label": "cat"}]', "read 'box_2d' as 'bbox_2d'"),
        ("[{'bbox_2d': [100, 250, 300, 500], 'label': 'cat'}]", "JSON repaired from character 1"),
        ('[{"bbox_2d": [100, 250, 300, 500], "label": "cat"},]', "JSON repaired"),
        ('[{"bbox_2d": [100, 250, 300, 500, "label": "cat"}]', "JSON repaired"),
        ("[{bbox_2d: [100, 250, 300, 500], label: cat}]", "JSON repaired"),
        ('[{"bbox_2d": [100, 250, 300, 500], "label": "cat}]', "JSON repaired"),
        ('[{"bbox_2d": [100, 250, 300, 500], "label": "cat"}', "the JSON is cut"),
        ('[{"bbox_2d": "[100, 250, 300, 500]", "label": "cat"}]', "coordinates were text"),
        ('[{"bbox_2d": "100,250,300,500", "label": "cat"}]', "coordinates were text"),
        ('[{"bbox_2d": [[100, 250], [300, 500]], "label": "cat"}]', "not a plain list"),
        (
            '[{"bbox_2d": {"x1": 100, "y1": 250, "x2": 300, "y2": 500}, "label": "cat"}]',
            "not a plain list",
        ),
        ('[{"bbox_2d": [300, 500, 100, 250], "label": "cat"}]', "corners sorted"),
        ('[{"bbox_2d": [100, 250, 300, 500], "label": ["cat"]}]', "label was not text"),
        ('[{"bbox_2d": [100, 250, 300, 500], "label": "cat"}, {"label": "dog"}]', "left out"),
        ('[{"bbox_2d": [100, 250, 300, 500], "label": "cat"}, "dog", 7]', "not an object (2x)"),
        (
            '[{"bbox_2d": [100, 250, 300, 500], "label": "cat"}, {"bbox_2d": [1, 2, NaN, 4], '
            '"label": "dog"}]',
            "left out: not a box of four numbers",
        ),
    ],
)
def test_odd_answers_are_repaired_and_the_note_says_how(answer: str, note: str) -> None:
    parsed = parse(objects.TASK, answer)
    assert (parsed.value, parsed.status) == ([CAT], "repaired")
    assert note in str(parsed.note)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "There is no cat in the image.",
        "null",
        '"cat"',
        "7",
        "[",
        "[[[[",
        '[{"bbox_2d": [100, 25',
        '[{"bbox_2d": [100, 250, 300, 500], "label": "ca',
        '[{"label": "cat"}]',
        '[{"bbox_2d": [100, 250, 300], "label": "cat"}]',
        '[{"bbox_2d": [1e999, 250, 300, 500], "label": "cat"}]',
        "[" * 100_000,
        '{"a":' * 100_000,
        "9" * 5_000,
    ],
)
def test_hopeless_answers_are_unparsed(answer: str) -> None:
    parsed = parse(objects.TASK, answer)
    assert (parsed.value, parsed.status) == (None, "unparsed")


def test_several_fenced_blocks_are_joined() -> None:
    parsed = parse(objects.TASK, f"Cats:\n{GOOD}\nand dogs:\n{GOOD.replace('cat', 'dog')}")
    assert [item["label"] for item in parsed.value] == ["cat", "dog"]
    assert "2 JSON values were joined" in str(parsed.note)


def test_objects_without_a_list_around_them_are_joined() -> None:
    one = '{"bbox_2d": [100, 250, 300, 500], "label": "cat"}'
    assert parse(objects.TASK, f"{one}\n{one}").value == [CAT, CAT]
    assert parse(objects.TASK, f"{one}, {one}]").value == [CAT, CAT]


def test_several_boxes_under_one_label() -> None:
    answer = '[{"bbox_2d": [[100, 250, 300, 500], [100, 250, 300, 500]], "label": "cat"}]'
    assert parse(objects.TASK, answer).value == [CAT, CAT]


def test_a_broken_element_does_not_damage_its_neighbours() -> None:
    cat = '{"bbox_2d": [100, 250, 300, 500], "label": "cat"}'
    pipe = '{"bbox_2d": [100, 250, 300, 500], "label": "5" pipe"}'
    parsed = parse(objects.TASK, f"[{cat}, {pipe}, {cat}]")
    assert parsed.value == [CAT, {**CAT, "label": '5" pipe'}, CAT]
    many = ", ".join([cat.replace('cat"', "cat"), cat] * 100)
    assert parse(objects.TASK, f"[{many}]").value == [CAT] * 200


def test_a_cut_number_is_not_taken_for_a_whole_one() -> None:
    cat = '{"bbox_2d": [100, 250, 300, 500], "label": "cat"}'
    cut = '{"label": "dog", "bbox_2d": [1, 2, 3, 5'
    assert parse(objects.TASK, f"[{cat}, {cut}").value == [CAT]


def test_a_cut_number_of_a_single_object_is_not_taken_either() -> None:
    answer = '{"bbox_2d": [0, 0, 500, 1000], "label": "car", "time": 1'
    assert parse(objects.TASK, answer + "1}", VIDEO).value[0]["pts_seconds"] == 11.0
    assert parse(objects.TASK, answer, VIDEO).value[0]["pts_seconds"] is None


def test_repair_has_an_end() -> None:
    """The library alone takes many minutes for what a looping model can write."""
    cat = '{"bbox_2d": [100, 250, 300, 500], "label": "cat"}'
    parsed = parse(objects.TASK, f"[{cat}, " + "\"a\"'b': " * 20_000)
    assert parsed.value == [CAT]
    assert "too much to repair" in str(parsed.note)


def test_a_missing_label_is_the_only_requested_one() -> None:
    answer = '[{"bbox_2d": [100, 250, 300, 500]}]'
    assert parse(objects.TASK, answer, labels=("cat",)).value == [CAT]
    assert parse(objects.TASK, answer, labels=("cat", "dog")).value is None


def test_objects_of_a_video_get_the_pts_of_the_nearest_frame() -> None:
    box = '"bbox_2d": [0, 0, 500, 1000], "label": "car"'
    times = ["10.6", '"10.9 seconds"', '"00:11.50"', "10.25", "99"]
    answer = "[" + ", ".join(f'{{"time": {time}, {box}}}' for time in times) + f", {{{box}}}]"
    parsed = parse(objects.TASK, answer, VIDEO)
    assert [item["pts_seconds"] for item in parsed.value] == [10.5, 11.0, 11.5, 10.0, 11.5, None]
    assert parsed.value[0]["box"] == corners(0.0, 0.0, 960.0, 1080.0)
    assert parsed.note == "time clamped to the unit; no time"


def test_objects_grouped_by_time_take_the_time_over() -> None:
    answer = '[{"time": 11, "objects": [{"bbox_2d": [0, 0, 500, 1000], "label": "car"}]}]'
    parsed = parse(objects.TASK, answer, VIDEO)
    assert [(item["label"], item["pts_seconds"]) for item in parsed.value] == [("car", 11.0)]


# Text spans


def test_text_spans_as_the_model_is_trained_to_answer() -> None:
    answer = '```json\n[{"bbox_2d": [100, 250, 300, 500], "text_content": "EXIT 7"}]\n```'
    span = {"text": "EXIT 7"} | {key: CAT[key] for key in ("box", "box_1000", "pts_seconds")}
    parsed = parse(text_spans.TASK, answer)
    assert (parsed.value, parsed.status) == ([span], "ok")
    repaired = parse(text_spans.TASK, answer.replace("text_content", "text"))
    assert (repaired.value, repaired.status) == ([span], "repaired")


def test_a_text_without_a_box_is_still_a_text() -> None:
    parsed = parse(text_spans.TASK, '[{"text_content": "EXIT"}, {"text_content": ""}]')
    assert parsed.value == [{"text": "EXIT", "box": None, "box_1000": None, "pts_seconds": None}]
    assert parsed.note == "without its box: not a box of four numbers; left out: no text"


def test_text_spans_hold_escapes_quotes_and_fences() -> None:
    texts = ['say "hi"', "C:\\new", "```json", "[1] {2}", "12:30", "a\x00b", "日本"]
    answer = json.dumps([{"bbox_2d": [1, 2, 3, 4], "text_content": text} for text in texts])
    parsed = parse(text_spans.TASK, f"```json\n{answer}\n```")
    assert [span["text"] for span in parsed.value] == texts
    assert parsed.status == "ok"


# Events


def event(start: float, end: float, text: str) -> dict[str, object]:
    return {"start_seconds": start, "end_seconds": end, "caption": text}


@pytest.mark.parametrize(
    "answer",
    [
        '{"00:23.00 - 00:48.00": "A man runs.", "00:48.00 - 00:50.50": "He falls."}',
        '[{"start": "00:23.00", "end": "00:48.00", "caption": "A man runs."},'
        ' {"start": "00:48.00", "end": "00:50.50", "caption": "He falls."}]',
        '[{"start": 23, "end": 48.0, "caption": "A man runs."},'
        ' {"start": "48.0 seconds", "end": "0:00:50.5", "caption": "He falls."}]',
    ],
)
def test_both_forms_of_events_are_as_the_format_says(answer: str) -> None:
    for text in (answer, f"```json\n{answer}\n```"):
        parsed = parse(events.TASK, text, VIDEO)
        assert parsed.status == "ok"
        assert parsed.value == [event(23.0, 48.0, "A man runs."), event(48.0, 50.5, "He falls.")]


@pytest.mark.parametrize(
    "answer",
    [
        '[{"start_time": "00:23.00", "end_time": "00:48.00", "description": "A man runs."}]',
        '[{"timestamp": "00:23.00 - 00:48.00", "event": "A man runs."}]',
        '[{"timestamp": [23, 48], "caption": "A man runs."}]',
        '[{"00:23.00 - 00:48.00": "A man runs."}]',
        '[{"start": "00:48.00", "end": "00:23.00", "caption": "A man runs."}]',
        '{"events": [{"start": "00:23.00", "end": "00:48.00", "caption": "A man runs."}]}',
        '{"event_1": {"start": "00:23.00", "end": "00:48.00", "caption": "A man runs."}}',
        '{"start": "00:23.00", "end": "00:48.00", "caption": "A man runs."}',
        '[{"start": 00:23.00, "end": 00:48.00, "caption": "A man runs."}]',
        '{"00:23.00 - 00:48.00": "A man runs.",}',
        "{'00:23.00 - 00:48.00': 'A man runs.'}",
        '{"00:23.00 - 00:48.00": "A man runs.", "later": "He falls."}',
        '{"00:23.00 - 00:48.00": "A man runs.", "00:49.00 - 00:50.00": ""}',
    ],
)
def test_other_forms_of_events_parse_too(answer: str) -> None:
    assert parse(events.TASK, answer, VIDEO).value == [event(23.0, 48.0, "A man runs.")]


def test_events_at_the_same_time_are_all_kept() -> None:
    answer = '{"00:23.00 - 00:48.00": "A man runs.", "00:23.00 - 00:48.00": "A dog barks."'
    both = [event(23.0, 48.0, "A man runs."), event(23.0, 48.0, "A dog barks.")]
    assert parse(events.TASK, answer + "}", VIDEO).value == both
    assert parse(events.TASK, answer + ', "00:48', VIDEO).value == both


def test_quotes_in_a_caption_do_not_damage_the_next_event() -> None:
    answer = '{"00:23.00 - 00:48.00": "He says "hi", then runs.", "00:48.00 - 00:50.00": "Bye."}'
    assert parse(events.TASK, answer, VIDEO).value == [
        event(23.0, 48.0, 'He says "hi", then runs.'),
        event(48.0, 50.0, "Bye."),
    ]


def test_event_times_are_clamped_into_the_unit_and_noted_beyond_rounding() -> None:
    parsed = parse(events.TASK, '{"00:09.96 - 00:60.04": "x"}', VIDEO)
    assert (parsed.value, parsed.status) == ([event(10.0, 60.0, "x")], "ok")
    parsed = parse(events.TASK, '{"00:05.00 - 01:10.00": "x"}', VIDEO)
    assert (parsed.value, parsed.status) == ([event(10.0, 60.0, "x")], "repaired")
    assert parsed.note == "time clamped to the unit (2x)"


@pytest.mark.parametrize("answer", ["{}", "[]"])
def test_no_events_is_a_valid_answer(answer: str) -> None:
    parsed = parse(events.TASK, answer, VIDEO)
    assert (parsed.value, parsed.status) == ([], "ok")


@pytest.mark.parametrize(
    "answer",
    ["Nothing happens.", '{"events": "none"}', '[{"start": "soon", "end": 9, "caption": "x"}]'],
)
def test_events_without_times_are_unparsed(answer: str) -> None:
    parsed = parse(events.TASK, answer, VIDEO)
    assert (parsed.value, parsed.status) == (None, "unparsed")
