"""Checks of training: the losses of a few steps, against transformers, torch and peft alone."""

import contextlib
import io
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, set_seed

from pipeline.model.patches import patches
from pipeline.model.prompter import Prompter, Vision
from schemas.conversation import Conversation, Turn
from schemas.job.finetune import FinetuneJob
from schemas.job.load import check
from schemas.tables.manifest import MediaItem
from tests.gpu.figures import Figure, NotHere, Place
from tests.gpu.scenes import picture
from tests.support.published import DEMO

NEEDED = ("accelerate", "peft", "tensorboard", "tenacity", "pillow_heif")
NUM_STEPS = 3
FULL_RATE, LORA_RATE = 1e-3, 1e-2
QUESTION, ANSWER = "What is on the sign?", "A green sign that says EXIT, and a blue star."
TARGETS = ("q_proj", "v_proj")
MAX_ERROR = {"float32": 5e-3, "bfloat16": 0.05}
"""Largest relative difference of a step's loss. AdamW divides a gradient by its size, so the sign
of one that is nearly zero counts, and another order of additions changes it."""


def full_step(place: Place) -> list[Figure]:
    """All weights are trained, with AdamW."""
    return _compare(place, lora=None)


def lora_step(place: Place) -> list[Figure]:
    """Only adapters are trained."""
    return _compare(place, lora={"r": 4, "lora_alpha": 8, "target_modules": TARGETS})


def _compare(place: Place, lora: dict[str, Any] | None) -> list[Figure]:
    missing = [package for package in NEEDED if find_spec(package) is None]
    if missing:
        raise NotHere(f"not installed: {', '.join(missing)}")
    rate = LORA_RATE if lora else FULL_RATE
    expected = _by_hand(lora, rate)
    with contextlib.redirect_stdout(io.StringIO()):  # the Trainer's own lines
        found = _by_trainer(place, lora, rate)
    errors = [abs(a - b) / b for a, b in zip(found, expected, strict=True)]
    return [
        Figure(
            what="error of the losses of 3 steps",
            value=max(errors),
            maximum=MAX_ERROR[place.dtype_name],
        ),
        Figure(what="last loss over the first", value=found[-1] / found[0], maximum=0.95),
    ]


def _by_trainer(place: Place, lora: dict[str, Any] | None, rate: float) -> list[float]:
    from pipeline.storage.storage import Storage
    from pipeline.training.sample import TrainingData
    from pipeline.training.train import WorkerFolders, make_trainer

    folder = place.folder / ("lora" if lora else "full")
    folder.mkdir()
    spec: dict[str, Any] = {
        "output": str(folder),
        "model": {"source": str(DEMO), "dtype": "float32", "max_model_len": 4096},
        "data": ["unused.json"],
        "training": {
            "bf16": place.dtype == torch.bfloat16,
            "max_steps": NUM_STEPS,
            "learning_rate": rate,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 1,
            "logging_steps": 1,
            "dataloader_num_workers": 0,
        },
        "trainer": {"save_strategy": "no"},
    }
    spec |= {"lora": lora} if lora else {"tune": {"tune_mm_vision": True}}
    group = (_conversation(folder),)
    trainer = make_trainer(
        check(FinetuneJob, spec, "a check"),
        TrainingData(train=[group], validation=[], storage=Storage()),
        WorkerFolders(logs=folder, checkpoints=folder / "checkpoints"),
        use_gpu=place.device.type == "cuda",
    )
    trainer.train()
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def _by_hand(lora: dict[str, Any] | None, rate: float) -> list[float]:
    """The losses in float32 on the CPU, by transformers' own loss and torch's AdamW."""
    set_seed(0)
    model: Any = AutoModelForImageTextToText.from_pretrained(DEMO, dtype=torch.float32)
    if lora:
        from peft import LoraConfig, get_peft_model

        names = "|".join(TARGETS)
        pattern = rf".*language_model\.layers\..*\.({names})"
        model = get_peft_model(model, LoraConfig(**lora | {"target_modules": pattern}))
    model.train()
    inputs = _inputs()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    losses = []
    for _ in range(NUM_STEPS):
        loss = model(**inputs).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def _conversation(folder: Path) -> Conversation:
    path = folder / "picture.png"
    Image.fromarray(_picture()[0]).save(path)
    turns = (Turn(role="user", parts=(0, QUESTION)), Turn(role="assistant", parts=(ANSWER,)))
    return Conversation(
        origin="a check", media=(MediaItem(media_id="picture", uri=str(path)),), turns=turns
    )


def _inputs() -> dict[str, torch.Tensor]:
    """What transformers' model takes for the conversation, with labels."""
    pixels = _picture()
    grid = (1, pixels.shape[1] // 16, pixels.shape[2] // 16)
    vision = Vision(media_type="image", pts_seconds=(), tokens_per_slot=grid[1] * grid[2] // 4)
    prompter = Prompter(str(DEMO))
    question = prompter.input_ids(vision, QUESTION)
    answer = prompter.tokenizer.encode(f"{ANSWER}<|im_end|>", add_special_tokens=False)
    ids = torch.tensor([question + answer])
    labels = ids.clone()
    labels[:, : len(question)] = -100
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": labels,
        "mm_token_type_ids": (ids == prompter.pad_ids["image"]).long(),
        "pixel_values": patches(torch.from_numpy(pixels)),
        "image_grid_thw": torch.tensor([grid]),
    }


def _picture() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.array(picture(5, 192, 128))
