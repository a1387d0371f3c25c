"""What a run tells: metrics for Prometheus, JSON lines, summary.json, an exit code, a call."""

import http.server
import io
import json
import logging
import re
import sys
import threading
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console

from jobs.cli.main import main
from jobs.observe import prometheus as meters
from jobs.observe.log import RunLog, log_as_json
from jobs.plan.runs import Run
from jobs.run import annotate
from jobs.run.on_finish import TOO_MANY_FAILED, after_run, notify
from pipeline.storage.storage import Storage
from schemas.errors import JobFileError
from schemas.job.job import check_job
from schemas.job.limits import OnFinish
from tests.support.job_files import SMALL
from tests.support.paths import ROOT
from tests.support.waiting import wait_until

MONITORING = ROOT / "deploy" / "monitoring"
ONLY_WITH_GPUS = {"ray_node_gpus_utilization"}
# Gauges are gone soon after their last value, and counters are there only once they have counted.
IN_PASSING = {
    *(f"ray_{name}" for name in meters.GAUGES),
    "ray_reelscribe_retries_total",
    "ray_reelscribe_read_bytes_total",
    "ray_data_operator_queued_blocks",
}
STORAGE = Storage()


def spec(archive: Path, checkpoint: Path, output: Path, **changes) -> dict:
    model = {"source": str(checkpoint), "engine": "simulated"}
    fields = {"name": "watched", "input": {"scan": str(archive)}, "output": str(output)}
    return SMALL | fields | {"model": model} | changes


@pytest.fixture(scope="module")
def watched(archive, checkpoint, tmp_path_factory, ray_session):
    """A run of the whole pipeline: its job, output and result."""
    output = tmp_path_factory.mktemp("watched")
    job = check_job(spec(archive, checkpoint, output), "test")
    return job, output, annotate.run(job, Console(file=io.StringIO(), width=120))


def scrape() -> str:
    import ray

    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=300) as answer:
        return answer.read().decode()


def asked_for() -> dict[str, set[str]]:
    """The metrics that dashboard and alerts use, and the labels they use of each."""
    board = json.loads((MONITORING / "dashboard.json").read_text())
    rules = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    found: dict[str, set[str]] = {}
    for query in queries:
        for name, labels in re.findall(r"(ray_\w+)(?:\{([^}]*)\})?", query):
            found.setdefault(name, set()).update(re.findall(r"(\w+)\s*[!=]~?\"", labels))
    return found


def test_every_metric_of_dashboard_and_alerts_is_exported(watched):
    pytest.importorskip("prometheus_client", reason="ray[default] is not installed: no metrics")
    own = {**meters.GAUGES, **meters.COUNTERS}
    for name, labels in asked_for().items():
        known = name.removeprefix("ray_").removesuffix("_total")
        if name in IN_PASSING and known in own:
            assert labels <= {*own[known][1], "job_name"}, name
    kept = set(asked_for()) - ONLY_WITH_GPUS - IN_PASSING
    wanted = {name: labels for name, labels in asked_for().items() if name in kept}
    assert len(wanted) > 10
    names = {}

    def are_exported() -> bool:
        lines = [line for line in scrape().splitlines() if line.startswith("ray_")]
        names.update({re.match(r"\w+", line)[0]: line for line in lines})
        return not set(wanted) - set(names)

    wait_until(are_exported, every=1.0)
    for name, labels in wanted.items():
        assert labels <= set(re.findall(r"(\w+)=\"", names[name])), names[name]


def test_metrics_say_what_the_table_says(watched):
    pytest.importorskip("prometheus_client", reason="ray[default] is not installed: no metrics")
    _, _, run = watched

    def total(text: str, name: str, label: str = "") -> float:
        pattern = rf'^ray_{name}\{{([^}}]*job_name="watched"[^}}]*)\}} (\S+)$'
        found = re.findall(pattern, text, re.MULTILINE)
        return sum(float(value) for labels, value in found if label in labels)

    expected = {
        ("units_total", ""): run.counts["units"],
        ("units_total", 'status="failed"'): 4,
        ("errors_total", 'type="media_unreadable"'): 4,
        ("prompt_tokens_total", ""): run.counts["prompt_tokens"],
        ("output_tokens_total", ""): run.counts["output_tokens"],
        ("busy_seconds_total", 'stage="decode"'): run.counts["decode_seconds"],
    }

    def are_there() -> bool:
        """Each process exports its own figures, some later than others."""
        text = scrape()
        found = {key: total(text, f"reelscribe_{key[0]}", key[1]) for key in expected}
        return found == pytest.approx(expected, abs=0.01)

    wait_until(are_there, every=1.0)


