"""Checkpoints of the published sizes with random weights, which are made on the device."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.support.model_sizes import CONFIGS
from tests.support.paths import ROOT

SIZES = ("2B", "4B", "8B")

DEMO = ROOT / "jobs" / "demo_model"


def write_published(folder: Path, size: str) -> Path:
    """Write a checkpoint of a published size without weights; returns the folder.

    size: 2B, 4B or 8B. The tokenizer is the demo model's: a prompt has more text tokens than with
        the published one; vision tokens are the same.
    """
    published = CONFIGS[size]
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    config = json.loads((DEMO / "config.json").read_text())
    rope = config["text_config"]["rope_parameters"] | {"mrope_section": [24, 20, 20]}
    for part, own in (("text_config", {"rope_parameters": rope}), ("vision_config", {})):
        config[part] |= published[part] | own | {"dtype": published["dtype"]}
    config |= {key: published[key] for key in ("dtype", "tie_word_embeddings")}
    config["use_cache"] = True
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


@contextmanager
def random_weights(device: str) -> Iterator[None]:
    """Let ``from_pretrained`` make models with random weights on a device, and read no weights."""

    def from_config(source: str, **options: Any) -> Any:
        config = options.get("config") or AutoConfig.from_pretrained(source)
        dtype = options.get("dtype", "auto")
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(
                config,
                dtype=config.dtype if dtype == "auto" else dtype,
                attn_implementation=options.get("attn_implementation"),
            )
        if options.get("output_loading_info"):
            nothing: list[str] = []
            keys = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
            return model, dict.fromkeys(keys, nothing)
        return model

    with patch.object(AutoModelForImageTextToText, "from_pretrained", from_config):
        yield
