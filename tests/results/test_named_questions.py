"""Several questions of a kind in one job, each with its name and column, from job file to exports.

The answers are the simulated engine's. DuckDB and pyarrow read the columns.
"""

import io
import json
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image
from rich.console import Console

from jobs.api import read
from jobs.cli.main import main
from jobs.report import report
from jobs.results.read import Selection, read_annotations
from pipeline.engines.simulated.engine import SimulatedEngine
from pipeline.output.compact import find_bins, join_files
from pipeline.output.rows import annotation_row, schema_of_questions
from pipeline.output.seal import seal_shard
from pipeline.output.table import check_columns
from pipeline.output.views import connect
from pipeline.stages.commit import Commit
from pipeline.storage.storage import Storage
from pipeline.tasks.columns import questions_by_name
from pipeline.tasks.parse import model_view, parse_answer
from pipeline.training.data.read import read_data
from pipeline.workers.code_version import code_digest
from schemas.errors import JobFileError
from schemas.job.finetune import DataSpec
from schemas.job.job import Job
from schemas.tables.columns import to_table
from schemas.tables.manifest import MediaItem
from schemas.tables.unit import ANSWERED, AnsweredUnit
from tests.support.clips import numbered_frames, write_clip
from tests.support.job_files import SIMULATED, SMALL, make_job
from tests.support.prepared import prepare_units
from tests.support.run_key import run_key
from tests.support.sealed import commit_rows
from tests.support.units import answer, clip_unit, unit

SCENE = {
    "type": "object",
    "properties": {
        "mood": {"enum": ["calm", "tense"]},
        "people": {"type": "integer", "minimum": 0, "maximum": 9},
        "weather": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
    },
    "required": ["mood", "people"],
    "additionalProperties": False,
}
DEFECTS = {
    "type": "array",
    "items": {"type": "object", "properties": {"kind": {"type": "string"}}, "required": ["kind"]},
}
TASKS = [
    "caption",
    {"custom": {"prompt": "Is it sharp?"}},
    {"name": "scene", "task": "custom", "prompt": "What is it like?", "json_schema": SCENE},
    {"name": "defects", "task": "custom", "prompt": "Which defects?", "json_schema": DEFECTS},
    {"name": "remark", "task": "custom", "prompt": "What else?"},
    {"name": "invoice", "task": "fields", "keys": ["total", "date"]},
    {"name": "slate", "task": "fields", "keys": ["take"]},
    {"name": "arrival", "task": "moments", "query": "A train arrives."},
    {"name": "departure", "task": "moments", "query": "A train leaves."},
]
NAMES = ["scene", "defects", "remark", "invoice", "slate", "arrival", "departure"]
STORAGE = Storage()
KEY = run_key("named-20261122-abc", "abcd")


@pytest.fixture(scope="module")
def job(checkpoint: Path) -> Job:
    return make_job(checkpoint, **(SMALL | {"tasks": TASKS, "model": SIMULATED}))


@pytest.fixture(scope="module")
def units(job: Job, tmp_path_factory: pytest.TempPathFactory) -> dict[str, AnsweredUnit]:
    """A clip and an image that are asked everything, and an image that is asked two questions."""
    folder = tmp_path_factory.mktemp("media")
    write_clip(folder / "clip.mp4", numbered_frames(20), fps=10)
    for name in ("all.png", "two.png"):
        Image.new("RGB", (64, 64), "red").save(folder / name)
    items = [MediaItem(media_id=name, uri=f"{folder}/{name}") for name in ("clip.mp4", "all.png")]
    some = ("invoice", "scene")
    items.append(MediaItem(media_id="two.png", uri=f"{folder}/two.png", tasks=some))
    answered = SimulatedEngine(job).generate(prepare_units(job, items))
    return {unit.media_id: unit for unit in answered}


@pytest.fixture(scope="module")
def output(job: Job, units: dict[str, AnsweredUnit], tmp_path_factory) -> Path:
    """The table of the units' rows, in two files as the stage commits and a run seals them."""
    folder = tmp_path_factory.mktemp("table")
    changed = job.model_copy(update={"output": str(folder)})
    commit = Commit(changed, KEY, STORAGE, code_digest())
    clip, *images = units.values()
    for shard, some in enumerate(([clip], images)):
        commit(to_table([replace(unit, shard=shard) for unit in some], ANSWERED))
        seal_shard(shard, str(folder), KEY, STORAGE)
    return folder


