"""What fits into a batch: by tokens or by memory, with answers of expected length."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.engines.transformers import limit as limits
from pipeline.engines.transformers.batches import Branch, Root, roots_of, split, unit_batches
from pipeline.engines.transformers.decoding import AnswersTooLong
from pipeline.engines.transformers.engine import TransformersEngine
from pipeline.engines.transformers.generator import Generator
from pipeline.engines.transformers.limit import AnswerLengths, BatchLimit, batch_limit
from pipeline.model.memory import CPU_BATCH_TOKENS, ModelMemory, usable_bytes
from pipeline.model.sizes import GPUS, PUBLISHED
from pipeline.workers.free_memory import free_bytes
from schemas.job.job import Job
from schemas.tables.media import Media, Sampling
from schemas.tables.unit import PreparedUnit, Prompt
from tests.support.counters import allocated_peak
from tests.support.job_files import TINY_BUDGET, make_job
from tests.support.model_sizes import CONFIGS, empty_model, filled_model
from tests.support.prepared import media_items, prepare_units

FILES = ("images/scene-0.jpg", "images/wide.png", "clips/h264-bframes.mp4", "clips/variable.mkv")
TASKS = ("caption", "events", "ocr", "text_spans", "objects")
MEMORY = ModelMemory(size=PUBLISHED["4B"])
MEDIA = Media(media_type="video", width=1920, height=1080)
SAMPLING = Sampling(
    num_frames=120,
    resized_height=480,
    resized_width=832,
    grid_thw=(60, 30, 52),
    num_vision_tokens=23_400,
)
"""What the model sees of 60 s of 1080p, by the default budget."""


def window(name: str, max_new_tokens: int = 512) -> Root:
    """A default window of 60 s with five tasks: 24,000 tokens that they share."""
    prompts = [Prompt(task=task, num_prompt_tokens=24_060, num_own_tokens=60) for task in TASKS]
    branches = [Branch(prompt=p, suffix=(1,) * 60, max_new_tokens=max_new_tokens) for p in prompts]
    unit = PreparedUnit(
        unit_id=name, media_id=name, uri="", media=MEDIA, sampling=SAMPLING, prompts=tuple(prompts)
    )
    return Root(unit=unit, prefix=(7,) * 24_000, branches=tuple(branches))


def limit(max_tokens: int | None, max_new_tokens: int = 512, free: int | None = None) -> BatchLimit:
    answers = AnswerLengths(dict.fromkeys(TASKS, max_new_tokens))
    return BatchLimit(memory=MEMORY, answers=answers, max_tokens=max_tokens, free_bytes=free)


@pytest.mark.parametrize("max_new_tokens", [512, 8192])
def test_a_unit_is_not_split_because_its_prefix_is_long(max_new_tokens):
    """Its prefix is cached in any case; what its branches add is little beside it."""
    root = window("a", max_new_tokens)
    (piece,) = split(root, limit(16_384, max_new_tokens).fits)
    assert piece == root


def test_a_unit_is_split_by_what_its_branches_add():
    found = limit(16_384, 8192)
    found.answers.add(TASKS * 8, [4000] * 40)
    assert [len(piece.branches) for piece in split(window("a", 8192), found.fits)] == [1] * 5
    assert len(list(split(window("a", 8192), limit(None, 8192, free=40 * 10**9).fits))) == 1


def test_copies_of_a_prefix_are_counted():
    """FlashAttention takes no mask of branches, so each has its root's prefix in the cache."""
    shared = limit(None, free=40 * 10**9)
    copied = dataclasses.replace(shared, copies_prefix=True)
    units = {k: [window(str(k))] for k in range(20)}
    sizes = [len(next(unit_batches(units, each.fits))) for each in (shared, copied)]
    assert sizes[0] > 4 * sizes[1] >= 4
    assert copied.shape(units[0]).cached_tokens == 5 * (24_000 + 60 + 256)
    few = dataclasses.replace(copied, max_tokens=60_000, free_bytes=None)
    assert [len(piece.branches) for piece in split(window("a"), few.fits)] == [2, 2, 1]


