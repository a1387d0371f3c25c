"""Sizes and token counts, compared with qwen-vl-utils' and transformers' own functions."""

import ast
import functools
import math
import random
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    smart_resize as transformers_image_rule,
)
from transformers.models.qwen3_vl.video_processing_qwen3_vl import (
    smart_resize as transformers_video_rule,
)

from pipeline.model.frame_size import (
    FACTOR,
    TOKEN_PIXELS,
    image_size,
    smart_resize,
    smart_resize_clip,
    video_size,
)
from schemas.errors import UnitError
from schemas.job.sampling import Budget
from schemas.tables.manifest import PartSettings

SIDES = st.integers(1, 12_000)
PIXELS = st.tuples(st.integers(1, 2000), st.integers(0, 30_000)).map(
    lambda tokens: (tokens[0] * TOKEN_PIXELS, sum(tokens) * TOKEN_PIXELS)
)


@functools.cache
def reference_rule() -> Callable[..., tuple[int, int]]:
    """The function ``smart_resize`` of qwen-vl-utils, whose module imports torchvision."""
    spec = find_spec("qwen_vl_utils")
    assert spec is not None and spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "vision_process.py").read_text())
    kept = [
        node
        for node in tree.body
        if (isinstance(node, ast.FunctionDef) and node.name.endswith(("_by_factor", "resize")))
        or (isinstance(node, ast.Assign) and ast.unparse(node).startswith("MAX_RATIO"))
    ]
    names: dict[str, Any] = {"math": math, "Optional": Any, "Tuple": tuple}
    exec("from typing import Optional, Tuple\n" + "\n".join(map(ast.unparse, kept)), names)
    rule: Callable[..., tuple[int, int]] = names["smart_resize"]
    return rule


def expected_size(
    rule: Callable[..., tuple[int, int]], height: int, width: int, pixels: tuple[int, int]
) -> tuple[int, int] | None:
    """By a rule; None: it refuses the picture."""
    try:
        return rule(height, width, FACTOR, *pixels)
    except ValueError:
        return None


def own_size(height: int, width: int, pixels: tuple[int, int]) -> tuple[int, int] | None:
    try:
        return smart_resize(height, width, min_pixels=pixels[0], max_pixels=pixels[1])
    except UnitError:
        return None


def test_the_image_rule_is_the_references_rule():
    """Where the reference makes a side of 0, which it cannot resize to, it is 32 here."""
    rule, draw = reference_rule(), random.Random(0)
    num_thin = num_zero = 0
    for _ in range(20_000):
        # Small sides as often as large ones.
        height, width = (int(2 ** draw.uniform(0, 13.5)) for _ in range(2))
        tokens = draw.randint(1, 2000)
        pixels = (tokens * TOKEN_PIXELS, (tokens + draw.randint(0, 30_000)) * TOKEN_PIXELS)
        expected = expected_size(rule, height, width, pixels)
        if expected and 0 in expected:
            num_zero += 1
            expected = (max(FACTOR, expected[0]), max(FACTOR, expected[1]))
        num_thin += expected != expected_size(transformers_image_rule, height, width, pixels)
        assert own_size(height, width, pixels) == expected, (height, width, pixels)
    assert num_thin > 20, "pictures in which the rule of transformers differs"


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(10, 2000, (32, 1984)), (1500, 15, (1504, 32)), (1, 200, (32, 192)), (16, 3000, (32, 3008))],
)
def test_a_side_of_at_most_16_pixels_becomes_a_token(
    height: int, width: int, expected: tuple[int, int]
):
    """It does not make the other side smaller, as the rule of transformers would."""
    pixels = (4 * TOKEN_PIXELS, 16384 * TOKEN_PIXELS)
    assert expected_size(reference_rule(), height, width, pixels) == expected
    assert own_size(height, width, pixels) == expected


@settings(max_examples=3000)
@given(height=st.integers(17, 12_000), width=st.integers(17, 12_000), pixels=PIXELS)
def test_the_image_rule_is_transformers_rule_from_17_pixels(
    height: int, width: int, pixels: tuple[int, int]
):
    """So the processor that is published with the checkpoints gives the same sizes."""
    expected = expected_size(transformers_image_rule, height, width, pixels)
    assert own_size(height, width, pixels) == expected


@settings(max_examples=3000)
@given(frames=st.integers(2, 768), height=SIDES, width=SIDES, pixels=PIXELS)
def test_the_clip_rule_is_transformers_video_rule(
    frames: int, height: int, width: int, pixels: tuple[int, int]
):
    min_pixels, max_pixels = pixels
    try:
        expected = transformers_video_rule(frames, height, width, 2, FACTOR, min_pixels, max_pixels)
    except ValueError:
        with pytest.raises(UnitError, match="more than 200 times"):
            smart_resize_clip(frames, height, width, min_pixels=min_pixels, max_pixels=max_pixels)
        return
    assert (
        smart_resize_clip(frames, height, width, min_pixels=min_pixels, max_pixels=max_pixels)
        == expected
    )


