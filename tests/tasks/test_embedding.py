"""The task embedding: its vectors, its column, and what reads them, from job file to exports.

The table is that of a run of the transformers engine on a tiny checkpoint, without Ray.
"""

import io
import json
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from rich.console import Console

from jobs.api import read
from jobs.cli.main import main
from jobs.report import report
from jobs.results.read import Selection
from jobs.run import annotate
from pipeline.output.compact import find_bins, join_files
from pipeline.output.rows import table_schema
from pipeline.output.views import connect
from pipeline.storage.storage import Storage
from pipeline.tasks.columns import column_of
from pipeline.tasks.embedding import vector_text
from pipeline.tasks.parse import parse_answer
from schemas.errors import JobFileError, ModelError
from schemas.job.finetune import DataSpec
from schemas.job.job import Job, check_job
from schemas.task import Question, View
from tests.support.embedding import make_embedding
from tests.support.job_files import TINY_BUDGET, hide_ray, make_job

VIEW = View(media_type="image", width=64, height=64)
STORAGE = Storage()

# The two queries of the guide, for vectors of 64 numbers.
_SIMILARITY = "array_cosine_similarity(a.embedding::FLOAT[64], b.embedding::FLOAT[64])"
NEAREST = f"""
SELECT b.uri, {_SIMILARITY} AS similarity
FROM latest AS a, latest AS b
WHERE a.uri LIKE '%/scene-0.jpg' AND b.unit_id <> a.unit_id AND b.embedding IS NOT NULL
ORDER BY similarity DESC
LIMIT 10
"""
BY_WORDS = f"""
SELECT b.uri, {_SIMILARITY} AS similarity
FROM latest AS a, latest AS b
WHERE a.media_id = 'query' AND b.media IS NOT NULL AND b.embedding IS NOT NULL
ORDER BY similarity DESC
LIMIT 10
"""


def parse(vector: np.ndarray, dimensions: int | None = None):
    question = Question(task="embedding", dimensions=dimensions)
    return parse_answer(vector_text(vector), question, VIEW)


def test_a_vector_has_length_one_in_float16():
    state = np.random.default_rng(0).normal(0, 40, 2048).astype(np.float32)
    answer = parse(state, 2048)
    value = np.array(answer.value)
    assert answer.status == "ok" and value.shape == (2048,)
    assert abs(np.linalg.norm(value) - 1) < 1e-3
    np.testing.assert_array_equal(value.astype(np.float16), value)
    expected = state / np.linalg.norm(state.astype(np.float64))
    np.testing.assert_array_equal(value, expected.astype(np.float16))


def test_dimensions_are_the_first_numbers_with_length_one_again():
    state = np.array([3.0, 4.0, 12.0, 84.0], np.float32)
    np.testing.assert_allclose(parse(state, 2).value, [0.6, 0.8], atol=1e-3)
    np.testing.assert_allclose(parse(state, 3).value, np.array([3, 4, 12]) / 13, atol=1e-3)


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (vector_text(np.zeros(4)), "has length 0.0"),
        (vector_text(np.array([1, np.nan, 0, 0])), "has length nan"),
        (vector_text(np.array([1, np.inf, 0, 0])), "has length inf"),
        (vector_text(np.full(4, 0x7FA00000, "<u4").view("<f4")), "has length nan"),
        (vector_text(np.ones(3)), "has 3 numbers, not 4"),
        ("", "has 0 numbers, not 4"),
        ("AAAA", "is no vector"),
        ("A cat.", "is no vector"),
    ],
)
def test_what_is_no_vector_is_unparsed(text: str, note: str):
    answer = parse_answer(text, Question(task="embedding", dimensions=4), VIEW)
    assert (answer.status, answer.value) == ("unparsed", None)
    assert note in answer.note


def test_the_column_has_the_size_of_the_vector():
    field = column_of(Question(task="embedding", dimensions=1024, instruction="Look."))
    assert field.type == pa.list_(pa.float16(), 1024)
    assert field.metadata[b"task"] == b"embedding"
    assert b"Look." in field.metadata[b"description"]
    assert "embedding" not in table_schema().names


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["caption", "embedding"], "embedding cannot be in one job with caption"),
        ([{"embedding": {"prompt": "What?"}}], "embedding has no prompt: set its instruction"),
        ([{"embedding": {"max_new_tokens": 5}}], "embedding has no max_new_tokens"),
        ([{"embedding": {"dimensions": 0}}], "greater than or equal to 1"),
        ([{"caption": {"instruction": "Look."}}], "caption has no instruction: only embedding"),
        ([{"caption": {"dimensions": 8}}], "caption has no dimensions: only embedding"),
        (["embedding", "embedding"], "each task may be named once"),
    ],
)
def test_mistakes_of_a_job_file(tasks, message: str):
    with pytest.raises(JobFileError, match=message):
        make_job(tasks=tasks)


