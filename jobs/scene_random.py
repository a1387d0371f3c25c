"""Scenes drawn at random: the one distribution of the demo's archive and of the data set.

Whatever is asked about a scene can be seen in it: shapes and text never touch, colours differ, and
no two shapes of a clip appear at the same time.
"""

import math
import random
from collections.abc import Sequence

from jobs.scene import (
    COLORS,
    SHAPES,
    TEXT_COLORS,
    Background,
    Color,
    Label,
    Scene,
    Shape,
    ink_box,
)

# Greys and pastels, which no shape has.
# fmt: off
BACKGROUNDS: list[Color] = [
    (186, 196, 206), (206, 196, 180), (120, 130, 140), (160, 180, 160), (212, 212, 212),
    (206, 184, 190), (180, 192, 216), (196, 188, 210), (172, 204, 190), (150, 142, 132),
    (110, 124, 124), (140, 150, 172),
]
WORDS = (  # noqa: SIM905
    "ACADEMY AIRPORT AISLE ALARM APOTHECARY ARCADE ARENA ARRIVALS ATELIER AVENUE BAGGAGE BAKERY "
    "BALCONY BANK BARBER BASEMENT BEACH BICYCLES BISTRO BOOKS BRIDGE BUFFET BUS CABIN CAFE CAMPING "
    "CANAL CASH CASTLE CAUTION CENTRAL CHAPEL CHECKOUT CINEMA CLINIC CLOSED CLUB COFFEE "
    "COURT CROSSING CUSTOMS DANGER DELI DENTIST DEPARTURES DINER DOCTOR EAST ELEVATOR ENTRANCE "
    "ESCALATOR EXIT EXPRESS FACTORY FERRY FIRE FIRST FLORIST FORUM FOUNTAIN GALLERY GARAGE GARDEN "
    "GATE GIFTS GROCERY GYM HALL HARBOUR HARDWARE HELP HOSPITAL HOSTEL HOTEL ICE INFO INN ISLAND "
    "JETTY JEWELS JUICE KEEP KIOSK KITCHEN LAKE LAUNDRY LEFT LIBRARY LIFT LOBBY LOUNGE LUGGAGE "
    "MARINA MARKET METRO MILL MOTEL MUSEUM MUSIC NEWS NOODLES NORTH OFFICE OPEN OPERA OPTICS "
    "PALACE PARK PARKING PHARMACY PIER PIZZA PLATFORM POLICE POOL PORT POST PUB PULL PUSH QUAY "
    "QUIET RAMP RECEPTION RENTAL RIVER ROAD SALE SCHOOL SHOES SHOP SHOWERS SILENCE SLOW SOUTH SPA "
    "SQUARE STADIUM STAIRS STATION STOP STREET STUDIO TAXI TEA TERMINAL THEATRE TICKETS TOILETS "
    "TOWER TOYS TRAINS TRAM TUNNEL UNIT VALLEY VILLAGE WAIT WARD WATER WEST WINE YARD ZONE ZOO"
).split()
# fmt: on
# In a code, where nothing around helps, those that can be taken for a digit are left out.
CODE_LETTERS = "ABCDEFGHKLMNPRTUVWXY"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_CHARACTERS = 12
MIN_SIZE = 0.135  # of a shape, in square roots of the picture's area
MAX_SIZE = 0.42
MIN_TRAVEL = 0.16  # of a shape that moves, in widths or heights of the picture
MIN_FONT = 10  # pixels; no text where even this is too large
MIN_CONTRAST = 3.5  # of text and background, as WCAG 2 defines it


def random_scene(
    rng: random.Random,
    width: int,
    height: int,
    *,
    duration_seconds: float = math.inf,
    transparent: bool = False,
    easy: bool = False,
    empty: bool = False,
    fonts: Sequence[str] = ("",),
) -> Scene:
    """One to three shapes side by side, and up to two lines of text above or below them all.

    In a clip the shapes come and go on the half second, and move or stand still; the text stays.

    Args:
        duration_seconds: of a clip; a multiple of 0.5, or less than 1 for shapes that just stand.
        transparent: no background; nothing white.
        easy: one shape and one large line on a plain background.
        empty: no shapes.
        fonts: one is chosen for all of the text.
    """
    clip = math.isfinite(duration_seconds)
    background = None if transparent else _background(rng, width, height, plain=easy)
    if easy:
        num_lines, font_sizes = 1, (height / 6, height / 5)
    elif clip:
        num_lines, font_sizes = rng.randint(0, 1), (height / 7, height / 5)
    else:
        num_lines = rng.choices((0, 1, 2), (15, 60, 25))[0]
        font_sizes = (height / 10, height / 5)
    if font_sizes[0] < MIN_FONT:
        num_lines = 0
    labels, top, bottom = _labels(rng, width, height, num_lines, font_sizes, background, fonts)
    num_shapes = 0 if empty else 1 if easy else rng.randint(1, 3)
    times = _times(rng, num_shapes, duration_seconds)
    # Transparent pictures are seen on white, where a white shape would be no shape.
    colors = [name for name in COLORS if not (transparent and name == "white")]
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
        duration_seconds=duration_seconds,
    )


