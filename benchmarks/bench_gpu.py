"""The engines on a GPU, with models of the published sizes: speed and memory.

Random weights, made on the device; 1080p images and 60 s clips of random pixels in the default
sizes, which are in memory; answers of a fixed length. Each engine runs in a process of its own,
without Ray: ``transformers`` and, where it is installed, ``vllm``, beside ``bare``: the model's own
``generate`` on the same inputs. Prints a table, and says what was not measured, and why.

    python benchmarks/bench_gpu.py [--sizes 2B,4B,8B] [--engines transformers,bare,vllm]
        [--minutes 10] [--small]

With --small: a tiny model on the CPU.
"""

import importlib.util
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.common import call, is_child, parser, write_results  # noqa: E402

ENGINES = ("transformers", "bare", "vllm")
SIZES = ("2B", "4B", "8B")
TASKS = ["caption"]


class Load(NamedTuple):
    """What an engine is given.

    seconds: of a clip; 0: an image.
    num_units: beside the one that warms up.
    batch: units that ``bare`` takes at a time.
    """

    width: int
    height: int
    seconds: float
    num_units: int
    batch: int

    @property
    def media_type(self) -> str:
        return "video" if self.seconds else "image"


NEW_TOKENS = 128
LOADS = {"images": Load(1920, 1080, 0.0, 48, 16), "clips": Load(1920, 1080, 60.0, 8, 4)}
SMALL_LOADS = {"images": Load(96, 64, 0.0, 2, 2), "clips": Load(96, 64, 2.0, 2, 2)}


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--sizes", default=",".join(SIZES))
    arguments.add_argument("--engines", default=",".join(ENGINES))
    arguments.add_argument("--minutes", type=float, default=10.0, help="no engine runs after these")
    options = arguments.parse_args(argv)
    import torch

    from tests.support.machine import machine, wrong_packages

    if not options.small and not torch.cuda.is_available():
        print("gpu: not measured, torch sees no GPU here (--small: a tiny model on the CPU)")
        return
    if wrong := wrong_packages():
        print(f"gpu: {', '.join(wrong)}: pip install -r tests/gpu/requirements.txt")
        return
    about = machine("cpu" if options.small else "cuda")
    print("gpu:", ", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    sizes = ["tiny"] if options.small else options.sizes.split(",")
    ends = time.monotonic() + 60 * options.minutes
    found: dict[str, Any] = {"machine": about}
    for engine in options.engines.split(","):
        for size in sizes:
            name = f"{engine}, {size}"
            if engine == "vllm" and importlib.util.find_spec("vllm") is None:
                found[name] = {"missing": "vLLM is not installed"}
            elif time.monotonic() > ends:
                found[name] = {"missing": f"after {options.minutes:g} minutes nothing is started"}
            else:
                small, seconds = options.small, ends - time.monotonic()
                arguments = (engine, size, str(int(small)))
                try:
                    found[name] = call(measure, *arguments, small=small, timeout=seconds)
                except subprocess.SubprocessError as error:  # killed, or out of time
                    found[name] = {"error": str(error)}
            show(name, found)
            write_results("gpu", found, small=options.small)


def measure(engine: str, size: str, small: str) -> dict[str, Any]:
    """Load an engine, and run each load; returns the figures by load."""
    from tests.support.published import DEMO, random_weights, write_published

    is_small, figures = small == "1", {}
    device = "cpu" if is_small else "cuda"
    try:
        with tempfile.TemporaryDirectory() as name, random_weights(device):
            source = DEMO if is_small else write_published(Path(name) / size, size)
            job = make_job(engine, source, device)
            running = start(engine, job)
            for kind, load in (SMALL_LOADS if is_small else LOADS).items():
                figures[kind] = run(running, job, load)
            running.close()
    except Exception as error:  # the other engines and sizes must still be measured
        if is_small:
            raise
        figures["error"] = f"{type(error).__name__}: {error}"[:500]
    return figures


def make_job(engine: str, source: Path, device: str) -> Any:
    """A job with the default sizes of media, and answers of a fixed length."""
    from schemas.job.job import check_job

    model: dict[str, Any] = {"source": str(source), "device": device, "engine": "transformers"}
    if engine == "vllm":
        model |= {"engine": "vllm", "vllm": {"engine_args": {"load_format": "dummy"}}}
    new_tokens = 4 if device == "cpu" else NEW_TOKENS
    generation = {"max_new_tokens": new_tokens, "stop_loops": False, "constrained": False}
    spec = {
        "input": {"manifest": "unused.jsonl"},
        "output": "unused",
        "model": model,
        "tasks": TASKS,
        "generation": generation | {"retry": None},
    }
    return check_job(spec, "bench")


class Running(NamedTuple):
    """A loaded engine.

    answer: takes units and how many of them at a time, which only ``bare`` follows; returns the
        number of generated tokens.
    model: None if it is in another process.
    """

    answer: Callable[[list[Any], int], int]
    config: Any
    model: Any
    close: Callable[[], None] = lambda: None


def start(engine: str, job: Any) -> Running:
    """Load an engine."""
    if engine == "bare":
        from transformers import AutoModelForImageTextToText

        model = AutoModelForImageTextToText.from_pretrained(job.model.source, dtype="auto").eval()
        new_tokens = job.generation.max_new_tokens
        return Running(lambda units, n: bare(model, units, n, new_tokens), model.config, model)
    if engine == "vllm":
        from transformers import AutoConfig

        from pipeline.engines.vllm.engine import VllmEngine

        own: Any = VllmEngine(job)
        config, model = AutoConfig.from_pretrained(job.model.source), None
    else:
        from pipeline.engines.transformers.engine import TransformersEngine

        own = TransformersEngine(job)
        model = own.generator.model
        config = model.config

    def answer(units: list[Any], batch: int) -> int:
        answered = own.generate(units)
        errors = [unit.error for unit in answered if unit.error]
        assert not errors, errors[0]
        return sum(raw.num_output_tokens for unit in answered for raw in unit.answers)

    close = own.close if engine == "vllm" else Running._field_defaults["close"]
    return Running(answer, config, model, close)


def run(running: Running, job: Any, load: Load) -> dict[str, Any]:
    """Time an engine on units; returns speeds, memory and ratios."""
    import torch

    from pipeline.model.prompter import Prompter
    from tests.support.counters import peak_bytes, tensor_bytes
    from tests.support.predicted import batch_bytes, weight_bytes

    device = torch.device(job.model.device)
    warm_up, *units = make_units(job, Prompter(job.model.source), load)
    running.answer([warm_up], 1)
    measured: dict[str, float] = {}

    def timed() -> None:
        started = time.perf_counter()
        measured["tokens"] = running.answer(units, load.batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
        measured["seconds"] = time.perf_counter() - started

    held = tensor_bytes(running.model) if running.model is not None else 0
    used = peak_bytes(device, held, timed)
    seconds = measured["seconds"]
    figures = {
        "units": len(units),
        "seconds": seconds,
        "units_per_second": len(units) / seconds,
        "prompt_tokens_per_second": sum(unit.num_fed_tokens for unit in units) / seconds,
        "output_tokens_per_second": measured["tokens"] / seconds,
    }
    if running.model is not None:
        config, new_tokens = running.config, job.generation.max_new_tokens
        predicted = weight_bytes(config, config.dtype)
        predicted += batch_bytes(config, config.dtype, units, new_tokens)
        figures |= {"peak_gib": used / 2**30, "predicted_gib": predicted / 2**30}
    elif device.type == "cuda":  # vLLM takes the share that it is given
        free, total = torch.cuda.mem_get_info()
        figures["peak_gib"] = (total - free) / 2**30
    if estimate := estimated_seconds(running.config, units, job):
        figures["share_of_estimate"] = estimate / seconds
    return figures


def make_units(job: Any, prompter: Any, load: Load) -> list[Any]:
    """Units of distinct random pixels, in the sizes that the job's budget gives."""
    import numpy as np

    from pipeline.model.frame_size import image_size, video_size
    from pipeline.plan.segment import num_frames
    from tests.support.array_units import array_unit

    count = 1
    size = image_size(load.height, load.width, job.budget)
    if load.media_type == "video":
        count = num_frames(0.0, load.seconds, 30.0, job.sampling)
        size = video_size(count, load.height, load.width, job.budget)
    shape = (count, size.resized_height, size.resized_width, 3)
    random = np.random.default_rng(0)
    return [
        array_unit(job, prompter, f"unit-{k}", random.integers(0, 256, shape, np.uint8))
        for k in range(load.num_units + 1)
    ]


def bare(model: Any, units: list[Any], batch: int, new_tokens: int) -> int:
    """Answer units with transformers' own ``generate``; returns the number of tokens."""
    import torch

    from pipeline.model.patches import patches, seen_pixels

    kind = units[0].seen[0].media.media_type
    suffix, number = ("", 1) if kind == "image" else ("_videos", 2)
    pad, total = getattr(model.config, f"{kind}_token_id"), 0
    for begin in range(0, len(units), batch):
        some = units[begin : begin + batch]
        ids = torch.tensor([unit.prompts[0].input_ids for unit in some], device=model.device)
        rows = [patches(seen.to(model.device)) for unit in some for seen in seen_pixels(unit)]
        grids = [part.sampling.grid_thw for unit in some for part in unit.seen]
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == pad).long() * number,
                **{
                    f"pixel_values{suffix}": torch.cat(rows),
                    f"{kind}_grid_thw": torch.tensor(grids, device=model.device),
                },
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
                do_sample=False,
            )
        total += output[:, ids.shape[1] :].numel()
    return total


