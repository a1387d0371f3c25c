"""The pages' commands, SQL and Python run, their job files are valid, their links exist."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml
from click import Context
from click.testing import CliRunner

from jobs.cli.main import main
from jobs.cli.results import EXPORTS
from pipeline.engines.answer_schema import check_grammars
from pipeline.manifest.messages import read_messages, split_messages
from pipeline.manifest.read import read_manifest
from pipeline.storage.storage import Storage
from pipeline.tasks.registry import TASKS
from schemas.errors import JobFileError
from schemas.job.finetune import FinetuneJob
from schemas.job.job import Job, check_job
from schemas.job.load import check, read_spec
from schemas.job.task_spec import TASK_NAMES
from tests.support.pages import blocks
from tests.support.paths import ROOT

GUIDE = ROOT / "docs" / "guide.md"
TUNING = ROOT / "docs" / "tuning.md"
RESULTS = ROOT / "docs" / "results.md"
OPERATIONS = ROOT / "docs" / "operations.md"
SPEC = ROOT / "jobs" / "specs" / "demo.yaml"
SMALLEST_JOB = {"input": {"scan": "clips"}, "output": "out"}
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


def test_the_readmes_commands_run(demonstrated: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(demonstrated)
    lines = [line for block in blocks(ROOT / "README.md", "bash") for line in block.splitlines()]
    commands = [line.partition("reelscribe ")[2] for line in lines if "reelscribe " in line]
    assert len(commands) == 5
    for command in commands:
        result = CliRunner().invoke(main, shlex.split(command), catch_exceptions=False)
        assert result.exit_code == 0, (command, result.output)
        assert command.split()[0] != "annotate" or "is complete" in result.output
    assert "caption" in result.output and "exact" in result.output


def test_the_readmes_sql_runs(demonstrated: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(demonstrated)
    queries = blocks(ROOT / "README.md", "sql")
    assert len(queries) == 3
    found = [duckdb.sql(query) for query in queries]
    assert found[0].columns == ["uri", "pts_seconds", "text"]
    assert found[1].columns == ["uri", "start_seconds", "end_seconds", "caption"]
    assert found[2].fetchall()[0][:2] == ("media_unreadable", 4)


def test_the_tuning_pages_sql_runs(demonstrated: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(demonstrated)
    seconds, tokens = (duckdb.sql(query).df() for query in blocks(TUNING, "sql"))
    assert list(seconds["media"]) == ["image", "video"] and seconds["units"].sum() == 48
    assert (seconds[["decode_seconds", "engine_seconds"]] > 0).all(axis=None)
    assert set(tokens["task"]) == {"caption", "events", "ocr", "text_spans", "objects"}
    keys = re.findall(
        r"`((?:resources|budget|sampling|generation|model\.vllm)\.\w+)", TUNING.read_text()
    )
    for key in keys:  # each setting exists
        *sections, last = key.split(".")
        section: Any = Job
        for name in sections:
            section = section.model_fields[name].annotation
        assert last in section.model_fields, key


def test_the_readmes_pandas_runs(demonstrated: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(demonstrated)
    (code,) = [code for code in blocks(ROOT / "README.md", "python") if "pandas" in code]
    exec(code, {})
    assert "circle" in capsys.readouterr().out


def test_the_readmes_spark_runs(demonstrated: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    pytest.importorskip("pyspark", reason="pyspark is not installed (400 MB, and needs Java)")
    monkeypatch.chdir(demonstrated)
    (code,) = [code for code in blocks(ROOT / "README.md", "python") if "pyspark" in code]
    exec(code, {})
    assert "start_seconds" in capsys.readouterr().out


def test_the_results_pages_commands_run(demonstrated: Path, monkeypatch: pytest.MonkeyPatch):
    """On the demo's output, in the order of the page."""
    monkeypatch.chdir(demonstrated)
    (demonstrated / "archive").symlink_to(demonstrated / "demo" / "output")
    media = demonstrated / "demo" / "archive"
    gold = [json.loads(line) for line in (media / "gold.jsonl").read_text().splitlines()]
    gold = [row | {"uri": str(media / row["uri"])} for row in gold]  # uris relative to the archive
    (demonstrated / "gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in gold))
    lines = [line for block in blocks(RESULTS, "bash") for line in block.splitlines()]
    assert len(lines) == 6 and all(line.startswith("reelscribe ") for line in lines)
    for line in lines:
        if "import-labels" in line:  # in place of a person: every prediction is accepted
            tasks = json.loads((demonstrated / "exported/labels/images.json").read_text())
            done = [t | {"annotations": [{"result": t["predictions"][0]["result"]}]} for t in tasks]
            (demonstrated / "labels.json").write_text(json.dumps(done))
        arguments = shlex.split(line.removeprefix("reelscribe "))
        result = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, (line, result.output)
    assert (demonstrated / "worst.html").stat().st_size > 100_000
    formats = re.findall(r"^\| (`[^|]*`) \|", RESULTS.read_text(), re.MULTILINE)
    assert [name for cell in formats for name in re.findall(r"`(\w+)`", cell)] == [*EXPORTS]


def test_the_doctors_page_is_as_shown(demonstrated: Path, no_ray, monkeypatch: pytest.MonkeyPatch):
    """Its names and states; versions and sizes differ."""
    monkeypatch.chdir(demonstrated)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (shown,) = [text for text in blocks(OPERATIONS, "text") if "found, or what to do" in text]
    (line,) = [line for line in blocks(OPERATIONS, "bash") if "doctor" in line]
    before = sorted((demonstrated / "demo" / "output").rglob("*"))
    arguments = shlex.split(line.removeprefix("reelscribe "))
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert sorted((demonstrated / "demo" / "output").rglob("*")) == before
    checks = re.compile(r"^  (?:\w+ +|  +)(\S+(?: \S+)*) +(ok|warning|to do) ", re.MULTILINE)
    printed = checks.findall(result.output)
    assert len(checks.findall(shown)) == 16
    names = {name for name, _ in printed}
    assert {name for name, _ in checks.findall(shown)} - {"GPU"} <= names
    assert ("whole", "ok") in printed and ("remove", "ok") in printed


def test_the_python_pages_code_runs(
    demonstrated: Path, ray_session, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(demonstrated)
    (code,) = blocks(ROOT / "docs" / "python.md", "python")
    names: dict[str, Any] = {}
    exec(code, names)
    assert "52 units" in capsys.readouterr().out
    results = names["results"]
    assert results.to_ray().count() == len(results) == 52
    job = {"input": {"scan": "demo/archive"}, "output": "demo/output"}
    overrides = {"input.scan": "demo/archive", "output": "demo/output"}
    with pytest.raises(JobFileError, match="tasks"):
        names["annotate"](job | {"tasks": ["nothing"]})
    # The demo's run is complete: the model is not loaded again.
    again = names["annotate"](SPEC, overrides | {"model.source": "jobs/demo_model"})
    assert again.to_arrow().equals(results.to_arrow())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_docs_exist_with_their_options(page: Path):
    """Only parsed: some name media that do not exist, such as s3://media."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    for line in (line for line in lines if "reelscribe " in line.partition("#")[0]):
        name, *arguments = shlex.split(line.partition("reelscribe ")[2], comments=True)
        command = main.get_command(Context(main), name)
        assert command is not None, line
        command.make_parser(Context(command)).parse_args(arguments)


def job_class(spec: dict) -> type:
    return FinetuneJob if "data" in spec else Job


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_job_files_in_the_docs_are_valid(page: Path):
    """A whole job file is checked alone, a part of one inside the smallest job."""
    for block in blocks(page, "yaml"):
        spec = yaml.safe_load(block)
        assert isinstance(spec, dict), block
        if "output" in spec:
            check(job_class(spec), spec, page.name)
        else:
            check_grammars(check_job(SMALLEST_JOB | spec, block))


@pytest.mark.parametrize("page", [GUIDE, ROOT / "docs" / "budgets.md"], ids=lambda page: page.name)
def test_settings_in_the_text_are_valid(page: Path):
    found = re.findall(r"`((?:\w+\.)*\w+): (\{[^`]*\})`", page.read_text())
    settings = [(name, value) for name, value in found if name.split(".")[0] in Job.model_fields]
    assert settings
    for name, value in settings:
        check_job(
            read_spec(None, {**SMALLEST_JOB, name: yaml.safe_load(value)}), f"{name}: {value}"
        )


def test_the_guide_shows_every_task():
    parts = [yaml.safe_load(block) for block in blocks(GUIDE, "yaml")]
    shown = {q.task for part in parts for q in check_job(SMALLEST_JOB | part, "part").questions()}
    assert shown == set(TASK_NAMES)
    table = re.findall(r"^\| [^|]+ \| `(\w+)` \| ([^|]+) \|", GUIDE.read_text(), re.MULTILINE)
    assert {name for name, _ in table} == set(TASK_NAMES)
    for name, asked_about in table:
        assert set(asked_about.strip().split(", ")) == {
            f"{m.removesuffix('s')}s" for m in TASKS[name].media_types
        }


def test_the_guides_manifests_are_valid(tmp_path: Path):
    manifests = [block for block in blocks(GUIDE, "json") if "messages" not in block]
    assert len(manifests) == 2
    for text in manifests:
        (tmp_path / "manifest.jsonl").write_text(text)
        items = read_manifest(str(tmp_path / "manifest.jsonl"), Storage())
        assert len(items) == len(text.splitlines())
        assert not any(item.attributes for item in items)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_messages_in_the_docs_are_valid(page: Path):
    for block in blocks(page, "json"):
        if '"messages"' in block:
            messages = json.loads(block)["messages"]
            _, media = split_messages(read_messages(messages, "s3://media"))
            assert [item.media_type for item in media] == ["image", "image", "video"]


@pytest.mark.parametrize(
    "spec",
    sorted([*(ROOT / "jobs/specs").glob("*.yaml"), *(ROOT / "scripts/demo_model").glob("*.yaml")]),
    ids=str,
)
def test_the_ready_made_job_files_are_valid(spec: Path):
    job = yaml.safe_load(spec.read_text())
    check(job_class(job), job, spec.name)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "deploy" / "README.md"], ids=str)
def test_links_lead_somewhere(page: Path):
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        if "://" in target:
            continue
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", linked.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in anchors, f"{target}#{anchor}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "deploy" / "README.md"], ids=str)
def test_a_line_has_one_sentence(page: Path):
    """Except in tables, in blocks of code, and in the generated references."""
    text = page.read_text()
    if "<!-- Made by" in text:
        return
    for line in re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL).splitlines():
        if not line.startswith(("|", "#", "- Do:")):
            prose = re.sub(r"`[^`]*`", "code", re.sub(r"^\W*\*+[^*]+\*+", "", line))
            assert not re.search(r"[a-z)][.!?] +[A-Z`*\[]", prose), line


def test_make_targets_named_in_the_docs_exist():
    makefile = (ROOT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"^make ([\w-]+)", page.read_text(), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
