"""Files that a command is asked to write: where they are, and that they spare what it reads."""

import os
from collections.abc import Iterable
from pathlib import Path

from schemas.errors import UserError


def absolute(uri: str) -> str:
    """A local path from the root, without `..` and links; another uri as it is."""
    return uri if "://" in uri else str(Path(uri).expanduser().resolve())


def check_output(option: str, uri: str, inputs: Iterable[str]) -> None:
    """Refuse, before any work, to write over an input or where nothing can be written.

    Raises:
        UserError: says which, with the option's name.
    """
    out = absolute(uri)
    for given in inputs:
        if absolute(given) == out:
            raise UserError(f"{option} {uri} is what is read; give another file")
    if "://" in out:
        return
    if Path(out).is_dir():
        raise UserError(f"{option} {uri} is a folder; give it a file's name")
    folder = Path(out).parent
    while not folder.exists():  # it is made when the file is written
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{option} {uri} cannot be written: no right to write in {folder}")
