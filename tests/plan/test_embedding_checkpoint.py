"""Which checkpoints embed, by their files, and what a job takes from them."""

import json
from pathlib import Path

import pytest

from jobs.plan.embedding import Embedding, filled_in, read_embedding
from schemas.errors import ModelError
from schemas.job.task_spec import DEFAULT_INSTRUCTION
from tests.support.embedding import make_embedding
from tests.support.job_files import make_job


def found(folder: Path) -> Embedding | None:
    return read_embedding(str(folder), None, 64)


def test_a_checkpoint_that_generates_does_not_embed(checkpoint: Path, tmp_path: Path):
    assert found(checkpoint) is None
    only = make_embedding(checkpoint, tmp_path / "only", modules=("Transformer",))
    assert found(only) is None
    (only / "modules.json").write_text("{ no JSON")
    with pytest.raises(ModelError, match=r"modules\.json cannot be read"):
        found(only)


@pytest.mark.parametrize(
    "pooling",
    [
        {"embedding_dimension": 64, "pooling_mode": "lasttoken", "include_prompt": True},
        {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False},
    ],
)
def test_the_pooling_is_read_in_both_forms(checkpoint: Path, tmp_path: Path, pooling):
    folder = make_embedding(checkpoint, tmp_path / "e", pooling=pooling)
    assert found(folder) == Embedding(size=64)


def test_the_default_instruction_is_that_of_the_files(checkpoint: Path, tmp_path: Path):
    prompts = {"prompts": {"query": "Find it.", "document": ""}, "default_prompt_name": "query"}
    folder = make_embedding(checkpoint, tmp_path / "e", prompts=prompts)
    assert found(folder) == Embedding(size=64, instruction="Find it.")
    tasks = ["embedding", {"other": {"task": "embedding", "instruction": "Look"}}]
    job = filled_in(make_job(folder, tasks=tasks), found(folder))
    assert [q.instruction for q in job.questions()] == ["Find it.", "Look."]
    none = filled_in(make_job(folder, tasks=tasks), Embedding(size=64))
    assert [q.instruction for q in none.questions()] == [DEFAULT_INSTRUCTION, "Look."]
    prompts["default_prompt_name"] = None
    assert found(make_embedding(checkpoint, folder, prompts=prompts)) == Embedding(size=64)


@pytest.mark.parametrize(
    ("modules", "pooling", "message"),
    [
        (("Transformer", "Pooling", "Dense"), None, "with Dense in its modules.json"),
        (("Transformer", "Pooling"), {"pooling_mode": "mean"}, "pooling is mean; computed is"),
        (
            ("Transformer", "Pooling"),
            {"pooling_mode_cls_token": True, "pooling_mode_lasttoken": True},
            "pooling is cls and lasttoken;",
        ),
        (("Transformer", "Other", "Pooling"), None, "with Other"),
    ],
)
def test_another_way_to_embed_is_an_error(checkpoint, tmp_path: Path, modules, pooling, message):
    with pytest.raises(ModelError, match=message):
        found(make_embedding(checkpoint, tmp_path / "e", modules=modules, pooling=pooling))


@pytest.mark.parametrize("path", ["../elsewhere", "", "/etc"])
def test_no_file_outside_the_checkpoint_is_read(checkpoint: Path, tmp_path: Path, path: str):
    folder = make_embedding(checkpoint, tmp_path / "e")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.json").write_text('{"pooling_mode": "lasttoken"}')
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["path"] = path
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match="not named in its files"):
        found(folder)


def test_task_and_checkpoint_must_fit(checkpoint: Path):
    embeds = Embedding(size=64)
    with pytest.raises(ModelError, match="needs a checkpoint for embeddings"):
        filled_in(make_job(checkpoint, tasks=["embedding"]), None)
    with pytest.raises(ModelError, match="asks for caption: set `tasks: .embedding.`"):
        filled_in(make_job(checkpoint), embeds)
    large = [{"embedding": {"dimensions": 65}}]
    with pytest.raises(ModelError, match="dimensions is 65, and the vectors of .* have 64"):
        filled_in(make_job(checkpoint, tasks=large), embeds)
    assert filled_in(make_job(checkpoint), None) == make_job(checkpoint)


def test_dimensions_are_filled_in(checkpoint: Path):
    tasks = ["embedding", {"short": {"task": "embedding", "dimensions": 16}}]
    job = filled_in(make_job(checkpoint, tasks=tasks), Embedding(size=64))
    assert [q.dimensions for q in job.questions()] == [64, 16]
