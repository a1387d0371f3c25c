"""Answers that are written to make parsers slow: repeats of everything that a parser looks for.

Each pattern is a beginning, a part that is repeated up to the wanted length, and an end. A parser
that starts a new scan for each part, or tries each way to divide a run, needs quadratic time.
"""

import json
import time
from dataclasses import dataclass

from pipeline.tasks.parse import Answer, parse_answer
from schemas.task import Question, View
from tests.support.views import IMAGE, VIDEO

_MEMBER = {"type": "object", "properties": {"label": {"pattern": "^[a-z]+$"}}}
_SCHEMA = {
    "anyOf": [
        {"type": "array", "uniqueItems": True, "items": {"anyOf": [_MEMBER, {"type": "number"}]}},
        {"type": "object", "patternProperties": {"^k": {"type": "string"}}, "required": ["a"]},
    ]
}
_TYPED = {
    "type": "object",
    "properties": {"a": {"type": "array", "items": {"type": "string"}}, "x": {"type": "number"}},
}
QUESTIONS: dict[str, tuple[Question, View]] = {
    "caption": (Question(task="caption"), IMAGE),
    "chat": (Question(task="chat"), IMAGE),
    "embedding": (Question(task="embedding", dimensions=4), IMAGE),
    "ocr": (Question(task="ocr"), IMAGE),
    "events": (Question(task="events"), VIDEO),
    "moments": (Question(task="moments", query="a car stops"), VIDEO),
    "objects": (Question(task="objects", labels=("car", "dog")), VIDEO),
    "tracks": (Question(task="tracks"), VIDEO),
    "points": (Question(task="points"), IMAGE),
    "objects_3d": (Question(task="objects_3d"), IMAGE),
    "text_spans": (Question(task="text_spans"), IMAGE),
    "html": (Question(task="document"), IMAGE),
    "markdown": (Question(task="document", style="markdown"), IMAGE),
    "fields": (Question(task="fields", keys=tuple(f"key {k}" for k in range(30))), IMAGE),
    "any fields": (Question(task="fields", prompt="?"), IMAGE),
    "tool_calls": (Question(task="tool_calls"), IMAGE),
    "custom": (Question(task="custom", json_schema=json.dumps(_SCHEMA)), IMAGE),
    "typed": (Question(task="custom", name="mine", json_schema=json.dumps(_TYPED)), IMAGE),
}
"""Questions of all tasks, so that each branch of a parser is one."""


def cpu_seconds(name: str, text: str) -> tuple[float, Answer]:
    """Parse a text as an answer to one of `QUESTIONS`; return the time of this thread, too."""
    begin = time.thread_time()
    answer = parse_answer(text, *QUESTIONS[name])
    return time.thread_time() - begin, answer


