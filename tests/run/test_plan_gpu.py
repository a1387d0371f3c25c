"""``reelscribe plan --gpu``: how many units of a plan fit into a GPU, before there is one."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
from click.testing import CliRunner
from rich.console import Console
from transformers import AutoConfig

from jobs.cli.main import main
from jobs.cluster import gpus
from jobs.cluster.gpus import batch_tokens, gpu_by_name, local_gpu
from jobs.plan.gpu_memory import fit_plan, print_memory
from pipeline.model.checkpoint import inspect_checkpoint
from pipeline.model.memory import CPU_BATCH_TOKENS, ModelMemory
from pipeline.model.sizes import GPUS, PUBLISHED, ModelSize
from pipeline.model.vllm_memory import VllmSizes, vllm_cache_tokens, vllm_pass_bytes
from schemas.errors import JobFileError, ResourceError
from schemas.job.engines import SimulatedGpu, SimulatedSize, Vllm
from schemas.job.job import Job, check_job
from schemas.tables.columns import to_table
from schemas.tables.error import ErrorRecord
from schemas.tables.media import Media, Part, Sampling
from schemas.tables.unit import UNIT, Prompt, Unit
from tests.support.model_sizes import CONFIGS

TASKS = ("caption", "events", "ocr", "text_spans", "objects")


def job(**sections) -> Job:
    tasks = [*TASKS[:4], {"objects": {"labels": ["car"]}}]
    return check_job({"input": {"scan": "clips"}, "output": "out", "tasks": tasks} | sections, "x")


def unit(name: str, kind: str, num_vision_tokens: int, num_text_tokens: int) -> Unit:
    sampling = Sampling(
        num_frames=2, resized_height=32, resized_width=32, grid_thw=(1, 2, 2),
        num_vision_tokens=num_vision_tokens,
    )  # fmt: skip
    shared = num_vision_tokens + num_text_tokens
    return Unit(
        unit_id=name,
        media_id=name,
        uri=name,
        media=Media(media_type=kind, width=1920, height=1080),
        sampling=sampling,
        prompts=tuple(
            Prompt(task=task, num_prompt_tokens=shared + 60, num_own_tokens=60) for task in TASKS
        ),
        num_shared_tokens=shared,
    )


def planned(window_tokens: int = 23_400) -> pa.Table:
    """Windows of 60 s and images of 1080p by the default budgets, a small one, a broken one."""
    units = [unit(f"w{k}", "video", window_tokens, 600) for k in range(3)]
    units += [unit("small", "video", 500, 60), unit("image", "image", 2040, 20)]
    broken = unit("broken", "video", 900_000, 0)
    units.append(broken.failed(ErrorRecord(type="over_context", message="too long", stage="plan")))
    return to_table(units, UNIT)


def fitting(size: str, gpu: str, **sections) -> dict[str, int]:
    memory = ModelMemory(size=PUBLISHED[size])
    found = fit_plan(planned(), job(**sections), memory, gpu, gpu_by_name(gpu))
    return {kind.name: kind.num_fitting for kind in found.kinds}


def test_twelve_default_windows_with_five_tasks_fit_into_an_h100():
    assert fitting("4B", "h100")["video"] >= 12
    assert fitting("4B", "h100")["image"] > 80
    assert fitting("4B", "80") == fitting("4B", "80GB") == fitting("4B", "H100")


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_units_of_hybrids_have_copies_of_their_prefix_and_states(engine):
    """By hand: for each of five tasks, 8 full layers with 4 heads, and 24 states."""
    config = {"model_type": "qwen3_5", "dtype": "bfloat16"}
    memory = ModelMemory(size=ModelSize.of(AutoConfig.for_model(**config).to_dict()))
    tokens = 5 * (23_400 + 600 + 60 + 256) * (2 * 8 * 4 * 256 * 2)
    states = 5 * 24 * (8192 * 4 * 2 + 32 * 128 * 128 * 4)
    sections = {"model": {"engine": engine}}
    found = fit_plan(planned(), job(**sections), memory, "h100", GPUS["h100"])
    (video,) = [kind for kind in found.kinds if kind.name == "video"]
    assert tokens + states < video.num_bytes < tokens + states + 20e9
    assert 0 < video.num_fitting <= GPUS["h100"].memory_bytes // (tokens + states)
    console = Console(file=io.StringIO(), width=120)
    print_memory(planned(), job(**sections), memory, "h100", console)
    assert "KB of cache, and an answer 51.9 MB of state" in console.file.getvalue()


def test_more_memory_and_smaller_models_fit_more():
    sizes = [fitting(size, "h200")["video"] for size in ("2B", "4B", "8B", "32B")]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    cards = [fitting("8B", gpu)["video"] for gpu in ("rtx4090", "l40s", "h100", "h200", "b200")]
    assert cards == sorted(cards) and cards[0] == 0


def test_engines_that_share_a_gpu_share_its_memory():
    def number(gpu: str, gpus: float) -> int:
        return fitting("2B", gpu, resources={"gpus_per_replica": gpus})["video"]

    assert number("80", 0.5) == number("40", 1) < number("80", 1)
    assert number("80", 0) == number("80", 1)  # a question about a GPU, whatever the job runs on
    memory, console = ModelMemory(size=PUBLISHED["8B"]), Console(file=io.StringIO(), width=120)
    half = job(resources={"gpus_per_replica": 0.5})
    message = r"fit into 0\.5 x 24 \(24 GB\).* 10\.8 GB can be used.*gpus_per_replica: 1`"
    with pytest.raises(ResourceError, match=message):
        print_memory(planned(), half, memory, "24", console)
    print_memory(planned(), half, memory, "h100", console)
    assert "0.5 x h100" in console.file.getvalue() and "of 36.0 GB are" in console.file.getvalue()


def test_vllm_has_its_own_share_of_memory_and_divides_the_model():
    whole = {"model": {"engine": "vllm"}}
    half = {"model": {"engine": "vllm", "vllm": {"gpu_memory_utilization": 0.5}}}
    assert fitting("8B", "h100", **whole)["video"] > fitting("8B", "h100", **half)["video"] > 0
    assert fitting("32B", "l40s", **whole)["video"] == 0
    two = {"model": {"engine": "vllm", "vllm": {"tensor_parallel_size": 2}}}
    four = {"model": {"engine": "vllm", "vllm": {"tensor_parallel_size": 4}}}
    assert fitting("32B", "l40s", **four)["video"] > fitting("32B", "l40s", **two)["video"] >= 0
    few = {"model": {"engine": "vllm", "vllm": {"max_num_seqs": 10}}}
    assert fitting("2B", "h200", **few) == {"image": 2, "video": 2}  # five answers each
    fp8 = {"model": {"engine": "vllm", "vllm": {"engine_args": {"kv_cache_dtype": "fp8"}}}}
    of_bfloat16, of_fp8 = (fitting("4B", "h100", **spec)["video"] for spec in (whole, fp8))
    assert of_fp8 == pytest.approx(2 * of_bfloat16, abs=2)


def test_vllm_reserves_memory_for_its_largest_item_in_one_pass():
    """It has no passes of a part of an item, as the engine on transformers has."""
    memory, settings = ModelMemory(size=PUBLISHED["8B"]), Vllm()
    for item_tokens, gigabytes in ((23_400, 2.7), (221_184, 25.9)):
        assert memory.vision_bytes(4 * item_tokens, None) / 1e9 == pytest.approx(gigabytes, rel=0.1)
        reserved = vllm_pass_bytes(memory, 8192, item_tokens)
        assert reserved == memory.vision_bytes(4 * item_tokens, None) + memory.feature_bytes(
            4 * item_tokens
        )
        left = 0.9 * 80e9 - memory.weight_bytes - reserved
        tokens = vllm_cache_tokens(memory, GPUS["h100"], settings, reserved)
        assert tokens == int(left // memory.token_bytes)
    assert vllm_pass_bytes(memory, 8192, 0) == memory.activation_bytes(8192)


def test_images_of_a_conversation_are_encoded_one_by_one():
    part = Part(
        uri="i",
        media=Media(media_type="image", width=1920, height=1080),
        sampling=unit("i", "image", 2040, 0).sampling,
    )
    talk = dataclasses.replace(
        unit("talk", "image", 20 * 2040, 600), media=None, sampling=None, parts=(part,) * 20
    )
    image = unit("image", "image", 2040, 39_360)
    memory, spec = ModelMemory(size=PUBLISHED["8B"]), job(model={"engine": "vllm"})
    both = [
        fit_plan(to_table([one], UNIT), spec, memory, "h100", GPUS["h100"]).kinds[0]
        for one in (talk, image)
    ]
    assert both[0].largest.cached_tokens == both[1].largest.cached_tokens
    assert both[0].num_bytes == both[1].num_bytes


def test_the_plan_follows_the_engines_settings():
    copying = {"model": {"engine": "transformers", "attn_implementation": "flash_attention_2"}}
    assert 0 < fitting("4B", "h100", **copying)["video"] < fitting("4B", "h100")["video"] / 3
    assert fitting("4B", "rtx4090", **copying)["video"] == 1, "the engine divides its branches"
    few = {"resources": {"max_batch_tokens": 60_000}}
    assert fitting("4B", "h100", **few)["video"] == 2
    tiny = {"resources": {"max_batch_tokens": 1000}}
    assert fitting("4B", "h100", **tiny)["video"] == 1
    steps = [
        {"model": {"engine": "vllm", "vllm": {"max_num_batched_tokens": tokens}}}
        for tokens in (8192, 131_072)
    ]
    small, large = (fitting("8B", "h100", **step)["video"] for step in steps)
    assert small > large


@pytest.mark.parametrize(
    ("gpu", "num_vision_tokens", "step_tokens", "num_seqs"),
    [
        ("h100", 0, 16_384, 1024),
        ("h100", 23_400, 16_384, 256),
        ("a100", 0, 8192, 256),
        ("l40s", 0, 8192, 256),
        ("NVIDIA A100-SXM4-80GB", 0, 8192, 256),
    ],
)
def test_sizes_of_vllm_are_those_that_it_chooses_by_the_card(
    gpu, num_vision_tokens, step_tokens, num_seqs
):
    """The same cards as in ``test_vllm_start``, which asks vLLM itself."""
    size = GPUS.get(gpu, GPUS["a100"])
    sizes = VllmSizes.on(gpu, size, Vllm(), has_videos=num_vision_tokens > 0)
    assert sizes == VllmSizes(step_tokens=step_tokens, num_seqs=num_seqs)


@pytest.mark.parametrize(
    ("size", "gpu", "sections", "message"),
    [
        ("32B", "l40s", {}, r"weights take 66\.7 GB, and 43\.2 GB can be used.*tensor_parallel"),
        (
            "8B",
            "rtx4090",
            {},
            r"video .* 25,580 tokens, .* needs 5\.\d GB, .* 4\.1 GB are left; lower .budget",
        ),
        (
            "235B-A22B",
            "h200",
            {"model": {"engine": "vllm", "vllm": {"tensor_parallel_size": 2}}},
            r"does not fit into 2 x h200.* 471\.3 GB, .*tensor_parallel_size: 4",
        ),
    ],
)
def test_what_cannot_fit_is_refused_with_numbers_and_what_to_do(size, gpu, sections, message):
    memory, console = ModelMemory(size=PUBLISHED[size]), Console(file=io.StringIO(), width=120)
    with pytest.raises(ResourceError, match=message):
        print_memory(planned(), job(**sections), memory, gpu, console)


def test_quantised_weights_fit_where_they_do():
    """A 32B in AWQ has 18 GB of projections; weights of an unknown kind refuse nothing."""
    awq = {"quant_method": "awq", "bits": 4, "group_size": 128}
    vllm = job(model={"engine": "vllm"})
    memory = ModelMemory.of(CONFIGS["32B"] | {"quantization_config": awq}, vllm.model)
    fit = fit_plan(planned(), vllm, memory, "l40s", GPUS["l40s"])
    assert min(kind.num_fitting for kind in fit.kinds) >= 1
    unknown = {"quant_method": "bitsandbytes"}
    memory = ModelMemory.of(CONFIGS["32B"] | {"quantization_config": unknown}, vllm.model)
    console = Console(file=io.StringIO(), width=400)
    print_memory(planned(), vllm, memory, "l40s", console)
    assert "what bitsandbytes makes of them is not known" in console.file.getvalue()


def test_this_machines_gpu_is_taken_without_a_name_but_refuses_nothing(tmp_path, monkeypatch):
    """The job may run elsewhere."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA GeForce RTX 4090, 24564'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    found = local_gpu()
    assert found is not None and found[1].memory_bytes == 24_564 * 2**20
    console = Console(file=io.StringIO(), width=160)
    print_memory(planned(), job(), ModelMemory(size=PUBLISHED["8B"]), None, console)
    assert "RTX 4090" in console.file.getvalue() and "does not fit" in console.file.getvalue()
    for text in ("echo nonsense", "exit 9", "echo"):
        tool.write_text(f"#!/bin/sh\n{text}\n")
        assert local_gpu() is None
    tool.unlink()
    assert local_gpu() is None


