"""Small tables of annotations about real media, as `reelscribe annotate` writes them."""

from pathlib import Path

import clips
from PIL import Image, ImageDraw

from pipeline.decode import decode_unit
from pipeline.storage import Storage
from pipeline.write import RunKey, annotation_row, write_part
from schemas.errors import ErrorRecord
from schemas.task import Question
from schemas.task_spec import TASK_NAMES
from schemas.unit import AnsweredUnit, Media, RawAnswer, Sampling

KEY = RunKey(run_id="test-20261122-abc", recipe_id="r1", run_date="2026-11-22")
QUESTIONS = {name: Question(task=name) for name in TASK_NAMES}
RED, GREY = (220, 30, 30), (90, 90, 90)


def answer(task: str, text: str, **fields) -> RawAnswer:
    given = {"finish_reason": "stop", "num_prompt_tokens": 100, "num_output_tokens": 7}
    return RawAnswer(**{"task": task, "raw_text": text, **given, **fields})


def draw_image(path: Path, box=(160, 90, 320, 270), size=(640, 384)) -> Path:
    """A red rectangle, its last pixels within the box, on grey."""
    image = Image.new("RGB", size, GREY)
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=RED)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def image_unit(path: Path, *answers: RawAnswer, **fields) -> AnsweredUnit:
    """A unit of an image whose size is a multiple of 32: the model sees its very pixels."""
    with Image.open(path) as image:
        width, height = image.size
    media = Media(media_type="image", width=width, height=height, container="PNG")
    sampling = Sampling(
        num_frames=1,
        resized_height=height,
        resized_width=width,
        grid_thw=(1, height // 16, width // 16),
        num_vision_tokens=width * height // 1024,
        decoder="pillow",
    )
    given = {"unit_id": path.name, "media_id": path.stem, "uri": str(path), "engine_seconds": 0.5}
    return AnsweredUnit(
        **{**given, "media": media, "sampling": sampling, "answers": answers, **fields}
    )


def video_unit(path: Path, *answers: RawAnswer, **fields) -> AnsweredUnit:
    """A unit of a whole clip, planned and decoded as the pipeline does it."""
    planned = clips.video_unit(path)
    given = {"unit_id": path.name, "media_id": path.stem, "uri": str(path), "engine_seconds": 0.5}
    sampling = decode_unit(planned, Storage()).sampling(planned.sampling)
    return AnsweredUnit(
        **{**given, "media": planned.media, "sampling": sampling, "answers": answers, **fields}
    )


def failed_unit(name: str, message: str = "no frame could be decoded") -> AnsweredUnit:
    error = ErrorRecord(stage="decode", type="media_unreadable", message=message)
    return AnsweredUnit(
        unit_id=name, media_id=name, uri=f"/nowhere/{name}", status="failed", error=error
    )


def write_table(output: Path, *units: AnsweredUnit) -> Path:
    """Commit the units' rows; returns the output folder."""
    write_part([annotation_row(u, QUESTIONS, KEY) for u in units], str(output), KEY, Storage())
    return output
