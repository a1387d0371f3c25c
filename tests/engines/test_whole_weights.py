"""A model answers with all of its weights, in their own type, or not at all."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from pipeline.engines.transformers.load import load_model, load_weights
from pipeline.model.checkpoint import inspect_checkpoint, quantization
from pipeline.training import load as training
from schemas.errors import ModelError
from schemas.job.finetune import FinetuneJob
from schemas.job.load import check
from schemas.job.model import Model
from scripts.demo_model.tiny_checkpoint import write_tiny_checkpoint
from tests.support.paths import ROOT

Tensors = dict[str, torch.Tensor]
CPU = torch.device("cpu")


def changed(checkpoint: Path, folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """Copy a checkpoint, with other tensors in its file."""
    shutil.copytree(checkpoint, folder)
    weights = change(load_file(folder / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def with_config(folder: Path, **keys: object) -> Path:
    file = folder / "config.json"
    config = json.loads(file.read_text()) | keys
    file.write_text(json.dumps({name: v for name, v in config.items() if v is not None}))
    return folder


def renamed(weights: Tensors) -> Tensors:
    """The tensors of a layer under another name, as another tool might save them."""
    return {name.replace("layers.1.", "layer.1."): tensor for name, tensor in weights.items()}


def test_renamed_tensors_are_named(checkpoint: Path, tmp_path: Path):
    """transformers draws the missing ones at random, and answers."""
    folder = changed(checkpoint, tmp_path / "model", renamed)
    with pytest.raises(ModelError) as found:
        load_model(Model(source=str(folder)), CPU)
    message = str(found.value)
    assert "11 tensors are missing (model.language_model.layers.1." in message
    assert "11 tensors are unknown to the model (model.language_model.layer.1." in message
    assert message.count("layers.1.") == 3, "the first few are named"


def test_a_tensor_of_another_shape_is_named(checkpoint: Path, tmp_path: Path):
    def cut(weights: Tensors) -> Tensors:
        return weights | {"lm_head.weight": weights["lm_head.weight"][:-1].contiguous()}

    folder = changed(checkpoint, tmp_path / "model", cut)
    with pytest.raises(ModelError, match=r"1 tensor is of another shape \(lm_head\.weight \[511, "):
        load_model(Model(source=str(folder)), CPU)


def test_an_output_that_is_tied_to_the_embedding_needs_no_tensor(checkpoint: Path, tmp_path: Path):
    def without_output(weights: Tensors) -> Tensors:
        return {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}

    folder = changed(checkpoint, tmp_path / "model", without_output)
    with pytest.raises(ModelError, match=r"1 tensor is missing \(lm_head\.weight\)$"):
        load_model(Model(source=str(folder)), CPU)
    model = load_model(Model(source=str(with_config(folder, tie_word_embeddings=True))), CPU)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_another_architectures_weights_are_refused(checkpoint: Path, tmp_path: Path):
    """A folder with the configuration of a dense model, and the weights of a mixture of experts."""
    moe = write_tiny_checkpoint(tmp_path / "moe", moe=True)
    shutil.copy(checkpoint / "config.json", moe)
    with pytest.raises(ModelError, match=r"tensors are missing .*; \d+ tensors are unknown"):
        load_model(Model(source=str(moe)), CPU)


def test_training_does_not_start_from_random_weights(checkpoint: Path, tmp_path: Path):
    folder = changed(checkpoint, tmp_path / "model", renamed)
    spec = {
        "output": "out",
        "model": {"source": str(folder)},
        "data": [{"conversations": "data.jsonl"}],
    }
    with pytest.raises(ModelError, match="11 tensors are missing"):
        training.load_model(check(FinetuneJob, spec, "test"))


@pytest.fixture
def shards(checkpoint: Path, tmp_path: Path) -> Path:
    """The checkpoint in several files, as transformers writes them."""
    folder = tmp_path / "shards"
    shutil.copytree(checkpoint, folder)
    (folder / "model.safetensors").unlink()
    whole = AutoModelForImageTextToText.from_pretrained(checkpoint)
    whole.save_pretrained(folder, max_shard_size="300KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def test_shards_are_whole_or_refused_before_work(checkpoint: Path, shards: Path):
    model = Model(source=str(shards))
    assert inspect_checkpoint(model).model_type == "qwen3_vl"
    one, other, *_ = sorted(shards.glob("*.safetensors"))
    loaded, expected = (load_model(Model(source=str(f)), CPU) for f in (shards, checkpoint))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    content = one.read_bytes()
    one.write_bytes(content[:-1])
    with pytest.raises(ModelError, match=f"{one.name} cannot be read"):
        inspect_checkpoint(model)
    with pytest.raises(ModelError, match="cannot load"):
        load_model(model, CPU)
    one.unlink()
    with pytest.raises(ModelError, match=f"{one.name} cannot be read"):
        inspect_checkpoint(model)
    with pytest.raises(ModelError, match="cannot load"):
        load_model(model, CPU)
    shutil.copy(other, one)  # a whole file, but another one
    with pytest.raises(ModelError, match=rf"{one.name} lacks \d+ tensors .* copy the checkpoint"):
        inspect_checkpoint(model)
    with pytest.raises(ModelError, match="missing"):
        load_model(model, CPU)


@pytest.fixture
def adapter(checkpoint: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    lora = peft.LoraConfig(r=4, target_modules=r".*language_model.*q_proj", init_lora_weights=False)
    peft.get_peft_model(load_weights(Model(source=str(checkpoint)), "sdpa"), lora).save_pretrained(
        folder
    )
    return folder


def test_an_adapter_acts_or_is_refused(checkpoint: Path, adapter: Path):
    model = Model(source=str(checkpoint), adapter=str(adapter))
    plain = load_model(Model(source=str(checkpoint)), CPU).state_dict()
    name = "model.language_model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(load_model(model, CPU).state_dict()[name], plain[name])
    file = adapter / "adapter_model.safetensors"
    whole = load_file(file)
    save_file({k.replace("language_model", "text_model"): v for k, v in whole.items()}, file)
    with pytest.raises(ModelError) as found:
        load_model(model, CPU)
    assert f"the adapter {adapter} does not fit the model: 4 tensors are missing" in str(
        found.value
    )
    assert "4 tensors are unknown to the model (base_model" in str(found.value)
    more = {"base_model.model.model.language_model.layers.7.self_attn.q_proj.lora_A.weight": 0}
    save_file(whole | {k: torch.zeros(4, 64) for k in more}, file)
    with pytest.raises(ModelError, match=r"1 tensor is unknown to the model \(base_model"):
        load_model(model, CPU)


@pytest.mark.parametrize("keys", [{}, {"dtype": "bfloat16"}, {"torch_dtype": "bfloat16"}])
def test_the_type_is_the_checkpoints(checkpoint: Path, tmp_path: Path, keys: dict[str, str]):
    """Published files name it in ``text_config`` alone, or the weights alone have it."""

    def narrow(weights: Tensors) -> Tensors:
        return {name: tensor.bfloat16() for name, tensor in weights.items()}

    folder = changed(checkpoint, tmp_path / "model", narrow)
    with_config(folder, **{"dtype": None, **keys})
    config = json.loads((folder / "config.json").read_text())
    del config["text_config"]["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    model = load_model(Model(source=str(folder)), CPU)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.bfloat16}


QUANTIZED = {
    "fp8": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head", "model.visual"],
    },
    "compressed-tensors": {
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8}}},
        "format": "float-quantized",
        "ignore": ["lm_head"],
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    },
    "awq": {"bits": 4, "group_size": 128, "quant_method": "awq", "version": "gemm"},
    "gptq": {"bits": 4, "desc_act": False, "group_size": 128, "quant_method": "gptq"},
    "bitsandbytes": {"load_in_4bit": True, "quant_method": "bitsandbytes"},
}
"""``quantization_config`` of published checkpoints, by their method."""


@pytest.mark.parametrize("method", QUANTIZED)
@pytest.mark.parametrize("moe", [False, True])
def test_quantised_weights_are_refused(tmp_path: Path, method: str, moe: bool):
    """By transformers; vLLM reads them."""
    folder = write_tiny_checkpoint(tmp_path / "model", moe=moe)
    with_config(folder, quantization_config=QUANTIZED[method])
    assert inspect_checkpoint(Model(source=str(folder))).quantization == method
    with pytest.raises(ModelError, match=rf"quantised \({method}\).*use the engine vllm on a GPU"):
        load_weights(Model(source=str(folder)), "sdpa")


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": QUANTIZED["awq"]},
        {"text_config": {"quantization_config": QUANTIZED["awq"]}},
        {"compression_config": QUANTIZED["awq"]},
    ],
)
def test_all_places_where_a_config_says_how_it_is_quantised(config: dict[str, object]):
    assert quantization(config) == "awq"
    assert quantization({"text_config": None, "quantization_config": None}) is None


IN_ANOTHER_PROCESS = """
import sys, threading, torch
from pathlib import Path
from pipeline.engines.transformers.load import load_model
from schemas.job.model import Model