def command(*args: str | Path) -> str:
    found = CliRunner().invoke(main, [str(arg) for arg in args])
    assert found.exit_code == 0, (found.output, found.exception)
    return found.output


def rows(output: Path) -> dict[str, dict]:
    return {row["media_id"]: row for row in read(output).to_arrow().to_pylist()}


def test_columns_have_the_names_and_types_of_the_questions(output: Path):
    with connect(str(output), STORAGE) as db:
        found = dict(
            db.execute("SELECT column_name, column_type FROM (DESCRIBE latest)").fetchall()
        )
        moods = "SELECT count(*) FROM latest WHERE scene.mood IN ('calm', 'tense')"
        assert db.execute(moods).fetchall() == [(3,)]
    span = "STRUCT(start_seconds DOUBLE, end_seconds DOUBLE)[]"
    assert {name: found[name] for name in ("custom", "fields", "moments", *NAMES)} == {
        "custom": "VARCHAR",
        "fields": "MAP(VARCHAR, VARCHAR)",
        "moments": span,
        "scene": "STRUCT(mood VARCHAR, people BIGINT, weather VARCHAR)",
        "defects": "STRUCT(kind VARCHAR)[]",
        "remark": "VARCHAR",
        "invoice": "MAP(VARCHAR, VARCHAR)",
        "slate": "MAP(VARCHAR, VARCHAR)",
        "arrival": span,
        "departure": span,
    }


def test_each_question_has_its_prompt_answer_and_status(output: Path):
    found = rows(output)
    asked = {
        name: {each["task"]: each["prompt"] for each in row["responses"]}
        for name, row in found.items()
    }
    assert list(asked["clip.mp4"]) == ["caption", "custom", *NAMES]
    assert list(asked["all.png"]) == ["caption", "custom", *NAMES[:5]]  # moments are of videos
    assert list(asked["two.png"]) == ["scene", "invoice"]  # as the manifest says
    assert asked["all.png"]["defects"] == "Which defects?"
    assert "A train leaves." in asked["clip.mp4"]["departure"]
    for row in found.values():
        assert row["status"] == "ok", row["responses"]
        names = [each["task"] for each in row["responses"]]
        assert [n for n in ("caption", "custom", *NAMES) if row[n] is not None] == names
        assert row["fields"] is row["moments"] is None
    assert [key for key, _ in found["clip.mp4"]["slate"]] == ["take"]
    # The raw text is what jsonschema validated, and the struct has its values.
    (raw,) = [e for e in found["two.png"]["responses"] if e["task"] == "scene"]
    value = json.loads(raw["raw_text"].strip("`json\n"))
    assert found["two.png"]["scene"] == value | {"weather": json.dumps(value["weather"])}


def test_a_failed_unit_lists_its_questions(job: Job, units: dict[str, AnsweredUnit]):
    questions = {question.name: question for question in job.questions()}
    failed = AnsweredUnit(
        unit_id="u", media_id="m", uri="x", prompts=units["two.png"].prompts, status="failed"
    )
    row = annotation_row(failed, questions, KEY)
    assert [(each["task"], each["status"]) for each in row["responses"]] == [
        ("scene", "failed"),
        ("invoice", "failed"),
    ]


def test_the_files_say_what_their_columns_are(output: Path, tmp_path: Path):
    table = read_annotations(Selection(uri=str(output)), STORAGE)
    assert list(table.named) == NAMES
    kinds = {name: question.task for name, question in table.questions.items()}
    assert {name: kinds[name] for name in ("scene", "slate", "arrival", "ocr")} == {
        "scene": "custom",
        "slate": "fields",
        "arrival": "moments",
        "ocr": "ocr",
    }
    assert json.loads(table.questions["scene"].json_schema) == SCENE
    # Compaction keeps them, with what they say.
    for file in ds.dataset(output / "annotations").files:
        copy = tmp_path / Path(file).relative_to(output)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(Path(file).read_bytes())
    (group,) = find_bins(str(tmp_path), STORAGE, 1 << 30)
    assert join_files(group, STORAGE) == 2
    joined = read_annotations(Selection(uri=str(tmp_path)), STORAGE)
    assert joined.questions == table.questions
    assert rows(tmp_path) == rows(output)


