"""The report's views: whole videos, conversations, runs, notes and errors, narrow screens."""

import dataclasses
import json
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from jobs.plan.runs import Run
from jobs.report.videos import video_values
from jobs.run.items import item_row
from pipeline.media.decode import decode_unit
from pipeline.output.rows import ITEM, annotation_row
from pipeline.storage.parquet import write_parquet
from pipeline.storage.storage import Storage
from schemas.tables.item import item_id
from schemas.tables.unit import AnsweredUnit
from tests.support import clips
from tests.support.browser import needs_browser
from tests.support.job_files import make_job
from tests.support.report_page import choose, make_report, names, press, rectangle, visit, wait
from tests.support.units import (
    KEY,
    QUESTIONS,
    answer,
    clip_unit,
    draw_image,
    failed_unit,
    image_unit,
    unit,
    write_table,
)

SUMMARY = "A film in three colours, from red to blue."
NOTE = "the header promises 19.0 s, the last frame ends at 18.0 s"
MESSAGES = [
    {"role": "system", "content": "Answer briefly."},
    {"role": "user", "content": [{"type": "text", "text": "What is the capital of France?"}]},
]


def window(path: Path, start: float, end: float, *answers, **fields) -> AnsweredUnit:
    """A window of a clip, planned and decoded as the pipeline does it."""
    planned = clips.video_unit(path, start=start, end=end)
    sampling = decode_unit(planned, Storage()).sampling(planned.sampling)
    given = {"media": planned.media, "sampling": sampling, "unit_id": f"{path.stem}-{start:g}"}
    return unit(*answers, **(given | {"media_id": path.stem, "uri": str(path)} | fields))


def events(*found: tuple[float, float, str]) -> str:
    listed = [{"start": f"{a:.2f}", "end": f"{b:.2f}", "caption": c} for a, b, c in found]
    return json.dumps(listed)


def conversation(**fields) -> AnsweredUnit:
    given = {"unit_id": "q1", "media_id": "question-1", "uri": "", "media": None, "sampling": None}
    return unit(answer("chat", "Paris."), **(given | {"messages": json.dumps(MESSAGES)} | fields))


def write_items(output: Path, units: list[AnsweredUnit], **fields) -> None:
    """Write the row of a whole video, as the driver makes it of the units' rows."""
    rows = [annotation_row(each, QUESTIONS, KEY) for each in units]
    ids = {"item_id": item_id("i1", [row["unit_id"] for row in rows]), "items_id": "i1"}
    names = ids | {"run_id": KEY.run_id, "recipe_id": KEY.recipe_ids.video}
    table = pa.Table.from_pylist([item_row(rows, names) | fields], schema=ITEM)
    folder = output / "items" / f"run_date={KEY.run_date}"
    write_parquet(table, str(folder / f"part-{KEY.run_id}-i1-{len(rows)}.parquet"), Storage())


