"""The page of budgets: what one clip costs at each setting, counted as the planner counts it."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.budget import Size, video_size
from pipeline.prompt import pair_seconds
from pipeline.segment import num_frames, stretches
from schemas.job import Job, check_job
from schemas.unit import Media, Sampling

CLIP = Media(
    media_type="video",
    width=1920,
    height=1080,
    begin_seconds=0.0,
    duration_seconds=600.0,
    average_fps=30.0,
)
CONTEXT = 262_144
"""Tokens of the published checkpoints' context."""

ROOM = 1024
"""Tokens left for a question and its answer, where a row says what fits."""

_INTRO = [
    "# What a clip costs\n",
    "<!-- Made by `python -m jobs.reference`; change the code, not this page. -->\n",
    "Tokens that the model reads of a clip of 10 minutes, 1920 x 1080, 30 frames a second, "
    "by the settings of `sampling` and `budget` ([every key](job-file.md#budget)). The "
    "planner's own functions made these numbers; `reelscribe plan` tells those of your "
    "media.\n",
    "How the settings trade off, in this order:\n",
    "1. **Frames.** `fps` times the unit's seconds, from `min_frames` to `max_frames`; what "
    "would be more is spread evenly over the unit. Or `num_frames`.",
    "2. **Their size.** A frame has `frame_tokens`' most squares of 32 x 32 px, or fewer "
    "where all frames together, two to a token, would pass `unit_tokens`: the more frames, "
    "the smaller each.",
    "3. **The floor.** A frame has about `frame_tokens`' least squares even where the unit "
    "then passes `unit_tokens`. Lower it, take fewer frames, or cut the clip into windows.\n",
    "So twice the frames cost about the same, and each is half as large, until the floor is "
    "reached; from there on they cost twice as much. With `video_rule: per_clip` there is no "
    "floor and no most of a frame: `frame_tokens`' least is then the whole unit's.\n",
    "Each pair of frames has its time in front, `<12.5 seconds>`: with the two tokens that "
    "enclose the pair, 8 to 10. Beside the vision and the times, a prompt has the question "
    "and the chat template, usually 20 to 150 tokens. Each task has a prompt of its own: the "
    "prompt tokens of a plan are those of all tasks together.\n",
    "In the words of the model's reference code, `min_pixels` and `max_pixels` of a video "
    "are `frame_tokens` x 32 x 32, and `total_pixels` is `unit_tokens` x 32 x 32. Its own "
    "default is 115,200 tokens; its makers advise no more than 24,576, the default here. "
    "With `video_rule: per_clip`, the `longest_edge` of transformers' video processor is "
    "`unit_tokens` x 2 x 32 x 32, and its `shortest_edge` `frame_tokens`' least x 32 x 32.\n",
]

_SAMPLING_KEYS = ("fps", "num_frames", "max_frames")

WHOLE: list[dict[str, Any]] = [
    {},
    {"fps": 0.5},
    {"fps": 1},
    {"fps": 4},
    {"fps": 4, "max_frames": 2400},
    {"num_frames": 64},
    {"frame_tokens": [16, 768]},
    {"video_rule": "per_clip"},
    {"unit_tokens": 98304},
    {"unit_tokens": 98304, "fps": 0.5},
    {"unit_tokens": 229376},
    {"unit_tokens": 229376, "fps": 4, "max_frames": 2400},
    {"unit_tokens": 458752, "max_frames": 1200},
    {"unit_tokens": 917504, "fps": 4, "max_frames": 2400},
]
WINDOWS: list[dict[str, Any]] = [
    {},
    {"fps": 0.5},
    {"fps": 1},
    {"fps": 4},
    {"frame_tokens": [128, 256]},
    {"frame_tokens": [128, 128]},
    {"unit_tokens": 16384},
    {"unit_tokens": 8192},
    {"unit_tokens": 4096},
    {"unit_tokens": 4096, "frame_tokens": [16, 768]},
    {"unit_tokens": 98304},
    {"unit_tokens": 229376, "fps": 4},
]
SOURCES = [(3840, 2160), (1920, 1080), (1280, 720), (640, 360), (1080, 1920), (1440, 1080)]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one unit costs: its frames, their size, and the tokens of its vision and its times."""

    num_frames: int
    size: Size
    num_time_tokens: int

    @property
    def num_tokens(self) -> int:
        """Tokens in all, but for the question and the chat template."""
        return self.size.num_tokens + self.num_time_tokens


def job_with(settings: Mapping[str, Any], kind: str) -> Job:
    """A job whose sampling or budget differ from the defaults in ``settings``."""
    spec: dict[str, Any] = {"input": {"scan": "clips"}, "output": "out", "budget": {}}
    spec["sampling"] = {"segmentation": {"kind": kind, "seconds": 60}}
    for key, value in settings.items():
        section = "sampling" if key in _SAMPLING_KEYS else "budget"
        spec[section][key] = value
    return check_job(spec, "a row of the table")


def unit_costs(job: Job, clip: Media = CLIP) -> list[Cost]:
    """What each unit of a clip of constant frame rate costs under a job's settings."""
    return [
        _cost(start, end, job, clip) for start, end in stretches(clip, None, None, job.sampling)
    ]


