"""vLLM and reasoning: its grammar begins where the reasoning ends, and nothing of it is a value.

Runs where vLLM is installed: `make test-vllm`, its CPU build.
"""

import importlib.util
import shutil

import pytest
import torch

from pipeline.tasks.parse import parse_raw
from tests.support.chat_templates import TEMPLATES, with_template
from tests.support.job_files import TINY_BUDGET, make_job
from tests.support.prepared import media_items, prepare_units

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed here: make test-vllm", allow_module_level=True)

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1800)]

SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green"]}},
    "required": ["color"],
    "additionalProperties": False,
}
NAMES = [f"color_{k}" for k in range(12)]


@pytest.mark.parametrize(
    ("template", "reasoning"),
    [("on by default", "on"), ("on by default", "off"), ("model opens", "on")],
)
def test_a_grammar_holds_after_what_a_model_reasons(
    checkpoint, tmp_path, archive, template, reasoning
):
    """Random weights write `</think>`, end their turn, or write `<tool_call>` sooner or later."""
    from pipeline.engines.vllm.engine import VllmEngine

    folder = with_template(shutil.copytree(checkpoint, tmp_path / "model"), TEMPLATES[template])
    on_cpu = not torch.cuda.is_available()
    custom = {"task": "custom", "prompt": "Which?", "json_schema": SCHEMA}
    job = make_job(
        folder,
        model={
            "engine": "vllm",
            "max_model_len": 2048,
            "vllm": {
                "max_num_seqs": 16,
                "engine_args": {"enforce_eager": True, "skip_mm_profiling": True} if on_cpu else {},
            },
        },
        budget=TINY_BUDGET,
        tasks=[{"name": name} | custom for name in NAMES],
        generation={
            "reasoning": reasoning,
            "temperature": 2.0,  # the maximum of vLLM
            "max_new_tokens": 300,
            "stop_loops": False,
            "seed": 1,
        },
    )
    units = prepare_units(job, media_items(archive, ["images/scene-0.jpg"]), 2048)
    engine = VllmEngine(job)
    try:
        (answered,) = engine.generate(units)
    finally:
        engine.close()
    assert answered.error is None
    questions = {question.name: question for question in job.questions()}
    found = [parse_raw(answered, raw, questions) for raw in answered.answers]
    good = [read for read in found if read.status == "ok"]
    assert good and {read.value["color"] for read in good} <= {"red", "green"}
    assert all(read.value is None and read.reasoning for read in found if read not in good)
    reasoned = sum(bool(read.reasoning) for read in good)
    if reasoning == "off":
        assert (len(good), reasoned) == (len(NAMES), 0)
    elif template == "model opens":  # with the tag, or the answer at once
        assert 0 < reasoned < len(good)
    else:
        assert reasoned == len(good)
