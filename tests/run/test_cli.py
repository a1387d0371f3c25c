"""The command line: quick help, exit codes, and messages without tracebacks."""

import json
import os
import resource
import subprocess
import sys
from contextlib import nullcontext

import pytest
from click.testing import CliRunner

import jobs.demo.demo
import jobs.plan.plan
import jobs.run.annotate
import jobs.run.on_finish
import jobs.run.retry
from jobs.cli.main import main
from pipeline.manifest.read import read_manifest
from pipeline.storage.storage import Storage
from schemas.errors import ResourceError
from schemas.job.job import check_job
from tests.support.paths import ROOT

HEAVY = {"ray", "torch", "transformers", "pyarrow", "pydantic", "pandas", "fsspec", "rich", "yaml"}


def call(*args):
    return CliRunner().invoke(main, [str(arg) for arg in args], prog_name="reelscribe")


@pytest.fixture(autouse=True)
def no_engine(monkeypatch):
    """No command starts the process of an engine."""
    monkeypatch.setattr("jobs.cluster.small.early_engine", lambda job: nullcontext())


@pytest.fixture
def started(monkeypatch):
    """Jobs that would have been run: what the command line made of its arguments."""
    jobs_run = []
    monkeypatch.setattr(jobs.run.annotate, "run", lambda job, *_: jobs_run.append(job))
    monkeypatch.setattr(jobs.plan.plan, "run", lambda job, *_, **__: jobs_run.append(job))
    monkeypatch.setattr(jobs.run.on_finish, "after_run", lambda run, job, storage: 0)
    return jobs_run


@pytest.fixture
def job_file(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("input: {scan: clips/, glob: '*.mp4'}\noutput: out\ntasks: [ocr]\n")
    return path


@pytest.mark.parametrize(
    "args", [["--help"], ["annotate", "--help"], ["scan", "-h"], ["--version"]]
)
def test_help_takes_less_than_half_a_second(args):
    # Of the CPU, which is nearly all of it: the clock on the wall would count other programs too.
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "jobs.cli", *args]
    done = subprocess.run(command, capture_output=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert b"reelscribe" in done.stdout
    assert done.stderr == b""
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


@pytest.mark.parametrize("command", [[], ["scan"], ["plan"], ["annotate"], ["demo"], ["schema"]])
def test_help_imports_nothing_heavy(command):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['reelscribe', *{command!r}, '--help']\n"
        "try: runpy.run_module('jobs.cli', run_name='__main__')\n"
        f"except SystemExit: print('heavy:', sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_retry_takes_a_job_a_run_and_error_types(monkeypatch, job_file):
    given = []
    monkeypatch.setattr(
        jobs.run.retry, "run", lambda job, console, **options: given.append(options)
    )
    args = ("retry", job_file, "--run", "r-1", "--error-type", "a", "--error-type", "b")
    assert call(*args, "--set", "name=other").exit_code == 0
    assert call("retry", job_file).exit_code == 0
    assert given == [
        {"run_id": "r-1", "error_types": ("a", "b")},
        {"run_id": None, "error_types": ()},
    ]


@pytest.mark.parametrize("command", ["plan", "annotate"])
def test_a_job_file_with_values_replaced(started, job_file, command):
    result = call(
        *(command, job_file),
        *("--set", "sampling.fps=0.5", "--set", "model.source=./ckpt", "--set", "tasks=[caption]"),
        *("--set", "budget.image_tokens=[4, 64]", "--set", "name=it-is"),
    )
    assert (result.exit_code, result.output) == (0, "")
    expected = {
        "name": "it-is",
        "input": {"scan": "clips/", "glob": "*.mp4"},
        "output": "out",
        "model": {"source": "./ckpt"},
        "sampling": {"fps": 0.5},
        "budget": {"image_tokens": [4, 64]},
        "tasks": ["caption"],
    }
    assert started == [check_job(expected, "test")]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("s3://b/clips/", {"scan": "s3://b/clips/"}),
        ("clips", {"scan": "clips"}),
        ("s3://b/m.parquet", {"manifest": "s3://b/m.parquet"}),
        ("parts.parquet/", {"manifest": "parts.parquet/"}),
        ("M.JSONL", {"manifest": "M.JSONL"}),
        ("m.csv.gz", {"manifest": "m.csv.gz"}),
        (os.fsdecode(b"/Z\xfcrich"), {"scan": "file:///Z%FCrich"}),
        ("film.MP4", {"manifest": "film.MP4"}),
        ("s3://b/a.heic", {"manifest": "s3://b/a.heic"}),
        ("https://h/a.jpg?sig=1", {"manifest": "https://h/a.jpg?sig=1"}),
        ("s3://b/clips.mov/", {"scan": "s3://b/clips.mov/"}),
    ],
)
def test_a_job_without_a_file(started, given, expected):
    result = call("annotate", "-i", given, "-o", "out", "-m", "./ckpt", "-t", "caption, ocr")
    assert (result.exit_code, result.output) == (0, "")
    spec = {"input": expected, "output": "out", "model": {"source": "./ckpt"}}
    assert started == [check_job(spec | {"tasks": ["caption", "ocr"]}, "test")]


