"""Print untrusted text on a terminal: file names and captions may contain escape sequences."""

import sys
from typing import TYPE_CHECKING, Any

from schemas.shown import printable

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderResult


def console() -> "Console":
    """Return the console; in a log file, which has no width, tables are 120 columns wide."""
    from rich.console import Console

    made = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    hook: Any = _PrintableHook()
    made.push_render_hook(hook)
    return made


class _PrintableHook:
    """Makes all that a console prints printable, also what was not when it was printed."""

    def process_renderables(
        self, renderables: "list[ConsoleRenderable]"
    ) -> "list[ConsoleRenderable]":
        """Wrap what is to be printed."""
        return [_Printable(renderable) for renderable in renderables]


class _Printable:
    def __init__(self, renderable: "ConsoleRenderable") -> None:
        self._renderable = renderable

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        """Render; control codes of rich itself stay."""
        from rich.segment import Segment

        for segment in console.render(self._renderable, options):
            shown = segment.control or segment.text.isprintable()
            yield segment if shown else Segment(printable(segment.text), segment.style)
