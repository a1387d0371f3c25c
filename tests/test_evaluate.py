"""Comparing an annotation table with gold: figures by hand, by the libraries, and the command."""

import contextlib
import io
import json
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jiwer
import pyarrow.parquet as pq
import pytest
import sacrebleu
from click.testing import CliRunner
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from jobs.cli import main
from jobs.figures import Case
from jobs.metrics import METRICS
from pipeline.storage import Storage
from pipeline.write import RunKey, annotation_row, write_part
from schemas.errors import ErrorRecord
from schemas.task import Question
from schemas.unit import AnsweredUnit, Media, Prompt, RawAnswer, Sampling

ROOT = Path(__file__).parents[1]
KEY = RunKey(run_id="test-20261122-abc", recipe_id="r1", run_date="2026-11-22")
QUESTIONS = {name: Question(task=name) for name in METRICS}
LOST = ErrorRecord(stage="plan", type="media_missing", message="not there")
BOX = {"x1": 0, "y1": 0, "x2": 100, "y2": 100}


# The figures


def figures(task: str, *cases: Case) -> dict[str, float | None]:
    return {figure.name: figure.value for figure in METRICS[task](cases)}


def event(start: float, end: float, caption: str | None = "x") -> dict:
    return {"start_seconds": start, "end_seconds": end, "caption": caption}


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
    found = METRICS["events"]([Case(gold=gold, predicted=predicted)])
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


# Rows and gold


def video(media_id: str, start: float = 0.0, end: float = 10.0, **answers: str) -> AnsweredUnit:
    """A unit of a clip of 10 s, 1000 x 1000 px, sampled twice a second."""
    times = tuple(start + k / 2 for k in range(int((end - start) * 2)))
    return AnsweredUnit(
        unit_id=f"{media_id}-{start}",
        media_id=media_id,
        uri=f"/archive/{media_id}.mp4",
        media=Media(
            media_type="video",
            codec="h264",
            container="mp4",
            width=1000,
            height=1000,
            begin_seconds=0.0,
            duration_seconds=10.0,
            content_version="v1",
        ),
        sampling=Sampling(
            start_seconds=start,
            end_seconds=end,
            num_frames=len(times),
            resized_height=512,
            resized_width=512,
            grid_thw=(2, 32, 32),
            num_vision_tokens=512,
            pts_seconds=times,
        ),
        prompts=tuple(Prompt(task=task, num_prompt_tokens=9) for task in answers),
        answers=tuple(
            RawAnswer(
                task=task,
                raw_text=text,
                finish_reason="stop",
                num_prompt_tokens=9,
                num_output_tokens=7,
            )
            for task, text in answers.items()
        ),
    )


def image(media_id: str, width: int, height: int, **answers: str) -> AnsweredUnit:
    sampling = Sampling(
        num_frames=1, resized_height=64, resized_width=64, grid_thw=(1, 4, 4), num_vision_tokens=4
    )
    media = Media(media_type="image", container="PNG", width=width, height=height)
    return replace(video(media_id, **answers), media=media, sampling=sampling)


def failed(media_id: str) -> AnsweredUnit:
    unit = video(media_id)
    return replace(
        unit, media=None, sampling=None, status="failed", error=LOST, unit_id=f"{media_id}-lost"
    )


