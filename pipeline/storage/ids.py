"""Ids that are hashes of content."""

import hashlib


def digest(*parts: str | None) -> str:
    """Return a hash of texts, as 24 hexadecimal digits; None counts as an empty text."""
    return hashlib.sha256("\x1f".join(part or "" for part in parts).encode()).hexdigest()[:24]