def test_twelve_default_windows_are_one_batch_on_an_h100():
    free = usable_bytes(GPUS["h100"].memory_bytes) - MEMORY.weight_bytes
    units = {k: [window(str(k))] for k in range(40)}
    batches = [len(batch) for batch in unit_batches(units, limit(None, free=free).fits)]
    assert sum(batches) == 40 and batches[0] >= 12
    half = [len(batch) for batch in unit_batches(units, limit(None, free=free // 2).fits)]
    assert 0.4 < half[0] / batches[0] < 0.5


def test_answers_reserve_what_they_are_expected_to_need():
    answers = AnswerLengths({"caption": 8192, "moments": 100})
    assert (answers.expected("caption"), answers.expected("moments")) == (256, 100)
    answers.add(["caption"] * 100, list(range(1, 101)))
    assert 96 <= answers.expected("caption") <= 120
    assert answers.expected("moments") == 100
    answers.add(["caption"] * 100, AnswersTooLong([300] * 100, {}).expected)
    assert answers.expected("caption") >= 600
    answers.add(["caption"] * 300, [8192] * 300)
    assert answers.expected("caption") == 8192
    answers.add(["caption"] * 300, [5] * 300)
    assert answers.expected("caption") < 10


def test_memory_on_a_gpu_is_what_is_free_without_a_tenth(monkeypatch):
    """Of 80 GB, 10 are taken by another program and 9 by the weights."""
    gb = 10**9
    model = SimpleNamespace(
        config=empty_model(CONFIGS["4B"], torch.bfloat16).config,
        dtype=torch.bfloat16,
        device=torch.device("cuda", 0),
    )
    numbers = {"mem_get_info": (60 * gb, 80 * gb), "memory_reserved": 10 * gb}
    for name, value in (numbers | {"memory_allocated": 9 * gb}).items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    answers = AnswerLengths({})
    found = batch_limit(model, make_job(), answers)
    assert found.memory == MEMORY
    assert (found.max_tokens, found.free_bytes) == (None, (72 - 10 - 9) * gb)
    shared = batch_limit(model, make_job(resources={"gpus_per_replica": 0.5}), answers)
    assert shared.free_bytes == (36 - 9) * gb
    given = batch_limit(model, make_job(resources={"max_batch_tokens": 5000}), answers)
    assert (given.max_tokens, given.free_bytes) == (5000, None)


def small_job(checkpoint: Path, **sections) -> Job:
    tasks = [{task: {"max_new_tokens": 40}} for task in ("caption", "ocr", "text_spans")]
    defaults = {"tasks": tasks, "budget": TINY_BUDGET, "generation": {"retry": None}}
    return make_job(checkpoint, **defaults | sections)


@pytest.fixture(scope="module")
def units(archive: Path, checkpoint: Path) -> list[PreparedUnit]:
    return prepare_units(small_job(checkpoint), media_items(archive, FILES))


@pytest.fixture(scope="module")
def expected(checkpoint: Path, units) -> list:
    engine = TransformersEngine(small_job(checkpoint), num_threads=1)
    assert engine.generator.limit.max_tokens == CPU_BATCH_TOKENS
    assert 0 < engine.generator.limit.free_bytes <= free_bytes()
    answered = engine.generate(units)
    assert max(raw.num_output_tokens for unit in answered for raw in unit.answers) == 40
    return [unit.answers for unit in answered]


@pytest.fixture
def failures(monkeypatch) -> list[int]:
    """How many answers each batch had that did not fit."""
    found: list[int] = []

    class Counted(AnswersTooLong):
        def __init__(self, lengths, finished):
            super().__init__(lengths, finished)
            found.append(len(self.expected))

    monkeypatch.setattr("pipeline.engines.transformers.decoding.AnswersTooLong", Counted)
    return found


def test_answers_longer_than_expected_are_finished_in_smaller_batches(
    checkpoint, units, expected, monkeypatch, failures
):
    """Nothing is lost, no answer changes, and the next batches expect as much."""
    monkeypatch.setattr(limits, "START_ANSWER_TOKENS", 2)
    images = units[:2]
    job = small_job(checkpoint, resources={"max_batch_tokens": 500})
    engine = TransformersEngine(job, num_threads=1)
    assert [unit.answers for unit in engine.generate(images)] == expected[:2]
    assert failures == [6]  # all answers of both units
    assert engine.generator.limit.answers.expected("caption") == 40
    failures.clear()
    assert [unit.answers for unit in engine.generate(images)] == expected[:2]
    assert failures == []


def test_units_that_do_not_fit_together_keep_their_own_answers(checkpoint, units, expected):
    """Half of a batch may still be too large, after its answers were longer than expected."""
    job = small_job(checkpoint, resources={"max_batch_tokens": 256})
    generator = TransformersEngine(job, num_threads=1).generator
    lengths = {question.name: question.max_new_tokens for question in job.questions()}
    pad_ids = generator.prompter.pad_ids.values()
    roots = [roots_of(unit, lengths, pad_ids) for unit in units[:3]]
    assert not generator.limit.fits([root for of_unit in roots for root in of_unit])
    answered = generator.answer(roots, job.generation)
    found = [
        tuple(of_unit[prompt.task] for prompt in unit.prompts)
        for unit, of_unit in zip(units, answered, strict=False)
    ]
    assert found == expected[:3]


def test_what_is_finished_is_not_expected_to_be_longer():
    assert AnswersTooLong([200, 900], {0: "an answer"}).expected == [200, 1800]


def test_a_unit_whose_answers_are_longer_is_finished_in_parts(
    checkpoint, units, expected, monkeypatch, failures
):
    monkeypatch.setattr(limits, "START_ANSWER_TOKENS", 2)
    monkeypatch.setattr(limits, "_MIN_ANSWERS", 10_000)
    monkeypatch.setattr(AnswerLengths, "expected", lambda self, task: 2)
    job = small_job(checkpoint, resources={"max_batch_tokens": 256})
    answered = TransformersEngine(job, num_threads=1).generate(units)
    assert [unit.answers for unit in answered] == expected
    assert 3 in failures  # all answers of one unit


def test_a_unit_that_runs_out_of_memory_is_answered_in_parts(
    checkpoint, units, expected, monkeypatch
):
    engine = TransformersEngine(small_job(checkpoint), num_threads=1)
    original, sizes = engine.generator.answer, []

    def answer(some, generation):
        sizes.append(sum(len(root.branches) for roots in some for root in roots))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(some, generation)

    monkeypatch.setattr(engine.generator, "answer", answer)
    answered = engine.generate(units)
    assert [unit.answers for unit in answered] == expected
    assert sizes.count(1) == sum(len(unit.prompts) for unit in units)


WIDE = {
    "text_config": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_scaling": {
            "mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default",
        },
    },
    "vision_config": {
        "depth": 4, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16,
        "out_hidden_size": 1024, "deepstack_visual_indexes": [0, 1, 2],
    },
}  # fmt: skip
"""Layers of published widths."""


def write_wide_checkpoint(source: Path, folder: Path) -> Path:
    """The test's checkpoint with 4 wide layers of each tower, and weights that are not random."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    for name, values in WIDE.items():
        config[name] |= values
    model = filled_model(config, torch.float32)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def wide(checkpoint: Path, tmp_path_factory) -> Path:
    return write_wide_checkpoint(checkpoint, tmp_path_factory.mktemp("wide") / "model")


EIGHT = [
    *({task: {"max_new_tokens": 40}} for task in TASKS[:1] + TASKS[2:4]),
    *({"custom": {"prompt": f"{k}?", "max_new_tokens": 40, "name": f"q{k}"}} for k in range(5)),
]
LONG = [
    {"custom": {"prompt": "What is it? " * 10 + str(k), "max_new_tokens": 12, "name": f"q{k}"}}
    for k in range(8)
]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("names", "tasks"),
    [(FILES[:1] * 4, EIGHT), (FILES[:1], LONG), (FILES[3:4], TASKS[:1])],
    ids=["answers", "questions", "clip"],
)
def test_a_batch_takes_the_memory_that_is_predicted(wide, archive, dtype, names, tasks):
    """Largest: the cache; a pass over questions; the vision tower. By torch's allocator (CPU)."""
    job = make_job(
        wide,
        model={"source": str(wide), "dtype": dtype},
        tasks=tasks,
        budget={"image_tokens": [16, 16], "frame_tokens": [4, 64], "unit_tokens": 512},
        generation={"retry": None, "constrained": False, "max_new_tokens": 12},
    )
    generator = Generator(job)
    units = prepare_units(job, media_items(archive, names))
    maxima = {question.name: question.max_new_tokens for question in job.questions()}
    pads = generator.prompter.pad_ids.values()
    roots = [
        roots_of(dataclasses.replace(unit, unit_id=str(k)), maxima, pads)
        for k, unit in enumerate(units)
    ]
    shape = generator.limit.shape([root for some in roots for root in some])
    memory = generator.limit.memory
    measured, _ = allocated_peak(lambda: generator.answer(roots, job.generation))
    assert memory.batch_bytes(shape) == pytest.approx(measured, rel=0.1)
    weights = sum(parameter.nbytes for parameter in generator.model.parameters())
    assert memory.weight_bytes == weights
