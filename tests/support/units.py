"""Answered units, as an engine leaves them, and tables of their rows, as annotate commits them."""

from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw

from pipeline.media.decode import decode_unit
from pipeline.output.rows import RunKey, annotation_row
from pipeline.storage.storage import Storage
from schemas.job.task_spec import TASK_NAMES
from schemas.tables.error import ErrorRecord
from schemas.tables.media import Media, Sampling
from schemas.tables.unit import AnsweredUnit, Prompt, RawAnswer
from schemas.task import Question
from tests.support import clips
from tests.support.run_key import run_key
from tests.support.sealed import commit_rows

KEY = run_key("test-20261122-abc")
QUESTIONS = {name: Question(task=name) for name in TASK_NAMES}
RED, GREY = (220, 30, 30), (90, 90, 90)


def answer(task: str, text: str, reason: str = "stop", **fields) -> RawAnswer:
    given = {"finish_reason": reason, "num_prompt_tokens": 100, "num_output_tokens": 7}
    return RawAnswer(**{"task": task, "raw_text": text, **given, **fields})


def unit(*answers: RawAnswer, **fields) -> AnsweredUnit:
    """A unit of a video that does not exist: 10 s, 1920 x 1080 px, four frames."""
    sampling = Sampling(
        start_seconds=0.0,
        end_seconds=10.0,
        sample_fps=2.0,
        num_frames=4,
        resized_height=512,
        resized_width=896,
        grid_thw=(2, 32, 56),
        num_vision_tokens=896,
        pts_seconds=(0.0, 2.5, 5.0, 7.5),
        frame_indices=(0, 75, None, 225),
        decoder="pyav",
    )
    given = {
        "unit_id": "u1",
        "media_id": "m1",
        "uri": "s3://b/a.mp4",
        "media": Media(media_type="video", width=1920, height=1080, duration_seconds=10.0),
        "sampling": sampling,
        "prompts": tuple(Prompt(task=each.task, num_prompt_tokens=100) for each in answers),
        "answers": answers,
    }
    return AnsweredUnit(**{**given, **fields})


def clip_unit(media_id: str, start: float = 0.0, end: float = 10.0, **texts: str) -> AnsweredUnit:
    """A unit of a clip that does not exist: 10 s, 1000 x 1000 px, sampled twice a second."""
    found = unit(*(answer(task, text) for task, text in texts.items()))
    times = tuple(start + k / 2 for k in range(int((end - start) * 2)))
    return replace(
        found,
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
        sampling=replace(
            found.sampling,
            start_seconds=start,
            end_seconds=end,
            num_frames=len(times),
            resized_width=512,
            grid_thw=(2, 32, 32),
            num_vision_tokens=512,
            pts_seconds=times,
            frame_indices=None,
        ),
    )


def image_unit(path: Path, *answers: RawAnswer, **fields) -> AnsweredUnit:
    """A unit of an image file whose sides are multiples of 32, so that it is not resized."""
    with Image.open(path) as image:
        return sized_image_unit(image.size, *answers, **(_names(path) | fields))


def sized_image_unit(size: tuple[int, int], *answers: RawAnswer, **fields) -> AnsweredUnit:
    """A unit of an image that does not exist. size: width and height in pixels."""
    width, height = size
    sampling = Sampling(
        num_frames=1,
        resized_height=height,
        resized_width=width,
        grid_thw=(1, height // 16, width // 16),
        num_vision_tokens=width * height // 1024,
        decoder="pillow",
    )
    media = Media(media_type="image", width=width, height=height, container="PNG")
    return unit(*answers, **{"media": media, "sampling": sampling, **fields})


def video_unit(path: Path, *answers: RawAnswer, **fields) -> AnsweredUnit:
    """A unit of a whole clip, planned and decoded as the pipeline does it."""
    planned = clips.video_unit(path)
    sampling = decode_unit(planned, Storage()).sampling(planned.sampling)
    seen = {"media": planned.media, "sampling": sampling}
    return unit(*answers, **(_names(path) | seen | fields))


def failed_unit(name: str, message: str = "no frame could be decoded") -> AnsweredUnit:
    error = ErrorRecord(stage="decode", type="media_unreadable", message=message)
    return AnsweredUnit(
        unit_id=name, media_id=name, uri=f"/nowhere/{name}", status="failed", error=error
    )


def draw_image(path: Path, box=(160, 90, 320, 270), size=(640, 384)) -> Path:
    """A red rectangle, its last pixels within the box, on grey."""
    image = Image.new("RGB", size, GREY)
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=RED)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def write_table(
    output: Path | str,
    *units: AnsweredUnit,
    key: RunKey = KEY,
    storage: Storage | None = None,
) -> Path | str:
    """Commit the units' rows; returns the output folder."""
    rows = [annotation_row(unit, QUESTIONS, key) for unit in units]
    commit_rows(rows, str(output), key, storage or Storage())
    return output


def _names(path: Path) -> dict:
    names = {"unit_id": path.name, "media_id": path.stem, "uri": str(path)}
    return {**names, "engine_seconds": 0.5}
