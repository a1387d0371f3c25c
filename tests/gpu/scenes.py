"""What the checks show to the demo's model: scenes of shapes and text, drawn when needed."""

import random
from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForImageTextToText

from jobs.demo.random_scene import SceneSpec, random_scene
from jobs.demo.scene import draw
from pipeline.engines.transformers.engine import TransformersEngine
from pipeline.model.patches import patches, seen_pixels
from pipeline.model.prompter import Prompter
from schemas.job.job import Job, check_job
from schemas.tables.unit import PreparedUnit
from tests.gpu.figures import Place
from tests.support.array_units import Frames, array_unit
from tests.support.published import DEMO

NEW_TOKENS = 24
"""Maximum length of an answer."""


def make_job(place: Place, **sections: Any) -> Job:
    """A job for the demo's model on the device of ``place``."""
    model = {"source": str(DEMO), "dtype": place.dtype_name, "device": place.device.type}
    spec: dict[str, Any] = {
        "input": {"manifest": "unused.jsonl"},
        "output": "unused",
        "model": model | {"engine": "transformers"},
        "tasks": ["caption", "ocr", "events"],
        "generation": {"max_new_tokens": NEW_TOKENS, "constrained": False, "retry": None},
    }
    return check_job(spec | sections, "a check")


def picture(seed: int, width: int, height: int) -> Frames:
    """An image, uint8 [1, H, W, 3]."""
    return np.asarray(draw(random_scene(random.Random(seed), width, height), 0.0))[None]


def clip(seed: int, width: int, height: int, num_frames: int, fps: float) -> Frames:
    """Frames of a clip in which shapes move, uint8 [T, H, W, 3]."""
    spec = SceneSpec(duration_seconds=num_frames / fps)
    scene = random_scene(random.Random(seed), width, height, spec)
    return np.stack([np.asarray(draw(scene, k / fps)) for k in range(num_frames)])


def mixed_units(job: Job, prompter: Prompter) -> list[PreparedUnit]:
    """Images and clips of different sizes and lengths."""
    shapes = [(256, 192, 1), (96, 160, 1), (256, 192, 1), (160, 128, 8), (128, 96, 12)]
    fps = job.sampling.fps
    return [
        array_unit(
            job,
            prompter,
            f"{seed}-{width}x{height}-{count}",
            picture(seed, width, height) if count == 1 else clip(seed, width, height, count, fps),
        )
        for seed, (width, height, count) in enumerate(shapes)
    ]


def recorded(engine: TransformersEngine) -> dict[str, list[int]]:
    """The token ids of each answer, by its text: a dict that fills while the engine answers."""
    ids_of: dict[str, list[int]] = {}
    decode = engine.generator.prompter.decode

    def record(ids: list[int]) -> str:
        text = decode(ids)
        ids_of[text] = list(ids)
        return text

    engine.generator.prompter.decode = record
    return ids_of


@cache
def reference() -> Any:
    """transformers' own demo model: float32, on the CPU, with its own attention."""
    return AutoModelForImageTextToText.from_pretrained(DEMO, dtype=torch.float32).eval()


def model_inputs(unit: PreparedUnit, ids: list[int]) -> dict[str, torch.Tensor]:
    """What transformers' model takes for one prompt about a unit, on the CPU, without padding.

    ids: of the prompt, or of the prompt and an answer.
    """
    is_image = unit.seen[0].media.media_type == "image"
    kind, number = ("image", 1) if is_image else ("video", 2)
    input_ids = torch.tensor([ids])
    pad = getattr(reference().config, f"{kind}_token_id")
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": (input_ids == pad).long() * number,
        "pixel_values" if is_image else "pixel_values_videos": patches(*seen_pixels(unit)),
        f"{kind}_grid_thw": torch.tensor([unit.seen[0].sampling.grid_thw]),
    }