def test_show_and_report(output: Path, tmp_path: Path):
    shown = command("show", output, "two.png")
    assert "invoice  ok" in shown and '"mood": ' in shown
    options = report.ReportOptions(output=str(tmp_path / "report.html"))
    report.run(Selection(uri=str(output)), options, STORAGE, Console(file=io.StringIO()))
    page = (tmp_path / "report.html").read_text()
    mood = rows(output)["two.png"]["scene"]["mood"]
    assert f'["scene", "mood: {mood}\\npeople: ' in page
    assert '["slate", "take: ' in page
    for name in ("arrival", "departure"):
        assert f'"caption": "{name}"' in page


def test_conversations_are_the_answers_again(output: Path, units, tmp_path: Path):
    command("export", output, "conversations", "--output", tmp_path / "out")
    lines = (tmp_path / "out" / "conversations.jsonl").read_text().splitlines()
    found = {line["id"]: line["conversations"] for line in map(json.loads, lines)}
    table = rows(output)
    questions = read_annotations(Selection(uri=str(output)), STORAGE).questions
    assert len(found) == sum(len(row["responses"]) for row in table.values())
    for row in table.values():
        view = model_view(units[row["media_id"]])
        for response in row["responses"]:
            name = response["task"]
            prompt, written = found[f"{row['unit_id']}/{name}"]
            assert prompt["value"].endswith(response["prompt"])
            again = parse_answer(written["value"], questions[name], view)
            assert again.status == "ok"
            if questions[name].task != "moments":  # whose times are rounded
                assert again.value == row[name]


def test_a_hugging_face_folder(output: Path, tmp_path: Path):
    command("export", output, "huggingface", "--output", tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "train" / "metadata.parquet")
    found = {row["media_id"]: row for row in table.to_pylist()}
    assert found["two.png"]["scene"] == rows(output)["two.png"]["scene"]
    assert json.loads(found["two.png"]["invoice"]).keys() == {"total", "date"}


def test_gold_judges_moments_by_their_names(output: Path, tmp_path: Path):
    row = rows(output)["clip.mp4"]
    wrong = [{"start_seconds": 100.0, "end_seconds": 101.0}]
    gold = {"media_id": "clip.mp4", "arrival": row["arrival"], "departure": wrong, "moments": None}
    (tmp_path / "gold.jsonl").write_text(json.dumps(gold) + "\n")
    figures = tmp_path / "figures.json"
    command("evaluate", output, tmp_path / "gold.jsonl", "--json", figures)
    found = json.loads(figures.read_text())["tasks"]
    values = {name: task["figures"]["mean_tiou"]["value"] for name, task in found.items()}
    assert values == {"arrival": 1.0, "departure": 0.0}
    options = report.ReportOptions(
        output=str(tmp_path / "r.html"), gold=str(tmp_path / "gold.jsonl")
    )
    report.run(Selection(uri=str(output)), options, STORAGE, Console(file=io.StringIO()))
    assert '"scores": {"arrival": 1.0, "departure": 0.0}' in (tmp_path / "r.html").read_text()


def test_rows_are_training_data_by_name(job: Job, output: Path, units):
    spec = DataSpec.model_validate({"annotations": str(output), "tasks": TASKS[2:]})
    examples = read_data(spec, STORAGE)
    questions = {question.name: question for question in job.questions()}
    table = rows(output)
    assert len(examples) == sum(row[n] is not None for row in table.values() for n in NAMES)
    for example in examples:
        name = example.origin.rpartition("/")[2]
        row = table[example.media[0].media_id]
        assert example.turns[0].parts[1] in [each["prompt"] for each in row["responses"]]
        text = example.turns[-1].parts[0]
        again = parse_answer(text, questions[name], model_view(units[row["media_id"]]))
        assert again.status == "ok"
        if questions[name].task != "moments":
            assert again.value == row[name]


