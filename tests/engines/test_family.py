"""Checkpoints with linear layers: answers to the token of the model's own ``generate``, alone.

A batch pads prompts of several lengths, reads what a unit's prompts share once, copies its state
for each of them, and drops rows whose answers have ended. None of it may change an answer.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from pipeline.engines.token_sampling import row_processors
from pipeline.engines.transformers import branches as branches_module
from pipeline.engines.transformers import limit as limits
from pipeline.engines.transformers import prefix as prefix_module
from pipeline.engines.transformers.cache import StateLayer
from pipeline.engines.transformers.decoding import AnswersTooLong
from pipeline.engines.transformers.engine import TransformersEngine
from pipeline.engines.transformers.limit import AnswerLengths
from pipeline.engines.transformers.prefix import LayerMasks
from pipeline.model.patches import patches, seen_pixels
from schemas.job.job import Job
from schemas.tables.unit import PreparedUnit
from tests.support.family import HYBRIDS, family_checkpoint
from tests.support.job_files import make_job
from tests.support.messages import image, read, text, user, video
from tests.support.prepared import media_items, prepare_units

FILES = ("images/scene-0.jpg", "images/wide.png", "clips/h264-bframes.mp4", "clips/one-frame.mp4")
TALK = [user(image(FILES[0]), video(FILES[2]), image(FILES[1]), text("What is the same?"))]
TASKS = [
    {"caption": {"max_new_tokens": 20}},
    {"ocr": {"max_new_tokens": 1}},
    {"objects": {"labels": ["car", "a person"], "max_new_tokens": 9}},
    {"custom": {"prompt": "What?", "max_new_tokens": 14}},
    {"chat": {"max_new_tokens": 12}},
]
BUDGET = {"image_tokens": [4, 16], "frame_tokens": [4, 16], "unit_tokens": 64}
DRAWN = {
    "temperature": 0.9,
    "top_k": 40,
    "top_p": 0.9,
    "seed": 5,
    "presence_penalty": 0.7,
    "repetition_penalty": 1.3,
}


def tasks_job(checkpoint: Path, **sections: Any) -> Job:
    generation = {"retry": None} | sections.pop("generation", {})
    defaults = {"tasks": TASKS, "budget": BUDGET, "generation": generation}
    return make_job(checkpoint, **defaults | sections)


def new_engine(job: Job) -> TransformersEngine:
    """An engine whose answers are lists of token ids, in JSON."""
    engine = TransformersEngine(job, num_threads=1)
    engine.generator.prompter.decode = json.dumps  # type: ignore[method-assign]
    return engine


Answers = dict[tuple[str, str], list[int]]


def answers_of(engine: TransformersEngine, units: list[PreparedUnit]) -> Answers:
    """Token ids by unit and task; fails if a unit has an error."""
    answered = engine.generate(units)
    assert [unit.error for unit in answered] == [None] * len(units)
    return {
        (unit.unit_id, raw.task): json.loads(raw.raw_text)
        for unit in answered
        for raw in unit.answers
    }


class Oracle:
    """transformers' own model: one prompt at a time, from pixels."""

    def __init__(self, checkpoint: Path, job: Job) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=torch.float32
        ).eval()
        self._limits = {question.name: question.max_new_tokens for question in job.questions()}

    def inputs(self, unit: PreparedUnit, ids: list[int]) -> dict[str, torch.Tensor]:
        tokens = torch.tensor([ids])
        config = self.model.config
        types = (tokens == config.image_token_id).long()
        types += 2 * (tokens == config.video_token_id)
        pixels: dict[str, list] = {"image": [], "video": []}
        for part, frames in zip(unit.seen, seen_pixels(unit), strict=True):
            pixels[part.media.media_type].append((patches(frames), part.sampling.grid_thw))
        found = {"input_ids": tokens, "mm_token_type_ids": types}
        for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
            if some := pixels[kind]:
                found[name] = torch.cat([rows for rows, _ in some])
                found[f"{kind}_grid_thw"] = torch.tensor([grid for _, grid in some])
        return found

    def answers(self, units: list[PreparedUnit], **settings: Any) -> Answers:
        found = {}
        for unit in units:
            for prompt in unit.prompts:
                given = self.inputs(unit, list(prompt.input_ids))
                output = self.model.generate(
                    **given,
                    attention_mask=torch.ones_like(given["input_ids"]),
                    max_new_tokens=self._limits[prompt.task],
                    do_sample=False,
                    **settings,
                )
                answer = output[0, len(prompt.input_ids) :].tolist()
                found[unit.unit_id, prompt.task] = answer
        return found


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
    units = prepare_units(job, media_items(archive, FILES) + read(archive, TALK))
    oracle = Oracle(checkpoint, job)
    return Case(checkpoint, units, new_engine(job), oracle, oracle.answers(units))


def test_a_batch_answers_as_generate_does(case: Case):
    """Images, videos, a conversation about three; four tasks of a unit; five lengths of prompts."""
    lengths = {len(prompt.input_ids) for unit in case.units for prompt in unit.prompts}
    assert len(lengths) >= 8
    found = answers_of(case.engine, case.units)
    assert found == case.expected
    assert len(found) == 4 * 4 + 1
    assert len(set(map(tuple, found.values()))) > 8


@pytest.mark.parametrize("num_tokens", [7, 33])
def test_chunks_of_a_padded_batch_do_not_change_answers(case: Case, monkeypatch, num_tokens):
    """A chunk may hold nothing but padding of one row, or its last token of padding."""
    monkeypatch.setattr(prefix_module, "PREFILL_CHUNK_TOKENS", 10**6)
    original = prefix_module.Prefix.run
    monkeypatch.setattr(branches_module, "PREFILL_CHUNK_TOKENS", num_tokens)

    def run(self, rows, encoded):
        assert len(encoded) > 1
        with monkeypatch.context() as patch:
            patch.setattr(prefix_module, "PREFILL_CHUNK_TOKENS", num_tokens)
            original(self, rows, encoded)

    monkeypatch.setattr(prefix_module.Prefix, "run", run)
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
    monkeypatch.setattr(limits, "START_ANSWER_TOKENS", 2)
    monkeypatch.setattr(AnswerLengths, "expected", lambda self, task: 2)
    engine = new_engine(tasks_job(case.checkpoint, resources={"max_batch_tokens": 256}))
    assert answers_of(engine, case.units) == case.expected
    assert failures


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
