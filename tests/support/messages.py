"""Short builders for the messages of conversations."""

import json
from pathlib import Path

from pipeline.manifest.read import read_manifest
from pipeline.storage.storage import Storage
from schemas.tables.manifest import MediaItem


def image(uri: str, **settings) -> dict:
    return {"type": "image", "image": uri, **settings}


def video(uri: str | list[str], **settings) -> dict:
    return {"type": "video", "video": uri, **settings}


def text(content: str) -> dict:
    return {"type": "text", "text": content}


def user(*parts: dict) -> dict:
    return {"role": "user", "content": list(parts)}


def assistant(content: str) -> dict:
    return {"role": "assistant", "content": content}


SYSTEM = {"role": "system", "content": "Answer in one word."}


def read(folder: Path, *rows: list[dict] | dict) -> list[MediaItem]:
    """Read rows, or the messages of rows, as a manifest in the folder of the media."""
    manifest = folder / ".messages.jsonl"
    values = [row if isinstance(row, dict) else {"messages": row} for row in rows]
    manifest.write_text("".join(json.dumps(value) + "\n" for value in values))
    items = read_manifest(str(manifest), Storage())
    manifest.unlink()
    return items
