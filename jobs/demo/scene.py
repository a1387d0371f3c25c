"""Scenes of coloured shapes and text at known places and times: their pictures and their gold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
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
TEXT_COLORS: dict[str, Color] = {
    "black": COLORS["black"],
    "white": COLORS["white"],
    "navy": (20, 30, 90),
}
# Corners of a polygon in its box, 0..1. The star is scaled so that its box is tight, and rounded
# because Pillow would draw a corner at -0.00001 a whole pixel outside.
POLYGONS = {
    "square": [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)],
    "triangle": [(0.0, 1.0), (0.5, 0.0), (1.0, 1.0)],
    "star": [
        (
            round(0.5 + r * math.sin(n * math.pi / 5) / 1.902, 4),
            round((1 - r * math.cos(n * math.pi / 5)) / 1.809, 4),
        )
        for n, r in enumerate([1.0, 0.4] * 5)
    ],
}
SHAPES = ("circle", *POLYGONS)
NO_TEXT = "There is no text."
_NOTHING = {True: "Text and nothing else.", False: "Nothing."}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A shape in a square box; its centre moves from ``start`` to ``end`` while it is visible.

    motion: "left", "right", "up", "down", or "" for a shape that stands still.
    """

    kind: str
    color: str
    size: float
    start: tuple[float, float]
    end: tuple[float, float]
    motion: str = ""
    appears_seconds: float = 0.0
    vanishes_seconds: float = math.inf

    def box(self, t: float) -> Box | None:
        """The shape's box at ``t`` seconds; None while it is not visible."""
        if not self.appears_seconds <= t < self.vanishes_seconds:
            return None
        done = (t - self.appears_seconds) / (self.vanishes_seconds - self.appears_seconds)
        x = self.start[0] + done * (self.end[0] - self.start[0])
        y = self.start[1] + done * (self.end[1] - self.start[1])
        half = self.size / 2
        return (x - half, y - half, x + half, y + half)

    def phrase(self) -> str:
        """The shape in words, such as "an orange star"."""
        return f"{'an' if self.color[0] in 'aeiou' else 'a'} {self.color} {self.kind}"


@dataclass(frozen=True, kw_only=True)
class Label:
    """A line of text that stands still.

    position: its top left corner. size: the font's size in pixels.
    font: path of a font file; default: the font inside Pillow.
    """

    text: str
    position: tuple[float, float]
    size: int
    font: str = ""
    color: str = "black"
    appears_seconds: float = 0.0
    vanishes_seconds: float = math.inf

    def box(self, t: float) -> Box | None:
        """The box of the ink at ``t`` seconds; None while it is not visible."""
        if not self.appears_seconds <= t < self.vanishes_seconds:
            return None
        (x, y), (x1, y1, x2, y2) = self.position, ink_box(self.text, self.font, self.size)
        return (x + x1, y + y1, x + x2, y + y2)


