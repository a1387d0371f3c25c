"""Predicted memory of models with linear layers, against transformers' models and caches."""

import dataclasses
import json
import shutil
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, DynamicCache

from pipeline.model.checkpoint import inspect_checkpoint
from pipeline.model.memory import BatchShape, ModelMemory
from pipeline.model.sizes import ModelSize
from schemas.job.model import Model
from tests.support.counters import allocated_peak
from tests.support.family import HYBRIDS, family_checkpoint

IS_OTHER = ("in_proj_a", "in_proj_b", "ple.", "index_qk", "bias")
"""Parts of the names of weights that are no projections of a layer."""


def config_of(model_type: str, **text: Any) -> Any:
    """The configuration that the class has by default, with some sizes of the language model."""
    vision = {"out_hidden_size": text["hidden_size"]} if "hidden_size" in text else {}
    return AutoConfig.for_model(model_type, text_config=text, vision_config=vision)


def empty(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()


def assert_counted(config: Any) -> None:
    size, model = ModelSize.of(config.to_dict()), empty(config)
    assert size.parameters == sum(p.numel() for p in model.parameters())
    assert size.vision.parameters == sum(p.numel() for p in model.model.visual.parameters())
    layers = model.model.language_model.layers.named_parameters()
    projections = [p for n, p in layers if "proj" in n and not any(part in n for part in IS_OTHER)]
    assert size.text.linear_parameters == sum(p.numel() for p in projections)


@pytest.mark.parametrize("model_type", HYBRIDS)
def test_parameters_are_the_models(model_type, tmp_path_factory):
    folder = family_checkpoint(tmp_path_factory, model_type)
    assert_counted(AutoConfig.from_pretrained(folder))
    memory = inspect_checkpoint(Model(source=str(folder))).memory
    model = AutoModelForImageTextToText.from_pretrained(folder)
    assert memory.weight_bytes == sum(p.numel() * p.itemsize for p in model.parameters())


@pytest.mark.parametrize("model_type", ["qwen3_5", "qwen3_5_moe"])
@pytest.mark.parametrize(
    "text",
    [
        {},
        {"attention_bias": True},
        {"linear_num_value_heads": 48, "linear_value_head_dim": 64, "linear_conv_kernel_dim": 3},
        {"head_dim": 64, "num_key_value_heads": 1},
    ],
    ids=str,
)
def test_sizes_of_the_classes_and_unusual_ones_are_counted_too(model_type, text):
    """By default: 9.4 billion parameters, and 35 billion, of which 3.5 are used for a token."""
    config = config_of(model_type, **text)
    assert_counted(config)
    size = ModelSize.of(config.to_dict())
    if not text:
        used = {"qwen3_5": 9.0e9, "qwen3_5_moe": 3.5e9}[model_type]
        assert size.text.active_parameters == pytest.approx(used, rel=0.02)


def states_of(cache: DynamicCache) -> list[torch.Tensor]:
    found = []
    for layer in cache.layers:
        for states in (getattr(layer, "conv_states", {}), getattr(layer, "recurrent_states", {})):
            found += [state for state in states.values() if state is not None]
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("model_type", HYBRIDS)
def test_a_sequence_has_a_state_and_only_full_layers_keep_tokens(
    model_type, dtype, tmp_path_factory
):
    """To the byte: the cache that the model itself fills, for two sequences of 70 tokens."""
    folder = family_checkpoint(tmp_path_factory, model_type)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
    memory = ModelMemory(size=ModelSize.of(model.config.to_dict()), value_bytes=dtype.itemsize)
    cache = DynamicCache(config=model.config.get_text_config())
    ids = (torch.arange(140) % 300).view(2, 70)
    with torch.inference_mode():
        model(input_ids=ids, past_key_values=cache, use_cache=True)
    assert 2 * memory.state_bytes == sum(state.nbytes for state in states_of(cache))
    full = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    kept = [t for layer in full for t in (layer.keys, layer.values)]
    kept += [k for layer in full if (k := getattr(layer, "indexer_keys", None)) is not None]
    assert 140 * memory.token_bytes == sum(t.nbytes for t in kept)


LINEAR = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
LINEAR |= {"vocab_size": 512, "num_attention_heads": 4, "num_key_value_heads": 1}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "text",
    [
        {"hidden_size": 1024, "intermediate_size": 3584, "linear_num_value_heads": 16},
        {"hidden_size": 1024, "intermediate_size": 512, "linear_num_value_heads": 32},
    ],
    ids=str,
)
def test_a_pass_takes_what_is_predicted(dtype, text):
    """Linear layers of real widths, whose functions compute in float32 in chunks."""
    config = config_of("qwen3_5", **LINEAR | text)
    config.vision_config.depth = 1
    model = empty(config, dtype).to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(0.01)
    num_tokens = 256
    ids, cache = torch.arange(num_tokens)[None], DynamicCache(config=config.get_text_config())

    @torch.inference_mode()
    def prefill():
        return model.model.language_model(input_ids=ids, past_key_values=cache, use_cache=True)

    measured, _ = allocated_peak(prefill)
    memory = ModelMemory(size=ModelSize.of(config.to_dict()), value_bytes=dtype.itemsize)
    kept = num_tokens * memory.token_bytes + memory.state_bytes
    predicted = memory.activation_bytes(num_tokens) + kept
    assert predicted == pytest.approx(measured, rel=0.1)


UNIT = BatchShape(
    num_roots=1,
    prefix_tokens=2000,
    num_branches=5,
    suffix_tokens=100,
    answer_tokens=256,
    num_patches=8000,
)


def test_the_older_name_of_the_type_counts_where_a_default_is_missing(
    tmp_path_factory: pytest.TempPathFactory, tmp_path
):
    folder = tmp_path / "checkpoint"
    shutil.copytree(family_checkpoint(tmp_path_factory, "qwen3_5"), folder)
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part.pop("dtype", None)
    del config["text_config"]["linear_conv_kernel_dim"]
    (folder / "config.json").write_text(json.dumps(config | {"torch_dtype": "bfloat16"}))
    assert inspect_checkpoint(Model(source=str(folder))).memory.value_bytes == 2


def test_a_batch_counts_a_state_for_each_answer():
    memory = ModelMemory(size=ModelSize.of(config_of("qwen3_5").to_dict()))
    # By hand: 24 linear layers; 8192 channels of 4 tokens in bfloat16, 32 heads of 128 x 128.
    assert memory.state_bytes == 24 * (8192 * 4 * 2 + 32 * 128 * 128 * 4)
    alone = dataclasses.replace(UNIT, num_roots=5, num_branches=1)
    without = dataclasses.replace(memory.size.text, num_linear=0, layers=8, linear=None)
    plain = ModelMemory(size=dataclasses.replace(memory.size, text=without))
    assert plain.token_bytes == memory.token_bytes
    more = memory.batch_bytes(alone) - plain.batch_bytes(alone)
    assert more >= 5 * memory.state_bytes
    free = 10 * memory.batch_bytes(alone)
    assert memory.max_cached_tokens(alone, free) < plain.max_cached_tokens(alone, free)
