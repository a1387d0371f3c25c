"""Configurations of the published checkpoints, and models of them without useful weights."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_SMALL = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096}
_SMALL |= {"deepstack_visual_indexes": [5, 11, 17]}
_LARGE = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304}
_LARGE |= {"deepstack_visual_indexes": [8, 16, 24]}
_VISION = {"num_heads": 16, "num_position_embeddings": 2304}
_TEXT = {"head_dim": 128, "vocab_size": 151_936, "attention_bias": False}
_EXPERTS = {"num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1}


def _published(vision: dict[str, Any], *sizes: int, **text: Any) -> dict[str, Any]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    text = _TEXT | dict(zip(names, sizes, strict=True)) | {"num_key_value_heads": 8} | text
    is_tied = text.pop("tied", False)
    return {
        "model_type": "qwen3_vl_moe" if "num_experts" in text else "qwen3_vl",
        "dtype": "bfloat16",
        "tie_word_embeddings": is_tied,
        "text_config": text,
        "vision_config": _VISION | vision | {"out_hidden_size": text["hidden_size"]},
    }


CONFIGS = {
    "2B": _published(_SMALL, 2048, 6144, 28, 16, tied=True),
    "4B": _published(_SMALL, 2560, 9728, 36, 32, tied=True),
    "8B": _published(_LARGE, 4096, 12_288, 36, 32),
    "32B": _published(_LARGE, 5120, 25_600, 64, 64),
    "30B-A3B": _published(
        _LARGE, 2048, 6144, 48, 32, num_key_value_heads=4, moe_intermediate_size=768, **_EXPERTS
    ),
    "235B-A22B": _published(
        _LARGE, 4096, 12_288, 94, 64, num_key_value_heads=4, moe_intermediate_size=1536, **_EXPERTS
    ),
}
"""``config.json`` of Qwen/Qwen3-VL-*-Instruct, what determines sizes."""


def empty_model(config: dict[str, Any], dtype: "torch.dtype") -> Any:
    """Make a model of a configuration on the meta device, with the engine's attention."""
    import torch
    from transformers import AutoModelForImageTextToText, Qwen3VLConfig, Qwen3VLMoeConfig

    from pipeline.engines.transformers.attention import GROUPED

    is_moe = config["model_type"] == "qwen3_vl_moe"
    found = (Qwen3VLMoeConfig if is_moe else Qwen3VLConfig)(**config)
    attention = {"": "sdpa", "text_config": GROUPED, "vision_config": "sdpa"}
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(
            found, dtype=dtype, attn_implementation=attention
        ).eval()


def filled_model(config: dict[str, Any], dtype: "torch.dtype") -> Any:
    """Make a model on the CPU whose weights are all the same small number."""
    model = empty_model(config, dtype).to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(0.01)
    return model
