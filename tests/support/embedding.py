"""A tiny checkpoint that embeds: random weights, and the files by which such ones are recognised.

The files have the layout of Qwen3-VL-Embedding's: modules of Sentence Transformers.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from pipeline.model.patches import patches, seen_pixels
from schemas.tables.unit import PreparedUnit

MODULES = ("Transformer", "Pooling", "Normalize")
IMAGE_SLOT, VIDEO_SLOT = (
    f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video")
)


def make_embedding(
    checkpoint: Path,
    folder: Path,
    *,
    modules: tuple[str, ...] = MODULES,
    pooling: dict[str, Any] | None = None,
    prompts: dict[str, Any] | None = None,
) -> Path:
    """Copy a checkpoint that generates, with the files of one that embeds; returns ``folder``.

    pooling: the content of ``1_Pooling/config.json``.
    prompts: the content of ``config_sentence_transformers.json``.
    """
    shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
    listed = [
        {
            "idx": k,
            "name": str(k),
            "path": f"{k}_{name}" if k else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for k, name in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    written = pooling or {"embedding_dimension": 64, "pooling_mode": "lasttoken"}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(written))
    if prompts is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return folder


def expected_ids(folder: Path, unit: PreparedUnit, instruction: str) -> list[int]:
    """The prompt as the makers' code writes it: instruction, media, and where an answer begins."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    kind = unit.media.media_type
    text = tokenizer.apply_chat_template(
        [
            {"role": "system", "content": [{"type": "text", "text": instruction}]},
            {"role": "user", "content": [{"type": kind}]},
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    pairs = unit.sampling.grid_thw[0]
    num = unit.sampling.num_vision_tokens // pairs
    if kind == "image":
        text = text.replace("<|image_pad|>", "<|image_pad|>" * num)
    else:
        times = np.reshape(unit.sampling.pts_seconds, (-1, 2)).mean(axis=1)
        slot = VIDEO_SLOT.replace("<|video_pad|>", "<|video_pad|>" * num)
        text = text.replace(VIDEO_SLOT, "".join(f"<{t:.1f} seconds>{slot}" for t in times))
    return tokenizer(text).input_ids


def last_state(model: Any, unit: PreparedUnit, ids: list[int]) -> np.ndarray:
    """transformers' own forward of one prompt, without a batch; float32 [hidden]."""
    input_ids = torch.tensor([ids])
    inputs = {}
    if unit.media is not None:
        is_image = unit.media.media_type == "image"
        pad = model.config.image_token_id if is_image else model.config.video_token_id
        inputs = {
            "mm_token_type_ids": (input_ids == pad).long() * (1 if is_image else 2),
            "pixel_values" if is_image else "pixel_values_videos": patches(*seen_pixels(unit)),
            ("image" if is_image else "video") + "_grid_thw": torch.tensor(
                [unit.sampling.grid_thw]
            ),
        }
    with torch.inference_mode():
        states = model.model(
            input_ids=input_ids, attention_mask=torch.ones_like(input_ids), **inputs
        ).last_hidden_state
    return states[0, -1].numpy()


def load(folder: Path) -> Any:
    """The checkpoint, as transformers loads it."""
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
