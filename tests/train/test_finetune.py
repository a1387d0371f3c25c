"""Training end to end: real media, a real Ray Train, a model that learns what it is taught."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from click.testing import CliRunner
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from jobs.cli.main import main
from jobs.train import finetune, launch
from jobs.train.job_checks import check_arguments, check_same_job
from jobs.train.survey import Survey, check_learnt
from pipeline.engines.transformers.engine import TransformersEngine
from pipeline.storage.storage import Storage
from pipeline.training.batches import Samples
from pipeline.training.load import export, load_model
from pipeline.training.sample import TrainingData
from pipeline.training.train import WorkerFolders, make_trainer
from schemas.errors import JobFileError, ManifestError, ResourceError
from schemas.job.finetune import FinetuneJob
from schemas.job.load import check
from tests.support.job_files import make_job
from tests.support.paths import ROOT
from tests.support.prepared import media_items, prepare_units
from tests.support.waiting import wait_until

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
        "bf16": False,  # losses are compared to more digits than bfloat16 has
        "max_steps": 6,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": False,
        "max_skipped": 100,
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


def train_here(job: FinetuneJob) -> Any:
    """Train in this process, without Ray, as one worker would."""
    Path(job.output).mkdir(parents=True, exist_ok=True)
    options = {"share_media": job.training.share_media, "seed": job.training.seed}
    trainer = make_trainer(
        job,
        TrainingData(
            train=finetune.mix(job.data, Storage(), **options),
            validation=finetune.mix(job.validation, Storage(), **options),
            storage=Storage(),
        ),
        WorkerFolders(logs=Path(job.output), checkpoints=Path(job.output) / "checkpoints"),
    )
    trainer.train()
    return trainer


def curve(output: str | Path, key: str = "loss") -> dict[int, float]:
    lines = map(json.loads, (Path(output) / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[key] for line in lines if key in line}


def captions(job: FinetuneJob, source: str, archive: Path, **model: Any) -> dict[str, str]:
    """Captions of the archive by a checkpoint, through the pipeline's own stages."""
    annotate = make_job(
        source, model=model, sampling=SAMPLING, budget=BUDGET, generation={"max_new_tokens": 24}
    )
    units = prepare_units(annotate, media_items(archive, CAPTIONS), 4096)
    answered = TransformersEngine(annotate).generate(units)
    return {unit.media_id: unit.answers[0].raw_text for unit in answered}


@pytest.fixture(scope="module")
def learnt(tmp_path_factory, archive, checkpoint, ray_session) -> tuple[FinetuneJob, str]:
    """A run that learns three captions, beside a file that cannot be read; and what it said."""
    folder = tmp_path_factory.mktemp("learnt")
    data = write_data(folder / "bad.jsonl", archive, CAPTIONS | {"images/truncated.jpg": "A?"})
    made = job(
        folder,
        archive,
        checkpoint,
        data=[str(data)],
        validation=[str(write_data(folder / "data.jsonl", archive, CAPTIONS))],
        training={
            "max_steps": 60,
            "per_device_train_batch_size": 4,
            "logging_steps": 10,
            "save_steps": 30,
            "optimizer": "muon",
        },
    )
    return made, train(made)


def test_it_learns_what_it_is_taught(learnt, archive):
    """A caption for each picture; without the picture there is no telling which."""
    made, said = learnt
    losses = curve(made.output)
    assert losses[60] < 0.05 < 0.3 < losses[10]
    assert curve(made.output, "eval_loss")[60] < 0.05
    assert "step 60 of 60: loss" in said
    assert captions(made, f"{made.output}/model", archive) == CAPTIONS
    assert list(Path(made.output, "tensorboard").glob("events.out.tfevents.*"))


def test_broken_samples_are_named_and_left_out(learnt):
    made, said = learnt
    (line,) = set((Path(made.output) / "failed_samples-0.jsonl").read_text().splitlines())
    failed = json.loads(line)
    assert failed["sample"].endswith("bad.jsonl:4")
    assert failed["type"] == "media_unreadable"
    assert re.search(r"60 times a sample could not be read", said)


def test_a_folder_takes_one_training_only(learnt):
    made, _ = learnt
    faster = made.training.model_copy(update={"learning_rate": 1.0, "logging_steps": 7})
    with pytest.raises(JobFileError, match=r"other settings \(training\.learning_rate\)"):
        train(made.model_copy(update={"training": faster}))


