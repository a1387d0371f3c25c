"""Prepared units of frames that are in memory: without files, decoders, storage or Ray."""

from typing import Any

import numpy as np

from pipeline.model.prompter import Prompter, Vision
from pipeline.tasks.registry import TASKS
from schemas.job.job import Job
from schemas.tables.media import Media, Sampling
from schemas.tables.unit import PreparedUnit, Prompt

Frames = np.ndarray[Any, np.dtype[np.uint8]]


def array_unit(job: Job, prompter: Prompter, name: str, frames: Frames) -> PreparedUnit:
    """A unit whose frames have their final size, with the job's questions.

    frames: uint8 [T, H, W, 3]; one is an image, an even number is a video; sides are multiples of
        32. Frame k of a video is displayed at ``k / sampling.fps`` seconds.
    """
    count, height, width, _ = frames.shape
    media_type = "image" if count == 1 else "video"
    grid = (max(1, count // 2), height // 16, width // 16)
    seconds = count / job.sampling.fps
    pts = tuple(k / job.sampling.fps for k in range(count))
    span = {} if count == 1 else {"start_seconds": 0.0, "end_seconds": seconds, "pts_seconds": pts}
    sampling = Sampling(
        num_frames=count,
        resized_height=height,
        resized_width=width,
        grid_thw=grid,
        num_vision_tokens=grid[0] * grid[1] * grid[2] // 4,
        **span,
    )
    vision = Vision.of(media_type, sampling, sampling.pts_seconds or ())
    prompts = []
    for question in job.questions():
        if media_type not in TASKS[question.task].media_types:
            continue
        text = TASKS[question.task].prompt(question, media_type)
        length = prompter.length(vision, text, question.tools)
        prompts.append(
            Prompt(
                task=question.name,
                num_prompt_tokens=length.num_tokens,
                num_own_tokens=length.num_own_tokens,
                input_ids=tuple(prompter.input_ids(vision, text, question.tools)),
            )
        )
    shared = prompts[0].num_prompt_tokens - prompts[0].num_own_tokens
    return PreparedUnit(
        unit_id=name,
        media_id=name,
        uri=f"/nowhere/{name}",
        media=Media(
            media_type=media_type,
            width=width,
            height=height,
            duration_seconds=None if count == 1 else seconds,
        ),
        sampling=sampling,
        prompts=tuple(prompts),
        num_shared_tokens=shared,
        predicted_cost=float(
            shared + sum(p.num_own_tokens + job.generation.max_new_tokens for p in prompts)
        ),
        frame_data=frames.tobytes(),
    )
