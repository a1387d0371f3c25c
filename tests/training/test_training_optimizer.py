"""Which parts learn and how fast, Muon beside AdamW, adapters, and a longer context."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer, get_scheduler

from pipeline.storage.storage import Storage
from pipeline.training import optimizer as optimizers
from pipeline.training.batches import Batch, collate, on_device
from pipeline.training.load import enable_recompute, export, load_model
from pipeline.training.optimizer import (
    CombinedOptimizer,
    choose_parameters,
    make_optimizer,
    part_of,
)
from pipeline.training.sample import Preparer
from pipeline.training.train import token_loss
from schemas.conversation import Conversation, Turn
from schemas.errors import JobFileError, ModelError
from schemas.job.finetune import FinetuneJob, Training, Tune
from schemas.job.load import check
from schemas.tables.manifest import MediaItem

TORCHS = torch.optim._muon._zeropower_via_newtonschulz


def job(checkpoint: Path, **changes: Any) -> FinetuneJob:
    spec = {
        "output": "unused",
        "data": ["unused.jsonl"],
        "budget": {"image_tokens": [4, 16]},
        "tune": {"tune_mm_vision": True},
    }
    model = {"source": str(checkpoint), "dtype": "float32", **changes.pop("model", {})}
    if changes.get("lora"):
        del spec["tune"]
    return check(FinetuneJob, spec | {"model": model} | changes, "test")


@pytest.fixture(scope="module")
def batch(checkpoint: Path, tmp_path_factory) -> Batch:
    """One image with a question and an answer."""
    path = tmp_path_factory.mktemp("picture") / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    turns = (
        Turn(role="user", parts=(0, "What is it?")),
        Turn(role="assistant", parts=("Noise.",)),
    )
    item = MediaItem(media_id="a", uri=str(path), media_type="image")
    conversation = Conversation(origin="x", media=(item,), turns=turns)
    sample = Preparer(job(checkpoint), Storage()).prepare([conversation])
    return on_device(collate([sample]))


def loss_of(model: Any, batch: Batch) -> torch.Tensor:
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    return token_loss(model(**inputs), batch["labels"])


@pytest.fixture
def model(checkpoint: Path) -> Any:
    return load_model(job(checkpoint)).train()


def test_every_parameter_has_its_part(model):
    """Against the model's own modules, object by object."""
    inner = model.model
    expected = {id(p): "language" for p in [*inner.language_model.parameters()]}
    expected |= {id(p): "language" for p in model.lm_head.parameters()}
    expected |= {id(p): "vision" for p in inner.visual.parameters()}
    mergers = [inner.visual.merger, *inner.visual.deepstack_merger_list]
    expected |= {id(p): "projector" for merger in mergers for p in merger.parameters()}
    for name, parameter in model.named_parameters():
        assert part_of(name) == expected[id(parameter)], name


@pytest.mark.parametrize("vision", [True, False])
@pytest.mark.parametrize("projector", [True, False])
@pytest.mark.parametrize("language", [True, False])
def test_flags_freeze_exactly_the_named_parts(model, vision, projector, language):
    flags = {"tune_mm_vision": vision, "tune_mm_mlp": projector, "tune_mm_llm": language}
    choose_parameters(model, Tune(**flags))
    learns = {"vision": vision, "projector": projector, "language": language}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == learns[part_of(name)], name
    deepstack = model.model.visual.deepstack_merger_list.parameters()
    assert all(parameter.requires_grad == projector for parameter in deepstack)


def test_what_is_frozen_stays_and_what_learns_moves(checkpoint, model, batch):
    choose_parameters(model, Tune(tune_mm_vision=False, tune_mm_mlp=True, tune_mm_llm=False))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, Training(learning_rate=1e-2))
    loss_of(model, batch).backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert {part_of(name) for name in moved} == {"projector"}
    assert any("deepstack_merger_list.0" in name for name in moved)


def test_nothing_that_learns_is_refused(checkpoint):
    nothing = {"tune_mm_vision": False, "tune_mm_mlp": False, "tune_mm_llm": False}
    with pytest.raises(JobFileError, match="nothing is trained"):
        job(checkpoint, tune=nothing)


def test_each_part_at_its_own_rate_and_decay_on_matrices_only(model):
    training = Training(
        learning_rate=1e-3, mm_projector_lr=2e-3, vision_tower_lr=3e-3, weight_decay=0.1
    )
    optimizer = make_optimizer(model, training)
    rates = {"language": 1e-3, "projector": 2e-3, "vision": 3e-3}
    names = {id(p): name for name, p in model.named_parameters()}
    seen = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            seen.append(names[id(parameter)])
            assert group["lr"] == rates[part_of(seen[-1])]
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
    assert sorted(seen) == sorted(names.values())
    alike = make_optimizer(model, Training(learning_rate=1e-3))
    assert {group["lr"] for group in alike.param_groups} == {1e-3}


