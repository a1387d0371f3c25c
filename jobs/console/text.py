"""Print untrusted text on a terminal: file names and captions may contain escape sequences."""

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
    """Return the console; in a log file, which has no width, tables are 120 columns wide."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)