def write_run(output: Path, **fields) -> None:
    run = Run(
        run_id=KEY.run_id,
        name="test",
        run_date=KEY.run_date,
        status="complete",
        fingerprint={"recipe": KEY.recipe_ids.video},
        recipe={"weights": "abc"},
        created_at="2026-11-22T20:15:00+00:00",
        counts={"units": 6, "status": {"ok": 4, "failed": 2}, "errors": {"media_unreadable": 1}},
        machines=[{"num": 2, "cpus": 16.0, "gpus": 1.0, "memory_gib": 120, "gpu": "H200"}],
        actors={"decoders": 4, "engines": 2},
        **fields,
    )
    run.save(make_job(output=str(output), budget={"unit_tokens": 4096}), Storage())


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of three windows, one of which failed; a conversation, images, a retried run."""
    folder = tmp_path_factory.mktemp("archive")
    film = folder / "clips" / "a film with a name that is much longer than a card is wide.mp4"
    film.parent.mkdir()
    colors = ["red", "lime", "blue"]
    pictures = [Image.new("RGB", (320, 192), colors[k // 30]) for k in range(90)]
    clips.write_clip(film, pictures, fps=5)
    first = window(
        film, 0, 6, answer("caption", "It is red."), answer("events", events((1, 2.5, "a flash")))
    )
    failed = failed_unit(f"{film.stem}-6", "the engine stopped")
    windows = [
        dataclasses.replace(first, media=dataclasses.replace(first.media, notes=(NOTE,))),
        dataclasses.replace(
            window(film, 6, 12),
            status="failed",
            error=dataclasses.replace(failed.error, stage="engine", type="engine_failed"),
        ),
        window(
            film,
            12,
            18,
            answer("caption", "It is blue."),
            answer("events", events((13, 17, "waves"))),
        ),
    ]
    units = [
        *windows,
        conversation(),
        image_unit(draw_image(folder / "images" / "a.png"), answer("caption", "A red box.")),
        failed_unit("broken.mp4"),
    ]
    output = write_table(folder / "out", *units)
    write_items(output, windows, summary=SUMMARY)
    write_run(
        output,
        starts=3,
        seconds=20.0,
        num_units=2,
        num_output_tokens=40,
        left_out=["2 files .hif", "1 link that leads nowhere"],
    )
    return output


@pytest.fixture(scope="module")
def page(output: Path, tmp_path_factory) -> Path:
    return make_report(output, tmp_path_factory.mktemp("page") / "r.html")


def text(browser, selector: str) -> str:
    return wait(browser, "document.querySelector(arguments[0])?.innerText", selector)


def open_tab(browser, name: str) -> None:
    browser.find_element("id", f"tab-{name}").click()


@needs_browser
def test_windows_of_one_video_are_told_apart_by_their_times(browser, page: Path):
    visit(browser, page)
    times = [
        card.find_element("css selector", "time").text
        for card in browser.find_elements("css selector", ".card")
        if "a film" in card.text
    ]
    assert times == ["0:00-0:06", "0:06-0:12", "0:12-0:18"]
    choose(browser, "search", "it is blue")
    browser.find_element("css selector", ".card").click()
    assert text(browser, "#unit-title").endswith("0:12-0:18")
    title, time = rectangle(browser, "#unit-title"), rectangle(browser, "#unit-title time")
    assert time["right"] <= title["right"] + 1  # not cut by the ellipsis of the long name


@needs_browser
def test_a_video_is_shown_as_a_whole(browser, page: Path):
    visit(browser, page)
    open_tab(browser, "videos")
    assert text(browser, ".video .caption") == SUMMARY
    (video,) = browser.find_elements("css selector", ".video")
    assert "partial" in video.text and "3 units, 1 failed" in video.text
    chapters, units = (
        [line.text.replace("\n", " ") for line in each.find_elements("css selector", "li")]
        for each in video.find_elements("css selector", ".list")
    )
    assert chapters == ["0:01.0-0:02.5 a flash", "0:13-0:17 waves"]
    assert [line.split()[0] for line in units] == ["0:00-0:06", "0:06-0:12", "0:12-0:18"]
    assert "It is red." in units[0] and "engine_failed" in units[1]
    bars = browser.find_elements("css selector", ".video .window")
    line = rectangle(browser, ".video .timeline")
    for k, bar in enumerate(bars):
        assert bar.rect["x"] == pytest.approx(line["left"] + k * line["width"] / 3, abs=3)
        assert bar.rect["width"] == pytest.approx(line["width"] / 3, abs=3)
    video.find_elements("css selector", ".list button")[1].click()  # waves, in the third window
    assert text(browser, "#unit-title").endswith("0:12-0:18")
    browser.find_element("css selector", ".whole").click()
    assert wait(browser, "!document.querySelector('dialog').open")
    assert browser.find_element("id", "videos").is_displayed()


@needs_browser
def test_a_folder_loads_the_details_of_videos(browser, output: Path, tmp_path: Path):
    visit(browser, make_report(output, tmp_path / "report"))
    open_tab(browser, "videos")
    assert text(browser, ".video .caption") == SUMMARY


def test_a_video_has_the_row_of_exactly_its_units():
    """Not that of a later run of fewer units, nor that of an earlier run of the same ones."""
    units = [annotation_row(clip_unit("m", k, k + 5), QUESTIONS, KEY) for k in (0, 5, 10)]

    def item(run: str, summary: str, *seen: dict) -> dict:
        ids = {"item_id": item_id("i1", [row["unit_id"] for row in seen]), "items_id": "i1"}
        return item_row(seen, ids | {"run_id": run, "recipe_id": "r1"}) | {"summary": summary}

    items = [item("a", "old", *units), item("b", "new", *units), item("c", "less", *units[:2])]
    created = {"a": "2026-01-01", "b": "2026-02-01", "c": "2026-03-01"}
    for given, found in (
        (items, "new"), (items[::-1], "new"), (items[:1], "old"), (items[2:], "less"), ([], None),
    ):  # fmt: skip
        (entry,), (details,) = video_values(units, {"m": given}, created, {})
        assert details["summary"] == found
        assert entry["units"] == [0, 1, 2] and (entry["start"], entry["end"]) == (0, 15)
    copies = [
        unit | {"unit_id": f"copy-{k}", "media_id": "other"}
        | {"copied_from": {name: unit[name] for name in ("unit_id", "media_id", "uri")}}
        for k, unit in enumerate(units)
    ]  # fmt: skip
    _, (details,) = video_values(copies, {"m": items, "other": items[2:]}, created, {})
    assert details["summary"] == "new"
    replaced = [u | {"media": u["media"] | {"content_version": "later"}} for u in units]
    _, (details,) = video_values(replaced[:1], {"m": items}, created, {})
    assert details["summary"] is None


@needs_browser
def test_a_summary_is_found_by_the_search(browser, page: Path):
    visit(browser, page)
    open_tab(browser, "videos")
    for words, found in (("three colours", 1), ("waves", 1), ("capital of", 0)):
        choose(browser, "search", words)
        assert wait(
            browser, "document.querySelectorAll('.video').length === arguments[0]", found
        ), words


@needs_browser
def test_a_conversation_without_media_is_no_failure(browser, page: Path):
    visit(browser, page)
    choose(browser, "by-type", "conversation")
    assert names(browser) == ["question-1"]
    card = browser.find_element("css selector", ".card")
    wait(browser, "document.querySelector('.card .excerpt').textContent")
    assert "capital of France" in card.text and "Paris." in card.text
    assert "could not be read" not in card.text
    card.click()
    dialog = text(browser, "dialog .sides")
    assert "could not be read" not in dialog and "CAPTION" not in dialog.upper()
    turns = browser.find_elements("css selector", ".turn")
    assert [turn.text.split("\n") for turn in turns] == [
        ["system", "Answer briefly."],
        ["user", "What is the capital of France?"],
    ]
    headings = [h.text for h in browser.find_elements("css selector", ".details h3")]
    assert headings[0] == "ANSWER"


@needs_browser
def test_errors_notes_and_what_the_scan_left_out_stand_on_the_first_page(browser, page: Path):
    visit(browser, page)
    remarks = text(browser, "#remarks").replace("\n", " ")
    assert "engine_failed 1" in remarks and "media_unreadable 1" in remarks
    assert "with notes 1" in remarks
    assert "2 files .hif" in remarks and "1 link that leads nowhere" in remarks
    browser.find_element("css selector", "#remarks .pill.partial").click()
    assert browser.find_element("id", "count").text == "1 of 6 units"
    browser.find_element("css selector", ".card").click()
    assert text(browser, "dialog .notes") == NOTE
    press(browser, "\ue00c")


@needs_browser
def test_throughput_is_that_of_the_last_start(browser, page: Path):
    """Two units in the last start's 20 seconds; the four of earlier starts do not count."""
    visit(browser, page)
    figures = [f.text for f in browser.find_elements("css selector", ".figure")]
    (rate,) = [figure for figure in figures if "/ min" in figure]
    assert rate.startswith("6 / min")
    assert "units in the last start: 2 in 20 s, 2 tokens/s out" in rate


