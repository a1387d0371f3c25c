"""Check the messages of a conversation, and split them into texts and media.

The form is that of the model's reference code (qwen-vl-utils):

    [{"role": "user", "content": [{"type": "image", "image": uri, "max_pixels": 200704},
                                  {"type": "video", "video": uri, "fps": 1.0},
                                  {"type": "text", "text": "What is the same?"}]}]
"""

import json
import re
from typing import Any

from pipeline.manifest.uris import resolve_uri
from pipeline.manifest.values import RowError, brief, read_json, read_number
from schemas.tables.manifest import MediaItem, PartSettings

_ROLES = ("system", "user", "assistant")
_TYPES = ("image", "video", "text")
_EXAMPLE = '[{"role": "user", "content": "..."}]'
_SIZES = ("min_pixels", "max_pixels", "resized_height", "resized_width")
_KNOWN_SETTINGS = {
    "image": _SIZES,
    "video": (
        *("fps", "num_frames", "min_frames", "max_frames", "video_start", "video_end"),
        *("total_pixels", *_SIZES),
    ),
    "frame list": ("sample_fps", "total_pixels", *_SIZES),
}
_FRACTIONS = ("fps", "sample_fps", "video_start", "video_end")
_ALIASES = {"nframes": "num_frames", "image_url": "image", "video_url": "video"}
_SURROGATE = re.compile("[\ud800-\udfff]")


def read_messages(value: Any, base: str) -> str:
    """Check messages and return them in one form: JSON text, each content a list, uris absolute.

    value: a list of turns, or its JSON text.
    base: the folder where relative uris start.

    Raises:
        RowError: a message is wrong; gives its number.
    """
    turns = read_json(value, "messages", _EXAMPLE) if isinstance(value, str) else value
    if not isinstance(turns, list) or not turns:
        raise RowError(f"messages must be a list such as {_EXAMPLE}, got {brief(turns)}")
    read = []
    for k, turn in enumerate(turns, start=1):
        try:
            read.append(_turn(turn, base, is_first=k == 1))
        except RowError as error:
            raise RowError(f"message {k}: {error}") from None
    if read[-1]["role"] != "user":
        raise RowError(
            f"message {len(read)}: the last turn must be the user's, since the model answers it; "
            f"it is the {read[-1]['role']}'s"
        )
    return json.dumps(read, ensure_ascii=False)


def split_messages(messages: str) -> tuple[str, tuple[MediaItem, ...]]:
    """Split the result of ``read_messages`` into texts and media.

    Returns the turns as JSON text for the chat template, with a placeholder for each image or
    video, and the images and videos in order.
    """
    turns = json.loads(messages)
    media: list[MediaItem] = []
    for turn in turns:
        content: list[dict[str, Any]] = []
        texts: list[list[str]] = []  # of each part of text
        for part in turn["content"]:
            if part["type"] != "text":
                content.append({"type": part["type"]})
                media.append(_item(part))
            elif content and content[-1]["type"] == "text":
                texts[-1].append(part["text"])
            else:
                content.append(part)
                texts.append([part["text"]])
        # Joined before special tokens are escaped: "<" and "|im_end|>" alone look harmless.
        for part, found in zip((p for p in content if p["type"] == "text"), texts, strict=True):
            part["text"] = "".join(found)
        # Templates expect plain text in the other turns.
        turn["content"] = content if turn["role"] == "user" else content[0]["text"]
    return json.dumps(turns, ensure_ascii=False), tuple(media)


def _item(part: dict[str, Any]) -> MediaItem:
    kind = part.pop("type")
    uris = part.pop(kind)
    frames = tuple(uris) if isinstance(uris, list) else ()
    return MediaItem(
        media_id="",
        uri=frames[0] if frames else uris,
        frames=frames,
        media_type=kind,
        sample_fps=part.pop("sample_fps", None),
        start_seconds=part.pop("video_start", None),
        end_seconds=part.pop("video_end", None),
        settings=PartSettings(**part),
    )


