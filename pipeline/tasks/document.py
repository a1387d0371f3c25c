"""Document: a page as HTML or Markdown, with the boxes of its blocks."""

import re
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pyarrow as pa

from pipeline.tasks.answers.boxes import BOX, box_marks, read_box
from pipeline.tasks.answers.limits import MAX_BLOCKS_OF_A_TEXT, check_deadline
from pipeline.tasks.answers.read_json import clean_text, join_notes
from pipeline.tasks.answers.simulate import WORDS, random_box
from pipeline.tasks.answers.text import read_text
from pipeline.tasks.html_tags import html_parts
from schemas.tables.columns import described
from schemas.task import AnswerStatus, Drawing, Parsed, Question, Task, View

_FENCE_LINE = re.compile(r"```\w*+[ \t]*+")
_DATA_BBOX = re.compile(r"""(\bdata-bbox\s*+=\s*+)(["'])([^"'<>]{0,64})\2""")
_MARKED = re.compile(r"<!--\s*+(\w{1,32})\s*+(\([^()<>]{0,64}\))\s*+-->")
_CUT = f"text in over {MAX_BLOCKS_OF_A_TEXT} blocks left out of the outer ones"
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
    text = _without_fence(clean_text(answer).strip())
    if not text:
        return read_text(answer, question, view)
    notes: Counter[str] = Counter()
    style = _style(question)
    read = _html_blocks if style == "html" else _markdown_blocks
    kept = []
    for block in read(text, view, notes):
        check_deadline()
        if isinstance(block, str):
            notes[f"left out: {block}"] += 1
            continue
        place, kind, content = block
        notes.update(place[1])
        kept.append({"kind": kind, "text": content or None, **place[0]})
    value = {"format": style, "text": _in_pixels(text, style, view), "blocks": kept}
    note = join_notes(notes)
    return Parsed(value=value, status=AnswerStatus.REPAIRED if note else AnswerStatus.OK, note=note)


def _without_fence(text: str) -> str:
    """Return what is in a code fence around the whole text."""
    line, _, rest = text.partition("\n")
    return rest.removesuffix("```").strip() if rest and _FENCE_LINE.fullmatch(line) else text


Found = tuple[tuple[dict[str, Any], tuple[str, ...] | list[str]], str, str] | str
"""((fields, repairs), kind, text) of a block; or the reason why it is left out."""


def _found(numbers: str, kind: str, text: str, view: View) -> Found:
    try:
        box = read_box(numbers.replace(",", " ").strip(" ()").split(), view.width, view.height)
    except ValueError as error:
        return str(error)
    notes = tuple(n for n in box.notes if n != "coordinates were text")
    return ({"box": box.box, "box_1000": box.box_1000}, notes), kind, " ".join(text.split())


def _html_blocks(text: str, view: View, notes: Counter[str]) -> list[Found]:
    """Read the elements that have ``data-bbox``, and the text inside each."""
    blocks: list[_Block] = []
    stack = _OpenElements()
    for part in html_parts(text):
        if isinstance(part, str):
            inside = stack.blocks[-MAX_BLOCKS_OF_A_TEXT:]
            if len(inside) < len(stack.blocks):
                notes[_CUT] += 1
            for block in inside:
                block.text.append(part)
        elif part.is_end:
            stack.close(part.name)
        else:
            opened = None
            if (numbers := part.attributes.get("data-bbox")) is not None:
                kind = part.attributes.get("class") or part.name
                opened = _Block(numbers[:64], kind[:64])
                blocks.append(opened)
            if part.name not in _VOID and not part.closes_itself:
                stack.open(part.name, opened)
    return [_found(b.numbers, b.kind, "".join(b.text), view) for b in blocks]


def _markdown_blocks(text: str, view: View, notes: Counter[str]) -> list[Found]:
    """Read the blocks that comments name, each with the paragraph after its comment."""
    marks = list(_MARKED.finditer(text))
    found = []
    paragraph_end = 0
    for number, match in enumerate(marks):
        begin = match.end()
        while text.startswith("\n", begin):
            begin += 1
        if paragraph_end < begin:
            paragraph_end = text.find("\n\n", begin) % (len(text) + 1)  # without one, the text's
        end = paragraph_end
        if number + MAX_BLOCKS_OF_A_TEXT < len(marks):
            last = marks[number + MAX_BLOCKS_OF_A_TEXT].start()
            if last < end:
                notes[_CUT] += 1
                end = last
        content = "" if text.startswith("<!--", begin) else text[begin:end]
        found.append(_found(match[2], match[1].lower(), content, view))
    return found


@dataclass
class _Block:
    numbers: str
    kind: str
    text: list[str] = field(default_factory=list)


class _OpenElements:
    """The elements that are not closed yet. blocks: those of them that are blocks."""

    def __init__(self) -> None:
        self.blocks: list[_Block] = []
        self._elements: list[tuple[str, _Block | None]] = []
        self._num_open: Counter[str] = Counter()

    def open(self, name: str, block: _Block | None) -> None:
        self._elements.append((name, block))
        self._num_open[name] += 1
        if block is not None:
            self.blocks.append(block)

    def close(self, name: str) -> None:
        """Close the last element of this name, and all inside it; nothing if there is none."""
        closed = None
        while self._num_open[name] and closed != name:
            closed, block = self._elements.pop()
            self._num_open[closed] -= 1
            if block is not None:
                self.blocks.pop()


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
