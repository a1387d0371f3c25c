"""Vectors of the transformers engine, against transformers' own forward of one prompt at a time."""

import base64
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from pipeline.engines.transformers.engine import TransformersEngine
from schemas.errors import ModelError
from schemas.job.job import Job
from schemas.job.task_spec import DEFAULT_INSTRUCTION
from schemas.tables.unit import AnsweredUnit, PreparedUnit
from scripts.demo_model.tiny_checkpoint import write_tiny_checkpoint
from tests.support.chat_templates import MODEL_OPENS, with_template
from tests.support.embedding import expected_ids, last_state, load, make_embedding
from tests.support.family import HYBRIDS, family_checkpoint
from tests.support.job_files import TINY_BUDGET, make_job
from tests.support.messages import SYSTEM, image, read, text, user
from tests.support.prepared import media_items, prepare_units

FILES = (
    "images/scene-0.jpg",
    "images/tiny.png",
    "images/wide.png",
    "clips/h264-bframes.mp4",
    "clips/one-frame.mp4",
)
INSTRUCTION = "Retrieve images relevant to the user's query."


def embedding_job(source: Path, tasks=("embedding",), **sections) -> Job:
    return make_job(source, tasks=list(tasks), **{"budget": TINY_BUDGET} | sections)


@pytest.fixture(scope="module")
def embedder(checkpoint: Path, tmp_path_factory) -> Path:
    return make_embedding(checkpoint, tmp_path_factory.mktemp("embedder"))


@pytest.fixture(scope="module")
def engine(embedder: Path) -> TransformersEngine:
    return TransformersEngine(embedding_job(embedder), num_threads=1)


@pytest.fixture(scope="module")
def units(archive: Path, embedder: Path) -> list[PreparedUnit]:
    return prepare_units(embedding_job(embedder), media_items(archive, FILES))


def vectors(answered: list[AnsweredUnit]) -> dict[tuple[str, str], np.ndarray]:
    """The engine's vectors, by unit and task."""
    assert [unit.error for unit in answered] == [None] * len(answered)
    return {
        (unit.unit_id, raw.task): np.frombuffer(base64.b64decode(raw.raw_text), "<f4")
        for unit in answered
        for raw in unit.answers
    }


def test_prompts_are_those_of_the_makers_code(embedder: Path, units):
    for unit in units:
        (prompt,) = unit.prompts
        assert list(prompt.input_ids) == expected_ids(embedder, unit, DEFAULT_INSTRUCTION)
        assert prompt.num_prompt_tokens == len(prompt.input_ids)


def test_a_padded_batch_has_the_vectors_of_transformers_own_forward(
    engine: TransformersEngine, embedder: Path, units, monkeypatch: pytest.MonkeyPatch
):
    sizes = []
    prefill = engine.generator.prefill
    monkeypatch.setattr(
        engine.generator, "prefill", lambda roots: sizes.append(len(roots)) or prefill(roots)
    )
    found = vectors(engine.generate(units))
    assert len({len(unit.prompts[0].input_ids) for unit in units}) > 1
    assert max(sizes) > 1, "no batch was padded"
    model = load(embedder)
    for unit in units:
        ids = expected_ids(embedder, unit, DEFAULT_INSTRUCTION)
        expected = last_state(model, unit, ids)
        vector = found[unit.unit_id, "embedding"]
        assert vector.dtype == np.float32 and vector.shape == (64,)
        np.testing.assert_allclose(vector, expected, atol=1e-5, rtol=0)


def test_a_long_prompt_in_chunks_has_the_same_vector(
    engine: TransformersEngine, units, monkeypatch: pytest.MonkeyPatch
):
    whole = vectors(engine.generate(units))
    monkeypatch.setattr("pipeline.engines.transformers.prefix.PREFILL_CHUNK_TOKENS", 48)
    for key, vector in vectors(engine.generate(units)).items():
        np.testing.assert_allclose(vector, whole[key], atol=1e-5, rtol=0)


