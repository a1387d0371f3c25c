"""Cost of three tasks relative to one: decoding, vision encoding, prefill, answers of equal length.

The peer is the same engine in three separate runs. Each round has other media, so that no cache
helps.

    python benchmarks/bench_tasks.py [--rounds N] [--small]
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.common import parser, write_results  # noqa: E402

QUESTIONS = {
    "caption": "Describe what is shown in one or two sentences, with the colours of all things.",
    "ocr": "Read all the text that can be seen, line by line, as it is written there.",
    "custom": "Report where each thing is, as a JSON list of labels and bounding boxes.",
}
ROUNDS = 3


class Size(NamedTuple):
    """Media and answers of a measurement."""

    output_tokens: int
    media_type: str
    width: int
    height: int
    seconds: float
    num_media: int
    vision_tokens: int


SIZES = {
    "images, 1,600 vision and 16 output tokens": Size(16, "image", 1280, 1280, 0.0, 2, 1600),
    "images, 1,600 vision and 32 output tokens": Size(32, "image", 1280, 1280, 0.0, 2, 1600),
    "clips, 2,400 vision and 32 output tokens": Size(32, "video", 640, 480, 8.0, 2, 2400),
    "images, 256 vision and 32 output tokens": Size(32, "image", 512, 512, 0.0, 8, 256),
}
SMALL_SIZES = {
    "an image": Size(4, "image", 64, 64, 0.0, 1, 16),
    "a clip": Size(4, "video", 64, 64, 1.0, 1, 32),
}


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    options = arguments.parse_args(argv)
    small = options.small
    rounds, sizes = (1, SMALL_SIZES) if small else (options.rounds, SIZES)
    from scripts.demo_model.tiny_checkpoint import write_tiny_checkpoint

    print(f"tasks: CPU seconds over those of one task, one thread, median of {rounds}")
    measured: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_tiny_checkpoint(Path(folder) / "checkpoint", size="demo")
        for name, size in sizes.items():
            measured[name] = measure(Path(folder), checkpoint, rounds, size)
            three, apart = (
                "{median:.2f} ({min:.2f} to {max:.2f})".format(**measured[name][way])
                for way in ("three tasks", "three separate runs")
            )
            print(f"  {name}: three tasks {three}, three separate runs {apart}", flush=True)
    write_results("tasks", {"rounds": rounds, "over_one_task": measured}, small=small)


def measure(folder: Path, checkpoint: Path, rounds: int, size: Size) -> dict[str, dict[str, float]]:
    """Ratios of a size over the rounds."""
    from benchmarks.render_media import render_clips, render_images
    from pipeline.engines.transformers.engine import TransformersEngine
    from pipeline.plan.planner import Planner
    from pipeline.stages.prepare import Prepare
    from pipeline.storage.storage import Storage
    from pipeline.workers.code_version import code_digest
    from schemas.job.job import check_job
    from schemas.tables.manifest import MediaItem

    def job(*names: str):
        spec = {
            "input": {"manifest": "unused.jsonl"},
            "output": "unused",
            "model": {"source": str(checkpoint), "dtype": "float32"},
            "budget": {
                "image_tokens": [4, size.vision_tokens],
                "frame_tokens": [4, 300],
                "unit_tokens": size.vision_tokens,
            },
            "generation": {"max_new_tokens": size.output_tokens, "stop_loops": False},
            "tasks": [{name: {"prompt": QUESTIONS[name]}} for name in names],
        }
        return check_job(spec, "bench")

    jobs = {"three tasks": job(*QUESTIONS)} | {q: job(q) for q in QUESTIONS}
    engines = {name: TransformersEngine(one, num_threads=1) for name, one in jobs.items()}

    def run(name: str, paths: list[Path]) -> float:
        """CPU seconds of decoding, prompting and answering, without planning."""
        items = [MediaItem(media_id=str(path), uri=str(path)) for path in paths]
        units = Planner(jobs[name], 262_144, Storage()).plan(items)
        prepare = Prepare(jobs[name], Storage(), code_digest())
        started = time.process_time()
        answered = engines[name].generate([prepare.prepare(unit) for unit in units])
        spent = time.process_time() - started
        for unit in answered:
            assert unit.error is None, unit.error
            assert {a.num_output_tokens for a in unit.answers} == {size.output_tokens}
        return spent

    found: dict[str, list[float]] = {"three tasks": [], "three separate runs": []}
    for seed in range(rounds + 1):
        shape = (size.num_media, seed, size.width, size.height)
        if size.media_type == "image":
            paths = render_images(folder, *shape)
        else:
            paths = render_clips(folder, *shape, size.seconds)
        order = list(jobs)[seed % 4 :] + list(jobs)[: seed % 4]
        spent = {name: run(name, paths) for name in order}
        if seed == 0:
            continue  # warms up
        apart = sum(spent[q] for q in QUESTIONS)
        found["three tasks"].append(spent["three tasks"] / (apart / 3))
        found["three separate runs"].append(apart / statistics.median(spent[q] for q in QUESTIONS))
    return {
        name: {"median": statistics.median(some), "min": min(some), "max": max(some)}
        for name, some in found.items()
    }


if __name__ == "__main__":
    main()
