"""Find the events in a film of several hours and variable frame rate, with the demo's model.

The film is rendered once (a minute or two), then annotated in windows that overlap. For
each event of the film, the stitched list must have one that starts and ends within half a second of
it; further events in the list are counted too.

    python benchmarks/bench_film.py [--model FOLDER] [--events N] [--small]
"""

import json
import random
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
from numpy.typing import NDArray

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.common import annotate, parser, write_results  # noqa: E402
from jobs.demo.encode import ClipSpec, encode_clip  # noqa: E402
from jobs.demo.random_scene import SceneSpec, irregular_times, random_scene  # noqa: E402
from jobs.demo.scene import Scene, draw, gold  # noqa: E402
from scripts.demo_model.fonts import font_files  # noqa: E402

OUT = ROOT / "build" / "bench"
SECONDS_EACH = 180
"""Seconds of film for each event."""
TOLERANCE = 0.5


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """A part of the film with one event: a scene of six seconds between still frames."""

    begin: float
    scene: Scene
    times: tuple[float, ...]  # of frames, from its start
    event: dict[str, object]


def chapters(count: int, seconds_each: int, seed: int = 7) -> list[Chapter]:
    rng = random.Random(seed)
    made = []
    for k in range(count):
        begin = float(k * seconds_each)
        scene = random_scene(rng, 320, 240, SceneSpec(duration_seconds=6.0, fonts=font_files()))
        offset = rng.randint(10, 2 * seconds_each - 30) / 2
        shape = scene.shapes[0]
        shape = replace(
            shape,
            appears_seconds=shape.appears_seconds + offset,
            vanishes_seconds=shape.vanishes_seconds + offset,
        )
        scene = replace(scene, shapes=(shape,), duration_seconds=float(seconds_each))
        (event,) = gold(scene, start_seconds=begin)["events"]
        times = irregular_times(rng, seconds_each, max_after=3)
        made.append(Chapter(begin=begin, scene=scene, times=times, event=event))
    return made


def frames(film: list[Chapter]) -> Iterator[NDArray[np.uint8]]:
    for chapter in film:
        still = np.asarray(draw(chapter.scene, -1.0))
        (shape,) = chapter.scene.shapes
        for t in chapter.times:
            moves = shape.appears_seconds <= t < shape.vanishes_seconds
            yield np.asarray(draw(chapter.scene, t)) if moves else still


def render(film: list[Chapter], path: Path) -> None:
    times = [chapter.begin + t for chapter in film for t in chapter.times]
    partial = path.with_suffix(".part.mp4")
    encode_clip(partial, frames(film), ClipSpec(pts_seconds=times, gop_size=60))
    partial.rename(path)


def main(argv: list[str] | None = None) -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--model", default=str(ROOT / "jobs" / "demo_model"))
    arguments.add_argument("--events", type=int, default=6)
    options = arguments.parse_args(argv)
    small = options.small
    num_events, seconds_each = (1, 20) if small else (options.events, SECONDS_EACH)
    film = chapters(num_events, seconds_each)
    folder = OUT / f"film-{num_events}{'-small' if small else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "film.mp4"
    if not path.exists():
        render(film, path)
    manifest, output = folder / "manifest.jsonl", folder / f"output-{time.time_ns()}"
    manifest.write_text(json.dumps({"uri": str(path)}) + "\n")
    spec = folder / "job.yaml"
    spec.write_text(
        (ROOT / "jobs" / "specs" / "demo.yaml")
        .read_text()
        .replace("seconds: 6}", "seconds: 6, overlap_seconds: 2}, clock: unit")
        .partition("tasks:")[0]
        .replace("input: {scan: archive}\n", f"input: {{manifest: {manifest}}}\n")
        + "tasks: [events]\ngeneration: {max_new_tokens: 192}\n"
    )
    started = time.monotonic()
    annotate(str(spec), "--model", options.model, "--output", str(output), small=small)
    seconds = time.monotonic() - started
    (row,) = ds.dataset(output / "items", partitioning="hive").to_table().to_pylist()
    result = score([chapter.event for chapter in film], row["events"]) | {
        "hours": len(film) * seconds_each / 3600,
        "units": row["num_units"],
        "failed_units": row["num_failed_units"],
        "seconds": round(seconds, 1),
        "largest_process_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
    }
    print(json.dumps(result, indent=2))
    write_results("film", result, small=small)


def score(truth: list[dict], answered: list[dict]) -> dict[str, object]:
    """Count the events that were found, at their times; an answer counts for one event only."""
    free = list(answered)
    found, named = 0, 0
    for event in truth:
        near = [
            t
            for t in free
            if all(
                abs(t[name] - event[name]) <= TOLERANCE + 1e-6
                for name in ("start_seconds", "end_seconds")
            )
        ]
        if near:
            same = [t for t in near if t["caption"] == event["caption"]]
            free.remove((same or near)[0])
            found, named = found + 1, named + bool(same)
    return {"events": len(truth), "found": found, "named_right": named, "beyond": len(free)}


if __name__ == "__main__":
    main()
