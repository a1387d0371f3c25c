"""What is known of a training before it starts: its samples, steps, workers, memory and hours."""

import io
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from rich.console import Console
from transformers import AutoModelForImageTextToText

from jobs.cli.main import main
from jobs.cluster import machines
from jobs.train import finetune, survey
from jobs.train.job_checks import check_model, check_same_job, workers_before
from jobs.train.placement import placed
from jobs.train.survey import (
    Survey,
    check_learnt,
    predict_hours,
    predict_row_memory,
    print_survey,
    survey_samples,
)
from pipeline.model.sizes import PUBLISHED
from pipeline.storage.storage import Storage
from pipeline.training import memory
from pipeline.training.batches import Samples
from pipeline.training.check import Checked
from pipeline.training.sample import Sample, Size, TrainingData
from pipeline.training.train import WorkerFolders, make_trainer
from schemas.conversation import DataProblem, ProblemType
from schemas.errors import ManifestError, ModelError, ResourceError
from schemas.job.finetune import FinetuneJob
from schemas.job.load import check
from tests.support.family import family_checkpoint
from tests.support.pages import blocks
from tests.support.paths import ROOT

SECONDS = 60
LANGUAGE_8B, VISION_8B = 8.19e9, 0.576e9
"""Parameters of Qwen3-VL-8B, published as 8.77 billion together."""


def job(folder: Path, checkpoint: Path, **changes: Any) -> FinetuneJob:
    spec = {
        "output": str(folder / "run"),
        "model": {"source": str(checkpoint)},
        "data": [str(folder / "data.jsonl")],
        "budget": {"image_tokens": [4, 16], "frame_tokens": [4, 8], "unit_tokens": 32},
        "resources": {"num_workers": 1, "use_gpu": False, "cpus_per_worker": 1},
    }
    return check(FinetuneJob, spec | changes, "test")


def write_rows(folder: Path, archive: Path, rows: list[tuple[str, str]]) -> None:
    """Conversations about pictures of the archive: the file and the answer."""
    lines = []
    for name, answer in rows:
        turns = [
            {"from": "human", "value": "<image>\nWhat is it?"},
            {"from": "gpt", "value": answer},
        ]
        lines.append(json.dumps({"image": str(archive / name), "conversations": turns}))
    (folder / "data.jsonl").write_text("\n".join(lines))


def read(job: FinetuneJob) -> TrainingData:
    mixed = finetune.mix(job.data, Storage(), share_media=True, seed=0)
    return TrainingData(train=mixed, validation=(), storage=Storage())


def checked(tokens: int, learnt: int = 10, vision: int = 0) -> Checked:
    size = Size(num_tokens=tokens, num_learnt=learnt, num_vision=vision)
    return Checked(sample=0, num_media=1, num_tokens=tokens, num_learnt=learnt, parts=(size,))


TOO_LONG = Checked(sample=0, num_media=1, num_tokens=500, num_learnt=200)


def test_samples_that_headers_show_to_be_too_many_end_it(
    tmp_path, archive, checkpoint, ray_session, monkeypatch
):
    """Before a worker starts: 2 of 4 are missing or too long, and the first is named."""
    rows = [("images/scene-0.jpg", "A."), ("images/plate-0.png", "word " * 200)]
    write_rows(tmp_path, archive, [*rows, ("images/none.jpg", "B."), ("images/wide.png", "C.")])
    made = job(tmp_path, checkpoint, model={"source": str(checkpoint), "max_model_len": 128})
    console = Console(file=io.StringIO(), width=200)

    def never(*args: Any) -> None:
        raise AssertionError("training started")

    monkeypatch.setattr(finetune, "train_on_ray", never)
    with pytest.raises(ManifestError) as error:
        finetune.run(made, console)
    assert str(error.value).startswith("2 of 4 samples cannot be learnt, which is over")
    assert "data.jsonl:2: over_long: " in str(error.value)
    assert "raise training.max_skipped" in str(error.value)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1 over_long, 1 media_missing" in said
    half = made.training.model_copy(update={"max_skipped": 50})
    with pytest.raises(AssertionError, match="training started"):
        finetune.run(made.model_copy(update={"training": half}), console)


