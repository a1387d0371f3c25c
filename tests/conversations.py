"""Messages of conversations, written short, for tests."""

import json
from pathlib import Path

from pipeline.read_manifest import read_manifest
from pipeline.storage import Storage
from schemas.manifest import MediaItem


def image(uri: str, **settings) -> dict:
    return {"type": "image", "image": uri, **settings}


def video(uri: str | list[str], **settings) -> dict:
    return {"type": "video", "video": uri, **settings}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def user(*parts: dict) -> dict:
    return {"role": "user", "content": list(parts)}


def said(words: str) -> dict:
    return {"role": "assistant", "content": words}


SYSTEM = {"role": "system", "content": "Answer in one word."}


def read(folder: Path, *rows: list[dict] | dict) -> list[MediaItem]:
    """Items of a manifest of these messages, or rows, which lies beside the media."""
    manifest = folder / ".messages.jsonl"
    values = [row if isinstance(row, dict) else {"messages": row} for row in rows]
    manifest.write_text("".join(json.dumps(value) + "\n" for value in values))
    items = read_manifest(str(manifest), Storage())
    manifest.unlink()
    return items
