"""Write a small Qwen3-VL with random weights, in the file layout of the published checkpoints.

It loads wherever the real model loads (`AutoModelForImageTextToText`, `AutoTokenizer`, engines).
Same seed, same bytes. Two sizes:

tiny: under 3 MB, for tests. Its answers are noise, but they depend on every pixel and token it is
    given, so a wrong input shows.
demo: under 16 MB, what the demo model's training starts from (docs/demo-model.md).

    python -m jobs.tiny_checkpoint FOLDER [--size demo] [--moe]
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

# Qwen2's split, shared by Qwen3-VL: every digit is a token of its own, so that the model reads box
# corners and times digit by digit. Source: transformers, models/qwen2/tokenization_qwen2.py.
PRETOKENIZE_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


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

# In the published order, which is the order of their ids, right after the byte-pair vocabulary.
# The plain ones are single tokens too, but skip_special_tokens keeps them when decoding.
# fmt: off
SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)
PLAIN_ADDED_TOKENS = (
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
    "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>",
    "<think>", "</think>",
)
# fmt: on

# Renders what the published template renders for system, user and assistant turns, and tools in the
# system turn; tool turns are not covered. There is no default system turn, a system turn counts
# only in first place, and only user turns show media.
CHAT_TEMPLATE = r"""
{%- set seen = namespace(images=0, videos=0) -%}
{%- if tools -%}
  {{- '<|im_start|>system\n' -}}
  {%- if messages[0].role == 'system' -%}{{- messages[0].content ~ '\n\n' -}}{%- endif -%}
  {{- '# Tools\n\nYou may call one or more functions to assist with the user query.\n\n' -}}
  {{- 'You are provided with function signatures within <tools></tools> XML tags:\n<tools>' -}}
  {%- for tool in tools -%}{{- '\n' ~ (tool | tojson) -}}{%- endfor -%}
  {{- '\n</tools>\n\nFor each function call, return a json object with function name and ' -}}
  {{- 'arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n' -}}
  {{- '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
  {%- set shows_media = message.role == 'user' -%}
  {%- set opens = message.role == 'system' and loop.first and not tools -%}
  {%- if message.role in ['user', 'assistant'] or opens -%}
    {{- '<|im_start|>' ~ message.role ~ '\n' -}}
    {%- if message.content is string -%}
      {{- message.content -}}
    {%- else -%}
      {%- for part in message.content -%}
        {%- if shows_media and (part.type == 'image' or 'image' in part or 'image_url' in part) -%}
          {%- set seen.images = seen.images + 1 -%}
          {{- 'Picture ' ~ seen.images ~ ': ' if add_vision_id else '' -}}
          {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
        {%- elif shows_media and (part.type == 'video' or 'video' in part) -%}
          {%- set seen.videos = seen.videos + 1 -%}
          {{- 'Video ' ~ seen.videos ~ ': ' if add_vision_id else '' -}}
          {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
        {%- elif 'text' in part -%}
          {{- part.text -}}
        {%- endif -%}
      {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\n' -}}
  {%- endif -%}
{%- endfor -%}
{{- '<|im_start|>assistant\n' if add_generation_prompt else '' -}}
""".strip()

TRAINING_TEXT = """\
Describe this image in detail. Describe the video, then list its events in order.
Read all the text in the image. Report bbox coordinates in JSON format. Report points.
[{"bbox_2d": [120, 45, 880, 610], "label": "red circle"}, {"point_2d": [512, 300], "label": "star"}]
{"00:23.00 - 00:48.00": "A blue square moves from left to right and vanishes."}
<0.3 seconds><1.2 seconds><10.8 seconds> The scene shows a green triangle and a white star.
A person walks along the street while a car stops at the corner. There is text on the sign.
It appears at the start of the clip and disappears at the end. What is shown? When does it happen?
"""


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
    token_ids = _write_tokenizer(folder, size)
    _write_json(folder / "config.json", _config(token_ids, numbers, moe=moe))
    with torch.random.fork_rng(devices=[]):  # the constructor draws weights that are replaced here
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    weights = _draw_weights(model, seed, None if size == "tiny" else numbers)
    _silence_placeholders(weights["lm_head.weight"], token_ids)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _write_json(folder / "generation_config.json", _generation_config(token_ids))
    _write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    _write_json(folder / "preprocessor_config.json", _image_processor_config())
    _write_json(folder / "video_preprocessor_config.json", _video_processor_config())
    return folder


def _write_tokenizer(folder: Path, size: str) -> dict[str, int]:
    """Train the byte-level BPE, write its four files, and return the ids of the added tokens."""
    from tokenizers import AddedToken

    text = TRAINING_TEXT if size == "tiny" else TRAINING_TEXT + _demo_text()
    tokenizer = _train_tokenizer(text, SIZES[size].bpe_vocab_size)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in PLAIN_ADDED_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))

    bpe = json.loads(tokenizer.to_str())["model"]
    _write_json(folder / "vocab.json", bpe["vocab"])
    merges = ["#version: 0.2", *(" ".join(pair) for pair in bpe["merges"])]
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")

    first_id = tokenizer.get_vocab_size(with_added_tokens=False)
    token_ids = {t: first_id + n for n, t in enumerate(SPECIAL_TOKENS + PLAIN_ADDED_TOKENS)}
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added_tokens = {
        str(token_id): {"content": token, **flags, "special": token in SPECIAL_TOKENS}
        for token, token_id in token_ids.items()
    }
    tokenizer_config = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added_tokens,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 262144,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    _write_json(folder / "tokenizer_config.json", tokenizer_config)
    return token_ids


def _demo_text() -> str:
    """What the demo model is asked and answers: each word of it becomes one token."""
    from jobs.scene import COLORS, SHAPES
    from pipeline.parse import TASKS
    from schemas.task import Question

    labels = (), SHAPES
    prompts = [
        task.prompt(Question(task=task.name, labels=asked), media_type)
        for task in TASKS.values()
        for asked in labels
        for media_type in sorted(task.media_types)
    ]
    things = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
    captions = [
        line
        for thing in things
        for line in (
            f"A {thing}, an {thing} and a {thing} above text.",
            f"An {thing}, then a {thing}, then an {thing} below text.",
            f'"00:01.00 - 00:02.50": "A {thing} moves left.", "A {thing} moves right."',
            f'"00:00.00 - 00:03.00": "An {thing} moves up.", "A {thing} moves down."',
            f'"An {thing} stands still."',
            '```json\n[{"time": 1.5, "bbox_2d": [120, 45, 880, 610], "label": "circle"}]\n```',
            '```json\n[{"bbox_2d": [1, 2, 3, 4], "text_content": ""}, {"bbox_2d": []}]\n```',
            "There is no text.",
        )
    ]
    return "\n".join([*prompts * 8, *captions])


def _train_tokenizer(text: str, vocab_size: int) -> "Tokenizer":
    import tokenizers
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    split = Split(tokenizers.Regex(PRETOKENIZE_REGEX), behavior="isolated", invert=False)
    byte_level = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = Sequence([split, byte_level])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    # Roles are repeated so that each becomes one token, as in the real vocabulary.
    tokenizer.train_from_iterator(["user\nassistant\nsystem\n" * 8, text], trainer)
    return tokenizer


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
            # Not 64 or 32: in a square expert matrix nobody sees whether it was transposed.
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

    trained: a model of this size is to be trained from here: what its layers add to the residual
        stream is scaled down by their number, as in GPT-2.

    The library's own 0.02 would leave the residual stream, and so the answer, blind to most media.
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
    """Zero the output rows ([vocabulary, hidden]) that trained weights never answer with.

    A logit of zero is far below the best of hundreds of random ones. An answer with `<|image_pad|>`
    in it, or an id that no token has, is a fault engines need not survive.
    """
    answered = ("<|im_end|>", "<|endoftext|>")
    lm_head[[token_ids[t] for t in SPECIAL_TOKENS if t not in answered]] = 0.0
    lm_head[max(token_ids.values()) + 1 :] = 0.0


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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