def test_muon_only_on_matrices_inside_the_layers(model):
    choose_parameters(model, Tune(tune_mm_vision=True, tune_mm_mlp=True, tune_mm_llm=True))
    training = Training(optimizer="muon", learning_rate=2e-2, adamw_lr=1e-4, vision_tower_lr=5e-3)
    optimizer = make_optimizer(model, training)
    assert isinstance(optimizer, CombinedOptimizer)
    names = {id(p): name for name, p in model.named_parameters()}
    adamw, muon = optimizer.optimizers
    assert isinstance(adamw, torch.optim.AdamW) and isinstance(muon, torch.optim.Muon)
    matrices = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    others = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert matrices | others == set(names.values()) and not matrices & others
    inside = ("language_model.layers.", "visual.blocks.", "merger")
    assert all(any(part in name for part in inside) for name in matrices)
    assert {n for n, p in model.named_parameters() if p.ndim == 2} - matrices == {
        "model.language_model.embed_tokens.weight",
        "model.visual.pos_embed.weight",
        "lm_head.weight",
    }
    assert {group["lr"] for group in adamw.param_groups} == {1e-4}
    assert {group["lr"] for group in muon.param_groups} == {2e-2, 5e-3}


def trained(model: Any, optimizer: Any, schedule: Any, batch: Batch, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_four_steps_are_two_and_two(checkpoint, batch, tmp_path, kind: str):
    training = Training(optimizer=kind, learning_rate=1e-2, weight_decay=0.01, mm_projector_lr=5e-3)

    def start() -> tuple[Any, Any, Any]:
        model = load_model(job(checkpoint)).train()
        optimizer = make_optimizer(model, training)
        return model, optimizer, get_scheduler("cosine", optimizer, 1, 4)

    whole = start()
    expected = trained(*whole, batch, 4)
    assert expected[-1] < expected[0]
    first = start()
    losses = trained(*first, batch, 2)
    states = [part.state_dict() for part in first]
    torch.save(states, tmp_path / "state.pt")
    second = start()
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    for part, state in zip(second, saved, strict=True):
        part.load_state_dict(state)
    assert losses + trained(*second, batch, 2) == expected
    for one, other in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_schedule_reaches_every_group(model, kind: str):
    training = Training(optimizer=kind, learning_rate=1e-2, vision_tower_lr=1e-3, adamw_lr=1e-4)
    optimizer = make_optimizer(model, training)
    begin = [group["lr"] for group in optimizer.param_groups]
    schedule = get_scheduler("linear", optimizer, 0, 10)
    for _ in range(5):
        optimizer.step()
        schedule.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([lr / 2 for lr in begin])
    if kind == "muon":  # the optimizers' own groups, not copies of them
        own = [group for part in optimizer.optimizers for group in part.param_groups]
        assert all(a is b for a, b in zip(own, optimizer.param_groups, strict=True))
        optimizer.load_state_dict(optimizer.state_dict())
        own = [group for part in optimizer.optimizers for group in part.param_groups]
        assert all(a is b for a, b in zip(own, optimizer.param_groups, strict=True))
        schedule.step()
        assert own[0]["lr"] == pytest.approx(begin[0] * 0.4)


LORA = {"r": 4, "lora_alpha": 8}


class TestLora:
    def learnt(self, checkpoint, batch, **lora: Any) -> tuple[Any, FinetuneJob]:
        spec = job(checkpoint, lora=LORA | lora)
        model = load_model(spec).train()
        optimizer = make_optimizer(model, Training(learning_rate=1e-2))
        schedule = get_scheduler("constant", optimizer)
        losses = trained(model, optimizer, schedule, batch, 4)
        assert losses[-1] < losses[0]
        return model.eval(), spec

    def test_adapters_are_in_the_language_model_only(self, checkpoint):
        model = load_model(job(checkpoint, lora=LORA))
        learning = [name for name, p in model.named_parameters() if p.requires_grad]
        assert all("lora_" in name and "language_model.layers." in name for name in learning)
        assert len(learning) == 2 * 4 * 2  # layers, q k v o, A and B
        with pytest.raises(ModelError, match=r"lora.target_modules: .*not found"):
            load_model(job(checkpoint, lora={"target_modules": ["proj"]}))

    def test_the_merged_export_is_base_and_adapters(self, checkpoint, batch, tmp_path):
        model, spec = self.learnt(checkpoint, batch)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with torch.no_grad():
            expected = model(**inputs).logits
            base = load_model(job(checkpoint)).eval()(**inputs).logits
        export(model, str(checkpoint), None, spec.lora, tmp_path / "out")
        merged = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
        with torch.no_grad():
            found = merged(**inputs).logits
        assert not list((tmp_path / "out").glob("adapter*"))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert (found - base).abs().max() > 0.01

    def test_adapters_apart_load_on_the_base(self, checkpoint, batch, tmp_path):
        from peft import PeftModel

        model, spec = self.learnt(checkpoint, batch, merge=False)
        export(model, str(checkpoint), None, spec.lora, tmp_path / "out")
        assert not list((tmp_path / "out").glob("model*.safetensors"))
        base = load_model(job(checkpoint)).eval()
        both = PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with torch.no_grad():
            torch.testing.assert_close(both(**inputs).logits, model(**inputs).logits)


def test_an_export_is_a_checkpoint_as_published(checkpoint, model, batch, tmp_path):
    choose_parameters(model, Tune(tune_mm_vision=True, tune_mm_mlp=True, tune_mm_llm=True))
    optimizer = make_optimizer(model, Training(learning_rate=1e-3))
    trained(model, optimizer, get_scheduler("constant", optimizer), batch, 1)
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "model.safetensors.index.json").write_text("{}")  # of an earlier, larger export
    export(model, str(checkpoint), None, None, folder)
    names = {path.name for path in checkpoint.iterdir()}
    assert {path.name for path in folder.iterdir()} == names
    again = AutoModelForImageTextToText.from_pretrained(folder).eval()
    with torch.no_grad():
        assert loss_of(again, batch).item() == pytest.approx(
            loss_of(model.eval(), batch).item(), abs=1e-6
        )
    assert AutoTokenizer.from_pretrained(folder).chat_template


