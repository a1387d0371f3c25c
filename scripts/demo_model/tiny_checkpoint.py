"""Write a small checkpoint with random weights, in the file layout of the published ones.

It loads wherever the real model loads (`AutoModelForImageTextToText`, `AutoTokenizer`, engines).
Same seed, same bytes. Two sizes:

tiny: under 3 MB, for tests. Its answers are noise, but they depend on every input pixel and token,
    so a wrong input changes them.
demo: under 16 MB, the start of the demo model's training (docs/demo-model.md).

    python -m scripts.demo_model.tiny_checkpoint FOLDER [--size demo] [--model-type qwen3_5]
"""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.demo_model.tiny_config import (
    SIZES,
    Size,
    generation_config,
    image_processor_config,
    is_hybrid,
    model_config,
    video_processor_config,
)
from scripts.demo_model.tiny_tokenizer import (
    CHAT_TEMPLATE,
    SPECIAL_TOKENS,
    SWITCHED_TEMPLATE,
    write_json,
    write_tokenizer,
)

if TYPE_CHECKING:
    import numpy as np
    import torch

MODEL_TYPES = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe", "qwen4_exp")


def write_tiny_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    moe: bool = False,
    size: str = "tiny",
    model_type: str | None = None,
) -> Path:
    """Write the checkpoint into `folder` (made if missing, files replaced) and return `folder`.

    `model_type` is one of MODEL_TYPES; Qwen3-VL by default. `moe` gives its mixture-of-experts
    classes (4 experts, 2 per token) in place of the dense ones.
    """
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForImageTextToText

    folder.mkdir(parents=True, exist_ok=True)
    numbers = SIZES[size]
    model_type = model_type or ("qwen3_vl_moe" if moe else "qwen3_vl")
    token_ids = write_tokenizer(
        folder,
        numbers.bpe_vocab_size,
        knows_demo=size == "demo",
        is_hybrid=is_hybrid(model_type),
    )
    write_json(folder / "config.json", model_config(token_ids, numbers, model_type))
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights that are replaced here
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    weights = _draw_weights(model, seed, None if size == "tiny" else numbers)
    _silence_placeholders(weights["lm_head.weight"], token_ids)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "generation_config.json", generation_config(token_ids))
    if is_hybrid(model_type):
        (folder / "chat_template.jinja").write_text(SWITCHED_TEMPLATE, encoding="utf-8")
    else:
        write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    write_json(folder / "preprocessor_config.json", image_processor_config())
    write_json(folder / "video_preprocessor_config.json", video_processor_config())
    return folder


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

    model_type = model.config.model_type
    rng = np.random.default_rng(seed)
    weights = {}
    for name, parameter in sorted(model.named_parameters()):
        shape = tuple(parameter.shape)
        if len(shape) == 1:
            weights[name] = _draw_vector(name, parameter, rng)
            continue
        # Experts are [experts, out, in]; the patch convolution is [out, channels, t, h, w].
        fan_in = shape[-1] if len(shape) <= 3 else math.prod(shape[1:])
        drawn = rng.standard_normal(shape, dtype=np.float32) / np.float32(math.sqrt(fan_in))
        layers = _num_adding(name, trained) if trained else None
        if layers:
            drawn /= np.float32(math.sqrt(2 * layers))
        if ".experts." in name and model_type == "qwen3_vl_moe":
            # Files hold [experts, in, out], since transformers 4.57 did; 5.x turns them on loading.
            # `save_pretrained` of a model that was not loaded would write them unturned.
            drawn = np.ascontiguousarray(drawn.swapaxes(1, 2))
        weights[name] = torch.from_numpy(drawn)
    if model_type in ("qwen3_5", "qwen3_5_moe"):
        weights |= _draw_next_token_layer(weights, rng)
    if model_type == "qwen4_exp":
        weights |= {n: b.clone() for n, b in model.state_dict().items() if n not in weights}
        _split_ngrams(weights, model.config.text_config.split_ngram_parts)
    return weights


def _draw_vector(
    name: str, parameter: "torch.nn.Parameter", rng: "np.random.Generator"
) -> "torch.Tensor":
    """A weight of one axis: as the class fills it, but for how fast a linear layer forgets."""
    import numpy as np
    import torch

    # A token's state fades by exp(-exp(A_log) * softplus(a + dt_bias)), where `a` is near 0: by
    # these, the state of some heads outlives a thousand tokens, and that of others ten.
    ranges = {"A_log": (math.log(0.01), 0.0), "dt_bias": (-4.0, 0.0)}
    given = ranges.get(name.rpartition(".")[2])
    if given is None:
        return parameter.detach().clone()
    return torch.from_numpy(rng.uniform(*given, tuple(parameter.shape)).astype(np.float32))


def _draw_next_token_layer(
    weights: dict[str, "torch.Tensor"], rng: "np.random.Generator"
) -> dict[str, "torch.Tensor"]:
    """Weights of the layer that guesses one more token, which published files have.

    transformers ignores them; a check that counts tensors must know them.
    """
    import numpy as np
    import torch

    prefix = "model.language_model.layers.1."
    layer = {f"mtp.layers.0.{n[len(prefix) :]}": w for n, w in weights.items() if prefix in n}
    width = weights["model.language_model.norm.weight"].shape[0]
    norms = ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
    found = {name: w.clone() for name, w in layer.items()}
    found |= {f"mtp.{name}.weight": torch.zeros(width) for name in norms}
    joined = rng.standard_normal((width, 2 * width), dtype=np.float32)
    return found | {"mtp.fc.weight": torch.from_numpy(joined / np.float32(math.sqrt(2 * width)))}


def _split_ngrams(weights: dict[str, "torch.Tensor"], num_parts: int) -> None:
    """Replace each table of n-grams in `weights` by the parts that published files have."""
    for name in [n for n in weights if n.endswith("ngram_embedding.weight")]:
        parts = weights.pop(name).chunk(num_parts)
        stem = name.removesuffix("weight")
        weights |= {f"{stem}shard_{k}.weight": part.clone() for k, part in enumerate(parts)}


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
    parser.add_argument("--model-type", choices=MODEL_TYPES, default="qwen3_vl")
    args = parser.parse_args()
    print(
        write_tiny_checkpoint(
            args.folder, seed=args.seed, size=args.size, model_type=args.model_type
        )
    )


if __name__ == "__main__":
    main()
