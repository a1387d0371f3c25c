"""What three tasks cost, over one: decoding, vision encoding, prefill and answers of equal length.

The peer is the same engine asked in three separate runs. Each round has media of its own, so that
nothing can be a cache.

    python benchmarks/bench_tasks.py [--rounds N]
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]
OUT = ROOT / "build" / "bench" / "tasks.json"
QUESTIONS = {
    "caption": "Describe what is shown in one or two sentences, with the colours of all things.",
    "ocr": "Read all the text that can be seen, line by line, as it is written there.",
    "custom": "Report where each thing is, as a JSON list of labels and bounding boxes.",
}
ROUNDS = 3
SIZES = {  # tokens of an answer; media type, width, height, seconds, how many, vision tokens
    "images, 1,600 vision and 16 output tokens": (16, "image", 1280, 1280, 0.0, 2, 1600),
    "images, 1,600 vision and 32 output tokens": (32, "image", 1280, 1280, 0.0, 2, 1600),
    "clips, 2,400 vision and 32 output tokens": (32, "video", 640, 480, 8.0, 2, 2400),
    "images, 256 vision and 32 output tokens": (32, "image", 512, 512, 0.0, 8, 256),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    rounds = parser.parse_args().rounds
    from jobs.tiny_checkpoint import write_tiny_checkpoint

    print(f"tasks: CPU seconds over those of one task, one thread, median of {rounds}")
    measured: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_tiny_checkpoint(Path(folder) / "checkpoint", size="demo")
        for name, (output_tokens, *size) in SIZES.items():
            measured[name] = measure(Path(folder), checkpoint, rounds, output_tokens, *size)
            three, apart = (
                "{median:.2f} ({least:.2f} to {most:.2f})".format(**measured[name][way])
                for way in ("three tasks", "three separate runs")
            )
            print(f"  {name}: three tasks {three}, three separate runs {apart}", flush=True)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"rounds": rounds, "over_one_task": measured}, indent=2) + "\n")
    print(f"  -> {OUT}")


def measure(
    folder: Path,
    checkpoint: Path,
    rounds: int,
    output_tokens: int,
    kind: str,
    width: int,
    height: int,
    seconds: float,
    count: int,
    vision_tokens: int,
) -> dict[str, dict[str, float]]:
    """Ratios of a size over the rounds."""
    from benchmarks.render_media import render_clips, render_images
    from pipeline.engines.transformers import TransformersEngine
    from pipeline.plan import Planner
    from pipeline.same_code import code_digest
    from pipeline.stages import Prepare
    from pipeline.storage import Storage
    from schemas.job import check_job
    from schemas.manifest import MediaItem

    def job(*names: str):
        spec = {
            "input": {"manifest": "unused.jsonl"},
            "output": "unused",
            "model": {"source": str(checkpoint), "dtype": "float32"},
            "budget": {
                "image_tokens": [4, vision_tokens],
                "frame_tokens": [4, 300],
                "unit_tokens": vision_tokens,
            },
            "generation": {"max_new_tokens": output_tokens, "stop_loops": False},
            "tasks": [{name: {"prompt": QUESTIONS[name]}} for name in names],
        }
        return check_job(spec, "bench")

    jobs = {"three tasks": job(*QUESTIONS)} | {q: job(q) for q in QUESTIONS}
    engines = {name: TransformersEngine(asked, num_threads=1) for name, asked in jobs.items()}

    def run(name: str, paths: list[Path]) -> float:
        """CPU seconds of decoding, prompting and answering, planning left out."""
        items = [MediaItem(media_id=str(path), uri=str(path)) for path in paths]
        units = Planner(jobs[name], 262_144, Storage()).plan(items)
        prepare = Prepare(jobs[name], Storage(), code_digest())
        started = time.process_time()
        answered = engines[name].generate([prepare.prepare(unit) for unit in units])
        spent = time.process_time() - started
        for unit in answered:
            assert unit.error is None, unit.error
            assert {a.num_output_tokens for a in unit.answers} == {output_tokens}
        return spent

    found: dict[str, list[float]] = {"three tasks": [], "three separate runs": []}
    for seed in range(rounds + 1):
        if kind == "image":
            paths = render_images(folder, count, seed, width, height)
        else:
            paths = render_clips(folder, count, seed, width, height, seconds)
        order = list(jobs)[seed % 4 :] + list(jobs)[: seed % 4]
        spent = {name: run(name, paths) for name in order}
        if seed == 0:
            continue  # warms up
        apart = sum(spent[q] for q in QUESTIONS)
        found["three tasks"].append(spent["three tasks"] / (apart / 3))
        found["three separate runs"].append(apart / statistics.median(spent[q] for q in QUESTIONS))
    return {
        name: {"median": statistics.median(some), "least": min(some), "most": max(some)}
        for name, some in found.items()
    }


if __name__ == "__main__":
    main()
