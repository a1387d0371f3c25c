import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoTokenizer

from scripts.demo_model.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Any:
    return AutoTokenizer.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def moe_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("moe"), moe=True)


def load(folder: Path) -> Any:
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info  # missing, unexpected or mismatched keys
    return model


def one_image_inputs(tokenizer: Any, *, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Model input for one image of 64x64 pixels (4 tokens) and a question; pixels [16, 1536]."""
    text = "<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|>What is shown?"
    input_ids = torch.tensor([tokenizer(text).input_ids])
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": (input_ids == tokenizer.convert_tokens_to_ids("<|image_pad|>")).long(),
        "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }


def two_images() -> tuple[torch.Tensor, torch.Tensor]:
    dark = torch.full((16, 1536), -0.5)
    half_light = dark.clone()
    half_light[8:] = 0.5
    return dark, half_light


@pytest.mark.parametrize("moe", [False, True])
def test_same_seed_same_bytes(tmp_path: Path, moe: bool) -> None:
    one, again, other = (tmp_path / name for name in ("one", "again", "other"))
    write_tiny_checkpoint(one, seed=1, moe=moe)
    write_tiny_checkpoint(again, seed=1, moe=moe)
    write_tiny_checkpoint(other, seed=2, moe=moe)
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in again.iterdir())
    for name in names:
        assert (one / name).read_bytes() == (again / name).read_bytes(), name
    weights = "model.safetensors"
    assert (one / weights).read_bytes() != (other / weights).read_bytes()


def test_files_are_those_of_a_published_checkpoint(checkpoint: Path) -> None:
    assert {path.name for path in checkpoint.iterdir()} == {
        "chat_template.json",
        "config.json",
        "generation_config.json",
        "merges.txt",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
        "vocab.json",
    }
    assert sum(path.stat().st_size for path in checkpoint.iterdir()) < 3_000_000


def test_processor_configs_have_the_published_values(checkpoint: Path) -> None:
    for name, size in [
        ("preprocessor_config.json", {"longest_edge": 16384 * 32 * 32, "shortest_edge": 256 * 256}),
        ("video_preprocessor_config.json", {"longest_edge": 25165824, "shortest_edge": 64 * 64}),
    ]:
        config = json.loads((checkpoint / name).read_text())
        assert config["size"] == size
        assert (config["patch_size"], config["merge_size"]) == (16, 2)
        assert config["temporal_patch_size"] == 2
        assert config["image_mean"] == config["image_std"] == [0.5, 0.5, 0.5]


def test_config_ids_are_the_tokenizers(checkpoint: Path, tokenizer: Any) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    for key, token in [
        ("image_token_id", "<|image_pad|>"),
        ("video_token_id", "<|video_pad|>"),
        ("vision_start_token_id", "<|vision_start|>"),
        ("vision_end_token_id", "<|vision_end|>"),
    ]:
        assert config[key] == tokenizer.convert_tokens_to_ids(token)
        assert tokenizer(token).input_ids == [config[key]]
    assert config["text_config"]["vocab_size"] > len(tokenizer)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_tokenizer_is_a_qwen2_tokenizer(tokenizer: Any) -> None:
    assert type(tokenizer).__name__.startswith("Qwen2Tokenizer")
    assert 400 <= len(tokenizer) <= 500


@settings(max_examples=300)
@given(text=st.text(max_size=40))
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text).input_ids) == unicodedata.normalize("NFC", text)


def test_every_digit_is_a_token(tokenizer: Any) -> None:
    assert tokenizer.tokenize("[120, 45]") == ["[", "1", "2", "0", ",", "Ġ", "4", "5", "]"]


@pytest.mark.parametrize("token", ["<think>", "</think>", "<tool_call>", "</tool_call>"])
def test_thinking_and_tool_tokens_stay_in_the_text(tokenizer: Any, token: str) -> None:
    ids = tokenizer(f"a{token}b<|im_end|>").input_ids
    assert tokenizer.convert_tokens_to_ids(token) in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"a{token}b"


def render(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> str:
    text = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    assert isinstance(text, str)
    return text


def test_template_of_a_plain_chat_has_no_system_turn_of_its_own(tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi\n"},
        {"role": "user", "content": [{"type": "text", "text": "What "}, {"text": "is it?"}]},
    ]
    assert render(tokenizer, messages, add_generation_prompt=True) == (
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\nHi\n<|im_end|>\n"
        "<|im_start|>user\nWhat is it?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_template_with_system_turn_and_media(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": "a.jpg"},
                {"type": "video", "video": "b.mp4"},
                {"type": "image"},
                {"type": "text", "text": "\nCompare {{ them }}."},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "Same."}]},
    ]
    image, video = (f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video"))
    assert render(tokenizer, messages) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\n{image}{video}{image}\nCompare {{{{ them }}}}.<|im_end|>\n"
        "<|im_start|>assistant\nSame.<|im_end|>\n"
    )
    numbered = render(tokenizer, messages, add_vision_id=True)
    assert f"user\nPicture 1: {image}Video 1: {video}Picture 2: {image}\nCompare" in numbered


def test_processor_template_is_the_tokenizers(checkpoint: Path, tokenizer: Any) -> None:
    template = json.loads((checkpoint / "chat_template.json").read_text())["chat_template"]
    assert template == tokenizer.chat_template


def test_answer_depends_on_the_image(checkpoint: Path, tokenizer: Any) -> None:
    model = load(checkpoint)
    assert type(model).__name__ == "Qwen3VLForConditionalGeneration"
    with torch.no_grad():
        logits = [
            model(**one_image_inputs(tokenizer, pixels=pixels)).logits[0, -1]
            for pixels in two_images()
        ]
    assert all(torch.isfinite(row).all() for row in logits)
    assert (logits[0] - logits[1]).abs().max() > 0.5


def test_moe_loads_and_generates(moe_checkpoint: Path, tokenizer: Any) -> None:
    model = load(moe_checkpoint)
    assert type(model).__name__ == "Qwen3VLMoeForConditionalGeneration"
    inputs = one_image_inputs(tokenizer, pixels=two_images()[1])
    new_tokens = model.generate(**inputs, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert new_tokens.shape == (1, inputs["input_ids"].shape[1] + 8)


def test_answers_hold_no_placeholders(checkpoint: Path, tokenizer: Any) -> None:
    model = load(checkpoint)
    inputs = one_image_inputs(tokenizer, pixels=two_images()[0])
    torch.manual_seed(0)
    answers = model.generate(**inputs, max_new_tokens=50, num_return_sequences=8)
    answer_ids = set(answers[:, inputs["input_ids"].shape[1] :].flatten().tolist())
    placeholders = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    assert not answer_ids & set(tokenizer.convert_tokens_to_ids(placeholders))
    assert max(answer_ids) < len(tokenizer)


def test_experts_lie_in_the_published_axis_order(moe_checkpoint: Path) -> None:
    with safe_open(moe_checkpoint / "model.safetensors", "pt") as weights:
        prefix = "model.language_model.layers.0.mlp.experts."
        shapes = {name: weights.get_slice(prefix + name).get_shape() for name in EXPERT_SHAPES}
    assert shapes == EXPERT_SHAPES


# [experts, hidden, 2 x expert] and [experts, expert, hidden]
EXPERT_SHAPES = {"gate_up_proj": [4, 64, 96], "down_proj": [4, 48, 64]}