def memory():
    text = Path("/proc/self/status").read_text().partition("RssAnon:")[2]
    return int(text.split()[0]) << 10

before, done = memory(), threading.Event()
peaks = [before]
def watch():
    while not done.wait(0.002):
        peaks.append(memory())
thread = threading.Thread(target=watch)
thread.start()
load_model(Model(source=sys.argv[1], dtype="float32"), torch.device(sys.argv[2]))
done.set()
thread.join()
print(max(peaks) - before)
"""


@pytest.mark.parametrize(("device", "share"), [("cpu", 1.25), ("meta", 0.25)])
def test_weights_are_in_the_hosts_memory_at_most_once(
    checkpoint: Path, tmp_path: Path, device: str, share: float
):
    """And hardly at all for another device; ``meta`` stands for a GPU.

    As float32 from bfloat16: weights of one type stay in the file's own pages.
    """
    width = 1 << 17
    folder = with_config(shutil.copytree(checkpoint, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["intermediate_size"] = width
    (folder / "config.json").write_text(json.dumps(config))
    weights = load_file(folder / "model.safetensors")
    for name in [n for n in weights if "language_model" in n and ".mlp." in n]:
        weights[name] = torch.zeros((64, width) if "down_proj" in name else (width, 64))
    weights = {name: tensor.bfloat16() for name, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    arguments = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(folder), device]
    printed = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    num_bytes = 4 * sum(tensor.numel() for tensor in weights.values())
    assert int(printed.stdout) < share * num_bytes
