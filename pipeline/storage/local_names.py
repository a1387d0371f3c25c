"""Names of local files that are not UTF-8, which no table and no JSON can hold.

Linux keeps names as bytes; Python holds those that are not UTF-8 as lone surrogates. The uri of
such a file is the percent-encoded ``file://`` uri of RFC 8089: ``file:///clips/Z%FCrich.mp4``.
"""

import os
from pathlib import PurePosixPath
from urllib.parse import unquote_to_bytes


def uri_of_path(path: str) -> str:
    """Return the uri of an absolute path: the path itself, if it is UTF-8."""
    return path if is_utf8(path) else PurePosixPath(path).as_uri()


def path_of_uri(uri: str, path: str) -> str:
    """Return the path of a local file.

    path: of the uri as it is written; kept, unless the uri is one that ``uri_of_path`` makes.
    """
    if not uri.startswith("file://") or "%" not in path:
        return path
    decoded = os.fsdecode(unquote_to_bytes(path))
    return path if is_utf8(decoded) or not os.path.lexists(decoded) else decoded


def is_utf8(path: str) -> bool:
    """Whether a path is text that tables and JSON can hold."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