@dataclass(frozen=True)
class Pattern:
    """``begin``, ``part`` as often as it fits, ``end``."""

    begin: str
    part: str
    end: str = ""

    def text(self, num_chars: int) -> str:
        """Return about ``num_chars`` characters; ``#`` in the part is its number."""
        times = max(1, num_chars // len(self.part))
        if "#" in self.part:
            return (
                self.begin
                + "".join(self.part.replace("#", str(k)) for k in range(times))
                + self.end
            )
        return self.begin + self.part * times + self.end


def _runs() -> dict[str, Pattern]:
    """Runs of one thing, alone, after a beginning of each kind, and before something unwanted."""
    things = {
        "spaces": " ",
        "newlines": "\n",
        "lines of one space": " \n",
        "digits": "7",
        "letters": "a",
        "quotes": '"',
        "single quotes": "'",
        "backslashes": "\\",
        "colons": ":",
        "commas": ",",
        "dashes": "-",
        "backticks": "`",
        "lists": "[",
        "list ends": "]",
        "objects": "{",
        "object ends": "}",
        "parentheses": "(",
        "less": "<",
        "ampersands": "&",
        "wide": "\u4e00 ",
    }
    begins = {
        "": "",
        "time, ": "1",
        "broken list, ": '[{"a": 1 x}',
        "list, ": "[",
        "object, ": '{"a": ',
        "text, ": '[{"label": "',
        "fence, ": "```json\n",
        "tag, ": '<div data-bbox="1 2 3 4" ',
    }
    return {
        f"{begin}{thing}": Pattern(before, part, "x")
        for begin, before in begins.items()
        for thing, part in things.items()
    }


_PARTS = {
    # text and special tokens
    "special tokens": Pattern("", "<|im_end|>", "a"),
    "special tokens at the end": Pattern("a", "<|im_end|> "),
    "other tokens": Pattern("", "<|box_start|>(1,2)"),
    "think": Pattern("", "<think>a</think>"),
    "think not closed": Pattern("<think>", "<think>"),
    # JSON
    "nested lists": Pattern("", "[ "),
    "nested lists closed": Pattern("[" * 900 + "]" * 900, "[]"),
    "nested objects": Pattern("", '{"a":'),
    "nested lists of objects": Pattern("", '[{"a":'),
    "list in broken elements": Pattern("[", '{"a":[{"b":1},'),
    "far scans": Pattern("[", '{"a":[' + "1," * 100 + '{"b":0},'),
    "values one after the other": Pattern("", "[1] "),
    "broken values in fences": Pattern("", '```\n[{"a" 1}\n'),
    "brackets in prose": Pattern("", "[see {below"),
    "keys without values": Pattern("{", '"a#", '),
    "open texts": Pattern("[", '{"label": "'),
    "open texts, wide": Pattern("[", '{"label": "\u4e00'),
    "texts with quotes": Pattern("[", '{"label": "5" pipe", "b": "'),
    "quotes then commas": Pattern('{"a": "', '" , " '),
    "broken elements": Pattern("[", '{"bbox_2d": [1, 2, 3, 4] "label": "a"}, ', "]"),
    "broken elements of one character": Pattern("[", "{x},{"),
    "broken elements, wide": Pattern("[", '{"label" "\u4e00"}, ', "]"),
    "broken members": Pattern("{", '"a": "b" "c", "d": 1, ', "}"),
    "missing commas": Pattern("[", '{"label": "a"} ', "]"),
    "missing closers": Pattern("[", '{"label": "a", ', "]"),
    "single quoted": Pattern("[", "{'label': 'it's', 'bbox_2d': [1,2,3,4]}, ", "]"),
    "bare clocks": Pattern("[", '{"start": 00:01.00, "end": 00:02.00, "caption": "a"}, ', "]"),
    "bare clocks in one text": Pattern("{", '"a": 1:22.2222222222222222 x,'),
    "comments": Pattern("[1 x, ", "// a /* # "),
    "comments open": Pattern("[1 x, ", "/* "),
    "repeated keys": Pattern("{", '"bbox_2d": [1, 2, 3, 4], "label": "a", ', '"x": 1}'),
    "repeated and shared keys": Pattern(
        "{" + '"bbox_2d": [1, 2, 3, 4], "label": "a", ' * 500, '"k#": 1, ', '"x": 1}'
    ),
    "members around many elements": Pattern(
        "{", '"k#": 1, ', '"objects": [' + '{"label":"a","bbox_2d":[1,2,3,4]},' * 500 + "0]}"
    ),
    "events with shared members": Pattern(
        "{" + '"start": 1, "end": 2, "caption": "a", ' * 500, '"k#": 1, ', '"x": 1}'
    ),
    "labels": Pattern("[", '{"label": "l#", "bbox_2d": [1, 2, 3, 4]},', "0]"),
    "by label": Pattern("{", '"l#": [1, 2, 3, 4], ', '"x": 1}'),
    "boxes of text": Pattern("[", '{"label": "a", "bbox_2d": "1 2 3 4"}, ', "0]"),
    "one box of many numbers": Pattern('[{"label": "a", "bbox_2d": [', "1, ", "1]}]"),
    "one box of many lists": Pattern('[{"label": "a", "bbox_2d": [', "[1,2,3,4], ", "[1,2]]}]"),
    "boxes in space": Pattern("[", '{"label": "a", "bbox_3d": [1,2,9,1,1,1,0,0,0]}, ', "0]"),
    "points": Pattern("[", '{"label": "a", "point_2d": [1, 2]}, ', "0]"),
    "long integers": Pattern("[", "9" * 4000 + ", ", "1]"),
    "one long integer": Pattern("[", "9", "]"),
    "one long fraction": Pattern("[0.", "9", "]"),
    "one long exponent": Pattern("[1e", "9", "]"),
    "infinite numbers": Pattern("[", "1e999, ", "1]"),
    "not numbers": Pattern("[", "NaN, -Infinity, ", "1]"),
    # backslashes
    "paths": Pattern('{"a": "', "C:\\new\\table "),
    "one path": Pattern('{"a": "C:', "\\n"),
    "one path of names": Pattern('{"a": "C:', "\\nab"),
    "one name": Pattern('{"a": "C:\\n', "ab."),
    "extensions": Pattern('{"a": "C:', "\\nab.txt."),
    "latex": Pattern('{"a": "', "\\frac{a}{b} \\theta "),
    "unicode escapes": Pattern('{"a": "', "\\ud83d"),
    "escapes": Pattern('["', '\\"'),
    # times
    "times": Pattern("", "00:01.00 "),
    "times and spaces": Pattern("", "1 s   > "),
    "spans": Pattern("", "1.0 - 2.0 "),
    "lines of spans": Pattern("", "- 0:01 - 0:02 a\n"),
    "words at": Pattern("0:01 - 0:02 ", "at "),
    "time keys of spaces": Pattern("{", f'"1{" " * 61}x": "a", ', '"x": 1}'),
    "time keys of dashes": Pattern("{", f'"1 s {"-" * 30}{" " * 25}x": "a", ', '"x": 1}'),
    "times that are spaces": Pattern("[", f'{{"start": "1{" " * 61}x", "caption": "a"}}, ', "0]"),
    "instants": Pattern("[", '{"time": "1", "caption": "a"}, ', "0]"),
    # lines with numbers
    "lines with boxes": Pattern("", "- a: [1, 2, 3, 4]\n"),
    "rows of a table": Pattern("| label | box |\n", "| a | [1, 2, 3, 4] |\n"),
    "cells": Pattern("", "| a "),
    "boxes in one line": Pattern("- a: ", "[1, 2, 3, 4] "),
    "open boxes": Pattern("", "(1, 2, 3 "),
    # documents
    "tags": Pattern("", "<a>"),
    "tags not ended": Pattern("", "<a "),
    "tag of attributes": Pattern("<a", ' a="b"'),
    "tag of open values": Pattern("", '<a b="'),
    "tag of spaces and slashes": Pattern("<a", " /"),
    "tag of equals": Pattern("<a b", "= "),
    "blocks not closed": Pattern("", '<p data-bbox="1 2 3 4">a'),
    "blocks closed late": Pattern("", '<p data-bbox="1 2 3 4">a</b>'),
    "blocks closed": Pattern("", '<p data-bbox="1 2 3 4">a</p>'),
    "open tags, then ends": Pattern("<b>" * 2000, "</a>"),
    "ends not ended": Pattern("", "</a "),
    "html comments not closed": Pattern("", "<!-- a "),
    "html comments": Pattern("", "<!-- a -->"),
    "declarations": Pattern("", "<!a "),
    "sections": Pattern("", "<![CDATA["),
    "instructions": Pattern("", "<?a "),
    "scripts": Pattern("", "<script>a"),
    "references": Pattern("", "&#x41;&amp;&a"),
    "one long reference": Pattern("&#", "9"),
    "marked": Pattern("", "<!-- Image (1, 2, 3, 4) -->\n\n"),
    "marked in one paragraph": Pattern("", "<!-- Image (1, 2, 3, 4) -->\na\n"),
    "marked open": Pattern("", "<!-- Image ("),
    "marked spaces": Pattern("", "<!--   Image   "),
    "fences": Pattern("```\n", "```  "),
    "bbox of spaces": Pattern("", "data-bbox = "),
    # tool calls
    "calls": Pattern("", '<tool_call>{"name": "a", "arguments": {}}</tool_call>'),
    "calls not closed": Pattern("", "<tool_call>"),
    "broken calls": Pattern("", '<tool_call>{"name": "a" "arguments": "{x: [1 2}"}'),
    "tagged calls": Pattern("<tool_call>", "<function=a><parameter=b>1</parameter></function>"),
    "tagged calls not closed": Pattern("<tool_call>", "<function=a><parameter=b>"),
    "functions not ended": Pattern("<tool_call>", "<function="),
    "parameters not ended": Pattern("<tool_call><function=a>", "<parameter="),
    "calls with text": Pattern("", '<tool_call>{"name": "a", "arguments": "[{x} {y"}</tool_call>'),
}

PATTERNS: dict[str, Pattern] = _runs() | _PARTS
