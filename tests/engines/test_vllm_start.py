"""How vLLM is started: batch sizes, memory for media, adapters, telemetry. No engine starts here.

vLLM's own functions say what its arguments lead to. Runs where vLLM is installed: `make test-vllm`.
"""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from jobs.demo.demo import MODEL
from pipeline.engines.largest import LargestMedia
from schemas.errors import ModelError
from schemas.job.job import Job
from tests.support.family import family_checkpoint
from tests.support.job_files import make_job

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed here: make test-vllm", allow_module_level=True)

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]

GIB = 1 << 30
CLIP = LargestMedia(video_tokens=23_401)
"""A 60 s clip in full size; its number of tokens has no factor below 200."""


def vllm_job(source: Path = MODEL, model: dict[str, Any] | None = None, **own: Any) -> Job:
    settings = {"engine": "vllm", "max_model_len": 32768, "vllm": own, **(model or {})}
    return make_job(source, model=settings)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch):
    """Make the configuration with which ``VllmEngine`` would start vLLM."""
    from pipeline.engines.vllm import engine

    given = []

    def from_engine_args(args: Any, usage_context: Any = "ENGINE_CONTEXT", **_: Any) -> None:
        given.append((args, usage_context))
        raise ValueError("it is known with what vLLM would start")

    monkeypatch.setattr(engine.AsyncLLM, "from_engine_args", from_engine_args)

    def config_of(job: Job, largest: LargestMedia | None = None) -> Any:
        with pytest.raises(ModelError, match="it is known"):
            engine.VllmEngine(job, largest)
        args, usage_context = given.pop()
        return args.create_engine_config(usage_context)

    return config_of


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch):
    """Let vLLM choose its defaults for a card that is not here."""
    from vllm.engine import arg_utils

    def use(name: str, memory_gib: int) -> None:
        choose = arg_utils.EngineArgs.get_batch_defaults.__func__

        def on_card(cls: type, world_size: int) -> Any:
            with pytest.MonkeyPatch.context() as patch:
                platform = arg_utils.current_platform
                for attribute, value in {
                    "get_device_total_memory": lambda: memory_gib * GIB,
                    "get_device_name": lambda: name,
                    "is_device_capability": lambda capability: False,
                    "is_cpu": lambda: False,
                }.items():
                    patch.setattr(platform, attribute, value, raising=False)
                return choose(cls, world_size)

        monkeypatch.setattr(arg_utils.EngineArgs, "get_batch_defaults", classmethod(on_card))

    return use


@pytest.mark.parametrize(
    ("name", "memory_gib", "largest", "tokens", "seqs"),
    [
        ("NVIDIA H100 80GB HBM3", 80, CLIP, 16_384, 256),
        ("NVIDIA H100 80GB HBM3", 80, LargestMedia(image_tokens=1200), 16_384, 1024),
        ("NVIDIA H100 80GB HBM3", 80, None, 16_384, 256),
        ("NVIDIA A100-SXM4-80GB", 80, CLIP, 8192, 256),
        ("NVIDIA L4", 24, LargestMedia(image_tokens=1200), 8192, 256),
    ],
)
def test_a_step_reads_as_much_as_in_offline_work(
    start, card, name, memory_gib, largest, tokens, seqs
):
    """A 60 s clip of 24,000 tokens in 2 or 3 steps, not in 12 of 2,048."""
    card(name, memory_gib)
    scheduler = start(vllm_job(), largest).scheduler_config
    assert (scheduler.max_num_batched_tokens, scheduler.max_num_seqs) == (tokens, seqs)


def test_batch_sizes_of_the_job_file(start):
    scheduler = start(vllm_job(max_num_batched_tokens=5000, max_num_seqs=7), CLIP).scheduler_config
    assert (scheduler.max_num_batched_tokens, scheduler.max_num_seqs) == (5000, 7)


@pytest.mark.parametrize(
    "largest",
    [
        CLIP,
        LargestMedia(image_tokens=16_411, video_tokens=7),
        LargestMedia(image_tokens=1, video_tokens=224_951),
        LargestMedia(),
    ],
)
def test_memory_is_reserved_for_the_largest_media_of_the_plan(start, largest):
    """vLLM refuses media that are larger, and computes one of that size when it starts."""
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.encoder_budget import MultiModalBudget

    config = start(vllm_job(max_num_batched_tokens=1024), largest)
    budget = MultiModalBudget(config, MULTIMODAL_REGISTRY, enable_cache=False)
    found = budget.mm_max_toks_per_item
    assert largest.image_tokens <= found["image"] < largest.image_tokens + 132
    assert largest.video_tokens <= found["video"] < largest.video_tokens + 132
    assert budget.encoder_cache_size >= max(largest.image_tokens, largest.video_tokens)


