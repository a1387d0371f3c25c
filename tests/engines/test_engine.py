"""The transformers engine, against the model called by hand, one row at a time."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForImageTextToText
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from pipeline.engines.token_sampling import loop_start
from pipeline.engines.transformers.engine import TransformersEngine
from pipeline.model.patches import patches, seen_pixels
from pipeline.model.prompter import Prompter
from schemas.errors import ModelError
from schemas.job.job import Job
from schemas.tables.unit import PreparedUnit
from scripts.demo_model.tiny_checkpoint import write_tiny_checkpoint
from tests.support.job_files import TINY_BUDGET, make_job
from tests.support.prepared import media_items, prepare_units

FILES = (
    "images/scene-0.jpg",
    "images/tiny.png",
    "images/wide.png",
    "clips/h264-bframes.mp4",
    "clips/variable.mkv",
    "clips/one-frame.mp4",
)


def small_job(checkpoint: Path, **sections) -> Job:
    defaults = {
        "tasks": ["caption", "events", "objects"],
        "budget": TINY_BUDGET,
        "generation": {"max_new_tokens": 12},
    }
    return make_job(checkpoint, **defaults | sections)


def prepared(archive: Path, checkpoint: Path, names=FILES, **sections) -> list[PreparedUnit]:
    return prepare_units(small_job(checkpoint, **sections), media_items(archive, names))


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> TransformersEngine:
    return TransformersEngine(small_job(checkpoint), num_threads=2)


@pytest.fixture(scope="module")
def units(archive: Path, checkpoint: Path) -> list[PreparedUnit]:
    return prepared(archive, checkpoint)


def texts(answered) -> list[list[str]]:
    return [[answer.raw_text for answer in unit.answers] for unit in answered]


def by_hand(checkpoint: Path, unit: PreparedUnit, task: str, max_new_tokens: int) -> str:
    """The model's own generate, with pixels, a single row, no padding and nothing shared."""
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    (ids,) = [p.input_ids for p in unit.prompts if p.task == task]
    input_ids = torch.tensor([ids])
    is_image = unit.media.media_type == "image"
    pad = model.config.image_token_id if is_image else model.config.video_token_id
    kind = "image" if is_image else "video"
    pixels = patches(*seen_pixels(unit))
    output = model.generate(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        mm_token_type_ids=(input_ids == pad).long() * (1 if is_image else 2),
        **{
            "pixel_values" if is_image else "pixel_values_videos": pixels,
            f"{kind}_grid_thw": torch.tensor([unit.sampling.grid_thw]),
        },
        max_new_tokens=max_new_tokens,
        do_sample=False,
    )
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True)


def test_a_mixed_batch_answers_as_the_model_does_by_hand(engine, units, checkpoint: Path):
    for unit in engine.generate(units):
        (source,) = [u for u in units if u.unit_id == unit.unit_id]
        assert unit.error is None
        for answer in unit.answers:
            assert answer.raw_text == by_hand(checkpoint, source, answer.task, 12), unit.uri


def test_batches_do_not_change_answers(engine, units):
    together = texts(engine.generate(units))
    assert together == [texts(engine.generate([unit]))[0] for unit in units]
    assert together == texts(engine.generate(units[::-1]))[::-1]


def test_token_budget_forms_the_batches_and_changes_nothing(engine, units, checkpoint: Path):
    small = small_job(checkpoint, resources={"max_batch_tokens": 600})
    tight = TransformersEngine(small, num_threads=2)
    sizes = []
    original = tight.generator.answer_branches

    def counted(roots, *rest):
        sizes.append(tight.generator.limit.shape(roots).cached_tokens)
        return original(roots, *rest)

    tight.generator.answer_branches = counted
    assert texts(tight.generate(units)) == texts(engine.generate(units))
    assert len(sizes) > 3
    assert max(sizes) <= 600


def test_counts_are_of_what_was_fed(engine, units):
    for unit in engine.generate(units):
        planned = {p.task: p.num_prompt_tokens for p in unit.prompts}
        assert {a.task: a.num_prompt_tokens for a in unit.answers} == planned
        for answer in unit.answers:
            assert 1 <= answer.num_output_tokens <= 12
            assert answer.finish_reason == "length" or answer.num_output_tokens <= 12


def test_a_token_mismatch_is_that_units_error_and_no_others(engine, units):
    wrong = units[0].prompts[0]
    lying = dataclasses.replace(wrong, num_prompt_tokens=wrong.num_prompt_tokens + 1)
    broken = dataclasses.replace(units[0], prompts=(lying, *units[0].prompts[1:]))
    answered = engine.generate([broken, *units[1:]])
    assert answered[0].error.type == "token_mismatch"
    assert f"{lying.num_prompt_tokens} prompt tokens were planned" in answered[0].error.message
    assert texts(answered[1:]) == texts(engine.generate(units[1:]))


