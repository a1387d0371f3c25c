"""What a scheduler acts on when a run is complete: summary.json, an exit code, a call.

The command is run as it stands in the job file, without a shell; what it should know of the run is
in its environment and in a file. Nothing that media or models wrote is passed on.
"""

import json
import logging
import os
import subprocess
import tempfile
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import Any

from jobs.runs import Run, all_runs
from pipeline.storage import Storage, join
from pipeline.write import write_json
from schemas.job import Job
from schemas.limits import OnFinish

logger = logging.getLogger(__name__)

TOO_MANY_FAILED = 3
"""The exit code of a complete run in which a larger share of units failed than the job allows."""

_TRIES = 3


def summary(run: Run, job: Job) -> dict[str, Any]:
    """What came out of a run: numbers, ids and places, no text of media or models."""
    counts = run.counts or {"units": 0, "status": {}, "errors": {}}
    failed = counts["status"].get("failed", 0)
    share = failed / counts["units"] if counts["units"] else 0.0
    allowed = job.limits.max_failed
    return {
        "run_id": run.run_id,
        "job": run.name,
        "status": run.status,
        "recipe_id": run.key.recipe_id,
        "run_date": run.run_date,
        "seconds": run.seconds,
        "starts": run.starts,
        "failed_share": round(share, 6),
        "max_failed": allowed,
        "is_ok": allowed is None or share <= allowed,
        "output": join(job.output, "annotations"),
        "counts": counts,
    }


def after_run(run: Run, job: Job, storage: Storage) -> int:
    """Write ``summary.json`` and tell whom the job names; returns the exit code.

    That nobody could be told is a warning: the run is complete all the same.

    Raises:
        StorageError: the summary cannot be written.
    """
    if not run.counts:
        run = _of_this_night(run, job, storage)
    found = summary(run, job)
    if run.counts:
        write_json(found, join(run.folder(job.output), "summary.json"), storage)
    tell(found, job.on_finish)
    return 0 if found["is_ok"] else TOO_MANY_FAILED


def _of_this_night(run: Run, job: Job, storage: Storage) -> Run:
    """Where nothing was new: the run that took it, if that was within a day.

    Else a scheduler's next attempt would make a success of a run in which too much failed.
    """
    since = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    runs = [
        one
        for one in all_runs(job.output, storage)
        if one.name == run.name and one.counts and one.created_at >= since
    ]
    return max(runs, key=lambda one: one.created_at, default=run)


def tell(found: dict[str, Any], whom: OnFinish) -> None:
    """Run the command and call the webhook."""
    if whom.command:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(found, file)
            file.flush()
            told = {
                "REELSCRIBE_RUN_ID": found["run_id"],
                "REELSCRIBE_STATUS": "ok" if found["is_ok"] else "too_many_failed",
                "REELSCRIBE_SUMMARY": file.name,
            }
            try:
                subprocess.run(
                    list(whom.command), env=os.environ | told, check=True, timeout=whom.timeout
                )
            except (OSError, subprocess.SubprocessError) as error:
                logger.warning("on_finish.command: %s", _why(error))
    url = os.environ.get(whom.webhook_env or "")
    if whom.webhook_env and not url:
        logger.warning("on_finish.webhook_env: there is no variable %s", whom.webhook_env)
    elif url:
        _call(url, found, whom.timeout)


def _call(url: str, found: dict[str, Any], timeout: float) -> None:
    """POST the summary as JSON. The url may be a secret, so it is in no message."""
    for left in reversed(range(_TRIES)):
        try:
            request = urllib.request.Request(
                url,
                data=json.dumps(found).encode(),
                headers={"Content-Type": "application/json"},
                method="POST",
            )
            with urllib.request.urlopen(request, timeout=timeout):
                return
        except (OSError, ValueError) as error:
            if left == 0:
                logger.warning("on_finish.webhook_env: no success: %s", type(error).__name__)
                return
        time.sleep(2.0 ** (_TRIES - left - 1))


def _why(error: Exception) -> str:
    """Say it without the command's arguments, which may be secrets."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"exit code {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no end after {error.timeout:g} s"
    return type(error).__name__
