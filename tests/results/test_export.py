"""Exports, each read by its format's own library; and corrected labels, back as gold."""

import io
import json
import math
import shutil
import tarfile
from pathlib import Path

import duckdb
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image

from jobs.cli.main import main
from jobs.cli.results import EXPORTS
from jobs.evaluate.gold import read_gold
from jobs.evaluate.unit_scores import score_units
from jobs.export.export import FORMATS
from jobs.results.read import Selection, read_annotations
from pipeline.storage.storage import Storage
from pipeline.training.data.read import read_data
from schemas.conversation import Conversation
from schemas.job.finetune import DataSpec
from schemas.job.job import check_job
from tests.support.clips import write_clip
from tests.support.units import (
    RED,
    answer,
    draw_image,
    failed_unit,
    image_unit,
    video_unit,
    write_table,
)

BOX = (160, 96, 320, 288)
IMAGE_BOX = '[{"bbox_2d": [250, 250, 500, 750], "label": "red box"}]'  # BOX in 640 x 384
VIDEO_BOXES = """[{"time": 1.0, "bbox_2d": [0, 0, 500, 1000], "label": "left half"},
{"time": 3.0, "bbox_2d": [500, 0, 1000, 1000], "label": "right half"}]"""
EVENTS = """[{"start": "00:00.00", "end": "00:02.00", "caption": "1 < 2 & so on --> end"},
{"start": "00:03.00", "end": "00:03.00", "caption": "a blink"}]"""
SPANS = """[{"time": 1.0, "bbox_2d": [0, 0, 900, 100], "text_content": "EXIT"},
{"time": 1.0, "bbox_2d": [0, 200, 900, 300], "text_content": "<b>Gate</b>"}]"""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image, a clip whose PTS begin at 1.5 s, and a unit that failed."""
    folder = tmp_path_factory.mktemp("exported")
    clip = folder / "red then blue.mp4"
    frames = [Image.new("RGB", (320, 192), "red" if k < 20 else "blue") for k in range(40)]
    write_clip(clip, frames, fps=10, start_seconds=1.5)
    units = (
        image_unit(
            draw_image(folder / "café.png", BOX),
            answer("caption", "A red box."),
            answer("objects", IMAGE_BOX),
            answer("text_spans", '[{"bbox_2d": [0, 0, 100, 100], "text_content": "NO"}]'),
        ),
        video_unit(
            clip,
            answer("caption", "Red, then blue."),
            answer("events", shifted(EVENTS, 1.5)),
            answer("objects", shifted(VIDEO_BOXES, 1.5)),
            answer("text_spans", shifted(SPANS, 1.5)),
        ),
        failed_unit("broken.mp4"),
    )
    return write_table(folder / "out", *units)


def shifted(text: str, seconds: float) -> str:
    """The same answer about a video whose times begin later."""
    elements = json.loads(text)
    for element in elements:
        for key in ("start", "end"):
            if key in element:
                element[key] = f"00:{float(element[key][3:]) + seconds:05.2f}"
        if "time" in element:
            element["time"] += seconds
    return json.dumps(elements)


def export(output: Path, form: str, folder: Path) -> Path:
    result = CliRunner().invoke(
        main, ["export", str(output), form, "-o", str(folder)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return folder


def test_the_command_names_all_formats():
    assert list(EXPORTS) == list(FORMATS)


def test_coco(output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from pycocotools.coco import COCO

    folder = export(output, "coco", tmp_path / "coco")
    coco = COCO(str(folder / "annotations.json"))
    names = {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())}
    assert sorted(names.values()) == ["left half", "red box", "right half"]
    found = {}
    for annotation in coco.loadAnns(coco.getAnnIds()):
        (image,) = coco.loadImgs([annotation["image_id"]])
        with Image.open(folder / "images" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
            x, y, width, height = annotation["bbox"]
            middle = picture.convert("RGB").getpixel((round(x + width / 2), round(y + height / 2)))
        found[names[annotation["category_id"]]] = (image["pts_seconds"], middle)
    assert found["red box"][0] is None and found["red box"][1] == pytest.approx(RED, abs=12)
    # The frames are those that the answers were about: red at 2.5 s, blue at 4.5 s.
    assert found["left half"] == (2.5, pytest.approx((254, 0, 0), abs=12))
    assert found["right half"] == (4.5, pytest.approx((0, 0, 254), abs=12))
    (box,) = coco.loadAnns(coco.getAnnIds(catIds=coco.getCatIds(catNms=["red box"])))
    assert box["bbox"] == [160, 96, 160, 192] and box["area"] == 160 * 192


def test_yolo_follows_its_stated_rules(output: Path, tmp_path: Path):
    """A line for each box: class, centre and size in 0..1; a label file for each image."""
    folder = export(output, "yolo", tmp_path / "yolo")
    data = yaml.safe_load((folder / "data.yaml").read_text())
    images = sorted((folder / data["train"]).iterdir())
    labels = sorted((folder / "labels" / "train").iterdir())
    assert [p.stem for p in images] == [p.stem for p in labels] and len(images) == 3
    lines = [line.split() for path in labels for line in path.read_text().splitlines()]
    by_name = {data["names"][int(kind)]: list(map(float, rest)) for kind, *rest in lines}
    assert by_name["red box"] == [0.375, 0.5, 0.25, 0.5]
    assert by_name["right half"] == [0.75, 0.5, 0.5, 1.0]


def test_classes_have_the_numbers_of_the_jobs_labels(output: Path, tmp_path: Path):
    """As Ultralytics and COCO number them: by position, also for labels without a box."""
    table = tmp_path / "out"
    shutil.copytree(output, table)
    files = f"{table}/annotations/*/*.parquet"
    ((run,),) = duckdb.sql(f"SELECT DISTINCT run_id FROM '{files}'").fetchall()
    tasks = ["caption", {"points": {"labels": ["a point"]}}]
    tasks.append({"objects": {"labels": ["right half", "unused", "red box"]}})
    job = check_job({"input": {"scan": "x"}, "output": "y", "tasks": tasks}, "test")
    content = {"created_at": "2026-01-01", "job": job.public_dict()}
    (table / "runs" / run).mkdir(parents=True)
    (table / "runs" / run / "run.json").write_text(json.dumps(content))
    names = ["right half", "unused", "red box", "left half"]
    folder = export(table, "yolo", tmp_path / "yolo")
    assert yaml.safe_load((folder / "data.yaml").read_text())["names"] == dict(enumerate(names))
    folder = export(table, "coco", tmp_path / "coco")
    found = json.loads((folder / "annotations.json").read_text())["categories"]
    assert found == [{"id": k, "name": name} for k, name in enumerate(names, 1)]


def test_webvtt(output: Path, tmp_path: Path):
    import webvtt

    folder = export(output, "webvtt", tmp_path / "vtt")
    files = {path.name.split(".")[-2]: path for path in folder.iterdir()}
    assert set(files) == {"events", "captions", "text"}
    events = webvtt.read(files["events"])
    # Players count from the first frame, whose PTS is 1.5 s here.
    assert [(c.start, c.end) for c in events] == [
        ("00:00:00.000", "00:00:02.000"),
        ("00:00:03.000", "00:00:03.500"),
    ]
    assert "1 &lt; 2 &amp; so on" in events[0].raw_text and events[1].text == "a blink"
    (text,) = webvtt.read(files["text"])
    assert (text.start, text.end) == ("00:00:01.000", "00:00:01.500")
    assert text.raw_text == "EXIT\n&lt;b&gt;Gate&lt;/b&gt;"
    (caption,) = webvtt.read(files["captions"])
    assert caption.text == "Red, then blue." and caption.start == "00:00:00.000"


def test_srt(output: Path, tmp_path: Path):
    import srt

    folder = export(output, "srt", tmp_path / "srt")
    (path,) = folder.glob("*.events.srt")
    cues = list(srt.parse(path.read_text()))
    assert [(c.start.total_seconds(), c.end.total_seconds(), c.content) for c in cues] == [
        (0.0, 2.0, "1 < 2 & so on -> end"),
        (3.0, 3.5, "a blink"),
    ]


def test_conversations_are_read_back_as_training_data(output: Path, tmp_path: Path):
    folder = export(output, "conversations", tmp_path / "conversations")
    examples = read_data(DataSpec(conversations=str(folder / "conversations.jsonl")), Storage())
    assert len(examples) == 7 and all(isinstance(each, Conversation) for each in examples)
    answers = [each.turns[-1].parts[0] for each in examples]
    assert "A red box." in answers
    (box,) = [text for text in answers if "red box" in text and "bbox_2d" in text]
    assert json.loads(box.strip("`json\n"))[0]["bbox_2d"] == [250, 250, 500, 750]
    (events,) = [text for text in answers if "a blink" in text]
    assert "00:04.50" in events


# The library leaves its files to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset(output: Path, tmp_path: Path):
    import webdataset

    folder = export(output, "webdataset", tmp_path / "shards")
    (shard,) = folder.iterdir()
    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False).decode("pil"))
    assert [sample["txt"] for sample in samples] == ["A red box.", "Red, then blue."]
    image, clip = samples
    assert image["frame-000.jpg"].getpixel((240, 192)) == pytest.approx(RED, abs=12)
    times = clip["json"]["sampling"]["pts_seconds"]
    assert len([key for key in clip if key.startswith("frame-")]) == len(times) == 8
    assert clip["frame-000.jpg"].getpixel((5, 5))[0] > 200
    assert clip["frame-007.jpg"].getpixel((5, 5))[2] > 200
    with tarfile.open(shard) as tar:
        assert all(name.isascii() for name in tar.getnames())


def test_hugging_face_datasets(output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")  # not installed for make test-fast

    folder = export(output, "huggingface", tmp_path / "hf")
    data = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert data["caption"][:] == ["A red box.", "Red, then blue."]
    assert [len(frames) for frames in data["frames"]] == [1, 8]
    assert data[0]["frames"][0].convert("RGB").getpixel((240, 192)) == pytest.approx(RED, abs=12)
    assert data[1]["events"][1]["caption"] == "a blink"


NO_BOXES = "pictures with boxes of objects or tracks, and these"
NOT_READ = "the frames of units whose media can be read now"


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("coco", NO_BOXES),
        ("yolo", NO_BOXES),
        ("webvtt", "events, captions and text of videos"),
        ("srt", "events, captions and text of videos"),
        ("conversations", "answers about whole images and videos"),
        ("webdataset", NOT_READ),
        ("huggingface", NOT_READ),
        ("labelstudio", "answers about images and videos"),
    ],
)
def test_a_table_that_has_nothing_for_a_format_is_an_error(form: str, message: str, tmp_path: Path):
    units = [failed_unit("broken.mp4")]
    if form in ("coco", "yolo", "webvtt", "srt", "webdataset"):
        image = draw_image(tmp_path / "a.png")
        units.append(image_unit(image, answer("caption", "A box."), answer("objects", "[]")))
        if form == "webdataset":
            image.unlink()
    output = write_table(tmp_path / "out", *units)
    folder = tmp_path / "exported"
    result = CliRunner().invoke(main, ["export", str(output), form, "-o", str(folder)])
    assert result.exit_code == 2, result.output
    assert message in result.output and not folder.exists()
    if len(units) > 1:
        assert "they answer caption, objects" in result.output


def corrected(tasks: list[dict], change) -> list[dict]:
    """What Label Studio exports once a person submitted each prediction, after a change."""
    for task in tasks:
        results = json.loads(json.dumps(task.pop("predictions")[0]["result"]))
        change(results)
        task["annotations"] = [{"result": results, "was_cancelled": False}]
    return tasks


def test_label_studio_and_back(output: Path, tmp_path: Path):
    folder = export(output, "labelstudio", tmp_path / "labels")
    (task,) = json.loads((folder / "images.json").read_text())
    box = next(r for r in task["predictions"][0]["result"] if r["from_name"] == "objects")
    assert box["value"] == {
        "x": 25.0,
        "y": 25.0,
        "width": 25.0,
        "height": 50.0,
        "rotation": 0,
        "rectanglelabels": ["red box"],
    }

    def change(results):
        for result in results:
            if result["from_name"] == "caption":
                result["value"]["text"] = ["Corrected."]

    tasks = [
        each
        for name in ("images.json", "videos.json")
        for each in corrected(json.loads((folder / name).read_text()), change)
    ]
    (tmp_path / "export.json").write_text(json.dumps(tasks))
    gold = tmp_path / "gold.jsonl"
    result = CliRunner().invoke(
        main, ["import-labels", str(tmp_path / "export.json"), "-o", str(gold)]
    )
    assert result.exit_code == 0 and "2 rows of gold" in result.output
    rows = read_gold(str(gold), Storage()).rows
    assert [row.answers["caption"] for row in rows] == ["Corrected.", "Corrected."]
    table = read_annotations(Selection(uri=str(output)), Storage())
    scored, _ = score_units(table, str(gold), "out", Storage())
    image, clip = scored["café.png"].by_task, scored["red then blue.mp4"].by_task
    # What was not changed is right, to the box and to the second.
    assert image["objects"] == image["text_spans"] == clip["events"] == 1.0
    assert image["caption"] < 1 and math.isclose(clip["caption"], image["caption"], abs_tol=0.3)


@pytest.mark.parametrize(
    "content", ["{}", "[1]", '[{"data": {}}]', "nothing", '[{"annotations": [{"result": 1}]}]']
)
def test_a_file_that_is_no_label_studio_export_is_an_error(tmp_path: Path, content: str):
    (tmp_path / "x.json").write_text(content)
    arguments = ["import-labels", str(tmp_path / "x.json"), "-o", str(tmp_path / "gold.jsonl")]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, content) == (0, "{}") or (
        result.exit_code == 2 and "is not the JSON export" in result.output
    )


def test_rows_that_are_left_out_are_counted(output: Path, tmp_path: Path):
    for form, reason in (("srt", "1: not a video"), ("conversations", "1: failed")):
        result = CliRunner().invoke(main, ["export", str(output), form, "-o", str(tmp_path / form)])
        assert result.exit_code == 0 and reason in result.output
    again = CliRunner().invoke(main, ["export", str(output), "srt", "-o", str(tmp_path / "srt")])
    assert again.exit_code == 2 and "is not empty" in again.output
    assert io.StringIO(again.output).readline().startswith("error: ")
