"""Read tags and text of HTML that a model wrote, in time linear in its length.

Python 3.11's ``html.parser`` needs quadratic time for tags and comments that are not closed. What
leaves is the same for well-formed pages; of others, a tag without its end is text.
"""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

_TAG = re.compile(r"</?([a-zA-Z][^\s/<>\x00]*+)")
_IN_TAG = re.compile(r"[\"'<>]")
_ATTRIBUTE = re.compile(
    r"""([^\s/>=][^\s/>=]*+)(?:\s*+=++\s*+("[^"]*+"|'[^']*+'|(?!["'])[^>\s]*+))?+"""
)
_COMMENT_END = re.compile(r"--\s*+>")
_RAW_END = {
    tag: re.compile(rf"</\s*+{tag}\s*+>", re.IGNORECASE | re.ASCII) for tag in ("script", "style")
}
"""Elements whose text has no tags."""
_LONG_REFERENCE = re.compile(r"&#[xX]?[0-9a-fA-F]{9,}+;?")
"""Beyond Unicode, and perhaps longer than an integer may be."""


@dataclass(frozen=True, kw_only=True)
class Tag:
    """A tag. name: in lower case. attributes: names in lower case; None without a value."""

    name: str
    is_end: bool
    attributes: dict[str, str | None] = field(default_factory=dict)
    closes_itself: bool = False


def html_parts(page: str) -> Iterator[Tag | str]:
    """Yield the tags and the texts of a page in order; comments and declarations are left out."""
    missing: set[str] = set()  # ends that the rest of the page does not have
    text_begin = at = 0
    while (begin := page.find("<", at)) >= 0:
        tag, end = _tag_at(page, begin, missing)
        if tag is None and end <= begin:  # no tag: the "<" is text
            at = max(begin + 1, -end)
            continue
        if text_begin < begin:
            yield _unescaped(page[text_begin:begin])
        if tag is not None:
            yield tag
            if tag.name in _RAW_END and not (tag.is_end or tag.closes_itself):
                close = _RAW_END[tag.name].search(page, end)
                raw_end = close.start() if close else len(page)
                if end < raw_end:
                    yield page[end:raw_end]
                end = raw_end
        text_begin = at = end
    if text_begin < len(page):
        yield _unescaped(page[text_begin:])


def _tag_at(page: str, begin: int, missing: set[str]) -> tuple[Tag | None, int]:
    """Return the tag, None for a comment, and its end; minus where to look on if there is none."""
    name = _TAG.match(page, begin)
    if name is None:
        return None, _end_of_other(page, begin, missing)
    is_end = page.startswith("</", begin)
    end, at = -1, name.end()
    while ">" not in missing and (found := _IN_TAG.search(page, at)):
        at = found.end()
        if found[0] == ">":
            end = at
            break
        if found[0] == "<":
            return None, -found.start()
        if is_end or not _follows_equals(page, found.start()):
            continue
        if found[0] in missing or (close := page.find(found[0], at)) < 0:
            missing.add(found[0])
            return None, 0
        at = close + 1
    if end < 0:
        return None, 0
    inner = page[name.end() : end - 1]
    attributes = {
        match[1].lower(): _value(match[2]) for match in _ATTRIBUTE.finditer(inner) if not is_end
    }
    return (
        Tag(
            name=name[1].lower(),
            is_end=is_end,
            attributes=attributes,
            closes_itself=inner.endswith("/"),
        ),
        end,
    )


def _end_of_other(page: str, begin: int, missing: set[str]) -> int:
    """Return the end of a comment, a declaration or an instruction; 0 if there is none."""
    if page.startswith("<!--", begin):
        if "-->" not in missing and (close := _COMMENT_END.search(page, begin + 4)):
            return close.end()
        missing.add("-->")
        return 0
    if not page.startswith(("<!", "<?", "</"), begin) or ">" in missing:
        return 0
    end = page.find(">", begin + 2) + 1
    if not end:
        missing.add(">")
    return end


def _follows_equals(page: str, at: int) -> bool:
    """Whether a quote begins a value: only spaces are between it and an equals sign."""
    while page[at - 1].isspace():
        at -= 1
    return page[at - 1] == "="


def _value(written: str | None) -> str | None:
    if written is None:
        return None
    return _unescaped(written[1:-1] if written[:1] in ("'", '"') else written)


def _unescaped(text: str) -> str:
    return html.unescape(_LONG_REFERENCE.sub("\ufffd", text))
