"""The memory that a training step is predicted to take, against torch's own counts.

The oracles: hooks on what one layer of real size saves, and the CPU allocator's events of a real
step. Nothing was compared with a GPU.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, Qwen3VLConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    Qwen3VLTextDecoderLayer,
    Qwen3VLTextRotaryEmbedding,
)

from pipeline.training import load
from pipeline.training.attention import BRANCHED, IMPLEMENTATION, branch_masks
from pipeline.training.load import enable_recompute, trainable
from pipeline.training.memory import Row, StepMemory, check_fits, predict_memory
from pipeline.training.optimizer import make_optimizer
from pipeline.training.train import token_loss
from schemas.errors import ResourceError
from schemas.job.finetune import FinetuneJob
from schemas.job.load import check
from tests.support.counters import allocated_peak

SIZE_8B = {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36}
"""Of the language model of Qwen3-VL-8B-Instruct, from its config.json."""
HEADS = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
DEFAULT_WINDOW = Row(tokens=25_000, branch_tokens=1_000, learnt_tokens=1_000, vision_tokens=23_400)
"""A window of 60 s at 1080p with the default budget: 60 frame pairs of 390 tokens, their times,
and five questions with answers of 200 tokens."""


def write_config(folder: Path, *, vision_depth: int = 27, **text: Any) -> str:
    sizes = HEADS | {"vocab_size": 151_936, "max_position_embeddings": 262_144} | text
    vision = {
        "depth": vision_depth,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
    }
    vision |= {"out_hidden_size": sizes["hidden_size"], "deepstack_visual_indexes": [8, 16, 24]}
    Qwen3VLConfig(text_config=sizes, vision_config=vision).save_pretrained(folder)
    return str(folder)


def job(source: str, **changes: Any) -> FinetuneJob:
    spec = {"output": "unused", "data": ["unused.jsonl"], "model": {"source": source}}
    return check(FinetuneJob, spec | changes, "test")


def predicted(source: str, row: Row, *, is_bf16: bool = True, **changes: Any) -> StepMemory:
    return predict_memory(job(source, **changes), row, is_bf16=is_bf16, num_workers=1)


def test_lora_of_an_8b_on_default_windows_fits_80_gb(tmp_path):
    source = write_config(tmp_path, **SIZE_8B)
    memory = predicted(source, DEFAULT_WINDOW, lora={"r": 64})
    parameters = 8.767e9  # the published number, with the vision tower
    assert memory.weights == pytest.approx(2 * parameters, rel=0.02)
    # r = 64 at q and o (4096 to 4096) and k and v (4096 to 1024), in 36 layers; AdamW keeps two
    # float32 numbers of each.
    adapters = 36 * 64 * (2 * (4096 + 4096) + 2 * (4096 + 1024))
    assert memory.optimizer == pytest.approx(8 * adapters, rel=0.01)
    # The inputs of all layers are kept, and one layer is computed again.
    kept = 36 * DEFAULT_WINDOW.tokens * 4096 * 2
    assert kept < memory.working < kept + 10e9
    assert memory.total < 72e9
    wide = predicted(
        source, DEFAULT_WINDOW, lora={"r": 64}, model={"source": source, "dtype": "float32"}
    )
    assert wide.weights == pytest.approx(2 * memory.weights, rel=0.02)


def saved_bytes(layer: Any, tokens: int, **options: Any) -> int:
    """Bytes that the layer saves for its backward pass, by torch's hooks, without weights."""
    hidden = torch.randn(1, tokens, 4096, dtype=torch.bfloat16, requires_grad=True)
    rotary = Qwen3VLTextRotaryEmbedding(layer.self_attn.config)
    cos_sin = rotary(hidden, torch.arange(tokens).expand(3, 1, tokens))
    known = [*layer.parameters(), *cos_sin]
    shared = {tensor.untyped_storage().data_ptr() for tensor in known}
    found: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        output = layer(hidden, cos_sin, attention_mask=None, **options)
    assert output.requires_grad
    return sum(size for pointer, size in found.items() if pointer not in shared)


