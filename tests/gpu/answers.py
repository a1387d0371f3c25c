"""Checks of the engine's answers, against transformers' own model in float32 on the CPU."""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from pipeline.engines.transformers.engine import TransformersEngine
from pipeline.model.patches import patches, seen_pixels
from schemas.tables.unit import AnsweredUnit, PreparedUnit
from tests.gpu.figures import Figure, Place
from tests.gpu.scenes import clip, make_job, mixed_units, model_inputs, picture, recorded, reference
from tests.support.array_units import array_unit

MAX_REGRET = {"float32": 1e-3, "bfloat16": 0.5}
"""How much lower than the best a chosen token's logit may be, by the float32 model."""
MIN_SAME = {"float32": 1.0, "bfloat16": 0.8}
"""Share of answers that are equal token by token; in bfloat16 close calls may differ."""
MAX_ERROR = {"float32": 1e-4, "bfloat16": 0.05}
"""Root mean square of the difference of vision features or logits, over that of float32's."""
NUM_DRAWS = 256


def answers(place: Place) -> list[Figure]:
    """Several tasks about images and clips of several sizes, together and one by one."""
    job = make_job(place)
    engine = TransformersEngine(job)
    ids_of = recorded(engine)
    units = mixed_units(job, engine.generator.prompter)
    together = engine.generate(units)
    alone = [engine.generate([unit])[0] for unit in units]
    figures = _against_reference(place, units, together, ids_of)
    is_exact = place.dtype == torch.float32
    same = _share_equal(_texts(together), _texts(alone))
    what = "answers of a batch that are equal one by one"
    return [*figures, Figure(what=what, value=same, minimum=1.0 if is_exact else -math.inf)]


def long_prefix(place: Place) -> list[Figure]:
    """A long prompt, which the engine may read in pieces, and the reference reads whole."""
    job = make_job(place, tasks=["caption"])
    engine = TransformersEngine(job)
    ids_of = recorded(engine)
    steps: list[torch.Tensor] = []
    handle = engine.generator.model.lm_head.register_forward_hook(
        lambda module, arguments, output: steps.append(output[0, -1].float().cpu())
    )
    width, height, count = (128, 96, 48) if place.is_small else (384, 320, 240)
    frames = clip(7, width, height, count, job.sampling.fps)
    unit = array_unit(job, engine.generator.prompter, "long", frames)
    answered = engine.generate([unit])
    handle.remove()
    (ids,) = ids_of.values()
    expected = _logits(unit, list(unit.prompts[0].input_ids or ()), ids)
    error = _relative_error(torch.stack(steps[-len(ids) :]), expected)
    return [
        *_against_reference(place, [unit], answered, ids_of),
        Figure(what="error of logits", value=error, maximum=MAX_ERROR[place.dtype_name]),
    ]


def vision(place: Place) -> list[Figure]:
    """Features of media that are encoded together, against one by one in float32."""
    job = make_job(place)
    engine = TransformersEngine(job)
    model = engine.generator.model
    figures = []
    for kind in ("image", "video"):
        units = [
            unit
            for unit in mixed_units(job, engine.generator.prompter)
            if unit.seen[0].media.media_type == kind
        ]
        rows = [patches(*seen_pixels(unit)) for unit in units]
        grids = torch.tensor([unit.seen[0].sampling.grid_thw for unit in units])
        name = f"get_{kind}_features"
        with torch.inference_mode():
            found = getattr(model, name)(
                torch.cat(rows).to(place.device), grids.to(place.device), return_dict=True
            )
            alone = [
                getattr(reference(), name)(row, grid[None], return_dict=True)
                for row, grid in zip(rows, grids, strict=True)
            ]
        outputs = [_outputs(one) for one in alone]
        expected = [torch.cat(of_all) for of_all in zip(*outputs, strict=True)]
        error = max(map(_relative_error, _outputs(found), expected))
        maximum = MAX_ERROR[place.dtype_name]
        figures.append(Figure(what=f"error of {kind} features", value=error, maximum=maximum))
    return figures


