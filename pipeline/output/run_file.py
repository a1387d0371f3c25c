"""Find and read the files of a run in an output, whatever ids and files others put there.

The id of a run is the name of its folder. An id that a row or file claims leads to no other place:
each path to a run's files is made by ``run_folder``.
"""

import re
from typing import Any

from pipeline.storage.parquet import read_json
from pipeline.storage.storage import Storage, join
from schemas.errors import StorageError
from schemas.shown import redact_uri

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def is_run_id(text: object) -> bool:
    """Whether a value can be the id of a run, and so the name of its folder."""
    return isinstance(text, str) and _RUN_ID.fullmatch(text) is not None


def run_folder(output: str, run_id: str) -> str:
    """Return the uri of a run's folder.

    Raises:
        StorageError: the id is no name of a folder, such as ``../other``.
    """
    if not is_run_id(run_id):
        raise StorageError(f"{run_id!r:.200} is not the id of a run: ids have a-z, 0-9, - . _")
    return join(output, "runs", run_id)


def read_run_file(output: str, run_id: str, storage: Storage) -> dict[str, Any]:
    """Read the ``run.json`` of a run.

    Raises:
        FileNotFoundError: there is none.
        StorageError: the storage refused or failed, the id is none, or the file is not JSON of a
            usual size and depth.
    """
    uri = join(run_folder(output, run_id), "run.json")
    try:
        return read_json(uri, storage)
    except ValueError as error:
        raise not_a_run_file(uri, str(error)) from None


def not_a_run_file(uri: str, problem: str) -> StorageError:
    """Return the error for a ``run.json`` of another form."""
    return StorageError(
        f"{redact_uri(uri)} is not a run file that this version can read ({problem}): move it away "
        "or give another output"
    )
