"""What both formats of training data share: an example, an error of one row, media paths."""

from typing import Any

from pipeline.manifest.uris import parent_folder, resolve_uri, without_slash
from schemas.conversation import Conversation, DataProblem, ProblemType
from schemas.job.finetune import DataSpec

Example = Conversation | DataProblem
"""One training example, or what is wrong with it."""


class RowError(Exception):
    """One row of a data set is wrong."""

    def __init__(self, type_: ProblemType, message: str) -> None:
        super().__init__(message)
        self.type = type_


def media_base(spec: DataSpec) -> str:
    """The folder that relative media paths of a data set start from."""
    if spec.media_folder:
        return without_slash(spec.media_folder)
    uri = spec.conversations or spec.annotations or ""
    is_folder = spec.annotations is not None and not uri.lower().endswith(".parquet")
    return uri.rstrip("/") if is_folder else parent_folder(uri)


def media_uri(path: Any, base: str) -> str:
    """The absolute URI of a row's media path.

    Raises:
        RowError: the path is not text, or empty.
    """
    if not isinstance(path, str) or not path:
        raise RowError(ProblemType.BAD_ROW, f"a media path must be text, got {path!r:.80}")
    return resolve_uri(path, base)