def test_vectors_are_not_learnt():
    with pytest.raises(ValueError, match="embedding cannot be trained"):
        DataSpec.model_validate({"annotations": "x", "tasks": ["embedding"]})


@pytest.fixture(scope="module")
def job(archive: Path, checkpoint: Path, tmp_path_factory) -> Job:
    """Three images, a clip in two windows, and a query in words, with two vectors each."""
    folder = tmp_path_factory.mktemp("embedded")
    source = make_embedding(checkpoint, folder / "checkpoint")
    names = ("images/scene-0.jpg", "images/plate-0.png", "images/tiny.png")
    rows = [{"media_id": name, "uri": str(archive / name)} for name in names]
    rows.append({"media_id": "clip", "uri": str(archive / "clips/h264-bframes.mp4")})
    turns = [{"role": "user", "content": "a red circle"}]
    rows.append({"media_id": "query", "messages": turns})
    manifest = folder / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return check_job(
        {
            "input": {"manifest": str(manifest)},
            "output": str(folder / "output"),
            "model": {"source": str(source), "dtype": "float32", "device": "cpu"},
            "budget": TINY_BUDGET,
            "sampling": {"segmentation": {"kind": "window", "seconds": 4}},
            "tasks": ["embedding", {"short": {"task": "embedding", "dimensions": 16}}],
        },
        "test",
    )


@pytest.fixture(scope="module")
def output(job: Job) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        hide_ray(patch)
        annotate.run(job, Console(file=io.StringIO()))
    return Path(job.output)


def command(*args: str | Path) -> str:
    found = CliRunner().invoke(main, [str(arg) for arg in args])
    assert found.exit_code == 0, (found.output, found.exception)
    return found.output


def test_rows_have_vectors_and_no_raw_text(output: Path):
    rows = read(output).to_arrow().to_pylist()
    assert len(rows) > 5
    for row in rows:
        assert row["status"] == "ok", row["error"] or row["responses"]
        whole, short = np.array(row["embedding"]), np.array(row["short"])
        assert whole.shape == (64,) and short.shape == (16,)
        assert abs(np.linalg.norm(whole) - 1) < 2e-3
        first = whole[:16] / np.linalg.norm(whole[:16])
        np.testing.assert_allclose(short, first, atol=2e-3)
        for response in row["responses"]:
            assert (response["raw_text"], response["num_output_tokens"]) == (None, 0)
            assert response["num_prompt_tokens"] > 0
    vectors = [tuple(row["embedding"]) for row in rows]
    assert len(set(vectors)) == len(vectors)


def test_pyarrow_pandas_and_duckdb_read_the_column(output: Path):
    file = ds.dataset(output / "annotations").files[0]
    assert pq.read_schema(file).field("embedding").type == pa.list_(pa.float16(), 64)
    expected = {row["unit_id"]: row["embedding"] for row in pq.read_table(file).to_pylist()}
    frame = pd.read_parquet(file)
    query = f"SELECT unit_id, embedding, typeof(embedding) FROM '{file}'"
    for unit_id, vector, type_ in duckdb.sql(query).fetchall():
        assert type_ == "FLOAT[]"
        assert vector == expected[unit_id]
        (row,) = frame[frame.unit_id == unit_id].embedding
        assert row.tolist() == expected[unit_id]