def test_a_training_that_would_learn_nothing_ends(tmp_path, checkpoint):
    """Whatever may be skipped."""
    training = {"max_skipped": 100}
    made = job(tmp_path, checkpoint, training=training)
    problem = DataProblem(origin="a:1", type=ProblemType.OVER_LONG, message="too long")
    with pytest.raises(ManifestError, match=r"^1 of 1 samples .* first is a:1: over_long: too"):
        check_learnt(Survey(job=made, num_conversations=1, samples=[TOO_LONG], problems=[problem]))
    silent = Survey(job=made, num_conversations=1, samples=[checked(100, learnt=0)], problems=[])
    with pytest.raises(ManifestError, match="^nothing can be learnt: no sample has a token"):
        check_learnt(silent)


def test_a_validation_that_would_learn_nothing_ends(tmp_path, checkpoint):
    """Its loss would be 0, which looks like success; it is below 1 % of all samples."""
    problem = DataProblem(origin="v:1", type=ProblemType.OVER_LONG, message="too long")
    samples = [checked(100)] * 999
    found = Survey(
        job=job(tmp_path, checkpoint),
        num_conversations=1000,
        samples=samples,
        problems=[problem],
        validation=[TOO_LONG],
    )
    with pytest.raises(ManifestError, match="^nothing can be validated: v:1: over_long: too long"):
        check_learnt(found)


def test_over_long_samples_are_counted_as_training_takes_them(
    tmp_path, archive, checkpoint, ray_session, monkeypatch
):
    """One too long is left out; a group that is so only together is split, in the same row."""
    picture = "images/scene-0.jpg"
    rows = [(picture, "word " * 40)] * 3 + [("images/wide.png", "word " * 400)]
    write_rows(tmp_path, archive, rows)
    made = job(tmp_path, checkpoint, model={"source": str(checkpoint), "max_model_len": 200})
    data = read(made)
    alone = [data.train[-1]]
    data = TrainingData(train=data.train, validation=alone, storage=data.storage)
    found = survey_samples(data, made, Console(file=io.StringIO()))
    learnt: list[Sample] = []
    trained = Samples(data.train, made, Storage())
    for number in range(len(trained)):
        learnt += [sample for sample in trained[number] if isinstance(sample, Sample)]
    assert len(learnt) == 2 and len(data.train) == 2
    sizes = [(sample.num_tokens, sample.num_learnt) for sample in learnt]
    assert [(part.num_tokens, part.num_learnt) for part in found.good] == sizes
    given: list[Any] = []
    monkeypatch.setattr(memory, "predict_memory", lambda job, row, **_: given.append(row))
    predict_row_memory(found)
    assert given[0].tokens == sum(sample.num_tokens for sample in learnt)
    every = made.training.model_copy(update={"max_skipped": 100})
    with pytest.raises(ManifestError, match="^nothing can be validated: .*:4: over_long: "):
        check_learnt(replace(found, job=made.model_copy(update={"training": every})))


def test_a_limit_over_the_context_is_refused(tmp_path, checkpoint):
    model = {"source": str(checkpoint), "max_model_len": 300_000}
    with pytest.raises(ModelError, match="300000 is over the checkpoint's context of 262144; mod"):
        check_model(job(tmp_path, checkpoint, model=model))
    check_model(job(tmp_path, checkpoint, model=model | {"yarn": {"factor": 2}}))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("accumulated", [1, 4])
@pytest.mark.parametrize("epochs", [1.0, 2.5])
def test_steps_are_those_of_the_trainer(
    tmp_path, archive, checkpoint, batch: int, accumulated: int, epochs: float
):
    write_rows(tmp_path, archive, [("images/scene-0.jpg", "A."), ("images/wide.png", "B.")] * 5)
    training = {
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulated,
        "num_train_epochs": epochs,
        "dataloader_num_workers": 0,
    }
    made = job(tmp_path, checkpoint, training=training)
    data = read(made)
    samples = [checked(100)] * len(data.train)
    predicted = Survey(job=made, num_conversations=10, samples=samples, problems=[]).steps
    trainer = make_trainer(made, data, WorkerFolders(logs=tmp_path, checkpoints=tmp_path / "c"))
    loader = trainer.get_train_dataloader()
    *_, expected = trainer.set_initial_training_values(trainer.args, loader)
    assert predicted == expected


MACHINES = {
    "a laptop": ([{"CPU": 8.0}], (1, 8.0, False, 7)),
    "eight GPUs": ([{"CPU": 128.0, "GPU": 8.0}], (8, 9.0, True, 8)),
    # The head's CPUs are not where the GPUs are.
    "two small machines with GPUs and a large head": (
        [{"CPU": 64.0}, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}],
        (4, 4.0, True, 3),
    ),
    "two machines without GPUs": ([{"CPU": 8.0}, {"CPU": 8.0}], (1, 8.0, False, 7)),
    "few CPUs": ([{"CPU": 8.0, "GPU": 8.0}], (8, 1.0, True, 1)),
}


