"""The JSON files of a small checkpoint: fields of the published ones, with small numbers."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Size:
    """Numbers of a checkpoint's configuration.

    bpe_vocab_size: 256 bytes and the merges. vocab_size: more rows than tokens, as published
    (151,936 rows for 151,669 tokens).
    """

    bpe_vocab_size: int
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vision_depth: int
    vision_hidden_size: int
    vision_intermediate_size: int
    deepstack_visual_indexes: tuple[int, ...]


SIZES = {
    "tiny": Size(
        bpe_vocab_size=448,
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vision_depth=3,
        vision_hidden_size=64,
        vision_intermediate_size=128,
        deepstack_visual_indexes=(0, 1),
    ),
    "demo": Size(
        bpe_vocab_size=640,
        vocab_size=704,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=3,
        vision_depth=4,
        vision_hidden_size=128,
        vision_intermediate_size=384,
        deepstack_visual_indexes=(1, 2),
    ),
}

_ARCHITECTURES = {
    "qwen3_vl": "Qwen3VL",
    "qwen3_vl_moe": "Qwen3VLMoe",
    "qwen3_5": "Qwen3_5",
    "qwen3_5_moe": "Qwen3_5Moe",
    "qwen4_exp": "Qwen4Exp",
}

# Not 64 or 32: in a square matrix, a wrong transposition would go unnoticed.
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}


def is_hybrid(model_type: str) -> bool:
    """Whether checkpoints of the type have linear layers: all but Qwen3-VL's."""
    return not model_type.startswith("qwen3_vl")


def model_config(token_ids: dict[str, int], size: Size, model_type: str) -> dict[str, Any]:
    """config.json of a checkpoint of a type.

    float32, where the published weights are bfloat16, because tests compare numbers on a CPU.
    """
    text_config = _text_config(token_ids, size, model_type)
    # fmt: off
    vision_config = {
        "model_type": model_type, "depth": size.vision_depth,
        "hidden_size": size.vision_hidden_size,
        "intermediate_size": size.vision_intermediate_size, "num_heads": 4,
        "out_hidden_size": size.hidden_size, "hidden_act": "gelu_pytorch_tanh",
        "in_channels": 3, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "deepstack_visual_indexes": (
            [] if is_hybrid(model_type) else list(size.deepstack_visual_indexes)
        ),
        "num_position_embeddings": 256, "initializer_range": 0.02,
    }
    # fmt: on
    return {
        "architectures": [f"{_ARCHITECTURES[model_type]}ForConditionalGeneration"],
        "model_type": model_type,
        "dtype": "float32",
        "text_config": text_config,
        "vision_config": vision_config,
        "tie_word_embeddings": False,
        "image_token_id": token_ids["<|image_pad|>"],
        "video_token_id": token_ids["<|video_pad|>"],
        "vision_start_token_id": token_ids["<|vision_start|>"],
        "vision_end_token_id": token_ids["<|vision_end|>"],
    }


def _text_config(token_ids: dict[str, int], size: Size, model_type: str) -> dict[str, Any]:
    # fmt: off
    text_config = {
        "model_type": f"{model_type}_text", "dtype": "float32", "vocab_size": size.vocab_size,
        "hidden_size": size.hidden_size, "intermediate_size": size.intermediate_size,
        "num_hidden_layers": size.num_hidden_layers, "hidden_act": "silu",
        "num_attention_heads": size.num_attention_heads,
        "num_key_value_heads": size.num_key_value_heads, "head_dim": 32,
        "attention_bias": False, "attention_dropout": 0.0, "rms_norm_eps": 1e-6,
        "initializer_range": 0.02, "use_cache": True, "max_position_embeddings": 262144,
        # Channel pairs turned by time, height and width; the section sums to head_dim / 2.
        "rope_scaling": {
            "mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default",
        },
        "rope_theta": 5000000,
        "bos_token_id": token_ids["<|endoftext|>"], "eos_token_id": token_ids["<|im_end|>"],
    }
    # fmt: on
    if model_type == "qwen3_vl_moe":
        text_config |= _EXPERTS
        text_config |= {"norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": []}
    return _hybrid(text_config, model_type) if is_hybrid(model_type) else text_config


def _hybrid(text_config: dict[str, Any], model_type: str) -> dict[str, Any]:
    """The fields of a hybrid in place of Qwen3-VL's; a full layer is second and last."""
    for key in ("rope_scaling", "rope_theta"):
        del text_config[key]
    layers = text_config["num_hidden_layers"] = 4
    # fmt: off
    text_config |= {
        "head_dim": 64, "attn_output_gate": True, "full_attention_interval": 2,
        "layer_types": ["linear_attention", "full_attention"] * (layers // 2),
        # Other numbers of heads and widths for keys and values: nothing is square.
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 32,
        "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4, "mamba_ssm_dtype": "float32",
        "mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": False,
        # A quarter of the 64 channels is rotated: 8 pairs.
        "rope_parameters": {
            "mrope_interleaved": True, "mrope_section": [3, 3, 2], "rope_type": "default",
            "rope_theta": 10000000, "partial_rotary_factor": 0.25,
        },
        "partial_rotary_factor": 0.25,
    }
    # fmt: on
    if model_type == "qwen3_5":
        return text_config
    del text_config["intermediate_size"]
    text_config |= _EXPERTS | {"shared_expert_intermediate_size": 40}
    if model_type == "qwen4_exp":
        del text_config["mtp_num_hidden_layers"], text_config["mtp_use_dedicated_embeddings"]
        # fmt: off
        text_config |= {
            "hc_count": 2, "hc_lowrank": 16,
            # One-indexed, of a linear layer: the third.
            "ple_layer_ids": [3], "ple_embed_dim": 32, "ple_conv_kernel_size": 4, "ngram_size": 3,
            "heads_per_ngram": 2, "ngram_vocab_size_base": 64,
            "make_ngram_vocab_size_divisible_by": 8, "split_ngram_parts": 2,
            # Fewer than the tokens of most prompts: full layers must choose.
            "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 32,
            "indexer_budget": 64, "indexer_compress_ratio": 4,
        }
        # fmt: on
    return text_config


def generation_config(token_ids: dict[str, int]) -> dict[str, Any]:
    """generation_config.json."""
    return {
        "bos_token_id": token_ids["<|endoftext|>"],
        "do_sample": True,
        "eos_token_id": [token_ids["<|im_end|>"], token_ids["<|endoftext|>"]],
        "pad_token_id": token_ids["<|endoftext|>"],
        "repetition_penalty": 1.0,
        "temperature": 0.7,
        "top_k": 20,
        "top_p": 0.8,
    }


def image_processor_config() -> dict[str, Any]:
    """preprocessor_config.json."""
    return {
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},  # pixels of an image, not sides
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
        "image_processor_type": "Qwen2VLImageProcessorFast",
    }


def video_processor_config() -> dict[str, Any]:
    """video_preprocessor_config.json."""
    config = image_processor_config()
    del config["image_processor_type"]
    size = {"longest_edge": 25165824, "shortest_edge": 4096}  # pixels of all frames together
    return config | {"size": size, "video_processor_type": "Qwen3VLVideoProcessor"}
