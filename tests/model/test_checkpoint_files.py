"""Files that a checkpoint may lack: only the hub's own "not found" means that there is none."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
)

from jobs.plan.embedding import Embedding, read_embedding
from pipeline.model.checkpoint import inspect_checkpoint
from pipeline.model.checkpoint_files import optional_json
from pipeline.model.family import PROCESSOR_FILES
from schemas.errors import ModelError
from schemas.job.model import Model
from tests.support.embedding import make_embedding
from tests.support.family import family_checkpoint

SOURCE, COMMIT = "some/checkpoint", "0" * 40
FILES = ("modules.json", "config_sentence_transformers.json", "generation_config.json")


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of SOURCE in a hub's cache, still empty; there is no network."""
    folder = tmp_path / "hub" / "models--some--checkpoint"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return snapshot


def response(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("HEAD", "https://hub/some/checkpoint"))


def unreachable() -> LocalEntryNotFoundError:
    error = LocalEntryNotFoundError("An error happened while trying to locate the file")
    error.__cause__ = httpx2.ConnectTimeout("timed out after 10 s")
    return error


def answers(monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception]) -> None:
    """Let the hub's client raise for every file."""

    def download(*args: str, **options: str | None) -> str:
        raise error()

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (unreachable, "timed out after 10 s"),
        (lambda: HfHubHTTPError("401 Unauthorized", response=response(401)), "401 Unauthorized"),
        (lambda: GatedRepoError("gated: ask for access", response=response(403)), "gated: ask"),
    ],
    ids=["timeout", "401", "gated"],
)
def test_a_hub_that_does_not_answer_has_not_said_no(cached, monkeypatch, name, error, message):
    (cached / "config.json").write_text("{}")
    answers(monkeypatch, error)
    with pytest.raises(
        ModelError, match=f"not known whether some/checkpoint has a {name}.*{message}"
    ):
        optional_json(SOURCE, None, name)


@pytest.mark.parametrize("name", FILES)
def test_its_own_not_found_is_none(cached, monkeypatch, name):
    answers(monkeypatch, lambda: RemoteEntryNotFoundError("404", response=response(404)))
    assert optional_json(SOURCE, None, name) is None


def test_without_a_hub_the_cache_is_what_is_known(cached, checkpoint, tmp_path):
    """Its files, its note of an earlier "not found", and a checkpoint with its weights."""
    shutil.copy(checkpoint / "config.json", cached / "config.json")
    with pytest.raises(ModelError, match="not known whether some/checkpoint has a modules.json"):
        read_embedding(SOURCE, None, 64)
    mark = cached.parent.parent / ".no_exist" / COMMIT / "modules.json"
    mark.parent.mkdir(parents=True)
    mark.touch()
    assert read_embedding(SOURCE, None, 64) is None
    mark.unlink()
    shutil.copy(checkpoint / "model.safetensors", cached / "model.safetensors")
    assert read_embedding(SOURCE, None, 64) is None
    made = make_embedding(checkpoint, tmp_path / "embedding")
    shutil.copytree(made, cached, dirs_exist_ok=True)
    assert read_embedding(SOURCE, None, 64) == Embedding(size=64)


def test_the_recommended_generation_is_not_left_out_silently(cached, checkpoint, monkeypatch):
    """A job would answer greedily where its makers sample."""
    for name in ("config.json", *PROCESSOR_FILES.values()):
        shutil.copy(checkpoint / name, cached / name)
    mark = cached.parent.parent / ".no_exist" / COMMIT / "processor_config.json"
    mark.parent.mkdir(parents=True)
    mark.touch()
    with pytest.raises(ModelError, match="whether some/checkpoint has a generation_config.json"):
        inspect_checkpoint(Model(source=SOURCE))
    shutil.copy(checkpoint / "generation_config.json", cached / "generation_config.json")
    assert inspect_checkpoint(Model(source=SOURCE)).generation["temperature"] == 0.7


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_json_is_named(checkpoint, tmp_path, name):
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    (folder / name).write_text("{ cut sh")
    with pytest.raises(ModelError, match=rf"{name} cannot be read: .*copy the checkpoint again"):
        optional_json(str(folder), None, name)
    (folder / name).unlink()
    assert optional_json(str(folder), None, name) is None


@pytest.mark.parametrize(
    ("model_type", "part", "name", "value"),
    [
        ("qwen4_exp", "text_config", "indexer_n_heads", None),
        ("qwen4_exp", "text_config", "ngram_size", "three"),
        ("qwen3_5", "text_config", "linear_num_value_heads", None),
        ("qwen3_5_moe", "text_config", "layer_types", 7),
        ("qwen3_vl_moe", "text_config", "num_experts_per_tok", None),
        ("qwen3_vl", "vision_config", "depth", "deep"),
        ("qwen3_vl", "text_config", "max_position_embeddings", "long"),
    ],
)
def test_a_wrong_size_is_named(model_type, part, name, value, tmp_path, tmp_path_factory):
    folder = shutil.copytree(family_checkpoint(tmp_path_factory, model_type), tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    config[part][name] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=rf"config.json of .* cannot be used: .*{name}"):
        inspect_checkpoint(Model(source=str(folder)))


def test_a_checkpoint_without_an_indexer_is_named(tmp_path, tmp_path_factory):
    """transformers accepts its configuration, and builds no model of it."""
    folder = shutil.copytree(family_checkpoint(tmp_path_factory, "qwen4_exp"), tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    config["text_config"] = {k: v for k, v in text.items() if not k.startswith("indexer_")}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"it does not say text_config\.indexer_head_dim"):
        inspect_checkpoint(Model(source=str(folder)))
