r"""Tell backslashes that a model meant as text from JSON's escapes.

Models copy LaTeX and Windows paths into JSON as they see them: ``"\frac{a}{b}"``, ``"C:\new"``. A
JSON decoder reads ``\f``, ``\b``, ``\n``, ``\r`` and ``\t`` there as control characters, and the
answer loses text without an error.
"""

import re

_NAME = r"\\(?!\\|u[0-9a-fA-F]{4})[\w.$()+~-]+"
_NO_ESCAPE = r"\\(?![\\nrt\"]|u[0-9a-fA-F]{4}|[bf](?![a-z]))"
_EXTENSION = r"\.(?:[a-z][a-z0-9]{1,3}|[A-Z][A-Z0-9]{1,3})(?![\w.\\])"
_TOKEN = re.compile(
    # A path whose first folder is no escape, up to the end of its text.
    r'(?P<sure_path>(?<![\w\\])[A-Za-z]:\\(?![\\nrtbfu"])[^"\r\n]*)'
    # A path with another folder that is no escape, or with a file's extension. Without either,
    # "A:\nred\nblue" is three lines.
    rf"|(?P<path>(?<![\w\\])[A-Za-z]:(?:(?=(?:{_NAME})*{_NO_ESCAPE})(?:{_NAME})+"
    rf"|(?:{_NAME})*?(?=\\[\w$()+~-]{{2,}}{_EXTENSION}){_NAME}))"
    r"|\\(?P<escape>u[0-9a-fA-F]{4}|[a-zA-Z]+|.|\Z)",
    re.DOTALL,
)
_LONE = re.compile(r"\\\\|\\")
_ANY_ESCAPE = re.compile(r"\\.")
_AS_NUMBERS = {
    r"\b": r"\u0008",
    r"\f": r"\u000c",
    r"\n": r"\u000a",
    r"\r": r"\u000d",
    r"\t": r"\u0009",
}
_LATEX = """
nabla natural ncong nearrow neq newcommand nexists ngeq ngtr nleq nless nmid nolimits nonumber notin
nparallel nprec nsim nsubseteq nsucc nwarrow nicefrac raisebox rangle rbrace rbrack rceil rfloor rho
rightarrow rightharpoonup rightleftharpoons rvert rVert renewcommand tanh tau tbinom textbf textit
textrm textsc textsf texttt textstyle tfrac therefore theta thickapprox thicksim tilde times
triangle triangleleft triangleright triangleq twoheadrightarrow
"""
_SHORT_LATEX = """
ne neg newline ni not nu ref right rm root rule tag tan text tiny to top
"""
_LATEX_COMMANDS = frozenset(_LATEX.split())
"""Commands that begin like an escape, and whose rest is no word."""
_LATEX_OR_WORDS = frozenset(_SHORT_LATEX.split())
"""Commands whose rest may be a word on a new line; they count in a text with other LaTeX."""
_OTHER_LATEX = re.compile(
    r"\$|\\\(|\\\[|[_^]\{|\\[A-Za-z]{2,}\{|\\(?:alpha|beta|frac|sum|int|sqrt)"
)


def escape_text_backslashes(text: str) -> str:
    """Double the backslashes that are text, so that a JSON decoder keeps them."""
    if "\\" not in text:
        return text
    has_latex = _OTHER_LATEX.search(text) is not None

    def escaped(match: re.Match[str]) -> str:
        path = match["sure_path"] or match["path"]
        if path is not None:
            return _LONE.sub(r"\\\\", path)
        escape = match["escape"]
        if escape == "'":
            return "'"  # JavaScript escapes it, JSON does not
        return f"\\{match[0]}" if _is_text(escape, has_latex) else match[0]

    return _TOKEN.sub(escaped, text)


def escape_as_numbers(json_text: str) -> str:
    r"""Write control characters as ``\u000a`` in JSON where they would be taken for such text."""
    if escape_text_backslashes(json_text) == json_text:
        return json_text
    return _ANY_ESCAPE.sub(lambda match: _AS_NUMBERS.get(match[0], match[0]), json_text)


def _is_text(escape: str, has_latex: bool) -> bool:
    """Whether a backslash is text. escape: what follows it, a whole word if it is letters."""
    first, rest = escape[:1], escape[1:]
    if first in ("b", "f"):
        return rest[:1].islower()
    if first in ("n", "r", "t"):
        return escape in _LATEX_COMMANDS or (has_latex and escape in _LATEX_OR_WORDS)
    if first == "u":
        return not re.fullmatch("[0-9a-fA-F]{4}", rest)
    return first not in ("\\", "/", '"', "")
