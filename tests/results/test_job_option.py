"""`--job FILE`: commands on results use the storage options and permissions of a job file."""

import json
import os
from pathlib import Path

import pytest
import s3fs
import yaml
from click import Context
from click.testing import CliRunner, Result

from jobs.cli.main import main
from pipeline.storage.storage import Storage
from tests.support.units import answer, draw_image, image_unit, write_table

BOXES = '[{"bbox_2d": [250, 250, 500, 750], "label": "red box"}]'


def call(*args: object) -> Result:
    return CliRunner().invoke(main, [str(arg) for arg in args])


@pytest.fixture
def private(s3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A bucket with a table, its image and gold, and a job file: the only way to reach them."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    bucket = s3.new_bucket()
    options = {"s3": {"endpoint_url": s3.endpoint_url, "key": "k", "secret": "s3cret"}}
    storage = Storage(options)
    image = draw_image(tmp_path / "a.png")
    storage.write_bytes(bucket.uri("media/a.png"), image.read_bytes())
    unit = image_unit(
        image, answer("caption", "A box."), answer("objects", BOXES), uri=bucket.uri("media/a.png")
    )
    write_table(bucket.uri("out"), unit, storage=storage)
    gold = {"uri": bucket.uri("media/a.png"), "caption": "A box."}
    storage.write_bytes(bucket.uri("gold.jsonl"), json.dumps(gold).encode())
    storage.write_bytes(bucket.uri("labels.json"), b"[]")
    (tmp_path / "job.yaml").write_text(
        yaml.safe_dump({"name": "mine", "storage_options": options, "tasks": ["caption"]})
    )
    monkeypatch.chdir(tmp_path)
    yield bucket
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.parametrize(
    "command",
    [
        ["report", "{out}", "-o", "page.html"],
        ["sql", "{out}", "SELECT caption FROM latest"],
        ["export", "{out}", "coco", "-o", "coco"],
        ["show", "{out}", "a.png", "--contact-sheet", "sheet.png"],
        ["evaluate", "{out}", "{gold}"],
        ["compact", "{out}"],
        ["scan", "{media}"],
        ["import-labels", "{labels}", "-o", "labels.jsonl"],
    ],
    ids=lambda command: command[0],
)
def test_a_bucket_of_the_jobs_endpoint(private, command: list[str]):
    names = {name: private.uri(name) for name in ("out", "media")}
    names |= {"gold": private.uri("gold.jsonl"), "labels": private.uri("labels.json")}
    arguments = [argument.format(**names) for argument in command]
    refused = call(*arguments)
    assert refused.exit_code == 2 and "no credentials" in refused.output
    result = call(*arguments, "--job", "job.yaml")
    assert result.exit_code == 0, result.output
    assert "cannot be read now" not in result.output and "left out 1" not in result.output


def test_every_command_that_reads_a_storage_takes_a_job():
    without = {"annotate", "calibrate", "plan", "retry", "finetune", "demo", "schema", "doctor"}
    for name in main.list_commands(Context(main)):
        command = main.get_command(Context(main), name)
        options = {option for parameter in command.params for option in parameter.opts}
        assert ("--job" in options) == (name not in without), name


def test_an_endpoint_replaces_the_jobs_and_keeps_its_keys(private, tmp_path: Path):
    job = yaml.safe_load((tmp_path / "job.yaml").read_text())
    endpoint = job["storage_options"]["s3"]["endpoint_url"]
    job["storage_options"]["s3"]["endpoint_url"] = "http://127.0.0.1:9"
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    query = ("sql", private.uri("out"), "SELECT caption FROM latest", "--job", "job.yaml")
    result = call(*query, "--endpoint-url", endpoint)
    assert result.exit_code == 0 and "A box." in result.output


def test_private_hosts_are_allowed_as_in_the_job(http, tmp_path: Path):
    unit = image_unit(draw_image(tmp_path / "a.png"), uri=f"{http.url}/plain/a.png")
    output = write_table(tmp_path / "out", unit)
    (tmp_path / "job.yaml").write_text("input: {allow_private_hosts: true}")
    show = ("show", output, "a.png", "--contact-sheet", tmp_path / "sheet.png")
    refused = call(*show)
    assert refused.exit_code == 2 and "input.allow_private_hosts" in refused.output
    assert not http.requests
    allowed = call(*show, "--job", tmp_path / "job.yaml")
    assert "allow_private_hosts" not in allowed.output
    assert http.requests  # what the server has is no image, but it was asked


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "there is no job file"),
        ("storage_options: {s3: secret}", "storage_options.s3: must be a mapping"),
        ("- a", "must be a mapping"),
        ("input: 3", "input: must be a mapping"),
    ],
)
def test_a_job_file_that_is_wrong_is_a_message(tmp_path: Path, text: str | None, message: str):
    if text is not None:
        (tmp_path / "job.yaml").write_text(text)
    result = call("sql", tmp_path, "SELECT 1", "--job", tmp_path / "job.yaml")
    assert result.exit_code == 2 and message in result.output, result.output