def _cost(start: float, end: float, job: Job, clip: Media) -> Cost:
    assert clip.average_fps is not None
    count = num_frames(start, end, clip.average_fps, job.sampling)
    size = video_size(count, clip.height, clip.width, job.budget)
    sampling = Sampling(
        start_seconds=start,
        end_seconds=end,
        num_frames=count,
        resized_height=size.resized_height,
        resized_width=size.resized_width,
        grid_thw=size.grid_thw,
        num_vision_tokens=size.num_tokens,
    )
    # The frame on display at a time: the last one that began before it.
    frames = [math.floor(t * clip.average_fps + 1e-6) for t in sampling.times_seconds()]
    seconds = pair_seconds([frame / clip.average_fps for frame in frames])
    return Cost(num_frames=count, size=size, num_time_tokens=sum(map(time_tokens, seconds)))


def time_tokens(seconds: float) -> int:
    """Tokens of ``<0.2 seconds><|vision_start|><|vision_end|>``.

    Qwen's tokenizer takes each digit and the point by themselves; ``<``, `` seconds``, ``>`` and
    the two special tokens are one each.
    """
    return len(f"{seconds:.1f}") + 5


def budgets_page() -> str:
    """Return the page: how the budgets trade off, and tables of what they come to."""
    return "\n".join(
        [
            *_INTRO,
            "## As one unit\n",
            "`sampling.segmentation: {kind: none}`. The last column says whether the unit fits the "
            f"{CONTEXT:,} tokens of the published checkpoints, with {ROOM:,} for the question and "
            "the answer, or which `model.yarn` it needs. Whether it fits a GPU's memory was not "
            "measured.\n",
            *_rows(
                ("settings", "frames", "frame, px", "vision", "times", "in all", "fits"),
                (_whole_row(settings) for settings in WHOLE),
            ),
            "## As windows of 60 seconds\n",
            "`sampling.segmentation: {kind: window, seconds: 60}`, the default: ten units, each "
            "with the whole budget. So the same settings cost more than in one unit, and show "
            "more. Frames, their size and `vision` are of one window.\n",
            *_rows(
                ("settings", "frames", "frame, px", "vision", "x 10", "times x 10", "in all"),
                (_window_row(settings) for settings in WINDOWS),
            ),
            "## Other sizes\n",
            "Windows of 60 seconds with the defaults. A clip that is larger than its budget costs "
            "the same whatever its size; a smaller one keeps about its own.\n",
            *_rows(
                ("clip, px", "frame, px", "vision", "in all"),
                (_source_row(width, height) for width, height in SOURCES),
            ),
        ]
    )


def _whole_row(settings: Mapping[str, Any]) -> tuple[str, ...]:
    (cost,) = unit_costs(job_with(settings, "none"))
    return *_told(settings, cost), f"{cost.num_time_tokens:,}", f"{cost.num_tokens:,}", _fits(cost)


def _window_row(settings: Mapping[str, Any]) -> tuple[str, ...]:
    costs = unit_costs(job_with(settings, "window"))
    sums = (
        sum(cost.size.num_tokens for cost in costs),
        sum(cost.num_time_tokens for cost in costs),
        sum(cost.num_tokens for cost in costs),
    )
    return *_told(settings, costs[0]), *(f"{number:,}" for number in sums)


def _source_row(width: int, height: int) -> tuple[str, ...]:
    clip = dataclasses.replace(CLIP, width=width, height=height)
    costs = unit_costs(job_with({}, "window"), clip)
    in_all = sum(cost.num_tokens for cost in costs)
    return f"{width} x {height}", *_told({}, costs[0])[2:], f"{in_all:,}"


def _told(settings: Mapping[str, Any], cost: Cost) -> tuple[str, str, str, str]:
    said = ", ".join(f"`{key}: {value}`" for key, value in settings.items()) or "the defaults"
    size = f"{cost.size.resized_width} x {cost.size.resized_height}"
    return said, f"{cost.num_frames:,}", size, f"{cost.size.num_tokens:,}"


def _fits(cost: Cost) -> str:
    for factor in (1, 2, 3, 4):
        if cost.num_tokens + ROOM <= CONTEXT * factor:
            return "yes" if factor == 1 else f"`yarn: {{factor: {factor}}}`"
    return "no"


def _rows(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    aligned = "|---|" + "---:|" * (len(head) - 1)
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return [lines[0], aligned, *lines[1:], ""]
