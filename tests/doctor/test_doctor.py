"""The command: its page, its JSON, its exit codes; what is hidden, and what it never does."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner, Result

from jobs.cli.main import main
from jobs.doctor.secret_values import without_secrets
from tests.support.faulty_s3 import FaultyS3
from tests.support.machines import good_facts
from tests.support.paths import ROOT

SECRET = "PLANTED-5EC12E7"
SCHEMA = {
    "type": "object",
    "required": ["ready", "findings", "machines"],
    "additionalProperties": False,
    "properties": {
        "ready": {"type": "boolean"},
        "findings": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["topic", "name", "state", "text"],
                "additionalProperties": False,
                "properties": {
                    "topic": {
                        "enum": [
                            *("machine", "cluster", "input", "output", "model", "job", "assumed")
                        ]
                    },
                    "name": {"type": "string", "minLength": 1},
                    "state": {"enum": ["ok", "warning", "to do"]},
                    "text": {"type": "string", "minLength": 1},
                },
            },
        },
        "machines": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {
                "type": "object",
                "required": ["python", "torch", "gpus", "code", "shm_free_bytes"],
                "properties": {
                    "gpus": {
                        "type": "array",
                        "items": {"required": ["name", "memory_bytes", "used_bytes"]},
                    }
                },
            },
        },
    },
}


@pytest.fixture(autouse=True)
def one_good_machine(monkeypatch: pytest.MonkeyPatch, no_ray: None):
    """To collect the facts of this one takes seconds; test_machine.py does."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("jobs.doctor.doctor.collect", lambda steps=None: good_facts())
    monkeypatch.setattr("jobs.doctor.doctor.running_ray", lambda: None)


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"x")
    path = tmp_path / "job.yaml"
    path.write_text(
        f"input: {{scan: {tmp_path}/clips}}\noutput: {tmp_path}/out\n"
        f"model: {{source: {ROOT}/jobs/demo_model}}\n"
    )
    return path


def doctor(*args: object) -> Result:
    return CliRunner().invoke(main, ["doctor", *map(str, args)], catch_exceptions=False)


def read_json(result: Result) -> dict:
    content = json.loads(result.stdout)
    jsonschema.validate(content, SCHEMA)
    assert content["ready"] == (result.exit_code == 0)
    return content


def texts(content: dict, state: str) -> list[str]:
    return [f"{f['topic']} {f['name']}" for f in content["findings"] if f["state"] == state]


def test_without_a_job_the_machine_alone():
    content = read_json(doctor("--json"))
    assert {each["topic"] for each in content["findings"]} == {"machine"}
    assert content["machines"]["this machine"]["gpus"][0]["name"] == "NVIDIA H100 80GB HBM3"


def test_a_job_that_can_run(job_file: Path, tmp_path: Path):
    before = sorted(tmp_path.rglob("*"))
    result = doctor(job_file, "--json")
    content = read_json(result)
    assert (result.exit_code, texts(content, "to do"), texts(content, "warning")) == (0, [], [])
    topics = [each["topic"] for each in content["findings"]]
    assert list(dict.fromkeys(topics)) == [
        *("machine", "input", "output", "model", "job", "assumed")
    ]
    assert sorted(tmp_path.rglob("*")) == before


def test_the_page_has_a_line_for_each_check(job_file: Path):
    content = read_json(doctor(job_file, "--json"))
    page = doctor(job_file)
    assert page.exit_code == 0
    lines = page.stdout.splitlines()
    for each in content["findings"]:
        start = f"  {each['name'][:20]}"
        assert any(start in line and f" {each['state']} " in line for line in lines), each
    assert lines[-1] == f"{len(content['findings'])} ok, 0 warning, 0 to do"


def test_options_are_those_of_annotate(job_file: Path, tmp_path: Path):
    result = doctor(job_file, "--model", tmp_path / "gone", "--set", "sampling.fps=1", "--json")
    assert result.exit_code == 1
    assert texts(read_json(result), "to do") == ["model found"]


def test_all_troubles_are_on_one_page(job_file: Path, tmp_path: Path):
    (tmp_path / "out").write_text("a file in the output's place")
    result = doctor(
        *(job_file, "--input", tmp_path / "gone.jsonl", "--model", tmp_path / "gone", "--json"),
        *("--set", "on_finish.command=[no-such-program]", "--set", "resources.replicas=999"),
    )
    assert result.exit_code == 1
    assert texts(read_json(result), "to do") == [
        *("input list", "output write", "model found", "job actors", "job on_finish")
    ]


@pytest.mark.parametrize("text", ["input: {scan: x}\noutput: o\nmodle: {}\n", "a: [", "", "[1]"])
def test_a_wrong_job_file_is_a_line(tmp_path: Path, text: str):
    (tmp_path / "job.yaml").write_text(text)
    result = doctor(tmp_path / "job.yaml", "--json")
    assert result.exit_code == 1
    content = read_json(result)
    assert texts(content, "to do") == ["job job file"]
    assert {each["topic"] for each in content["findings"]} == {"job", "machine"}


