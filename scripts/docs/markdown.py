"""Helpers of all generated pages."""

GENERATED = "<!-- Made by `python -m scripts.docs.reference`; change the code, not this page. -->\n"


def cell(text: str) -> str:
    """Escape a text for a cell of a Markdown table."""
    return text.replace("|", "\\|")
