"""Predicted memory, against models on the meta device and the count of torch's allocator."""

import copy

import pytest
import torch
from transformers import DynamicCache

from pipeline.model.memory import BatchShape, ModelMemory, usable_bytes
from pipeline.model.sizes import GPUS, PUBLISHED, ModelSize
from schemas.job.model import Model
from tests.support.counters import allocated_peak
from tests.support.model_sizes import CONFIGS, empty_model, filled_model

WINDOW = 23_400
"""Vision tokens of a window of 60 s of 1080p, by the default budget."""


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_published_models(name):
    """Made on the meta device from the published configuration: exact to the parameter."""
    size = ModelSize.of(CONFIGS[name])
    model = empty_model(CONFIGS[name], torch.bfloat16)
    assert size == PUBLISHED[name]
    assert size.parameters == sum(p.numel() for p in model.parameters())
    assert size.vision.parameters == sum(p.numel() for p in model.model.visual.parameters())
    layers = dict(model.model.language_model.layers.named_parameters())
    linear = {n: p for n, p in layers.items() if "proj" in n}
    assert size.text.linear_parameters == sum(p.numel() for p in linear.values())
    assert ModelSize.of(model.config.to_dict()) == size
    memory = ModelMemory.of(CONFIGS[name], Model())
    assert memory.weight_bytes == sum(p.numel() * p.itemsize for p in model.parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True},
        {"tie_word_embeddings": True},
        {"mlp_only_layers": [1, 3]},
        {"decoder_sparse_step": 2},
        {"head_dim": 64, "num_key_value_heads": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["8B", "30B-A3B"])
def test_unusual_configurations_are_counted_too(name, changes):
    config = copy.deepcopy(CONFIGS[name])
    config["text_config"] |= {"num_hidden_layers": 5, "vocab_size": 1000}
    config["vision_config"] |= {"depth": 3, "deepstack_visual_indexes": [1]}
    for key, value in changes.items():
        (config if key in config else config["text_config"])[key] = value
    model = empty_model(config, torch.float32)
    assert ModelSize.of(config).parameters == sum(p.numel() for p in model.parameters())


def test_active_parameters_are_what_the_names_say():
    """30B-A3B: of about 30 billion parameters, about 3 are used for a token."""
    for name, total, active in (("30B-A3B", 30.5e9, 3.3e9), ("235B-A22B", 235e9, 22e9)):
        assert PUBLISHED[name].text.parameters == pytest.approx(total, rel=0.01)
        assert PUBLISHED[name].text.active_parameters == pytest.approx(active, rel=0.02)


def test_the_type_of_weights_is_the_jobs_or_the_checkpoints():
    config = CONFIGS["8B"]
    bfloat16 = ModelMemory.of(config, Model())
    full = ModelMemory.of(config, Model(dtype="float32"))
    assert (bfloat16.value_bytes, full.value_bytes) == (2, 4)
    assert full.weight_bytes == 2 * bfloat16.weight_bytes
    nothing_said = {k: v for k, v in config.items() if k != "dtype"}
    assert ModelMemory.of(nothing_said, Model()).value_bytes == 4
    in_text = nothing_said | {"text_config": config["text_config"] | {"dtype": "bfloat16"}}
    assert ModelMemory.of(in_text, Model()) == bfloat16
    fp8 = ModelMemory.of(config | {"quantization_config": {"quant_method": "fp8"}}, Model())
    # The published FP8 checkpoint of the 8B: embeddings and vision stay in bfloat16.
    assert 0.55 < fp8.weight_bytes / bfloat16.weight_bytes < 0.65
    on_load = Model(engine="vllm", vllm={"quantization": "fp8"})
    assert ModelMemory.of(config, on_load) == fp8
    idle = Model(vllm={"quantization": "fp8"})  # auto: the engine may be transformers
    assert ModelMemory.of(config, idle) == bfloat16
    assert ModelMemory.of(config, idle).in_engine(on_load) == fp8


COMPRESSED = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "group_size": 128}}},
}