def test_no_such_job_file(tmp_path: Path):
    result = doctor(tmp_path / "gone.yaml")
    assert result.exit_code == 1 and "gone.yaml" in result.stdout


def test_storage_options_that_would_leak(job_file: Path):
    job_file.write_text(job_file.read_text() + "storage_options: {https: {headers: {A: b}}}\n")
    result = doctor(job_file, "--json")
    assert texts(read_json(result), "to do") == ["job storage_options"]


def test_a_cluster_that_does_not_answer(job_file: Path, monkeypatch: pytest.MonkeyPatch):
    """The other checks are made; what depends on its machines is left out."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.setattr("jobs.cluster.start._CLUSTER_SECONDS", 0.0)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # whatever other tests have started
    result = doctor(job_file, "--json")
    assert result.exit_code == 1
    content = read_json(result)
    assert texts(content, "to do") == ["cluster Ray"]
    names = {f"{each['topic']} {each['name']}" for each in content["findings"]}
    assert "model whole" in names and "output write" in names
    assert not {"job actors", "model fits", "assumed resources.replicas"} & names


# Secrets, hostile names


def test_no_secret_is_shown(s3, job_file: Path, monkeypatch: pytest.MonkeyPatch):
    """Not those of the job, of addresses, or of the environment, whatever a library says."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{SECRET}-env")
    with FaultyS3(s3.endpoint_url) as proxy:
        proxy.expired = True
        s3_options = {"key": f"{SECRET}-key", "secret": f"{SECRET}-own", "endpoint_url": proxy.url}
        options = json.dumps({"s3": s3_options})
        job_file.write_text(job_file.read_text() + f"storage_options: {options}\n")
        arguments = (
            *(job_file, "-i", f"https://user:{SECRET}@127.0.0.1/m.jsonl?sig={SECRET}"),
            # Messages say the name of the folder, here also a secret.
            *("--output", "s3://bucket/out", "--model", f"./{SECRET}-own"),
        )
        found = doctor(*arguments, "--json")
        content = read_json(found)
        assert {"input list", "output list", "output write", "model found"} <= {
            *texts(content, "to do")
        }
        page = doctor(*arguments)
    for result in (found, page):
        assert SECRET not in result.output


def test_a_secret_that_a_library_says_is_hidden(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", f"{SECRET}-env")
    options = {"s3": {"secret": f"{SECRET}-own", "client_kwargs": {"token": f"{SECRET}-deep"}}}
    said = {"a": [f"bad {SECRET}-own, {SECRET}-deep", f"{SECRET}-env\x1b[2J"], "b": 3}
    assert without_secrets(said, options) == {"a": ["bad ..., ...", "...\\x1b[2J"], "b": 3}


def test_hostile_names_do_not_act_on_the_terminal(tmp_path: Path):
    folder = tmp_path / "clips\x1b[2J"
    folder.mkdir()
    (folder / "a\u202eb\n.mp4").write_bytes(b"x")
    arguments = ("-i", folder, "-o", tmp_path / "out\x1b]0;x\x07", "-m", tmp_path / "m\x1b[1m")
    for result in (doctor(*arguments), doctor(*arguments, "--json")):
        assert result.exit_code == 1
        assert "\x1b" not in result.output and "\u202e" not in result.output
        assert "\\x1b" in result.output or "\\\\x1b" in result.output


# What it costs, and what it does not do


def test_help_is_quick_and_imports_nothing_heavy():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = (
        "import runpy, sys\nsys.argv = ['reelscribe', 'doctor', '--help']\n"
        "try: runpy.run_module('jobs.cli', run_name='__main__')\n"
        "except SystemExit: print({'ray', 'torch', 'transformers', 'rich'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.stdout.splitlines()[-1] == "set()"
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


IMPATIENT = """
import sys
from jobs.cli.main import main
from jobs.doctor import doctor, finding, storage
finding.SECONDS = storage.REMOVE_SECONDS = 0.5
doctor.collect = lambda steps=None: doctor.Facts(python="3")
try:
    main()
finally:
    print("started Ray:", "ray" in sys.modules and sys.modules["ray"].is_initialized())
"""


def test_it_starts_no_ray_and_ends_although_a_check_hangs(silent: str, job_file: Path):
    """A check that is late stays behind in a thread, which must not keep the process."""
    arguments = ["doctor", str(job_file), "--output", "s3://bucket/out"]
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL": silent}
    done = subprocess.run(
        [sys.executable, "-c", IMPATIENT, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=env | keys,
        timeout=600,
    )
    assert done.returncode == 1, done.stderr
    assert "no answer within 0.5 s" in done.stdout
    assert done.stdout.splitlines()[-1] == "started Ray: False"