def test_a_folder_named_as_a_video_is_scanned(started, tmp_path):
    (tmp_path / "clips.mov").mkdir()
    assert call("annotate", "-i", tmp_path / "clips.mov", "-o", "out").exit_code == 0
    assert started[0].input.scan == str(tmp_path / "clips.mov")


def test_a_file_instead_of_the_jobs_folder_marks_nothing_as_gone(started, tmp_path):
    (tmp_path / "job.yaml").write_text(
        "input: {scan: media, only_new: true, mark_gone: true}\noutput: out\n"
    )
    assert call("annotate", tmp_path / "job.yaml", "-i", "media/a.jpg").exit_code == 0
    assert call("annotate", tmp_path / "job.yaml").exit_code == 0
    assert [job.input.marks_gone for job in started] == [False, True]


HOOK = "on_finish: {webhook_env: REELSCRIBE_TEST_HOOK}\n"


@pytest.mark.parametrize(
    ("on_finish", "url", "message"),
    [
        (HOOK, None, "the environment variable REELSCRIBE_TEST_HOOK is not set"),
        (HOOK, "", "the environment variable REELSCRIBE_TEST_HOOK is not set"),
        (HOOK, "hooks.example.org/s3cret", "must hold a url that begins with https://"),
        ("on_finish: {command: [no-such-program, s3cret]}\n", None, "no program no-such-program"),
        (HOOK, "https://hooks.example.org/s3cret", None),
        ("on_finish: {command: [sh, s3cret]}\n", None, None),
    ],
)
def test_what_cannot_be_notified_is_said_before_the_run(
    started, job_file, monkeypatch, on_finish, url, message
):
    monkeypatch.delenv("REELSCRIBE_TEST_HOOK", raising=False)
    if url is not None:
        monkeypatch.setenv("REELSCRIBE_TEST_HOOK", url)
    job_file.write_text(job_file.read_text() + on_finish)
    result = call("annotate", job_file)
    assert (result.exit_code, len(started)) == ((2, 0) if message else (0, 1))
    assert (message or "") in result.stderr and "s3cret" not in result.stderr
    assert call("annotate", job_file, "--dry-run").exit_code == 0  # notifies nobody


def test_options_replace_the_file(started, job_file):
    result = call("plan", job_file, "--input", "m.csv", "--output", "other")
    assert result.exit_code == 0
    assert started[0].input.manifest == "m.csv"
    assert started[0].input.scan is None
    assert started[0].output == "other"
    assert [task.name for task in started[0].tasks] == ["ocr"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["annotate"], "give a job file, or at least --input and --output"),
        (["annotate", "-i", "clips/"], "error: the job is not valid:\n  output: required\n"),
        (["annotate", "nope.yaml"], "error: there is no job file nope.yaml\n"),
        (["plan", "-i", "a", "--set", "x"], "--set takes KEY=VALUE, such as sampling.fps=1, got"),
        (["plan", "-i", "a", "--set", "x=[s3cret"], "--set x: the value is not valid YAML"),
        (
            ["plan", "-i", "a", "--set", "sampling.fps.x=1"],
            "  sampling.fps: must be a valid number",
        ),
        (["plan", "-i", "a", "-o", "b", "-t", "captoin"], "  tasks.0: unknown task 'captoin', did"),
        (["scan", "/nope"], "error: /nope does not exist"),
        (["scan", "/nope", "-o", "m.xlsx"], "error: a manifest is written as .parquet or .jsonl"),
        (["scan", "/no\x1b[2Jpe"], "error: /no\\x1b[2Jpe does not exist"),
        (["fly"], "No such command 'fly'"),
    ],
)
def test_a_mistake_is_a_message_and_exit_code_2(started, args, message):
    result = call(*args)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "s3cret" not in result.stderr
    assert result.stdout == ""
    assert isinstance(result.exception, SystemExit)  # not the error itself: no traceback
    assert started == []


