"""Adapters that vLLM would load in part, or not at all, are refused with what to do."""

from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForImageTextToText

from pipeline.engines.vllm.adapter import adapter_args
from schemas.errors import ModelError


@pytest.fixture(scope="module")
def save(checkpoint, tmp_path_factory):
    """Write an adapter, as peft does; returns its folder."""

    def written(**config) -> str:
        folder = tmp_path_factory.mktemp("adapter")
        base = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
        lora = peft.LoraConfig(**config)
        peft.get_peft_model(base, lora).save_pretrained(folder)
        return str(folder)

    return written


def test_an_adapter_of_the_language_model_is_taken(save):
    folder = save(r=12, target_modules=r".*language_model.*(q|v)_proj")
    assert adapter_args(folder) == {"enable_lora": True, "max_loras": 1, "max_lora_rank": 16}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"r": 8, "target_modules": r".*visual.*(qkv|proj)|.*language_model.*q_proj"},
            r"changes \d+ modules of the vision tower, such as .*visual.* merge the adapter",
        ),
        ({"r": 8, "target_modules": "all-linear"}, "modules of the vision tower"),
        ({"r": 8, "target_modules": ["linear_fc1"]}, "modules of the vision tower"),
        ({"r": 600, "target_modules": r".*language_model.*q_proj"}, "rank 600 is over vLLM's"),
        (
            {
                "r": 8,
                "target_modules": r".*language_model.*q_proj",
                "modules_to_save": ["lm_head"],
            },
            "has full modules",
        ),
    ],
)
def test_what_vllm_would_leave_out_is_refused(save, config, message):
    with pytest.raises(ModelError, match=message):
        adapter_args(save(**config))


def test_a_folder_without_weights_is_named(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        adapter_args(str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"no weights", b"\xff" * 64])
def test_weights_that_cannot_be_read_are_named(tmp_path: Path, content: bytes):
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    (tmp_path / "adapter_model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"safetensors cannot be read .*save the adapter again"):
        adapter_args(str(tmp_path))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub's cache with an adapter's configuration alone, saved by an old peft; no network."""
    commit, folder = "0" * 40, tmp_path / "models--some--adapter"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "adapter_config.json").write_text('{"r": 8}')
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)


def test_a_hub_id_without_weights_is_named(hub):
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors of some/adapter cannot"):
        adapter_args("some/adapter")  # not in the cache, and the hub cannot be asked
    for name in ("no/such/folder", "some/other"):
        with pytest.raises(ModelError, match="give a local folder, or a hub id"):
            adapter_args(name)


def test_a_hub_id_whose_weights_are_not_there(hub, monkeypatch):
    """The hub's own answer, without a hub: its client raises for a file that it does not have."""
    import httpx2
    import huggingface_hub
    from huggingface_hub.errors import RemoteEntryNotFoundError

    download = huggingface_hub.hf_hub_download

    def asked(repo: str, name: str) -> str:
        if name == "adapter_config.json":
            return download(repo, name)
        request = httpx2.Request("HEAD", f"https://hub/{repo}/{name}")
        raise RemoteEntryNotFoundError("404", response=httpx2.Response(404, request=request))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", asked)
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors: save it with peft"):
        adapter_args("some/adapter")