def test_the_log_names_the_run_and_the_units(watched):
    _, output, run = watched
    (file,) = (output / "runs" / run.run_id).glob("log-*.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["run_id"] for line in lines} == {run.run_id}
    assert lines[0]["event"] == "annotating" and lines[-1]["event"] == "annotated"
    committed = [line["units"] for line in lines if line["event"] == "units_committed"]
    assert sum(committed) == run.counts["units"]
    failed = [line for line in lines if line["event"] == "unit_failed"]
    assert len({line["unit_id"] for line in failed}) == 4
    assert {line["type"] for line in failed} == {"media_unreadable"}


def committed(units: int) -> list[dict]:
    rows = [{"unit_id": f"u{k}", "num_output_tokens": 2, "error": None} for k in range(units)]
    return rows


def test_a_long_run_has_a_small_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Units are counted together, and no file is rewritten once it has a megabyte."""
    monkeypatch.setattr("jobs.observe.log._MAX_FILE_BYTES", 2000)
    written: list[int] = []
    write_bytes = Storage.write_bytes
    monkeypatch.setattr(
        Storage,
        "write_bytes",
        lambda self, uri, content: (written.append(len(content)), write_bytes(self, uri, content)),
    )
    with RunLog(str(tmp_path), "r", 1, STORAGE) as log:
        for _ in range(500):
            log.committed(committed(3))
        for shard in range(100):
            log.write("shard_complete", shard=shard)
        log.count()
    files = sorted(tmp_path.glob("log-1*.jsonl"), key=lambda file: file.stat().st_mtime_ns)
    names = [file.name for file in files]
    assert names[:2] == ["log-1.jsonl", "log-1.1.jsonl"] and len(names) > 4
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    units = [line for line in lines if line["event"] == "units_committed"]
    assert [(line["units"], line["output_tokens"]) for line in units] == [(1500, 3000)]
    shards = [line["shard"] for line in lines if line["event"] == "shard_complete"]
    assert shards == list(range(100))
    assert max(written) < 2200 and sum(written) < 2 * sum(len(f.read_bytes()) for f in files)


def test_a_log_of_what_stopped_a_run(tmp_path: Path):
    def stopped() -> None:
        with RunLog(str(tmp_path), "r", 2, STORAGE) as log:
            log.write("annotating", name='a "quoted"\nname')
            raise RuntimeError("the cluster is gone")

    with pytest.raises(RuntimeError):
        stopped()
    lines = (tmp_path / "log-2.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["annotating", "run_stopped"]


def test_the_log_on_stderr_is_json(tmp_path: Path, capsys):
    root, ours = logging.getLogger(), logging.getLogger("jobs.observe.log")
    handlers, level = root.handlers, ours.level
    try:
        log_as_json()
        with RunLog(str(tmp_path), "r", 1, STORAGE) as log:
            log.write("annotating", units=3)
        logging.getLogger("other").warning("a %s", "warning")
    finally:
        root.handlers, ours.level = handlers, level
        ours.setLevel(level)
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["event"], first["run_id"], first["units"]) == ("annotating", "r", 3)
    assert (second["level"], second["message"]) == ("warning", "a warning")


@pytest.mark.parametrize(("share", "code"), [("1%", 3), ("50%", 0)])
def test_the_exit_code_says_whether_too_many_failed(watched, share: str, code: int, tmp_path: Path):
    job, output, run = watched
    file = tmp_path / "job.yaml"
    file.write_text(
        yaml.safe_dump(job.model_dump(mode="json", exclude={"tasks"}) | {"tasks": SMALL["tasks"]})
    )
    result = CliRunner().invoke(main, ["annotate", str(file), "--max-failed", share])
    assert result.exit_code == code, result.output
    summary = json.loads((output / "runs" / run.run_id / "summary.json").read_text())
    assert summary["is_ok"] == (code == 0)
    assert summary["counts"]["units"] == run.counts["units"]
    assert summary["failed_share"] == pytest.approx(4 / run.counts["units"], abs=1e-5)


def test_a_share_is_checked():
    fields = {"input": {"scan": "x"}, "output": "y"}
    assert check_job(fields | {"limits": {"max_failed": "2.5%"}}, "test").limits.max_failed == 0.025
    with pytest.raises(JobFileError, match="max_failed"):
        check_job(fields | {"limits": {"max_failed": "many"}}, "test")
    with pytest.raises(JobFileError, match="max_failed"):
        check_job(fields | {"limits": {"max_failed": "200%"}}, "test")


FOUND = {"run_id": "nightly-20260101-abcdef", "is_ok": True, "counts": {"units": 3}}


def test_a_command_is_told_without_a_shell(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = (
        "import json, os, sys; s = json.load(open(os.environ['REELSCRIBE_SUMMARY'])); "
        "print(s['run_id'], os.environ['REELSCRIBE_STATUS'], sys.argv[1], file=open('told', 'w'))"
    )
    notify(FOUND, OnFinish(command=(sys.executable, "-c", program, "$(touch hacked)")))
    assert (tmp_path / "told").read_text() == "nightly-20260101-abcdef ok $(touch hacked)\n"
    assert not (tmp_path / "hacked").exists()


def test_a_command_that_fails_is_a_warning_without_its_arguments(caplog):
    notify(FOUND, OnFinish(command=(sys.executable, "-c", "raise SystemExit(7)", "secret")))
    assert "exit code 7" in caplog.text and "secret" not in caplog.text


def test_a_webhook_gets_the_summary_and_is_tried_again(monkeypatch):
    got: list[bytes] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(503 if len(got) == 1 else 204)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HOOK", f"http://127.0.0.1:{server.server_port}/token")
        notify(FOUND, OnFinish(webhook_env="HOOK"))
        server.shutdown()
    assert [json.loads(body) for body in got] == [FOUND, FOUND]


def test_a_webhook_that_cannot_be_reached_does_not_say_its_url(monkeypatch, caplog):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setenv("HOOK", "http://127.0.0.1:1/token")
    notify(FOUND, OnFinish(webhook_env="HOOK"))
    assert "URLError" in caplog.text and "token" not in caplog.text


def test_whom_a_run_tells_is_in_no_file(watched):
    job, output, run = watched
    told = check_job(
        job.model_dump(exclude={"tasks"}) | {"on_finish": {"command": ["true", "secret"]}}, "test"
    )
    after_run(run, told, STORAGE)
    run.save(told, STORAGE)
    texts = [f.read_text() for f in (output / "runs").rglob("*.json*")]
    assert texts and not any("secret" in text for text in texts)


def test_a_second_attempt_makes_no_success_of_what_failed_too_much(tmp_path: Path):
    """With only_new it finds nothing new; the next night does, and is judged by itself."""
    spec = {"name": "nightly", "input": {"scan": "media", "only_new": True}}
    spec |= {"output": str(tmp_path), "limits": {"max_failed": "5%"}}
    job = check_job(spec, "test")
    now = datetime.now(UTC)
    numbers = ("units_of_earlier_runs", "prompt_tokens", "output_tokens", "decode_seconds")
    counts = dict.fromkeys((*numbers, "engine_seconds"), 0) | {"answers": {}, "decoders": {}}
    counts |= {"units": 10, "status": {"failed": 9, "ok": 1}, "errors": {"media_unreadable": 9}}

    def at(hours: int, **fields: object) -> Run:
        created = (now - timedelta(hours=hours)).isoformat(timespec="seconds")
        fingerprint = {"manifest": "m", "recipe": "abc", "schema_version": "1"}
        fields = {"status": "complete", "recipe": {}, "fingerprint": fingerprint} | fields
        run_id = f"nightly-20260101-{hours:06}"
        return Run(
            run_id=run_id, name="nightly", run_date="2026-01-01", created_at=created, **fields
        )

    first = at(2, counts=counts)
    first.save(job, STORAGE)
    assert after_run(first, job, STORAGE) == TOO_MANY_FAILED
    assert after_run(at(0), job, STORAGE) == TOO_MANY_FAILED
    (tmp_path / "runs" / first.run_id / "run.json").unlink()
    at(30, counts=counts).save(job, STORAGE)
    assert after_run(at(0), job, STORAGE) == 0