def sampling(place: Place) -> list[Figure]:
    """Random answers: they follow from the seed, and the tokens' shares from the softmax."""
    generation = {"max_new_tokens": 12, "temperature": 2.0, "top_p": 0.95, "constrained": False}
    job = make_job(place, tasks=["caption", "ocr"], generation=generation | {"seed": 1})
    other = job.generation.model_copy(update={"seed": 2})
    engine = TransformersEngine(job)
    units = mixed_units(job, engine.generator.prompter)
    first = _texts(engine.generate(units))
    again = _share_equal(first, _texts(engine.generate(units)))
    alone = _share_equal(first, _texts([engine.generate([unit])[0] for unit in units]))
    changed = _share_equal(first, _texts(engine.generate(units, other)))
    is_exact = place.dtype == torch.float32
    return [
        Figure(what="drawn answers that are equal in a second run", value=again, minimum=1.0),
        Figure(
            what="drawn answers that are equal one by one",
            value=alone,
            minimum=1.0 if is_exact else -math.inf,
        ),
        Figure(what="drawn answers that another seed gives, too", value=changed, maximum=0.5),
        Figure(what="error of drawn shares", value=_share_error(place), maximum=0.1),
    ]


def _share_error(place: Place) -> float:
    """Largest difference of the shares of first tokens, over many units, from the softmax.

    The units show the same picture; each has its own random stream.
    """
    generation = {"max_new_tokens": 1, "temperature": 2.0, "constrained": False}
    job = make_job(place, tasks=["caption"], generation=generation)
    engine = TransformersEngine(job)
    prompter = engine.generator.prompter
    unit = array_unit(job, prompter, "0", picture(3, 64, 64))
    units = [dataclasses.replace(unit, unit_id=str(k)) for k in range(NUM_DRAWS)]
    drawn = Counter(_texts(engine.generate(units)))
    logits = _logits(unit, list(unit.prompts[0].input_ids or ()), [0])[0]
    expected: Counter[str] = Counter()
    for token, share in enumerate(torch.softmax(logits / 2.0, 0).tolist()):
        expected[prompter.decode([token])] += share
    return max(abs(drawn[text] / NUM_DRAWS - expected[text]) for text in {*drawn, *expected})


def _against_reference(
    place: Place,
    units: Sequence[PreparedUnit],
    answered: Sequence[AnsweredUnit],
    ids_of: dict[str, list[int]],
) -> list[Figure]:
    same, regrets, failed = [], [0.0], 0
    for unit, answer_row in zip(units, answered, strict=True):
        failed += answer_row.error is not None
        for prompt, raw in zip(unit.prompts, answer_row.answers, strict=False):
            asked, ids = list(prompt.input_ids or ()), ids_of[raw.raw_text]
            with torch.inference_mode():
                expected = reference().generate(
                    **model_inputs(unit, asked), max_new_tokens=len(ids), do_sample=False
                )
            steps = _logits(unit, asked, ids)
            chosen = steps.gather(1, torch.tensor(ids)[:, None])[:, 0]
            regrets.append(float((steps.max(dim=1).values - chosen).max()))
            same.append(expected[0, len(asked) :].tolist() == ids)
    name = place.dtype_name
    share = sum(same) / max(len(same), 1)
    return [
        Figure(what="units that failed", value=failed, maximum=0),
        Figure(what="answers equal to float32's", value=share, minimum=MIN_SAME[name]),
        Figure(what="largest regret of a token", value=max(regrets), maximum=MAX_REGRET[name]),
    ]


def _logits(unit: PreparedUnit, asked: list[int], ids: list[int]) -> torch.Tensor:
    """Logits of each token of an answer by the float32 model: [tokens, vocabulary]."""
    with torch.inference_mode():
        logits: torch.Tensor = reference()(**model_inputs(unit, asked + ids[:-1])).logits[0]
    return logits[len(asked) - 1 :]


def _texts(answered: Sequence[AnsweredUnit]) -> list[str]:
    return [answer.raw_text for unit in answered for answer in unit.answers]


def _share_equal(one: list[str], other: list[str]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def _outputs(features: Any) -> list[torch.Tensor]:
    """The encoder's output and those of its DeepStack layers, each of all media together."""
    found = (features.pooler_output, *features.deepstack_features)
    return [one if isinstance(one, torch.Tensor) else torch.cat(list(one)) for one in found]


def _relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    difference = found.float().cpu() - expected
    return float(difference.pow(2).mean().sqrt() / expected.pow(2).mean().sqrt())
