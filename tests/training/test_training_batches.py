"""In rows of any form, alone or with shared media: the loss and its gradients are the same.

The oracle is the model called by hand for each conversation: its own position ids, its own masks,
labels from the chat template, torch's cross-entropy.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForImageTextToText

from pipeline.model.patches import patches
from pipeline.storage.storage import Storage
from pipeline.training import attention
from pipeline.training.attention import BRANCHED, IMPLEMENTATION, branch_mask
from pipeline.training.batches import collate, on_device
from pipeline.training.groups import group_by_media
from pipeline.training.sample import IGNORED, Preparer, Sample
from pipeline.training.train import token_loss
from pipeline.training.turns import conversation_ids
from schemas.conversation import Conversation, Turn
from schemas.job.finetune import FinetuneJob
from schemas.job.load import check
from schemas.tables.manifest import MediaItem
from scripts.demo_model.tiny_checkpoint import write_tiny_checkpoint

WATCHED = (
    "model.visual.patch_embed.proj.weight",
    "model.visual.blocks.0.attn.qkv.weight",
    "model.visual.merger.linear_fc1.weight",
    "model.visual.deepstack_merger_list.0.linear_fc2.weight",
    "model.language_model.embed_tokens.weight",
    "model.language_model.layers.0.self_attn.q_proj.weight",
    "model.language_model.layers.1.self_attn.o_proj.weight",
    "lm_head.weight",
)


@pytest.fixture(scope="module")
def preparer(checkpoint: Path) -> Preparer:
    spec = {
        "output": "unused",
        "model": {"source": str(checkpoint)},
        "data": ["unused.jsonl"],
        "budget": {"image_tokens": [4, 16], "frame_tokens": [4, 8], "unit_tokens": 64},
        "sampling": {"fps": 0.5, "max_frames": 6},
    }
    return Preparer(check(FinetuneJob, spec, "test"), Storage())


@pytest.fixture(scope="module")
def conversations(archive: Path) -> dict[str, list[Conversation]]:
    """By what they show: a few of each kind, some of them about the same media."""

    def talk(names: Sequence[str], *texts: str) -> Conversation:
        items = tuple(
            MediaItem(media_id=name, uri=str(archive / name), media_type=None) for name in names
        )
        turns = [Turn(role="user", parts=(*range(len(items)), texts[0]))]
        for k, text in enumerate(texts[1:], start=1):
            turns.append(Turn(role="assistant" if k % 2 else "user", parts=(text,)))
        return Conversation(origin=texts[0], media=items, turns=tuple(turns))

    red, wide, clip = ("images/scene-0.jpg",), ("images/wide.png",), ("clips/h264.mov",)
    kinds = {
        "image": [
            talk(red, "What is shown?", "A circle and a star."),
            talk(red, "Where?", '[{"bbox_2d": [1, 2, 3, 4]}]', "Sure?", "Yes."),
            talk(wide, "Read.", "PLATFORM 9"),
        ],
        "video": [
            talk(clip, "What happens?", "It moves."),
            talk(clip, "When does it happen?", "At 00:02.00."),
            talk(("clips/one-frame.mp4",), "What is it?", "Nothing."),
        ],
        "text": [talk((), "Say yes.", "yes"), talk((), "Say no.", "no", "Why?", "Because.")],
        "several": [talk(red + clip + wide, "Compare.", "They differ.", "How?", "In colour.")],
    }
    return kinds | {"mixed": [c for kind in kinds.values() for c in kind]}


def load(checkpoint: Path, attn: Any) -> Any:
    """The model in float32: without dropout, so that train mode does not matter."""
    model = AutoModelForImageTextToText.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation=attn
    )
    return model.train()


@pytest.fixture(scope="module")
def models(checkpoint: Path) -> dict[str, Any]:
    return {"plain": load(checkpoint, "eager"), "trained": load(checkpoint, IMPLEMENTATION)}


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name in WATCHED:
        gradient = model.get_parameter(name).grad
        found[name] = torch.zeros(()) if gradient is None else gradient.clone()
    model.zero_grad(set_to_none=True)
    return found


def by_hand(model: Any, preparer: Preparer, conversations: Sequence[Conversation]):
    """Sum of the loss over single conversations through the plain model, and its gradients."""
    total = torch.zeros(())
    count = 0
    for conversation in conversations:
        media = [preparer.prepare_media(item) for item in conversation.media]
        visions = [m.vision for m in media]
        ids, learnt = conversation_ids(preparer.prompter, conversation.turns, visions)
        input_ids = torch.tensor([ids])
        types = torch.zeros_like(input_ids)
        inputs: dict[str, Any] = {}
        for kind, number, name in (
            ("image", 1, "pixel_values"),
            ("video", 2, "pixel_values_videos"),
        ):
            types[input_ids == preparer.prompter.pad_ids[kind]] = number
            of_kind = [m for m in media if m.media_type == kind]
            if of_kind:
                inputs[name] = torch.cat([patches(torch.tensor(m.pixels)) for m in of_kind])
                inputs[f"{kind}_grid_thw"] = torch.tensor([m.grid_thw for m in of_kind])
        output = model(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            mm_token_type_ids=types,
            **inputs,
        )
        logits = output.logits[0, :-1]
        for position, (token, is_learnt) in enumerate(zip(ids[1:], learnt[1:], strict=True)):
            if is_learnt:
                total = total - logits[position].log_softmax(-1)[token]
                count += 1
    total.backward()
    return total.item(), count, gradients(model)


def by_rows(model: Any, rows: Sequence[Sequence[Sample]]):
    """The same from rows, as training makes it."""
    total, count = 0.0, 0
    for row in rows:
        batch = collate(row)
        labels = batch.pop("labels")
        loss = token_loss(model(**on_device(batch)), labels, num_items_in_batch=1)
        loss.backward()
        total, count = total + loss.item(), count + int((labels != IGNORED).sum())
    return total, count, gradients(model)


def assert_alike(found: tuple, expected: tuple):
    assert found[1] == expected[1]
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for name, gradient in expected[2].items():
        scale = gradient.abs().max()
        torch.testing.assert_close(
            found[2][name], gradient, rtol=1e-3, atol=float(2e-5 * scale), msg=name
        )


KINDS = ("image", "video", "text", "several", "mixed")


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_any_form_teach_what_single_conversations_do(
    models, preparer, conversations, kind: str
):
    chosen = conversations[kind]
    expected = by_hand(models["plain"], preparer, chosen)
    assert any(gradient.abs().sum() > 0 for gradient in expected[2].values())
    alone = [preparer.prepare([c]) for c in chosen]
    shared = [preparer.prepare(g) for g in group_by_media(chosen, share_media=True)]
    forms = {
        "one row": [alone],
        "one row, backwards": [alone[::-1]],
        "each alone": [[sample] for sample in alone],
        "shared": [shared],
        "shared, each alone": [[sample] for sample in shared],
    }
    for rows in forms.values():
        assert_alike(by_rows(models["trained"], rows), expected)
    if kind in ("image", "video", "mixed"):
        assert len(shared) < len(alone)
        assert sum(s.num_tokens for s in shared) < sum(s.num_tokens for s in alone)


def test_a_mixture_of_experts_too(tmp_path: Path, preparer, conversations):
    folder = write_tiny_checkpoint(tmp_path, moe=True)
    expected = by_hand(load(folder, "sdpa"), preparer, conversations["image"])
    groups = group_by_media(conversations["image"], share_media=True)
    rows = [[preparer.prepare(g) for g in groups]]
    assert_alike(by_rows(load(folder, IMPLEMENTATION), rows), expected)


def test_who_sees_whom(preparer, conversations):
    """Token by token: earlier tokens of the root and of the own branch, else nobody."""
    first = preparer.prepare(conversations["text"][:1])
    second = preparer.prepare(conversations["image"][:2])
    batch = collate([first, second])
    num_root = int((second.branches == 0).sum())
    begin, end = first.num_tokens, first.num_tokens + second.num_tokens
    num_first = int((second.branches == 1).sum())
    middle = begin + num_root + num_first
    assert batch["spans"] == ((0, begin), (begin, begin + num_root, middle, end))
    mask = branch_mask(batch["branches"], batch["spans"][1]).numpy()
    assert mask.shape == (second.num_tokens - num_root, second.num_tokens)
    for k in range(num_root, second.num_tokens):
        mine = second.branches[k]
        expected = [j <= k and second.branches[j] in (0, mine) for j in range(second.num_tokens)]
        np.testing.assert_array_equal(mask[k - num_root], expected)
    assert branch_mask(batch["branches"], batch["spans"][0]).shape == (0, begin)


def test_no_tensor_of_a_row_is_as_large_as_its_length_squared(models, preparer, conversations):
    """Nor as its length times the vocabulary: counted by torch's hooks of what it saves."""
    shared = preparer.prepare(conversations["video"][:2])
    batch = on_device(collate([shared] * 6))
    config = models["trained"].config.text_config
    length, vocabulary = 6 * shared.num_tokens, config.vocab_size
    assert sum(mask.numel() for mask in batch["branch_masks"]) < length**2 / 8
    saved: list[torch.Size] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        labels = batch.pop("labels")
        token_loss(models["trained"](**batch), labels, num_items_in_batch=1)
    assert len(saved) > 50
    assert not [shape for shape in saved if shape.count(length) > 1]
    num_learnt = int((labels != IGNORED).sum())
    rows = {shape.numel() // vocabulary for shape in saved if shape and shape[-1] == vocabulary}
    assert rows - {config.hidden_size} == {num_learnt}, (
        "logits of the learnt places, and of no others"
    )


def test_positions_are_the_models_own(models, preparer, conversations):
    samples = [preparer.prepare([c]) for c in conversations["mixed"]]
    batch = collate(samples)
    begin = 0
    for sample in samples:
        alone = collate([sample])
        positions, _ = models["plain"].model.get_rope_index(
            alone["input_ids"],
            alone["mm_token_type_ids"],
            alone.get("image_grid_thw"),
            alone.get("video_grid_thw"),
        )
        here = slice(begin, begin + sample.num_tokens)
        assert torch.equal(batch["position_ids"][:, 0, here], positions[:, 0])
        begin += sample.num_tokens


def test_the_attention_is_the_language_models_alone(models):
    config = models["trained"].config
    assert config.text_config._attn_implementation == BRANCHED
    assert config.vision_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_has_as_many_key_heads_as_query_heads(monkeypatch, dtype: torch.dtype):
    """CUDA's kernel with fewer key heads takes no float32; the results are those of torch's own."""
    torch.manual_seed(0)
    query = torch.randn(1, 8, 33, 16, dtype=dtype)
    key, value = torch.randn(2, 1, 2, 33, 16, dtype=dtype)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    fewer: list[bool] = []

    def noted(query: Any, key: Any, *args: Any, **options: Any) -> torch.Tensor:
        fewer.append(key.shape[1] < query.shape[1])
        return F.scaled_dot_product_attention(query, key, *args, **options)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", noted)
    found, _ = attention.branched_attention(
        torch.nn.Module(), query, key, value, None, spans=((0, 33, 33),), branch_masks=(None,)
    )
    assert fewer == [dtype != torch.float32]
    torch.testing.assert_close(found.transpose(1, 2), expected)
