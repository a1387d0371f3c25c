"""Weights of published checkpoints with linear layers, and the states of a padded batch."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from pipeline.engines.transformers.attention import FRAMES, GROUPED
from pipeline.engines.transformers.cache import StateLayer
from pipeline.engines.transformers.load import load_model
from pipeline.engines.transformers.prefix import Prefix, RootTokens
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


PAD_IDS = {"image": 500, "video": 501}


@pytest.mark.parametrize("model_type", HYBRIDS)
def test_states_of_a_padded_batch_are_those_of_each_prompt_alone(tmp_path_factory, model_type):
    """Against the model's own cache; one prompt is shorter than the convolutions."""
    source = family_checkpoint(tmp_path_factory, model_type)
    model = load_model(make_job(source).model, CPU)
    oracle = AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(5, 400, (n,), generator=generator) for n in (90, 30, 2)]
    prefix = Prefix(model, [RootTokens.of(p.tolist(), PAD_IDS, []) for p in prompts], "sdpa", 1)
    with torch.inference_mode():
        (rows,) = prefix.passes()
        prefix.run(rows, [None] * 3)
        for row, prompt in enumerate(prompts):
            theirs = oracle(input_ids=prompt[None], use_cache=True).past_key_values
            num_states = 0
            for mine, layer in zip(prefix.cache.layers, theirs.layers, strict=True):
                if not isinstance(mine, StateLayer):
                    keys = mine.keys[row, :, 90 - len(prompt) : 90]
                    torch.testing.assert_close(keys, layer.keys[0], rtol=1e-3, atol=1e-3)
                    continue
                for found, expected in (
                    (mine.states.conv, layer.conv_states),
                    (mine.states.recurrent, layer.recurrent_states),
                ):
                    for key, state in found.items():
                        num_states += 1
                        torch.testing.assert_close(
                            state[row], expected[key][0], rtol=1e-3, atol=1e-3
                        )
            assert num_states == (6 if model_type == "qwen4_exp" else 4)