def test_what_reaches_the_model_is_counted_on_the_tensor(engine, units, monkeypatch):
    """An engine that dropped a token on the way must not go unnoticed."""
    original = engine.generator.prefill

    def lossy(*args):
        prefix = original(*args)
        prefix.mask[0, -1] = False
        return prefix

    monkeypatch.setattr(engine.generator, "prefill", lossy)
    (answered,) = engine.generate([units[0]])
    assert answered.error.type == "token_mismatch"


def test_ids_and_frames_that_disagree_are_an_error_row(engine, units):
    half = units[0].frame_data[: len(units[0].frame_data) // 2]
    broken = dataclasses.replace(units[0], frame_data=half)
    answered = engine.generate([broken, units[1]])
    assert [unit.status for unit in answered] == ["failed", "planned"]
    assert answered[0].error.type == "engine_failed"


def test_failed_units_pass_through(engine, units):
    from schemas.tables.error import ErrorRecord

    error = ErrorRecord(stage="plan", type="media_missing", message="gone")
    answered = engine.generate([units[0].failed(error), units[1]])
    assert answered[0].error == error
    assert answered[0].answers == ()
    assert len(answered[1].answers) == 2


def test_answers_depend_on_the_picture(engine, units):
    black = dataclasses.replace(units[0], frame_data=bytes(len(units[0].frame_data)))
    assert texts(engine.generate([black])) != texts(engine.generate([units[0]]))


def test_each_task_has_its_own_limit(archive: Path, checkpoint: Path):
    tasks = [{"caption": {"max_new_tokens": 3}}, {"objects": {"max_new_tokens": 9}}]
    some = prepared(archive, checkpoint, FILES[:1], tasks=tasks)
    (unit,) = TransformersEngine(small_job(checkpoint, tasks=tasks), num_threads=2).generate(some)
    assert [a.num_output_tokens for a in unit.answers] == [3, 9]
    assert [a.finish_reason for a in unit.answers] == ["length", "length"]


def test_an_answer_ends_at_the_end_of_the_turn(engine, units, checkpoint: Path, monkeypatch):
    answers: list[list[int]] = []
    monkeypatch.setattr(engine.generator.prompter, "decode", lambda ids: str(answers.append(ids)))
    answer = engine.generate([units[0]])[0].answers[0]
    assert answer.finish_reason == "length"
    # Make a token that occurs inside the answer an end token: the answer must end with it.
    ids = answers[0]
    ending = TransformersEngine(small_job(checkpoint), num_threads=2)
    ending.generator.end_ids = [ids[4]]
    stopped = ending.generate([units[0]])[0].answers[0]
    assert stopped.finish_reason == "stop"
    assert stopped.num_output_tokens == ids.index(ids[4]) + 1


def test_sampling_follows_the_seed_and_not_the_batch(units, checkpoint: Path):
    def sampled(seed: int) -> TransformersEngine:
        generation = {"max_new_tokens": 12, "temperature": 0.9, "top_p": 0.95, "seed": seed}
        return TransformersEngine(small_job(checkpoint, generation=generation), num_threads=2)

    first = sampled(1)
    together = texts(first.generate(units))
    assert together == [texts(first.generate([unit]))[0] for unit in units]
    assert together == texts(sampled(1).generate(units))
    assert together != texts(sampled(2).generate(units))


def test_gumbel_noise_samples_from_the_softmax():
    from pipeline.engines.token_sampling import RowSampler

    logits = torch.tensor([[2.0, 1.0, 0.0, float("-inf")]])
    sampler = RowSampler([5], torch.device("cpu"))
    draws = [int(sampler(logits).argmax()) for _ in range(4000)]
    shares = np.bincount(draws, minlength=4) / 4000
    assert np.allclose(shares, torch.softmax(logits[0], 0).numpy(), atol=0.03)


def test_out_of_memory_halves_the_batch_and_then_is_a_row(engine, units, monkeypatch):
    expected = texts(engine.generate(units))
    original = engine.generator.answer

    def scarce(batch, *rest):
        if len(batch) > 2 or any(roots[0].unit is units[3] for roots in batch):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return original(batch, *rest)

    monkeypatch.setattr(engine.generator, "answer", scarce)
    answered = engine.generate(units)
    assert answered[3].error.type == "out_of_memory"
    assert "lower budget.unit_tokens" in answered[3].error.message
    others = [k for k in range(len(units)) if k != 3]
    assert [texts(answered)[k] for k in others] == [expected[k] for k in others]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_mixture_of_experts_is_one_line_of_configuration(
    archive: Path, tmp_path: Path, dtype: str
):
    moe = write_tiny_checkpoint(tmp_path / "moe", moe=True)
    model = {"source": str(moe), "dtype": dtype, "attn_implementation": "eager"}
    some = prepared(archive, moe, FILES[2:4], model=model)
    answered = TransformersEngine(small_job(moe, model=model), num_threads=2).generate(some)
    assert [unit.error for unit in answered] == [None, None]
    assert all(answer.num_output_tokens for unit in answered for answer in unit.answers)


@settings(max_examples=40)
@given(pairs=st.integers(1, 4), height=st.integers(1, 5), width=st.integers(1, 5))
def test_patches_of_videos_are_in_the_models_own_order(pairs: int, height: int, width: int):
    shape = (2 * pairs, 32 * height, 32 * width, 3)
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8))
    normalised = (pixels.to(torch.float32) / 255 - 0.5) / 0.5
    frames = normalised.permute(0, 3, 1, 2)[None]
    expected = Qwen3VLVideoProcessor.patchify(None, frames, 16, 2, 2)[0]
    rows = patches(pixels)
    torch.testing.assert_close(rows, expected.reshape(rows.shape), rtol=0, atol=1e-6)
    assert rows.shape[0] == pairs * 2 * height * 2 * width