def commit(output: Path, recipe_id: str, schema: dict | None, text: str) -> None:
    """Commit a row of a job whose question ``look`` has this schema."""
    task = {"name": "look", "task": "custom", "prompt": "?", "json_schema": schema}
    questions = {q.name: q for q in make_job(tasks=[task]).questions()}
    key = run_key("test-20261122-abc", recipe_id)
    columns = schema_of_questions(questions.values())
    check_columns(columns, str(output), STORAGE)
    unit = clip_unit(recipe_id)
    row = annotation_row(
        AnsweredUnit(
            unit_id=unit.unit_id,
            media_id=unit.media_id,
            uri=unit.uri,
            answers=(answer("look", text),),
        ),
        questions,
        key,
    )
    commit_rows([row], str(output), key, STORAGE, columns)


NUMBER = {"type": "integer"}


def members(**properties: dict) -> dict:
    return {"type": "object", "properties": properties}


@pytest.mark.parametrize(
    ("earlier", "later", "message"),
    [
        ((members(a=NUMBER), '{"a": 1}'), None, "of type string, but"),
        ((None, "text"), members(a=NUMBER), "of type struct<a: int64>, but"),
        ((members(a=NUMBER), '{"a": 1}'), members(a=members(b=NUMBER)), "of type struct<a: struct"),
        (({"type": "array", "items": NUMBER}, "[1]"), NUMBER, "of type int64, but"),
    ],
)
def test_one_table_has_no_two_columns_of_one_name(tmp_path: Path, earlier, later, message):
    commit(tmp_path, "aaaa", *earlier)
    with pytest.raises(JobFileError, match=message):
        commit(tmp_path, "bbbb", later, "unused")


@pytest.mark.parametrize(
    ("earlier", "later", "type_"),
    [
        (
            (members(a=NUMBER), '{"a": 1}'),
            (members(a=NUMBER, b={"type": "string"}), '{"a": 2, "b": "x"}'),
            "STRUCT(a BIGINT, b VARCHAR)",
        ),
        ((NUMBER, "1"), ({"type": "number"}, "1.5"), "DOUBLE"),
        ((NUMBER, "1"), (None, "many"), "VARCHAR"),
        (
            ({"type": "array", "items": NUMBER}, "[1]"),
            ({"type": "array", "items": {"type": "string"}}, '["x"]'),
            "VARCHAR[]",
        ),
    ],
)
def test_sql_reads_columns_that_a_later_job_widened(tmp_path: Path, earlier, later, type_):
    commit(tmp_path, "aaaa", *earlier)
    commit(tmp_path, "bbbb", *later)
    with connect(str(tmp_path), STORAGE) as db:
        found = db.execute("SELECT typeof(look), look FROM annotations").fetchall()
    assert [kind for kind, _ in found] == [type_, type_]
    assert all(value is not None for _, value in found)


def test_a_table_that_lost_what_it_says_is_read_without_names(output: Path, tmp_path: Path):
    file = tmp_path / "copy.parquet"
    pattern = f"{output}/annotations/*/*.parquet"
    duckdb.sql(f"COPY (FROM read_parquet('{pattern}')) TO '{file}' (FORMAT parquet)")
    table = read_annotations(Selection(uri=str(file)), STORAGE)
    assert table.questions == questions_by_name()
    command("export", file, "conversations", "--output", tmp_path / "out")
    lines = (tmp_path / "out" / "conversations.jsonl").read_text().splitlines()
    assert {json.loads(line)["id"].rpartition("/")[2] for line in lines} == {"caption", "custom"}


@pytest.mark.parametrize("name", ["name", "copy_uri", "is_unread", "is_mute", "newest", "order"])
def test_no_name_of_a_question_meets_those_of_the_views(tmp_path: Path, name: str):
    output, storage = str(tmp_path / "out"), Storage()
    job = make_job(tasks=[{"name": name, "task": "custom", "prompt": "What?"}])
    questions = {question.name: question for question in job.questions()}
    key = run_key("t-20261129-abc", "r1", "2026-11-29")
    row = annotation_row(unit(answer(name, "Bob")), questions, key)
    commit_rows([row], output, key, storage, schema_of_questions(job.questions()))
    with connect(output, storage) as db:
        assert db.execute(f'SELECT "{name}" FROM latest').fetchall() == [("Bob",)]
