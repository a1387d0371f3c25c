"""The report in a real browser: what is drawn where, filters, many units, hostile text."""

import io
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from jobs.cli.main import main
from jobs.evaluate.unit_scores import score_units
from jobs.report import report
from jobs.results.frames import choose_frames, decode_again, make_sheet, seen_parts
from jobs.results.read import Selection, read_annotations
from pipeline.output.rows import annotation_row
from pipeline.storage.storage import Storage
from pipeline.workers.isolated_decoder import IsolatedDecoder
from schemas.errors import ErrorType, UnitError
from schemas.job.resources import DecodeLimits
from tests.support.browser import needs_browser
from tests.support.clips import number_in, numbered_frames, write_clip
from tests.support.report_page import (
    choose,
    make_report,
    names,
    press,
    rectangle,
    visit,
    wait,
)
from tests.support.units import (
    GREY,
    KEY,
    QUESTIONS,
    RED,
    answer,
    draw_image,
    failed_unit,
    image_unit,
    video_unit,
    write_table,
)

BOX = (160, 90, 320, 270)
BOX_ANSWER = '[{"bbox_2d": [250, 234, 500, 703], "label": "red box"}]'  # BOX in 640 x 384
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"


@needs_browser
def test_boxes_are_where_they_belong(browser, tmp_path: Path):
    unit = image_unit(draw_image(tmp_path / "a.png", BOX), answer("objects", BOX_ANSWER))
    page = make_report(write_table(tmp_path / "out", unit), tmp_path / "r.html", max_side=640)
    visit(browser, page)
    browser.find_element("css selector", ".card").click()
    wait(browser, "document.querySelector('.stage .mark')")
    choose_nothing = "document.querySelector('.stage g').style.visibility = 'hidden'"
    outline, frame = rectangle(browser, ".stage .mark"), rectangle(browser, ".stage svg svg")
    browser.execute_script(choose_nothing)
    picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    scale = frame["width"] / 640
    assert scale == pytest.approx(frame["height"] / 384, rel=0.01)
    edges = {
        "left": frame["left"] + BOX[0] * scale,
        "top": frame["top"] + BOX[1] * scale,
        "right": frame["left"] + BOX[2] * scale,
        "bottom": frame["top"] + BOX[3] * scale,
    }
    # 1/1000 of the picture's sides is the grid of the model's numbers.
    assert {side: outline[side] for side in edges} == pytest.approx(edges, abs=1 + 0.7 * scale)
    middle = (outline["top"] + outline["bottom"]) / 2, (outline["left"] + outline["right"]) / 2
    for step, color in ((4, RED), (-4, GREY)):  # on both sides of each of its edges
        for point in (
            (outline["left"] + step, middle[0]),
            (outline["right"] - step, middle[0]),
            (middle[1], outline["top"] + step),
            (middle[1], outline["bottom"] - step),
        ):
            shown = picture.getpixel(tuple(map(round, point)))
            assert shown == pytest.approx(color, abs=30), (step, point)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seconds, four colours of two seconds each."""
    path = tmp_path_factory.mktemp("clip") / "colors.mp4"
    colors = ["red", "lime", "blue", "white"]
    frames = [Image.new("RGB", (320, 192), colors[k // 20]) for k in range(80)]
    write_clip(path, frames, fps=10)
    return path


EVENTS = """[{"start": "00:00.00", "end": "00:02.00", "caption": "it is red"},
{"start": "00:04.00", "end": "00:06.00", "caption": "it is blue"}]"""


@needs_browser
def test_a_click_on_an_event_shows_its_frame(browser, clip: Path, tmp_path: Path):
    unit = video_unit(clip, answer("caption", "Colours."), answer("events", EVENTS))
    page = make_report(write_table(tmp_path / "out", unit), tmp_path / "r.html", max_frames=16)
    visit(browser, page)
    browser.find_element("css selector", ".card").click()
    film = wait(browser, "[...document.querySelectorAll('.film button')].map(e => e.textContent)")
    assert film == [f"0:0{k / 2:.2f}" for k in range(16)]
    red, blue = browser.find_elements("css selector", ".timeline .event")
    line = rectangle(browser, ".timeline")
    assert blue.rect["x"] == pytest.approx(line["left"] + line["width"] / 2, abs=3)
    assert blue.rect["width"] == pytest.approx(line["width"] / 4, abs=3)
    for event, now, color in ((blue, "4.000 s", (0, 0, 255)), (red, "0.000 s", (255, 0, 0))):
        event.click()
        assert wait(browser, "document.querySelector('.now').textContent") == now
        stage = rectangle(browser, ".stage")
        time.sleep(0.2)  # until it is painted
        picture = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
        middle = stage["left"] + stage["width"] / 2, stage["top"] + stage["height"] / 2
        assert picture.getpixel(tuple(map(round, middle))) == pytest.approx(color, abs=40)
    link = browser.find_element("css selector", "a.original").get_attribute("href")
    assert link == clip.as_uri() + "#t=0.000"
    press(browser, "\ue014")  # arrow right
    assert browser.find_element("css selector", ".now").text == "0.500 s"
    press(browser, "\ue00c")  # escape
    assert browser.execute_script("return document.activeElement.className") == "card"


@needs_browser
def test_hostile_text_stays_text(browser, tmp_path: Path):
    path = draw_image(tmp_path / "<img src=x onerror=alert(1)>.png")
    unit = image_unit(
        path,
        answer("caption", HOSTILE),
        answer("ocr", "{{ 7 * 7 }} <!-- ${1 + 1} \u2028 & &lt;"),
        answer("objects", json.dumps([{"bbox_2d": [1, 1, 9, 9], "label": HOSTILE}])),
        answer("custom", "<script>window.hacked = 3</script>"),
        attributes=json.dumps({"note": HOSTILE, "link": "javascript:window.hacked = 4"}),
    )
    output = write_table(tmp_path / "out", unit, failed_unit("bad", HOSTILE))
    for page in (tmp_path / "r.html", tmp_path / "folder"):
        visit(browser, make_report(output, page))
        browser.execute_script("reelscribe.showTab('charts'); reelscribe.showTab('runs')")
        browser.execute_script("reelscribe.showTab('units')")
        excerpt = wait(browser, "document.querySelector('.excerpt').textContent")
        assert HOSTILE in excerpt
        cards = browser.find_elements("css selector", ".card")
        for card in cards:
            card.click()
            wait(browser, "document.querySelector('dialog[open] .details')")
            assert HOSTILE in browser.find_element("css selector", ".details").text
            press(browser, "\ue00c")
        assert browser.execute_script("return window.hacked") is None
        markup = "img, a[href^=javascript], .excerpt script"
        assert not browser.find_elements("css selector", markup)


@needs_browser
def test_filters_search_and_order(browser, tmp_path: Path):
    paths = [draw_image(tmp_path / f"{name}.png") for name in ("ant", "bee", "cat")]
    units = [
        image_unit(paths[0], answer("caption", "An ant."), answer("objects", BOX_ANSWER)),
        image_unit(paths[1], answer("caption", "A bee."), answer("objects", "no idea")),
        image_unit(paths[2], answer("caption", "A cat."), answer("ocr", "EXIT")),
        failed_unit("dog.png"),
    ]
    gold = tmp_path / "gold.jsonl"
    right = {"ant": "An ant.", "bee": "Quite another thing.", "cat": "A car."}
    gold.write_text(
        "".join(json.dumps({"media_id": k, "caption": v}) + "\n" for k, v in right.items())
    )
    page = make_report(write_table(tmp_path / "out", *units), tmp_path / "r.html", gold)
    visit(browser, page)
    folder = tmp_path.name
    assert names(browser)[:3] == [f"{folder}/{n}.png" for n in ("bee", "cat", "ant")]  # worst first
    choose(browser, "order", "name")
    assert names(browser)[1:] == [f"{folder}/{n}.png" for n in ("ant", "bee", "cat")]
    assert names(browser)[0] == "nowhere/dog.png"
    for name, value, found in (
        ("search", "exit", ["cat"]),
        ("search", "A CA", ["cat"]),
        ("by-status", "failed", ["dog"]),
        ("by-status", "partial", ["bee"]),
        ("by-label", "red box", ["ant"]),
        ("by-task", "ocr", ["cat"]),
        ("by-answer", "unparsed", ["bee"]),
        ("by-error", "media_unreadable", ["dog"]),
        ("search", "nothing is like this", []),
    ):
        choose(browser, name, value)
        assert [Path(n).stem for n in names(browser)] == found, (name, value)
        browser.find_element("css selector", "button[type=reset]").click()
        wait(browser, "document.querySelectorAll('.card').length === 4")
    press(browser, "/")
    assert browser.execute_script("return document.activeElement.id") == "search"


def num_elements(browser) -> int:
    return browser.execute_script("return document.getElementsByTagName('*').length")


@needs_browser
def test_five_thousand_units_do_not_slow_the_page(browser, tmp_path: Path):
    path = draw_image(tmp_path / "a.png", (10, 10, 20, 20), (64, 64))
    units = [
        image_unit(
            path,
            answer("caption", f"Picture number {k}."),
            answer("objects", f'[{{"bbox_2d": [1, 1, 500, 500], "label": "box {k % 7}"}}]'),
            unit_id=f"u{k:05}",
            media_id=f"m{k:05}",
        )
        for k in range(4200, 4600)
    ]
    units += [failed_unit(f"bad-{k}") for k in range(4600)]
    page = make_report(write_table(tmp_path / "out", *units), tmp_path / "report")
    assert len(list((page.parent / "units").iterdir())) == 250
    visit(browser, page)
    wait(browser, "document.querySelector('.card .excerpt').textContent")
    assert num_elements(browser) < 3000  # a page of cards, not all of them
    choose(browser, "search", "number 4321")
    assert browser.find_element("id", "count").text == "1 of 5,000 units"
    browser.find_element("css selector", ".card").click()
    caption = wait(browser, "document.querySelector('.caption')?.textContent")
    assert caption == "Picture number 4321."
    browser.execute_script("reelscribe.filter('search', 'picture')")
    assert num_elements(browser) < 3000
    press(browser, "\ue00c")
    browser.find_element("id", "tab-charts").click()
    wait(browser, "document.querySelectorAll('.chart canvas').length >= 3")


@needs_browser
def test_everything_has_an_accessible_name(browser, clip: Path, tmp_path: Path):
    units = [
        video_unit(clip, answer("caption", "Colours."), answer("events", EVENTS)),
        failed_unit("bad"),
    ]
    visit(browser, make_report(write_table(tmp_path / "out", *units), tmp_path / "r.html"))
    check_names(browser, "header, .filters, .cards")
    browser.execute_script("reelscribe.open(1)")
    wait(browser, "document.querySelector('dialog[open] .film')")
    check_names(browser, "dialog")  # what is behind it is inert, and has no names


def check_names(browser, within: str) -> None:
    controls = [
        control
        for region in browser.find_elements("css selector", within)
        for control in region.find_elements("css selector", "button, input, select, a, svg.frame")
        if control.is_displayed()
    ]
    unnamed = [c.get_attribute("outerHTML")[:200] for c in controls if not c.accessible_name]
    assert len(controls) > 10 and unnamed == []


def luminance(color: str) -> float:
    channels = [int(color[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_has_the_contrast_that_wcag_asks_for(theme: int):
    style = (report.PAGE / "page.css").read_text()
    block = re.findall(r":root[^{]*\{(.*?)\}", style, re.DOTALL)[theme]
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
    pairs = [
        (ink, on) for ink in ("ink", "muted", "accent") for on in ("ground", "surface", "raised")
    ]
    pairs += [(name, f"{name}-tint") for name in ("ok", "partial", "failed")]
    pairs += [("on-accent", "accent"), ("accent", "tint"), ("ink", "failed-tint")]
    for ink, ground in pairs:
        light, dark = sorted([luminance(colors[ink]), luminance(colors[ground])], reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def test_frames_are_those_of_the_run_or_an_error(clip: Path, tmp_path: Path):
    row = annotation_row(video_unit(clip), QUESTIONS, KEY)
    (part,) = seen_parts(row, None)
    decoder = IsolatedDecoder(DecodeLimits(), Storage())
    pixels = decode_again(part, decoder)
    assert pixels.shape == (
        16,
        row["sampling"]["resized_height"],
        row["sampling"]["resized_width"],
        3,
    )
    row["sampling"]["pts_seconds"] = [k / 2 + 0.1 for k in range(16)]
    with pytest.raises(UnitError, match="decoded frames at 0.000") as raised:
        decode_again(seen_parts(row, None)[0], decoder)
    assert raised.value.error_type == ErrorType.MEDIA_CHANGED


def test_the_page_reports_missing_media(clip: Path, tmp_path: Path):
    (tmp_path / "gone.mp4").write_bytes(clip.read_bytes())
    output = write_table(tmp_path / "out", video_unit(tmp_path / "gone.mp4"))
    (tmp_path / "gone.mp4").unlink()
    page = make_report(output, tmp_path / "r.html").read_text()
    assert "gone.mp4 does not exist" in page


def test_frames_with_marks_are_chosen_first():
    times = [k / 2 for k in range(100)]
    assert choose_frames(8, 12, times[:8], []) == list(range(8))
    chosen = choose_frames(100, 4, times, [7.5, 33.0])
    assert len(chosen) == 4 and {15, 66} < set(chosen)
    assert choose_frames(100, 2, times, [1.0, 2.0, 3.0, 4.0]) == [2, 6]


def test_a_sheet_holds_the_frames_in_order():
    frames = np.stack([np.asarray(image) for image in numbered_frames(5)])
    sheet = make_sheet(frames, [0, 2, 4], 160)
    with Image.open(io.BytesIO(sheet.content)) as image:
        for place, number in enumerate(sheet.frames):
            row, column = divmod(place, sheet.columns)
            corner = column * sheet.cell_width, row * sheet.cell_height
            cell = image.crop((*corner, corner[0] + 160, corner[1] + 120)).convert("RGB")
            assert number_in(np.asarray(cell)) == number


def test_units_are_scored_one_by_one(tmp_path: Path):
    units = [
        image_unit(draw_image(tmp_path / "a.png"), answer("objects", BOX_ANSWER)),
        image_unit(draw_image(tmp_path / "b.png"), answer("objects", "[]"), answer("ocr", "EXIT")),
    ]
    gold = tmp_path / "gold.jsonl"
    box = {"x1": 160, "y1": 90, "x2": 320, "y2": 270}
    found = [{"label": "red box", "box": box}]
    gold.write_text(
        json.dumps({"media_id": "a", "objects": found})
        + "\n"
        + json.dumps({"media_id": "b", "objects": [], "ocr": "EXIN"})
    )
    output = write_table(tmp_path / "out", *units)
    table = read_annotations(Selection(uri=str(output)), Storage())
    scored, whole = score_units(table, str(gold), "out", Storage())
    assert scored["a.png"].by_task == {"objects": 1.0}
    assert scored["b.png"].by_task == {"objects": 1.0, "ocr": 0.75}
    assert scored["b.png"].score == 0.875 and set(whole.tasks) == {"objects", "ocr"}


def test_one_message_for_each_mistake(tmp_path: Path):
    output = write_table(tmp_path / "out", failed_unit("a"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    for arguments, message in (
        ([str(tmp_path / "nothing")], "there are no annotations in"),
        ([str(output), "-o", str(tmp_path / "mine")], "has files that are not a report"),
        ([str(output), "--run", "other"], "no row is of run 'other'"),
        ([str(output / "runs" / "other")], "no row is of run 'other'"),
        ([str(output), "--gold", str(tmp_path / "no.jsonl")], "there is no gold"),
    ):
        result = CliRunner().invoke(main, ["report", *arguments])
        assert result.exit_code == 2 and message in result.output, result.output
    assert not list(tmp_path.glob("*.html"))


def test_the_folder_of_a_run_is_enough(tmp_path: Path):
    output = write_table(tmp_path / "out", failed_unit("a"))
    page = tmp_path / "r.html"
    result = CliRunner().invoke(main, ["report", f"{output}/runs/{KEY.run_id}", "-o", str(page)])
    assert result.exit_code == 0 and "1 units" in result.output
