"""What a model or an archive wrote changes no structure: subtitles, XML, JSON, CSV, the report."""

import csv
import io
import json
import math
import re
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pytest
import srt
import webvtt
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from jobs.cli.main import main
from jobs.console.json_values import json_text
from jobs.export.export import FORMATS
from jobs.export.source import Source
from jobs.export.subtitles import MAX_TOGETHER
from jobs.report.report import render_page
from jobs.results.query_rows import QueryRows, print_csv
from pipeline.output.rows import annotation_row
from pipeline.storage.storage import Storage
from pipeline.workers.isolated_decoder import IsolatedDecoder
from schemas.job.resources import DecodeLimits
from tests.support.units import (
    KEY,
    QUESTIONS,
    answer,
    clip_unit,
    draw_image,
    image_unit,
    sized_image_unit,
    unit,
    write_table,
)


def files(form: str, *rows: dict[str, Any]) -> dict[str, str]:
    """Text files of an export, by name."""
    decoder = IsolatedDecoder(DecodeLimits(), Storage())
    source = Source(rows=list(rows), recipe_ids=["r"], planned={}, decoder=decoder)
    written = FORMATS[form](source)
    return {name: content.decode() for name, content in written if not name.endswith(".jpg")}


def video_row(*found: tuple[float, float, str]) -> dict[str, Any]:
    written = [{"start": a, "end": b, "caption": text} for a, b, text in found]
    return annotation_row(clip_unit("v.mp4", 0.0, 60.0, events=json.dumps(written)), QUESTIONS, KEY)


FORGED = [
    "a\n\n2\n00:00:05,000 --> 00:00:09,000\nforged",
    "a --> b ---> c ------> d",
    "00:00:05.000 --> 00:00:09.000",
    "NOTE x\n\nSTYLE\n::cue {}",
    "<b>bold</b> {\\an8}top {b}",
    "a\x00b\x0bc\x85d\u2028e\u2029f\x1b[31m",
    "WEBVTT",
    "7",
]


@pytest.mark.parametrize("text", FORGED)
def test_a_caption_forges_no_cue(text: str):
    """Read by other libraries: two cues, with their own times, and no markup."""
    row = video_row((2.0, 4.0, text), (10.0, 12.0, "next"))
    (content,) = files("srt", row).values()
    cues = list(srt.parse(content))
    assert [cue.start.total_seconds() for cue in cues] == [2.0, 10.0]
    assert [cue.end.total_seconds() for cue in cues] == [4.0, 12.0]
    assert content.count("-->") == 2
    assert not re.search(r"<[A-Za-z/]|\{[\\A-Za-z]|[\x00-\x09\x0b-\x1f\x7f-\x9f]", content)
    (content,) = files("webvtt", row).values()
    found = list(webvtt.from_buffer(io.StringIO(content)))
    assert [cue.start for cue in found] == ["00:00:02.000", "00:00:10.000"]
    assert content.count("-->") == 2
    assert not re.search(r"<[A-Za-z/]|[\x00-\x09\x0b-\x1f\x7f-\x9f]", content)


def test_text_without_markup_is_kept():
    text = "1 < 2 & {3} > 0 - a->b -- c"
    (content,) = files("srt", video_row((2.0, 4.0, text))).values()
    assert next(iter(srt.parse(content))).content == text


def test_a_thousand_events_at_a_time_do_not_fill_the_file():
    """Each is inside the one before it, so that each moment has more of them."""
    nested = [(k / 50, 59 - k / 50, f"event {k}") for k in range(1000)]
    (content,) = files("srt", video_row(*nested)).values()
    assert len(content) < 200_000
    middle = max((cue.content for cue in srt.parse(content)), key=len).split("\n")
    assert len(middle) == MAX_TOGETHER + 1 and middle[-1] == "…"


@given(label=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12))
def test_a_label_breaks_no_xml(label: str):
    box = {"bbox_2d": [1, 2, 300, 400], "label": f"{label}x"}
    row = annotation_row(
        sized_image_unit((640, 480), answer("objects", json.dumps([box]))), QUESTIONS, KEY
    )
    found = files("labelstudio", row)
    view = ElementTree.fromstring(found["images.xml"])
    (name,) = [each.get("value") for each in view.find("RectangleLabels[@name='objects']")]
    (task,) = json.loads(found["images.json"])
    (result,) = task["predictions"][0]["result"]
    assert result["value"]["rectanglelabels"] == [name]


