"""Notify a scheduler that a run is complete: summary.json, exit code, command, webhook.

The job's command is run as written, without a shell. It gets the run's data in environment
variables and in a file. Nothing that media or models wrote is passed on.
"""

import json
import logging
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from typing import Any

from jobs.plan.runs import Run, all_runs
from pipeline.storage.parquet import write_json
from pipeline.storage.storage import Storage, join
from schemas.errors import JobFileError
from schemas.job.job import Job
from schemas.job.limits import OnFinish

logger = logging.getLogger(__name__)

TOO_MANY_FAILED = 3
"""Exit code of a complete run in which more units failed than ``limits.max_failed`` allows."""

_MAX_ATTEMPTS = 3


def check_on_finish(target: OnFinish) -> None:
    """Check, before the run starts, that the command and the webhook's url are there.

    Raises:
        JobFileError: one of them is not; the url, which may be a secret, is not shown.
    """
    if target.command and shutil.which(target.command[0]) is None:
        raise JobFileError(
            f"on_finish.command: there is no program {target.command[0]} on this machine's PATH; "
            "install it, or give its path"
        )
    if target.webhook_env is None:
        return
    url = os.environ.get(target.webhook_env, "")
    if not url:
        raise JobFileError(
            f"on_finish.webhook_env: the environment variable {target.webhook_env} is not set; set "
            "it to the webhook's url, or remove the key"
        )
    if not url.lower().startswith(("https://", "http://")):
        raise JobFileError(
            f"on_finish.webhook_env: the environment variable {target.webhook_env} must hold a url "
            "that begins with https:// or http://"
        )


def summary(run: Run, job: Job) -> dict[str, Any]:
    """Summarise a run as JSON values: counts, ids and paths, no text of media or models."""
    counts = run.counts or {"units": 0, "status": {}, "errors": {}}
    failed = counts["status"].get("failed", 0)
    share = failed / counts["units"] if counts["units"] else 0.0
    allowed = job.limits.max_failed
    return {
        "run_id": run.run_id,
        "job": run.name,
        "status": run.status,
        "recipe_ids": run.recipe_ids._asdict(),
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
    """Write ``summary.json``, and run the command and the webhook of the job.

    A command or webhook that fails is logged as a warning: the run is complete all the same.

    Returns the exit code: 0 or ``TOO_MANY_FAILED``.

    Raises:
        StorageError: the summary cannot be written.
    """
    if not run.counts:
        run = _latest_run(run, job, storage)
    found = summary(run, job)
    if run.counts:
        write_json(found, join(run.folder(job.output), "summary.json"), storage)
    notify(found, job.on_finish)
    return 0 if found["is_ok"] else TOO_MANY_FAILED


def _latest_run(run: Run, job: Job, storage: Storage) -> Run:
    """If nothing was new: the latest run of the job name, if it is less than a day old.

    Otherwise, after a run with too many failed units, a scheduler's next attempt would succeed.
    """
    since = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    runs = [
        other
        for other in all_runs(job.output, storage)
        if other.name == run.name and other.counts and other.created_at >= since
    ]
    return max(runs, key=lambda other: other.created_at, default=run)


def notify(found: dict[str, Any], target: OnFinish) -> None:
    """Run the command and call the webhook, each if the job has it.

    found: as ``summary`` returns it.
    """
    if target.command:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(found, file)
            file.flush()
            variables = {
                "REELSCRIBE_RUN_ID": found["run_id"],
                "REELSCRIBE_STATUS": "ok" if found["is_ok"] else "too_many_failed",
                "REELSCRIBE_SUMMARY": file.name,
            }
            try:
                subprocess.run(
                    list(target.command),
                    env=os.environ | variables,
                    check=True,
                    timeout=target.timeout,
                )
            except (OSError, subprocess.SubprocessError) as error:
                logger.warning("on_finish.command failed: %s", _reason(error))
    if url := os.environ.get(target.webhook_env or ""):
        _post(url, found, target.timeout)


def _post(url: str, found: dict[str, Any], timeout: float) -> None:
    """POST the summary as JSON. The url may be a secret, so no message has it."""
    for attempt in range(1, _MAX_ATTEMPTS + 1):
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
            if attempt == _MAX_ATTEMPTS:
                logger.warning(
                    "on_finish.webhook_env: %d attempts failed: %s", attempt, type(error).__name__
                )
                return
        time.sleep(2.0 ** (attempt - 1))


def _reason(error: Exception) -> str:
    """Describe an error without the command's arguments, which may be secrets."""
    if isinstance(error, subprocess.CalledProcessError):
        return f"exit code {error.returncode}"
    if isinstance(error, subprocess.TimeoutExpired):
        return f"it did not end within {error.timeout:g} s"
    return type(error).__name__