@pytest.mark.parametrize(
    ("settings", "bits"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, 4 + 20 / 128),
        ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}, 4 + 20 / 64),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8),
        (COMPRESSED, 4 + 20 / 128),
        (
            COMPRESSED
            | {"config_groups": {"all": {"weights": {"num_bits": 8, "group_size": None}}}},
            8,
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("place", ["quantization_config", "compression_config"])
def test_quantised_weights_count_with_their_bits(settings, bits, place):
    plain = ModelMemory.of(CONFIGS["32B"], Model())
    memory = ModelMemory.of(CONFIGS["32B"] | {place: settings}, Model())
    linear = plain.size.text.linear_parameters
    assert plain.weight_bytes - memory.weight_bytes == pytest.approx(linear * (2 - bits / 8))
    assert memory.unknown_method is None and memory.token_bytes == plain.token_bytes


@pytest.mark.parametrize(
    "settings",
    [
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "awq"},
        {"quant_method": "compressed-tensors"},
    ],
    ids=str,
)
def test_weights_of_unknown_bits_are_said_to_be_unknown(settings):
    memory = ModelMemory.of(CONFIGS["8B"] | {"quantization_config": settings}, Model())
    assert memory.unknown_method == settings["quant_method"]
    assert memory.weight_bytes == ModelMemory.of(CONFIGS["8B"], Model()).weight_bytes


def small(name: str, layers: int, **text) -> dict:
    """A configuration of the published widths, with few layers and a small vocabulary."""
    config = copy.deepcopy(CONFIGS[name])
    config["text_config"] |= {"num_hidden_layers": layers, "vocab_size": 512} | text
    config["vision_config"] |= {"depth": 2, "deepstack_visual_indexes": [0]}
    return config | {"image_token_id": 511, "video_token_id": 510}


LANGUAGE_MODELS = {
    "2B": small("2B", 2),
    "8B": small("8B", 1),
    "attention": small("2B", 1, hidden_size=512, intermediate_size=128),
    "experts": small("30B-A3B", 1, num_experts=8, num_experts_per_tok=4, moe_intermediate_size=256),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_prefill_takes_what_is_predicted(name, dtype):
    """Layers of the published widths: their activations, and the cache that they leave."""
    config = LANGUAGE_MODELS[name]
    config["vision_config"]["out_hidden_size"] = config["text_config"]["hidden_size"]
    model, num_tokens = filled_model(config, dtype), 256
    cache = DynamicCache(config=model.config.get_text_config())
    ids = torch.arange(num_tokens)[None]

    @torch.inference_mode()
    def prefill():
        return model.model(
            input_ids=ids, position_ids=ids.expand(3, 1, -1), past_key_values=cache, use_cache=True
        )

    measured, _ = allocated_peak(prefill)
    memory = ModelMemory(size=ModelSize.of(config), value_bytes=dtype.itemsize)
    kept = num_tokens * memory.token_bytes
    assert kept == sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    predicted = memory.activation_bytes(num_tokens) + kept
    assert predicted == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["2B", "8B"])
def test_a_pass_of_the_vision_tower_takes_what_is_predicted(name, dtype):
    config = small(name, 1)
    model, grid = filled_model(config, dtype), (2, 16, 32)
    num_patches = 2 * 16 * 32

    @torch.inference_mode()
    def encode():
        colours = torch.zeros(num_patches, 1536, dtype=torch.uint8)
        rows = colours.to(dtype)
        if dtype != torch.float32:
            del colours
        return model.get_video_features(rows, torch.tensor([grid]), return_dict=True)

    measured, _ = allocated_peak(encode)
    memory = ModelMemory(size=ModelSize.of(config), value_bytes=dtype.itemsize)
    assert memory.vision_bytes(num_patches) == pytest.approx(measured, rel=0.1)
    features = model.get_video_features(
        torch.zeros(num_patches, 1536), torch.tensor([grid]), return_dict=True
    )
    kept = sum(t.nbytes for t in features.pooler_output)
    kept += sum(t.nbytes for layer in features.deepstack_features for t in layer)
    assert memory.feature_bytes(num_patches) == kept


def windows(count: int, num_tasks: int = 5) -> BatchShape:
    """Default windows of 60 s, with the times of their frames, and answers of 256 tokens."""
    return BatchShape(
        num_roots=count,
        prefix_tokens=WINDOW + 620,
        num_branches=num_tasks,
        suffix_tokens=100,
        answer_tokens=256,
        num_patches=count * 4 * WINDOW,
    )


def test_twelve_default_windows_fit_a_batch_on_an_h100():
    memory = ModelMemory(size=PUBLISHED["4B"])
    left = usable_bytes(GPUS["h100"].memory_bytes) - memory.weight_bytes
    assert memory.batch_bytes(windows(12)) <= left
    assert memory.max_cached_tokens(windows(12), left) >= windows(12).cache_room
    assert memory.batch_bytes(windows(17)) > left
    assert memory.max_cached_tokens(windows(17), left) < windows(17).cached_tokens
    # By hand: keys and values of 36 layers, 8 heads of 128, two bytes.
    assert memory.token_bytes == 2 * 36 * 8 * 128 * 2
    assert memory.batch_bytes(windows(12)) > 12 * (WINDOW + 620) * memory.token_bytes