@dataclass(frozen=True, kw_only=True)
class Background:
    """A colour, or a gradient from top to bottom, with or without a soft pattern over it.

    pattern: "stripes", "checks", "blotches" or ""; ``strength`` levels lighter and darker.
    period: pixels after which the pattern repeats.
    direction: of the stripes, in pixels right and down.
    """

    top: Color
    bottom: Color
    pattern: str = ""
    strength: int = 0
    period: int = 1
    direction: tuple[int, int] = (1, 0)
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What is on screen, and when.

    background: None: transparent, shown on white.
    duration_seconds: infinite for a still image.
    """

    width: int
    height: int
    background: Background | None
    shapes: tuple[Shape, ...] = ()
    labels: tuple[Label, ...] = ()
    duration_seconds: float = math.inf


def draw(scene: Scene, t: float) -> Image.Image:
    """Draw the scene at ``t`` seconds: RGB, or RGBA if the background is transparent."""
    if scene.background is None:
        # White where it is transparent: a decoder that ignores the alpha layer shows the same.
        image = Image.new("RGBA", (scene.width, scene.height), (255, 255, 255, 0))
    else:
        image = _paint(scene.width, scene.height, scene.background).copy()
    pen = ImageDraw.Draw(image)
    for shape in scene.shapes:
        if (box := shape.box(t)) is None:
            continue
        side = shape.size - 1  # Pillow fills up to and including the far edge
        if shape.kind == "circle":
            pen.ellipse((box[0], box[1], box[0] + side, box[1] + side), fill=COLORS[shape.color])
        else:
            corners = POLYGONS[shape.kind]
            place = [(box[0] + x * side, box[1] + y * side) for x, y in corners]
            pen.polygon(place, fill=COLORS[shape.color])
    for label in scene.labels:
        if label.box(t) is not None:
            font = _load_font(label.font, label.size)
            pen.text(label.position, label.text, fill=TEXT_COLORS[label.color], font=font)
    return image


@lru_cache(maxsize=8)
def _paint(width: int, height: int, background: Background) -> Image.Image:
    column = np.linspace(background.top, background.bottom, height, dtype=np.float32)
    if not background.pattern:
        return Image.fromarray(np.repeat(column.astype(np.uint8)[:, None], width, axis=1))
    pattern = np.rint(background.strength * _pattern(width, height, background)).astype(np.int16)
    levels = column.astype(np.int16)[:, None] + pattern[..., None]
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))


def _pattern(width: int, height: int, background: Background) -> NDArray[np.float32]:
    """Values in -1..1, [height, width]; basic arithmetic only, to be equal on every machine."""
    if background.pattern == "blotches":
        rows, columns = height // background.period + 2, width // background.period + 2
        noise = np.random.default_rng(background.seed).integers(0, 256, (rows, columns), np.uint8)
        blurred = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        return np.asarray(blurred, dtype=np.float32) / 127.5 - 1
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    period = np.float32(background.period)
    if background.pattern == "checks":
        return _wave(x / period) * _wave(y / period)
    right, down = background.direction
    return _wave((right * x + down * y) / period)


def _wave(turns: NDArray[np.float32]) -> NDArray[np.float32]:
    """A triangle wave, clipped to -1..1 so that its edges are soft."""
    wave: NDArray[np.float32] = np.clip(8 * np.abs(turns - np.floor(turns) - 0.5) - 2, -1, 1)
    return wave


@lru_cache(maxsize=64)
def _load_font(font: str, size: int) -> ImageFont.FreeTypeFont:
    if font:
        return ImageFont.truetype(font, size)
    # An outline font wherever FreeType is, as in every wheel of Pillow.
    return cast(ImageFont.FreeTypeFont, ImageFont.load_default(size))


@lru_cache(maxsize=1024)
def ink_box(text: str, font: str, size: int) -> tuple[int, int, int, int]:
    """The box of the ink of ``text``, relative to the position of the label."""
    ink, (left, top) = _load_font(font, size).getmask2(text, mode="L")
    x1, y1, x2, y2 = ink.getbbox()
    return (left + x1, top + y1, left + x2, top + y2)


def gold(scene: Scene, *, start_seconds: float = 0.0) -> dict[str, Any]:
    """Return the correct answers of a scene: columns of the annotation table.

    start_seconds: the first PTS of the file.

    In a clip, an object's box is the one when it appears; text is at the start.
    """
    clip = math.isfinite(scene.duration_seconds)
    shapes = sorted(scene.shapes, key=lambda s: (s.appears_seconds, s.start[0]))
    labels = sorted(scene.labels, key=lambda label: label.position[1])
    return {
        "caption": _caption(shapes, labels, clip) if shapes else _NOTHING[bool(labels)],
        "ocr": "\n".join(label.text for label in labels) or NO_TEXT,
        "objects": [
            {
                "label": shape.kind,
                "box": _corners(shape.box(shape.appears_seconds)),
                "pts_seconds": start_seconds + shape.appears_seconds if clip else None,
            }
            for shape in shapes
        ],
        "text_spans": [
            {
                "text": label.text,
                "box": _corners(label.box(label.appears_seconds)),
                "pts_seconds": start_seconds + label.appears_seconds if clip else None,
            }
            for label in labels
        ],
        "events": [
            {
                "start_seconds": start_seconds + shape.appears_seconds,
                "end_seconds": start_seconds + shape.vanishes_seconds,
                "caption": _sentence(f"{shape.phrase()} {_motion(shape)}"),
            }
            for shape in shapes
        ]
        if clip
        else None,
    }


def _caption(shapes: Sequence[Shape], labels: Sequence[Label], clip: bool) -> str:
    phrases = [shape.phrase() for shape in shapes]
    if clip:
        what = ", then ".join(phrases)
    else:
        what = " and ".join(part for part in (", ".join(phrases[:-1]), phrases[-1]) if part)
    if labels:
        text_is_lower = labels[0].position[1] > shapes[0].start[1]
        what += " above text" if text_is_lower else " below text"
    return _sentence(what)


def _motion(shape: Shape) -> str:
    return f"moves {shape.motion}" if shape.motion else "stands still"


def _sentence(what: str) -> str:
    return f"{what[0].upper()}{what[1:]}."


def _corners(box: Box | None) -> dict[str, float]:
    assert box is not None  # it is visible at the moment it appears
    return dict(zip(("x1", "y1", "x2", "y2"), map(float, box), strict=True))