def estimated_seconds(config: Any, units: list[Any], job: Any) -> float | None:
    """Seconds by the arithmetic of ``pipeline/engines/speed.py``; None for a card it lacks."""
    import torch

    from pipeline.engines.speed import EngineTimes
    from schemas.job.engines import Simulated
    from schemas.tables.unit import AnsweredUnit, RawAnswer
    from tests.support.predicted import model_size

    card = torch.cuda.get_device_name().lower() if job.model.device == "cuda" else ""
    known = [gpu for gpu in ("l40s", "a100", "h100", "h200") if gpu in card]
    if not known:
        return None
    spec = Simulated(gpu=known[0], max_num_seqs=sum(len(unit.prompts) for unit in units))
    times = EngineTimes.of(spec, model_size(config))

    def answer(prompt: Any) -> RawAnswer:
        return RawAnswer(
            task=prompt.task,
            raw_text="",
            finish_reason="length",
            num_prompt_tokens=prompt.num_prompt_tokens,
            num_output_tokens=job.generation.max_new_tokens,
        )

    return sum(
        times.seconds(AnsweredUnit.of(unit, tuple(map(answer, unit.prompts)))) for unit in units
    )


def show(name: str, found: dict[str, Any]) -> None:
    """Print the figures of an engine, and its speed over ``bare`` where that was measured."""
    figures = found[name]
    engine, size = name.split(", ")
    for reason in ("missing", "error"):
        if reason in figures:
            print(f"  {name:18} not measured: {figures[reason]}", flush=True)
    for kind in LOADS:
        if kind not in figures:
            continue
        now = figures[kind]
        line = f"  {name:18} {kind:7} {now['units_per_second']:7.2f} units/s  "
        line += f"{now['prompt_tokens_per_second']:9,.0f} read and "
        line += f"{now['output_tokens_per_second']:7,.0f} written tokens/s"
        for key, text in (("peak_gib", "GiB"), ("predicted_gib", "GiB predicted")):
            line += f"  {now[key]:6.2f} {text}" if key in now else ""
        if "share_of_estimate" in now:
            line += f"  {now['share_of_estimate']:.2f} of the estimate"
        for other in ("transformers", "vllm") if engine == "bare" else [engine]:
            pair = [found.get(f"{one}, {size}", {}).get(kind) for one in (other, "bare")]
            if all(pair) and other != "bare":
                ratio = pair[0]["units_per_second"] / pair[1]["units_per_second"]
                pair[0]["speed_over_bare"] = ratio
                line += f"  {other}: {ratio:.2f} of bare's speed"
        print(line, flush=True)


if __name__ == "__main__" and not is_child(globals()):
    main()
