"""Check the output files of commands: no input is overwritten, and the folder is writable."""

import os
from collections.abc import Iterable
from pathlib import Path

from schemas.errors import UserError


def absolute_uri(uri: str) -> str:
    """Make a local path absolute, without ``~`` and ``..``; other uris stay as they are.

    Links are kept: another machine may resolve them to another folder.
    """
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def is_same_file(one: str, other: str) -> bool:
    """Whether two uris name the same file, links followed."""
    first, second = (
        uri if "://" in uri else os.path.realpath(absolute_uri(uri)) for uri in (one, other)
    )
    return first == second


def check_output(option: str, uri: str, inputs: Iterable[str]) -> None:
    """Check, before any work, that a file is not an input and can be written.

    Raises:
        UserError: it is an input, a folder, or cannot be written; names the option.
    """
    out = absolute_uri(uri)
    for given in inputs:
        if is_same_file(given, uri):
            raise UserError(f"{option} {uri} is an input; give another file")
    if "://" in out:
        return
    if Path(out).is_dir():
        raise UserError(f"{option} {uri} is a folder; give it a file's name")
    folder = Path(out).parent
    while not folder.exists():  # it is made when the file is written
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{option} {uri} cannot be written: no permission to write in {folder}")
