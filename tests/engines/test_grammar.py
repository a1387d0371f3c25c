"""Constrained decoding: answers pass jsonschema, whatever the weights are."""

import json
from pathlib import Path
from random import Random

import jsonschema
import numpy as np
import pytest
import torch
from llguidance import LLMatcher
from llguidance.hf import from_tokenizer
from transformers import RepetitionPenaltyLogitsProcessor

from jobs.plan.open_job import open_job
from pipeline.engines.answer_schema import grammar_of
from pipeline.engines.grammar import Grammars
from pipeline.engines.token_sampling import PresencePenalty, RepetitionPenalty
from pipeline.engines.transformers.engine import TransformersEngine
from pipeline.model.prompter import Prompter
from pipeline.tasks.parse import parse_raw
from schemas.errors import JobFileError
from schemas.job.job import Job
from schemas.task import Question
from tests.support.job_files import make_job
from tests.support.prepared import media_items, prepare_units

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


def schema_job(checkpoint: Path, schema=SCHEMA, **generation) -> Job:
    return make_job(
        checkpoint,
        tasks=[
            {"caption": {"max_new_tokens": 20}},
            {"custom": {"prompt": "What is it?", "json_schema": schema}},
            {"fields": {"keys": ["name", "two words"]}},
        ],
        budget={"image_tokens": [4, 16]},
        generation={"max_new_tokens": 400, "stop_loops": False, "retry": None} | generation,
    )