def test_sql_finds_neighbours(output: Path):
    rows = {row["unit_id"]: row for row in read(output).to_arrow().to_pylist()}
    with connect(str(output), STORAGE) as db:
        # A unit without an answer has no vector, and DuckDB's functions of lists refuse that.
        db.execute("CREATE TABLE kept AS FROM latest")
        db.execute("CREATE TEMP TABLE latest AS FROM kept")
        none = "'failed' AS unit_id, 'gone' AS media_id, 'gone' AS uri, NULL AS embedding"
        db.execute(f"INSERT INTO latest SELECT * REPLACE ({none}) FROM kept")
        for query, name in ((NEAREST, "images/scene-0.jpg"), (BY_WORDS, "query")):
            (one,) = (row for row in rows.values() if row["media_id"] == name)
            others = [
                row for row in rows.values() if row is not one and (row["media"] or name != "query")
            ]
            vector = np.array(one["embedding"], np.float64)
            by_numpy = {}
            for row in others:
                other = np.array(row["embedding"], np.float64)
                cosine = vector @ other / np.linalg.norm(vector) / np.linalg.norm(other)
                by_numpy[row["unit_id"]] = (cosine, row["uri"])
            expected = sorted(by_numpy.values(), reverse=True)[:10]
            found = db.execute(query).fetchall()
            assert len(found) == min(10, len(others))
            assert [uri for uri, _ in found if uri] == [uri for _, uri in expected if uri]
            np.testing.assert_allclose([s for _, s in found], [s for s, _ in expected], atol=1e-5)
        same = db.execute(
            "SELECT max(abs(array_cosine_similarity(a.embedding::FLOAT[64], b.embedding::FLOAT[64])"
            " - list_cosine_similarity(a.embedding, b.embedding))) FROM kept a, kept b"
        ).fetchone()
        assert same[0] < 1e-6


def test_the_same_command_has_nothing_to_do(job: Job, output: Path, no_ray):
    before = sorted((output / "annotations").rglob("*.parquet"))
    annotate.run(job, Console(file=io.StringIO()))
    assert sorted((output / "annotations").rglob("*.parquet")) == before


def test_compaction_keeps_the_column(output: Path, tmp_path: Path):
    for file in ds.dataset(output / "annotations").files:
        copy = tmp_path / Path(file).relative_to(output)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(Path(file).read_bytes())
    for group in find_bins(str(tmp_path), STORAGE, 1 << 30):
        join_files(group, STORAGE)
    assert vectors_of(tmp_path) == vectors_of(output)
    for file in ds.dataset(tmp_path / "annotations").files:
        assert pq.read_schema(file).field("embedding").type == pa.list_(pa.float16(), 64)


def vectors_of(output: Path) -> dict:
    return {row["unit_id"]: row["embedding"] for row in read(output).to_arrow().to_pylist()}


def test_show_report_evaluate_and_exports(output: Path, tmp_path: Path):
    shown = command("show", output, "images/tiny.png")
    assert "vector of 64 numbers: " in shown and "vector of 16 numbers: " in shown
    assert len(shown.splitlines()) < 60
    options = report.ReportOptions(output=str(tmp_path / "report.html"))
    report.run(Selection(uri=str(output)), options, STORAGE, Console(file=io.StringIO()))
    page = (tmp_path / "report.html").read_text()
    assert '["embedding", "vector of 64 numbers: ' in page
    (tmp_path / "gold.jsonl").write_text('{"media_id": "images/tiny.png", "caption": "x"}\n')
    judged = CliRunner().invoke(main, ["evaluate", str(output), str(tmp_path / "gold.jsonl")])
    assert judged.exit_code == 2 and "the rows have answers of none of them" in judged.output
    command("export", output, "huggingface", "--output", tmp_path / "hf")
    table = pq.read_table(tmp_path / "hf" / "train" / "metadata.parquet")
    assert table.schema.field("embedding").type == pa.list_(pa.float16(), 64)
    command("export", output, "webdataset", "--output", tmp_path / "wds")
    assert list((tmp_path / "wds").iterdir())
    found = CliRunner().invoke(
        main, ["export", str(output), "conversations", "--output", str(tmp_path / "conv")]
    )
    assert found.exit_code != 0 and "embedding is a vector" in " ".join(found.output.split())


def test_another_size_needs_another_name_or_output(job: Job, output: Path, no_ray):
    smaller = job.model_copy(update={"tasks": make_job(tasks=[SMALLER]).tasks})
    with pytest.raises(JobFileError, match="choose another name, or another output"):
        annotate.run(smaller, Console(file=io.StringIO()))


SMALLER = {"embedding": {"dimensions": 32}}


def test_a_checkpoint_that_generates_is_refused_before_work(job: Job, checkpoint: Path, no_ray):
    model = job.model.model_copy(update={"source": str(checkpoint)})
    with pytest.raises(ModelError, match="needs a checkpoint for embeddings"):
        annotate.run(job.model_copy(update={"model": model}), Console(file=io.StringIO()))


def test_a_plan_lists_the_task(job: Job, output: Path, tmp_path: Path, no_ray):
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(job.model_dump(mode="json", exclude={"storage_options"})))
    planned = command("plan", file)
    assert "embedding" in planned
