"""A recipe's id names rows of the table: the same job has the same id for ever.

If a test here fails, rows that users have would be made again. Change an id only on purpose, with
the task's version or the recipe's content, and say so in CHANGELOG.md.
"""

import pytest

from pipeline.plan.recipe import recipe, recipe_id
from schemas.job.job import check_job, load_job
from tests.support.paths import ROOT

JOBS = {
    "minimal": {"input": {"manifest": "m.jsonl"}, "output": "out", "tasks": ["caption"]},
    "every task": {
        "input": {"scan": "s3://media/"},
        "output": "out",
        "tasks": [
            "caption",
            "events",
            {"moments": {"query": "a dog jumps"}},
            "ocr",
            "text_spans",
            {"objects": {"labels": ["person", "car"]}},
            {"points": {"labels": ["cat"]}},
            {"tracks": {"labels": ["car"]}},
            "objects_3d",
            {"fields": {"keys": ["total", "date"]}},
            "document",
            {"custom": {"prompt": "Which season is it?"}},
        ],
    },
    "long video, sampled answers": {
        "input": {"manifest": "m.parquet"},
        "output": "s3://annotations/films",
        "model": {"source": "Qwen/Qwen3-VL-8B-Thinking", "dtype": "bfloat16"},
        "sampling": {
            "fps": 1.0,
            "max_frames": 256,
            "segmentation": {"kind": "window", "seconds": 60, "overlap_seconds": 5},
        },
        "generation": {"temperature": 0.7, "top_p": 0.8, "seed": 7},
        "tasks": ["caption", "events"],
    },
    "vLLM, schema": {
        "input": {"manifest": "m.csv"},
        "output": "out",
        "model": {"engine": "vllm", "vllm": {"quantization": "fp8"}},
        "budget": {"unit_tokens": 4096, "frame_tokens": [16, 256]},
        "tasks": [
            {
                "custom": {
                    "prompt": "Name it.",
                    "json_schema": {"type": "object", "properties": {"name": {"type": "string"}}},
                }
            }
        ],
    },
    "names of its own": {
        "input": {"manifest": "m.jsonl"},
        "output": "out",
        "tasks": [
            "caption",
            {"name": "defects", "task": "custom", "prompt": "Which defects?"},
            {"name": "invoice", "task": "fields", "keys": ["total"]},
            {"name": "arrival", "task": "moments", "query": "A train arrives."},
        ],
    },
    "simulated, shots": {
        "input": {"manifest": "m.jsonl"},
        "output": "out",
        "model": {"engine": "simulated"},
        "sampling": {"frames": "nearest", "clock": "unit", "segmentation": {"kind": "shots"}},
        "tasks": ["ocr", "text_spans"],
    },
}

IDS = {
    "minimal": "619e801b4c1a7f30",
    "every task": "98af641f488b617d",
    "long video, sampled answers": "cb68b573b736558c",
    "vLLM, schema": "8764a17de499131a",
    "names of its own": "eb062ffce225ee12",
    "simulated, shots": "608e2f45a17ab217",
}
SPEC_IDS = {"demo.yaml": "fed497ee8b49a227", "archive.yaml": "baa1ca9f604d0823"}


@pytest.mark.parametrize("name", JOBS)
def test_the_id_of_a_job_is_what_it_was(name: str):
    assert recipe_id(recipe(check_job(JOBS[name], "test"), "weights")) == IDS[name]


@pytest.mark.parametrize("name", SPEC_IDS)
def test_the_id_of_a_ready_made_job_is_what_it_was(name: str):
    assert recipe_id(recipe(load_job(ROOT / "jobs/specs" / name), "weights")) == SPEC_IDS[name]
