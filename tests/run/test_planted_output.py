"""Files of an output that others wrote lead nowhere else, and give a message, never a traceback."""

import io
import json
import re
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from jobs.cost.calibration import read_calibration
from jobs.export.source import requested_labels
from jobs.plan.runs import all_runs
from jobs.report.runs import run_values
from jobs.results import compact
from jobs.results.frames import planned_sources, run_decoder
from jobs.results.read import Selection, read_annotations
from pipeline.output.rows import ANNOTATION
from pipeline.output.run_file import read_run_file, run_folder
from pipeline.output.table import read_committed
from pipeline.storage import parquet
from pipeline.storage.parquet import read_json, read_parquet, write_parquet
from pipeline.storage.storage import Storage
from schemas.errors import StorageError, UserError
from schemas.job.job import check_job
from schemas.job.resources import DecodeLimits
from tests.support.annotation_rows import row
from tests.support.run_key import run_key
from tests.support.sealed import commit_rows

STORAGE = Storage()
KEY = run_key("a-20260101-abcdef", "abc", run_date="2026-01-01")
RUN = {
    "run_id": KEY.run_id,
    "name": "a",
    "run_date": "2026-01-01",
    "status": "complete",
    "fingerprint": {"manifest": "m", "recipe": "abc", "schema_version": "1"},
    "recipe": {},
    "created_at": "2026-01-01T00:00:00+00:00",
}
_NUMBERS = ("units", "units_of_earlier_runs", "prompt_tokens", "output_tokens")
_SECONDS = ("decode_seconds", "engine_seconds")
COUNTS = dict.fromkeys((*_NUMBERS, *_SECONDS), 1) | {
    key: {} for key in ("status", "errors", "answers", "decoders")
}
BOMB = "[" * 100_000


def plant(output: Path, content: object, folder: str = KEY.run_id) -> Path:
    path = output / "runs" / folder / "run.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(text)
    return path


def test_a_sound_run_is_read(tmp_path):
    plant(tmp_path, RUN | {"later": 1, "counts": {}})
    (run,) = all_runs(str(tmp_path), STORAGE)
    assert (run.run_id, run.run_date) == (KEY.run_id, KEY.run_date)
    assert run.status == "running"  # without counts it is not finished, whatever it says


def test_compact_removes_nothing_outside_of_the_output(tmp_path):
    output, victim = tmp_path / "out", tmp_path / "victim"
    (victim / "plan").mkdir(parents=True)
    (victim / "plan" / "part-0.parquet").write_text("precious")
    (victim / "log-1.jsonl").write_text("precious")
    commit_rows([row("1", "m", "v")], str(output), KEY, STORAGE)
    plant(output, RUN)
    for k, run_id in enumerate(["../../victim", str(victim), "..", "", "a/../../../victim"]):
        plant(output, RUN | {"run_id": run_id, "created_at": "2020"}, f"old-{k}")
    options = compact.CompactOptions(target_bytes=1 << 20, plan_days=1)
    compact.run(str(output), options, STORAGE, Console(file=io.StringIO()))
    assert len([*victim.rglob("*.*")]) == 2
    assert {run.run_id for run in all_runs(str(output), STORAGE)} == {
        KEY.run_id, *(f"old-{k}" for k in range(5))
    }  # fmt: skip


def test_an_id_in_a_row_leads_to_no_other_file(tmp_path):
    plant(tmp_path / "other", RUN | {"created_at": "stolen", "job": {"tasks": []}})
    plant(tmp_path / "out", RUN)
    away = f"../../other/runs/{KEY.run_id}"
    for text in (away, "..", "", "/etc", "a/b", "a\n", ".hidden", "x" * 300):
        with pytest.raises(StorageError, match="is not the id of a run"):
            run_folder(str(tmp_path / "out"), text)
    assert run_values(str(tmp_path / "out"), away, STORAGE) == {"run_id": away}
    assert requested_labels(str(tmp_path / "out"), [away], STORAGE) == []
    assert planned_sources(Selection(uri=str(tmp_path / "out")), [away], STORAGE) == {}
    plant(
        tmp_path / "other",
        RUN | {"job": {"resources": dict.fromkeys(DecodeLimits.model_fields, 77)}},
    )
    decoder = run_decoder(Selection(uri=str(tmp_path / "out")), [away], STORAGE)
    assert decoder.limits == DecodeLimits()
    rows = [row("1", "m", "v") | {"run_id": away}, row("2", "n", "v")]
    table = pa.Table.from_pylist(rows, schema=ANNOTATION)
    write_parquet(table, f"{tmp_path}/out/annotations/run_date=2026-01-01/part-a-abc-x.parquet",
                  STORAGE)  # fmt: skip
    assert read_annotations(Selection(uri=str(tmp_path / "out")), STORAGE).num_rows == 2


@pytest.mark.parametrize(
    "content",
    [
        BOMB.encode(),
        b'{"recipe": ' + b'{"a": ' * 500 + b"1" + b"}" * 500 + b"}",
        b"\xff\xfe\x00{}",
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b"1" * 10_000,
    ],
)
def test_json_that_is_no_object(tmp_path, content: bytes, monkeypatch):
    path = plant(tmp_path, content)
    with pytest.raises(StorageError, match=re.escape(f"{path} is not a run file")):
        all_runs(str(tmp_path), STORAGE)
    assert run_values(str(tmp_path), KEY.run_id, STORAGE) == {"run_id": KEY.run_id}
    assert requested_labels(str(tmp_path), [KEY.run_id], STORAGE) == []
    (tmp_path / "calibration.json").write_bytes(content)
    job = check_job(
        {"input": {"manifest": "m"}, "output": str(tmp_path), "tasks": ["caption"]}, "t"
    )
    assert read_calibration(job, {}, STORAGE) is None