def test_blocks_are_cut_for_the_gpus_that_are_there(monkeypatch):
    memory = ModelMemory(size=PUBLISHED["4B"])

    def on(*nodes: dict[str, float], **sections) -> int:
        monkeypatch.setattr(gpus, "nodes", lambda: list(nodes))
        model = {"engine": "transformers"} | sections.pop("model", {})
        return batch_tokens(job(model=model, **sections), memory)

    h100 = {"CPU": 8.0, "GPU": 8.0, "accelerator_type:H100": 1.0}
    l40s = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:NVIDIA L40S": 1.0}
    unknown = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:X": 1.0}
    assert on({"CPU": 8.0}) == CPU_BATCH_TOKENS == on(h100, model={"device": "cpu"})
    assert on(h100) > on(h100, l40s) == on(l40s) > on(unknown) > CPU_BATCH_TOKENS
    assert on(h100) * memory.token_bytes < GPUS["h100"].memory_bytes
    assert on(h100, resources={"max_batch_tokens": 5000}) == 5000
    assert on(h100, resources={"gpus_per_replica": 0.5}) < on(h100) / 2


def test_the_tables_have_what_a_job_may_simulate():
    assert set(GPUS) == set(SimulatedGpu.__args__)
    assert set(PUBLISHED) == set(SimulatedSize.__args__)