def test_nothing_is_generated_and_fed_tokens_are_the_planned_ones(engine, units):
    for answered, unit in zip(engine.generate(units), units, strict=True):
        (raw,), (prompt,) = answered.answers, unit.prompts
        assert raw.num_prompt_tokens == prompt.num_prompt_tokens
        assert (raw.num_output_tokens, raw.finish_reason) == (0, "stop")
        assert unit.predicted_cost == prompt.num_prompt_tokens


def test_another_number_of_tokens_than_planned_is_the_units_error(engine, units, monkeypatch):
    prefill = engine.generator.prefill

    def loses_a_token(roots):
        prefix = prefill(roots)
        prefix.mask[0, -1] = False
        return prefix

    monkeypatch.setattr(engine.generator, "prefill", loses_a_token)
    (answered,) = engine.generate(units[:1])
    assert answered.error.type == "token_mismatch"


def test_a_small_memory_forms_more_batches_and_the_same_vectors(engine, embedder: Path, units):
    small = embedding_job(embedder, resources={"max_batch_tokens": 256})
    tight = TransformersEngine(small, num_threads=1)
    prefill, sizes = tight.generator.prefill, []
    tight.generator.prefill = lambda roots: sizes.append(len(roots)) or prefill(roots)
    found = vectors(tight.generate(units))
    assert len(sizes) > 1
    for key, vector in vectors(engine.generate(units)).items():
        np.testing.assert_allclose(found[key], vector, atol=1e-5, rtol=0)


def test_several_embeddings_of_a_unit_have_their_instructions(embedder: Path, archive: Path):
    tasks = ["embedding", {"search": {"task": "embedding", "instruction": INSTRUCTION[:-1]}}]
    job = embedding_job(embedder, tasks)
    units = prepare_units(job, media_items(archive, FILES[:2]))
    found = vectors(TransformersEngine(job, num_threads=1).generate(units))
    model = load(embedder)
    for unit in units:
        assert (
            unit.predicted_cost
            == unit.num_fed_tokens
            == sum(prompt.num_prompt_tokens for prompt in unit.prompts)
        )
        for task, instruction in (("embedding", DEFAULT_INSTRUCTION), ("search", INSTRUCTION)):
            expected = last_state(model, unit, expected_ids(embedder, unit, instruction))
            np.testing.assert_allclose(found[unit.unit_id, task], expected, atol=1e-5, rtol=0)
        ours, other = (found[unit.unit_id, task] for task in ("embedding", "search"))
        assert np.abs(ours - other).max() > 1e-2


def test_conversations_are_embedded_text_alone_and_with_media(embedder: Path, archive: Path):
    """A query in words has a vector beside those of the media."""
    job = embedding_job(embedder)
    turns = [
        [user(text("a red circle"))],
        [user(image("images/tiny.png"), text("a red circle"))],
        [SYSTEM, user(text("a red circle"))],
    ]
    units = prepare_units(job, read(archive, *turns))
    engine = TransformersEngine(job, num_threads=1)
    decoded = [engine.generator.prompter.tokenizer.decode(u.prompts[0].input_ids) for u in units]
    begin = f"<|im_start|>system\n{DEFAULT_INSTRUCTION}<|im_end|>\n<|im_start|>user\n"
    assert decoded[0] == f"{begin}a red circle<|im_end|>\n<|im_start|>assistant\n"
    assert decoded[1].startswith(f"{begin}<|vision_start|><|image_pad|>")
    assert decoded[2].startswith(f"<|im_start|>system\n{SYSTEM['content']}<|im_end|>\n")
    assert DEFAULT_INSTRUCTION not in decoded[2]
    found = vectors(engine.generate(units))
    model = load(embedder)
    for unit in (units[0], units[2]):
        expected = last_state(model, unit, list(unit.prompts[0].input_ids))
        np.testing.assert_allclose(found[unit.unit_id, "embedding"], expected, atol=1e-5, rtol=0)