def refuse(name: str):
    raise AssertionError(f"{name} is not JSON")


NOT_FINITE = [math.nan, math.inf, -math.inf]


@pytest.mark.parametrize("number", NOT_FINITE)
def test_numbers_that_json_lacks_are_null(number: float):
    value = {"a": [number, (1.5, number)], "b": {"c": number}}
    assert json.loads(json_text(value), parse_constant=refuse) == {
        "a": [None, [1.5, None]],
        "b": {"c": None},
    }


@pytest.mark.parametrize("number", NOT_FINITE)
def test_the_report_is_read_whatever_a_table_holds(number: float):
    """A browser reads no part of JSON that has one NaN."""
    data = dict.fromkeys(["title", "recipe", "version", "evaluation"], "x")
    data |= {"units": [{"start": number}], "runs": [], "videos": [], "units_per_piece": 1}
    page = render_page(data, {"units": [[{"marks": [{"box": [number, 1.0]}]}]]})
    scripts = re.findall(r'<script type="application/json" id="([^"]+)">(.*?)</script>', page)
    read = {name: json.loads(unescape(text), parse_constant=refuse) for name, text in scripts}
    assert read["data"]["units"] == [{"start": None}]
    assert read["piece-units-0"] == [{"marks": [{"box": [None, 1.0]}]}]


@pytest.mark.parametrize("number", NOT_FINITE)
def test_exports_are_json_whatever_a_table_holds(number: float):
    row = annotation_row(sized_image_unit((640, 480), answer("caption", "A cat.")), QUESTIONS, KEY)
    row["sampling"]["end_seconds"] = row["media"]["begin_seconds"] = number
    text = files("labelstudio", row)["images.json"]
    (task,) = json.loads(text, parse_constant=refuse)
    assert task["data"]["end_seconds"] is None


@pytest.mark.parametrize("number", NOT_FINITE)
def test_a_box_without_finite_numbers_is_left_out(number: float, tmp_path: Path):
    found = [{"bbox_2d": [k, 2, 300, 400], "label": "x"} for k in (1, 100)]
    image = image_unit(draw_image(tmp_path / "a.png"), answer("objects", json.dumps(found)))
    row = annotation_row(image, QUESTIONS, KEY)
    row["objects"][0]["box"]["x2"] = number
    for form, name in (("yolo", "labels/train/000000-a.txt"), ("coco", "annotations.json")):
        text = files(form, row)[name]
        boxes = text.splitlines() if form == "yolo" else json.loads(text)["annotations"]
        assert len(boxes) == 1


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+2", "'=1+2"),
        ('=HYPERLINK("http://a")', '\'=HYPERLINK("http://a")'),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-2+3+cmd", "'-2+3+cmd"),
        ("\t=1", "'\t=1"),
        ("\r=1", "'\r=1"),
        ("＝1+1", "'＝1+1"),
        ("-5", "-5"),
        ("+1.5", "+1.5"),
        ("-", "-"),
        ("a=1", "a=1"),
        ("", ""),
    ],
)
def test_csv_has_no_formula(text: str, cell: str):
    out = io.StringIO()
    found = pa.table({"text": [text], "number": [-5], "list": [[text]]})
    print_csv(QueryRows(found), Console(file=out))
    (row,) = csv.DictReader(io.StringIO(out.getvalue(), newline=""))
    assert (row["text"], row["number"], json.loads(row["list"])) == (cell, "-5", [text])


def test_csv_of_a_table(tmp_path: Path):
    given = unit(answer("caption", "=1+2"), unit_id="u1")
    output = write_table(tmp_path / "out", given)
    query = "SELECT caption FROM latest"
    for form, wanted in (("csv", "caption\n'=1+2\n"), ("json", '[\n{"caption": "=1+2"}\n]\n')):
        result = CliRunner().invoke(main, ["sql", str(output), query, "--format", form])
        assert result.output == wanted