def _turn(turn: Any, base: str, *, is_first: bool) -> dict[str, Any]:
    if not isinstance(turn, dict):
        raise RowError(f"must be an object such as {_EXAMPLE[1:-1]}, got {brief(turn)}")
    given = {key: value for key, value in turn.items() if value is not None}
    role, content = given.pop("role", None), given.pop("content", None)
    _check_keys(given, ("role", "content"), "a message")
    if role not in _ROLES:
        raise RowError(f"role must be {', '.join(_ROLES[:-1])} or {_ROLES[-1]}, got {brief(role)}")
    if role == "system" and not is_first:
        raise RowError("a system turn must be the first message")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list) or not content:
        raise RowError(f"content must be text or a list of parts, got {brief(content)}")
    parts = [_part(part, base) for part in content]
    if role != "user" and any(part["type"] != "text" for part in parts):
        raise RowError(f"only user turns may have images and videos, this is the {role}'s")
    return {"role": role, "content": parts}


def _part(part: Any, base: str) -> dict[str, Any]:
    if not isinstance(part, dict):
        raise RowError(
            'a part of content must be an object such as {"type": "image", "image": "a.jpg"}, '
            f"got {brief(part)}"
        )
    given: dict[str, Any] = {}
    for key, value in part.items():
        name = _ALIASES.get(str(key), str(key))
        if value is not None and name in given:
            raise RowError(f"{name} is given twice, once as {key}")
        if value is not None:
            given[name] = value
    kind = given.pop("type", None) or next((kind for kind in _TYPES if kind in given), None)
    kind = _ALIASES.get(kind, kind) if isinstance(kind, str) else kind
    if kind not in _TYPES:
        raise RowError(
            f"unknown content type {brief(kind)}; known are text, image, image_url and video"
        )
    if kind not in given:
        raise RowError(f"a part of type {kind} needs the key {kind!r}, got {brief(part)}")
    value = given.pop(kind)
    if kind == "text":
        _check_keys(given, ("type", "text"), "text")
        if not isinstance(value, str) or _SURROGATE.search(value):
            raise RowError(f"text must be text, got {brief(value)}")
        return {"type": "text", "text": value}
    if isinstance(value, dict) and set(value) == {"url"}:
        value = value["url"]
    is_list = kind == "video" and isinstance(value, list) and bool(value)
    for uri in value if is_list else [value]:
        if not isinstance(uri, str) or not uri.strip() or _SURROGATE.search(uri):
            frames = ", or a list of the uris of its frames" if kind == "video" else ""
            raise RowError(f"{kind} must be a uri{frames}; got {brief(uri)}")
    media = [resolve_uri(uri, base) for uri in value] if is_list else resolve_uri(value, base)
    return {"type": kind, kind: media} | _settings(given, "frame list" if is_list else kind)


def _settings(given: dict[str, Any], kind: str) -> dict[str, Any]:
    """The checked settings of an image, a video or a frame list."""
    _check_keys(given, _KNOWN_SETTINGS[kind], f"{'an' if kind == 'image' else 'a'} {kind}")
    settings: dict[str, Any] = {}
    for key in given:
        value = read_number(given, key)
        if value is None:
            continue
        if value < 0 or (value == 0 and key != "video_start"):
            raise RowError(f"{key} must be positive, got {value:g}")
        if key not in _FRACTIONS:
            if value != int(value):
                raise RowError(f"{key} must be a whole number, got {value:g}")
            value = int(value)
        settings[key] = value
    if "fps" in settings and "num_frames" in settings:
        raise RowError("fps and num_frames are both given; give one of them")
    if ("resized_height" in settings) != ("resized_width" in settings):
        raise RowError("give resized_height and resized_width together, or neither")
    pairs = (
        ("min_pixels", "max_pixels"),
        ("min_frames", "max_frames"),
        ("video_start", "video_end"),
    )
    for low, high in pairs:
        minimum, maximum = settings.get(low, 0), settings.get(high)
        if maximum is None:
            continue
        is_span = high == "video_end"
        if minimum > maximum or (is_span and minimum == maximum):
            relation = "less than" if is_span else "at most"
            raise RowError(f"{low} {minimum} must be {relation} {high} {maximum}")
    return settings


def _check_keys(given: dict[str, Any], known: tuple[str, ...], what: str) -> None:
    unknown = [key for key in given if key not in known]
    if unknown:
        raise RowError(f"unknown key {unknown[0]!r} of {what}; known are {', '.join(known)}")