def test_the_token_that_a_tokenizer_adds_is_the_last_one(
    embedder: Path, archive: Path, tmp_path: Path
):
    """A checkpoint may take the vector from a token that its processor puts at the end."""
    adds = make_embedding(embedder, tmp_path / "adds")
    file = adds / "tokenizer.json"
    content = json.loads(file.read_text())
    (end,) = (t["id"] for t in content["added_tokens"] if t["content"] == "<|endoftext|>")
    sequence, special = {"Sequence": {"id": "A", "type_id": 0}}, "<|endoftext|>"
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [sequence, {"SpecialToken": {"id": special, "type_id": 0}}],
        "pair": [sequence, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {special: {"id": special, "ids": [end], "tokens": [special]}},
    }
    file.write_text(json.dumps(content))
    for task, last in (("embedding", end), ("caption", None)):
        (unit,) = prepare_units(embedding_job(adds, [task]), media_items(archive, FILES[:1]))
        ids = list(unit.prompts[0].input_ids)
        assert (ids[-1] == end) == (last == end)
        if last:
            assert ids == expected_ids(adds, unit, DEFAULT_INSTRUCTION)


def test_a_template_gets_no_switch_of_reasoning(embedder: Path, archive: Path, tmp_path: Path):
    """The makers' code gives it none, and the checkpoint was trained with what it writes then."""
    source = with_template(make_embedding(embedder, tmp_path / "e"), MODEL_OPENS)
    (unit,) = prepare_units(embedding_job(source), media_items(archive, FILES[:1]))
    assert list(unit.prompts[0].input_ids) == expected_ids(source, unit, DEFAULT_INSTRUCTION)
    tokenizer = AutoTokenizer.from_pretrained(source)
    assert "<think>" not in tokenizer.decode(unit.prompts[0].input_ids)
    (other,) = prepare_units(embedding_job(source, ["caption"]), media_items(archive, FILES[:1]))
    assert "<think>" in tokenizer.decode(other.prompts[0].input_ids)


@pytest.mark.parametrize("moe", [False, True])
def test_a_checkpoint_may_lack_the_output_embedding(archive: Path, tmp_path: Path, moe: bool):
    source = make_embedding(write_tiny_checkpoint(tmp_path / "whole", moe=moe), tmp_path / "one")
    job = embedding_job(source)
    units = prepare_units(job, media_items(archive, FILES[:2]))
    whole = vectors(TransformersEngine(job, num_threads=1).generate(units))
    weights = load_file(source / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    found = vectors(TransformersEngine(job, num_threads=1).generate(units))
    for key, vector in whole.items():
        np.testing.assert_array_equal(found[key], vector)
    with pytest.raises(ModelError, match="lm_head"):
        TransformersEngine(make_job(source), num_threads=1)


@pytest.mark.parametrize("model_type", HYBRIDS)
def test_states_of_linear_layers_are_of_no_padding(
    archive: Path, tmp_path: Path, tmp_path_factory, model_type: str
):
    """A checkpoint of a later family may embed, too."""
    source = make_embedding(family_checkpoint(tmp_path_factory, model_type), tmp_path / "e")
    job = embedding_job(source)
    units = prepare_units(job, media_items(archive, FILES))
    found = vectors(TransformersEngine(job, num_threads=1).generate(units))
    model = load(source)
    for unit in units:
        expected = last_state(model, unit, expected_ids(source, unit, DEFAULT_INSTRUCTION))
        np.testing.assert_allclose(found[unit.unit_id, "embedding"], expected, atol=1e-5, rtol=0)


def test_a_failed_unit_does_not_end_the_others(engine, units):
    prompt = units[0].prompts[0]
    wrong = dataclasses.replace(prompt, num_prompt_tokens=prompt.num_prompt_tokens + 1)
    broken = dataclasses.replace(units[0], prompts=(wrong,))
    first, *others = engine.generate([broken, *units[1:]])
    assert first.error.type == "token_mismatch"
    assert vectors(others).keys() == {(unit.unit_id, "embedding") for unit in units[1:]}
