"""Answered units, as an engine leaves them, and their table: what is held against gold."""

from dataclasses import replace
from pathlib import Path

from jobs.metrics import METRICS
from pipeline.storage import Storage
from pipeline.write import RunKey, annotation_row, write_part
from schemas.errors import ErrorRecord
from schemas.task import Question
from schemas.unit import AnsweredUnit, Media, Prompt, RawAnswer, Sampling

KEY = RunKey(run_id="test-20261122-abc", recipe_id="r1", run_date="2026-11-22")
QUESTIONS = {name: Question(task=name) for name in METRICS}
LOST = ErrorRecord(stage="plan", type="media_missing", message="not there")


def video(media_id: str, start: float = 0.0, end: float = 10.0, **answers: str) -> AnsweredUnit:
    """A unit of a clip of 10 s, 1000 x 1000 px, sampled twice a second."""
    times = tuple(start + k / 2 for k in range(int((end - start) * 2)))
    return AnsweredUnit(
        unit_id=f"{media_id}-{start}",
        media_id=media_id,
        uri=f"/archive/{media_id}.mp4",
        media=Media(
            media_type="video",
            codec="h264",
            container="mp4",
            width=1000,
            height=1000,
            begin_seconds=0.0,
            duration_seconds=10.0,
            content_version="v1",
        ),
        sampling=Sampling(
            start_seconds=start,
            end_seconds=end,
            num_frames=len(times),
            resized_height=512,
            resized_width=512,
            grid_thw=(2, 32, 32),
            num_vision_tokens=512,
            pts_seconds=times,
        ),
        prompts=tuple(Prompt(task=task, num_prompt_tokens=9) for task in answers),
        answers=tuple(
            RawAnswer(
                task=task,
                raw_text=text,
                finish_reason="stop",
                num_prompt_tokens=9,
                num_output_tokens=7,
            )
            for task, text in answers.items()
        ),
    )


def image(media_id: str, width: int, height: int, **answers: str) -> AnsweredUnit:
    sampling = Sampling(
        num_frames=1, resized_height=64, resized_width=64, grid_thw=(1, 4, 4), num_vision_tokens=4
    )
    media = Media(media_type="image", container="PNG", width=width, height=height)
    return replace(video(media_id, **answers), media=media, sampling=sampling)


def failed(media_id: str) -> AnsweredUnit:
    unit = video(media_id)
    return replace(
        unit, media=None, sampling=None, status="failed", error=LOST, unit_id=f"{media_id}-lost"
    )


def write(output: Path, *units: AnsweredUnit, key: RunKey = KEY) -> None:
    rows = [annotation_row(unit, QUESTIONS, key) for unit in units]
    write_part(rows, str(output), key, Storage())