def write(output: Path, *units: AnsweredUnit, key: RunKey = KEY) -> None:
    rows = [annotation_row(unit, QUESTIONS, key) for unit in units]
    write_part(rows, str(output), key, Storage())


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Run the command on ``out`` and gold's rows, as JSON lines, and return its JSON too."""

    def call(*rows: dict, options: str = "", exit_code: int = 0) -> tuple[str, dict]:
        monkeypatch.chdir(tmp_path)
        Path("gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        args = ["evaluate", "out", "gold.jsonl", "--json", "figures.json", *options.split()]
        result = CliRunner().invoke(main, args)
        assert result.exit_code == exit_code, (result.output, result.exception)
        found = json.loads(Path("figures.json").read_text()) if exit_code != 2 else {}
        return result.output, found

    return call


def values(found: dict, task: str) -> dict[str, float | None]:
    return {name: figure["value"] for name, figure in found["tasks"][task]["figures"].items()}


EVERYTHING = {
    "caption": "A red car turns left.",
    "ocr": "EXIT\nGate 12",
    "events": '[{"start": 1.0, "end": 4.5, "caption": "it turns"}]',
    "objects": '[{"time": 2.0, "bbox_2d": [100, 200, 500, 1000], "label": "car"}]',
    "text_spans": '[{"time": 2.0, "bbox_2d": [1, 2, 333, 444], "text_content": "EXIT"}]',
}


def test_a_table_against_itself_is_all_right(tmp_path: Path):
    write(tmp_path / "out", video("a", 0, 5, **EVERYTHING), video("a", 5, 10, caption="Nothing."))
    args = ["evaluate", tmp_path / "out", tmp_path / "out", "--json", tmp_path / "figures.json"]
    result = CliRunner().invoke(main, list(map(str, args)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "figures.json").read_text())
    assert list(found["tasks"]) == ["caption", "events", "ocr", "text_spans", "objects"]
    for task in found["tasks"]:
        for name, value in values(found, task).items():
            best = 100 if name in ("chrf", "bleu") else 0 if name.endswith(("cer", "wer")) else 1
            assert value == pytest.approx(best, abs=1e-12), (task, name)


def test_rows_without_an_answer_count_as_wrong(tmp_path: Path, call):
    write(
        tmp_path / "out",
        video("right", caption="A dog.", objects=EVERYTHING["objects"]),
        video("broken", caption="A dog.", objects="I see no boxes, sorry"),
        failed("lost"),
        video("asked less", caption="A dog."),
        video("without gold", caption="A cat."),
    )
    car = [{"label": "car", "box": {"x1": 100, "y1": 200, "x2": 500, "y2": 1000}}]
    media = ("right", "broken", "lost", "asked less", "nowhere")
    car[0]["pts_seconds"] = 2.0
    output, found = call(*({"media_id": m, "caption": "A dog.", "objects": car} for m in media))
    assert values(found, "caption")["exact"] == 3 / 5
    states = {name: n for name, n in found["tasks"]["caption"]["answers"].items() if n}
    assert states == {"ok": 3, "failed": 1, "no_row": 1}
    assert values(found, "objects")["recall"] == 1 / 5
    assert values(found, "objects")["precision"] == 1.0
    states = {name: n for name, n in found["tasks"]["objects"]["answers"].items() if n}
    assert states == {"ok": 1, "unparsed": 1, "failed": 1, "not_asked": 1, "no_row": 1}
    assert found["counts"]["gold_rows_without_annotation"] == 1
    assert found["counts"]["annotation_rows_without_gold"] == 1
    assert "5 judged: 1 ok, 1 unparsed, 1 failed, 1 not asked, 1 no row" in output
    assert "5 rows, 1 of them without an annotation row" in output
    assert "left out  annotation rows without gold: 1\n" in output


def test_null_is_not_judged(tmp_path: Path, call):
    write(tmp_path / "out", video("a", caption="x", ocr="t"), video("b", caption="y", ocr="t"))
    _, found = call(
        {"media_id": "a", "caption": "x", "ocr": None},
        {"media_id": "b", "ocr": "t"},
        {"media_id": "nowhere", "caption": None},
    )
    assert found["tasks"]["caption"]["n"] == found["tasks"]["ocr"]["n"] == 1
    assert found["counts"]["gold_rows_that_judge_nothing"] == 1
    assert found["counts"]["gold_rows_without_annotation"] == 0


def test_gold_is_matched_by_media_and_stretch(tmp_path: Path, call):
    write(tmp_path / "out", video("a", 0, 6, caption="first"), video("a", 6, 10, caption="last"))
    _, found = call(
        {"media_id": "a", "start_seconds": 6, "end_seconds": 99, "caption": "last"},  # cut at 10 s
        {"uri": "/archive/a.mp4", "sampling": {"end_seconds": 6.02}, "caption": "first"},
    )
    assert values(found, "caption")["exact"] == 1.0
    output, _ = call({"media_id": "a", "caption": "first"}, exit_code=2)
    assert "line 1: a has 2 units: give start_seconds and end_seconds of the one" in output
    assert "0.000 to 6.000 s, 6.000 to 10.000 s" in output
    output, _ = call({"media_id": "a", "end_seconds": 5, "caption": "x"}, exit_code=2)
    assert "such as 0.000 to 6.000 s, 6.000 to 10.000 s of a; line 1 has" in output
    twice = {"media_id": "a", "end_seconds": 6, "caption": "first"}
    output, _ = call(twice, twice, exit_code=2)
    assert "line 2: judges the same answer as line 1; keep one of them" in output


def test_relative_uris_start_at_golds_folder(tmp_path: Path, call):
    unit = replace(video("a", caption="x"), uri=str(tmp_path / "clips" / "a.mp4"))
    write(tmp_path / "out", unit)
    _, found = call({"uri": "clips/a.mp4", "caption": "x"}, {"uri": "/b.mp4", "caption": "x"})
    assert values(found, "caption")["exact"] == 0.5


def test_the_order_of_gold_changes_nothing(tmp_path: Path, call):
    boxes = '[{"time": 1, "bbox_2d": [0, 0, %d, 100], "label": "a"}]'
    write(tmp_path / "out", *(video(str(i), objects=boxes % (i * 30)) for i in range(6)))
    gold = [
        {"media_id": str(i), "objects": [{"label": "a", "box": BOX, "pts_seconds": 1}]}
        for i in range(6)
    ]
    _, found = call(*gold)
    assert call(*gold[::-1])[1] == found
    assert 0.1 < values(found, "objects")["ap50"] < 0.9


def test_slices_have_all_rows_and_their_own_figures(tmp_path: Path, call):
    write(
        tmp_path / "out",
        image("small", 320, 200, caption="right"),
        image("tall", 1081, 4000, caption="wrong"),
        replace(video("clip", caption="right"), attributes='{"camera": "north"}'),
        failed("lost"),
    )
    places = {"small": "x", "tall": "x", "clip": "\x1b[31my|[z](q)", "lost": 3}
    gold = [
        {"media_id": media, "caption": "right", "place": place} for media, place in places.items()
    ]
    output, found = call(*gold, options="--by all,camera,place --markdown figures.md")
    slices = found["tasks"]["caption"]["slices"]
    exact = {
        name: {label: (s["n"], s["figures"]["exact"]["value"]) for label, s in labels.items()}
        for name, labels in slices.items()
    }
    assert exact == {
        "media_type": {"image": (2, 0.5), "(none)": (1, 0.0), "video": (1, 1.0)},
        "container": {"PNG": (2, 0.5), "(none)": (1, 0.0), "mp4": (1, 1.0)},
        "codec": {"(none)": (3, 1 / 3), "h264": (1, 1.0)},
        "resolution": {
            "up to 240 px": (1, 1.0),
            "up to 1080 px": (1, 1.0),
            "over 1080 px": (1, 0.0),
            "(none)": (1, 0.0),
        },
        "duration": {"up to 30 s": (1, 1.0), "(none)": (3, 1 / 3)},
        "camera": {"(none)": (3, 1 / 3), "north": (1, 1.0)},
        "place": {"x": (2, 0.5), "\x1b[31my|[z](q)": (1, 1.0), "3": (1, 0.0)},
    }
    assert list(slices["resolution"]) == [*exact["resolution"]]  # from small to large
    text = Path("figures.md").read_text()
    assert r"| place: \\x1b\[31my\|\[z\](q) | 1 | 0 | 1.000 | 100.0 |" in text
    assert "\x1b" not in text + output
    assert r"place: \x1b[31my|[z](q)" in output
    assert max(map(len, output.splitlines())) <= 100


def test_many_labels_are_all_in_the_json_only(tmp_path: Path, call):
    write(tmp_path / "out", *(image(f"m{i}", 9, 9, caption="a") for i in range(30)))
    gold = ({"media_id": f"m{i}", "caption": "a", "shot": i} for i in range(30))
    output, found = call(*gold, options="--by shot")
    assert len(found["tasks"]["caption"]["slices"]["shot"]) == 30
    assert "shot: 10 more, see --json" in output


def test_the_newest_runs_recipe_is_taken(tmp_path: Path, call):
    out = tmp_path / "out"
    for day, recipe, hour in ((22, "r1", None), (23, "r2", 8), (23, "r3", 9)):
        run_id = f"test-202611{day}-{recipe}"
        key = RunKey(run_id=run_id, recipe_id=recipe, run_date="2026-11-22")
        write(out, video("a", caption=recipe), key=key)
        if hour:
            (out / "runs" / run_id).mkdir(parents=True)
            run = {"created_at": f"2026-11-23T{hour:02}:00:00+00:00"}
            (out / "runs" / run_id / "run.json").write_text(json.dumps(run))
    gold = {"media_id": "a", "caption": "r3"}
    output, found = call(gold)
    assert (found["recipe_id"], values(found, "caption")["exact"]) == ("r3", 1.0)
    assert "r3, of the newest run, test-20261123-r3; --recipe takes others: r1, r2" in output
    output, found = call(gold, options="--recipe r1")
    assert (found["recipe_id"], values(found, "caption")["exact"]) == ("r1", 0.0)
    assert "newest" not in output
    assert call(gold, options="--run test-20261123-r2")[1]["recipe_id"] == "r2"
    output, _ = call(gold, options="--run nightly", exit_code=2)
    assert "no row is of run 'nightly'; the runs are test-20261122-r1, test-20261123-r2" in output
    output, _ = call(gold, options="--recipe r9", exit_code=2)
    assert "the recipes are r1, r2, r3" in output
    shutil.rmtree(out / "runs")  # two runs of the same day, and nothing says when
    output, _ = call(gold, exit_code=2)
    assert "no telling which run is the newest: choose one with --run: test-20261123-r2" in output


def test_rows_of_earlier_content_and_earlier_failures_are_left_out(tmp_path: Path, call):
    out = tmp_path / "out"
    later = RunKey(run_id="test-20261123-def", recipe_id="r1", run_date="2026-11-23")
    old = video("changed", caption="before")
    new = replace(old, unit_id="changed-2", media=replace(old.media, content_version="v2"))
    write(out, old, failed("lost"))
    write(out, replace(new, answers=(replace(new.answers[0], raw_text="after"),)), key=later)
    write(out, video("lost", caption="found"), key=later)
    _, found = call(
        {"media_id": "changed", "caption": "after"}, {"media_id": "lost", "caption": "found"}
    )
    assert values(found, "caption")["exact"] == 1.0
    assert found["counts"]["annotation_rows_superseded"] == 2
    assert found["counts"]["annotation_rows_without_gold"] == 0


def test_gold_boxes_of_videos_without_a_time_are_said(tmp_path: Path, call):
    write(tmp_path / "out", video("a", objects=EVERYTHING["objects"]))
    output, found = call({"media_id": "a", "objects": [{"label": "car", "box": BOX}]})
    assert found["counts"]["gold_boxes_without_time"] == 1
    assert "1 of gold's boxes in videos have no pts_seconds" in output


def test_bars(tmp_path: Path, call):
    out = tmp_path / "out"
    write(out, video("a", caption="a dog", ocr="ab"), video("b", caption="x", ocr="cd"))
    gold = [{"media_id": m, "caption": "a dog", "ocr": "ab"} for m in "ab"]
    call(*gold, options="--fail-under caption.exact=0.5 --fail-over ocr.cer=0.5")
    options = "--fail-under caption.exact=0.9 --fail-under ocr.exact=0.5 --fail-over ocr.cer=0.25"
    output, found = call(*gold, options=options, exit_code=1)
    message = "error: figures that miss their bar: caption.exact 0.5 < 0.9; ocr.cer 0.5 > 0.25\n"
    assert output.endswith(message)
    assert values(found, "ocr")["cer"] == 0.5  # the files are written all the same


SAME = {"media_id": "a", "caption": "x", "ocr": "t"}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([SAME], "--tasks captions", "unknown task 'captions', perhaps 'caption'?"),
        ([SAME], "--tasks events", "gold.jsonl does not judge events, only caption, ocr"),
        ([SAME], "--tasks ocr", "recipe r1 has no answers to ocr: it did not ask"),
        ([SAME], "--by codecs", "unknown slice 'codecs', perhaps 'codec'?"),
        ([SAME], "--fail-under caption.wer=1", "there is no figure 'caption.wer'; there are"),
        ([SAME], "--fail-over caption.exact=1", "of caption.exact, more is better: use --fail-un"),
        ([SAME], "--fail-under caption.exact", "a bar is such as caption.exact=0.9"),
        ([{"media_id": "a", "ocr": "t"}], "", "gold judges ocr; recipe r1 asked none of them"),
        ([{"media_id": "a", "words": "t"}], "", "has no task column: it has media_id, words"),
        ([{"media_id": "a", "caption": None}], "", "judges nothing: caption is null in every"),
        ([], "", "has no task column: it has no columns"),
        ([{"caption": "x"}], "", "line 1: give it a media_id or a uri"),
        ([{"media_id": "q", "caption": "x"}], "", "its media_id is 'q', ...; theirs are 'a', ..."),
        (
            [{"uri": "/q.mp4", "caption": "x"}],
            "",
            "its uri is '/q.mp4', ...; theirs are '/archive/",
        ),
        ([{"media_id": "a", "caption": 5}], "", "line 1: caption must be text, got 5"),
        ([{"media_id": "a", "events": [{"start": 1}]}], "", "element 1 of events has no start_sec"),
        ([{"media_id": "a", "events": [event(4, 3)]}], "", "begins at 4.0 and ends at 3.0 s"),
        ([{"media_id": "a", "objects": [{"label": "a"}]}], "", "element 1 of objects has no box"),
        (
            [{"media_id": "a", "objects": [{"label": "a", "box": [1, 2, 3, 4]}]}],
            "",
            'objects must be a list of {"label": "...", "box": {"x1": 0',
        ),
        (
            [{"media_id": "a", "objects": [{"label": "a", "box": BOX | {"x1": 101}}]}],
            "",
            "has a box whose x1, y1 is not its upper left corner",
        ),
        (
            [{"media_id": "a", "text_spans": [{"text": "a", "box": {"x1": 1}}]}],
            "",
            "has a number that is missing or not finite",
        ),
        ([SAME | {"start_seconds": "soon"}], "", "start_seconds must be a number such as 12.5"),
    ],
)
def test_mistakes_are_one_message(tmp_path: Path, call, rows, options, message):
    write(tmp_path / "out", video("a", caption="x"))
    output, _ = call(*rows, options=options, exit_code=2)
    assert message in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("annotations", "gold", "message"),
    [
        ("nowhere", "gold.jsonl", "there are no annotations below nowhere"),
        ("nowhere.parquet", "gold.jsonl", "there is no file nowhere.parquet"),
        ("plan", "gold.jsonl", "is not an annotation table: it has no media_id and no uri"),
        ("gold.parquet", "gold.jsonl", "gold.parquet is not a readable Parquet file"),
        ("out", "nowhere.jsonl", "there is no gold nowhere.jsonl"),
        ("out", "nowhere", "there is no gold nowhere, or it is neither a .parquet nor"),
        ("out", "gold.parquet", "gold.parquet is not a readable Parquet file"),
        ("out", "two", "two has rows of 2 recipes; gold is one answer for each unit"),
    ],
)
def test_wrong_paths_are_one_message(tmp_path: Path, monkeypatch, annotations, gold, message):
    monkeypatch.chdir(tmp_path)
    write(Path("out"), video("a", caption="x"))
    write(Path("two"), video("a", caption="x"))
    other = RunKey(run_id="other", recipe_id="r2", run_date="2026-11-22")
    write(Path("two"), video("a", caption="x"), key=other)
    Path("gold.jsonl").write_text('{"media_id": "a", "caption": "x"}\n')
    Path("gold.parquet").write_text("no parquet")
    table = pq.read_table(next(Path("out").rglob("*.parquet"))).select(["unit_id"])
    Path("plan").mkdir()
    pq.write_table(table, "plan/part-0.parquet")
    result = CliRunner().invoke(main, ["evaluate", annotations, gold])
    assert result.exit_code == 2
    assert message in result.output