@settings(max_examples=1000)
@given(
    pairs=st.integers(1, 384),
    height=st.integers(1, 4400) | st.integers(1, 40),
    width=st.integers(22, 4400),
    unit_tokens=st.integers(64, 50_000),
)
def test_the_frame_rule_is_the_references_rule(
    pairs: int, height: int, width: int, unit_tokens: int
):
    # vision_process.fetch_video: the cap of a frame, then the image rule for each frame.
    frames = 2 * pairs
    min_pixels = 128 * 32 * 32
    cap = max(min(768 * 32 * 32, unit_tokens * 32 * 32 / frames * 2), int(min_pixels * 1.05))
    expected = expected_size(reference_rule(), height, width, (min_pixels, cap))
    if expected is None:
        with pytest.raises(UnitError, match="more than 200 times"):
            video_size(frames, height, width, Budget(unit_tokens=unit_tokens))
        return
    expected = (max(FACTOR, expected[0]), max(FACTOR, expected[1]))
    size = video_size(frames, height, width, Budget(unit_tokens=unit_tokens))
    assert (size.resized_height, size.resized_width) == expected
    assert size.num_tokens == pairs * (expected[0] // 32) * (expected[1] // 32)


LIMIT = st.none() | st.integers(4 * TOKEN_PIXELS, 3000 * TOKEN_PIXELS)


@settings(max_examples=1500)
@given(
    pairs=st.integers(0, 384),
    sides=st.tuples(st.integers(32, 4400), st.integers(32, 4400)),
    min_pixels=LIMIT,
    max_pixels=LIMIT,
    total=LIMIT | st.integers(10**6, 10**9),
)
def test_the_limits_of_one_picture_are_applied_as_the_reference_does(
    pairs: int,
    sides: tuple[int, int],
    min_pixels: int | None,
    max_pixels: int | None,
    total: int | None,
):
    """pairs: frame pairs of a video; 0: an image."""
    own = PartSettings(min_pixels=min_pixels, max_pixels=max_pixels, total_pixels=total)
    if pairs == 0:
        # vision_process.fetch_image
        floor, cap = min_pixels or 4 * 1024, max_pixels or 16384 * 1024
        size = image_size(*sides, Budget(), own)
    else:
        # vision_process.fetch_video; a job's unit_tokens is its total_pixels.
        floor, frames = min_pixels or 128 * 1024, 2 * pairs
        cap = max(min(768 * 1024, (total or 24576 * 1024) / frames * 2), int(floor * 1.05))
        cap = min(max_pixels or cap, cap)
        size = video_size(frames, *sides, Budget(), own)
    if cap < floor:  # the reference raises an error; here the job's limit is ignored
        found = (size.resized_height, size.resized_width)
        assert min_pixels is not None or min(found) == FACTOR or found[0] * found[1] <= cap
        return
    expected = transformers_image_rule(*sides, FACTOR, floor, cap)
    assert (size.resized_height, size.resized_width) == expected


@given(height=st.integers(64, 9000), width=st.integers(64, 9000), pairs=st.integers(0, 9))
def test_a_requested_size_is_rounded_as_the_reference_does(height: int, width: int, pairs: int):
    own = PartSettings(resized_height=height, resized_width=width, max_pixels=5000)
    budget = Budget(image_tokens=(4, 8), frame_tokens=(4, 8))
    size = video_size(2 * pairs, 9, 9, budget, own) if pairs else image_size(9, 9, budget, own)
    expected = transformers_image_rule(height, width, FACTOR, 4 * 1024, 16384 * 1024)
    assert (size.resized_height, size.resized_width) == expected
    assert size.grid_thw == (pairs or 1, expected[0] // 16, expected[1] // 16)


def test_the_budget_of_a_full_hd_picture():
    size = image_size(1080, 1920, Budget())
    assert (size.resized_height, size.resized_width) == (1088, 1920)
    assert size.grid_thw == (1, 68, 120)
    assert size.num_tokens == 34 * 60


def test_many_frames_get_the_minimum_even_over_the_units_budget():
    size = video_size(768, 1080, 1920, Budget(unit_tokens=1000))
    assert size.num_tokens > 1000
    # The maximum is 1.05 times the minimum, and sides are rounded down to multiples of 32.
    assert size.resized_height * size.resized_width == 15 * 8 * TOKEN_PIXELS


def test_per_clip_counts_all_frames_together():
    size = video_size(
        20, 1080, 1920, Budget(frame_tokens=(4, 768), unit_tokens=1000, video_rule="per_clip")
    )
    assert size.num_tokens <= 1000
    assert size.grid_thw[0] == 10


def test_a_picture_that_is_too_long_is_refused():
    with pytest.raises(UnitError, match="10000x40: one side is more than 200 times"):
        image_size(40, 10_000, Budget())