def test_adapters_merged_and_apart_say_the_same(tmp_path, archive, checkpoint):
    training = {"max_steps": 4, "save_steps": 4, "learning_rate": 1e-2}
    made = spec(tmp_path, archive, checkpoint, lora={"r": 4}, training=training)
    del made["tune"]
    lora = check(FinetuneJob, made, "test")
    model = train_here(lora).model
    for merge in (False, True):  # in this order: merging changes the model
        how = lora.lora.model_copy(update={"merge": merge})
        export(model, str(checkpoint), None, how, tmp_path / f"merge-{merge}")
    merged = captions(lora, str(tmp_path / "merge-True"), archive)
    apart = captions(lora, str(checkpoint), archive, adapter=str(tmp_path / "merge-False"))
    assert merged == apart
    assert merged != captions(lora, str(checkpoint), archive)


def test_a_broken_sample_can_stop_it(tmp_path, archive, checkpoint, ray_session):
    data = write_data(tmp_path / "bad.jsonl", archive, {"images/truncated.jpg": "A?"})
    training = {"max_steps": 2, "max_skipped": 0, "dataloader_num_workers": 1}
    made = job(tmp_path, archive, checkpoint, data=[str(data)], training=training)
    console = Console(file=io.StringIO(), width=200)
    message = r"^1 of 1 samples cannot be learnt, .* \S*bad\.jsonl:1: media_unreadable: .*"
    with pytest.raises(ManifestError, match=message) as error:
        finetune.run(made, console)
    assert "\n" not in str(error.value) and "Traceback" not in str(error.value)
    assert "a worker failed" not in console.file.getvalue()  # trying again would not help


def test_workers_that_cannot_be_placed_are_an_error(
    tmp_path, archive, checkpoint, ray_session, monkeypatch
):
    """Something else has the CPUs: Ray Train would ask again and again, and say nothing."""
    monkeypatch.setattr(launch, "MAX_STARTS", 2)
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    taken: list[Any] = []

    def then_taken(survey: Survey) -> None:
        """The check of the samples, which needs CPUs too; then another job comes."""
        check_learnt(survey)
        taken.append(ray.util.placement_group([{"CPU": ray.cluster_resources()["CPU"]}]))
        ray.get(taken[0].ready(), timeout=300)

    monkeypatch.setattr(finetune, "check_learnt", then_taken)
    try:
        with pytest.raises(ResourceError, match=r"1 workers of 1 CPUs could not be started\. .*"):
            train(job(tmp_path, archive, checkpoint, resources={"cpus_per_worker": 1}))
    finally:
        for group in taken:
            ray.util.remove_placement_group(group)


def test_wrong_rows_stop_it_before_it_starts(tmp_path, archive, checkpoint):
    data = tmp_path / "bad.jsonl"
    data.write_text('{"conversations": []}\n')
    with pytest.raises(ManifestError, match=r"1 of 1 examples are wrong, first .*bad\.jsonl:1"):
        train(job(tmp_path, archive, checkpoint, data=[str(data)]))


