"""CPU and memory of decoding a clip, against qwen-vl-utils' `fetch_video`: same frames, same size.

Each measurement is a process of its own, with the default settings of each, which decodes once
before its CPU is measured. Then the most memory of our process by the length of the clip: a whole
clip is decoded, unit by unit, as an actor does it.

    python benchmarks/bench_fetch_video.py [--seconds N]
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from bench_decode import cpu_seconds, render  # noqa: E402

ROUNDS = 3
OUT = ROOT / "build" / "bench" / "fetch_video.json"
LENGTHS = (10, 60, 600)

last_seconds = 0.0


def ours(path: str, times: int) -> tuple[int, ...]:
    """Decode the first unit of a clip; returns its frames' shape."""
    from clips import video_unit

    from pipeline.decode import decode_unit
    from pipeline.storage import Storage

    shape: tuple[int, ...] = ()
    unit = video_unit(Path(path))
    for _ in timed(times):
        shape = decode_unit(unit, Storage()).pixels.shape
    return shape


def theirs(path: str, times: int) -> tuple[int, ...]:
    """The same by `fetch_video`: told the same rate and the same size."""
    _torchvision()
    from clips import video_unit
    from qwen_vl_utils.vision_process import fetch_video

    sampling = video_unit(Path(path)).sampling
    assert sampling is not None
    asked = {
        "video": path,
        "fps": sampling.sample_fps,
        "resized_height": sampling.resized_height,
        "resized_width": sampling.resized_width,
    }
    shape: tuple[int, ...] = ()
    for _ in timed(times):
        video = fetch_video(asked, image_patch_size=16)
        shape = tuple(video.shape[k] for k in (0, 2, 3, 1))
    return shape


def whole(path: str, times: int) -> tuple[int, ...]:
    """Decode all units of a clip, one after the other; returns their number."""
    import numpy as np
    from clips import video_units

    from pipeline.decode import decode_unit
    from pipeline.storage import Storage

    units = video_units(Path(path))
    for unit in units[: None if times else 0]:
        assert np.any(decode_unit(unit, Storage()).pixels)
    return (len(units),)


def timed(times: int) -> Iterator[int]:
    """Count, and remember the CPU seconds of the last time."""
    global last_seconds
    for k in range(times):
        before = cpu_seconds()
        yield k
        last_seconds = cpu_seconds() - before


def _torchvision() -> None:
    """Stand in for torchvision where it does not load, as beside a CPU build of torch.

    Of it, `fetch_video` needs the resize alone: torch's own interpolation, on floats, rounded.
    """
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        import torch

        def resize(video, size, interpolation, antialias):
            resized = torch.nn.functional.interpolate(
                video.float(), size=size, mode="bicubic", antialias=antialias
            )
            return resized.clamp(0, 255).round().to(torch.uint8)

        functional = types.SimpleNamespace(resize=resize)
        transforms = types.ModuleType("torchvision.transforms")
        transforms.__dict__.update(
            functional=functional, InterpolationMode=types.SimpleNamespace(BICUBIC="bicubic")
        )
        package = types.ModuleType("torchvision")
        package.__dict__.update(transforms=transforms, io=None, __version__="0")
        sys.modules |= {"torchvision": package, "torchvision.transforms": transforms}


def measure(way: str, path: Path, times: int) -> tuple[float, int, list[int]]:
    """CPU seconds of the last time, most resident KiB of the process, and what it told."""
    command = [sys.executable, __file__, "--way", way, str(path), str(times)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    cpu, peak, *shape = (float(word) for word in done.stdout.split())
    return cpu, int(peak), [int(number) for number in shape]


def compare(path: Path) -> dict[str, list[float]]:
    cpu, memory = [], []
    for _ in range(ROUNDS):
        seconds, peaks, shapes = {}, {}, {}
        for way in ("ours", "theirs"):
            seconds[way], peaks[way], shapes[way] = measure(way, path, 2)
        assert shapes["ours"] == shapes["theirs"], shapes
        cpu.append(seconds["ours"] / seconds["theirs"])
        memory.append(peaks["ours"] / peaks["theirs"])
    print(f"  {path.stem}: {shapes['ours']}, {peaks['ours'] >> 10} and {peaks['theirs'] >> 10} MiB")
    return {"cpu": cpu, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    args = parser.parse_args()
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        print(f"against qwen-vl-utils' fetch_video, 1920x1080, {args.seconds} s, {ROUNDS} rounds")
        for codec in ("libx264", "libx265"):
            path = render(Path(folder) / f"{codec}.mp4", codec, 1920, 1080, args.seconds)
            results[codec] = found = compare(path)
            for name, ratios in found.items():
                middle, least, most = statistics.median(ratios), min(ratios), max(ratios)
                print(f"  {codec} {name:8} {middle:.2f}  ({least:.2f} to {most:.2f})")
        print("most memory of our process, all units of a clip, H.264")
        one = render(Path(folder) / "one.mp4", "libx264", 1920, 1080, LENGTHS[0])
        for length in LENGTHS:
            path = Path(folder) / f"long-{length}.mp4"
            loops = str(length // LENGTHS[0] - 1)
            subprocess.run(
                ["ffmpeg", "-v", "error", "-stream_loop", loops, "-i", one, "-c", "copy", path],
                check=True,
            )
            _, empty, _ = measure("whole", path, 0)
            _, peak, (units,) = measure("whole", path, 1)
            results[f"{length} s"] = {"peak_mib": peak >> 10, "before_mib": empty >> 10}
            print(
                f"  {length:4} s, {units:3} units: {peak >> 10} MiB, {empty >> 10} before decoding"
            )
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(results, indent=2))
    print(f"  -> {OUT}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--way"]:
        shape = {"ours": ours, "theirs": theirs, "whole": whole}[sys.argv[2]](
            sys.argv[3], int(sys.argv[4])
        )
        # Not ru_maxrss: in that a process begins with what its parent had.
        status = Path("/proc/self/status").read_text()
        print(last_seconds, re.findall(r"VmHWM:\s+(\d+)", status)[0], *shape)
    else:
        main()
