"""Prompts in chunks, and keys and values that are held once."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from pipeline.engines.transformers import branches as branches_module
from pipeline.engines.transformers import prefix as prefix_module
from pipeline.engines.transformers.attention import FRAMES, GROUPED
from pipeline.engines.transformers.branches import Branches, spare_tokens
from pipeline.engines.transformers.engine import TransformersEngine
from pipeline.engines.transformers.load import load_model
from pipeline.engines.transformers.prefix import Prefix, RootTokens
from pipeline.engines.transformers.vision import VisionEncoder
from pipeline.model.patches import patches, seen_pixels
from schemas.job.job import Job
from tests.support.counters import allocated_peak
from tests.support.job_files import TINY_BUDGET, make_job
from tests.support.made_units import unit_of_frames
from tests.support.messages import image, read, text, user, video
from tests.support.prepared import media_items, prepare_units

FILES = ("images/scene-0.jpg", "images/wide.png", "clips/h264-bframes.mp4", "clips/variable.mkv")
PAD_IDS = {"image": 500, "video": 501}
ATTENTION = {"": "sdpa", "text_config": GROUPED, "vision_config": FRAMES}


def tasks_job(checkpoint: Path, **sections) -> Job:
    tools = [{"type": "function", "function": {"name": "click", "parameters": {"type": "object"}}}]
    tasks = [
        "caption",
        "events",
        {"tool_calls": {"tools": tools}},
        {"custom": {"prompt": "W" * 90}},
        "chat",
    ]
    generation = {"max_new_tokens": 12, "retry": None}
    defaults = {"tasks": tasks, "budget": TINY_BUDGET, "generation": generation}
    return make_job(checkpoint, **defaults | sections)


def fed(model, monkeypatch) -> list[tuple[int, int]]:
    """Rows and columns of all that the language model is fed from now on."""
    shapes: list[tuple[int, int]] = []
    original = model.model.language_model.forward

    def forward(*args, inputs_embeds, **kwargs):
        shapes.append(tuple(inputs_embeds.shape[:2]))
        return original(*args, inputs_embeds=inputs_embeds, **kwargs)

    monkeypatch.setattr(model.model.language_model, "forward", forward)
    return shapes


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("num_tokens", [7, 50, 200])
def test_chunks_do_not_change_answers(checkpoint, archive, monkeypatch, num_tokens, attn):
    """Images, videos and a conversation of both, in prompts of several lengths."""
    job = tasks_job(checkpoint, model={"attn_implementation": attn})
    talk = [user(image(FILES[0]), video(FILES[2]), image(FILES[1]), text("What is the same?"))]
    units = prepare_units(job, media_items(archive, FILES) + read(archive, talk))
    engine = TransformersEngine(job)
    expected = [unit.answers for unit in engine.generate(units)]
    monkeypatch.setattr(prefix_module, "PREFILL_CHUNK_TOKENS", num_tokens)
    monkeypatch.setattr(branches_module, "PREFILL_CHUNK_TOKENS", num_tokens)
    shapes = fed(engine.generator.model, monkeypatch)
    answered = engine.generate(units)
    assert [unit.error for unit in answered] == [None] * len(units)
    assert [unit.answers for unit in answered] == expected
    prompts = [rows * columns for rows, columns in shapes if columns > 5]
    longest_suffix = 120  # a branch is not cut
    assert len(prompts) > 4
    assert max(prompts) <= max(num_tokens, longest_suffix)


def test_cached_keys_are_those_of_the_whole_prompt(checkpoint, monkeypatch):
    """Against the model's own forward with pixels: DeepStack and positions go with their chunk."""
    unit = unit_of_frames("video", (8, 64, 96))
    ids = [1, 2]
    for pair in range(4):
        ids += [3 + pair, *[PAD_IDS["video"]] * 6, 4]
    oracle = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    pad_ids = {"image": oracle.config.image_token_id, "video": oracle.config.video_token_id}
    ids = [pad_ids["video"] if each == PAD_IDS["video"] else each for each in ids]
    model = load_model(make_job(checkpoint).model, torch.device("cpu"))
    monkeypatch.setattr(prefix_module, "PREFILL_CHUNK_TOKENS", 5)
    with torch.inference_mode():
        prefix = Prefix(model, [RootTokens.of(ids, pad_ids, [(4, 4, 6)])], "sdpa", spare=3)
        (rows,) = prefix.passes()
        prefix.run(rows, VisionEncoder(model).encode([unit]))
        tokens = torch.tensor([ids])
        output = oracle(
            input_ids=tokens,
            mm_token_type_ids=(tokens == pad_ids["video"]).long() * 2,
            pixel_values_videos=patches(*seen_pixels(unit)),
            video_grid_thw=torch.tensor([[4, 4, 6]]),
            use_cache=True,
        )
    for mine, theirs in zip(prefix.cache.layers, output.past_key_values.layers, strict=True):
        length = len(ids)
        torch.testing.assert_close(mine.keys[:, :, :length], theirs.keys, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(mine.values[:, :, :length], theirs.values, rtol=1e-4, atol=1e-4)


def test_a_long_prompt_goes_through_the_model_in_chunks(checkpoint, monkeypatch):
    """224,953 tokens, as docs/budgets.md offers, on a device without values; as on a GPU."""
    model = load_model(make_job(checkpoint).model, torch.device("cpu")).to("meta")
    shapes = fed(model, monkeypatch)
    monkeypatch.setattr(prefix_module, "takes_causal_flag", lambda *_: True)
    lengths = [224_953, 900, 800, 30_000, 700]
    roots = [RootTokens.of([1] * length, PAD_IDS, []) for length in lengths]
    prefix = Prefix(model, roots, "sdpa", spare=100)
    passes = list(prefix.passes())
    assert [(rows.start, rows.stop) for rows in passes] == [(0, 1), (1, 3), (3, 4), (4, 5)]
    with torch.inference_mode():
        for rows in passes:
            prefix.run(rows, [None] * len(roots[rows]))
    num_chunks = [28, 1, 4, 1]  # of 8,192 tokens
    expected = [(1, 8192)] * 27 + [(1, 224_953 - 27 * 8192), (2, 900)]
    expected += [(1, 8192)] * 3 + [(1, 30_000 - 3 * 8192), (1, 700)]
    assert len(shapes) == sum(num_chunks)
    assert shapes == expected


def test_where_a_chunk_needs_a_bias_it_is_bounded(checkpoint, monkeypatch):
    model = load_model(make_job(checkpoint).model, torch.device("cpu")).to("meta")
    sizes = []
    language_model = model.model.language_model
    original = language_model.forward

    def forward(*args, attention_mask, **kwargs):
        sizes.append(0 if attention_mask is None else attention_mask.numel())
        return original(*args, attention_mask=attention_mask, **kwargs)

    monkeypatch.setattr(language_model, "forward", forward)
    prefix = Prefix(model, [RootTokens.of([1] * 40_000, PAD_IDS, [])], "sdpa", spare=100)
    with torch.inference_mode():
        prefix.run(*prefix.passes(), [None])
    assert sizes[0] == 0, "the first chunk is causal"
    assert all(2**27 < size <= 2**28 for size in sizes[1:-1])


def deep_model(checkpoint: Path, num_layers: int):
    """A model with many small layers, in which keys and values take most of the memory."""
    config = AutoConfig.from_pretrained(checkpoint)
    config.text_config.num_hidden_layers = num_layers
    config.text_config.num_key_value_heads = config.text_config.num_attention_heads
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForImageTextToText.from_config(
            config, attn_implementation=ATTENTION, dtype=torch.float32
        ).eval()


def one_copy(model, num_roots: int, num_tokens: int) -> int:
    config = model.config.text_config
    of_a_token = 2 * config.num_key_value_heads * config.head_dim * 4
    return config.num_hidden_layers * of_a_token * num_roots * num_tokens


def test_keys_and_values_are_held_once(checkpoint, monkeypatch):
    """From the first chunk over the branches and 6 steps, with a larger room on the way."""
    monkeypatch.setattr(branches_module, "CACHE_STEPS", 4)
    monkeypatch.setattr(prefix_module, "PREFILL_CHUNK_TOKENS", 128)
    monkeypatch.setattr(branches_module, "PREFILL_CHUNK_TOKENS", 128)
    model = deep_model(checkpoint, 24)
    suffixes = [[[7, 8, 9], [5], [6, 4]]] * 2
    roots = [RootTokens.of([k + 1] * 1000, PAD_IDS, []) for k in range(2)]

    @torch.inference_mode()
    def run():
        prefix = Prefix(model, roots, "sdpa", spare_tokens(suffixes))
        for rows in prefix.passes():
            prefix.run(rows, [None])
        branches = Branches(model, prefix, suffixes, "sdpa", None)
        for _ in range(6):
            branches.feed(torch.full((6,), 9))
        return branches

    peak, _ = allocated_peak(run)
    copy = one_copy(model, 2, 1000 + 3 * 9)
    assert copy < peak <= 1.1 * copy


def test_a_second_piece_of_branches_needs_no_second_copy(checkpoint, monkeypatch):
    monkeypatch.setattr(prefix_module, "PREFILL_CHUNK_TOKENS", 128)
    monkeypatch.setattr(branches_module, "PREFILL_CHUNK_TOKENS", 128)
    model = deep_model(checkpoint, 24)
    root = RootTokens.of([1] * 1500, PAD_IDS, [])
    pieces = [[[[7, 8, 9], [5]]], [[[5, 5, 5]]]]

    @torch.inference_mode()
    def run():
        logits = []
        prefix = Prefix(model, [root], "sdpa", spare_tokens(pieces[0]))
        prefix.run(*prefix.passes(), [None])
        for suffixes in pieces:
            branches = Branches(model, prefix, suffixes, "sdpa", None)
            branches.feed(torch.full((len(suffixes[0]),), 9))
            logits.append(branches.logits)
            prefix.rewind()
        return logits

    peak, logits = allocated_peak(run)
    assert peak <= 1.1 * one_copy(model, 1, 1500 + 2 * 67)
    with torch.inference_mode():
        for ids, found in (([7, 8, 9, 9], logits[0][0]), ([5, 5, 5, 9], logits[1][0])):
            expected = model(input_ids=torch.tensor([[1] * 1500 + ids]), logits_to_keep=1).logits
            torch.testing.assert_close(found, expected[0, 0], rtol=1e-3, atol=1e-3)
