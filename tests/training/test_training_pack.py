"""Packed, padded, alone or with shared media: the loss and its gradients are the same.

The oracle is the model called by hand for each conversation: its own position ids, its own masks,
labels from the chat template, torch's cross-entropy.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pipeline.model.patches import normalise, patches
from pipeline.storage.storage import Storage
from pipeline.training.pack import collate, pack
from pipeline.training.sample import IGNORED, Preparer, Sample, group_by_media
from pipeline.training.train import token_loss
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


def load(checkpoint: Path, attn: str) -> Any:
    """The model in float32: without dropout, so that train mode does not matter."""
    model = AutoModelForImageTextToText.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation=attn
    )
    return model.train()


@pytest.fixture(scope="module")
def models(checkpoint: Path) -> dict[str, Any]:
    return {attn: load(checkpoint, attn) for attn in ("sdpa", "eager")}


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
        ids, learnt = preparer.prompter.conversation_ids(
            conversation.turns, [m.vision for m in media]
        )
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


def by_rows(model: Any, rows: Sequence[Sequence[Sample]], attn: str):
    """The same from rows, as training makes it."""
    batch = collate(rows, pad_id=500, attn_implementation=attn)
    labels = batch.pop("labels")
    for name in ("pixel_values", "pixel_values_videos"):
        if name in batch:
            assert batch[name].dtype == torch.uint8
            batch[name] = normalise(batch[name])
    loss = token_loss(model(**batch), labels, num_items_in_batch=1)
    loss.backward()
    return loss.item(), int((labels != IGNORED).sum()), gradients(model)


def assert_alike(found: tuple, expected: tuple):
    assert found[1] == expected[1]
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for name, gradient in expected[2].items():
        scale = gradient.abs().max()
        torch.testing.assert_close(
            found[2][name], gradient, rtol=1e-3, atol=float(2e-5 * scale), msg=name
        )


KINDS = ("image", "video", "text", "several", "mixed")


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_any_form_teach_what_single_conversations_do(
    models, preparer, conversations, kind: str, attn: str
):
    model, chosen = models[attn], conversations[kind]
    expected = by_hand(model, preparer, chosen)
    assert any(gradient.abs().sum() > 0 for gradient in expected[2].values())
    alone = [preparer.prepare([c]) for c in chosen]
    shared = [preparer.prepare(g) for g in group_by_media(chosen, share_media=True)]
    forms = {
        "packed": [alone],
        "packed backwards": [alone[::-1]],
        "padded": [[sample] for sample in alone],
        "two rows": pack(alone, max(s.num_tokens for s in alone) + 30),
        "shared": [shared],
        "shared, padded": [[sample] for sample in shared],
    }
    for rows in forms.values():
        assert_alike(by_rows(model, rows, attn), expected)
    if kind in ("image", "video", "mixed"):
        assert len(shared) < len(alone)
        assert sum(s.num_tokens for s in shared) < sum(s.num_tokens for s in alone)


def test_a_mixture_of_experts_too(tmp_path: Path, preparer, conversations):
    model = load(write_tiny_checkpoint(tmp_path, moe=True), "sdpa")
    expected = by_hand(model, preparer, conversations["image"])
    groups = group_by_media(conversations["image"], share_media=True)
    assert_alike(by_rows(model, [[preparer.prepare(g) for g in groups]], "sdpa"), expected)


def varlen(module: nn.Module, q: Any, k: Any, v: Any, attention_mask: Any, **options: Any):
    """What flash_attention_2 computes of packed rows: each span of cu_seq_lens by itself."""
    assert attention_mask is None and q.shape[0] == 1
    ends = options["cu_seq_lens_q"].tolist()
    assert ends == options["cu_seq_lens_k"].tolist()
    assert options["cu_seq_lens_q"].dtype == torch.int32
    assert (ends[0], ends[-1]) == (0, q.shape[2])
    lengths = [end - begin for begin, end in pairwise(ends)]
    assert max(lengths) == int(options["max_length_q"]) == int(options["max_length_k"])
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    is_causal = options.get("is_causal")
    outputs = [
        nn.functional.scaled_dot_product_attention(
            *parts,
            scale=options["scaling"],
            is_causal=module.is_causal if is_causal is None else is_causal,
        )
        for parts in zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


@pytest.mark.parametrize("kind", KINDS)
def test_the_lengths_that_flash_attention_gets(
    checkpoint, models, preparer, conversations, monkeypatch, kind: str
):
    """The kernel needs a GPU: here torch's attention takes its place, on the same arguments."""
    expected = by_hand(models["sdpa"], preparer, conversations[kind])
    model = load(checkpoint, "sdpa")
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "flash_attention_2", varlen)
    for config in (model.config, model.config.text_config, model.config.vision_config):
        config._attn_implementation_internal = "flash_attention_2"
    alone = [preparer.prepare([c]) for c in conversations[kind]]
    assert_alike(by_rows(model, [alone], "flash_attention_2"), expected)


