"""Vectors of the vLLM engine, against those of the transformers engine, in float32.

Runs where vLLM is installed: `make test-vllm`, its CPU build. On a GPU it was never run.
"""

import base64
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from schemas.job.job import Job
from schemas.tables.unit import AnsweredUnit
from scripts.demo_model.tiny_checkpoint import write_tiny_checkpoint
from tests.support.embedding import make_embedding
from tests.support.job_files import TINY_BUDGET, make_job
from tests.support.messages import image, read, text, user
from tests.support.prepared import media_items, prepare_units

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed here: make test-vllm", allow_module_level=True)

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1800)]

FILES = ("images/scene-0.jpg", "images/tiny.png", "clips/h264-bframes.mp4")
TASKS = ["embedding", {"search": {"task": "embedding", "instruction": "Find what is alike."}}]


def embedding_job(source: Path, engine: str) -> Job:
    model = {"engine": engine, "max_model_len": 4096}
    if engine == "vllm":
        args = {"enforce_eager": True, "skip_mm_profiling": True}
        model["vllm"] = {"max_num_seqs": 16, "engine_args": args}
    return make_job(source, model=model, tasks=TASKS, budget=TINY_BUDGET)


def vectors(answered: list[AnsweredUnit]) -> dict[tuple[str, str], np.ndarray]:
    assert [unit.error for unit in answered] == [None] * len(answered)
    return {
        (unit.unit_id, raw.task): np.frombuffer(base64.b64decode(raw.raw_text), "<f4")
        for unit in answered
        for raw in unit.answers
    }


def test_vectors_are_those_of_the_engine_transformers(archive: Path, tmp_path: Path):
    from pipeline.engines.transformers.engine import TransformersEngine
    from pipeline.engines.vllm.engine import VllmEngine

    source = make_embedding(write_tiny_checkpoint(tmp_path / "plain"), tmp_path / "embeds")
    job = embedding_job(source, "vllm")
    turns = [[user(text("a red circle"))], [user(image("images/tiny.png"), text("a circle"))]]
    items = [*media_items(archive, FILES), *read(archive, *turns)]
    units = prepare_units(job, items, 4096)
    slow = TransformersEngine(embedding_job(source, "transformers"), num_threads=1)
    expected = vectors(slow.generate(units))
    engine = VllmEngine(job)
    try:
        answered = engine.generate(units)
        again = engine.generate(units)
    finally:
        engine.close()
    for found in (vectors(answered), vectors(again)):  # the second time from its caches
        assert found.keys() == expected.keys()
        for key, vector in found.items():
            assert vector.shape == (64,)
            np.testing.assert_allclose(vector, expected[key], atol=1e-4, rtol=0)
    for done, unit in zip(answered, units, strict=True):
        fed = {raw.task: raw.num_prompt_tokens for raw in done.answers}
        assert fed == {prompt.task: prompt.num_prompt_tokens for prompt in unit.prompts}
        assert {raw.num_output_tokens for raw in done.answers} == {0}
