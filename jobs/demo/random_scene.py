"""Random scenes: the demo's archive and the data set of its model draw from this distribution.

Each scene shows its gold without doubt: shapes and text never touch, colours differ, and no two
shapes of a clip appear at the same time.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from jobs.demo.random_text import TextStyle, random_labels, text_color
from jobs.demo.scene import COLORS, SHAPES, Background, Color, Label, Scene, Shape

# Greys and pastels, which no shape has.
# fmt: off
BACKGROUNDS: list[Color] = [
    (186, 196, 206), (206, 196, 180), (120, 130, 140), (160, 180, 160), (212, 212, 212),
    (206, 184, 190), (180, 192, 216), (196, 188, 210), (172, 204, 190), (150, 142, 132),
    (110, 124, 124), (140, 150, 172),
]
# fmt: on
MIN_SIZE = 0.135  # of a shape, in square roots of the picture's area
MAX_SIZE = 0.42
MIN_TRAVEL = 0.16  # of a shape that moves, in widths or heights of the picture
MIN_FONT = 10  # pixels; no text where even this is too large


@dataclass(frozen=True, kw_only=True)
class SceneSpec:
    """Settings of a random scene.

    duration_seconds: of a clip; a multiple of 0.5, or less than 1 for shapes that stand still.
    transparent: no background, and no white shape.
    easy: one shape and one large line on a plain background.
    empty: no shapes.
    fonts: one of them is chosen for all of the text.
    """

    duration_seconds: float = math.inf
    transparent: bool = False
    easy: bool = False
    empty: bool = False
    fonts: Sequence[str] = ("",)


def random_scene(
    rng: random.Random, width: int, height: int, spec: SceneSpec | None = None
) -> Scene:
    """Draw one to three shapes side by side, and up to two lines of text above or below them all.

    In a clip the shapes appear and vanish on the half second, and move or stand still; the text
    stays.
    """
    spec = spec or SceneSpec()
    clip = math.isfinite(spec.duration_seconds)
    background = (
        None if spec.transparent else random_background(rng, width, height, plain=spec.easy)
    )
    if spec.easy:
        num_lines, font_sizes = 1, (height / 6, height / 5)
    elif clip:
        num_lines, font_sizes = rng.randint(0, 1), (height / 7, height / 5)
    else:
        num_lines = rng.choices((0, 1, 2), (15, 60, 25))[0]
        font_sizes = (height / 10, height / 5)
    if font_sizes[0] < MIN_FONT:
        num_lines = 0
    labels: tuple[Label, ...] = ()
    top, bottom = 0, height
    if num_lines:
        font, color = rng.choice(spec.fonts), text_color(rng, background)
        style = TextStyle(font=font, color=color, min_size=font_sizes[0], max_size=font_sizes[1])
        labels, (top, bottom) = random_labels(rng, width, height, num_lines, style)
    num_shapes = 0 if spec.empty else 1 if spec.easy else rng.randint(1, 3)
    times = _times(rng, num_shapes, spec.duration_seconds)
    # Transparent pictures are seen on white, where a white shape would be no shape.
    colors = [name for name in COLORS if not (spec.transparent and name == "white")]
    shares = [1.0 if clip else rng.uniform(0.75, 1.25) for _ in times]
    shapes, left = [], 0.0
    for color, share, (appears, vanishes) in zip(
        rng.sample(colors, len(times)), shares, times, strict=True
    ):
        right = left + width * share / sum(shares)
        moves = clip and vanishes - appears >= 1.0 and rng.random() < 0.6
        motion = rng.choice(("left", "right", "up", "down")) if moves else ""
        size, start, end = _place(rng, width, height, (left, top, right, bottom), motion)
        shapes.append(
            Shape(
                kind=rng.choice(SHAPES),
                color=color,
                size=size,
                start=start,
                end=end,
                motion=motion if start != end else "",
                appears_seconds=appears,
                vanishes_seconds=vanishes,
            )
        )
        left = right
    return Scene(
        width=width,
        height=height,
        background=background,
        shapes=tuple(shapes),
        labels=labels,
        duration_seconds=spec.duration_seconds,
    )


def irregular_times(
    rng: random.Random, duration_seconds: float, *, max_after: int = 6
) -> tuple[float, ...]:
    """Draw uneven frame times, in seconds: one on each half second, and up to ``max_after`` after.

    The half seconds are needed because shapes appear and vanish there.
    """
    times: list[float] = []
    for half in range(round(2 * duration_seconds)):
        ticks = sorted(rng.sample(range(1, 25), rng.randint(1, max_after)))  # of 20 ms
        times += [half / 2, *(round(half / 2 + tick / 50, 2) for tick in ticks)]
    return tuple(times)


def random_background(rng: random.Random, width: int, height: int, *, plain: bool) -> Background:
    """Draw a background: one colour if ``plain``, else a gradient, a soft pattern or both."""
    top = rng.choice(BACKGROUNDS)
    if plain:
        return Background(top=top, bottom=top)
    near = [color for color in BACKGROUNDS if abs(sum(color) - sum(top)) < 150]
    scale = math.sqrt(width * height)
    return Background(
        top=top,
        bottom=rng.choice((top, rng.choice(near))),
        pattern=rng.choices(("", "stripes", "checks", "blotches"), (60, 12, 12, 16))[0],
        strength=rng.randint(4, 10),
        period=max(4, round(scale * rng.uniform(0.06, 0.2))),
        direction=rng.choice(((1, 0), (0, 1), (1, 1), (1, -1))),
        seed=rng.getrandbits(32),
    )


def _times(
    rng: random.Random, num_shapes: int, duration_seconds: float
) -> list[tuple[float, float]]:
    """When each shape appears and vanishes: as many as there are distinct times to appear."""
    if math.isinf(duration_seconds):
        return [(0.0, math.inf)] * num_shapes
    halves = math.floor(2 * duration_seconds)
    if halves < 2:
        return [(0.0, duration_seconds)]
    if not num_shapes:
        return []
    starts = rng.sample(range(halves - 1), min(num_shapes, halves - 1))
    if rng.random() < 0.5 and 0 not in starts:
        starts[starts.index(min(starts))] = 0
    times = []
    for start in starts:
        end = halves if rng.random() < 0.35 else rng.randint(start + 2, halves)
        times.append((start / 2, end / 2))
    return times


def _place(
    rng: random.Random,
    width: int,
    height: int,
    free: tuple[float, float, float, float],
    motion: str,
) -> tuple[float, tuple[float, float], tuple[float, float]]:
    """Size, first and last centre of a shape that stays in `free`; still if it has no room."""
    scale = math.sqrt(width * height)
    margin = 0.012 * scale
    left, top = math.ceil(free[0] + margin), math.ceil(free[1] + margin)
    right, bottom = math.floor(free[2] - margin), math.floor(free[3] - margin)
    across = math.ceil(MIN_TRAVEL * width) if motion in ("left", "right") else 0
    down = math.ceil(MIN_TRAVEL * height) if motion in ("up", "down") else 0
    smallest = math.ceil(MIN_SIZE * scale)
    largest = min(right - left - across, bottom - top - down, math.floor(MAX_SIZE * scale))
    if largest < smallest and motion:
        return _place(rng, width, height, free, "")
    size = rng.randint(smallest, max(smallest, largest))
    if across:
        across = rng.randint(across, right - left - size)
    if down:
        down = rng.randint(down, bottom - top - size)
    x = left + rng.randint(0, max(0, right - left - size - across)) + size / 2
    y = top + rng.randint(0, max(0, bottom - top - size - down)) + size / 2
    near, far = (x, y), (x + across, y + down)
    return (size, far, near) if motion in ("left", "up") else (size, near, far)
