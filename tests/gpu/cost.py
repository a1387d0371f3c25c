"""Checks of what answering costs: waits for the device in a step, memory against its prediction."""

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from pipeline.engines.transformers.engine import TransformersEngine
from tests.gpu.figures import Figure, Place
from tests.gpu.scenes import NEW_TOKENS, make_job, mixed_units
from tests.support.array_units import array_unit
from tests.support.counters import Counted, count, peak_bytes, tensor_bytes
from tests.support.predicted import batch_bytes, token_bytes, weight_bytes
from tests.support.published import SIZES, random_weights, write_published

STEPS = (6, 14)
"""Lengths of answers; the difference of their counts is that of the steps between."""


def steps(place: Place) -> list[Figure]:
    """Waits and launches of a decoding step, from two runs with answers of different length."""
    counted: list[Counted] = []
    for length in STEPS:
        generation = {"max_new_tokens": length, "constrained": False, "stop_loops": False}
        job = make_job(place, generation=generation)
        engine = TransformersEngine(job)
        engine.generator.end_ids = []
        units = mixed_units(job, engine.generator.prompter)[:2]
        engine.generate(units)  # warms up
        counted.append(count(place.device, lambda e=engine, u=units: e.generate(u)))
    few, many = counted
    num_steps = STEPS[1] - STEPS[0]
    return [
        Figure(
            what="waits for the device in a step",
            value=(many.num_waits - few.num_waits) / num_steps,
            # On a GPU, to read the tokens; the count on a CPU does not have that.
            maximum=0.0 if place.device.type == "cpu" else 1.0,
        ),
        Figure(
            what="launches in a step",
            value=(many.num_launches - few.num_launches) / num_steps,
        ),
    ]


def weights(place: Place) -> list[Figure]:
    """Bytes of the weights and of a cached token, predicted against torch's tensors.

    On the meta device: nothing is computed or allocated.
    """
    figures = []
    for size in SIZES:
        config = AutoConfig.from_pretrained(write_published(place.folder / size, size))
        with torch.device("meta"), torch.inference_mode():
            model = AutoModelForImageTextToText.from_config(config, dtype=place.dtype)
            width = config.text_config.hidden_size
            output = model.model.language_model(
                inputs_embeds=torch.zeros((1, 8, width), dtype=place.dtype), use_cache=True
            )
        layers = output.past_key_values.layers
        cached = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers) / 8
        of_weights = weight_bytes(config, place.dtype)
        of_token = token_bytes(config, place.dtype)
        held = sum(parameter.nbytes for parameter in model.parameters())
        exact = {"minimum": 1.0, "maximum": 1.0}
        figures += [
            Figure(what=f"{size}: weights over their prediction", value=held / of_weights, **exact),
            Figure(what=f"{size}: a cached token, too", value=cached / of_token, **exact),
        ]
    return figures


def memory(place: Place) -> list[Figure]:
    """Peak memory of answering, over what is predicted for it."""
    if place.is_small:
        engine = TransformersEngine(make_job(place))
        units = mixed_units(make_job(place), engine.generator.prompter)[:1]
    else:
        source = write_published(place.folder / "2B", "2B")
        own = {"source": str(source), "engine": "transformers", "device": place.device.type}
        job = make_job(place, model=own | {"dtype": place.dtype_name})
        with random_weights(place.device.type):
            engine = TransformersEngine(job)
        frames = np.random.default_rng(0).integers(0, 256, (60, 480, 832, 3), np.uint8)
        units = [array_unit(job, engine.generator.prompter, "clip", frames)]
    model = engine.generator.model
    used = peak_bytes(place.device, tensor_bytes(model), lambda: engine.generate(units))
    predicted = weight_bytes(model.config, place.dtype)
    predicted += batch_bytes(model.config, place.dtype, units, NEW_TOKENS)
    return [
        Figure(what="peak memory, MiB", value=used / 2**20),
        Figure(
            what="peak memory over its prediction",
            value=used / predicted,
            # A model of some MB has more beside its tensors than the arithmetic counts.
            minimum=0.9,
            maximum=1.25 if place.is_small else 1.1,
        ),
    ]