def test_without_the_libraries_it_says_what_to_install(tmp_path: Path, monkeypatch, call):
    write(tmp_path / "out", video("a", caption="x"))
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    output, _ = call(SAME, exit_code=2)
    assert output == "error: evaluate needs sacrebleu: pip install 'reelscribe[evaluate]'\n"


def test_tables_in_a_bucket(s3_env):
    units = (video("a", caption="x"), video("b", caption="y"))
    write(s3_env.uri("out"), *units)
    storage = Storage()
    lines = [{"media_id": m, "caption": "x"} for m in "ab"]
    storage.write_bytes(s3_env.uri("g.jsonl"), "\n".join(map(json.dumps, lines)).encode())
    for gold, exact in (("g.jsonl", 0.5), ("out", 1.0)):
        files = ["--json", s3_env.uri("f.json"), "--markdown", s3_env.uri("f.md")]
        args = ["evaluate", s3_env.uri("out"), s3_env.uri(gold), *files]
        result = CliRunner().invoke(main, args)
        assert result.exit_code == 0, (result.output, result.exception)
        found = json.loads(storage.read_bytes(s3_env.uri("f.json")))
        assert values(found, "caption")["exact"] == exact
        assert b"| all | 2 | 0 |" in storage.read_bytes(s3_env.uri("f.md"))
    result = CliRunner().invoke(main, ["evaluate", s3_env.uri("no"), s3_env.uri("g.jsonl")])
    assert result.exit_code == 2
    assert "there are no annotations below" in result.output


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from jobs.cli import main; main(['evaluate', '-h'], standalone_mode=False);"
        "print({'pyarrow', 'numpy', 'rich', 'jiwer', 'sacrebleu', 'pycocotools'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "--fail-under FIGURE=BAR" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"


