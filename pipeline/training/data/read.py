"""Read a data set: one conversation for each example, or one problem that names the row."""

from pipeline.storage.storage import Storage
from pipeline.training.data.annotations import read_annotations
from pipeline.training.data.conversations import read_conversations
from pipeline.training.data.examples import Example
from schemas.errors import ManifestError
from schemas.job.finetune import DataSpec
from schemas.shown import redact_uri


def read_data(spec: DataSpec, storage: Storage) -> list[Example]:
    """Read all examples of a data set, in its order; ``share`` is not applied.

    Raises:
        ManifestError: the data set is missing, not in its format, or has no examples.
        StorageError: the bucket or the credentials do not work.
    """
    read = read_annotations if spec.conversations is None else read_conversations
    examples = list(read(spec, storage))
    if not examples:
        name = redact_uri(spec.conversations or spec.annotations or "")
        where = f", or `where` ({spec.where}) selects none" if spec.where else ""
        raise ManifestError(f"{name} has no answers to learn: no rows, or all null{where}")
    return examples
