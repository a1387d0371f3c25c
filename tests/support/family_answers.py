"""Answers of a checkpoint as lists of token ids: of the engine, and of the model's ``generate``."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText

from pipeline.engines.transformers.engine import TransformersEngine
from pipeline.model.patches import patches, seen_pixels
from schemas.job.job import Job
from schemas.tables.unit import PreparedUnit
from tests.support.job_files import make_job
from tests.support.messages import image, read, text, user, video
from tests.support.prepared import media_items, prepare_units

FILES = ("images/scene-0.jpg", "images/wide.png", "clips/h264-bframes.mp4", "clips/one-frame.mp4")
TALKS = [
    [user(image(FILES[0]), video(FILES[2]), image(FILES[1]), text("What is the same?"))],
    [user(text("What is a lens?"))],
    [user(text("Which?"))],
]
"""Conversations about three media and about none."""
TASKS = [
    {"caption": {"max_new_tokens": 20}},
    {"ocr": {"max_new_tokens": 1}},
    {"objects": {"labels": ["car", "a person"], "max_new_tokens": 9}},
    {"custom": {"prompt": "What?", "max_new_tokens": 14}},
    {"chat": {"max_new_tokens": 12}},
]
BUDGET = {"image_tokens": [4, 16], "frame_tokens": [4, 16], "unit_tokens": 64}


def tasks_job(checkpoint: Path, **sections: Any) -> Job:
    generation = {"retry": None} | sections.pop("generation", {})
    defaults = {"tasks": TASKS, "budget": BUDGET, "generation": generation}
    return make_job(checkpoint, **defaults | sections)


def new_engine(job: Job) -> TransformersEngine:
    """An engine whose answers are lists of token ids, in JSON."""
    engine = TransformersEngine(job, num_threads=1)
    engine.generator.prompter.decode = json.dumps
    return engine


Answers = dict[tuple[str, str], list[int]]
"""Token ids by unit and task."""


def answers_of(engine: TransformersEngine, units: list[PreparedUnit]) -> Answers:
    """Token ids by unit and task; fails if a unit has an error."""
    answered = engine.generate(units)
    assert [unit.error for unit in answered] == [None] * len(units)
    return {
        (unit.unit_id, raw.task): json.loads(raw.raw_text)
        for unit in answered
        for raw in unit.answers
    }


class Oracle:
    """transformers' own model: one prompt at a time, from pixels."""

    def __init__(self, checkpoint: Path, job: Job) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=torch.float32
        ).eval()
        self._limits = {question.name: question.max_new_tokens for question in job.questions()}

    def inputs(self, unit: PreparedUnit, ids: list[int]) -> dict[str, torch.Tensor]:
        tokens = torch.tensor([ids])
        config = self.model.config
        types = (tokens == config.image_token_id).long()
        types += 2 * (tokens == config.video_token_id)
        pixels: dict[str, list] = {"image": [], "video": []}
        for part, frames in zip(unit.seen, seen_pixels(unit), strict=True):
            pixels[part.media.media_type].append((patches(frames), part.sampling.grid_thw))
        found = {"input_ids": tokens, "mm_token_type_ids": types}
        for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if some := pixels[kind]:
                found[name] = torch.cat([rows for rows, _ in some])
                found[f"{kind}_grid_thw"] = torch.tensor([grid for _, grid in some])
        return found

    def answers(self, units: list[PreparedUnit], **settings: Any) -> Answers:
        found = {}
        for unit in units:
            for prompt in unit.prompts:
                given = self.inputs(unit, list(prompt.input_ids))
                output = self.model.generate(
                    **given,
                    attention_mask=torch.ones_like(given["input_ids"]),
                    max_new_tokens=self._limits[prompt.task],
                    do_sample=False,
                    **settings,
                )
                answer = output[0, len(prompt.input_ids) :].tolist()
                found[unit.unit_id, prompt.task] = answer
        return found


def family_units(job: Job, archive: Path) -> list[PreparedUnit]:
    """Images, videos and conversations, whose prompts have many lengths."""
    return prepare_units(job, media_items(archive, FILES) + read(archive, *TALKS))