# In the mixed ones, none that could be taken for another: O and 0, I and 1.
SIGN_CHARACTERS = (LETTERS, "0123456789", "ABCDEFGHJKLMNPQRSTUVWXYZ23456789-")


def random_sign(rng: random.Random, *, fonts: Sequence[str] = ("",)) -> Scene:
    """A small picture with a line of text in it and nothing else, at the size a model sees it.

    Most have letters and digits that are no word: what there is to learn is reading.
    """
    text = random_line(rng)
    if rng.random() < 0.6:
        text = "".join(rng.choices(rng.choice(SIGN_CHARACTERS), k=rng.randint(1, 5)))
    font, size = rng.choice(fonts), rng.randint(16, 44)
    x1, y1, x2, y2 = ink_box(text, font, size)
    left, top = rng.randint(3, 24), rng.randint(3, 20)
    width = max(64, x2 - x1 + left + rng.randint(3, 24))
    height = max(32, y2 - y1 + top + rng.randint(3, 20))
    background = _background(rng, width, height, plain=rng.random() < 0.5)
    color = _text_color(rng, background)
    label = Label(text=text, position=(left - x1, top - y1), size=size, font=font, color=color)
    return Scene(width=width, height=height, background=background, labels=(label,))


def random_line(rng: random.Random) -> str:
    """A line of a sign: a word, a word and a code, a code, or letters that are no word at all."""
    code = f"{rng.choice(CODE_LETTERS)}{rng.randint(10, 99)}"
    kind = rng.random()
    if kind < 0.25:
        return "".join(rng.choices(LETTERS, k=rng.randint(3, 7)))
    if kind < 0.55:
        return rng.choice(WORDS)
    if kind < 0.8:
        room = MAX_CHARACTERS - len(code) - 1
        return f"{rng.choice([word for word in WORDS if len(word) <= room])} {code}"
    number = rng.randint(100, 999)
    long_code = f"{rng.choice(CODE_LETTERS)}{rng.randint(2, 9)}-{number}"
    return rng.choice((code, long_code, f"{rng.randint(2, 9)}{number}"))


def irregular_times(
    rng: random.Random, duration_seconds: float, *, most: int = 6
) -> tuple[float, ...]:
    """Uneven times of frames: one on each half second, as shapes come and go there, and up to
    `most` after it.
    """
    times: list[float] = []
    for half in range(round(2 * duration_seconds)):
        ticks = sorted(rng.sample(range(1, 25), rng.randint(1, most)))  # of 20 ms
        times += [half / 2, *(round(half / 2 + tick / 50, 2) for tick in ticks)]
    return tuple(times)


def _background(rng: random.Random, width: int, height: int, *, plain: bool) -> Background:
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


def _labels(
    rng: random.Random,
    width: int,
    height: int,
    num_lines: int,
    font_sizes: tuple[float, float],
    background: Background | None,
    fonts: Sequence[str],
) -> tuple[tuple[Label, ...], int, int]:
    """The lines, and the rows from `top` to `bottom` that they leave free."""
    if not num_lines:
        return (), 0, height
    font, color = rng.choice(fonts), _text_color(rng, background)
    lines = [_line(rng, width, font_sizes, font) for _ in range(num_lines)]
    inks = [ink_box(text, font, size) for text, size in lines]
    gap, side = max(2, round(0.035 * height)), round(0.02 * width)
    total = sum(y2 - y1 for _, y1, _, y2 in inks) + gap * (num_lines - 1)
    edge = rng.randint(round(0.02 * height), round(0.06 * height))
    above = rng.random() < 0.5
    y = edge if above else height - edge - total
    free = (edge + total + gap, height) if above else (0, y - gap)
    labels = []
    for (text, size), (x1, y1, x2, y2) in zip(lines, inks, strict=True):
        x = rng.randint(side, width - side - (x2 - x1))
        labels.append(
            Label(text=text, position=(x - x1, y - y1), size=size, font=font, color=color)
        )
        y += y2 - y1 + gap
    return tuple(labels), *free


def _line(
    rng: random.Random, width: int, font_sizes: tuple[float, float], font: str
) -> tuple[str, int]:
    """A line, and a size at which it fits: another line rather than a small one."""
    smallest, largest = math.ceil(font_sizes[0]), math.floor(font_sizes[1])
    for _ in range(8):
        text = random_line(rng)
        x1, _, x2, _ = ink_box(text, font, smallest)
        fitting = math.floor(smallest * 0.93 * width / (x2 - x1))
        if fitting >= smallest:
            return text, rng.randint(smallest, min(largest, fitting))
    return f"{rng.choice(CODE_LETTERS)}{rng.randint(10, 99)}", smallest


def _text_color(rng: random.Random, background: Background | None) -> str:
    behind = [(255, 255, 255)] if background is None else [background.top, background.bottom]
    weights = {"black": 5, "white": 6, "navy": 2}
    clear = [
        name
        for name in weights
        if name == "black"
        or all(_contrast(TEXT_COLORS[name], color) >= MIN_CONTRAST for color in behind)
    ]
    return rng.choices(clear, [weights[name] for name in clear])[0]


def _contrast(one: Color, other: Color) -> float:
    def luminance(color: Color) -> float:
        red, green, blue = (math.pow(level / 255, 2.2) for level in color)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


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
