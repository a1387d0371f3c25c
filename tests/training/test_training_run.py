"""The training loop of one worker, without Ray: what a step learns, and what is written down."""

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback
from transformers.integrations.deepspeed import (
    is_deepspeed_zero3_enabled,
    set_hf_deepspeed_config,
    unset_hf_deepspeed_config,
)
from transformers.trainer_utils import get_last_checkpoint

from jobs.train.finetune import mix
from pipeline.storage.storage import Storage
from pipeline.training import train
from pipeline.training.batches import collate, on_device
from pipeline.training.sample import IGNORED, Preparer, TrainingData
from pipeline.training.train import WorkerFolders, make_trainer, token_loss
from schemas.errors import JobFileError, ManifestError, ModelError
from schemas.job.finetune import FinetuneJob
from schemas.job.load import check

FILES = ("images/scene-0.jpg", "images/plate-0.png", "clips/h265.mkv", "images/wide.png")


def talk(question: str, answer: str, **media: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {**media, "conversations": turns}


def row(archive: Path, name: str, question: str, answer: str) -> dict[str, Any]:
    kind = "image" if name.startswith("images/") else "video"
    return talk(f"<{kind}>{question}", answer, **{kind: str(archive / name)})


@pytest.fixture
def rows(archive: Path) -> list[dict[str, Any]]:
    """Eight conversations: two about each file, of different lengths."""
    answers = ("Yes.", "A red circle, a blue star and a sign that says EXIT.")
    return [row(archive, name, f"{name}?", answer) for name in FILES for answer in answers]


class Run:
    """Trains in a folder, as the worker does; again, it goes on from the last checkpoint."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.folder, self.checkpoint = folder, checkpoint

    def job(self, rows: list[Any], **changes: Any) -> FinetuneJob:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "data.json").write_text(json.dumps(rows))
        training = {
            "bf16": False,  # losses are compared to more digits than bfloat16 has
            "max_steps": 4,
            "learning_rate": 1e-3,
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "gradient_checkpointing": False,
            "max_skipped": 100,
            "logging_steps": 1,
            "save_steps": 2,
            "dataloader_num_workers": 0,
        }
        spec = {
            "output": str(self.folder),
            "model": {"source": str(self.checkpoint), "dtype": "float32", "max_model_len": 512},
            "data": [str(self.folder / "data.json")],
            "sampling": {"num_frames": 4},
            "budget": {"image_tokens": [4, 9], "frame_tokens": [4, 8], "unit_tokens": 32},
            "training": training | changes.pop("training", {}),
        }
        spec["model"] |= changes.pop("model", {})
        return check(FinetuneJob, spec | changes, "test")

    def train(self, rows: list[Any], *callbacks: TrainerCallback, **changes: Any) -> list[float]:
        job = self.job(rows, **changes)
        options = {"share_media": job.training.share_media, "seed": job.training.seed}
        self.trainer = make_trainer(
            job,
            TrainingData(
                train=mix(job.data, Storage(), **options),
                validation=mix(job.validation, Storage(), **options),
                storage=Storage(),
            ),
            WorkerFolders(logs=self.folder, checkpoints=self.folder / "checkpoints"),
            callbacks=callbacks,
        )
        last = self.folder / "checkpoints"
        self.trainer.train(
            resume_from_checkpoint=get_last_checkpoint(str(last)) if last.exists() else None
        )
        return self.metrics("loss")

    def metrics(self, key: str) -> list[float]:
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [entry[key] for entry in map(json.loads, lines) if key in entry]


@pytest.fixture
def run(tmp_path: Path, checkpoint: Path):
    """Make a run of a name of its own."""
    return lambda name: Run(tmp_path / name, checkpoint)


def test_the_loss_does_not_depend_on_how_samples_are_spread(run, rows):
    """Rows, batches of an update, copies of the media: one mean over learnt tokens."""
    forms = {
        "whole": {},
        "alone": {"share_media": False, "per_device_train_batch_size": 8},
        "accumulated": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
        "recomputed": {"gradient_checkpointing": True},
        "loaded ahead": {"dataloader_num_workers": 1},
    }
    losses = {name: run(name).train(rows, training=form) for name, form in forms.items()}
    expected = losses.pop("whole")
    assert len(expected) == 4 and expected[-1] < expected[0]
    for name, found in losses.items():
        assert found == pytest.approx(expected, rel=1e-4), name


@pytest.mark.parametrize(
    "changes",
    [
        {"training": {"optimizer": "muon", "vision_tower_lr": 1e-4, "warmup_steps": 1}},
        {"lora": {"r": 4, "lora_dropout": 0.3}, "training": {"learning_rate": 1e-2}},
    ],
    ids=["muon", "lora"],
)
def test_an_interrupted_run_resumes_with_the_same_losses(run, rows, changes):
    class Stop(TrainerCallback):
        """As a lost worker: after a step that is logged, and that no checkpoint has."""

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    whole = run("whole").train(rows, **changes)
    broken = run("broken")
    with pytest.raises(KeyboardInterrupt):
        broken.train(rows, Stop(), **changes)
    assert broken.metrics("step") == [1, 2, 3]
    assert broken.train(rows, **changes) == pytest.approx(whole, rel=1e-6)
    assert broken.metrics("step") == [1, 2, 3, 4, 4]


def test_a_fresh_start_leaves_no_lines_of_an_earlier_one(run, rows):
    made = run("fresh")
    made.folder.mkdir()
    (made.folder / "metrics.jsonl").write_text('{"step": 1, "loss": 99.0}\n')
    assert len(made.train(rows)) == 4


def test_validation_is_a_mean_over_tokens(run, rows, checkpoint: Path):
    """Whatever the batches: by hand, conversation by conversation, through the trained model."""
    rows = rows[::3]  # answers of different lengths, each about another file
    found = {}
    for batch in (1, 3):
        made = run(str(batch))
        settings = {"per_device_train_batch_size": batch, "max_steps": 1, "learning_rate": 1e-9}
        job = made.job(rows)
        made.train(rows, validation=[d.model_dump() for d in job.data], training=settings)
        (found[batch],) = made.metrics("eval_loss")
    model, preparer = made.trainer.model.eval(), Preparer(job, Storage())
    total, count = 0.0, 0
    for (conversation,) in mix(job.data, Storage(), share_media=False, seed=0):
        batch = on_device(collate([preparer.prepare([conversation])]))
        labels = batch.pop("labels")
        with torch.no_grad():
            total += token_loss(model(**batch), labels, num_items_in_batch=1).item()
        count += int((labels != IGNORED).sum())
    assert found[1] == pytest.approx(total / count, rel=1e-5)
    assert found[3] == pytest.approx(total / count, rel=1e-5)


def test_what_cannot_be_read_is_left_out_and_named(run, rows, archive):
    """Also where it is all there is in a batch: the step then learns nothing."""
    broken = row(archive, "images/truncated.jpg", "?", "x")
    made = run("some")
    settings = {"max_steps": 8, "per_device_train_batch_size": 1, "share_media": False}
    losses = made.train([*rows[:3], broken], training=settings)
    assert sorted(losses)[:2] == [0.0, 0.0] < sorted(losses)[2:3]
    assert len(losses) == 8
    lines = (made.folder / "failed_samples-0.jsonl").read_text().splitlines()
    assert [json.loads(line)["sample"] for line in lines] == [f"{made.folder}/data.json:4"] * 2
    failed = json.loads(lines[0])
    assert failed["type"] == "media_unreadable" and "truncated" in failed["message"]
    alone = run("alone").train(rows[:3], training=settings | {"max_steps": 1, "seed": 1})
    assert len(alone) == 1


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("limit", [0, 33])
def test_it_stops_at_more_than_may_be_skipped(run, rows, archive, workers: int, limit: float):
    """Media that cannot be decoded are found only while training: one of three is over 33 %."""
    broken = row(archive, "images/none.jpg", "?", "x")
    settings = {"max_skipped": limit, "dataloader_num_workers": workers}
    made = run("stop")
    with pytest.raises(ManifestError, match=r"^1 of 3 samples cannot be learnt") as error:
        made.train([*rows[:2], broken], training=settings)
    place = f"{made.folder}/data.json:3: media_missing: media_missing: {archive}/images/none.jpg"
    assert f"The first is {place} does not exist. " in str(error.value)
    assert f"training.max_skipped = {limit} %" in str(error.value)


def test_batches_without_pictures(run):
    """Nothing of what learns here sees text: such a step must do nothing, and not fail."""
    texts = [talk("Say yes.", "yes"), talk("Say no.", "no")]
    made = run("text")
    projector = {"tune_mm_llm": False, "tune_mm_mlp": True, "tune_mm_vision": True}
    losses = made.train(texts, tune=projector, training={"max_steps": 2})
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and losses[0] > 1


def test_a_batch_of_failures_with_a_projector_that_learns(run, archive):
    broken = row(archive, "images/none.jpg", "?", "x")
    made = run("none")
    projector = {"tune_mm_llm": False, "tune_mm_mlp": True}
    assert made.train([broken], tune=projector, training={"max_steps": 2}) == [0.0, 0.0]


def test_a_group_that_is_too_long_is_taken_apart(run, archive):
    """Each conversation fits, all of one picture's do not: none may be lost."""
    rows = [row(archive, FILES[0], f"Question {k}?", "word " * 12) for k in range(9)]
    made = run("long")
    made.train([*rows, row(archive, FILES[0], "?", "word " * 400)], training={"max_steps": 1})
    (line,) = (made.folder / "failed_samples-0.jsonl").read_text().splitlines()
    assert json.loads(line)["sample"].endswith("data.json:10")
    assert json.loads(line)["type"] == "over_long"


def test_bfloat16(run, rows):
    losses = run("autocast").train(rows, training={"bf16": True})
    assert losses[-1] < losses[0] < 10
    with pytest.raises(JobFileError, match=r"bfloat16 needs lora or trainer\.deepspeed"):
        run("weights").train(rows, model={"dtype": "bfloat16"})


def test_tensorboard_has_the_same(run, rows):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = run("board")
    losses = made.train(rows)
    events = EventAccumulator(str(made.folder / "tensorboard"))
    events.Reload()
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(losses, rel=1e-6)


def test_zero_3_is_known_when_the_model_is_loaded(run, rows, monkeypatch):
    """transformers then loads each weight into its shard (`zero.Init`), where DeepSpeed is.

    It looks for the settings of TrainingArguments, which it refers to weakly.
    """
    made = run("zero")
    job = made.job(rows)
    make_arguments, seen = train.arguments, []

    class Settings:
        def is_zero3(self) -> bool:
            return True

    def arguments(*args: Any, **kwargs: Any) -> Any:
        found = make_arguments(*args, **kwargs)
        found.hf_deepspeed_config = Settings()  # as TrainingArguments does, given `deepspeed`
        set_hf_deepspeed_config(found.hf_deepspeed_config)
        return found

    def load_model(*args: Any, **kwargs: Any) -> Any:
        gc.collect()
        seen.append(is_deepspeed_zero3_enabled())
        raise ModelError("seen enough")

    monkeypatch.setattr(train, "arguments", arguments)
    monkeypatch.setattr(train, "load_model", load_model)
    data = TrainingData(
        train=mix(job.data, Storage(), share_media=True, seed=0), validation=(), storage=Storage()
    )
    try:
        with pytest.raises(ModelError, match="seen enough"):
            make_trainer(job, data, WorkerFolders(logs=made.folder, checkpoints=made.folder))
    finally:
        unset_hf_deepspeed_config()
    assert seen == [True]