def test_flash_attention_refuses_branches_and_several_rows(preparer, conversations):
    shared = preparer.prepare(conversations["image"][:2])
    alone = preparer.prepare(conversations["text"][:1])
    for rows in ([[shared]], [[alone], [alone]]):
        with pytest.raises(ValueError, match="one packed row of samples without branches"):
            collate(rows, pad_id=0, attn_implementation="flash_attention_2")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="flash_attention_2 needs an NVIDIA GPU")
def test_flash_attention_itself(checkpoint, preparer, conversations):
    pytest.importorskip("flash_attn", reason="the package flash-attn is not installed")
    alone = [preparer.prepare([c]) for c in conversations["mixed"]]
    losses = []
    for attn in ("sdpa", "flash_attention_2"):
        model = AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=torch.bfloat16, attn_implementation=attn
        ).cuda()
        batch = collate([alone], pad_id=0, attn_implementation=attn)
        batch = {k: v.cuda() if torch.is_tensor(v) else v for k, v in batch.items()}
        for name in ("pixel_values", "pixel_values_videos"):
            batch[name] = normalise(batch[name])
        losses.append(token_loss(model(**batch), batch["labels"]).item())
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)


def test_who_sees_whom(models, preparer, conversations):
    """Token by token: as the plain model's causal mask inside a conversation, else nobody."""
    first = preparer.prepare(conversations["image"][:2])
    second = preparer.prepare(conversations["text"][:1])
    third = preparer.prepare(conversations["video"][:1])
    batch = collate([[first, second], [third]], pad_id=0, attn_implementation="sdpa")
    mask = batch["attention_mask"].numpy()
    lengths = [first.num_tokens + second.num_tokens, third.num_tokens]
    assert mask.shape == (2, 1, max(lengths), max(lengths))
    for row, samples in enumerate([[first, second], [third]]):
        begin = 0
        for sample in samples:
            for k in range(sample.num_tokens):
                mine = sample.branches[k]
                seen = [j for j in range(k + 1) if sample.branches[j] in (0, mine)]
                expected = np.zeros(max(lengths), bool)
                expected[[begin + j for j in seen]] = True
                np.testing.assert_array_equal(mask[row, 0, begin + k], expected)
            begin += sample.num_tokens
        assert not mask[row, 0, :begin, begin:].any()
        assert mask[row, 0, begin:, begin:].diagonal().all()  # padding sees itself: no NaN
    eager = collate([[first, second], [third]], pad_id=0, attn_implementation="eager")
    added = eager["attention_mask"]
    assert added.dtype == torch.float32
    np.testing.assert_array_equal((added == 0).numpy(), mask)
    assert (added[~batch["attention_mask"]] == torch.finfo(torch.float32).min).all()


def test_positions_are_the_models_own(models, preparer, conversations):
    samples = [preparer.prepare([c]) for c in conversations["mixed"]]
    batch = collate([samples], pad_id=0, attn_implementation="sdpa")
    begin = 0
    for sample in samples:
        here = slice(begin, begin + sample.num_tokens)
        alone = collate([[sample]], pad_id=0, attn_implementation="sdpa")
        positions, _ = models["sdpa"].model.get_rope_index(
            alone["input_ids"],
            alone["mm_token_type_ids"],
            alone.get("image_grid_thw"),
            alone.get("video_grid_thw"),
        )
        assert torch.equal(batch["position_ids"][1:, 0, here], positions[:, 0])
        assert batch["position_ids"][0, 0, here].tolist() == list(range(sample.num_tokens))
        begin += sample.num_tokens


def test_first_fit_decreasing(preparer, conversations):
    samples = [preparer.prepare([c]) for c in conversations["mixed"]]
    lengths = sorted((s.num_tokens for s in samples), reverse=True)
    for max_tokens in (0, lengths[0], 200, 10_000):
        rows = pack(samples, max_tokens)
        assert sorted(id(s) for row in rows for s in row) == sorted(map(id, samples))
        sums = [sum(s.num_tokens for s in row) for row in rows]
        assert all(
            total <= max_tokens or len(row) == 1 for total, row in zip(sums, rows, strict=True)
        )
        for k, row in enumerate(rows):  # no sample would have fitted into an earlier row
            assert all(sums[j] + row[0].num_tokens > max_tokens for j in range(k))
    assert len(pack(samples, 0)) == len(samples)
    assert len(pack(samples, 10_000)) == 1
