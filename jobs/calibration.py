"""What a calibration found, as a file: ``calibrate`` writes it, plans and runs read it."""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from jobs.cost import Rates
from pipeline.storage import Storage, join
from pipeline.write import write_json
from schemas.errors import JobFileError
from schemas.job import Job


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Costs of a model on a device.

    model: as in a recipe: costs hold for the same weights, engine and precision only.
    rounds: what was measured: units, of each of ``FEATURES`` how many, and engine seconds.
    error: how far the rates are off what was measured, of its seconds.
    """

    created_at: str
    device: str
    model: dict[str, Any]
    rates: Rates
    rounds: list[dict[str, float]]
    error: float


def calibration_uri(job: Job) -> str:
    """Where the job's calibration lies."""
    return job.cost.calibration or join(job.output, "calibration.json")


def read_calibration(job: Job, model: dict[str, Any], storage: Storage) -> Calibration | None:
    """Return the job's calibration, if there is one of this model.

    Raises:
        JobFileError: the file that the job names is missing, or of another model.
        StorageError: the storage cannot be read.
    """
    uri, is_asked = calibration_uri(job), job.cost.calibration is not None
    try:
        content = json.loads(storage.read_bytes(uri))
    except FileNotFoundError:
        if is_asked:
            raise JobFileError(
                f"cost.calibration: there is no {uri}: `reelscribe calibrate` writes it"
            ) from None
        return None
    except ValueError:
        content = None
    names = {field.name for field in dataclasses.fields(Calibration)}
    rates = Rates.read(content.get("rates")) if isinstance(content, dict) else None
    if rates is None or set(content) != names:
        if is_asked:
            raise JobFileError(
                f"cost.calibration: {uri} is no calibration this version can read: let "
                "`reelscribe calibrate` write it again"
            )
        return None
    if content["model"] != model:
        if is_asked:
            raise JobFileError(
                f"cost.calibration: {uri} was made with another model, engine or precision: "
                "`reelscribe calibrate` makes one of this job's"
            )
        return None
    return Calibration(**content | {"rates": rates})


def write_calibration(found: Calibration, uri: str, storage: Storage) -> None:
    """Write a calibration as JSON.

    Raises:
        StorageError: it cannot be written.
    """
    write_json(dataclasses.asdict(found), uri, storage)
