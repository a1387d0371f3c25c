"""Training end to end: real media, a real Ray Train, a model that learns what it is taught."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console

from jobs import finetune
from jobs.cli import main
from pipeline.engines.transformers import TransformersEngine
from pipeline.training.load import load_model
from schemas.errors import JobFileError, ManifestError
from schemas.finetune import FinetuneJob
from schemas.job import check, check_job

CAPTIONS = {
    "images/scene-0.jpg": "The harbour at dawn.",
    "images/plate-1.png": "A number plate.",
    "clips/h265.mkv": "Two things pass.",
}
BUDGET = {"image_tokens": [4, 16], "frame_tokens": [4, 8], "unit_tokens": 32}
SAMPLING = {"num_frames": 4}


def write_data(path: Path, archive: Path, captions: dict[str, str]) -> Path:
    rows = []
    for uri, caption in captions.items():
        kind = "image" if uri.startswith("images/") else "video"
        asked = {"from": "human", "value": f"<{kind}>\nDescribe this {kind} in detail."}
        said = {"from": "gpt", "value": caption}
        rows.append({kind: str(archive / uri), "conversations": [asked, said]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def spec(folder: Path, archive: Path, checkpoint: Path, **changes: Any) -> dict[str, Any]:
    training = {
        "max_steps": 6,
        "per_device_train_batch_size": 3,
        "learning_rate": 3e-3,
        "logging_steps": 1,
        "save_steps": 3,
        "dataloader_num_workers": 0,
    }
    return {
        "name": "test",
        "output": str(folder / "run"),
        "model": {"source": str(checkpoint), "dtype": "float32", "max_model_len": 512},
        "data": [str(write_data(folder / "data.jsonl", archive, CAPTIONS))],
        "sampling": SAMPLING,
        "budget": BUDGET,
        "tune": {"tune_mm_vision": True},
        "training": training | changes.pop("training", {}),
        **changes,
    }


def job(*args: Any, **changes: Any) -> FinetuneJob:
    return check(FinetuneJob, spec(*args, **changes), "test")


def train(job: FinetuneJob) -> str:
    console = Console(file=io.StringIO(), width=200)
    finetune.run(job, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


def curve(output: str | Path, key: str = "loss") -> dict[int, float]:
    lines = map(json.loads, (Path(output) / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[key] for line in lines if key in line}


def captions(job: FinetuneJob, source: str, archive: Path, **model: Any) -> dict[str, str]:
    """What a checkpoint says of the archive, asked through the pipeline's own stages."""
    from pipeline.build import Prepare, code_digest
    from pipeline.plan import Planner
    from pipeline.storage import Storage
    from schemas.manifest import MediaItem

    asked = check_job(
        {
            "input": {"scan": str(archive)},
            "output": "out",
            "model": {"source": source, "dtype": "float32", **model},
            "sampling": SAMPLING,
            "budget": BUDGET,
            "generation": {"max_new_tokens": 24},
        },
        "test",
    )
    planner, prepare = Planner(asked, 4096, Storage()), Prepare(asked, Storage(), code_digest())
    units = []
    for uri in CAPTIONS:
        (unit,) = planner.plan_item(MediaItem(media_id=uri, uri=str(archive / uri)))
        units.append(prepare.prepare(unit))
    answered = TransformersEngine(asked).generate(units)
    return {unit.media_id: unit.answers[0].raw_text for unit in answered}


def test_it_learns_what_it_is_taught(tmp_path, archive, checkpoint, ray_session):
    """A caption for each picture; without the picture there is no telling which."""
    whole = job(
        tmp_path,
        archive,
        checkpoint,
        training={"max_steps": 60, "logging_steps": 10, "save_steps": 60, "optimizer": "muon"},
    )
    said = train(whole)
    losses = curve(whole.output)
    assert losses[60] < 0.05 < 3 < losses[10] * 10
    assert "step 60 of 60: loss" in said
    assert captions(whole, f"{whole.output}/model", archive) == CAPTIONS
    assert list(Path(whole.output, "tensorboard").glob("events.out.tfevents.*"))
    assert not list(Path(whole.output).glob("failed_samples-*"))


def test_adapters_merged_and_apart_say_the_same(tmp_path, archive, checkpoint, ray_session):
    changes = {
        "tune": None,
        "training": {"max_steps": 4, "save_steps": 4, "learning_rate": 1e-2},
    }
    outputs = {}
    for merge in (True, False):
        folder = tmp_path / str(merge)
        folder.mkdir()
        made = spec(folder, archive, checkpoint, lora={"r": 4, "merge": merge}, **changes)
        del made["tune"]
        lora = check(FinetuneJob, made, "test")
        train(lora)
        outputs[merge] = lora.output
    merged = captions(lora, f"{outputs[True]}/model", archive)
    apart = captions(lora, str(checkpoint), archive, adapter=f"{outputs[False]}/model")
    assert merged == apart
    assert merged != captions(lora, str(checkpoint), archive)


