"""Comparing an annotation table with gold: rows, slices, mistakes, and the command."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from jobs.cli.main import main
from jobs.evaluate.metrics import METRICS
from pipeline.storage.storage import Storage
from schemas.tables.unit import AnsweredUnit, RawAnswer
from tests.support.gold import event
from tests.support.paths import ROOT
from tests.support.run_key import run_key
from tests.support.units import answer, clip_unit, failed_unit, sized_image_unit, write_table

BOX = {"x1": 0, "y1": 0, "x2": 100, "y2": 100}


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


def image(media_id: str, size: tuple[int, int], *answers: RawAnswer) -> AnsweredUnit:
    return sized_image_unit(size, *answers, unit_id=media_id, media_id=media_id)


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
    write_table(
        tmp_path / "out",
        clip_unit("a", 0, 5, **EVERYTHING),
        clip_unit("a", 5, 10, caption="Nothing."),
    )
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
    write_table(
        tmp_path / "out",
        clip_unit("right", caption="A dog.", objects=EVERYTHING["objects"]),
        clip_unit("broken", caption="A dog.", objects="I see no boxes, sorry"),
        failed_unit("lost"),
        clip_unit("asked less", caption="A dog."),
        clip_unit("without gold", caption="A cat."),
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
    write_table(
        tmp_path / "out", clip_unit("a", caption="x", ocr="t"), clip_unit("b", caption="y", ocr="t")
    )
    _, found = call(
        {"media_id": "a", "caption": "x", "ocr": None},
        {"media_id": "b", "ocr": "t"},
        {"media_id": "nowhere", "caption": None},
    )
    assert found["tasks"]["caption"]["n"] == found["tasks"]["ocr"]["n"] == 1
    assert found["counts"]["gold_rows_that_judge_nothing"] == 1
    assert found["counts"]["gold_rows_without_annotation"] == 0


def test_gold_is_matched_by_media_and_time_span(tmp_path: Path, call):
    write_table(
        tmp_path / "out",
        clip_unit("a", 0, 6, caption="first"),
        clip_unit("a", 6, 10, caption="last"),
    )
    _, found = call(
        {"media_id": "a", "start_seconds": 6, "end_seconds": 99, "caption": "last"},  # cut at 10 s
        {"uri": "/archive/a.mp4", "sampling": {"end_seconds": 6.02}, "caption": "first"},
    )
    assert values(found, "caption")["exact"] == 1.0
    output, _ = call({"media_id": "a", "caption": "first"}, exit_code=2)
    assert "line 1: a has 2 units: give start_seconds and end_seconds of one of" in output
    assert "0.000 to 6.000 s, 6.000 to 10.000 s" in output
    output, _ = call({"media_id": "a", "end_seconds": 5, "caption": "x"}, exit_code=2)
    assert "such as 0.000 to 6.000 s, 6.000 to 10.000 s of a; line 1 has" in output
    twice = {"media_id": "a", "end_seconds": 6, "caption": "first"}
    output, _ = call(twice, twice, exit_code=2)
    assert "line 2: judges the same answer as line 1; keep one of them" in output


def test_relative_uris_start_at_golds_folder(tmp_path: Path, call):
    unit = replace(clip_unit("a", caption="x"), uri=str(tmp_path / "clips" / "a.mp4"))
    write_table(tmp_path / "out", unit)
    _, found = call({"uri": "clips/a.mp4", "caption": "x"}, {"uri": "/b.mp4", "caption": "x"})
    assert values(found, "caption")["exact"] == 0.5


def test_the_order_of_gold_changes_nothing(tmp_path: Path, call):
    boxes = '[{"time": 1, "bbox_2d": [0, 0, %d, 100], "label": "a"}]'
    write_table(tmp_path / "out", *(clip_unit(str(i), objects=boxes % (i * 30)) for i in range(6)))
    gold = [
        {"media_id": str(i), "objects": [{"label": "a", "box": BOX, "pts_seconds": 1}]}
        for i in range(6)
    ]
    _, found = call(*gold)
    assert call(*gold[::-1])[1] == found
    assert 0.1 < values(found, "objects")["ap50"] < 0.9


def test_slices_have_all_rows_and_their_own_figures(tmp_path: Path, call):
    write_table(
        tmp_path / "out",
        image("small", (320, 200), answer("caption", "right")),
        image("tall", (1081, 4000), answer("caption", "wrong")),
        replace(clip_unit("clip", caption="right"), attributes='{"camera": "north"}'),
        failed_unit("lost"),
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
    write_table(
        tmp_path / "out",
        *(image(f"m{i}", (9, 9), answer("caption", "a")) for i in range(30)),
    )
    gold = ({"media_id": f"m{i}", "caption": "a", "shot": i} for i in range(30))
    output, found = call(*gold, options="--by shot")
    assert len(found["tasks"]["caption"]["slices"]["shot"]) == 30
    assert "shot: 10 more, see --json" in output


def test_the_newest_runs_recipe_is_taken(tmp_path: Path, call):
    out = tmp_path / "out"
    for day, recipe, hour in ((22, "r1", None), (23, "r2", 8), (23, "r3", 9)):
        run_id = f"test-202611{day}-{recipe}"
        key = run_key(run_id, recipe)
        write_table(out, clip_unit("a", caption=recipe), key=key)
        if hour:
            (out / "runs" / run_id).mkdir(parents=True)
            run = {"created_at": f"2026-11-23T{hour:02}:00:00+00:00"}
            (out / "runs" / run_id / "run.json").write_text(json.dumps(run))
    gold = {"media_id": "a", "caption": "r3"}
    output, found = call(gold)
    assert (found["recipe_ids"], values(found, "caption")["exact"]) == (["r3"], 1.0)
    assert "r3, of the newest run, test-20261123-r3; --recipe selects others: r1, r2" in output
    output, found = call(gold, options="--recipe r1")
    assert (found["recipe_ids"], values(found, "caption")["exact"]) == (["r1"], 0.0)
    assert "newest" not in output
    assert call(gold, options="--run test-20261123-r2")[1]["recipe_ids"] == ["r2"]
    output, _ = call(gold, options="--run nightly", exit_code=2)
    assert "no row is of run 'nightly'; the runs are test-20261122-r1, test-20261123-r2" in output
    output, _ = call(gold, options="--recipe r9", exit_code=2)
    assert "the recipes are r1, r2, r3" in output
    shutil.rmtree(out / "runs")  # two runs of the same day, and nothing says when
    output, _ = call(gold, exit_code=2)
    assert (
        "it is unclear which run is the newest: choose one with --run: test-20261123-r2" in output
    )


def test_rows_of_earlier_content_and_earlier_failures_are_left_out(tmp_path: Path, call):
    out = tmp_path / "out"
    later = run_key("test-20261123-def", "r1", "2026-11-23")
    old = clip_unit("changed", caption="before")
    new = replace(old, unit_id="changed-2", media=replace(old.media, content_version="v2"))
    write_table(out, old, failed_unit("lost"))
    write_table(out, replace(new, answers=(replace(new.answers[0], raw_text="after"),)), key=later)
    write_table(out, clip_unit("lost", caption="found"), key=later)
    _, found = call(
        {"media_id": "changed", "caption": "after"}, {"media_id": "lost", "caption": "found"}
    )
    assert values(found, "caption")["exact"] == 1.0
    assert found["counts"]["annotation_rows_superseded"] == 2
    assert found["counts"]["annotation_rows_without_gold"] == 0


def test_gold_boxes_of_videos_without_a_time_are_counted(tmp_path: Path, call):
    write_table(tmp_path / "out", clip_unit("a", objects=EVERYTHING["objects"]))
    output, found = call({"media_id": "a", "objects": [{"label": "car", "box": BOX}]})
    assert found["counts"]["gold_boxes_without_time"] == 1
    assert "1 of gold's boxes in videos have no pts_seconds" in output


def test_limits(tmp_path: Path, call):
    out = tmp_path / "out"
    write_table(
        out, clip_unit("a", caption="a dog", ocr="ab"), clip_unit("b", caption="x", ocr="cd")
    )
    gold = [{"media_id": m, "caption": "a dog", "ocr": "ab"} for m in "ab"]
    call(*gold, options="--fail-under caption.exact=0.5 --fail-over ocr.cer=0.5")
    options = "--fail-under caption.exact=0.9 --fail-under ocr.exact=0.5 --fail-over ocr.cer=0.25"
    output, found = call(*gold, options=options, exit_code=1)
    message = "error: metrics beyond their limit: caption.exact 0.5 < 0.9; ocr.cer 0.5 > 0.25\n"
    assert output.endswith(message)
    assert values(found, "ocr")["cer"] == 0.5  # the files are written all the same


SAME = {"media_id": "a", "caption": "x", "ocr": "t"}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([SAME], "--tasks captions", "unknown task 'captions', did you mean 'caption'?"),
        ([SAME], "--tasks events", "gold.jsonl does not judge events, only caption, ocr"),
        ([SAME], "--tasks ocr", "the rows have no answers of the task ocr"),
        ([SAME], "--by codecs", "unknown slice 'codecs', did you mean 'codec'?"),
        ([SAME], "--fail-under caption.wer=1", "there is no figure 'caption.wer'; there are"),
        (
            [SAME],
            "--fail-over caption.exact=1",
            "for caption.exact, higher is better: use --fail-u",
        ),
        ([SAME], "--fail-under caption.exact", "a limit is METRIC=LIMIT, such as"),
        (
            [{"media_id": "a", "ocr": "t"}],
            "",
            "gold judges ocr; the rows have answers of none of them",
        ),
        ([{"media_id": "a", "words": "t"}], "", "has no task column; its columns: media_id, words"),
        ([{"media_id": "a", "caption": None}], "", "judges nothing: caption is null in every"),
        ([], "", "has no task column; its columns: none"),
        ([{"caption": "x"}], "", "line 1: has neither media_id nor uri"),
        ([{"media_id": "q", "caption": "x"}], "", "its media_id is 'q', ...; theirs are 'a', ..."),
        (
            [{"uri": "/q.mp4", "caption": "x"}],
            "",
            "its uri is '/q.mp4', ...; theirs are '/archive/",
        ),
        ([{"media_id": "a", "caption": 5}], "", "line 1: caption must be text, got 5"),
        ([{"media_id": "a", "events": [{"start": 1}]}], "", "element 1 of events has no start_sec"),
        ([{"media_id": "a", "events": [event(4, 3)]}], "", "starts at 4.0 s and ends at 3.0 s"),
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
    write_table(tmp_path / "out", clip_unit("a", caption="x"))
    output, _ = call(*rows, options=options, exit_code=2)
    assert message in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("annotations", "gold", "message"),
    [
        ("nowhere", "gold.jsonl", "there are no annotations in nowhere"),
        ("nowhere.parquet", "gold.jsonl", "there is no file nowhere.parquet"),
        ("plan", "gold.jsonl", "is not an annotation table: it has no media_id and no uri"),
        ("gold.parquet", "gold.jsonl", "gold.parquet is not a readable Parquet file"),
        ("out", "nowhere.jsonl", "there is no gold nowhere.jsonl"),
        ("out", "nowhere", "there is no gold nowhere; give a .parquet or .jsonl file"),
        ("out", "gold.parquet", "gold.parquet is not a readable Parquet file"),
        ("out", "two", "two has rows of several recipes about the unit"),
    ],
)
def test_wrong_paths_are_one_message(tmp_path: Path, monkeypatch, annotations, gold, message):
    monkeypatch.chdir(tmp_path)
    write_table(Path("out"), clip_unit("a", caption="x"))
    write_table(Path("two"), clip_unit("a", caption="x"))
    other = run_key("other", "r2")
    write_table(Path("two"), clip_unit("a", caption="x"), key=other)
    Path("gold.jsonl").write_text('{"media_id": "a", "caption": "x"}\n')
    Path("gold.parquet").write_text("no parquet")
    table = pq.read_table(next(Path("out").rglob("*.parquet"))).select(["unit_id"])
    Path("plan").mkdir()
    pq.write_table(table, "plan/part-0.parquet")
    result = CliRunner().invoke(main, ["evaluate", annotations, gold])
    assert result.exit_code == 2
    assert message in result.output


def test_without_the_libraries_it_says_what_to_install(tmp_path: Path, monkeypatch, call):
    write_table(tmp_path / "out", clip_unit("a", caption="x"))
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    output, _ = call(SAME, exit_code=2)
    assert output == (
        "error: evaluate needs sacrebleu: "
        "pip install 'jiwer>=4' 'sacrebleu>=2.5' 'pycocotools>=2.0.11'\n"
    )


def test_tables_in_a_bucket(s3_env):
    units = (clip_unit("a", caption="x"), clip_unit("b", caption="y"))
    write_table(s3_env.uri("out"), *units)
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
    assert "there are no annotations in" in result.output


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from jobs.cli.main import main\n"
        "main(['evaluate', '-h'], standalone_mode=False);"
        "print({'pyarrow', 'numpy', 'rich', 'jiwer', 'sacrebleu', 'pycocotools'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "--fail-under METRIC=LIMIT" in done.stdout
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
    write_table(
        Path("archive"),
        image(
            "sign-7",
            (1000, 1000),
            answer("caption", sign),
            answer("ocr", "EXIT\nGate 17"),
            answer("objects", boxes),
        ),
        clip_unit("gate-1", caption="The barrier goes up and a red car leaves.", events=events),
        failed_unit("gate-2"),
        clip_unit("gate-3", caption="An empty road."),
    )
    result = CliRunner().invoke(main, command.removeprefix("reelscribe ").split())
    assert result.exit_code == 0, result.output
    found = [line.rstrip() for line in result.stdout.splitlines()]
    assert found == output.splitlines(), result.stdout
    for task in METRICS:
        for figure in METRICS[task].figures([]):
            assert f"`{figure.name}`" in page
