"""What a training loads, and what an export takes from the checkpoint that was trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from pipeline.training.load import export, load_model, weights_dtype
from schemas.job.finetune import FinetuneJob
from schemas.job.load import check
from tests.support.family import family_checkpoint


def job(source: Path, **changes: Any) -> FinetuneJob:
    spec = {"output": "unused", "data": ["unused.jsonl"], "model": {"source": str(source)}}
    return check(FinetuneJob, spec | changes, "test")


@pytest.fixture(scope="module")
def published(checkpoint: Path, tmp_path_factory) -> Path:
    """The tiny checkpoint in bfloat16, as the published ones are."""
    folder = tmp_path_factory.mktemp("published")
    export(load_model(job(checkpoint)), str(checkpoint), None, None, folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def dtypes(folder: Path) -> set[torch.dtype]:
    return {
        tensor.dtype
        for path in folder.glob("model*.safetensors")
        for tensor in load_file(path).values()
    }


def config_dtypes(folder: Path) -> set[str]:
    config = json.loads((folder / "config.json").read_text())
    parts = (config, config["text_config"], config["vision_config"])
    return {part["dtype"] for part in parts if part.get("dtype")}


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["weights", "merged adapters"])
def test_an_export_has_the_sources_dtype(published: Path, tmp_path: Path, lora):
    """Trained in float32: an engine that loads it as it is would need twice the memory."""
    made = job(published, lora=lora)
    model = load_model(made)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    export(model, str(published), None, made.lora, tmp_path)
    assert dtypes(tmp_path) == {torch.bfloat16}
    assert config_dtypes(tmp_path) == {"bfloat16"}
    assert AutoModelForImageTextToText.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_the_export_of_a_sharded_model_too(published: Path, tmp_path: Path):
    """Trainer writes it, in float32 and in several files; nothing of it was run on GPUs."""
    load_model(job(published)).save_pretrained(tmp_path, max_shard_size="100KB")
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 1 and dtypes(tmp_path) == {torch.float32}
    expected = {name: t for path in files for name, t in load_file(path).items()}
    export(None, str(published), None, None, tmp_path, has_weights=False)
    assert dtypes(tmp_path) == {torch.bfloat16}
    assert config_dtypes(tmp_path) == {"bfloat16"}
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, expected[name].to(torch.bfloat16), rtol=0, atol=0)


@pytest.mark.parametrize("model_type", ["qwen3_5", "qwen3_5_moe"])
@pytest.mark.parametrize("way", ["weights", "merged adapters", "sharded"])
def test_layers_for_speculation_are_announced_if_they_are_there(
    model_type, way, tmp_path, tmp_path_factory
):
    """A configuration with layers that no file has would start an engine that cannot draft."""
    source = family_checkpoint(tmp_path_factory, model_type)
    made = job(source, lora={"r": 4} if way == "merged adapters" else None)
    model = load_model(made)
    if way == "sharded":
        model.save_pretrained(tmp_path, max_shard_size="100KB")
    export(model, str(source), None, made.lora, tmp_path, has_weights=way != "sharded")
    assert announced_layers(source) == layers_in_files(source) == 1
    assert announced_layers(tmp_path) == layers_in_files(tmp_path)
    text, trained = (json.loads((f / "config.json").read_text()) for f in (source, tmp_path))
    assert trained["text_config"]["layer_types"] == text["text_config"]["layer_types"]


def announced_layers(folder: Path) -> int:
    config = json.loads((folder / "config.json").read_text())
    return config["text_config"]["mtp_num_hidden_layers"]


def layers_in_files(folder: Path) -> int:
    names = {name for path in folder.glob("model*.safetensors") for name in load_file(path)}
    return len({name.split(".")[2] for name in names if name.startswith("mtp.layers.")})


def test_adapters_apart_stay_as_they_were_trained(published: Path, tmp_path: Path):
    made = job(published, lora={"r": 4, "merge": False})
    export(load_model(made, is_bf16=True), str(published), None, made.lora, tmp_path)
    adapters = load_file(tmp_path / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapters.values()} == {torch.float32}


def test_a_source_in_a_type_that_none_trains_in_is_exported_in_bfloat16(
    published: Path, tmp_path: Path
):
    source, folder = tmp_path / "fp8", tmp_path / "out"
    source.mkdir()
    for path in published.glob("*.json"):
        (source / path.name).write_bytes(path.read_bytes())
    save_file({"w": torch.zeros(2, dtype=torch.float8_e4m3fn)}, source / "model.safetensors")
    export(load_model(job(published)), str(source), None, None, folder)
    assert dtypes(folder) == {torch.bfloat16}


@pytest.mark.parametrize(
    ("lora", "is_bf16", "dtype"),
    [
        (None, True, torch.float32),  # bfloat16 is too coarse for AdamW's steps
        ({"r": 4}, True, torch.bfloat16),
        ({"r": 4}, False, torch.float32),
    ],
)
def test_the_base_of_adapters_is_bfloat16(published: Path, lora, is_bf16: bool, dtype):
    model = load_model(job(published, lora=lora), is_bf16=is_bf16)
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    assert trained == {torch.float32}, "steps of AdamW need it"
    assert frozen == {dtype}


def test_fsdp_gets_weights_of_one_type(published: Path):
    """It flattens several to one tensor, and refuses those of two types."""
    made = job(published, lora={"r": 4}, trainer={"fsdp": "full_shard"})
    assert weights_dtype(made, is_bf16=True) == "float32"


def test_the_index_of_the_sources_weights_is_not_copied(tmp_path: Path):
    """It names files that the export does not have: readers would find no weights."""
    source, folder = tmp_path / "source", tmp_path / "export"
    source.mkdir()
    for name in ("config.json", "model.safetensors.index.json", "vocab.json"):
        (source / name).write_text("{}")
    folder.mkdir()
    (folder / "config.json").write_text('{"is": "trained"}')
    export(None, str(source), None, None, folder, has_weights=False)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "vocab.json"]
    assert (folder / "config.json").read_text() == '{"is": "trained"}'
