"""Weights of published checkpoints with linear layers, and the memory that their batches take."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.engines.transformers.attention import FRAMES, GROUPED
from pipeline.engines.transformers.load import load_model
from schemas.errors import ModelError
from tests.support.family import HYBRIDS, family_checkpoint
from tests.support.job_files import make_job

CPU = torch.device("cpu")


@pytest.fixture
def changed(request, tmp_path: Path, tmp_path_factory):
    """A copy of a checkpoint with one more tensor."""

    def change(model_type: str, name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(family_checkpoint(tmp_path_factory, model_type), folder)
        weights = load_file(folder / "model.safetensors")
        save_file(
            weights | {name: torch.ones(64, 128)},
            folder / "model.safetensors",
            metadata={"format": "pt"},
        )
        return folder

    return change


@pytest.mark.parametrize("model_type", HYBRIDS)
def test_layers_that_predict_more_tokens_are_left_out(changed, model_type):
    """Published checkpoints have them (``mtp``); transformers' models do not."""
    model = load_model(make_job(changed(model_type, "mtp.fc.weight")).model, CPU)
    assert not [name for name, _ in model.named_parameters() if "mtp" in name]


@pytest.mark.parametrize("model_type", HYBRIDS)
def test_other_tensors_that_the_model_does_not_know_are_an_error(changed, model_type):
    source = changed(model_type, "model.language_model.layers.0.other.weight")
    with pytest.raises(ModelError, match="1 tensor is unknown to the model"):
        load_model(make_job(source).model, CPU)


@pytest.mark.parametrize("model_type", HYBRIDS)
def test_attention_of_each_type(tmp_path_factory, model_type):
    """Layers that choose their keys have transformers' own: they read its mask."""
    model = load_model(make_job(family_checkpoint(tmp_path_factory, model_type)).model, CPU)
    own = model.config.text_config._attn_implementation
    assert own == ("sdpa" if model_type == "qwen4_exp" else GROUPED)
    assert model.config.vision_config._attn_implementation == FRAMES
