"""Training of checkpoints with linear layers: no sample of a row reaches another.

The oracle is the model called by hand for each conversation, without rows and shared media.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy
from transformers import AutoModelForImageTextToText

from jobs.train.finetune import mix
from jobs.train.job_checks import check_model
from pipeline.model.patches import patches
from pipeline.model.prompter import Prompter
from pipeline.storage.storage import Storage
from pipeline.training.attention import IMPLEMENTATION, separate_conversations
from pipeline.training.batches import collate, on_device
from pipeline.training.load import export, load_model
from pipeline.training.memory import Row, predict_memory
from pipeline.training.sample import IGNORED, Preparer, Sample, TrainingData
from pipeline.training.train import WorkerFolders, make_trainer, token_loss
from schemas.errors import ModelError
from schemas.job.finetune import FinetuneJob
from schemas.job.load import check
from tests.support.family import family_checkpoint

WATCHED = (
    "model.visual.patch_embed.proj.weight",
    "model.visual.merger.linear_fc1.weight",
    "model.language_model.embed_tokens.weight",
    "model.language_model.layers.0.linear_attn.in_proj_qkv.weight",
    "model.language_model.layers.0.linear_attn.conv1d.weight",
    "model.language_model.layers.2.linear_attn.A_log",
    "model.language_model.layers.3.self_attn.q_proj.weight",
)
LINES = ("It is red.", "A square.", "Nothing moves here at all.")


@pytest.fixture(scope="module", params=["qwen3_5", "qwen3_5_moe"])
def folder(request, tmp_path_factory) -> Path:
    return family_checkpoint(tmp_path_factory, request.param)


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    return family_checkpoint(tmp_path_factory, "qwen3_5")


def make_job(tmp_path: Path, checkpoint: Path, **changes: Any) -> FinetuneJob:
    """Three questions about one image, and one about another."""
    rows = []
    for name, color, lines in (("a.png", (200, 30, 30), LINES), ("b.png", (20, 90, 10), LINES[:1])):
        Image.new("RGB", (96, 64), color).save(tmp_path / name)
        for k, line in enumerate(lines):
            question = {"from": "human", "value": f"<image>\nQuestion {k}?"}
            answer = {"from": "gpt", "value": line}
            rows.append({"image": name, "conversations": [question, answer]})
    (tmp_path / "data.json").write_text(json.dumps(rows))
    training = {"max_steps": 6, "per_device_train_batch_size": 4, "gradient_checkpointing": False}
    training |= {"gradient_accumulation_steps": 1, "learning_rate": 3e-3, "logging_steps": 1}
    training |= {"dataloader_num_workers": 0, "save_steps": 100, "max_skipped": 0}
    spec = {
        "output": str(tmp_path),
        "model": {"source": str(checkpoint), "dtype": "float32", "max_model_len": 512},
        "data": [str(tmp_path / "data.json")],
        "budget": {"image_tokens": [4, 9]},
        "training": training | changes.pop("training", {}),
    }
    return check(FinetuneJob, spec | changes, "test")


def samples(
    job: FinetuneJob, *, share_media: bool, prompter: Prompter | None = None
) -> list[Sample]:
    preparer = Preparer(job, Storage())
    found = [
        preparer.prepare(group)
        for group in mix(job.data, Storage(), share_media=share_media, seed=0, prompter=prompter)
    ]
    assert all(isinstance(sample, Sample) for sample in found)
    return found


def load(folder: Path, attn: Any) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, attn_implementation=attn).train()


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: model.get_parameter(name).grad.clone() for name in WATCHED}
    model.zero_grad(set_to_none=True)
    return found


def by_hand(model: Any, alone: list[Sample]) -> tuple[float, dict[str, torch.Tensor]]:
    total = torch.zeros(())
    for sample in alone:
        ids = torch.tensor(sample.input_ids)[None]
        logits = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=torch.tensor(sample.types)[None],
            pixel_values=torch.cat([patches(torch.tensor(m.pixels)) for m in sample.media]),
            image_grid_thw=torch.tensor([m.grid_thw for m in sample.media]),
        ).logits
        labels = torch.tensor(sample.labels)[1:]
        total = total + cross_entropy(logits[0, :-1], labels, ignore_index=IGNORED, reduction="sum")
    total.backward()
    return total.item(), gradients(model)


def by_row(model: Any, row: list[Sample]) -> tuple[float, dict[str, torch.Tensor]]:
    batch = collate(row)
    labels = batch.pop("labels")
    loss = token_loss(model(**on_device(batch)), labels, num_items_in_batch=1)
    loss.backward()
    return loss.item(), gradients(model)


def test_a_row_teaches_what_single_conversations_do(folder, tmp_path):
    """Several samples in a row, and several conversations that share an image."""
    job = make_job(tmp_path, folder)
    alone, shared = (samples(job, share_media=share) for share in (False, True))
    assert (len(alone), len(shared)) == (4, 2)
    expected, wanted = by_hand(load(folder, "sdpa"), alone)
    model = load(folder, IMPLEMENTATION)
    separate_conversations(model)
    for row in (alone, alone[::-1], shared):
        loss, found = by_row(model, row)
        assert loss == pytest.approx(expected, rel=1e-5)
        for name, gradient in wanted.items():
            atol = 2e-5 * float(gradient.abs().max())
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=atol, msg=name)


def test_several_answers_teach_what_each_does_after_its_own_prompt(dense, tmp_path):
    """The template writes an empty block of reasoning before an answer, and not in earlier ones."""
    talk = [("human", "<image>\nWhat?"), ("gpt", "A square."), ("human", "Sure?"), ("gpt", "Yes.")]
    job = make_job(tmp_path, dense)
    turns = [{"from": speaker, "value": text} for speaker, text in talk]
    (tmp_path / "data.json").write_text(json.dumps([{"image": "a.png", "conversations": turns}]))
    with pytest.raises(AssertionError):  # as one sequence it is a problem of its row
        samples(job, share_media=True)
    prompter = Prompter(str(dense))
    alone, shared = (samples(job, share_media=s, prompter=prompter) for s in (False, True))
    assert (len(alone), len(shared)) == (2, 1)
    expected, wanted = by_hand(load(dense, "sdpa"), alone)
    model = load(dense, IMPLEMENTATION)
    separate_conversations(model)
    loss, found = by_row(model, shared)
    assert loss == pytest.approx(expected, rel=1e-5)
    for name, gradient in wanted.items():
        atol = 2e-5 * float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=atol, msg=name)


def test_what_linear_layers_read_again_is_known(dense, tmp_path):
    job = make_job(tmp_path, dense)
    row = samples(job, share_media=True)
    assert [sample.size.num_conversations for sample in row] == [3, 1]
    model = load(dense, IMPLEMENTATION)
    separate_conversations(model)
    read: list[int] = []
    layer = model.get_submodule("model.language_model.layers.0.linear_attn.in_proj_qkv")
    layer.register_forward_hook(lambda module, args, out: read.append(args[0].shape[1]))
    by_row(model, row)
    assert sum(read) == sum(s.size.num_tokens + s.size.num_repeated for s in row)
    assert sum(read) > sum(s.size.num_tokens for s in row)


def test_without_it_samples_would_reach_each_other(dense, tmp_path):
    """So the test above can fail."""
    alone = samples(make_job(tmp_path, dense), share_media=False)
    expected, _ = by_hand(load(dense, "sdpa"), alone)
    loss, _ = by_row(load(dense, IMPLEMENTATION), alone)
    assert abs(loss - expected) > 1e-3 * expected


def train(job: FinetuneJob, folder: Path) -> tuple[Any, list[float]]:
    data = mix(job.data, Storage(), share_media=True, seed=0)
    trainer = make_trainer(
        job,
        TrainingData(train=data, validation=(), storage=Storage()),
        WorkerFolders(logs=folder, checkpoints=folder / "checkpoints"),
    )
    trainer.train()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    # Where the machine computes in bfloat16, training wraps the model in autocast.
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    return model, [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["weights", "adapters"])
def test_the_loss_falls_and_the_export_answers_as_trained(dense, tmp_path, lora):
    rate = {"learning_rate": 2e-2} if lora else {}
    job = make_job(tmp_path, dense, lora=lora, training=rate)
    model, losses = train(job, tmp_path)
    assert losses[-1] < 0.8 * losses[0]
    out = tmp_path / "model"
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        own = {"spans": ((0, ids.shape[1]),), "branch_masks": (None,), "use_cache": False}
        expected = model.eval()(input_ids=ids, **own).logits
    export(model, str(dense), None, job.lora, out)
    again, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    with torch.inference_mode():
        torch.testing.assert_close(again(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)


def adapted(job: FinetuneJob) -> set[str]:
    names = [name for name, p in load_model(job).named_parameters() if p.requires_grad]
    return {name.split(".lora_")[0].rpartition(".")[2] for name in names}


def test_adapters_are_at_linear_layers_too_unless_modules_are_named(dense, tmp_path):
    attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
    linear = {"in_proj_qkv", "in_proj_z", "out_proj"}
    assert adapted(make_job(tmp_path, dense, lora={"r": 2})) == attention | linear
    named = {"r": 2, "target_modules": ["q_proj", "in_proj_a"]}
    assert adapted(make_job(tmp_path, dense, lora=named)) == {"q_proj", "in_proj_a"}


def test_what_is_not_known_or_not_trained_is_said(dense, tmp_path, tmp_path_factory):
    row = Row(tokens=64, branch_tokens=0, learnt_tokens=8, vision_tokens=4)
    with pytest.raises(NotImplementedError, match="linear layers"):
        predict_memory(make_job(tmp_path, dense), row, is_bf16=False, num_workers=1)
    indexed = family_checkpoint(tmp_path_factory, "qwen4_exp")
    with pytest.raises(ModelError, match="'qwen4_exp' model, which Reelscribe runs and does not"):
        check_model(make_job(tmp_path, indexed))
    check_model(make_job(tmp_path, dense))
