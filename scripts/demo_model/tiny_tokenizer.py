"""Train and write the tokenizer of a small checkpoint, with the published special tokens."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Qwen2's split, shared by Qwen3-VL: every digit is a token of its own, so that the model reads box
# corners and times digit by digit. Source: transformers, models/qwen2/tokenization_qwen2.py.
PRETOKENIZE_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
HYBRID_REGEX = PRETOKENIZE_REGEX.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(
    r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{M}\p{N}]+"
)
"""The split of Qwen3.5: marks, such as the vowels of Hindi, stay with their letters.

Source: transformers, models/qwen3_5/tokenization_qwen3_5.py."""


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

SWITCHED_TEMPLATE = (
    CHAT_TEMPLATE
    + r"""
{%- if add_generation_prompt -%}
  {%- if enable_thinking is defined and not enable_thinking -%}
    {{- '<think>\n\n</think>\n\n' -}}
  {%- else -%}
    {{- '<think>\n' -}}
  {%- endif -%}
{%- endif -%}
"""
).strip()
"""The template of Qwen3.5, reduced: it opens the reasoning, or closes it, by its switch."""

TRAINING_TEXT = """\
Describe this image in detail. Describe the video, then list its events in order.
Read all the text in the image. Report bbox coordinates in JSON format. Report points.
[{"bbox_2d": [120, 45, 880, 610], "label": "red circle"}, {"point_2d": [512, 300], "label": "star"}]
{"00:23.00 - 00:48.00": "A blue square moves from left to right and vanishes."}
<0.3 seconds><1.2 seconds><10.8 seconds> The scene shows a green triangle and a white star.
A person walks along the street while a car stops at the corner. There is text on the sign.
It appears at the start of the clip and disappears at the end. What is shown? When does it happen?
"""


MARKED_TEXT = "हिन्दी में क्या लिखा है\n" * 12
"""So that tokens hold marks, and a text that is split in the wrong way has other tokens."""


def write_tokenizer(
    folder: Path, vocab_size: int, *, knows_demo: bool, is_hybrid: bool = False
) -> dict[str, int]:
    """Train the byte-level BPE, write its four files, and return the ids of the added tokens.

    vocab_size: 256 bytes and the merges. knows_demo: also train it on the demo model's answers.
    is_hybrid: split text, and open answers, as Qwen3.5 does.
    """
    from tokenizers import AddedToken

    text = TRAINING_TEXT + _demo_text() if knows_demo else TRAINING_TEXT
    if is_hybrid:
        text += MARKED_TEXT
    tokenizer = _train_tokenizer(text, vocab_size, HYBRID_REGEX if is_hybrid else PRETOKENIZE_REGEX)
    tokenizer.add_special_tokens([AddedToken(t, normalized=False) for t in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in PLAIN_ADDED_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))

    bpe = json.loads(tokenizer.to_str())["model"]
    write_json(folder / "vocab.json", bpe["vocab"])
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
        "chat_template": SWITCHED_TEMPLATE if is_hybrid else CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 262144,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    return token_ids


def _demo_text() -> str:
    """Prompts and answers of the demo model: each of their words becomes one token."""
    from jobs.demo.scene import COLORS, SHAPES
    from pipeline.tasks.registry import TASKS
    from schemas.task import Question

    labels = (), SHAPES
    prompts = [
        task.prompt(Question(task=task.name, labels=names), media_type)
        for task in TASKS.values()
        if task.name != "embedding"  # it has no prompt
        for names in labels
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


def _train_tokenizer(text: str, vocab_size: int, regex: str) -> "Tokenizer":
    import tokenizers
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    split = Split(tokenizers.Regex(regex), behavior="isolated", invert=False)
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


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write one of a checkpoint's JSON files."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
