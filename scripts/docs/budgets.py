"""The page of budgets: the tokens of one clip at each setting, by the planner's own functions."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.media.timestamps import pair_seconds, time_tokens
from pipeline.model.frame_size import Size, video_size
from pipeline.model.memory import PREFILL_CHUNK_TOKENS, START_ANSWER_TOKENS, BatchShape
from pipeline.plan.segment import num_frames, segment_spans
from schemas.job.job import Job, check_job
from schemas.tables.media import Media, Sampling
from scripts.docs.markdown import GENERATED
from scripts.docs.memory_tables import (
    CARDS,
    NUM_TASKS,
    QUESTION_TOKENS,
    image_of_1080p,
    smallest_gpu,
    unit_shape,
    units_rows,
)

CLIP = Media(
    media_type="video",
    width=1920,
    height=1080,
    begin_seconds=0.0,
    duration_seconds=600.0,
    average_fps=30.0,
)
CONTEXT = 262_144
"""Context length of the published checkpoints, in tokens."""

ROOM = 1024
"""Tokens for a question and its answer, in the column `fits`."""

LONG_CHECKPOINTS = ("4B", "8B")
"""Checkpoints for which the table of long units names a GPU."""

_INTRO = f"""\
# What a clip costs

{GENERATED}
The tokens that the model reads for a clip of 10 minutes, 1920 x 1080, 30 frames a second, at different settings of `sampling` and `budget` ([every key](job-file.md#budget)).
The planner's own functions computed these numbers; `reelscribe plan` prints those of your media.

The settings apply in this order:

1. **Frames.** `fps` times the unit's seconds, at least `min_frames` and at most `max_frames`, spread evenly over the unit.
   Or exactly `num_frames`.
2. **Their size.** A frame has at most `frame_tokens[1]` squares of 32 x 32 px.
   A square of two consecutive frames is one token.
   If all frames together would exceed `unit_tokens`, every frame gets smaller.
3. **The minimum.** A frame has at least about `frame_tokens[0]` squares, even if the unit then exceeds `unit_tokens`.
   Lower it, use fewer frames, or divide the clip into windows.

So twice the frames cost about the same and each is half as large, until the minimum is reached; beyond it, twice the frames cost twice as much.
With `video_rule: per_clip`, a single frame has neither minimum nor maximum, and `frame_tokens[0]` is the minimum of the whole unit.

The prompt has a time before each pair of frames, `<12.5 seconds>`: with the two tokens that enclose the pair, 8 to 10 tokens.
Beside vision tokens and times, a prompt has the question and the chat template, usually 20 to 150 tokens.
Each task has its own prompt: the prompt tokens of a plan are those of all tasks together.

In the model's reference code, `min_pixels` and `max_pixels` of a video are `frame_tokens` x 32 x 32, and `total_pixels` is `unit_tokens` x 32 x 32.
Its default is 115,200 tokens; its authors recommend at most 24,576, the default here.
With `video_rule: per_clip`, the `longest_edge` of transformers' video processor is `unit_tokens` x 2 x 32 x 32, and its `shortest_edge` is `frame_tokens[0]` x 32 x 32.
"""  # noqa: E501

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
    """The cost of one unit: its frames, their size, and the tokens of vision and of times."""

    num_frames: int
    size: Size
    num_time_tokens: int

    @property
    def num_tokens(self) -> int:
        """All tokens, without the question and the chat template."""
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
    """Count the tokens of each unit of a clip of constant frame rate under a job's settings."""
    return [
        _cost(start, end, job, clip) for start, end in segment_spans(clip, None, None, job.sampling)
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
    # The frame on display at a time is the last one that started before it.
    frames = [math.floor(t * clip.average_fps + 1e-6) for t in sampling.times_seconds()]
    seconds = pair_seconds([frame / clip.average_fps for frame in frames])
    return Cost(num_frames=count, size=size, num_time_tokens=sum(map(time_tokens, seconds)))


def budgets_page() -> str:
    """Return the page: the rules of budgets, and tables of tokens at each setting."""
    return "\n".join(
        [
            _INTRO,
            "## As one unit\n",
            "`sampling.segmentation: {kind: none}`.\n"
            f"`fits` says whether the unit fits into the {CONTEXT:,} tokens of the "
            f"published checkpoints, with {ROOM:,} for the question and the answer, or which "
            "`model.yarn` it needs.\n"
            "The last columns name the smallest GPU whose memory holds the unit beside a 4B or an "
            "8B in bfloat16, with one question and the engine transformers: by "
            "[arithmetic](#what-fits-into-a-gpu), not measured.\n",
            *_rows(
                (
                    *("settings", "frames", "frame, px", "vision", "times", "total", "fits"),
                    *(f"{name} on" for name in LONG_CHECKPOINTS),
                ),
                (_whole_row(settings) for settings in WHOLE),
            ),
            "## As windows of 60 seconds\n",
            "`sampling.segmentation: {kind: window, seconds: 60}`, the default: ten units, each "
            "with the whole budget.\n"
            "So the same settings cost more than in one unit, and show more.\n"
            "Frames, their size and `vision` are those of one window.\n",
            *_rows(
                ("settings", "frames", "frame, px", "vision", "x 10", "times x 10", "total"),
                (_window_row(settings) for settings in WINDOWS),
            ),
            "## Other sizes\n",
            "Windows of 60 seconds with the defaults.\n"
            "A clip that is larger than its budget costs the same at any size; a smaller one keeps "
            "about its own size.\n",
            *_rows(
                ("clip, px", "frame, px", "vision", "total"),
                (_source_row(width, height) for width, height in SOURCES),
            ),
            *_memory_section(),
        ]
    )


def _whole_row(settings: Mapping[str, Any]) -> tuple[str, ...]:
    (cost,) = unit_costs(job_with(settings, "none"))
    return (
        *_first_cells(settings, cost),
        f"{cost.num_time_tokens:,}",
        f"{cost.num_tokens:,}",
        _fits(cost),
        *(smallest_gpu(shape_of(cost, 1), name) for name in LONG_CHECKPOINTS),
    )


def _window_row(settings: Mapping[str, Any]) -> tuple[str, ...]:
    costs = unit_costs(job_with(settings, "window"))
    sums = (
        sum(cost.size.num_tokens for cost in costs),
        sum(cost.num_time_tokens for cost in costs),
        sum(cost.num_tokens for cost in costs),
    )
    return *_first_cells(settings, costs[0]), *(f"{number:,}" for number in sums)


def _source_row(width: int, height: int) -> tuple[str, ...]:
    clip = dataclasses.replace(CLIP, width=width, height=height)
    costs = unit_costs(job_with({}, "window"), clip)
    num_tokens = sum(cost.num_tokens for cost in costs)
    return f"{width} x {height}", *_first_cells({}, costs[0])[2:], f"{num_tokens:,}"


def shape_of(cost: Cost, num_tasks: int) -> BatchShape:
    """One unit as the engine would batch it, with a number of tasks."""
    return unit_shape(cost.size.num_tokens, cost.num_time_tokens, num_tasks)


def _memory_section() -> list[str]:
    window = unit_costs(job_with({}, "window"))[0]
    image = image_of_1080p()
    return [
        "## What fits into a GPU\n",
        f"How many units a GPU works on at a time with the engine transformers and {NUM_TASKS} "
        f"tasks: images of 1920 x 1080 ({image.num_tokens:,} vision tokens), and windows of 60 "
        "seconds, both with the defaults.\n"
        "`reelscribe plan --gpu h100` says it for your media, tasks and checkpoint, for vLLM too, "
        "and refuses what does not fit.\n",
        *_rows(
            ("bfloat16", *(f"{card}, {kind}" for card in CARDS for kind in ("images", "windows"))),
            units_rows(shape_of(window, NUM_TASKS)),
        ),
        "A checkpoint without another name is of Qwen3-VL.\n"
        "Those of 27B have the same sizes in Qwen3.5, Qwen3.6 and Qwen3.8, and those of 35B-A3B in "
        "Qwen3.5 and Qwen3.6.\n"
        "Their linear layers are counted as transformers computes them; the kernels of "
        "`flash-linear-attention` take less.\n",
        "This is arithmetic from the checkpoint's configuration (`pipeline/model/memory.py`): "
        "weights; keys and values of each token; the largest of a pass of the vision tower, of "
        f"{PREFILL_CHUNK_TOKENS:,} prompt tokens, and of the logits.\n"
        "With `resources.gpus_per_replica: 0.5` an engine counts with half of the memory.\n"
        "A tenth of the memory stays free, and a GPU counts with the gigabytes in its name.\n"
        f"A question has {QUESTION_TOKENS} tokens and an answer {START_ANSWER_TOKENS}.\n"
        "The engine learns how long answers are; if they are longer than expected and memory does "
        "not suffice, it answers the batch in smaller ones.\n"
        "Weights agree exactly with models of the published configurations, and activations within "
        "10% with the count of torch's allocator on a CPU; nothing was measured on a GPU.\n",
    ]


def _first_cells(settings: Mapping[str, Any], cost: Cost) -> tuple[str, str, str, str]:
    named = ", ".join(f"`{key}: {value}`" for key, value in settings.items()) or "the defaults"
    size = f"{cost.size.resized_width} x {cost.size.resized_height}"
    return named, f"{cost.num_frames:,}", size, f"{cost.size.num_tokens:,}"


def _fits(cost: Cost) -> str:
    for factor in (1, 2, 3, 4):
        if cost.num_tokens + ROOM <= CONTEXT * factor:
            return "yes" if factor == 1 else f"`yarn: {{factor: {factor}}}`"
    return "no"


def _rows(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    aligned = "|---|" + "---:|" * (len(head) - 1)
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return [lines[0], aligned, *lines[1:], ""]
