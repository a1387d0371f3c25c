"""CPU seconds of decoding to the model's size, over those of `ffmpeg -f null` on the same clip.

The limit: ffmpeg decodes every frame and keeps nothing. Each measurement is a process of its own,
which decodes once before it is measured; rounds alternate, and ratios are taken within a round.
"""

import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.common import call, is_child, parser, write_results  # noqa: E402

ROUNDS = 5
SECONDS, FPS, WIDTH, HEIGHT = 20, 30, 1920, 1080
WAYS = (
    ("pyav", "exact"),
    ("pyav", "nearest"),
    ("pyav", "keyframes"),
    ("torchcodec", "exact"),
)


def limit_cpu_seconds(path: Path) -> float:
    """CPU seconds of ffmpeg to decode a clip, with one thread."""
    before = cpu_seconds(resource.RUSAGE_CHILDREN)
    command = ["ffmpeg", "-v", "error", "-threads", "1", "-i", str(path), "-f", "null", "-"]
    subprocess.run(command, check=True)
    return cpu_seconds(resource.RUSAGE_CHILDREN) - before


def cpu_seconds(whose: int = resource.RUSAGE_SELF) -> float:
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


def decode(path: str, decoder: str, frames: str) -> float:
    """Plan a clip and decode it twice; returns the CPU seconds of the second time."""
    from pipeline.media.decode import decode_unit
    from pipeline.storage.storage import Storage
    from schemas.job.sampling import SamplingSpec, Segmentation
    from tests.support.clips import video_unit

    spec = SamplingSpec(fps=2.0, frames=frames, segmentation=Segmentation(kind="none"))
    unit = video_unit(Path(path), spec)
    decode_unit(unit, Storage(), decoder=decoder)
    before = cpu_seconds()
    decode_unit(unit, Storage(), decoder=decoder)
    return cpu_seconds() - before


def main(argv: list[str] | None = None) -> None:
    small = parser(__doc__).parse_args(argv).small
    rounds = 1 if small else ROUNDS
    width, height, seconds = (320, 180, 1) if small else (WIDTH, HEIGHT, SECONDS)
    if shutil.which("ffmpeg") is None:
        print("bench_decode: skipped, ffmpeg (the limit to compare with) is not installed")
        return
    with tempfile.TemporaryDirectory() as folder:
        clips = {}
        for codec, suffix in (("libx264", "mp4"), ("libx265", "mp4"), ("libvpx-vp9", "webm")):
            clips[codec] = render(Path(folder) / f"{codec}.{suffix}", codec, width, height, seconds)
        results = {}
        for codec, path in clips.items():
            for decoder, frames in WAYS:
                results[f"{codec}/{decoder}/{frames}"] = ratio(path, decoder, frames, rounds, small)
    print(f"decode: CPU over `ffmpeg -f null`, {width}x{height}, {seconds} s, median of {rounds}")
    for name, found in results.items():
        print(f"  {name:32} {found['median']:.2f}  ({found['min']:.2f} to {found['max']:.2f})")
    all_results = {"rounds": rounds, "cpu_ratio_to_ffmpeg_null": results}
    write_results("decode", all_results, small=small)


def render(path: Path, codec: str, width: int, height: int, seconds: int) -> Path:
    """Render a pan over a detailed picture with grain, as hard to encode as real film."""
    from jobs.demo.encode import ClipSpec, encode_clip

    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (height // 8, width // 4, 3), dtype=np.uint8))
    scene = np.asarray(small.resize((2 * width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    grain = rng.integers(-6, 7, (8, height, width, 3), dtype=np.int16)

    def frame(n: int) -> np.ndarray:
        pan = scene[:, 4 * n % width :][:, :width]
        return (pan + grain[n % 8]).clip(0, 255).astype(np.uint8)

    frames = (frame(n) for n in range(seconds * FPS))
    encode_clip(path, frames, ClipSpec(codec=codec, fps=FPS, gop_size=250, max_b_frames=3))
    return path


def ratio(path: Path, decoder: str, frames: str, rounds: int, small: bool) -> dict[str, float]:
    ratios = []
    for _ in range(rounds):
        limit = limit_cpu_seconds(path)
        env = {"OMP_NUM_THREADS": "1"}
        ratios.append(call(decode, str(path), decoder, frames, small=small, env=env) / limit)
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


if __name__ == "__main__":
    if not is_child(globals()):
        main()
