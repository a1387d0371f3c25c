"""Prompts that share a unit's media: one prefill for all, and the answers of separate runs."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText, AutoTokenizer

from pipeline.engines.transformers.batches import halves, roots_of, split, unit_batches
from pipeline.engines.transformers.branches import Branches
from pipeline.engines.transformers.engine import TransformersEngine
from pipeline.engines.transformers.limit import AnswerLengths, BatchLimit
from pipeline.model.memory import ModelMemory
from pipeline.model.patches import patches, seen_pixels
from pipeline.model.sizes import PUBLISHED
from schemas.job.job import Job
from schemas.tables.unit import PreparedUnit, Prompt
from tests.support.job_files import TINY_BUDGET, make_job
from tests.support.messages import SYSTEM, image, read, text, user, video
from tests.support.prepared import media_items, prepare_units

FILES = ("images/scene-0.jpg", "images/wide.png", "clips/h264-bframes.mp4", "clips/variable.mkv")
TOOLS = [{"type": "function", "function": {"name": "click", "parameters": {"type": "object"}}}]
TASKS = [
    {"caption": {"max_new_tokens": 30}},
    {"events": {"max_new_tokens": 5}},
    {"ocr": {"max_new_tokens": 1}},
    {"objects": {"labels": ["car", "a person who walks"], "max_new_tokens": 14}},
    {"tool_calls": {"tools": TOOLS, "max_new_tokens": 9}},
    {"fields": {"keys": ["name", "color"], "max_new_tokens": 20}},
    {"custom": {"prompt": "What? " * 40, "max_new_tokens": 8}},
    {"chat": {"max_new_tokens": 12}},
]
GENERATION = {"retry": None}
DRAWN = GENERATION | {
    "temperature": 0.9,
    "top_k": 40,
    "top_p": 0.9,
    "presence_penalty": 0.7,
    "repetition_penalty": 1.3,
}


def tasks_job(checkpoint: Path, **sections) -> Job:
    defaults = {"tasks": TASKS, "budget": TINY_BUDGET, "generation": GENERATION}
    return make_job(checkpoint, **defaults | sections)


def prepared(job: Job, archive: Path, *rows: list[dict]) -> list[PreparedUnit]:
    """The files, and conversations about several of them."""
    items = media_items(archive, FILES) + (read(archive, *rows) if rows else [])
    return prepare_units(job, items)


def separate(units: list[PreparedUnit]) -> list[PreparedUnit]:
    """Each prompt as a unit of its own."""
    return [dataclasses.replace(unit, prompts=(p,)) for unit in units for p in unit.prompts]


TALK = [SYSTEM, user(image(FILES[0]), video(FILES[2]), image(FILES[1]), text("What is the same?"))]


@pytest.mark.parametrize("generation", [GENERATION, DRAWN])
@pytest.mark.parametrize("thinking", [False, True])
def test_answers_are_those_of_separate_runs(checkpoint, archive, tmp_path, generation, thinking):
    """Eight tasks, one with tools of its own and one held to a grammar, and a conversation."""
    if thinking:
        checkpoint = Path(shutil.copytree(checkpoint, tmp_path / "thinking"))
        for name in ("tokenizer_config.json", "chat_template.json"):
            config = json.loads((checkpoint / name).read_text())
            config["chat_template"] += "{% if add_generation_prompt %}<think>\n{% endif %}"
            (checkpoint / name).write_text(json.dumps(config))
    job = tasks_job(checkpoint, generation=generation)
    units = prepared(job, archive, TALK)
    engine = TransformersEngine(job, num_threads=2)
    answered = engine.generate(units)
    assert [unit.error for unit in answered] == [None] * len(units)
    together = [raw for unit in answered for raw in unit.answers]
    alone = [engine.generate([unit])[0].answers[0] for unit in separate(units)]
    assert len(together) >= 4 * 5 + 1
    assert together == alone
    assert {raw.opens_reasoning for raw in together} == {thinking}
    assert len({raw.num_output_tokens for raw in together}) >= 5


@pytest.mark.parametrize("penalty", [1.0, 1.4])
def test_answers_are_those_of_the_models_own_generate(checkpoint, archive, penalty):
    """One row, with pixels; nothing padded, shared or dropped."""
    job = tasks_job(checkpoint, generation=GENERATION | {"repetition_penalty": penalty, "seed": 3})
    job = job.model_copy(update={"tasks": job.tasks[:4]})
    units = prepared(job, archive)
    limits = {question.task: question.max_new_tokens for question in job.questions()}
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    for unit, answered in zip(units, TransformersEngine(job).generate(units), strict=True):
        kind = unit.media.media_type
        name = "pixel_values" if kind == "image" else "pixel_values_videos"
        for prompt, raw in zip(unit.prompts, answered.answers, strict=True):
            ids = torch.tensor([prompt.input_ids])
            pad = getattr(model.config, f"{kind}_token_id")
            types = (ids == pad).long() * (1 if kind == "image" else 2)
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=types,
                **{name: patches(*seen_pixels(unit))},
                **{f"{kind}_grid_thw": torch.tensor([unit.sampling.grid_thw])},
                max_new_tokens=limits[prompt.task],
                repetition_penalty=penalty,
                do_sample=False,
            )
            said = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
            assert raw.raw_text == said, (unit.uri, prompt.task)


def counted(engine: TransformersEngine, monkeypatch) -> list[tuple[int, int]]:
    """Rows and columns of all that the language model is fed from now on."""
    fed: list[tuple[int, int]] = []
    language_model = engine.generator.model.model.language_model
    original = language_model.forward

    def forward(*args, inputs_embeds, **kwargs):
        fed.append(tuple(inputs_embeds.shape[:2]))
        return original(*args, inputs_embeds=inputs_embeds, **kwargs)

    monkeypatch.setattr(language_model, "forward", forward)
    return fed


def test_media_are_fed_once_and_finished_answers_no_more(checkpoint, archive, monkeypatch):
    job = tasks_job(checkpoint, tasks=[{"caption": {"max_new_tokens": 30}}, *TASKS[1:4]])
    units = prepared(job, archive)[:2]  # images: no question about events
    engine = TransformersEngine(job)
    fed = counted(engine, monkeypatch)
    answers = [raw for unit in engine.generate(units) for raw in unit.answers]
    lengths = [raw.num_output_tokens for raw in answers]
    assert lengths == [30, 1, 14] * 2, "an early end of the turn: choose other media"
    limits = {question.task: question.max_new_tokens for question in job.questions()}
    pads = engine.generator.prompter.pad_ids.values()
    roots = [root for unit in units for root in roots_of(unit, limits, pads)]
    media, questions, *steps = fed
    assert media == (2, max(len(root.prefix) for root in roots))
    longest = max(len(branch.suffix) for root in roots for branch in root.branches)
    assert questions == (2, 3 * longest)
    assert steps == [(2, 2)] * 13 + [(2, 1)] * 16


def test_one_unit_over_the_token_budget_is_prefilled_once_too(checkpoint, archive, monkeypatch):
    job = tasks_job(checkpoint)
    units = prepared(job, archive)[2:]
    whole = TransformersEngine(job)
    tight = TransformersEngine(tasks_job(checkpoint, resources={"max_batch_tokens": 420}))
    fed = counted(tight, monkeypatch)
    assert tight.generate(units)[0].answers == whole.generate(units)[0].answers
    # Its tasks make two roots: the tools of one stand before the media.
    limits = {question.task: question.max_new_tokens for question in job.questions()}
    pads = whole.generator.prompter.pad_ids.values()
    roots = [root for unit in units for root in roots_of(unit, limits, pads)]
    assert len(roots) == 4 and len(list(split(roots[0], tight.generator.limit.fits))) > 2
    for root in roots:
        suffixes = [len(branch.suffix) for branch in root.branches]
        assert fed.count((1, len(root.prefix))) == 1 + suffixes.count(len(root.prefix))


@pytest.mark.parametrize("attn", ["eager", "flash_attention_2"])
def test_other_attention_gives_the_same_answers(checkpoint, archive, monkeypatch, attn):
    """FlashAttention takes no mask of branches: each has a copy of its root (run by sdpa here)."""
    job = tasks_job(checkpoint)
    units = prepared(job, archive, TALK)
    expected = [unit.answers for unit in TransformersEngine(job).generate(units)]
    if attn == "eager":
        engine = TransformersEngine(
            tasks_job(checkpoint, model={"source": str(checkpoint), "attn_implementation": attn})
        )
    else:
        engine = TransformersEngine(job)
        engine.generator.attn_implementation = attn
        engine.generator.model.model.language_model.set_attn_implementation("sdpa")
        fed = counted(engine, monkeypatch)
    assert [unit.answers for unit in engine.generate(units)] == expected
    if attn != "eager":
        assert any(rows > 10 and columns == 1 for rows, columns in fed)
        assert len({columns for _, columns in fed if columns > 1}) <= 4


@pytest.mark.parametrize("name", ["feed", "keep"])
def test_the_comparison_would_notice(checkpoint, archive, monkeypatch, name):
    """Break the bookkeeping of branches, and answers differ from those of separate runs."""
    job = tasks_job(checkpoint)
    units = prepared(job, archive)
    engine = TransformersEngine(job)
    expected = [unit.answers for unit in engine.generate(units)]
    original = getattr(Branches, name)

    def broken(self, rows):
        original(self, rows)
        if name == "feed":
            self.bias[:] = 0  # each branch sees all others
        else:
            self.next_positions = self.next_positions.flip(0)

    monkeypatch.setattr(Branches, name, broken)
    assert [unit.answers for unit in engine.generate(units)] != expected


LENGTHS = st.tuples(st.integers(1, 60), st.lists(st.integers(1, 20), min_size=1, max_size=4))


@given(st.lists(LENGTHS, max_size=12), st.integers(20, 400))
def test_batches_are_within_the_budget_and_lose_nothing(lengths, budget):
    units = {}
    for k, (shared, suffixes) in enumerate(lengths):
        prompts = tuple(
            Prompt(task=f"t{j}", num_prompt_tokens=0, input_ids=(7,) * shared + (j + 1,) * length)
            for j, length in enumerate(suffixes)
        )
        unit = PreparedUnit(unit_id=str(k), media_id="", uri="", prompts=prompts)
        (units[k],) = [roots_of(unit, {p.task: 3 for p in prompts}, [7])]
        (root,) = units[k]
        assert root.prefix == (7,) * shared
        assert [b.suffix for b in root.branches] == [p.input_ids[shared:] for p in prompts]
    limit = BatchLimit(
        memory=ModelMemory(size=PUBLISHED["2B"]),
        answers=AnswerLengths({f"t{j}": 3 for j in range(4)}),
        max_tokens=budget,
        free_bytes=None,
    )
    batches = list(unit_batches(units, limit.fits))
    assert sorted(k for batch in batches for k in batch) == list(units)
    for batch in batches:
        roots = [root for k in batch for root in units[k]]
        assert limit.shape(roots).cached_tokens <= budget or len(batch) == 1
        pieces = list(split(roots[0], limit.fits))
        assert sum((piece.branches for piece in pieces), ()) == roots[0].branches
        own = max(budget - len(roots[0].prefix), budget // 4)
        for piece in pieces:
            added = limit.shape([piece]).cached_tokens - len(piece.prefix)
            assert added <= own or len(piece.branches) == 1
        if (parts := halves(roots[:1])) is None:
            assert len(roots[0].branches) == 1
        else:
            assert sum((part.branches for half in parts for part in half), ()) == roots[0].branches


def test_without_media_all_but_the_last_token_is_the_root():
    prompt = Prompt(task="t", num_prompt_tokens=3, input_ids=(1, 2, 3))
    unit = PreparedUnit(unit_id="u", media_id="", uri="", prompts=(prompt,))
    (root,) = roots_of(unit, {"t": 5}, [7])
    assert (root.prefix, root.branches[0].suffix) == ((1, 2), (3,))
