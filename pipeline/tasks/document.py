"""Document: a page as HTML or Markdown, with the boxes of its blocks."""

import re
from collections import Counter
from dataclasses import dataclass, field
from html.parser import HTMLParser
from random import Random
from typing import Any

import pyarrow as pa

from pipeline.tasks.answers.boxes import BOX, box_marks, read_box
from pipeline.tasks.answers.read_json import clean_text, join_notes
from pipeline.tasks.answers.simulate import WORDS, random_box
from pipeline.tasks.answers.text import read_text
from schemas.tables.columns import described
from schemas.task import AnswerStatus, Drawing, Parsed, Question, Task, View

_FENCE = re.compile(r"\A\s*```\w*[ \t]*\n(.*?)\n?(?:```\s*)?\Z", re.DOTALL)
_DATA_BBOX = re.compile(r"""(\bdata-bbox\s*=\s*)(["'])([^"'<>]{0,64})\2""")
_MARKED = re.compile(r"<!--\s*(\w{1,32})\s*(\([^()<>]{0,64}\))\s*-->")
_VOID = frozenset({"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "wbr"})


def _prompt(question: Question, media_type: str) -> str:
    return question.prompt or f"qwenvl {_style(question)}"


def _style(question: Question) -> str:
    return question.style or "html"


def _parse(answer: str, question: Question, view: View) -> Parsed:
    """Read the blocks of HTML by ``data-bbox``, of Markdown by ``<!-- Image (x1, y1, x2, y2) -->``.

    The text is kept as the model wrote it, except that its boxes become pixels. It is untrusted:
    sanitise it before showing it as HTML.
    """
    text = clean_text(answer).strip()
    fence = _FENCE.match(text)
    if fence:
        text = str(fence[1]).strip()
    if not text:
        return read_text(answer, question, view)
    notes: Counter[str] = Counter()
    style = _style(question)
    blocks = _html_blocks(text, view) if style == "html" else _markdown_blocks(text, view)
    kept = []
    for block in blocks:
        if isinstance(block, str):
            notes[f"left out: {block}"] += 1
            continue
        place, kind, content = block
        notes.update(place[1])
        kept.append({"kind": kind, "text": content or None, **place[0]})
    value = {"format": style, "text": _in_pixels(text, style, view), "blocks": kept}
    note = join_notes(notes)
    return Parsed(value=value, status=AnswerStatus.REPAIRED if note else AnswerStatus.OK, note=note)


Found = tuple[tuple[dict[str, Any], tuple[str, ...] | list[str]], str, str] | str
"""((fields, repairs), kind, text) of a block; or the reason why it is left out."""


def _found(numbers: str, kind: str, text: str, view: View) -> Found:
    try:
        box = read_box(numbers.replace(",", " ").strip(" ()").split(), view.width, view.height)
    except ValueError as error:
        return str(error)
    notes = tuple(n for n in box.notes if n != "coordinates were text")
    return ({"box": box.box, "box_1000": box.box_1000}, notes), kind, " ".join(text.split())


def _html_blocks(text: str, view: View) -> list[Found]:
    reader = _Blocks()
    reader.feed(text)
    reader.close()
    return [_found(b.numbers, b.kind, "".join(b.text), view) for b in reader.blocks]


def _markdown_blocks(text: str, view: View) -> list[Found]:
    """Read the blocks that comments name, each with the paragraph after its comment."""
    found = []
    for match in _MARKED.finditer(text):
        after = text[match.end() :].lstrip("\n").partition("\n\n")[0]
        content = "" if after.startswith("<!--") else after
        found.append(_found(match[2], match[1].lower(), content, view))
    return found


@dataclass
class _Block:
    numbers: str
    kind: str
    text: list[str] = field(default_factory=list)


class _Blocks(HTMLParser):
    """Collect the elements that have ``data-bbox``, and the text inside each."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[_Block] = []
        self._open: list[tuple[str, _Block | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        block = None
        if (numbers := named.get("data-bbox")) is not None:
            block = _Block(numbers[:64], (named.get("class") or tag)[:64])
            self.blocks.append(block)
        if tag not in _VOID:
            self._open.append((tag, block))

    def handle_endtag(self, tag: str) -> None:
        opened = [k for k, (name, _) in enumerate(self._open) if name == tag]
        if opened:
            del self._open[opened[-1] :]

    def handle_data(self, data: str) -> None:
        for block in {id(b): b for _, b in self._open if b}.values():
            block.text.append(data)


def _in_pixels(text: str, style: str, view: View) -> str:
    """Return the text with its boxes in pixels of the displayed original."""

    def pixels(numbers: str) -> str | None:
        found = _found(numbers, "", "", view)
        if isinstance(found, str):
            return None
        return " ".join(f"{round(c)}" for c in found[0][0]["box"].values())

    def html(match: re.Match[str]) -> str:
        scaled = pixels(match[3])
        return match[0] if scaled is None else f"{match[1]}{match[2]}{scaled}{match[2]}"

    def marked(match: re.Match[str]) -> str:
        scaled = pixels(match[2])
        named = match[1], (scaled or "").replace(" ", ", ")
        return match[0] if scaled is None else f"<!-- {named[0]} ({named[1]}) -->"

    return _DATA_BBOX.sub(html, text) if style == "html" else _MARKED.sub(marked, text)


def _write(value: dict[str, Any], question: Question, view: View) -> str:
    """Write the text with its boxes in 0..1000."""
    text = value["text"]

    def scaled(numbers: str) -> list[int]:
        x1, y1, x2, y2 = (float(part) for part in re.findall(r"-?\d+(?:\.\d+)?", numbers))
        box = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
        return [int(n) for n in BOX.write({"box": box}, view) or ()]

    if value["format"] == "html":
        return str(
            _DATA_BBOX.sub(lambda m: f"{m[1]}{m[2]}{' '.join(map(str, scaled(m[3])))}{m[2]}", text)
        )
    return str(
        _MARKED.sub(lambda m: f"<!-- {m[1]} ({', '.join(map(str, scaled(m[2])))}) -->", text)
    )


def _simulate(question: Question, view: View, chance: Random) -> str:
    box, word = random_box(chance), chance.choice(WORDS)
    if _style(question) == "markdown":
        return f"# {word}\n\n<!-- Image ({', '.join(map(str, box))}) -->"
    return f'<h1 data-bbox="{" ".join(map(str, box))}">{word}</h1>'


def _draw(value: dict[str, Any]) -> Drawing:
    return Drawing(text=value["text"], marks=box_marks(value["blocks"], text_name="kind"))


_BLOCK = pa.struct(
    [
        described(
            "kind",
            pa.string(),
            "HTML: the block's class, else its tag; Markdown: its name",
            nullable=False,
        ),
        described("text", pa.string(), "the text in the block"),
        *BOX.fields,
    ]
)

TASK = Task(
    name="document",
    version=1,
    media_types=frozenset({"image"}),
    column=described(
        "document",
        pa.struct(
            [
                described("format", pa.string(), "html or markdown", nullable=False),
                described(
                    "text", pa.string(), "the page, its boxes in pixels; untrusted", nullable=False
                ),
                described(
                    "blocks",
                    pa.list_(pa.field("element", _BLOCK, nullable=False)),
                    "the parts that have a box, in the page's order",
                    nullable=False,
                ),
            ]
        ),
        "a page as a document with the boxes of its blocks",
    ),
    prompt=_prompt,
    parse=_parse,
    write=_write,
    simulate=_simulate,
    draw=_draw,
    mark_kind="block",
    metric=None,
    subtitles=None,
    is_prose=False,
)
