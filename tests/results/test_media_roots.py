"""Media that moved since the run: `--media-root OLD=NEW`."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from jobs.cli.main import main
from jobs.results.media_roots import MediaRoots
from pipeline.storage.storage import Storage
from tests.support.clips import write_clip
from tests.support.units import RED, answer, draw_image, image_unit, video_unit, write_table

BOX = (160, 96, 320, 288)
BOXES = '[{"bbox_2d": [250, 250, 500, 750], "label": "red box"}]'


def call(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """An output whose media were in old/2026/, and are in new/, copied there another day."""
    old = tmp_path / "old" / "2026"
    image, clip = draw_image(old / "a.png", BOX), old / "b.mp4"
    write_clip(clip, [Image.new("RGB", (320, 192), "red")] * 20, fps=10)
    units = [
        image_unit(image, answer("caption", "A box."), answer("objects", BOXES)),
        video_unit(clip, answer("caption", "Red.")),
    ]
    versions = [media_version(path) for path in (image, clip)]
    units = [
        replace(unit, media=replace(unit.media, content_version=version))
        for unit, version in zip(units, versions, strict=True)
    ]
    write_table(tmp_path / "out", *units)
    shutil.copytree(old, tmp_path / "new", copy_function=shutil.copyfile)
    for path in (tmp_path / "new").iterdir():
        os.utime(path, (0, 0))
    shutil.rmtree(tmp_path / "old")
    return tmp_path


def media_version(path: Path) -> str | None:
    with Storage().open_media(str(path)) as media:
        return media.content_version


def root(folder: Path) -> list[str]:
    return ["--media-root", f"{folder}/old/2026={folder}/new"]


def test_show_and_report_decode_them_where_they_are(moved: Path):
    sheet, page = moved / "sheet.png", moved / "page.html"
    show = ("show", moved / "out", "b.mp4", "--contact-sheet", sheet)
    gone = call(*show)
    assert gone.exit_code == 2 and "does not exist" in gone.output
    assert call(*show, *root(moved)).exit_code == 0
    with Image.open(sheet) as image:
        assert image.getpixel((100, 100)) == pytest.approx((254, 0, 0), abs=12)
    report = ("report", moved / "out", "-o", page)
    assert "the media of 2 cannot be read now" in call(*report).output
    found = call(*report, *root(moved))
    assert found.exit_code == 0 and "cannot be read" not in found.output


def test_an_export_has_them_where_they_are(moved: Path):
    folder = moved / "coco"
    result = call("export", moved / "out", "coco", "-o", folder, *root(moved))
    assert result.exit_code == 0 and "left out" not in result.output
    content = json.loads((folder / "annotations.json").read_text())
    assert content["images"][0]["uri"] == f"{moved}/new/a.png"
    with Image.open(next((folder / "images").iterdir())) as image:
        assert image.getpixel((240, 192)) == pytest.approx(RED, abs=12)
    folder = moved / "conversations"
    assert call("export", moved / "out", "conversations", "-o", folder, *root(moved)).exit_code == 0
    lines = map(json.loads, (folder / "conversations.jsonl").read_text().splitlines())
    assert {line.get("image") or line["video"] for line in lines} == {
        f"{moved}/new/a.png",
        f"{moved}/new/b.mp4",
    }


def test_gold_beside_the_moved_media_is_found(moved: Path):
    gold = moved / "new" / "gold.jsonl"
    gold.write_text(json.dumps({"uri": "a.png", "caption": "A box."}) + "\n")
    figures = moved / "figures.json"
    evaluate = ("evaluate", moved / "out", gold, "--json", figures, "--by", "media_type")
    assert call(*evaluate).exit_code == 2
    result = call(*evaluate, *root(moved))
    assert result.exit_code == 0, result.output
    assert json.loads(figures.read_text())["counts"]["gold_rows_without_annotation"] == 0


def test_a_root_of_no_media_and_a_malformed_one_are_messages(moved: Path):
    wrong = call("show", moved / "out", "b.mp4", "--media-root", f"/nowhere={moved}/new")
    assert wrong.exit_code == 2 and "none of the media is below /nowhere" in wrong.output
    assert f"{moved}/old/2026/a.png" in wrong.output
    result = call("show", moved / "out", "b.mp4", "--media-root", "/nowhere")
    assert result.exit_code == 2 and "--media-root takes OLD=NEW" in result.output


def test_a_prefix_may_have_an_equals_sign(tmp_path: Path):
    image = draw_image(tmp_path / "a.png")
    unit = image_unit(image, answer("caption", "x"), uri="s3://b/year=2026/a.png")
    output = write_table(tmp_path / "out", unit)
    arguments = ("--media-root", f"s3://b/year=2026/={tmp_path}", "--contact-sheet")
    result = call("show", output, "a.png", *arguments, tmp_path / "sheet.png")
    assert result.exit_code == 0, result.output


def test_folders_are_whole_and_the_longest_root_counts():
    roots = MediaRoots(pairs=(("/a", "/x"), ("/a/b", "s3://b/y/"), ("s3://old", "/z")))
    assert roots.move("/a/c.png") == "/x/c.png"
    assert roots.move("/a/b/c.png") == "s3://b/y/c.png"
    assert roots.move("/ab/c.png") == "/ab/c.png"
    assert roots.move("s3://old/k.mp4") == "/z/k.mp4"
    source = {"uri": "/a/1.png", "frames": ["/a/1.png", "/a/b/2.png"], "parts": None}
    assert roots.move_sources(source)["frames"] == ["/x/1.png", "s3://b/y/2.png"]
    row = {"uri": "", "media": None, "parts": [{"uri": "/a/1.png", "frames": [], "media": {}}]}
    (found,) = roots.move_rows([row], must_match=False)
    assert found["parts"][0]["uri"] == "/x/1.png"


def test_names_that_are_not_utf8_move_with_the_others():
    roots = MediaRoots(pairs=(("/data/Ä b", "/new"),))
    assert roots.move("/data/Ä b/x.mp4") == "/new/x.mp4"
    assert roots.move("file:///data/%C3%84%20b/Z%FC.mp4") == "file:///new/Z%FC.mp4"
    assert roots.move("file:///data/other/Z%FC.mp4") == "file:///data/other/Z%FC.mp4"