def test_a_checkpoint_without_weights_says_so(tmp_path: Path, checkpoint: Path):
    import shutil

    bare = tmp_path / "bare"
    shutil.copytree(checkpoint, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ModelError, match="cannot load"):
        TransformersEngine(small_job(bare))


def test_a_template_that_opens_the_reasoning_is_known(checkpoint: Path):
    prompter = Prompter(str(checkpoint))
    assert not prompter.opens_reasoning
    prompter.tokenizer.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    assert prompter.opens_reasoning


def test_an_answer_that_repeats_itself_is_stopped(archive, checkpoint):
    """A model of random weights soon does, greedily; alone as in a batch with one that does not."""
    options = {"generation": {"max_new_tokens": 160}, "tasks": ["caption"]}
    free = small_job(
        checkpoint, **options | {"generation": {"max_new_tokens": 160, "stop_loops": False}}
    )
    units = prepared(archive, checkpoint, **options)
    whole = [u.answers[0] for u in TransformersEngine(free, num_threads=2).generate(units)]
    engine = TransformersEngine(small_job(checkpoint, **options), num_threads=2)
    stopped = [u.answers[0] for u in engine.generate(units)]
    looped = [s for s in stopped if s.finish_reason == "loop"]
    assert looped
    for before, after in zip(whole, stopped, strict=True):
        if after.finish_reason == "loop":
            assert after.num_output_tokens < before.num_output_tokens == 160
            assert before.raw_text.startswith(after.raw_text.rstrip("\ufffd"))
        else:
            assert after == before
    alone = [engine.generate([unit])[0].answers[0] for unit in units]
    assert alone == stopped


@pytest.mark.parametrize("period", [1, 2, 7, 50, 128])
@pytest.mark.parametrize("before", [0, 1, 30])
def test_a_loop_is_found_where_it_begins(period: int, before: int):
    copies = max(4, -(-64 // period)) + 1
    ids = [*range(1000, 1000 + before), *list(range(period)) * copies]
    tail = ids[-512:]
    found = loop_start(tail, len(ids))
    assert found == max(before + period, len(ids) - len(tail) + period)


@given(ids=st.lists(st.integers(0, 3), max_size=200))
def test_what_is_no_loop_is_left_alone(ids: list[int]):
    found = loop_start(ids, len(ids))
    if found is None:
        assert not any(
            len(ids) >= 64
            and len(ids) >= 4 * p
            and ids[-max(64, 4 * p) : -p] == ids[p - max(64, 4 * p) :]
            for p in range(1, 129)
        )
    else:
        rest = ids[found:]
        period = next(p for p in range(1, 129) if rest[p:] == rest[:-p])
        assert len(rest) >= max(64, 4 * period) - period


def test_rows_of_a_table_are_no_loop():
    """Many alike, but for a number: what OCR of a price list looks like."""
    rows = [[1, 2, 3, 10 + k, 4] for k in range(60)]
    assert loop_start([token for row in rows for token in row][-512:], 300) is None
