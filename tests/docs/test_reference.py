"""The reference pages: made from the code, never stale, and complete."""

import json
import re

import jsonschema
import pytest
import yaml
from click.testing import CliRunner

from schemas.errors import ErrorType, JobFileError
from schemas.job.job import Job, check_job
from schemas.job.json_schema import job_schema
from scripts.docs import reference
from scripts.docs.job_pages import EXAMPLE
from scripts.docs.reference import DOCS, main, pages
from tests.support.paths import ROOT

SPEC_FILES = sorted(
    [*(ROOT / "jobs/specs").glob("*.yaml"), *(ROOT / "scripts/demo_model").glob("*.yaml")]
)
SPECS = {path.name: yaml.safe_load(path.read_text()) for path in SPEC_FILES}
TRAININGS = [name for name, spec in SPECS.items() if "data" in spec]
MINIMAL = {"input": {"scan": "clips/"}, "output": "out"}


@pytest.fixture(scope="module")
def validator():
    jsonschema.Draft202012Validator.check_schema(job_schema())
    return jsonschema.Draft202012Validator(job_schema())


@pytest.mark.parametrize("name", sorted(pages()))
def test_pages_are_not_stale(name):
    """If this fails: python -m scripts.docs.reference"""
    assert (DOCS / name).read_text(encoding="utf-8") == pages()[name]


def test_check_names_the_stale_page(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "DOCS", tmp_path / "docs")
    assert CliRunner().invoke(main, []).exit_code == 0
    assert CliRunner().invoke(main, ["--check"]).exit_code == 0
    (tmp_path / "docs" / "job-file.md").write_text("old")
    result = CliRunner().invoke(main, ["--check"])
    assert result.exit_code == 1
    assert result.stderr == "docs/job-file.md is stale, run `python -m scripts.docs.reference`\n"
    assert (tmp_path / "docs" / "job-file.md").read_text() == "old"
    result = CliRunner().invoke(main, [])
    assert (result.exit_code, result.stdout) == (0, "docs/job-file.md was written\n")


def test_every_key_and_column_has_a_meaning():
    for name in ("job-file.md", "output-schema.md"):
        rows = [line for line in pages()[name].splitlines() if line.startswith("| `")]
        assert len(rows) > 40
        for row in rows:
            cells = re.split(r"(?<!\\)\|", row)
            assert cells[-2].strip(), f"{name}: no meaning in {row}"


def test_every_error_type_says_what_to_do():
    for error_type in ErrorType:
        assert error_type.meaning.endswith(".")
        assert error_type.advice.endswith(".")
        assert f"| `{error_type}` | {error_type.meaning} |" in pages()["output-schema.md"]


def keys_of(model, prefix=""):
    for name, field in model.model_fields.items():
        yield name
        if hasattr(field.annotation, "model_fields"):
            yield from keys_of(field.annotation)


def test_every_key_is_in_the_page():
    page = pages()["job-file.md"]
    assert [key for key in keys_of(Job) if f"| `{key}` |" not in page] == []


@pytest.mark.parametrize(
    "job",
    [yaml.safe_load(EXAMPLE), *[spec for name, spec in SPECS.items() if name not in TRAININGS]],
    ids=["example", *[name for name in SPECS if name not in TRAININGS]],
)
def test_jobs_that_we_give_are_valid(job, validator):
    check_job(job, "test")
    validator.validate(job)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"model": None, "sampling": {"segmentation": None}},
        {"tasks": ["caption", {"objects": {"labels": ["car"]}}, {"ocr": None}]},
        {"tasks": [{"name": "events", "prompt": "What happens?", "max_new_tokens": 9}]},
        {"tasks": [{"name": "defects", "task": "custom", "prompt": "?"}, {"task": "ocr"}]},
        {"tasks": [{"season": {"task": "custom", "prompt": "?"}}]},
        {"tasks": [{"fields": {"name": "invoice", "keys": ["total"]}}]},
        {"budget": {"image_tokens": [4, 64]}, "resources": {"replicas": 2, "decoders": "auto"}},
        {"storage_options": {"s3": {"endpoint_url": "http://minio:9000", "secret": "x"}}},
    ],
)
def test_the_json_schema_accepts_what_the_job_file_accepts(change, validator):
    check_job(MINIMAL | change, "test")
    validator.validate(MINIMAL | change)


@pytest.mark.parametrize(
    "change",
    [
        {"xyzzy": 1},
        {"output": None},
        {"input": {"scan": "a", "manifest": "b"}},
        {"input": {}},
        {"sampling": {"fsp": 1}},
        {"tasks": ["captoin"]},
        {"tasks": [{"name": "captoin"}]},
        {"tasks": [{"prompt": "?", "max_new_tokens": 3}]},
        {"tasks": [{"season": {"prompt": "?"}}]},
        {"tasks": [{"Season": {"task": "custom", "prompt": "?"}}]},
        {"tasks": [{"objects": ["car"]}]},
        {"tasks": [{"objects": {"lables": ["car"]}}]},
        {"tasks": [{"objects": {}, "ocr": {}}]},
        {"budget": {"image_tokens": [4]}},
        {"resources": {"replicas": 0}},
    ],
)
def test_the_json_schema_refuses_what_the_job_file_refuses(change, validator):
    with pytest.raises(JobFileError):
        check_job(MINIMAL | change, "test")
    assert not validator.is_valid(MINIMAL | change)


@pytest.mark.parametrize("path", SPEC_FILES, ids=lambda path: path.name)
def test_editors_find_the_schema_of_a_spec(path):
    name = "finetune.schema.json" if path.name in TRAININGS else "job.schema.json"
    key, schema = path.read_text().splitlines()[0].split("=")
    assert key == "# yaml-language-server: $schema"
    assert (path.parent / schema).resolve() == DOCS / name
    jsonschema.validate(SPECS[path.name], json.loads((DOCS / name).read_text()))


def test_pages_are_the_same_every_time():
    assert pages() == pages()
    assert json.loads(pages()["job.schema.json"])["$schema"].endswith("2020-12/schema")
