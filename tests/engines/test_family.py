"""Checkpoints with linear layers: answers to the token of the model's own ``generate``, alone.

A batch pads prompts of several lengths, reads what a unit's prompts share once, copies its state
for each of them, and drops rows whose answers have ended. None of it may change an answer.
"""

import dataclasses
from pathlib import Path

import pytest
import torch

from pipeline.engines.token_sampling import row_processors
from pipeline.engines.transformers import branches as branches_module
from pipeline.engines.transformers import prefix as prefix_module
from pipeline.engines.transformers.batches import roots_of
from pipeline.engines.transformers.cache import StateLayer
from pipeline.engines.transformers.decoding import AnswersTooLong
from pipeline.engines.transformers.engine import TransformersEngine
from pipeline.engines.transformers.limit import AnswerLengths
from pipeline.engines.transformers.prefix import LayerMasks
from pipeline.engines.transformers.vision import VisionEncoder
from schemas.tables.unit import PreparedUnit
from tests.support.family import HYBRIDS, family_checkpoint
from tests.support.family_answers import (
    Answers,
    Oracle,
    answers_of,
    family_units,
    new_engine,
    tasks_job,
)

DRAWN = {
    "temperature": 0.9,
    "top_k": 40,
    "top_p": 0.9,
    "seed": 5,
    "presence_penalty": 0.7,
    "repetition_penalty": 1.3,
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A checkpoint, its units and engine, and what ``generate`` says."""

    checkpoint: Path
    units: list[PreparedUnit]
    engine: TransformersEngine
    oracle: Oracle
    expected: Answers


@pytest.fixture(scope="module", params=HYBRIDS)
def case(request, archive: Path, tmp_path_factory) -> Case:
    checkpoint = family_checkpoint(tmp_path_factory, request.param)
    job = tasks_job(checkpoint)
    units = family_units(job, archive)
    oracle = Oracle(checkpoint, job)
    return Case(checkpoint, units, new_engine(job), oracle, oracle.answers(units))


def test_a_batch_answers_as_generate_does(case: Case):
    """Images, videos, a conversation about three; four tasks of a unit; many lengths."""
    lengths = {len(prompt.input_ids) for unit in case.units for prompt in unit.prompts}
    assert len(lengths) >= 8
    found = answers_of(case.engine, case.units)
    assert found == case.expected
    assert len(found) == 4 * 4 + 3
    assert len(set(map(tuple, found.values()))) > 8


@pytest.mark.parametrize("num_tokens", [7, 50, 300])
def test_chunks_and_passes_do_not_change_answers(case: Case, monkeypatch, num_tokens):
    """A long root in chunks, whose state goes from one to the next; short ones in one pass."""
    monkeypatch.setattr(prefix_module, "PREFILL_CHUNK_TOKENS", num_tokens)
    monkeypatch.setattr(branches_module, "PREFILL_CHUNK_TOKENS", num_tokens)
    assert answers_of(case.engine, case.units) == case.expected


def test_batches_do_not_change_answers(case: Case):
    alone: Answers = {}
    for unit in case.units:
        alone |= answers_of(case.engine, [unit])
    assert alone == case.expected
    job = tasks_job(case.checkpoint, resources={"max_batch_tokens": 300})
    assert answers_of(new_engine(job), case.units[::-1]) == case.expected


def test_a_units_branches_one_after_the_other(case: Case, monkeypatch):
    """What they share is read once: each branch begins with its state again."""
    job = tasks_job(case.checkpoint, resources={"max_batch_tokens": 300})
    engine = new_engine(job)
    monkeypatch.setattr(type(engine.generator.limit), "fits", lambda self, roots: False)
    prefills = []
    original = engine.generator.prefill

    def prefill(roots):
        prefills.append(len(roots))
        return original(roots)

    monkeypatch.setattr(engine.generator, "prefill", prefill)
    assert answers_of(engine, case.units) == case.expected
    assert prefills == [1] * len(case.units)


def test_answers_longer_than_expected_are_finished_in_parts(case: Case, monkeypatch):
    failures: list[int] = []

    class Counted(AnswersTooLong):
        def __init__(self, lengths, finished):
            super().__init__(lengths, finished)
            failures.append(len(lengths))

    monkeypatch.setattr("pipeline.engines.transformers.decoding.AnswersTooLong", Counted)
    monkeypatch.setattr(AnswerLengths, "expected", lambda self, task: 2)
    long = {"caption": 20, "custom": 14}
    units = [
        dataclasses.replace(unit, prompts=tuple(p for p in unit.prompts if p.task in long))
        for unit in case.units[:2]
    ]
    engine = new_engine(tasks_job(case.checkpoint))
    pad_ids = engine.generator.prompter.pad_ids.values()
    roots = [root for unit in units for root in roots_of(unit, long, pad_ids)]
    found = engine.generator.limit
    assert found.copies_prefix
    room = found.shape(roots).cached_tokens
    engine.generator.limit = dataclasses.replace(found, max_tokens=room)
    expected = {key: answer for key, answer in case.expected.items() if key[1] in long}
    answers = answers_of(engine, units)
    assert answers == {key: expected[key] for key in answers}
    assert failures[0] == len(answers) == 4


def test_answers_that_end_early(case: Case):
    """Rows leave the batch one after the other; the states of the others stay with their rows."""
    ends = sorted({answer[3] for answer in case.expected.values() if len(answer) > 3})[:3]
    assert len(ends) == 3
    engine = new_engine(tasks_job(case.checkpoint))
    engine.generator.end_ids = ends
    found = answers_of(engine, case.units)
    assert found == case.oracle.answers(case.units, eos_token_id=ends)
    assert len({len(answer) for answer in found.values()}) >= 5


def test_sampling_with_seeds(case: Case):
    """Against the sampler on logits of the model's forward, without a cache."""
    job = tasks_job(case.checkpoint, generation=DRAWN)
    units = case.units[1:3]
    found = answers_of(new_engine(job), units)
    limits_of = {question.name: question.max_new_tokens for question in job.questions()}
    for unit in units:
        for prompt in unit.prompts:
            ids, answer = list(prompt.input_ids), []
            processors = row_processors(
                job.generation,
                [f"{unit.unit_id}/{prompt.task}"],
                torch.tensor([ids]),
                case.oracle.model.config.text_config.vocab_size,
            )
            while len(answer) < limits_of[prompt.task]:
                given = case.oracle.inputs(unit, ids + answer)
                with torch.inference_mode():
                    logits = case.oracle.model(**given, logits_to_keep=1).logits[:, 0]
                token = processors(logits).argmax(dim=-1)
                processors.accept(token, token.tolist())
                answer += token.tolist()
                if answer[-1] in case.oracle.model.generation_config.eos_token_id:
                    break
            assert found[unit.unit_id, prompt.task] == answer, (unit.uri, prompt.task)
    assert found != answers_of(case.engine, units)


def test_answers_depend_on_the_picture(case: Case):
    unit = case.units[0]
    black = dataclasses.replace(unit, frame_data=bytes(len(unit.frame_data)))
    assert answers_of(case.engine, [black]) != answers_of(case.engine, [unit])


def test_eager_attention_is_causal_too(case: Case):
    job = tasks_job(case.checkpoint, model={"attn_implementation": "eager"})
    engine = new_engine(job)
    assert answers_of(engine, case.units) == case.expected
    alone: Answers = {}
    for unit in case.units[:3]:  # nothing is padded
        alone |= answers_of(engine, [unit])
    assert alone == {key: case.expected[key] for key in alone}


def test_features_are_those_of_the_model(case: Case):
    """Without features of earlier layers."""
    encoder = VisionEncoder(case.engine.generator.model)
    with torch.inference_mode():
        encoded = encoder.encode(case.units[:3])
        for unit, found in zip(case.units, encoded, strict=False):
            assert found.deepstack == ()
            given = case.oracle.inputs(unit, list(unit.prompts[0].input_ids))
            kind = unit.media.media_type
            pixels = given["pixel_values" if kind == "image" else "pixel_values_videos"]
            features = getattr(case.oracle.model.model, f"get_{kind}_features")
            expected = features(pixels, given[f"{kind}_grid_thw"], return_dict=True).pooler_output
            torch.testing.assert_close(found.embeddings, torch.cat(expected), rtol=1e-4, atol=1e-4)


def padding_reaches_states(patch: pytest.MonkeyPatch) -> None:
    original = LayerMasks.of
    patch.setattr(LayerMasks, "of", lambda self, attention, real=None: original(self, attention))


def states_stay_behind(patch: pytest.MonkeyPatch) -> None:
    """Rows that leave the batch leave their states to others."""

    def resize(self, room, rows=None, columns=None):
        original(self, room, rows if rows is None else rows.flip(0), columns)

    original = StateLayer.resize
    patch.setattr(StateLayer, "resize", resize)


def suffixes_are_padded(patch: pytest.MonkeyPatch) -> None:
    original = branches_module.Branches._passes

    def passes(self, suffixes, width):
        longest = max(len(ids) for some in suffixes for ids in some)
        for each in original(self, suffixes, width):
            yield dataclasses.replace(each, num_tokens=longest)

    patch.setattr(branches_module.Branches, "_passes", passes)


@pytest.mark.parametrize("fault", [padding_reaches_states, states_stay_behind, suffixes_are_padded])
def test_the_tests_would_notice(case: Case, monkeypatch, fault):
    fault(monkeypatch)
    assert answers_of(case.engine, case.units) != case.expected
