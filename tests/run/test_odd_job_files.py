"""A job file, an option or a JSON file of any form gives a message, and no traceback."""

import json
import time
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.cli.main import main
from schemas.errors import JobFileError, UserError
from schemas.job.finetune import load_finetune_job
from schemas.job.job import load_access, load_job

SECRET = "PLANTED-5EC12E7"
JOB = "input: {manifest: a}\noutput: b\n"


def repeated(last: str, line: str) -> str:
    """YAML whose anchors each repeat the one before ten times."""
    lines = [line.format(k=k, each=", ".join([f"*b{k - 1}"] * 10)) for k in range(1, 9)]
    return "b0: &b0 {x: 1}\n" + "".join(lines) + last


CASES = {
    "a deep list": "input: " + "[" * 5000 + "]" * 5000,
    "a deep mapping": "{b: " * 900 + "}" * 900,
    "not closed": "{" * 5000,
    "a list in itself": "&a [*a]",
    "a mapping in itself": "input: &a {manifest: *a}\noutput: x",
    "options in themselves": JOB + "storage_options: &a {s3: *a}",
    "lists that repeat": repeated("", "b{k}: &b{k} [{each}]\n"),
    "mappings that repeat": repeated("", "b{k}: &b{k} {{<<: [{each}]}}\n"),
    "a list as a key": "? [a, b]\n: c",
    "a mapping as a key": "? {a: b}\n: c",
    "keys that are no texts": "1: a\nnull: b\ntrue: c",
    "a time that is none": "a: !!timestamp foo",
    "a date that is none": "input: 2026-13-45",
    "a boolean that is none": "a: !!bool foo",
    "a number that is none": "a: !!int foo",
    "a mapping that is none": "!!map foo",
    "an object of Python": "!!python/object/apply:os.system [ls]",
    "a long number": JOB + "limits: {max_cost: " + "9" * 6000 + "}",
    "two documents": "a: 1\n---\nb: 2",
    "half a character": 'input: {manifest: "\\ud800"}',
    "a NUL": "a: \0",
    "nothing": "",
    "a word": "foo",
    "a long file": "# " + "a" * (1 << 20) + "\n" + JOB,
    "a deep schema": JOB
    + "tasks: [{custom: {prompt: x, json_schema: "
    + "{items: " * 250
    + "{type: 5}"
    + "}" * 250
    + "}}]",
    "a schema of a strange kind": JOB + "tasks: [{custom: {prompt: x, json_schema: {$schema: 5}}}]",
}


@pytest.mark.parametrize("load", [load_job, load_finetune_job, load_access])
@pytest.mark.parametrize("name", CASES)
def test_an_odd_job_file_gives_one_message(tmp_path: Path, name: str, load):
    path = tmp_path / "job.yaml"
    path.write_bytes(CASES[name].encode())
    began = time.process_time()
    with pytest.raises(JobFileError) as error:
        load(path)
    assert time.process_time() - began < 20
    assert len(str(error.value)) < 5000


def test_anchors_as_a_person_writes_them(tmp_path: Path):
    path = tmp_path / "job.yaml"
    path.write_text(
        "input: {manifest: a}\noutput: b\n"
        "tasks:\n- objects: &labels {labels: [car]}\n- objects_3d: {<<: *labels}\n"
    )
    assert [task.labels for task in load_job(path).tasks] == [("car",), ("car",)]


@pytest.mark.parametrize("path", ["/tmp", "/tmp/\0x", "/nope/x", "/proc/self/mem"])
def test_a_path_that_is_no_job_file(path: str):
    with pytest.raises(JobFileError, match="job file"):
        load_job(Path(path))


@pytest.mark.parametrize(
    "value", ["a=" + "[" * 5000, "a=!!map foo", "a=&x [*x]", "a=!!bool foo", "a=? [b]\n: c"]
)
def test_an_odd_option(value: str):
    result = CliRunner().invoke(main, ["plan", "-i", "a", "-o", "b", "--set", value])
    assert result.exit_code == 2
    assert "Traceback" not in result.output


def test_a_value_is_shown_without_the_secrets_of_an_address(tmp_path: Path):
    path = tmp_path / "job.yaml"
    path.write_text(JOB + f"name: https://u:{SECRET}@h/a?x={SECRET}\n")
    with pytest.raises(JobFileError, match="name: .*h/a") as error:
        load_job(path)
    assert SECRET not in str(error.value)


def test_a_fault_in_the_program_shows_no_secret(monkeypatch):
    def fails(*args):
        raise RuntimeError(f"url='HTTPS://u:p@{SECRET}@h/a?verify={SECRET}' \x1b[2J")

    monkeypatch.setattr("jobs.run.scan.run", fails)
    result = CliRunner().invoke(main, ["scan", "a"])
    assert result.exit_code == 1
    assert "RuntimeError: url='HTTPS://h/a?...' \\x1b[2J" in result.output
    assert SECRET not in result.output


LABELS = [b"", b"\xff", b"[" * 100_000, b"5", b"[5]", b"{}", b'[{"annotations": 5}]', b"null"]


@pytest.mark.parametrize("content", LABELS)
def test_an_odd_file_of_labels(tmp_path: Path, content: bytes):
    (tmp_path / "labels.json").write_bytes(content)
    result = CliRunner().invoke(
        main, ["import-labels", f"{tmp_path}/labels.json", "-o", f"{tmp_path}/gold.jsonl"]
    )
    assert "Traceback" not in result.output
    assert result.exit_code == 2 or content == b"{}"


YAML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["task", "name", "labels", "s3", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
SECTIONS = ["input", "output", "tasks", "storage_options", "model", "sampling", "limits", "name"]


@settings(max_examples=150)
@given(spec=st.dictionaries(st.sampled_from(SECTIONS), YAML, max_size=4))
def test_any_values_in_the_known_sections(tmp_path_factory, spec: dict):
    path = tmp_path_factory.mktemp("odd") / "job.yaml"
    path.write_text(json.dumps(spec))
    for load in (load_job, load_finetune_job, load_access):
        with suppress(UserError):
            load(path)
