"""File names for exports that mirror the media: the media's own folders and names, made safe."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from urllib.parse import unquote, unquote_to_bytes

from pipeline.storage.protocols import is_utf8
from schemas.tables.manifest import guess_media_type

_REFUSED = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]')
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_MAX_BYTES = 200
"""Maximum length of a name; file systems allow 255 bytes, and an export adds an extension."""


def mirrored_names(
    media: Mapping[str, tuple[str, str]], others: Iterable[str] = ()
) -> tuple[str, dict[str, str]]:
    """Name each media item by its uri, relative to the folder that holds all media.

    media: key -> (uri, media_id). others: uris of media that get no name.

    Returns that folder, and key -> path without the extension, such as ``2024/talks/opening``. Two
    media whose names differ only in their extension keep it; those that still have one name, on a
    file system that ignores case, get their media_id. A path has no part that leaves the export's
    folder, and no character that a file system refuses.
    """
    folders = {key: _folders(uri) for key, (uri, _) in media.items()}
    uris = [*(uri for uri, _ in media.values()), *others]
    root = _common_start([_folders(uri) for uri in uris if not uri.startswith("data:")])
    names = {key: _name(uri) for key, (uri, _) in media.items()}
    parents = {
        key: [_safe(part) for part in parts[len(root) :] if part] for key, parts in folders.items()
    }
    is_taken = {_folded(parts[:k]) for parts in parents.values() for k in range(1, len(parts) + 1)}
    short = {key: _safe(_stem(name)) for key, name in names.items()}
    times = Counter(_folded([*parents[key], short[key]]) for key in media)
    found = {}
    for key, (_, media_id) in media.items():
        full = _safe(names[key])
        candidates = [full, _safe(f"{full}.{media_id}")]
        if times[_folded([*parents[key], short[key]])] == 1:
            candidates.insert(0, short[key])
        candidates += [f"{candidates[-1]}-{k}" for k in range(2, len(media) + 2)]
        paths = ([*parents[key], name] for name in candidates)
        path = next(path for path in paths if _folded(path) not in is_taken)
        is_taken.add(_folded(path))
        found[key] = "/".join(path)
    return "/".join(root) or "/", found


def _folders(uri: str) -> list[str]:
    """Split the part of a uri before its name; ``//`` of ``s3://`` gives an empty part."""
    if uri.startswith("data:"):
        return []
    return _path(uri).split("/")[:-1]


def _name(uri: str) -> str:
    """Return the name of a uri; nothing for a data: uri, which has none."""
    if uri.startswith("data:"):
        return "data"
    return _path(uri).rpartition("/")[2]


def _is_url(uri: str) -> bool:
    return uri.lower().startswith(("http://", "https://"))


def _path(uri: str) -> str:
    if _is_url(uri):
        return unquote(re.split(r"[?#]", uri, maxsplit=1)[0])
    # In an object key or a file name, ? and # are plain characters.
    path = uri.removeprefix("file://")
    is_encoded = path != uri and not is_utf8(os.fsdecode(unquote_to_bytes(path)))
    return unquote(path) if is_encoded else path


def _stem(name: str) -> str:
    return PurePosixPath(name).stem if guess_media_type(name) else name


def _common_start(folders: Sequence[list[str]]) -> list[str]:
    if not folders:
        return []
    first, last = min(folders), max(folders)
    same = [one == other for one, other in zip(first, last, strict=False)]
    return first[: same.index(False) if False in same else len(same)]


def _safe(part: str) -> str:
    """Return a part of a path that every file system takes."""
    text = part.encode("utf-8", "replace").decode()  # a name that is not UTF-8
    text = _REFUSED.sub("_", text).encode()[:_MAX_BYTES].decode("utf-8", "ignore")
    text = text.strip().rstrip(". ") or "_"
    return f"_{text}" if _RESERVED.fullmatch(text) else text


def _folded(parts: Sequence[str]) -> str:
    """Return a path as file systems compare it that ignore case and composition."""
    composed = unicodedata.normalize("NFC", "/".join(parts)).casefold()
    return unicodedata.normalize("NFC", composed)
