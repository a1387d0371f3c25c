"""Answer units by an engine of your own, without Ray: plan, decode, generate, parse.

    python examples/own_engine.py FILE...

An engine is any class with the method ``generate`` of ``pipeline.engines.base.Engine``. It gets
units with decoded frames and token ids, and returns one raw answer for each prompt. The one below
has no model: it describes how bright the frames are. docs/extend.md says how to add an engine to
the pipeline, so that job files can name it.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.engines.base import Engine
from pipeline.model.patches import seen_pixels
from pipeline.output.rows import RunKey, annotation_row
from pipeline.plan.planner import Planner
from pipeline.stages.prepare import Prepare
from pipeline.storage.storage import Storage
from pipeline.workers.code_version import code_digest
from schemas.job.generation import Generation
from schemas.job.job import check_job
from schemas.tables.annotation import RecipeIds
from schemas.tables.manifest import MediaItem
from schemas.tables.unit import AnsweredUnit, PreparedUnit, RawAnswer

MODEL = Path(__file__).parents[1] / "jobs" / "demo_model"
"""Only its tokenizer and chat template are read here."""


class BrightnessEngine:
    """Answers every prompt with the mean brightness of the unit's first image or video."""

    def generate(
        self, units: Sequence[PreparedUnit], generation: Generation | None = None
    ) -> list[AnsweredUnit]:
        """Answer the units in order. A unit that failed before comes back without answers."""
        return [self._answer(unit) for unit in units]

    def _answer(self, unit: PreparedUnit) -> AnsweredUnit:
        if unit.error is not None:
            return AnsweredUnit.of(unit)
        frames = seen_pixels(unit)[0].float()  # [T, H, W, 3], 0 to 255
        text = f"The picture is {'bright' if frames.mean() > 127 else 'dark'}."
        answers = [
            RawAnswer(
                task=prompt.task,
                raw_text=text,
                finish_reason="stop",
                num_prompt_tokens=len(prompt.input_ids or ()),
                num_output_tokens=len(text.split()),
            )
            for prompt in unit.prompts
        ]
        return AnsweredUnit.of(unit, tuple(answers))


def annotate(files: Sequence[str], engine: Engine) -> list[dict[str, Any]]:
    """Caption local files by ``engine``; return rows in the schema of the output table."""
    spec = {
        "input": {"manifest": "unused"},
        "output": "unused",
        "model": {"source": str(MODEL)},
        "budget": {"image_tokens": [4, 64], "frame_tokens": [4, 30], "unit_tokens": 256},
        "tasks": ["caption"],
    }
    job, storage = check_job(spec, "the example"), Storage()
    items = [MediaItem(media_id=file, uri=str(Path(file).absolute())) for file in files]
    units = Planner(job, 4096, storage).plan(items)
    prepare = Prepare(job, storage, code_digest())
    answered = engine.generate([prepare.prepare(unit) for unit in units])
    recipes = RecipeIds(image="images", video="videos", messages="messages", unread="unread")
    today = time.strftime("%Y-%m-%d")
    key = RunKey(run_id="example", recipe_ids=recipes, run_date=today)
    questions = {question.name: question for question in job.questions()}
    return [annotation_row(unit, questions, key) for unit in answered]


def main(*files: str) -> None:
    """Print one line for each unit."""
    for row in annotate(files, BrightnessEngine()):
        print(row["uri"], row["status"], row["caption"] or row["error"]["message"], sep="\t")


if __name__ == "__main__":
    main(*sys.argv[1:])
