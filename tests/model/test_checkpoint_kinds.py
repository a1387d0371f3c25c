"""Every kind of checkpoint runs by configuration alone: tiny random ones, end to end."""

import json
import shutil
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from transformers import AutoConfig

from jobs.plan.open_job import open_job
from pipeline.engines.transformers.engine import TransformersEngine
from pipeline.model.checkpoint import inspect_checkpoint
from pipeline.output.rows import annotation_row
from pipeline.plan.planner import Planner
from pipeline.stages.prepare import Prepare
from pipeline.storage.storage import Storage
from pipeline.workers.code_version import code_digest
from schemas.errors import ModelError
from schemas.job.job import Job
from schemas.tables.manifest import MediaItem
from schemas.tables.unit import AnsweredUnit, Unit
from scripts.demo_model.tiny_checkpoint import write_tiny_checkpoint
from tests.support.chat_templates import make_thinking
from tests.support.job_files import TINY_BUDGET, make_job
from tests.support.run_key import run_key

YARN = {"factor": 3.0, "original_max_position_embeddings": 1024}
KEY = run_key("r", "r")


def caption_job(checkpoint: Path, **sections) -> Job:
    defaults = {"budget": TINY_BUDGET, "generation": {"max_new_tokens": 12}}
    return make_job(checkpoint, **defaults | sections)


def plan_one(job: Job, archive: Path, name: str = "images/scene-0.jpg") -> Unit:
    """Plan a file that is one unit."""
    context = inspect_checkpoint(job.model).max_model_len
    item = MediaItem(media_id="a", uri=str(archive / name))
    (unit,) = Planner(job, context, Storage()).plan([item])
    return unit


def answer_one(job: Job, archive: Path, name: str = "images/scene-0.jpg") -> AnsweredUnit:
    """Plan, decode and answer a file that is one unit."""
    prepared = Prepare(job, Storage(), code_digest()).prepare(plan_one(job, archive, name))
    (answered,) = TransformersEngine(job, num_threads=2).generate([prepared])
    return answered


@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("name", ["images/scene-0.jpg", "clips/vp9.webm"])
def test_dense_and_mixture_of_experts(tmp_path, archive, moe, name):
    folder = write_tiny_checkpoint(tmp_path / "model", moe=moe)
    job = caption_job(folder, model={"attn_implementation": "eager"})
    assert inspect_checkpoint(job.model).model_type == ("qwen3_vl_moe" if moe else "qwen3_vl")
    unit = answer_one(job, archive, name)
    assert unit.error is None and unit.answers[0].num_output_tokens


class TestThinking:
    @pytest.fixture
    def thinking(self, checkpoint, tmp_path) -> Path:
        return make_thinking(shutil.copytree(checkpoint, tmp_path / "thinking"))

    PUBLISHED = MappingProxyType(
        {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "eos_token_id": 450}
    )

    def resolve(self, folder, archive, **generation):
        """The generation settings with which a job would run."""
        (folder / "generation_config.json").write_text(json.dumps(dict(self.PUBLISHED)))
        job = caption_job(folder, generation=generation, input={"scan": str(archive)})
        return open_job(job)[0].job.generation

    def test_they_sample_as_published_and_instruct_checkpoints_are_greedy(
        self, thinking, checkpoint, archive, tmp_path
    ):
        found = self.resolve(thinking, archive)
        assert (found.temperature, found.top_p, found.top_k) == (0.6, 0.95, 20)
        assert found.max_new_tokens == 8192
        found = self.resolve(thinking, archive, temperature=0.2, max_new_tokens=99)
        assert (found.temperature, found.top_p, found.max_new_tokens) == (0.2, 0.95, 99)
        assert self.resolve(thinking, archive, defaults="greedy").temperature == 0
        instruct = shutil.copytree(checkpoint, tmp_path / "instruct")
        found = self.resolve(instruct, archive)
        assert (found.temperature, found.max_new_tokens) == (0, 512)
        found = self.resolve(instruct, archive, defaults="checkpoint")
        assert (found.temperature, found.top_k, found.max_new_tokens) == (0.6, 20, 512)

    def test_truncated_reasoning_is_not_an_answer(self, thinking, archive):
        job = caption_job(thinking)
        unit = answer_one(job, archive)
        assert unit.answers[0].opens_reasoning
        row = annotation_row(unit, {q.task: q for q in job.questions()}, KEY)
        (response,) = row["responses"]
        assert (row["caption"], response["status"]) == (None, "truncated")
        assert response["reasoning"] == response["raw_text"].strip()


class TestLongContext:
    def test_a_prompt_over_the_context_fits_with_yarn(self, checkpoint, archive):
        tasks = [{"caption": {"max_new_tokens": 1200}}]
        short = caption_job(checkpoint, tasks=tasks, model={"max_model_len": 1024})
        assert plan_one(short, archive).error.type == "over_context"
        long = caption_job(checkpoint, tasks=tasks, model={"yarn": YARN, "max_model_len": 3072})
        assert plan_one(long, archive).error is None
        assert inspect_checkpoint(long.model).max_model_len == 3072
        too_long = long.model.model_copy(update={"max_model_len": 3073})
        with pytest.raises(ModelError, match="over the checkpoint's context of 3072$"):
            inspect_checkpoint(too_long)

    def test_the_engine_runs_transformers_own_yarn(self, checkpoint, tmp_path, archive):
        """YaRN in the checkpoint's own config gives the same logits."""
        folder = shutil.copytree(checkpoint, tmp_path / "extended")
        config = AutoConfig.from_pretrained(folder)
        rope = config.text_config.rope_parameters
        config.text_config.rope_parameters = rope | {"rope_type": "yarn", **YARN}
        config.text_config.max_position_embeddings = 3072
        config.save_pretrained(folder)
        ids = torch.arange(300)[None] % 400
        with_yarn = caption_job(checkpoint, model={"yarn": YARN})
        jobs = (caption_job(folder), with_yarn, caption_job(checkpoint))
        with torch.inference_mode():
            by_hand, by_field, plain = (
                TransformersEngine(j).generator.model(ids).logits for j in jobs
            )
        torch.testing.assert_close(by_field, by_hand)
        assert (by_field - plain).abs().max() > 1e-3
        assert answer_one(with_yarn, archive).error is None


@pytest.mark.parametrize("change", [{}, {"max_position_embeddings": None}])
@pytest.mark.parametrize("yarn", [None, YARN])
def test_the_context_is_the_one_that_transformers_reads(
    checkpoint: Path, tmp_path: Path, change: dict, yarn: dict | None
):
    """Also where the file leaves it to the default of transformers' class."""
    shutil.copytree(checkpoint, tmp_path / "copy")
    file = tmp_path / "copy" / "config.json"
    config = json.loads(file.read_text())
    config["text_config"] = {
        name: value
        for name, value in (config["text_config"] | change).items()
        if value is not None or name not in change
    }
    file.write_text(json.dumps(config))
    found = inspect_checkpoint(caption_job(tmp_path / "copy", model={"yarn": yarn}).model)
    context = AutoConfig.from_pretrained(tmp_path / "copy").text_config.max_position_embeddings
    assert found.max_model_len == (3 * 1024 if yarn else context)