@pytest.mark.parametrize("name", MACHINES)
def test_workers_are_as_many_as_gpus(tmp_path, checkpoint, monkeypatch, name: str):
    nodes, expected = MACHINES[name]
    monkeypatch.setattr(machines, "nodes", lambda: nodes)
    made = placed(job(tmp_path, checkpoint, resources={}))
    found = made.resources
    loaders = made.training.dataloader_num_workers
    assert (found.num_workers, found.cpus_per_worker, found.use_gpu, loaders) == expected


def test_no_worker_is_spread_over_machines(tmp_path, checkpoint, monkeypatch):
    """Three on 8 and 5 CPUs: two on the first with 4 each, and one on the second."""
    monkeypatch.setattr(machines, "nodes", lambda: [{"CPU": 8.0}, {"CPU": 5.0}])
    made = placed(job(tmp_path, checkpoint, resources={"num_workers": 3}))
    assert made.resources.cpus_per_worker == 4
    with pytest.raises(ResourceError, match="^2 workers of 6 CPUs do not fit into"):
        placed(job(tmp_path, checkpoint, resources={"num_workers": 2, "cpus_per_worker": 6}))


def test_auto_goes_on_with_as_many_workers(tmp_path, checkpoint, monkeypatch):
    """A training that began on two GPUs, on a machine of four, and of one."""
    made = job(tmp_path, checkpoint, resources={})
    monkeypatch.setattr(machines, "nodes", lambda: [{"CPU": 8.0, "GPU": 2.0}])
    assert workers_before(made, Storage()) is None
    check_same_job(placed(made), "rows", Storage())
    saved = Path(made.output) / "checkpoints" / "checkpoint_1" / "model.safetensors"
    saved.parent.mkdir(parents=True)
    saved.write_bytes(b"")
    monkeypatch.setattr(machines, "nodes", lambda: [{"CPU": 8.0, "GPU": 4.0}])
    again = placed(made, workers_before(made, Storage()))
    assert again.resources.num_workers == 2
    check_same_job(again, "rows", Storage())
    monkeypatch.setattr(machines, "nodes", lambda: [{"CPU": 8.0, "GPU": 1.0}])
    with pytest.raises(ResourceError, match="^2 workers .* the output folder holds has as many"):
        placed(made, workers_before(made, Storage()))


def test_workers_that_do_not_fit(tmp_path, checkpoint, monkeypatch):
    monkeypatch.setattr(machines, "nodes", lambda: [{"CPU": 8.0, "GPU": 1.0}])
    with pytest.raises(ResourceError, match="^2 workers of 8 CPUs and a GPU do not fit into"):
        placed(job(tmp_path, checkpoint, resources={"num_workers": 2}))


def test_hours_are_operations_over_the_published_speed(tmp_path, checkpoint):
    """By hand, for one long sample of an 8B: 40 % of an H100's 989 TFLOP/s, as pages say."""
    made = job(tmp_path, checkpoint, lora={"r": 4})
    tokens, vision = 24_000, 23_400
    samples = [checked(tokens, vision=vision)]
    training = Survey(job=made, num_conversations=1, samples=samples, problems=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey, "load_config", lambda *_: _Config())
        patch.setattr(survey.ModelSize, "of", lambda config: PUBLISHED["8B"])
        hours = predict_hours(training, "h100")
    passes = 3  # forward, again for the activations, backward; no gradients of the weights
    language = passes * 2 * (LANGUAGE_8B + 36 * 32 * 128 * tokens) * tokens
    seconds = (language + 2 * VISION_8B * 4 * vision) / (0.4 * 989e12)
    assert hours == pytest.approx(seconds / 3600, rel=0.02)


def test_linear_layers_read_shared_tokens_again_for_each_conversation(tmp_path, tmp_path_factory):
    """By hand, with the parameters that the model itself has in these layers."""
    folder = family_checkpoint(tmp_path_factory, "qwen3_5")
    made = job(tmp_path, folder)

    def seconds(num_conversations: int) -> float:
        size = Size(num_tokens=1000, num_learnt=10, num_branched=100)
        part = replace(size, num_conversations=num_conversations)
        sample = replace(checked(1000), parts=(part,))
        training = Survey(job=made, num_conversations=1, samples=[sample], problems=[])
        return predict_hours(training, "h100") * 3600

    model = AutoModelForImageTextToText.from_pretrained(folder)
    layers = [m for name, m in model.named_modules() if name.endswith("linear_attn")]
    parameters = sum(p.numel() for layer in layers for p in layer.parameters())
    passes = 4  # forward, again for the activations, backward, and for the weights
    again = passes * 2 * parameters * 2 * 900 / (0.4 * 989e12)
    assert seconds(3) - seconds(1) == pytest.approx(again, rel=1e-6)
    full = family_checkpoint(tmp_path_factory, "qwen3_vl")
    made = job(tmp_path, full)
    assert seconds(3) == seconds(1)