@pytest.mark.timeout(900)  # workers start three times, on any machine
def test_two_workers_in_a_bucket_where_one_is_lost(tmp_path, archive, checkpoint, ray_session, s3):
    """They learn what one worker with twice the batch does, and go on from their checkpoint.

    One batch has no picture, and of one nothing can be read.
    """
    bucket = s3.new_bucket()
    options = {"s3": {"endpoint_url": s3.endpoint_url, "key": "k", "secret": "s3cr3t-value"}}
    data = write_data(tmp_path / "six.jsonl", archive, CAPTIONS | {"images/truncated.jpg": "A?"})
    text = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho."}]}
    with data.open("a") as lines:
        lines.write(f"{json.dumps(text)}\n{json.dumps(text)}\n")
    settings = {
        "max_steps": 4,
        "save_steps": 2,
        "per_device_train_batch_size": 1,
        "gradient_checkpointing": True,
    }
    made = job(
        tmp_path,
        archive,
        checkpoint,
        output=bucket.uri("models/two"),
        data=[str(data)],
        validation=[
            str(write_data(tmp_path / "val.jsonl", archive, dict([*CAPTIONS.items()][:2])))
        ],
        training=settings,
        resources={"num_workers": 2},
        storage_options=options,
    )
    lost, fetches = tmp_path / "lost", tmp_path / "fetches"
    worker = launch.train_worker

    def losing(config: dict[str, Any]) -> None:
        """The worker; its second process ends without a word after the first checkpoint."""
        import ray.train
        from ray.train import CheckpointConsistencyMode

        report = ray.train.report

        def reporting(metrics: dict[str, Any], **kwargs: Any) -> None:
            report(metrics, **kwargs)
            if ray.train.get_context().get_world_rank() == 1 and not lost.exists():
                lost.touch()
                ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED)
                os._exit(1)

        to_directory = ray.train.Checkpoint.to_directory

        def counting(checkpoint: Any, *args: Any) -> Any:
            with fetches.open("a") as lines:
                lines.write("fetched\n")
            return to_directory(checkpoint, *args)

        ray.train.report = reporting
        ray.train.Checkpoint.to_directory = counting
        try:
            worker(config)
        finally:
            ray.train.report = report
            ray.train.Checkpoint.to_directory = to_directory

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "train_worker", losing)
        said = train(made)
    assert lost.exists()
    assert said.count("a worker failed; continuing from the last checkpoint: ") == 1, said
    # Once for both: one that fetched late would write over what the other reads.
    assert fetches.read_text().splitlines() == ["fetched"]
    storage = Storage(options)
    found = {
        file["uri"].removeprefix(bucket.uri("models/two/")): file["uri"]
        for file in storage.list_files(bucket.uri("models/two"), "**/*")
    }
    lines = [json.loads(line) for line in storage.read_bytes(found["metrics.jsonl"]).splitlines()]
    two = {key: {e["step"]: e[key] for e in lines if key in e} for key in ("loss", "eval_loss")}
    assert [e["step"] for e in lines if "loss" in e] == [1, 2, 3, 4]
    double = made.training.model_copy(update={"per_device_train_batch_size": 2})
    alone = made.model_copy(update={"output": str(tmp_path / "one"), "training": double})
    train_here(alone)
    for key, values in two.items():
        assert values == pytest.approx(curve(alone.output, key), rel=1e-4)
    # Each worker's random state is in the checkpoint: dropout goes on as it was.
    assert sum(name.endswith(("rng_state_0.pth", "rng_state_1.pth")) for name in found) == 4
    failed = b"".join(storage.read_bytes(found[n]) for n in found if n.startswith("failed_"))
    assert {json.loads(line)["sample"] for line in failed.splitlines()} == {f"{data}:4"}
    assert {"model/config.json", "model/model.safetensors", "job.json"} <= found.keys()
    assert any(name.startswith("tensorboard/events.out.tfevents.") for name in found)
    assert all(b"s3cr3t-value" not in storage.read_bytes(uri) for uri in found.values())


def start(job_file: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "jobs.cli", "finetune", str(job_file)]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL)


@pytest.mark.xdist_group("test_finetune_killed")  # so that it runs beside the others
@pytest.mark.timeout(1500)
def test_a_killed_run_resumes_with_the_same_losses(tmp_path, archive, checkpoint):
    """Against a run that was not killed, and that had no Ray around it."""
    made = spec(tmp_path, archive, checkpoint, training={"seed": 7, "max_steps": 60})
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(made))
    killed = start(tmp_path / "job.yaml")
    run = tmp_path / "run"
    known = run / "checkpoints" / "checkpoint_manager_snapshot.json"

    def has_learnt() -> bool:
        assert killed.poll() is None
        return known.exists() and max(curve(run), default=0) >= 5

    wait_until(has_learnt)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert max(curve(run)) < 60, "it was over before it could be killed"
    before = set((run / "tensorboard").iterdir())
    assert start(tmp_path / "job.yaml").wait(timeout=600) == 0
    made["output"] = str(tmp_path / "whole")
    train_here(check(FinetuneJob, made, "test"))
    whole = curve(tmp_path / "whole")
    assert sorted(whole) == list(range(1, 61))
    assert curve(run) == pytest.approx(whole, rel=1e-5)
    (events,) = set((run / "tensorboard").iterdir()) - before
    again = EventAccumulator(str(events))
    again.Reload()
    first = again.Scalars("train/loss")[0].step
    assert first > 3  # not from the beginning
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    steps = [line["step"] for line in lines if "loss" in line]
    # Each step follows one that was logged: nothing is left out, neither at the kill.
    assert all(step <= max(steps[:k], default=0) + 1 for k, step in enumerate(steps))


