"""Rotary positions, compared with ``get_rope_index`` of each model type."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen3_5Model, Qwen3_5MoeModel, Qwen3VLModel, Qwen3VLMoeModel
from transformers.models.qwen4_exp.modeling_qwen4_exp import Qwen4ExpModel

from pipeline.model.family import MODEL_TYPES
from pipeline.model.positions import mrope_positions, token_types

IMAGE_PAD, VIDEO_PAD = 501, 502
MODELS = (Qwen3VLModel, Qwen3VLMoeModel, Qwen3_5Model, Qwen3_5MoeModel, Qwen4ExpModel)
PAD_IDS = {"image": IMAGE_PAD, "video": VIDEO_PAD}

sides = st.integers(1, 9).map(lambda merged: 2 * merged)
images = st.tuples(st.just("image"), st.just(1), sides, sides)
videos = st.tuples(st.just("video"), st.integers(1, 5), sides, sides)


def model_positions(
    ids: list[int], media: list[tuple], model_class: Any = Qwen3VLModel
) -> np.ndarray:
    """The model's own positions of one unpadded row: int64 [3, L]."""
    model = SimpleNamespace(
        config=SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2)),
        get_vision_position_ids=lambda *a, **k: model_class.get_vision_position_ids(None, *a, **k),
    )
    input_ids = torch.tensor([ids])
    types = (input_ids == IMAGE_PAD).long() + 2 * (input_ids == VIDEO_PAD).long()
    grids = {
        kind: torch.tensor(found) if (found := [m[1:] for m in media if m[0] == kind]) else None
        for kind in ("image", "video")
    }
    positions, _ = model_class.get_rope_index(
        model, input_ids, types, image_grid_thw=grids["image"], video_grid_thw=grids["video"]
    )
    return positions[:, 0].numpy()


def conversation(media: list[tuple], texts: list[int]) -> list[int]:
    """Ids of a text, then media with at least one token of text after each frame pair."""
    lengths = iter(texts)
    ids = [7] * next(lengths)
    for kind, pairs, height, width in media:
        for _ in range(pairs):
            ids += [PAD_IDS[kind]] * (height * width // 4) + [8] * next(lengths, 1)
    return ids


@settings(max_examples=120)
@given(
    media=st.lists(st.one_of(images, videos), max_size=4),
    texts=st.lists(st.integers(1, 12), min_size=1, max_size=12),
)
def test_positions_are_the_models_own(media: list[tuple], texts: list[int]):
    ids = conversation(media, texts)
    types = token_types(ids, PAD_IDS)
    found = mrope_positions(types, [m[1:] for m in media])
    assert found.dtype == np.int64
    for model_class in MODELS:
        np.testing.assert_array_equal(found, model_positions(ids, media, model_class))


def test_each_model_type_is_compared():
    assert tuple(model.config_class.model_type for model in MODELS) == MODEL_TYPES


def test_positions_in_numbers():
    ids = [7, 7, *[IMAGE_PAD] * 6, 8]  # two rows of three
    found = mrope_positions(token_types(ids, PAD_IDS), [(1, 4, 6)])
    assert found.tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5],
        [0, 1, 2, 2, 2, 3, 3, 3, 5],
        [0, 1, 2, 3, 4, 2, 3, 4, 5],
    ]


def test_a_picture_first_and_last():
    media = [("image", 1, 2, 8), ("video", 2, 6, 2)]
    ids = [*[IMAGE_PAD] * 4, 9, *[VIDEO_PAD] * 3, 9, *[VIDEO_PAD] * 3]
    found = mrope_positions(token_types(ids, PAD_IDS), [m[1:] for m in media])
    np.testing.assert_array_equal(found, model_positions(ids, media))


@pytest.mark.parametrize(
    ("ids", "grids", "message"),
    [
        ([7, IMAGE_PAD], [], "1 vision tokens for a picture of 0 x 0"),
        ([7, IMAGE_PAD, IMAGE_PAD], [(1, 2, 2)], "2 vision tokens for a picture of 1 x 1"),
        ([7, IMAGE_PAD, 7], [(1, 2, 2), (1, 2, 2)], "1 runs of vision tokens for 2 pictures"),
        ([7], [(1, 2, 2)], "0 runs of vision tokens for 1 pictures"),
        # Two frame pairs without text between them would pass for one picture.
        ([VIDEO_PAD, VIDEO_PAD], [(2, 2, 2)], "2 vision tokens for a picture of 1 x 1"),
    ],
)
def test_tokens_that_do_not_match_the_grids_are_refused(ids, grids, message):
    with pytest.raises(ValueError, match=message):
        mrope_positions(token_types(ids, PAD_IDS), grids)