class _Config:
    class text_config:
        num_hidden_layers, num_attention_heads, head_dim = 36, 32, 128

    def to_dict(self) -> dict[str, Any]:
        return {}


def test_a_dry_run_says_what_training_takes(tmp_path, archive, checkpoint, ray_session):
    write_rows(tmp_path, archive, [("images/scene-0.jpg", "A."), ("images/wide.png", "B.")])
    made = job(tmp_path, checkpoint, training={"max_steps": 7})
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(made.model_dump(mode="json")))
    result = CliRunner().invoke(
        main, ["finetune", str(tmp_path / "job.yaml"), "--dry-run"], catch_exceptions=False
    )
    assert result.exit_code == 0
    text = result.output
    assert "2 in 2 samples" in text and "skipped        none" in text
    assert "steps          7, 1 an epoch: 1 workers x 1 samples x 4 batches" in text
    assert "GB on each GPU: 0.0 weights" in text
    words = " ".join(text.split())
    assert "not known for this cluster, where this training uses no GPU" in words
    assert "h100 0.00" in text
    assert not (tmp_path / "run").exists()


def test_a_report_names_the_gpu_and_what_is_not_counted(tmp_path, checkpoint, monkeypatch):
    resources = {"num_workers": 1, "use_gpu": True, "cpus_per_worker": 1}
    made = job(tmp_path, checkpoint, resources=resources, tune={"tune_mm_vision": True})
    monkeypatch.setattr(survey, "gpu_names", lambda: ["geforce-rtx-4090"])
    console = Console(file=io.StringIO(), width=400)
    found = Survey(job=made, num_conversations=1, samples=[checked(100)], problems=[])
    needed = memory.StepMemory(weights=1, optimizer=1, working=1, media=1)
    print_survey(found, needed, console, dry_run=True)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "rtx4090 0.00: arithmetic" in said
    assert "not counted: the activations of the trained vision tower" in said


def default_window(folder: Path) -> None:
    """A table of one row, a window of 60 s at 1080p with two answers, and its video."""
    command = ["ffmpeg", "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=1920x1080:rate=2"]
    command += ["-t", str(SECONDS), "-c:v", "libx264", "-preset", "ultrafast", "-qp", "40"]
    subprocess.run([*command, str(folder / "clip.mp4")], check=True)
    event = {"start_seconds": 2.0, "end_seconds": 9.5, "caption": "A square moves."}
    row = {
        "uri": "clip.mp4",
        "media_type": "video",
        "status": "ok",
        "sampling": {"start_seconds": 0.0, "end_seconds": float(SECONDS)},
        "caption": "A test picture with a clock.",
        "events": [event],
    }
    pq.write_table(pa.Table.from_pylist([row]), folder / "corrected.parquet")


@pytest.mark.timeout(1200)
def test_the_readmes_example_trains_on_a_default_window(
    tmp_path, checkpoint, ray_session, monkeypatch
):
    """The page's job file on a window of the default length and size, and its loss falls.

    Changed are the model, which is tiny, and how long and how fast it learns.
    """
    default_window(tmp_path)
    (text,) = [block for block in blocks(ROOT / "README.md", "yaml") if "annotations:" in block]
    spec = yaml.safe_load(text)
    assert set(spec) == {"name", "output", "model", "data", "lora"}
    spec["model"] = {"source": str(checkpoint)}
    spec["training"] = {"max_steps": 2, "logging_steps": 1, "learning_rate": 0.01}
    spec["training"]["gradient_accumulation_steps"] = 1
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(spec))
    result = CliRunner().invoke(main, ["finetune", "job.yaml"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    lines = (tmp_path / "models" / "our-archive" / "metrics.jsonl").read_text().splitlines()
    losses = [line["loss"] for line in map(json.loads, lines) if "loss" in line]
    assert len(losses) == 2 and losses[0] > losses[1] > 0
    assert "skipped        none" in result.output
    # 60 frame pairs of 390 tokens: the size of qwen-vl-utils for 1080p in 768 squares.
    assert "23,400 of them vision" in result.output
