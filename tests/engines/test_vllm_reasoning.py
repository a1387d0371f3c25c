"""vLLM and reasoning: its grammar begins where the reasoning ends, and nothing of it is a value.

Runs where vLLM is installed: `make test-vllm`, its CPU build.
"""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from pipeline.tasks.parse import Answer, parse_raw
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


def scale_tags(folder: Path, factor: float) -> None:
    """Make `<think>` in some places far more, in others far less likely; `</think>` as well."""
    weights = load_file(folder / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for tag, scale in (("<think>", factor), ("</think>", abs(factor))):
        weights["lm_head.weight"][tokenizer.convert_tokens_to_ids(tag)] *= scale
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("template", "reasoning", "factors"),
    [
        ("on by default", "on", [1.0]),
        ("on by default", "off", [1.0]),
        ("model opens", "on", [10.0, -10.0]),
    ],
)
def test_a_grammar_holds_after_what_a_model_reasons(
    checkpoint, tmp_path, archive, template, reasoning, factors
):
    """Random weights write `</think>`, end their turn, or write `<tool_call>` sooner or later.

    Where the model opens its reasoning itself: by one of two opposite factors it begins so.
    """
    found = []
    for factor in factors:
        folder = shutil.copytree(checkpoint, tmp_path / f"model {factor}")
        if len(factors) > 1:
            scale_tags(folder, factor)
        found += answers_of(with_template(folder, TEMPLATES[template]), archive, reasoning)
    good = [read for read in found if read.status == "ok"]
    assert good and {read.value["color"] for read in good} <= {"red", "green"}
    assert all(read.value is None for read in found if read not in good)
    reasoned = sum(bool(read.reasoning) for read in good)
    if reasoning == "off":
        assert (len(good), reasoned) == (len(NAMES), 0)
    elif template == "model opens":  # with the tag, or the answer at once
        assert 0 < reasoned < len(good)
    else:
        assert reasoned == len(good)


def answers_of(folder: Path, archive: Path, reasoning: str) -> list[Answer]:
    from pipeline.engines.vllm.engine import VllmEngine

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
    return [parse_raw(answered, raw, questions) for raw in answered.answers]
