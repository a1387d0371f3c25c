"""Show text of strangers on a terminal: file names and captions may hold escape sequences."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_KEPT = "\n\u200c\u200d"  # line breaks, and the joiners that some scripts and emoji need


def printable(text: str) -> str:
    """Return ``text`` with control and invisible formatting characters written as escapes."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in _KEPT else char.encode("unicode_escape").decode()
        for char in text
    )


def console() -> "Console":
    """The terminal; a log file has no width, and its tables need not fold as in a narrow one."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)