def test_a_user_error_of_a_job(job_file, monkeypatch):
    class NoGpu(ResourceError):
        code = "no-gpu"

    def too_small(job, console, engine):
        raise NoGpu("this cluster has no GPU")

    monkeypatch.setattr(jobs.run.annotate, "run", too_small)
    result = call("annotate", job_file)
    assert result.exit_code == 2
    assert result.stderr == "error: this cluster has no GPU\nsee docs/errors.md#no-gpu\n"


def test_an_interruption_says_how_to_go_on(job_file, monkeypatch):
    def interrupted(job, console, engine):
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs.run.annotate, "run", interrupted)
    result = call("annotate", job_file)
    assert result.exit_code == 130
    assert result.stderr == "interrupted; run the same command again to continue\n"


def test_an_error_of_ours_keeps_its_traceback(job_file, monkeypatch):
    def broken(job, console, engine):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(jobs.run.annotate, "run", broken)
    result = call("annotate", job_file)
    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback")
    assert result.stderr.endswith("ZeroDivisionError: ours\n")


def test_demo_gets_its_folder(monkeypatch, tmp_path):
    folders = []
    monkeypatch.setattr(jobs.demo.demo, "run", lambda folder, console: folders.append(folder))
    assert call("demo", tmp_path).exit_code == 0
    assert call("demo").exit_code == 0
    assert [str(folder) for folder in folders] == [str(tmp_path), "demo"]


@pytest.mark.parametrize(
    ("options", "name"), [([], "job.schema.json"), (["--finetune"], "finetune.schema.json")]
)
def test_schema_prints_what_editors_read(options, name):
    result = call("schema", *options)
    assert result.exit_code == 0
    assert result.output == (ROOT / "docs" / name).read_text()
    assert json.loads(result.output)["additionalProperties"] is False


def test_scan_counts_and_writes_a_manifest(tmp_path):
    for name, size in {"a.jpg": 10, "b.mp4": 2000, "c.mov": 0, "d.txt": 5}.items():
        (tmp_path / name).write_bytes(b"x" * size)
    output = tmp_path / "out" / "manifest.jsonl"
    result = call("scan", tmp_path, "--output", output)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        f"3 media below {tmp_path}",
        "  images    1, 10 bytes",
        "  videos    2, 2.0 kB",
        "  left out  files of another kind: 1 (1 x .txt), such as d.txt",
        "  empty     1 of them have no bytes and will be error rows",
        f"  manifest  {output}",
    ]
    items = read_manifest(str(output), Storage())
    assert [(item.uri, item.media_type) for item in items] == [
        (f"{tmp_path}/a.jpg", "image"),
        (f"{tmp_path}/b.mp4", "video"),
        (f"{tmp_path}/c.mov", "video"),
    ]


def test_scan_of_s3(s3_env, tmp_path, monkeypatch):
    Storage().write_bytes(s3_env.uri("clips/a.mp4"), b"x")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    result = call(
        *("scan", s3_env.uri("clips/"), "--endpoint-url", s3_env.endpoint_url),
        *("--glob", "*.mp4", "-o", tmp_path / "m.parquet"),
    )
    assert (result.exit_code, result.stderr) == (0, "")
    (item,) = read_manifest(f"{tmp_path}/m.parquet", Storage())
    assert item.uri == s3_env.uri("clips/a.mp4")


def test_python_m(tmp_path):
    command = [sys.executable, "-m", "jobs.cli", "scan", str(tmp_path / "nope")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "nope does not exist\n" in done.stderr
    assert "Traceback" not in done.stderr
