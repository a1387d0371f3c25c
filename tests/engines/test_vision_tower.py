"""The vision tower over many images and videos, against transformers' own, one at a time."""

from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForImageTextToText

from pipeline.engines.transformers.load import load_model
from pipeline.engines.transformers.vision import Encoded, VisionEncoder
from pipeline.model.memory import VISION_PASS_PATCHES
from pipeline.model.patches import patches, seen_pixels
from schemas.tables.unit import PreparedUnit
from tests.support.job_files import make_job
from tests.support.made_units import unit_of_frames

UNITS = [
    unit_of_frames("image", (1, 64, 96)),
    unit_of_frames("video", (6, 64, 96)),
    unit_of_frames("talk", (1, 32, 64), (4, 96, 64), (1, 64, 96)),  # 96 x 64 has as many patches
    unit_of_frames("text"),
    unit_of_frames("long", (10, 32, 64)),
]


@pytest.fixture(scope="module")
def oracle(checkpoint: Path):
    return AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()


def loaded(checkpoint: Path, attn: str = "sdpa"):
    model = make_job(checkpoint, model={"attn_implementation": attn}).model
    return load_model(model, torch.device("cpu"))


@torch.inference_mode()
def alone(model, unit: PreparedUnit) -> Encoded:
    """The model's own features of a unit, each image and video by itself."""
    found = [
        model.get_video_features(patches(pixels), torch.tensor([part.sampling.grid_thw]))
        for pixels, part in zip(seen_pixels(unit), unit.seen, strict=True)
    ]
    layers = zip(*([each.pooler_output, *each.deepstack_features] for each in found), strict=True)
    first, *others = [torch.cat([of[0] for of in layer]) for layer in layers]
    return Encoded(embeddings=first, deepstack=tuple(others))


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("max_patches", [8, 40, 100, VISION_PASS_PATCHES])
def test_features_are_those_of_each_alone(checkpoint, oracle, attn, max_patches):
    """Also where a video is cut between two frame pairs, and where one frame is over the limit."""
    tower = VisionEncoder(loaded(checkpoint, attn), max_patches)
    with torch.inference_mode():
        encoded = tower.encode(UNITS)
    for unit, found in zip(UNITS, encoded, strict=True):
        if not unit.parts:
            assert found is None
            continue
        expected = alone(oracle, unit)
        assert len(found.deepstack) == len(expected.deepstack) == 2
        pairs = zip(
            (found.embeddings, *found.deepstack),
            (expected.embeddings, *expected.deepstack),
            strict=True,
        )
        for mine, theirs in pairs:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def attention_calls(run) -> int:
    with profile(activities=[ProfilerActivity.CPU]) as profiled, torch.inference_mode():
        run()
    counts = {event.key: event.count for event in profiled.key_averages()}
    return counts["aten::scaled_dot_product_attention"]


def test_a_window_of_60_seconds_is_one_attention_call_a_layer(checkpoint, oracle):
    """120 frames are 60 frame pairs; transformers calls attention for each."""
    unit = unit_of_frames("window", (120, 64, 64))
    depth = oracle.config.vision_config.depth
    assert attention_calls(lambda: alone(oracle, unit)) == 60 * depth
    tower = VisionEncoder(loaded(checkpoint))
    assert attention_calls(lambda: tower.encode([unit])) == depth
    # With an image and a video of other sizes: one call for each size.
    several = [unit, *UNITS[:2]]
    assert attention_calls(lambda: tower.encode(several)) == 2 * depth


@pytest.mark.parametrize("max_patches", [16, 40, 96])
def test_a_pass_has_bounded_patches(checkpoint, max_patches):
    model = loaded(checkpoint)
    sizes = []
    model.model.visual.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    with torch.inference_mode():
        VisionEncoder(model, max_patches).encode(UNITS)
    assert sum(sizes) == sum(len(patches(p)) for unit in UNITS for p in seen_pixels(unit))
    assert all(size <= max(max_patches, 24) for size in sizes)  # a frame has 8 or 24 patches
    least = sum(sizes) / max_patches
    assert len(sizes) <= 2 * least + 1, "passes are filled"


def test_the_patch_embedding_is_the_convolution(checkpoint, oracle):
    rows = torch.randn(40, 1536, generator=torch.Generator().manual_seed(1))
    model = loaded(checkpoint)
    assert torch.equal(model.model.visual.patch_embed(rows), oracle.model.visual.patch_embed(rows))
    weights = {name: each.data_ptr() for name, each in model.state_dict().items()}
    VisionEncoder(model)
    product = model.model.visual.patch_embed
    assert {name: each.data_ptr() for name, each in model.state_dict().items()} == weights
    with torch.no_grad():
        expected = oracle.model.visual.patch_embed(rows)
        torch.testing.assert_close(product(rows), expected, rtol=1e-5, atol=1e-5)
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            product(rows)
    assert not [event.key for event in profiled.key_averages() if "conv" in event.key]