def test_the_page_about_it_is_true(tmp_path: Path, monkeypatch):
    page = (ROOT / "docs" / "evaluate.md").read_text()
    gold, command, output = (
        re.search(rf"^```{kind}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)[1]
        for kind in ("json", "bash", "text")
    )
    monkeypatch.chdir(tmp_path)
    Path("gold.jsonl").write_text(gold)
    sign = "A blue sign says gate 12."
    boxes = '[{"bbox_2d": [100, 100, 500, 480], "label": "sign"}]'
    events = (
        '{"00:01.00 - 00:04.20": "the barrier goes up", "00:06.00 - 00:07.00": "a dog barks",'
        ' "00:04.50 - 00:08.80": "a car leaves"}'
    )
    write(
        Path("archive"),
        image("sign-7", 1000, 1000, caption=sign, ocr="EXIT\nGate 17", objects=boxes),
        video("gate-1", caption="The barrier goes up and a red car leaves.", events=events),
        failed("gate-2"),
        video("gate-3", caption="An empty road."),
    )
    result = CliRunner().invoke(main, command.removeprefix("reelscribe ").split())
    assert result.exit_code == 0, result.output
    found = [line.rstrip() for line in result.stdout.splitlines()]
    assert found == output.splitlines(), result.stdout
    for task in METRICS:
        for figure in METRICS[task]([]):
            assert f"`{figure.name}`" in page
