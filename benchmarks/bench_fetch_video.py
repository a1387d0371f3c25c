"""CPU and memory of decoding a clip, against qwen-vl-utils' `fetch_video`: same frames, same size.

Each measurement is a process of its own with default settings, which decodes once before its CPU is
measured. Then the peak memory of our process by the length of the clip: a whole clip is decoded,
unit by unit, as an actor does it.

    python benchmarks/bench_fetch_video.py [--seconds N] [--small]
"""

import re
import statistics
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.bench_decode import cpu_seconds, render  # noqa: E402
from benchmarks.common import call, is_child, parser, write_results  # noqa: E402

ROUNDS = 3
LENGTHS = (10, 60, 600)

last_seconds = 0.0


def ours(path: str, times: int) -> tuple[int, ...]:
    """Decode the first unit of a clip; returns its frames' shape."""
    from pipeline.media.decode import decode_unit
    from pipeline.storage.storage import Storage
    from tests.support.clips import video_unit

    shape: tuple[int, ...] = ()
    unit = video_unit(Path(path))
    for _ in timed(times):
        shape = decode_unit(unit, Storage()).pixels.shape
    return shape


def theirs(path: str, times: int) -> tuple[int, ...]:
    """The same by `fetch_video`, with the same frame rate and size."""
    with _torchvision():
        from qwen_vl_utils.vision_process import fetch_video

    from tests.support.clips import video_unit

    sampling = video_unit(Path(path)).sampling
    assert sampling is not None
    request = {
        "video": path,
        "fps": sampling.sample_fps,
        "resized_height": sampling.resized_height,
        "resized_width": sampling.resized_width,
    }
    shape: tuple[int, ...] = ()
    for _ in timed(times):
        video = fetch_video(request, image_patch_size=16)
        shape = tuple(video.shape[k] for k in (0, 2, 3, 1))
    return shape


def whole(path: str, times: int) -> tuple[int, ...]:
    """Decode all units of a clip, one after the other; returns their number."""
    import numpy as np

    from pipeline.media.decode import decode_unit
    from pipeline.plan.segment import segment_spans
    from pipeline.storage.storage import Storage
    from schemas.job.sampling import SamplingSpec
    from tests.support.clips import probe, video_unit

    spans = segment_spans(probe(Path(path)), None, None, SamplingSpec())
    units = [video_unit(Path(path), start=start, end=end) for start, end in spans]
    for unit in units[: None if times else 0]:
        assert np.any(decode_unit(unit, Storage()).pixels)
    return (len(units),)


def timed(times: int) -> Iterator[int]:
    """Yield ``times`` numbers; record the CPU seconds of the last iteration."""
    global last_seconds
    for k in range(times):
        before = cpu_seconds()
        yield k
        last_seconds = cpu_seconds() - before


@contextmanager
def _torchvision() -> Iterator[None]:
    """Stand in for torchvision where it does not load, as beside a CPU build of torch.

    `fetch_video` needs only its resize: torch's interpolation on floats, rounded.
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
        stand_ins = {"torchvision": package, "torchvision.transforms": transforms}
        sys.modules |= stand_ins
        yield
        for name in stand_ins:
            del sys.modules[name]
    else:
        yield


def measure(way: str, path: Path, times: int, *, small: bool) -> tuple[float, int, list[int]]:
    """CPU seconds of the last time, peak resident KiB of the process, and the result."""
    cpu, peak, shape = call(measured, way, str(path), str(times), small=small)
    return cpu, peak, list(shape)


def measured(way: str, path: str, times: str) -> tuple[float, int, tuple[int, ...]]:
    """Run one way in this process, and measure it."""
    shape = {"ours": ours, "theirs": theirs, "whole": whole}[way](path, int(times))
    # Not ru_maxrss, which a process inherits from its parent.
    status = Path("/proc/self/status").read_text()
    return last_seconds, int(re.findall(r"VmHWM:\s+(\d+)", status)[0]), shape


def compare(path: Path, rounds: int, small: bool) -> dict[str, list[float]]:
    cpu, memory = [], []
    for _ in range(rounds):
        seconds, peaks, shapes = {}, {}, {}
        for way in ("ours", "theirs"):
            seconds[way], peaks[way], shapes[way] = measure(way, path, 2, small=small)
        assert shapes["ours"] == shapes["theirs"], shapes
        cpu.append(seconds["ours"] / seconds["theirs"])
        memory.append(peaks["ours"] / peaks["theirs"])
    print(f"  {path.stem}: {shapes['ours']}, {peaks['ours'] >> 10} and {peaks['theirs'] >> 10} MiB")
    return {"cpu": cpu, "memory": memory}


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__)
    options.add_argument("--seconds", type=int, default=60)
    args = options.parse_args(argv)
    small, rounds, width, height, lengths = args.small, ROUNDS, 1920, 1080, LENGTHS
    if small:
        args.seconds, rounds, width, height, lengths = 2, 1, 320, 180, (2, 4)
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        clip = f"{width}x{height}, {args.seconds} s"
        print(f"against qwen-vl-utils' fetch_video, {clip}, {rounds} rounds")
        for codec in ("libx264", "libx265"):
            path = render(Path(folder) / f"{codec}.mp4", codec, width, height, args.seconds)
            results[codec] = found = compare(path, rounds, small)
            for name, ratios in found.items():
                middle, lowest, highest = statistics.median(ratios), min(ratios), max(ratios)
                print(f"  {codec} {name:8} {middle:.2f}  ({lowest:.2f} to {highest:.2f})")
        print("peak memory of our process, all units of a clip, H.264")
        one = render(Path(folder) / "one.mp4", "libx264", width, height, lengths[0])
        for length in lengths:
            path = Path(folder) / f"long-{length}.mp4"
            loops = str(length // lengths[0] - 1)
            subprocess.run(
                ["ffmpeg", "-v", "error", "-stream_loop", loops, "-i", one, "-c", "copy", path],
                check=True,
            )
            _, empty, _ = measure("whole", path, 0, small=small)
            _, peak, (units,) = measure("whole", path, 1, small=small)
            results[f"{length} s"] = {"peak_mib": peak >> 10, "before_mib": empty >> 10}
            print(
                f"  {length:4} s, {units:3} units: {peak >> 10} MiB, {empty >> 10} before decoding"
            )
    write_results("fetch_video", results, small=small)


if __name__ == "__main__":
    if not is_child(globals()):
        main()