def test_a_huge_file_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "MAX_JSON_BYTES", 1000)
    plant(tmp_path, RUN | {"recipe": {"a": "x" * 2000}})
    with pytest.raises(StorageError, match="larger"):
        read_run_file(str(tmp_path), KEY.run_id, STORAGE)
    with (tmp_path / "sparse.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="larger"):
        read_json(str(tmp_path / "sparse.json"), STORAGE)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", None),
        ("run_date", "../../2026"),
        ("run_date", "2026-01-01\n"),
        ("status", "done"),
        ("fingerprint", {}),
        ("fingerprint", {"manifest": "m", "recipe": "../x", "schema_version": "1"}),
        ("fingerprint", []),
        ("recipe", "text"),
        ("recipe", {"budget": 3}),
        ("recipe", {"tasks": {"caption": []}}),
        ("created_at", 7),
        ("created_at", "\ud800"),
        ("starts", "many"),
        ("machines", {"a": 1}),
        ("actors", {"a": []}),
        ("counts", {"units": 1}),
        ("counts", {"units": []}),
        ("counts", COUNTS | {"units": "5"}),
        ("recipe", {"model": "\ud800"}),
        ("left_out", 3),
    ],
)
def test_a_run_file_with_a_value_of_another_form(tmp_path, key: str, value: object):
    plant(tmp_path, RUN | {key: value})
    with pytest.raises(StorageError, match=rf"is not a run file .*{key}"):
        all_runs(str(tmp_path), STORAGE)


def test_a_run_file_without_a_key(tmp_path):
    for key in RUN:
        plant(tmp_path, {k: v for k, v in RUN.items() if k != key})
        if key == "run_id":
            assert all_runs(str(tmp_path), STORAGE)
            continue
        with pytest.raises(StorageError, match=rf"is not a run file .*{key}"):
            all_runs(str(tmp_path), STORAGE)


@pytest.mark.parametrize(
    "cost",
    [
        7,
        {"seconds_each": 3, "output_tokens": {}, "origin": ""},
        {"seconds_each": {}, "output_tokens": [], "origin": ""},
        {"seconds_each": {"num_vision_tokens": float("nan"), "num_text_tokens": 1,
                          "num_output_tokens": 1}, "output_tokens": {}, "origin": ""},
    ],
)  # fmt: skip
def test_rates_of_another_form_are_none(tmp_path, cost: object):
    plant(tmp_path, RUN | {"cost": cost})
    assert all_runs(str(tmp_path), STORAGE)[0].cost is None


def _with(name: str, column: pa.Array) -> pa.Table:
    table = pa.Table.from_pylist([row("1", "m", "v")], schema=ANNOTATION)
    return table.set_column(table.column_names.index(name), name, column)


@pytest.mark.parametrize(
    "table",
    [
        _with("unit_id", pa.array([1])),
        _with("unit_id", pa.array([None], pa.string())),
        _with("status", pa.array(["excellent"])),
        _with("media_id", pa.array([["m"]])),
        _with("error", pa.array([3])),
        _with("timings", pa.array(["now"])),
        _with("timings", pa.array([{"finished_at": "now"}])),
        _with("timings", pa.array([{"finished_at": datetime(2026, 1, 1)}])),
        _with("error", pa.array([{"type": "media_missing", "attempts": "one"}])),
        _with("parts", pa.array([{"uri": "x"}])),
    ],
)
def test_a_table_of_other_types_is_named(tmp_path, table: pa.Table):
    commit_rows([row("1", "m", "v")], str(tmp_path), KEY, STORAGE)
    uri = f"{tmp_path}/annotations/run_date=2026-01-01/part-a-abc-{'0' * 32}-0.parquet"
    write_parquet(table, uri, STORAGE)
    named = re.escape("part-a-abc-0000")
    with pytest.raises(StorageError, match=named):
        read_committed(str(tmp_path), ["abc"], STORAGE, ANNOTATION.names)
    with pytest.raises(UserError, match=named):
        read_annotations(Selection(uri=str(tmp_path)), STORAGE)
    options = compact.CompactOptions(target_bytes=1 << 20, superseded_days=0)
    with pytest.raises(UserError):
        compact.run(str(tmp_path), options, STORAGE, Console(file=io.StringIO()))
    assert len([*tmp_path.rglob("*.parquet")]) == 2


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1", b"x" * 999])
def test_a_file_that_is_not_parquet(tmp_path, content: bytes):
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(StorageError, match="is not a readable Parquet file"):
        read_parquet(str(tmp_path / "a.parquet"), STORAGE)


def test_a_file_whose_footer_was_changed(tmp_path):
    uri = str(tmp_path / "a.parquet")
    write_parquet(pa.Table.from_pylist([row("1", "m", "v")], schema=ANNOTATION), uri, STORAGE)
    sound = Path(uri).read_bytes()
    for k in range(5, len(sound), len(sound) // 24):
        Path(uri).write_bytes(sound[:k] + bytes([sound[k] ^ 0xFF]) + sound[k + 1 :])
        try:
            read_parquet(uri, STORAGE)
        except StorageError:
            continue
