"""The file of a calibration: ``calibrate`` writes it, plans and runs read it."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from jobs.cost.rates import Rates
from pipeline.storage.parquet import read_json, write_json
from pipeline.storage.storage import Storage, join
from schemas.errors import JobFileError
from schemas.job.job import Job


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Measured costs of a model on a device.

    model: as in a recipe: the costs are valid only for these weights, this engine and precision.
    rounds: the measurements: number of units, tokens of each of ``FEATURES``, engine seconds.
    error: relative error of the rates in predicting the measured seconds.
    """

    created_at: str
    device: str
    model: dict[str, Any]
    rates: Rates
    rounds: list[dict[str, float]]
    error: float


def calibration_uri(job: Job) -> str:
    """The uri of the job's calibration."""
    return job.cost.calibration or join(job.output, "calibration.json")


def read_calibration(job: Job, model: dict[str, Any], storage: Storage) -> Calibration | None:
    """Read the job's calibration; None if there is none for this model.

    Raises:
        JobFileError: the file that the job names is missing, or of another model.
        StorageError: the storage cannot be read.
    """
    uri, is_named = calibration_uri(job), job.cost.calibration is not None
    try:
        content = read_json(uri, storage)
    except FileNotFoundError:
        if is_named:
            raise JobFileError(
                f"cost.calibration: there is no {uri}: `reelscribe calibrate` writes it"
            ) from None
        return None
    except ValueError:
        content = None
    names = {field.name for field in dataclasses.fields(Calibration)}
    rates = Rates.read(content.get("rates")) if isinstance(content, dict) else None
    if rates is None or set(content) != names:
        if is_named:
            raise JobFileError(
                f"cost.calibration: {uri} is not a calibration that this version can read: "
                "`reelscribe calibrate` writes it again"
            )
        return None
    if content["model"] != model:
        if is_named:
            raise JobFileError(
                f"cost.calibration: {uri} was made with another model, engine or precision: "
                "`reelscribe calibrate` measures this job's"
            )
        return None
    return Calibration(**content | {"rates": rates})


def write_calibration(found: Calibration, uri: str, storage: Storage) -> None:
    """Write a calibration as JSON.

    Raises:
        StorageError: the file cannot be written.
    """
    write_json(dataclasses.asdict(found), uri, storage)
