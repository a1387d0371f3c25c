"""vLLM with linear layers: the model types after Qwen3-VL, on its CPU build.

There vLLM computes linear layers in bfloat16 alone, with heads of 64 or 128 channels. So an answer
is compared with transformers' own model in float32 by its regret: how much lower than the best the
logit of each token is. On a GPU it was never run.
"""

import dataclasses
import importlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from jobs.cost.rates import read_again
from pipeline.engines.vllm.prefix import KeptPrefix, planned_prefix
from pipeline.model.patches import patches, seen_pixels
from pipeline.model.positions import mrope_positions, token_types
from pipeline.model.prompter import Prompter
from schemas.errors import ModelError
from schemas.job.job import Job
from schemas.tables.columns import to_table
from schemas.tables.unit import UNIT, PreparedUnit, Prompt
from tests.support.job_files import make_job
from tests.support.messages import image, read, text, user, video
from tests.support.prepared import media_items, prepare_units

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed here: make test-vllm", allow_module_level=True)

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1800)]

IMAGES = ("images/scene-0.jpg", "images/plate-0.png", "images/wide.png")
CLIPS = ("clips/h264-bframes.mp4", "clips/variable.mkv")
BLOCK = 160
"""Tokens of a block for these checkpoints: a state has 68,608 bytes, a token of a full layer 512,
and this build takes multiples of 32."""

MAX_REGRET = 0.5
"""Largest regret in bfloat16, as in ``tests/gpu``; logits have a standard deviation of about 1."""
MIN_SAME = 0.8
"""Share of tokens that are the float32 model's first choice, as in ``tests/gpu``; 0.91 were seen
with experts, where 0.17 of the tokens have a small regret if the frames are others."""


