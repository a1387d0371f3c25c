"""The facts in a run's ``run.json``, as JSON values for the page."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.storage.parquet import read_json
from pipeline.storage.storage import Storage, join
from schemas.errors import StorageError

_FACTS = (
    *("run_id", "status", "created_at", "finished_at", "starts", "seconds", "num_units"),
    *("num_output_tokens", "machines", "actors", "left_out", "counts", "versions"),
)


def run_values(output: str, run_id: str, storage: Storage) -> dict[str, Any]:
    """Return the facts about a run; only its id if there is no file, or one of another form.

    ``settings``: (section, (key, value) of each setting) of the job. ``raw``: the whole file.
    """
    try:
        content = read_json(join(output, "runs", run_id, "run.json"), storage)
    except (FileNotFoundError, StorageError, ValueError):
        return {"run_id": run_id}
    if not isinstance(content, dict):
        return {"run_id": run_id}
    facts = {key: content[key] for key in _FACTS if content.get(key) not in (None, [], {}, "")}
    job = content.get("job")
    return facts | {
        "run_id": run_id,
        "settings": _settings(job) if isinstance(job, dict) else [],
        "raw": content,
    }


def _settings(job: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the sections of a job and their settings; those without a value are left out."""
    sections: dict[str, list[tuple[str, str]]] = {"job": []}
    for section, value in job.items():
        if section == "tasks" and isinstance(value, list):
            for task in value:
                name = f"task {task.get('name')}" if isinstance(task, dict) else str(task)
                found = dict(task) if isinstance(task, dict) else {}
                sections[name] = _flat({k: v for k, v in found.items() if k != "name"})
        elif isinstance(value, dict):
            sections[section] = _flat(value)
        else:
            sections["job"] += _flat({section: value})
    return list(sections.items())


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Return nested settings as (dotted key, text)."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += _flat(value, f"{before}{key}.")
        elif value not in (None, [], ""):
            found.append((f"{before}{key}", _text(value)))
    return found


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence) and all(isinstance(each, str | int | float) for each in value):
        return ", ".join(map(str, value))
    return json.dumps(value, ensure_ascii=False)
