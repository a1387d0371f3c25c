"""Constrained decoding: jsonschema agrees with what comes out, whatever the weights are."""

import json
from pathlib import Path

import jsonschema
import pytest
import torch

from jobs.plan import open_job
from pipeline.engines.grammar import Grammars
from pipeline.engines.sampling import PresencePenalty
from pipeline.engines.transformers import TransformersEngine
from pipeline.parse import parse_raw
from pipeline.plan import Planner
from pipeline.prompt import Prompter
from pipeline.same_code import code_digest
from pipeline.stages import Prepare
from pipeline.storage import Storage
from schemas.errors import JobFileError
from schemas.job import Job, check_job
from schemas.manifest import MediaItem
from schemas.task import Question

SCHEMA = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "green"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "sizes": {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 3},
    },
    "required": ["color", "count", "sizes"],
    "additionalProperties": False,
}


def job(checkpoint: Path, schema=SCHEMA, **generation) -> Job:
    spec = {
        "input": {"manifest": "unused.jsonl"},
        "output": "unused",
        "model": {"source": str(checkpoint), "dtype": "float32"},
        "tasks": [
            {"caption": {"max_new_tokens": 20}},
            {"custom": {"prompt": "What is it?", "json_schema": schema}},
            {"fields": {"keys": ["name", "two words"]}},
        ],
        "budget": {"image_tokens": [4, 16]},
        "generation": {"max_new_tokens": 400, "stop_loops": False, "retry": None} | generation,
    }
    return check_job(spec, "test")


def answers(asked: Job, archive: Path):
    items = [
        MediaItem(media_id=name, uri=str(archive / "images" / name))
        for name in ("scene-0.jpg", "tiny.png")
    ]
    prepare = Prepare(asked, Storage(), code_digest())
    units = [prepare.prepare(unit) for unit in Planner(asked, 262_144, Storage()).plan(items)]
    questions = {question.task: question for question in asked.questions()}
    return [
        {raw.task: (raw, parse_raw(unit, raw, questions)) for raw in unit.answers}
        for unit in TransformersEngine(asked, num_threads=2).generate(units)
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_answers_hold_to_their_schemas(checkpoint, archive, temperature):
    """Random weights say nothing by themselves: without the grammar nothing can be read."""
    free = answers(job(checkpoint, temperature=temperature, constrained=False), archive)
    held = answers(job(checkpoint, temperature=temperature), archive)
    for before, after in zip(free, held, strict=True):
        assert before["custom"][1].status != "ok"
        raw, answer = after["custom"]
        assert (raw.finish_reason, answer.status) == ("stop", "ok"), raw.raw_text
        jsonschema.validate(json.loads(answer.value), SCHEMA)
        assert after["caption"][0].raw_text == before["caption"][0].raw_text  # the others are free
        # Texts have no end that random weights would find; what there is, is of the schema.
        assert set(dict(after["fields"][1].value or {})) <= {"name", "two words"}


def test_a_schema_that_cannot_be_decoded_by_is_told_before_work(checkpoint, archive):
    schema = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
    asked = job(checkpoint, schema)
    asked = asked.model_copy(
        update={"input": asked.input.model_copy(update={"manifest": None, "scan": str(archive)})}
    )
    with pytest.raises(JobFileError, match="custom: answers cannot be constrained .*not"):
        open_job(asked)


def test_reasoning_is_free_and_what_comes_after_it_is_not(checkpoint):
    tokenizer = Prompter(str(checkpoint)).tokenizer
    question = Question(task="custom", json_schema=json.dumps(SCHEMA))
    grammars = Grammars([question, Question(task="caption")], tokenizer, 512, reasons=True)
    (held,) = grammars.processors(["caption", "custom"], padded=3)
    assert grammars.processors(["caption"], padded=3) == []
    said = tokenizer.encode('Hm.</think>{"color": "', add_special_tokens=False)
    end = said.index(tokenizer.convert_tokens_to_ids("</think>")) + 1
    for length in range(len(said) + 1):
        ids = torch.tensor([[0, 0, 0, *said[:length]]] * 2)
        free, scores = held(ids, torch.zeros(2, 512))
        assert torch.isfinite(free).all()
        allowed = {tokenizer.decode([t]) for t in torch.isfinite(scores).nonzero().flatten()}
        if length < end:
            assert torch.isfinite(scores).all()
        elif length == end:
            assert allowed and all(t.strip()[:1] in ("{", "`", "") for t in allowed)
        elif length == len(said):
            assert allowed and all("red".startswith(t) or "green".startswith(t) for t in allowed)


def test_a_presence_penalty_counts_a_token_of_the_answer_once():
    ids = torch.tensor([[1, 1, 2, 3, 3], [4, 4, 0, 0, 2]])
    scores = PresencePenalty(0.5, padded=2)(ids, torch.ones(2, 5))
    assert scores.tolist() == [[1, 1, 0.5, 0.5, 1], [0.5, 1, 0.5, 1, 1]]