@pytest.fixture(scope="module")
def four_b(checkpoint: Path, tmp_path_factory) -> Path:
    """The test's checkpoint, with the configuration of the published 4B."""
    folder = Path(shutil.copytree(checkpoint, tmp_path_factory.mktemp("published") / "4B"))
    config = json.loads((folder / "config.json").read_text())
    for name in ("text_config", "vision_config"):
        config[name] |= CONFIGS["4B"][name]
    config |= {key: CONFIGS["4B"][key] for key in ("dtype", "tie_word_embeddings")}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_command_says_what_fits_and_refuses_what_does_not(four_b, archive, tmp_path, no_ray):
    spec = tmp_path / "job.yaml"
    spec.write_text(
        f"input: {{scan: {archive}/images}}\noutput: {tmp_path / 'out'}\ntasks: [caption, ocr]\n"
        f"model: {{source: {four_b}}}\n"
    )

    def call(gpu: str):
        return CliRunner().invoke(main, ["plan", str(spec), "--gpu", gpu], prog_name="reelscribe")

    fits = call("h100")
    assert fits.exit_code == 0, fits.output
    assert "memory of h100, 80 GB, transformers" in fits.output
    assert "Weights take 8.9 GB; 63.1 of 72.0 GB are left" in fits.output
    assert "147.5 KB of cache" in fits.output and "512 MB of frames" in fits.output
    small = call("8")
    assert small.exit_code == 2 and "weights take 8.9 GB, and 7.2 GB can be used" in small.output
    unknown = call("h1000")
    assert unknown.exit_code == 2 and "known are rtx4090, l40s" in unknown.output


def test_a_gpu_that_does_not_exist_is_a_mistake():
    for name in ("", "0", "-3", "v", "80TB"):
        with pytest.raises(JobFileError, match="no such GPU"):
            gpu_by_name(name)


def test_a_checkpoint_says_what_memory_it_takes(four_b):
    from schemas.job.model import Model

    memory = inspect_checkpoint(Model(source=str(four_b))).memory
    assert memory == ModelMemory(size=PUBLISHED["4B"])
