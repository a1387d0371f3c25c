"""Find the events in a film of hours, of variable frame rate, by the demo's model.

The film is rendered once (a minute or two), then annotated in windows that overlap. Of each event
that happened, the stitched list must have one whose begin and end are within half a second; what
it has beyond those is counted too.

    python benchmarks/bench_film.py [--model FOLDER] [--events N]
"""

import argparse
import json
import random
import resource
import subprocess
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

from jobs.encode_clip import encode_clip  # noqa: E402
from jobs.render_dataset import FONTS  # noqa: E402
from jobs.scene import Scene, draw, gold  # noqa: E402
from jobs.scene_random import irregular_times, random_scene  # noqa: E402

OUT = ROOT / "build" / "bench"
SECONDS_EACH = 180  # one event in so many
TOLERANCE = 0.5


@dataclass(frozen=True, kw_only=True)
class Chapter:
    """A part of the film in which one thing happens: a scene of six seconds, inside stillness."""

    begin: float
    scene: Scene
    times: tuple[float, ...]  # of frames, from its begin
    event: dict[str, object]


def chapters(count: int, seed: int = 7) -> list[Chapter]:
    rng = random.Random(seed)
    made = []
    for k in range(count):
        begin = float(k * SECONDS_EACH)
        scene = random_scene(rng, 320, 240, duration_seconds=6.0, fonts=FONTS)
        offset = rng.randint(10, 2 * SECONDS_EACH - 30) / 2
        shape = scene.shapes[0]
        shape = replace(
            shape,
            appears_seconds=shape.appears_seconds + offset,
            vanishes_seconds=shape.vanishes_seconds + offset,
        )
        scene = replace(scene, shapes=(shape,), duration_seconds=float(SECONDS_EACH))
        (event,) = gold(scene, start_seconds=begin)["events"]
        times = irregular_times(rng, SECONDS_EACH, most=3)
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
    encode_clip(partial, frames(film), pts_seconds=times, gop_size=60)
    partial.rename(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default=str(ROOT / "jobs" / "demo_model"))
    parser.add_argument("--events", type=int, default=6)
    options = parser.parse_args()
    film = chapters(options.events)
    folder = OUT / f"film-{options.events}"
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
    command = [sys.executable, "-m", "jobs.cli", "annotate", str(spec), "--model", options.model]
    subprocess.run([*command, "--output", str(output)], check=True, cwd=ROOT)
    seconds = time.monotonic() - started
    (row,) = ds.dataset(output / "items", partitioning="hive").to_table().to_pylist()
    result = score([chapter.event for chapter in film], row["events"]) | {
        "hours": len(film) * SECONDS_EACH / 3600,
        "units": row["num_units"],
        "failed_units": row["num_failed_units"],
        "seconds": round(seconds, 1),
        "largest_process_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
    }
    print(json.dumps(result, indent=2))
    (OUT / "film.json").write_text(json.dumps(result, indent=2) + "\n")


def score(truth: list[dict], told: list[dict]) -> dict[str, object]:
    """How many events are found in time, each told one counting for one that happened."""
    free = list(told)
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
