"""Random signs: small pictures from which the demo's model learns to read."""

import random
from collections.abc import Sequence

from jobs.demo.random_scene import random_background
from jobs.demo.random_text import LETTERS, random_line, text_color
from jobs.demo.scene import Label, Scene, ink_box

# Without characters that look like another one: O and 0, I and 1.
SIGN_CHARACTERS = (LETTERS, "0123456789", "ABCDEFGHJKLMNPQRSTUVWXYZ23456789-")


def random_sign(rng: random.Random, *, fonts: Sequence[str] = ("",)) -> Scene:
    """Draw a small picture that has one line of text, at the size that the model sees.

    Most lines are letters and digits that form no word, so that the model learns characters.
    """
    text = random_line(rng)
    if rng.random() < 0.6:
        text = "".join(rng.choices(rng.choice(SIGN_CHARACTERS), k=rng.randint(1, 5)))
    font, size = rng.choice(fonts), rng.randint(16, 44)
    x1, y1, x2, y2 = ink_box(text, font, size)
    left, top = rng.randint(3, 24), rng.randint(3, 20)
    width = max(64, x2 - x1 + left + rng.randint(3, 24))
    height = max(32, y2 - y1 + top + rng.randint(3, 20))
    background = random_background(rng, width, height, plain=rng.random() < 0.5)
    color = text_color(rng, background)
    label = Label(text=text, position=(left - x1, top - y1), size=size, font=font, color=color)
    return Scene(width=width, height=height, background=background, labels=(label,))