def answers(job: Job, archive: Path):
    units = prepare_units(job, media_items(archive, ["images/scene-0.jpg", "images/tiny.png"]))
    questions = {question.task: question for question in job.questions()}
    return [
        {raw.task: (raw, parse_raw(unit, raw, questions)) for raw in unit.answers}
        for unit in TransformersEngine(job, num_threads=2).generate(units)
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_answers_hold_to_their_schemas(checkpoint, archive, temperature):
    """Random weights write noise: without the grammar no answer can be parsed."""
    free = answers(schema_job(checkpoint, temperature=temperature, constrained=False), archive)
    held = answers(schema_job(checkpoint, temperature=temperature), archive)
    for before, after in zip(free, held, strict=True):
        assert before["custom"][1].status != "ok"
        raw, answer = after["custom"]
        assert (raw.finish_reason, answer.status) == ("stop", "ok"), raw.raw_text
        jsonschema.validate(json.loads(answer.value), SCHEMA)
        assert after["caption"][0].raw_text == before["caption"][0].raw_text  # the others are free
        # Random weights never end a text; the part that is parsed must be of the schema.
        assert set(dict(after["fields"][1].value or {})) <= {"name", "two words"}


def test_a_schema_that_llguidance_does_not_support_stops_the_job(checkpoint, archive):
    schema = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
    job = schema_job(checkpoint, schema)
    job = job.model_copy(
        update={"input": job.input.model_copy(update={"manifest": None, "scan": str(archive)})}
    )
    with pytest.raises(JobFileError, match="custom: answers cannot be constrained .*not"):
        open_job(job)


def test_reasoning_is_free_and_what_comes_after_it_is_not(checkpoint):
    tokenizer = Prompter(str(checkpoint)).tokenizer
    question = Question(task="custom", json_schema=json.dumps(SCHEMA))
    grammars = Grammars([question, Question(task="caption")], tokenizer, 512, has_reasoning=True)
    (held,) = grammars.processors(["caption", "custom"], torch.device("cpu"))
    assert grammars.processors(["caption"], torch.device("cpu")) == []
    said = tokenizer.encode('Hm.</think>{"color": "', add_special_tokens=False)
    end = said.index(tokenizer.convert_tokens_to_ids("</think>")) + 1
    for length in range(len(said) + 1):
        if length:
            held.accept(torch.tensor([said[length - 1]] * 2), [said[length - 1]] * 2)
        free, scores = held(torch.zeros(2, 512))
        assert torch.isfinite(free).all()
        allowed = {tokenizer.decode([t]) for t in torch.isfinite(scores).nonzero().flatten()}
        if length < end:
            assert torch.isfinite(scores).all()
        elif length == end:
            assert allowed and all(t.strip()[:1] in ("{", "`", "") for t in allowed)
        elif length == len(said):
            assert allowed and all("red".startswith(t) or "green".startswith(t) for t in allowed)


def test_reasoning_that_the_prompt_does_not_open_may_come_first(checkpoint):
    """The answer begins with ``<think>`` or at once; one of either kind in a batch."""
    tokenizer = Prompter(str(checkpoint)).tokenizer
    question = Question(task="custom", json_schema=json.dumps(SCHEMA))
    grammars = Grammars([question], tokenizer, 512, has_reasoning=True, is_opened=False)
    (held,) = grammars.processors(["custom", "custom"], torch.device("cpu"))
    thinks = tokenizer.encode('<think>Hm.</think>{"color": "', add_special_tokens=False)
    direct = tokenizer.encode('{"color": "red", "count": 7, "sizes', add_special_tokens=False)
    begin, end = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    finite = torch.isfinite(held(torch.zeros(2, 512)))
    allowed = [{int(t) for t in row.nonzero().flatten()} for row in finite]
    assert allowed[0] == allowed[1] and begin in allowed[0] and len(allowed[0]) < 20
    for step in range(min(len(thinks), len(direct))):
        tokens = [thinks[step], direct[step]]
        held.accept(torch.tensor(tokens), tokens)
        free, first = torch.isfinite(held(torch.zeros(2, 512)))
        assert free.all() == (end not in thinks[: step + 1])
        assert not first.all() and not first[begin]


@pytest.mark.parametrize("reasons", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_both_engines_let_the_same_tokens_follow_where_reasoning_is_optional(
    checkpoint, seed, reasons
):
    """vLLM gets one grammar of reasoning and answer; here the answer's begins after the reasoning.

    A text is drawn among the tokens that may follow, `</think>` more often than others.
    """
    tokenizer = Prompter(str(checkpoint)).tokenizer
    question = Question(task="custom", json_schema=json.dumps(SCHEMA))
    begin, end = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    grammars = Grammars([question], tokenizer, 512, has_reasoning=True, is_opened=False)
    (held,) = grammars.processors(["custom"], torch.device("cpu"))
    text = grammar_of(question, (begin, end))
    assert LLMatcher.validate_grammar(text) == "", "vLLM checks it without a tokenizer"
    matcher = LLMatcher(from_tokenizer(tokenizer, n_vocab=512), text)
    draws = Random(seed)
    for step in range(60):
        (finite,) = torch.isfinite(held(torch.zeros(1, 512)))
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        assert finite.tolist() == bits[:512].astype(bool).tolist()
        allowed = finite.nonzero().flatten().tolist()
        if step == 0:
            allowed = [token for token in allowed if (token == begin) == reasons]
        token = draws.choice(allowed + 20 * [end] * (end in allowed))
        if token == tokenizer.eos_token_id:
            break
        held.accept(torch.tensor([token]), [token])
        assert matcher.consume_token(token)
    assert step > 5


def test_a_presence_penalty_counts_a_token_of_the_answer_once():
    penalty = PresencePenalty(0.5, torch.zeros((2, 0), dtype=torch.long), vocab_size=5)
    for tokens in ([2, 0], [3, 0], [3, 2]):
        penalty.accept(torch.tensor(tokens), tokens)
    scores = penalty(torch.ones(2, 5))
    assert scores.tolist() == [[1, 1, 0.5, 0.5, 1], [0.5, 1, 0.5, 1, 1]]


@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_a_repetition_penalty_is_that_of_transformers(factor):
    """Over five tokens; after the second, two of the three rows go on."""
    draws = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 12, (3, 4), generator=draws)
    own = RepetitionPenalty(factor, ids, vocab_size=12)
    theirs = RepetitionPenaltyLogitsProcessor(factor)
    for step in range(5):
        scores = torch.randn(len(ids), 12, generator=draws)
        torch.testing.assert_close(own(scores), theirs(ids, scores.clone()))
        tokens = torch.randint(0, 12, (len(ids),), generator=draws)
        own.accept(tokens, tokens.tolist())
        ids = torch.cat([ids, tokens[:, None]], dim=1)
        if step == 1:
            own.keep([0, 2])
            ids = ids[[0, 2]]