def hybrid_job(source: Path, **model: Any) -> Job:
    on_cpu = not torch.cuda.is_available()
    args = {
        "block_size": 32,
        **({"enforce_eager": True, "skip_mm_profiling": True} if on_cpu else {}),
    }
    own = {"max_num_seqs": 16, "max_num_batched_tokens": 16384, "engine_args": args}
    given = {"engine": "vllm", "dtype": "bfloat16", "max_model_len": 4096, "vllm": own}
    args |= model.pop("engine_args", {})
    return make_job(
        source,
        model=given | model,
        tasks=["caption", "ocr", {"objects": {"labels": ["circle", "square"]}}],
        sampling={"segmentation": {"kind": "window", "seconds": 6}},
        budget={"image_tokens": [100, 256], "frame_tokens": [60, 90], "unit_tokens": 512},
        generation={"max_new_tokens": 24, "constrained": False, "retry": None},
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Write a checkpoint of a type with heads as vLLM's CPU kernels take them."""
    from scripts.demo_model import tiny_checkpoint

    made: dict[str, Path] = {}
    original = tiny_checkpoint.model_config

    def model_config(*given: Any) -> dict[str, Any]:
        config = original(*given)
        config["text_config"] |= {"linear_key_head_dim": 64, "linear_value_head_dim": 64}
        return config

    def write(model_type: str) -> Path:
        if model_type not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(tiny_checkpoint, "model_config", model_config)
                folder = tmp_path_factory.mktemp(model_type)
                made[model_type] = tiny_checkpoint.write_tiny_checkpoint(
                    folder, model_type=model_type
                )
        return made[model_type]

    return write


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    """Start an engine for each job once."""
    from pipeline.engines.vllm.engine import VllmEngine

    running: dict[str, Any] = {}

    def start(job: Job) -> Any:
        key = job.model_dump_json()
        if key not in running:
            running[key] = VllmEngine(job)
        return running[key]

    yield start
    for engine in running.values():
        engine.close()


@contextmanager
def watched(engine: Any) -> Iterator[dict[str, Any]]:
    """The last output of each prompt, by unit and task."""
    seen: dict[str, Any] = {}
    original = engine.async_llm.generate

    async def generate(request: Any, params: Any, request_id: str, **kwargs: Any) -> Any:
        async for output in original(request, params, request_id, **kwargs):
            seen[request_id.rpartition("/")[0]] = output
            yield output

    engine.async_llm.generate = generate
    try:
        yield seen
    finally:
        engine.async_llm.generate = original


def float32(source: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(source, dtype=torch.float32).eval()


def regrets(model: Any, unit: PreparedUnit, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """How much lower than the best each token of an answer is, by transformers' own model."""
    kind, number = ("image", 1) if unit.seen[0].media.media_type == "image" else ("video", 2)
    ids = torch.tensor([prompt + answer[:-1]])
    pad = getattr(model.config, f"{kind}_token_id")
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == pad).long() * number,
        "pixel_values" if kind == "image" else "pixel_values_videos": patches(*seen_pixels(unit)),
        f"{kind}_grid_thw": torch.tensor([unit.seen[0].sampling.grid_thw]),
    }
    with torch.inference_mode():
        logits = model(**inputs).logits[0, len(prompt) - 1 :]
    return logits.max(dim=1).values - logits.gather(1, torch.tensor(answer)[:, None])[:, 0]


def of_all(model: Any, units: list[PreparedUnit], seen: dict[str, Any]) -> torch.Tensor:
    """Regrets of all tokens of all answers."""
    found = []
    for unit in units:
        for prompt in unit.prompts:
            output = seen[f"{unit.unit_id}/{prompt.task}"]
            answer = list(output.outputs[0].token_ids)
            found.append(regrets(model, unit, list(prompt.input_ids or ()), answer))
    return torch.cat(found)


@pytest.fixture
def units(archive: Path, source: Any) -> list[PreparedUnit]:
    return prepare_units(hybrid_job(source("qwen3_5")), media_items(archive, IMAGES + CLIPS), 4096)


def black(unit: PreparedUnit) -> PreparedUnit:
    """The unit, with frames that show nothing."""
    return dataclasses.replace(unit, frame_data=bytes(len(unit.frame_data or b"")))


@pytest.mark.parametrize(("model_type", "close"), [("qwen3_5_moe", 0.95), ("qwen3_5", 1.0)])
def test_answers_are_those_of_the_model(started, source, units, model_type, close):
    """Images and videos, several tasks of a unit together: states of its media are continued.

    close: share of tokens of small regret; a close call of a router takes another expert.
    """
    engine = started(hybrid_job(source(model_type)))
    with watched(engine) as seen:
        answered = engine.generate(units)
    assert [unit.error for unit in answered] == [None] * len(units)
    assert sum(output.num_cached_tokens > 0 for output in seen.values()) > len(units)
    model = float32(source(model_type))
    found = of_all(model, units, seen)
    assert (found == 0).float().mean() >= MIN_SAME
    assert (found < MAX_REGRET).float().mean() >= close, found.sort().values[-9:]
    other = of_all(model, [black(unit) for unit in units], seen)
    assert (other < MAX_REGRET).float().mean() < close, "answers to other frames would not pass"


def noise(unit: PreparedUnit, name: str) -> PreparedUnit:
    """The unit under another name, with frames that vLLM has never seen."""
    size = len(unit.frame_data or b"")
    frames = Random(name + unit.unit_id).randbytes(size)
    return dataclasses.replace(unit, unit_id=name + unit.unit_id, frame_data=frames)


def longer(prompt: Prompt, more: int) -> Prompt:
    """The prompt with as many tokens more before its end."""
    ids = prompt.input_ids or ()
    return dataclasses.replace(
        prompt,
        input_ids=(*ids[:-5], *ids[-6:-5] * more, *ids[-5:]),
        num_prompt_tokens=prompt.num_prompt_tokens + more,
        num_own_tokens=prompt.num_own_tokens + more,
    )


@pytest.mark.parametrize("more", [(0, 0, 0), (0, 200, 90), (70, 100, 80), (170, 160, 250)])
def test_what_is_kept_is_as_planned(started, source, units, more):
    """Between images shorter than a block and videos of several, and prompts of several lengths."""
    job = hybrid_job(source("qwen3_5"))
    engine = started(job)
    assert engine.kept == KeptPrefix(block_tokens=BLOCK, has_states=True)
    assert engine.kept == planned_prefix(job.model)
    assert engine.name.endswith(f", prefix cache in blocks of {BLOCK} tokens")
    asked = [
        dataclasses.replace(
            noise(unit, f"{more}"),
            prompts=tuple(longer(p, n) for p, n in zip(unit.prompts, more, strict=True)),
        )
        for unit in units
    ]
    with watched(engine) as seen:
        answered = engine.generate(asked)
    planned = read_again(to_table(asked, UNIT), engine.kept).tolist()
    assert [unit.num_read_again for unit in answered] == planned
    for unit in answered:
        prompts = [seen[f"{unit.unit_id}/{prompt.task}"] for prompt in unit.prompts]
        read = sum(len(o.prompt_token_ids) - o.num_cached_tokens for o in prompts)
        assert unit.num_fed_tokens == read


def test_without_the_cache_each_task_reads_all(started, source, units):
    job = hybrid_job(source("qwen3_5"), engine_args={"enable_prefix_caching": False})
    engine = started(job)
    assert engine.kept == KeptPrefix(block_tokens=None) == planned_prefix(job.model)
    assert engine.name.endswith(", no prefix cache")
    with watched(engine) as seen:
        answered = engine.generate(units)
    planned = read_again(to_table(units, UNIT), engine.kept).tolist()
    assert [unit.num_read_again for unit in answered] == planned
    assert min(planned) > 0
    found = of_all(float32(source("qwen3_5")), units, seen)
    assert (found == 0).float().mean() >= MIN_SAME
    assert found.max() < MAX_REGRET


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("vllm.model_executor.models.qwen3_vl", "Qwen3VLForConditionalGeneration"),
        ("vllm.model_executor.models.qwen3_5", "Qwen3_5ForConditionalGeneration"),
        ("vllm.model_executor.models.qwen3_5", "Qwen3_5MoeForConditionalGeneration"),
        ("vllm.models.qwen4_exp", "Qwen4ExpForConditionalGeneration"),
    ],
)
def test_from_our_input_vllm_computes_the_positions_of_the_model(source, archive, module, name):
    """Of each class, also of one that its CPU build does not run; no engine starts."""
    from vllm.multimodal.inputs import MultiModalFeatureSpec

    from pipeline.engines.vllm.inputs import engine_input, media_of

    folder = source("qwen3_5")
    config = AutoConfig.from_pretrained(folder)
    model_class = getattr(importlib.import_module(module), name)
    pad_ids = Prompter(str(folder)).pad_ids
    talk = [user(video(CLIPS[1]), text("and"), image(IMAGES[2]), video(CLIPS[0]), text("?"))]
    job = make_job(folder, tasks=["chat"])
    (unit,) = prepare_units(job, read(archive, talk), 262_144)
    (prompt,) = unit.prompts
    request = engine_input(prompt, media_of(unit), pad_ids)
    features = [
        MultiModalFeatureSpec(data=item, modality=kind, identifier=str(k), mm_position=place)
        for kind, items in request["mm_kwargs"].items()
        for k, (item, place) in enumerate(zip(items, request["mm_placeholders"][kind], strict=True))
    ]
    this = SimpleNamespace(
        config=config, _get_mrope_input_positions=model_class._get_mrope_input_positions
    )
    ids = request["prompt_token_ids"]
    found, delta = model_class.get_mrope_input_positions(this, ids, features)
    grids = [part.sampling.grid_thw for part in unit.seen]
    expected = mrope_positions(token_types(ids, pad_ids), grids)
    assert found.tolist() == expected.tolist()
    assert delta == int(expected.max()) + 1 - len(ids)


@pytest.mark.parametrize(
    ("model_type", "dtype", "message"),
    [
        ("qwen3_5", "float32", "is float32, .* bfloat16 alone: set model.dtype to bfloat16"),
        ("qwen3_5_moe", "float16", "is float16, .* bfloat16 alone"),
        ("qwen4_exp", "bfloat16", "qwen4_exp with FlashAttention, .* set model.engine to trans"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="of vLLM's CPU build")
def test_what_the_cpu_build_does_not_compute_is_an_error_before_the_start(
    source, model_type, dtype, message
):
    """Else vLLM's process ends at its start with a trace, or at the first unit."""
    from pipeline.engines.vllm.args import engine_args

    job = hybrid_job(source(model_type), dtype=dtype)
    with pytest.raises(ModelError, match=message):
        engine_args(job, None, opens_reasoning=False)
