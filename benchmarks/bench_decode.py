"""CPU seconds of decoding to the model's size, over those of `ffmpeg -f null` on the same clip.

The limit: ffmpeg decodes every frame and keeps nothing. Each measurement is a process of its own,
which decodes once before it is measured; rounds alternate, and ratios are taken within a round.
"""

import json
import os
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
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
ROUNDS = 5
SECONDS, FPS, WIDTH, HEIGHT = 20, 30, 1920, 1080
WAYS = (
    ("pyav", "exact"),
    ("pyav", "nearest"),
    ("pyav", "keyframes"),
    ("torchcodec", "exact"),
)
OUT = ROOT / "build" / "bench" / "decode.json"


def limit_cpu_seconds(path: Path) -> float:
    """What ffmpeg takes to decode a clip, with one thread."""
    before = cpu_seconds(resource.RUSAGE_CHILDREN)
    command = ["ffmpeg", "-v", "error", "-threads", "1", "-i", str(path), "-f", "null", "-"]
    subprocess.run(command, check=True)
    return cpu_seconds(resource.RUSAGE_CHILDREN) - before


def cpu_seconds(whose: int = resource.RUSAGE_SELF) -> float:
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


def decode(path: str, decoder: str, frames: str) -> float:
    """What the measured process does: plan the clip, decode it, and decode it once more.

    Returns the CPU seconds of the second time.
    """
    from clips import video_unit

    from pipeline.decode import decode_unit
    from pipeline.storage import Storage
    from schemas.job import SamplingSpec, Segmentation

    spec = SamplingSpec(fps=2.0, frames=frames, segmentation=Segmentation(kind="none"))
    unit = video_unit(Path(path), spec)
    decode_unit(unit, Storage(), decoder=decoder)
    before = cpu_seconds()
    decode_unit(unit, Storage(), decoder=decoder)
    return cpu_seconds() - before


def main() -> None:
    if shutil.which("ffmpeg") is None:
        print("bench_decode: skipped, ffmpeg (the limit to compare with) is not installed")
        return
    with tempfile.TemporaryDirectory() as folder:
        clips = {}
        for codec, suffix in (("libx264", "mp4"), ("libx265", "mp4"), ("libvpx-vp9", "webm")):
            clips[codec] = render(Path(folder) / f"{codec}.{suffix}", codec, WIDTH, HEIGHT, SECONDS)
        results = {}
        for codec, path in clips.items():
            for decoder, frames in WAYS:
                results[f"{codec}/{decoder}/{frames}"] = ratio(path, decoder, frames)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps({"rounds": ROUNDS, "cpu_ratio_to_ffmpeg_null": results}, indent=2))
    print(f"decode: CPU over `ffmpeg -f null`, {WIDTH}x{HEIGHT}, {SECONDS} s, median of {ROUNDS}")
    for name, found in results.items():
        print(f"  {name:32} {found['median']:.2f}  ({found['min']:.2f} to {found['max']:.2f})")
    print(f"  -> {OUT}")


def render(path: Path, codec: str, width: int, height: int, seconds: int) -> Path:
    """A pan over a detailed picture with grain: a codec has as much to do as with real film."""
    from jobs.encode_clip import encode_clip

    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (height // 8, width // 4, 3), dtype=np.uint8))
    scene = np.asarray(small.resize((2 * width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    grain = rng.integers(-6, 7, (8, height, width, 3), dtype=np.int16)

    def frame(n: int) -> np.ndarray:
        pan = scene[:, 4 * n % width :][:, :width]
        return (pan + grain[n % 8]).clip(0, 255).astype(np.uint8)

    frames = (frame(n) for n in range(seconds * FPS))
    encode_clip(path, frames, codec=codec, fps=FPS, gop_size=250, max_b_frames=3)
    return path


def ratio(path: Path, decoder: str, frames: str) -> dict[str, float]:
    ratios = []
    for _ in range(ROUNDS):
        limit = limit_cpu_seconds(path)
        command = [sys.executable, __file__, str(path), decoder, frames]
        done = subprocess.run(
            command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True
        )
        ratios.append(float(done.stdout) / limit)
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


if __name__ == "__main__":
    if len(sys.argv) == 4:
        print(decode(*sys.argv[1:]))
    else:
        main()
