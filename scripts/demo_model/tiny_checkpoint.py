"""Write a small Qwen3-VL with random weights, in the file layout of the published checkpoints.

It loads wherever the real model loads (`AutoModelForImageTextToText`, `AutoTokenizer`, engines).
Same seed, same bytes. Two sizes:

tiny: under 3 MB, for tests. Its answers are noise, but they depend on every input pixel and token,
    so a wrong input changes them.
demo: under 16 MB, the start of the demo model's training (docs/demo-model.md).

    python -m scripts.demo_model.tiny_checkpoint FOLDER [--size demo] [--moe]
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scripts.demo_model.tiny_tokenizer import (
    CHAT_TEMPLATE,
    SPECIAL_TOKENS,
    write_json,
    write_tokenizer,
)

if TYPE_CHECKING:
    import torch


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


def write_tiny_checkpoint(
    folder: Path, *, seed: int = 0, moe: bool = False, size: str = "tiny"
) -> Path:
    """Write the checkpoint into `folder` (made if missing, files replaced) and return `folder`.

    `moe` gives the mixture-of-experts classes (4 experts, 2 per token) in place of the dense ones.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForImageTextToText

    folder.mkdir(parents=True, exist_ok=True)
    numbers = SIZES[size]
    token_ids = write_tokenizer(folder, numbers.bpe_vocab_size, knows_demo=size == "demo")
    write_json(folder / "config.json", _config(token_ids, numbers, moe=moe))
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights that are replaced here
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    weights = _draw_weights(model, seed, None if size == "tiny" else numbers)
    _silence_placeholders(weights["lm_head.weight"], token_ids)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "generation_config.json", _generation_config(token_ids))
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    write_json(folder / "preprocessor_config.json", _image_processor_config())
    write_json(folder / "video_preprocessor_config.json", _video_processor_config())
    return folder


def _config(token_ids: dict[str, int], size: Size, *, moe: bool) -> dict[str, Any]:
    """config.json: fields and spelling of the published files, small numbers.

    float32, where the published weights are bfloat16, because tests compare numbers on a CPU.
    """
    model_type = "qwen3_vl_moe" if moe else "qwen3_vl"
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
    if moe:
        text_config |= {
            "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True,
            "decoder_sparse_step": 1, "mlp_only_layers": [],
            # Not 64 or 32: in a square expert matrix, a wrong transposition would go unnoticed.
            "moe_intermediate_size": 48,
        }
    vision_config = {
        "model_type": model_type, "depth": size.vision_depth,
        "hidden_size": size.vision_hidden_size,
        "intermediate_size": size.vision_intermediate_size, "num_heads": 4,
        "out_hidden_size": size.hidden_size, "hidden_act": "gelu_pytorch_tanh",
        "in_channels": 3, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
        "deepstack_visual_indexes": list(size.deepstack_visual_indexes),
        "num_position_embeddings": 256, "initializer_range": 0.02,
    }
    # fmt: on
    return {
        "architectures": [f"Qwen3VL{'Moe' if moe else ''}ForConditionalGeneration"],
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


def _generation_config(token_ids: dict[str, int]) -> dict[str, Any]:
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


def _image_processor_config() -> dict[str, Any]:
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


def _video_processor_config() -> dict[str, Any]:
    config = _image_processor_config()
    del config["image_processor_type"]
    size = {"longest_edge": 25165824, "shortest_edge": 4096}  # pixels of all frames together
    return config | {"size": size, "video_processor_type": "Qwen3VLVideoProcessor"}


def _draw_weights(
    model: "torch.nn.Module", seed: int, trained: Size | None
) -> dict[str, "torch.Tensor"]:
    """The published file's tensors for `model`: from N(0, 1/fan_in); norms are 1 and biases 0.

    trained: a model of this size will be trained, so the weights that add to the residual stream
        are scaled down by the number of layers, as in GPT-2.

    With the library's 0.02, most media would not change the residual stream, nor the answer.
    Numpy's generator, because torch's normal numbers depend on the vector width of the CPU.
    """
    import numpy as np
    import torch

    rng = np.random.default_rng(seed)
    weights = {}
    for name, parameter in sorted(model.named_parameters()):
        shape = tuple(parameter.shape)
        if len(shape) == 1:
            weights[name] = torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
            continue
        # Experts are [experts, out, in]; the patch convolution is [out, channels, t, h, w].
        fan_in = shape[-1] if len(shape) <= 3 else math.prod(shape[1:])
        drawn = rng.standard_normal(shape, dtype=np.float32) / np.float32(math.sqrt(fan_in))
        layers = _num_adding(name, trained) if trained else None
        if layers:
            drawn /= np.float32(math.sqrt(2 * layers))
        if ".experts." in name:
            # Files hold [experts, in, out], since transformers 4.57 did; 5.x turns them on loading.
            # `save_pretrained` of a model that was not loaded would write them unturned.
            drawn = np.ascontiguousarray(drawn.swapaxes(1, 2))
        weights[name] = torch.from_numpy(drawn)
    return weights


def _num_adding(name: str, size: Size) -> int | None:
    """Layers of the stack whose residual stream this weight adds to; None if it does not."""
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return size.num_hidden_layers
    if "visual.blocks" in name and name.endswith(("attn.proj.weight", "linear_fc2.weight")):
        return size.vision_depth
    return None


def _silence_placeholders(lm_head: "torch.Tensor", token_ids: dict[str, int]) -> None:
    """Zero the output rows ([vocabulary, hidden]) of tokens that trained models never generate.

    A logit of zero is far below the best of hundreds of random ones. An answer with `<|image_pad|>`
    in it, or an id that no token has, is a fault engines need not survive.
    """
    answered = ("<|im_end|>", "<|endoftext|>")
    lm_head[[token_ids[t] for t in SPECIAL_TOKENS if t not in answered]] = 0.0
    lm_head[max(token_ids.values()) + 1 :] = 0.0


def main() -> None:
    """Write one checkpoint and print its folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--moe", action="store_true", help="mixture of experts")
    args = parser.parse_args()
    print(write_tiny_checkpoint(args.folder, seed=args.seed, moe=args.moe, size=args.size))


if __name__ == "__main__":
    main()