def test_a_layer_of_real_size_saves_what_is_predicted(tmp_path):
    """The predicted growth with one more layer, without recomputation, is what a layer saves."""
    tokens = 256
    row = Row(tokens=tokens, branch_tokens=0, learnt_tokens=16, vision_tokens=0)
    settings = {"lora": {"r": 64}, "training": {"gradient_checkpointing": False}}
    totals, weights = [], []
    for depth in (3, 4):
        source = write_config(tmp_path / str(depth), **SIZE_8B | {"num_hidden_layers": depth})
        memory = predicted(source, row, **settings)
        totals.append(memory.working)
        weights.append(memory.weights)
    config = Qwen3VLConfig.from_pretrained(tmp_path / "4").text_config
    config._attn_implementation = BRANCHED
    layer = Qwen3VLTextDecoderLayer(config, 0).to(torch.bfloat16).train()
    wrapped = torch.nn.ModuleDict(
        {"language_model": torch.nn.ModuleDict({"layers": torch.nn.ModuleList([layer])})}
    )
    trainable(wrapped, job(str(tmp_path / "4"), lora={"r": 64}))
    layer_bytes = sum(p.nbytes for p in layer.parameters())
    assert weights[1] - weights[0] == pytest.approx(layer_bytes, rel=1e-3)
    saved = saved_bytes(layer, tokens, spans=((0, tokens, tokens),), branch_masks=(None,))
    gradients = sum(p.nbytes for p in layer.parameters() if p.requires_grad)
    assert totals[1] - totals[0] == pytest.approx(saved + gradients, rel=0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": {"r": 16}},
        {"lora": {"r": 16}, "training": {"gradient_checkpointing": False}},
        {},
        {"training": {"gradient_checkpointing": False, "gradient_accumulation_steps": 1}},
    ],
    ids=["lora", "lora, all kept", "weights", "weights, all kept"],
)
def test_a_whole_step_takes_what_is_predicted(tmp_path, changes):
    """Against the CPU allocator, on a real step of a model of five layers."""
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 5}
    sizes |= {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32}
    source = write_config(tmp_path, **sizes, vocab_size=2048, vision_depth=1)
    row = Row(tokens=1024, branch_tokens=64, learnt_tokens=64, vision_tokens=0)
    memory = predicted(source, row, is_bf16=False, **changes)
    made = job(source, **changes)
    config = Qwen3VLConfig.from_pretrained(source)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation=IMPLEMENTATION)
    model = trainable(model, made).train()
    if made.training.gradient_checkpointing:
        enable_recompute(model)
    optimizer = make_optimizer(model, made.training)
    for group in optimizer.param_groups:
        group["foreach"] = True  # as by default on CUDA
    spans = ((0, row.tokens - row.branch_tokens, row.tokens),)

    def batch() -> None:
        outputs = model(
            input_ids=torch.zeros(1, row.tokens, dtype=torch.int64),
            position_ids=torch.arange(row.tokens).expand(3, 1, row.tokens),
            logits_to_keep=torch.arange(row.learnt_tokens),
            spans=spans,
            branch_masks=branch_masks(torch.zeros(row.tokens, dtype=torch.int32), spans),
            use_cache=False,
        )
        labels = torch.zeros(1, row.learnt_tokens + 1, dtype=torch.int64)
        token_loss(outputs, labels).backward()

    def step() -> None:
        for _ in range(min(made.training.gradient_accumulation_steps, 2)):
            batch()
        optimizer.step()

    step()
    optimizer.zero_grad()
    assert sum(p.nbytes for p in model.parameters()) == pytest.approx(memory.weights, rel=0.01)
    found, _ = allocated_peak(step)
    assert found == pytest.approx(memory.working, rel=0.1)


def test_adamw_on_a_gpu_needs_a_number_more_for_each_parameter(tmp_path):
    """Its step on CUDA takes all matrices of the language model at once: a root for each."""
    source = write_config(tmp_path, **SIZE_8B | {"num_hidden_layers": 2}, vision_depth=1)
    row = Row(tokens=64, branch_tokens=0, learnt_tokens=16, vision_tokens=0)
    tune = {"tune_mm_mlp": False}
    memory = predicted(source, row, tune=tune)
    gradients = memory.optimizer / 2  # AdamW keeps two numbers of each
    assert memory.working == pytest.approx(2 * gradients, rel=0.05)


@pytest.mark.parametrize("new", [False, True])
def test_recomputation_has_the_name_of_this_transformers(monkeypatch, new: bool):
    """Before 5.23 models have only the old method, and arguments only the old field."""
    called: list[str] = []

    class Model:
        def gradient_checkpointing_enable(self) -> None:
            called.append("gradient_checkpointing")

    if new:
        Model.activation_checkpointing_enable = lambda self: called.append(  # type: ignore[attr-defined]
            "activation_checkpointing"
        )
    monkeypatch.setattr(load, "PreTrainedModel", Model)
    enable_recompute(Model())
    assert called == ["activation_checkpointing" if new else "gradient_checkpointing"]


def test_a_step_that_does_not_fit_is_refused_with_the_numbers():
    needed = StepMemory(weights=17.8e9, optimizer=0.5e9, working=14.3e9, media=1.4e9)
    check_fits(needed, 40 * 2**30)
    with pytest.raises(ResourceError, match=r"needs 34\.0 GB .* weights take 17\.8, .* has 25\.8:"):
        check_fits(needed, 24 * 2**30)


def test_gradients_are_summed_in_buckets_where_there_are_several_workers(tmp_path):
    source = write_config(tmp_path, **SIZE_8B | {"num_hidden_layers": 2})
    row = Row(tokens=256, branch_tokens=0, learnt_tokens=16, vision_tokens=0)
    made = job(source, lora={"r": 64})
    one, two = (predict_memory(made, row, is_bf16=True, num_workers=n).total for n in (1, 2))
    adapters = 2 * 64 * (2 * (4096 + 4096) + 2 * (4096 + 1024))
    assert two - one == 4 * adapters