@needs_browser
def test_a_run_is_tables_and_its_file_is_folded(browser, page: Path):
    visit(browser, page)
    open_tab(browser, "runs")
    tables = {
        section.find_element("css selector", "h3").text.lower(): dict(
            [cell.text for cell in row.find_elements("css selector", "th, td")][:2]
            for row in section.find_elements("css selector", "tr")
            if len(row.find_elements("css selector", "th, td")) > 1
        )
        for section in browser.find_elements("css selector", ".run .facts-table")
    }
    assert tables["units by status"] == {"ok": "4", "failed": "2"}
    assert tables["errors"] == {"media_unreadable": "1"}
    assert tables["times"]["created"] == "2026-11-22 20:15:00 UTC"
    assert tables["times"]["done by the last start"] == "2 units (6 a minute)"
    assert tables["machines"] == {
        "2 ×": "16 CPUs, 1 GPU (H200), 120 GiB of memory",
        "decoders": "4",
        "engines": "2",
    }
    assert tables["budget"]["unit_tokens"] == "4096"
    raw = browser.find_element("css selector", ".run pre")
    assert not raw.is_displayed() and '"weights": "abc"' in raw.get_attribute("textContent")


@needs_browser
@pytest.mark.parametrize("width", [360, 500, 900, 1400])
def test_every_view_fits_its_screen(browser, page: Path, width: int):
    """Nothing is wider than the window; the title is one line, and the subtitle another."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    try:
        visit(browser, page)
        assert browser.execute_script("return innerWidth") == width
        for tab in ("units", "videos", "charts", "runs"):
            browser.execute_script("reelscribe.showTab(arguments[0])", tab)
            wide = browser.execute_script(WIDER)
            assert wide == [], (tab, wide)
        assert rectangle(browser, ".title h1")["height"] < 32
        assert rectangle(browser, "#subtitle")["height"] < 26
        assert rectangle(browser, ".top")["height"] < 130
        browser.execute_script("reelscribe.showTab('units'); reelscribe.open(2)")
        wait(browser, "document.querySelector('dialog[open] .film button')")
        assert rectangle(browser, "#unit-title")["height"] < 32
        assert rectangle(browser, "#unit-title time")["right"] <= width
        dialog = rectangle(browser, "dialog")
        for inside in (".stage", ".film", ".timeline", ".bar", ".details", ".unit > header"):
            box = rectangle(browser, f"dialog {inside}")
            assert box["width"] > 0.25 * dialog["width"], inside
            assert dialog["left"] <= box["left"] and box["right"] <= dialog["right"], inside
        assert rectangle(browser, "#unit-title .file")["width"] > 150
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


WIDER = """
const scrolls = (e) => e && (/auto|hidden|scroll/.test(getComputedStyle(e).overflowX) || scrolls(e.parentElement));
return [...document.querySelectorAll('body *')].filter((e) => {
  const box = e.getBoundingClientRect();
  return box.width && box.right > innerWidth + 1 && !scrolls(e.parentElement);
}).map((e) => e.outerHTML.slice(0, 120));
"""  # noqa: E501


@needs_browser
@pytest.mark.parametrize("slow", [0.02, 5.0])
def test_points_of_the_throughput_chart_are_spread(browser, tmp_path: Path, slow: float):
    """Fifty units of 10 to 59 tokens and a tenth of a second; one of them may take 5 s."""
    path = draw_image(tmp_path / "a.png", (10, 10, 20, 20), (64, 64))
    units = [
        image_unit(
            path,
            answer("caption", "x", num_output_tokens=10 + k),
            unit_id=f"u{k}",
            media_id=f"m{k}",
            engine_seconds=slow if k == 25 else 0.05 + k / 500,
        )
        for k in range(50)
    ]
    visit(browser, make_report(write_table(tmp_path / "out", *units), tmp_path / "r.html"))
    browser.execute_script("reelscribe.showTab('charts')")
    places, area = browser.execute_script(
        "const canvas = [...document.querySelectorAll('.chart')]"
        ".find((f) => f.textContent.startsWith('Throughput')).querySelector('canvas');"
        "const chart = Chart.getChart(canvas);"
        "return [chart.getDatasetMeta(0).data.map((p) => [p.x, p.y]), chart.chartArea]"
    )
    for axis, start, end in ((0, area["left"], area["right"]), (1, area["top"], area["bottom"])):
        values = sorted(place[axis] for place in places)
        assert start <= values[0] and values[-1] <= end
        middle = values[40] - values[9]  # of 32 of 50 points
        assert middle > 0.1 * (end - start), axis
        assert values[-1] - values[0] > 0.6 * (end - start), axis