def test_yarn_is_in_the_exported_configuration(tmp_path, archive, checkpoint):
    made = spec(tmp_path, archive, checkpoint)
    made["model"]["yarn"] = {"factor": 2.0, "original_max_position_embeddings": 4096}
    config = load_model(check(FinetuneJob, made, "test")).config.text_config
    assert config.max_position_embeddings == 8192
    assert config.rope_parameters["rope_type"] == "yarn"
    assert config.rope_parameters["mrope_section"] == [6, 5, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": {"r": 4}}, "leave out `tune`"),
        ({"tune": {"tune_mm_mlp": False, "tune_mm_llm": False}}, "nothing is trained"),
        ({"data": [{"annotations": "a.parquet"}]}, "needs `tasks`"),
        ({"data": []}, "data: must have at least 1$"),
        (
            {"data": ["a.jsonl%0"]},
            r"not valid:\n  data\.0\.share: must be greater than 0 .*\nsee docs/errors.*\n\Z",
        ),
        ({"data": ["a.jsonl%half"]}, r"a\.jsonl%half does not exist; a share is a number over 0"),
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
    assert re.search(message, result.output, re.MULTILINE), result.output
    assert "Traceback" not in result.output


def test_a_folder_goes_on_with_the_same_data_and_workers_only(tmp_path, archive, checkpoint):
    made, storage = job(tmp_path, archive, checkpoint), Storage()
    check_same_job(made, "rows a", storage)
    check_same_job(made, "rows b", storage)  # nothing was learnt yet
    saved = Path(made.output) / "checkpoints" / "checkpoint_1" / "model.safetensors"
    saved.parent.mkdir(parents=True)
    saved.write_bytes(b"")
    check_same_job(made, "rows b", storage)
    with pytest.raises(JobFileError, match="other settings \\(rows of data\\)"):
        check_same_job(made, "rows c", storage)
    more = made.resources.model_copy(update={"num_workers": 2})
    with pytest.raises(JobFileError, match="resources.num_workers"):
        check_same_job(made.model_copy(update={"resources": more}), "rows b", storage)
    less = made.resources.model_copy(update={"cpus_per_worker": 2.0})
    check_same_job(made.model_copy(update={"resources": less}), "rows b", storage)


def test_no_secret_is_written_down(tmp_path, archive, checkpoint):
    from ray.data._internal.metadata_exporter import sanitize_for_struct

    uri = "https://me:hush@example.org/rows.jsonl?X-Amz-Signature=hush"
    made = job(tmp_path, archive, checkpoint, storage_options={"s3": {"secret": "hush"}})
    made = made.model_copy(
        update={"data": (made.data[0].model_copy(update={"conversations": uri}),)}
    )
    check_same_job(made, "rows", Storage())
    written = (Path(made.output) / "job.json").read_text()
    assert "example.org" in written and "hush" not in written
    # What Ray keeps, and may export, of a stage's arguments.
    kept = sanitize_for_struct((made, Storage(made.storage_options)))
    assert "hush" not in json.dumps(kept)


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"learning_rate": 3}, "are settings of `training`"),
        ({"activation_checkpointing": False}, "are settings of `training`"),
        ({"optim": "adamw_bnb_8bit"}, "have no effect here"),
        ({"hub_token": "hf_x"}, "no secrets in a job file"),
        ({"deepspeed": "nowhere.json"}, "there is no file .*nowhere.json"),
        ({"logging_strategy": "sometimes"}, "trainer or training: "),
    ],
)
def test_trainers_settings_are_checked_before_it_starts(
    tmp_path, archive, checkpoint, trainer, message
):
    with pytest.raises(JobFileError, match=message):
        train(job(tmp_path, archive, checkpoint, trainer=trainer))


def test_trainers_settings_that_fit_pass(tmp_path, archive, checkpoint):
    validation = [str(tmp_path / "data.jsonl")]
    made = job(tmp_path, archive, checkpoint, validation=validation)
    check_arguments(made.model_copy(update={"trainer": {"load_best_model_at_end": True}}))


def test_all_workers_get_as_many_samples(tmp_path, archive, checkpoint):
    made = job(tmp_path, archive, checkpoint)
    groups = finetune.mix(made.data, Storage(), share_media=True, seed=0)
    samples = Samples(groups, made, Storage(), multiple=4)
    assert (len(groups), len(samples)) == (3, 4)
    assert samples[3] == [] and len(samples[2]) == 1
