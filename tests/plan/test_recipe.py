"""What is part of a recipe, and what is not."""

import pytest

from pipeline.model.checkpoint import inspect_checkpoint
from pipeline.plan.recipe import differences, recipe, recipe_id, recipe_ids
from schemas.errors import ModelError
from schemas.job.job import check_job
from schemas.job.model import Model

BASE = {"input": {"manifest": "m.jsonl"}, "output": "out", "tasks": ["caption", "objects"]}


def identity(weights: str = "w", **changes) -> str:
    return recipe_id(recipe(check_job(BASE | changes, "test"), weights))


@pytest.mark.parametrize(
    "changes",
    [
        {"output": "elsewhere"},
        {"input": {"scan": "s3://b/"}},
        {"name": "other"},
        {"resources": {"replicas": 4, "max_batch_tokens": 999}},
        {"storage_options": {"s3": {"key": "k"}}},
        {"sampling": {"decoder": "pyav"}},
        {"model": {"source": "/moved/checkpoint", "device": "cpu"}},
    ],
)
def test_what_does_not_determine_answers_is_not_in_it(changes: dict):
    assert identity(**changes) == identity()


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": "other"},
        {"tasks": ["caption"]},
        {"tasks": ["caption", {"objects": {"labels": ["car"]}}]},
        {"tasks": [{"caption": {"prompt": "In one word?"}}, "objects"]},
        {"sampling": {"fps": 1.0}},
        {"budget": {"unit_tokens": 100}},
        {"generation": {"temperature": 0.5}},
        {"generation": {"temperature": 0.5, "seed": 1}},
        {"model": {"dtype": "float32"}},
    ],
)
def test_what_determines_answers_is_in_it(changes: dict):
    assert identity(**changes) != identity()


def test_differences_are_named():
    old = recipe(check_job(BASE, "t"), "w")
    new = recipe(check_job(BASE | {"sampling": {"fps": 1.0}, "tasks": ["caption"]}, "t"), "w")
    assert differences(old, new) == ["sampling.fps", "tasks.objects"]


def test_weights_are_known_by_content_not_by_place(checkpoint, tmp_path):
    import shutil

    moved = shutil.copytree(checkpoint, tmp_path / "moved")
    first = inspect_checkpoint(Model(source=str(checkpoint)))
    assert inspect_checkpoint(Model(source=str(moved))) == first
    weights = moved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    assert inspect_checkpoint(Model(source=str(moved))).identity != first.identity


def test_a_checkpoint_that_is_none_says_so(tmp_path, checkpoint):
    import json
    import shutil

    with pytest.raises(ModelError, match="neither a checkpoint folder nor a model"):
        inspect_checkpoint(Model(source=str(tmp_path)))
    with pytest.raises(ModelError, match="there is no folder /nowhere/at/all"):
        inspect_checkpoint(Model(source="/nowhere/at/all"))
    cut = shutil.copytree(checkpoint, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"model\.safetensors cannot be read"):
        inspect_checkpoint(Model(source=str(cut)))
    bert = tmp_path / "bert"
    bert.mkdir()
    (bert / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="is a 'bert' model; Reelscribe runs Qwen3-VL"):
        inspect_checkpoint(Model(source=str(bert)))
    bare = shutil.copytree(
        checkpoint, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors")
    )
    with pytest.raises(ModelError, match=r"has no \*\.safetensors weights"):
        inspect_checkpoint(Model(source=str(bare)))
    with pytest.raises(ModelError, match="over the checkpoint's context of 262144"):
        inspect_checkpoint(Model(source=str(checkpoint), max_model_len=300_000))


def test_a_seed_counts_only_where_something_is_drawn():
    """Greedy answers draw nothing, but a second attempt at them does."""
    greedy = {"retry": None}
    assert identity(generation=greedy) == identity(generation=greedy | {"seed": 1})
    assert identity() != identity(generation={"seed": 1})


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"sampling": {"fps": 1.0}}, {"video", "messages"}),
        ({"sampling": {"segmentation": {"kind": "shots"}}}, {"video", "messages"}),
        ({"budget": {"unit_tokens": 100}}, {"video", "messages"}),
        ({"budget": {"frame_tokens": [4, 8]}}, {"video", "messages"}),
        ({"budget": {"image_tokens": [4, 8]}}, {"image", "messages"}),
        ({"tasks": ["caption", "objects", "events"]}, {"video"}),
        ({"tasks": ["caption", "objects", "document"]}, {"image"}),
        ({"tasks": ["caption", "objects", "chat"]}, {"messages"}),
        ({"tasks": ["caption"]}, {"image", "video"}),
        ({"generation": {"temperature": 0.5}}, {"image", "video", "messages"}),
        ({"weights": "other"}, {"image", "video", "messages"}),
        ({"sampling": {"decoder": "torchcodec"}}, set()),
    ],
)
def test_a_row_asks_again_only_if_what_concerns_it_changed(changes: dict, kinds: set[str]):
    def ids(weights: str = "w", **changes) -> dict[str, str]:
        return recipe_ids(recipe(check_job(BASE | changes, "test"), weights))._asdict()

    before, now = ids(), ids(**changes)
    changed = {kind for kind in before if before[kind] != now[kind]}
    assert changed == (kinds | {"unread"} if kinds else set())
    assert len(set(now.values())) == 4
