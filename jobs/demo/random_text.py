"""Text of random scenes: lines as on signs, and labels in a colour that stands out."""

import math
import random
from dataclasses import dataclass

from jobs.demo.scene import TEXT_COLORS, Background, Color, Label, ink_box

# fmt: off
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
# Letters of codes: without those that look like a digit, as codes have no context.
CODE_LETTERS = "ABCDEFGHKLMNPRTUVWXY"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
MAX_CHARACTERS = 12
MIN_CONTRAST = 3.5  # of text and background, as WCAG 2 defines it


@dataclass(frozen=True, kw_only=True)
class TextStyle:
    """Font and colour of a scene's lines; sizes are the font's, in pixels."""

    font: str
    color: str
    min_size: float
    max_size: float


def random_line(rng: random.Random) -> str:
    """Draw a line: a word, a word and a code, a code, or letters that form no word."""
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


def random_labels(
    rng: random.Random, width: int, height: int, num_lines: int, style: TextStyle
) -> tuple[tuple[Label, ...], tuple[int, int]]:
    """Place lines at the top or at the bottom of a picture.

    Returns the lines, and the first and last row of the part that they leave free.
    """
    lines = [_fitting_line(rng, width, style) for _ in range(num_lines)]
    inks = [ink_box(text, style.font, size) for text, size in lines]
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
            Label(
                text=text,
                position=(x - x1, y - y1),
                size=size,
                font=style.font,
                color=style.color,
            )
        )
        y += y2 - y1 + gap
    return tuple(labels), free


def _fitting_line(rng: random.Random, width: int, style: TextStyle) -> tuple[str, int]:
    """Draw a line that fits into ``width``, and its font size: another line, not a smaller size."""
    smallest, largest = math.ceil(style.min_size), math.floor(style.max_size)
    for _ in range(8):
        text = random_line(rng)
        x1, _, x2, _ = ink_box(text, style.font, smallest)
        fitting = math.floor(smallest * 0.93 * width / (x2 - x1))
        if fitting >= smallest:
            return text, rng.randint(smallest, min(largest, fitting))
    return f"{rng.choice(CODE_LETTERS)}{rng.randint(10, 99)}", smallest


def text_color(rng: random.Random, background: Background | None) -> str:
    """Draw the name of a text colour that stands out; no background is white."""
    behind = [(255, 255, 255)] if background is None else [background.top, background.bottom]
    weights = {"black": 5, "white": 6, "navy": 2}
    legible = [
        name
        for name in weights
        if name == "black"
        or all(_contrast(TEXT_COLORS[name], color) >= MIN_CONTRAST for color in behind)
    ]
    return rng.choices(legible, [weights[name] for name in legible])[0]


def _contrast(one: Color, other: Color) -> float:
    def luminance(color: Color) -> float:
        red, green, blue = (math.pow(level / 255, 2.2) for level in color)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)
