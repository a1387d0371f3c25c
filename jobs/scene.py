"""Scenes of coloured shapes and words that come, move and go at known times, and their drawing."""

import math
import random
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]  # red, green, blue: 0..255
Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels

# fmt: off
COLORS: dict[str, Color] = {
    "red": (220, 30, 40), "green": (30, 150, 60), "blue": (30, 80, 220), "yellow": (250, 220, 40),
    "orange": (250, 140, 20), "purple": (140, 50, 170), "white": (255, 255, 255),
    "black": (10, 10, 10),
}
# fmt: on
# Greys and pastels, which no shape has.
BACKGROUNDS: list[Color] = [(186, 196, 206), (206, 196, 180), (120, 130, 140), (160, 180, 160)]
# The font inside Pillow has ASCII only.
WORDS = ("HARBOUR", "EXIT", "BAKERY", "PLATFORM", "MUSEUM", "SALE", "TICKETS", "CAFE", "LIBRARY")
# Corners of a polygon in its box, 0..1. The star is stretched so that its box is tight.
POLYGONS = {
    "square": [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)],
    "triangle": [(0.0, 1.0), (0.5, 0.0), (1.0, 1.0)],
    "star": [
        (0.5 + r * math.sin(n * math.pi / 5) / 1.902, (1 - r * math.cos(n * math.pi / 5)) / 1.809)
        for n, r in enumerate([1.0, 0.4] * 5)
    ],
}
SHAPES = ("circle", *POLYGONS)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A shape in a square box whose centre moves on a line, from its first moment to its last."""

    kind: str
    color: str
    size: float
    start: tuple[float, float]
    end: tuple[float, float]
    appears_seconds: float = 0.0
    vanishes_seconds: float = math.inf

    def box(self, t: float) -> Box | None:
        """Where it is at `t` seconds; None while it is not shown."""
        if not self.appears_seconds <= t < self.vanishes_seconds:
            return None
        done = (t - self.appears_seconds) / (self.vanishes_seconds - self.appears_seconds)
        x = self.start[0] + done * (self.end[0] - self.start[0])
        y = self.start[1] + done * (self.end[1] - self.start[1])
        half = self.size / 2
        return (x - half, y - half, x + half, y + half)


@dataclass(frozen=True, kw_only=True)
class Label:
    """Words that stand still; `position` is their top left corner, `size` the font's, in pixels."""

    text: str
    position: tuple[float, float]
    size: int
    appears_seconds: float = 0.0
    vanishes_seconds: float = math.inf

    def box(self, t: float) -> Box | None:
        """Where the ink is at `t` seconds; None while it is not shown."""
        if not self.appears_seconds <= t < self.vanishes_seconds:
            return None
        ink, (left, top) = _font(self.size).getmask2(self.text)
        x1, y1, x2, y2 = ink.getbbox()
        x, y = self.position[0] + left, self.position[1] + top
        return (x + x1, y + y1, x + x2, y + y2)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is on screen and when. `background` runs from top to bottom; None is transparent."""

    width: int
    height: int
    background: tuple[Color, Color] | None
    shapes: tuple[Shape, ...] = ()
    labels: tuple[Label, ...] = ()
    show_clock: bool = False


def draw(scene: Scene, t: float) -> Image.Image:
    """The scene at `t` seconds: RGB, or RGBA where the background is transparent."""
    if scene.background is None:
        image = Image.new("RGBA", (scene.width, scene.height))
    else:
        image = _gradient(scene.width, scene.height, *scene.background).copy()
    pen = ImageDraw.Draw(image)
    for shape in scene.shapes:
        if (box := shape.box(t)) is None:
            continue
        if shape.kind == "circle":
            pen.ellipse(box, fill=COLORS[shape.color])
        else:
            corners = POLYGONS[shape.kind]
            place = [(box[0] + x * shape.size, box[1] + y * shape.size) for x, y in corners]
            pen.polygon(place, fill=COLORS[shape.color])
    for label in scene.labels:
        if label.box(t) is not None:
            pen.text(label.position, label.text, fill=COLORS["black"], font=_font(label.size))
    if scene.show_clock:
        size = max(12, scene.height // 10)
        pen.rectangle((0, 0, 4 * size, 1.3 * size), fill=COLORS["white"])
        pen.text((2, 0), f"{t:.1f} s", fill=COLORS["black"], font=_font(size))
    return image


@lru_cache(maxsize=16)
def _gradient(width: int, height: int, top: Color, bottom: Color) -> Image.Image:
    column = np.linspace(top, bottom, height).astype(np.uint8)  # [height, 3]
    return Image.fromarray(np.repeat(column[:, None], width, axis=1))


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    # The font inside Pillow is a real outline font wherever FreeType is, as in every wheel.
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))


def random_scene(
    rng: random.Random,
    width: int,
    height: int,
    *,
    duration_seconds: float = math.inf,
    show_clock: bool = False,
    transparent: bool = False,
) -> Scene:
    """One to three shapes side by side, never over each other, with words below if there is room.

    In a clip all move, and come and go at times of their own; with no duration they just stand.
    """

    def times() -> dict[str, float]:
        if math.isinf(duration_seconds):
            return {}
        appears, vanishes = rng.uniform(0.0, 0.3), rng.uniform(0.7, 1.1)
        return {
            "appears_seconds": round(appears * duration_seconds, 1),
            "vanishes_seconds": round(vanishes * duration_seconds, 1),
        }

    # Transparent pictures are seen on white, where a white shape would be no shape.
    colors = [name for name in COLORS if not (transparent and name == "white")]
    num_shapes = rng.randint(1, 3)
    lane = width / num_shapes
    shapes = []
    for n, color in enumerate(rng.sample(colors, num_shapes)):
        size = rng.uniform(0.45, 0.7) * min(lane, 0.6 * height)
        start, end = (
            (rng.uniform(n * lane + size / 2, (n + 1) * lane - size / 2), y * height)
            for y in rng.sample((0.35, 0.45, 0.55), 2)
        )
        kind = rng.choice(SHAPES)
        shapes.append(Shape(kind=kind, color=color, size=size, start=start, end=end, **times()))
    text = f"{rng.choice(WORDS)} {rng.choice('ABCDEFGHK')}{rng.randint(10, 99)}"
    label = Label(text=text, position=(width // 20, 0.8 * height), size=height // 9, **times())
    top = rng.choice(BACKGROUNDS)
    bottom = rng.choice([top, *BACKGROUNDS])
    return Scene(
        width=width,
        height=height,
        background=None if transparent else (top, bottom),
        shapes=tuple(shapes),
        labels=(label,) if label.size >= 10 else (),
        show_clock=show_clock,
    )
