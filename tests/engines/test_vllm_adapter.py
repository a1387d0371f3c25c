"""Adapters that vLLM would load in part, or not at all, are refused with what to do."""

from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForImageTextToText

from pipeline.engines.vllm.adapter import adapter_args
from schemas.errors import ModelError


@pytest.fixture(scope="module")
def save(checkpoint, tmp_path_factory):
    """Write an adapter, as peft does; returns its folder."""

    def written(**config) -> str:
        folder = tmp_path_factory.mktemp("adapter")
        base = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
        lora = peft.LoraConfig(**config)
        peft.get_peft_model(base, lora).save_pretrained(folder)
        return str(folder)

    return written


def test_an_adapter_of_the_language_model_is_taken(save):
    folder = save(r=12, target_modules=r".*language_model.*(q|v)_proj")
    assert adapter_args(folder) == {"enable_lora": True, "max_loras": 1, "max_lora_rank": 16}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"r": 8, "target_modules": r".*visual.*(qkv|proj)|.*language_model.*q_proj"},
            r"changes \d+ modules of the vision tower, such as .*visual.* merge the adapter",
        ),
        ({"r": 8, "target_modules": "all-linear"}, "modules of the vision tower"),
        ({"r": 8, "target_modules": ["linear_fc1"]}, "modules of the vision tower"),
        ({"r": 600, "target_modules": r".*language_model.*q_proj"}, "rank 600 is over vLLM's"),
        (
            {
                "r": 8,
                "target_modules": r".*language_model.*q_proj",
                "modules_to_save": ["lm_head"],
            },
            "has full modules",
        ),
    ],
)
def test_what_vllm_would_leave_out_is_refused(save, config, message):
    with pytest.raises(ModelError, match=message):
        adapter_args(save(**config))


def test_a_folder_without_weights_is_named(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        adapter_args(str(tmp_path))