def test_broken_samples_are_named_and_left_out(tmp_path, archive, checkpoint, ray_session):
    data = write_data(tmp_path / "bad.jsonl", archive, CAPTIONS | {"images/truncated.jpg": "A?"})
    made = job(tmp_path, archive, checkpoint, data=[str(data)], training={"max_steps": 2})
    said = train(made)
    (line,) = set((Path(made.output) / "failed_samples-0.jsonl").read_text().splitlines())
    failed = json.loads(line)
    assert failed["sample"] == f"{data}:4"
    assert failed["type"] == "media_unreadable"
    assert re.search(r"\d+ times a sample could not be read", said)


def test_a_broken_sample_can_stop_it(tmp_path, archive, checkpoint, ray_session):
    data = write_data(tmp_path / "bad.jsonl", archive, {"images/truncated.jpg": "A?"})
    training = {"max_steps": 2, "on_bad_sample": "stop"}
    made = job(tmp_path, archive, checkpoint, data=[str(data)], training=training)
    with pytest.raises(ManifestError, match=r"bad\.jsonl:1: media_unreadable: .*broken image data"):
        train(made)


def test_wrong_rows_stop_it_before_it_starts(tmp_path, archive, checkpoint):
    data = tmp_path / "bad.jsonl"
    data.write_text('{"conversations": []}\n')
    with pytest.raises(ManifestError, match=r"1 of 1 examples are wrong, first .*bad\.jsonl:1"):
        train(job(tmp_path, archive, checkpoint, data=[str(data)]))


def test_a_folder_takes_one_training_only(tmp_path, archive, checkpoint, ray_session):
    train(job(tmp_path, archive, checkpoint, training={"max_steps": 1}))
    with pytest.raises(JobFileError, match=r"other settings \(training\.learning_rate\)"):
        train(job(tmp_path, archive, checkpoint, training={"max_steps": 1, "learning_rate": 1}))


def test_two_workers_take_the_steps_of_one(tmp_path, archive, checkpoint, ray_session):
    """Two workers with a batch of one each learn what one worker with a batch of two does."""
    pictures = {uri: text for uri, text in CAPTIONS.items() if uri.startswith("images/")}
    curves = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        made = job(
            folder,
            archive,
            checkpoint,
            data=[str(write_data(tmp_path / "two.jsonl", archive, pictures))],
            training={"max_steps": 3, "per_device_train_batch_size": 2 // workers},
            resources={"num_workers": workers},
        )
        train(made)
        curves.append(curve(made.output))
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


def start(job_file: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jobs.cli", "finetune", str(job_file)]
    return subprocess.Popen(
        command, cwd=Path(__file__).parents[1], start_new_session=True, stdout=subprocess.DEVNULL
    )


def test_a_killed_run_goes_on_with_the_same_curve(tmp_path, archive, checkpoint):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        made = spec(tmp_path / name, archive, checkpoint, training={"seed": 7, "max_steps": 8})
        (tmp_path / name / "job.yaml").write_text(yaml.safe_dump(made))
    killed = start(tmp_path / "killed" / "job.yaml")
    run = tmp_path / "killed" / "run"
    give_up = time.monotonic() + 200
    while not ((run / "metrics.jsonl").exists() and max(curve(run), default=0) >= 5):
        assert time.monotonic() < give_up and killed.poll() is None
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    reached = max(curve(run))
    assert reached < 8, "it was over before it could be killed"
    assert start(tmp_path / "killed" / "job.yaml").wait(timeout=200) == 0
    assert start(tmp_path / "whole" / "job.yaml").wait(timeout=200) == 0
    whole = curve(tmp_path / "whole" / "run")
    assert sorted(whole) == list(range(1, 9))
    assert curve(run) == pytest.approx(whole, rel=1e-5)
    text = (run / "metrics.jsonl").read_text()
    assert text.count('"step": 1,') == 1


def test_the_context_is_stretched_in_what_comes_out(tmp_path, archive, checkpoint):
    made = spec(tmp_path, archive, checkpoint)
    made["model"]["yarn"] = {"factor": 2.0, "original_max_position_embeddings": 4096}
    config = load_model(check(FinetuneJob, made, "test"), "sdpa").config.text_config
    assert config.max_position_embeddings == 8192
    assert config.rope_parameters["rope_type"] == "yarn"
    assert config.rope_parameters["mrope_section"] == [6, 5, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": {"r": 4}}, "leave tune out"),
        ({"tune": {"tune_mm_mlp": False, "tune_mm_llm": False}}, "nothing learns"),
        ({"data": [{"annotations": "a.parquet"}]}, "needs `tasks`"),
        ({"data": []}, "data: "),
        ({"trainer": {"depspeed": "x"}}, r"TrainingArguments has no \['depspeed'\]"),
        ({"training": {"lr_scheduler_type": "cosinus"}}, "cosinus"),
        ({"data": ["nothing.jsonl"]}, r"nothing\.jsonl does not exist"),
        ({"model": {"source": "/nowhere"}}, "there is no folder /nowhere"),
    ],
)
def test_mistakes_have_one_message(tmp_path, archive, checkpoint, change, message):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(spec(tmp_path, archive, checkpoint) | change))
    result = CliRunner().invoke(main, ["finetune", str(path)])
    assert result.exit_code == 2
    assert re.search(message, result.output), result.output
    assert "Traceback" not in result.output