def test_without_a_plan_memory_is_reserved_for_what_the_job_allows(start):
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.encoder_budget import MultiModalBudget

    job = vllm_job()
    budget = MultiModalBudget(start(job), MULTIMODAL_REGISTRY, enable_cache=False)
    found = budget.mm_max_toks_per_item
    assert found["image"] >= job.budget.image_tokens[1]
    assert found["video"] >= job.budget.unit_tokens


def test_patches_go_to_several_gpus_in_shared_memory_where_there_is_enough(start, monkeypatch):
    """vLLM does not start where its arena does not fit, as in a container with 64 MB."""
    from pipeline.engines.vllm import args

    found = {}
    for free in (64 << 20, 16 * GIB):
        monkeypatch.setattr(args.shutil, "disk_usage", lambda path, free=free: Usage(free))
        for size in (1, 2):
            job = vllm_job(tensor_parallel_size=size)
            made = args.engine_args(job, CLIP, opens_reasoning=False)
            found[free, size] = made.enable_shm_tensor_arena
    assert [key for key, is_on in found.items() if is_on] == [(16 * GIB, 2)]


class Usage:
    def __init__(self, free: int) -> None:
        self.free = free


def test_nothing_is_sent_to_the_makers_of_vllm(start, monkeypatch):
    from vllm.usage import usage_lib

    for name in ("VLLM_NO_USAGE_STATS", "DO_NOT_TRACK", "VLLM_DO_NOT_TRACK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(usage_lib, "_USAGE_STATS_ENABLED", None)
    start(vllm_job())
    assert not usage_lib.is_usage_stats_enabled()
    monkeypatch.setenv("VLLM_NO_USAGE_STATS", "0")
    monkeypatch.delenv("DO_NOT_TRACK")
    monkeypatch.setattr(usage_lib, "_USAGE_STATS_ENABLED", None)
    start(vllm_job())
    assert usage_lib.is_usage_stats_enabled(), "who sets it decides"


@pytest.mark.parametrize(
    ("args", "guesses", "has_cache"),
    [
        ({}, False, True),
        ({"enable_prefix_caching": False}, False, False),
        ({"speculative_config": {"method": "mtp", "num_speculative_tokens": 1}}, True, False),
    ],
)
def test_no_tokens_are_guessed_unless_the_job_says_so_and_then_without_the_prefix_cache(
    start, tmp_path_factory, args, guesses, has_cache
):
    """The checkpoint has the weights to guess tokens, as the published ones have."""
    source = family_checkpoint(tmp_path_factory, "qwen3_5")
    config = start(vllm_job(source, {"dtype": "bfloat16"}, engine_args=args))
    assert (config.speculative_config is not None) == guesses
    assert config.cache_config.enable_prefix_caching == has_cache
    assert config.cache_config.mamba_cache_mode == ("align" if has_cache else "none")


def test_blocks_are_as_long_as_vllm_makes_them(start, tmp_path_factory, tmp_path):
    """By vLLM's own function, for an attention of a GPU, and the layers of a Qwen3.5-4B."""
    from vllm.platforms import current_platform
    from vllm.v1.attention.backend import MultipleOf

    from pipeline.engines.vllm.prefix import block_tokens

    class Attention:
        @staticmethod
        def get_supported_kernel_block_sizes() -> list[Any]:
            return [MultipleOf(16)]

        @staticmethod
        def customize_spec(spec: Any) -> Any:
            return spec

    tiny = family_checkpoint(tmp_path_factory, "qwen3_5")
    source = Path(shutil.copytree(tiny, tmp_path / "model"))
    config = json.loads((source / "config.json").read_text())
    config["text_config"] |= {
        "num_key_value_heads": 4,
        "num_attention_heads": 16,
        "head_dim": 256,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
    }
    (source / "config.json").write_text(json.dumps(config))
    job = vllm_job(source, {"dtype": "bfloat16"}, engine_args={"block_size": 16})
    started = start(job)
    current_platform._align_hybrid_block_size(started, Attention)
    assert started.cache_config.block_size == block_tokens(job.model, config["text_config"]) == 528
