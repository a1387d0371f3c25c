"""Checks of what the model is given: token ids, patches, positions."""

from typing import Any

import torch

from pipeline.engines.transformers.engine import TransformersEngine
from pipeline.model.patches import normalise, patches, seen_pixels
from pipeline.model.positions import mrope_positions, token_types
from schemas.tables.unit import PreparedUnit
from tests.gpu.figures import Figure, Place
from tests.gpu.scenes import make_job, mixed_units, reference


def inputs(place: Place) -> list[Figure]:
    """Compare with torch's convolution, transformers' positions and the prompts' own ids."""
    engine = TransformersEngine(make_job(place))
    units = mixed_units(make_job(place), engine.generator.prompter)
    wrong_ids = sum(_wrong_ids(engine, unit) for unit in units)
    positions = sum(_wrong_positions(unit, engine.generator.prompter.pad_ids) for unit in units)
    distance = max(_patch_distance(unit, place.device) for unit in units)
    return [
        Figure(what="token ids that differ from the prompt's", value=wrong_ids, maximum=0),
        Figure(what="positions that differ from transformers'", value=positions, maximum=0),
        Figure(what="patches against torch's convolution", value=distance, maximum=1e-3),
    ]


def _wrong_ids(engine: TransformersEngine, unit: PreparedUnit) -> int:
    """Tokens that reach the model's embedding on the device and are not those of the prompt."""
    prompt = unit.prompts[0]
    alone = PreparedUnit(**(vars(unit) | {"prompts": (prompt,)}))
    fed: list[int] = []

    def record(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
        fed.extend(arguments[0].flatten().tolist())

    embedding = engine.generator.model.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(record)
    engine.generate([alone])
    handle.remove()
    pad = int(engine.generator.prompter.tokenizer.pad_token_id or 0)
    expected = list(prompt.input_ids or ())
    found = [token for token in fed if token != pad][: len(expected)]
    return sum(a != b for a, b in zip(found, expected, strict=False)) + abs(
        len(found) - len(expected)
    )


def _wrong_positions(unit: PreparedUnit, pad_ids: dict[str, int]) -> int:
    """Places where the positions of a prompt differ from those of the model's own function."""
    ids = unit.prompts[0].input_ids or ()
    types = token_types(ids, pad_ids)
    grids = [part.sampling.grid_thw for part in unit.seen]
    kind = unit.seen[0].media.media_type
    expected, _ = reference().model.get_rope_index(
        torch.tensor([ids]),
        torch.from_numpy(types)[None],
        **{f"{kind}_grid_thw": torch.tensor(grids)},
    )
    found = torch.from_numpy(mrope_positions(types, grids))
    return int((found != expected[:, 0]).sum())


def _patch_distance(unit: PreparedUnit, device: torch.device) -> float:
    """Largest difference of patches times random filters from a convolution of the frames."""
    (pixels,) = seen_pixels(unit)
    filters = torch.randn(8, 3, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    rows = patches(pixels.to(device)) @ filters.flatten(1).T.to(device)
    frames = normalise(pixels if len(pixels) > 1 else pixels.expand(2, -1, -1, -1))
    whole = torch.nn.functional.conv3d(
        frames.permute(3, 0, 1, 2)[None], filters, stride=filters.shape[2:]
    )
    t, h, w = whole.shape[2:]
    grid = whole[0].reshape(8, t, h // 2, 2, w // 2, 2).permute(1, 2, 4, 3, 5, 0)
    return float((rows.cpu() - grid.reshape(-1, 8)).abs().max())