class TestYarn:
    def test_the_context_is_longer_and_the_rest_stays(self, checkpoint, batch, tmp_path):
        spec = job(checkpoint, model={"yarn": {"factor": 3}})
        model = load_model(spec).eval()
        export(model, str(checkpoint), None, None, tmp_path / "out")
        before = AutoConfig.from_pretrained(checkpoint).text_config
        after = AutoConfig.from_pretrained(tmp_path / "out").text_config
        assert after.max_position_embeddings == 3 * before.max_position_embeddings == 786_432
        rope = after.rope_parameters
        assert (rope["rope_type"], rope["factor"]) == ("yarn", 3.0)
        assert rope["original_max_position_embeddings"] == before.max_position_embeddings
        for key in ("mrope_section", "mrope_interleaved", "rope_theta"):
            assert rope[key] == before.rope_parameters[key]
        again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
        plain = load_model(job(checkpoint)).eval()
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with torch.no_grad():
            extended, same, other = (m(**inputs).logits for m in (model, again, plain))
        assert torch.isfinite(extended).all()
        torch.testing.assert_close(extended, same)
        assert (extended - other).abs().max() > 1e-3

    def test_the_original_context_may_be_given(self, checkpoint):
        yarn = {"factor": 2.5, "original_max_position_embeddings": 1000}
        text = load_model(job(checkpoint, model={"yarn": yarn})).config.text_config
        assert text.max_position_embeddings == 2500
        assert text.rope_parameters["original_max_position_embeddings"] == 1000


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_gradient_checkpointing_changes_no_gradient(checkpoint, batch, lora):
    """Also where what goes into the layers is frozen: nothing must be cut off."""
    spec = job(checkpoint, lora=lora)
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)  # adapters are drawn
        model = load_model(spec).train()
        if recompute:
            enable_recompute(model)
        loss_of(model, batch).backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def test_a_folder_that_is_no_checkpoint(checkpoint, tmp_path):
    with pytest.raises(ModelError, match=f"cannot load {tmp_path}"):
        load_model(job(tmp_path))


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_muon_in_float32_steps_as_torchs_own_does(shape, monkeypatch):
    """Torch's orthogonalises in bfloat16: 8 bits of mantissa."""
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    after = []
    for has_bf16 in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.optim._muon, "_zeropower_via_newtonschulz", TORCHS)
        monkeypatch.setattr(optimizers, "cpu_has_bf16", lambda has=has_bf16: has)
        model = torch.nn.Linear(shape[1], shape[0], bias=False)
        model.weight.data.copy_(weights)
        optimizer = make_optimizer(model, Training(optimizer="muon", learning_rate=0.1))
        model.weight.grad = gradient.clone()
        optimizer.step()
        after.append(model.weight.detach() - weights)
    assert after[1].abs().max() > 0.02
    torch.testing.assert_close(after[1], after[0], rtol=0, atol=0.002)
    assert torch.optim._muon._zeropower_via_newtonschulz is not TORCHS
