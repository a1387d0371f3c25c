"""Job files of tests."""

from pathlib import Path
from typing import Any

import pytest

from schemas.job.job import Job, check_job

SMALL = {
    "tasks": ["caption", "events", "ocr", "text_spans", "objects"],
    "budget": {"image_tokens": [4, 64], "frame_tokens": [4, 16], "unit_tokens": 256},
    "generation": {"max_new_tokens": 6},
    "sampling": {"segmentation": {"kind": "window", "seconds": 6}},
    "resources": {"decoders": 1},  # to start an actor costs seconds
}

SIMULATED = {"engine": "simulated", "simulated": {"speed": 1000.0, "output_tokens": 8}}
"""A model section without weights, for tests of what happens around the answers."""

TINY_BUDGET = {"image_tokens": [4, 64], "frame_tokens": [4, 16], "unit_tokens": 512}
"""Settings of a small job, for a tiny checkpoint on a CPU."""


def hide_ray(patch: pytest.MonkeyPatch) -> None:
    """Let small jobs run without Ray, whatever session this process has."""
    for room in ("machines", "small", "engine_choice"):
        patch.setattr(f"jobs.cluster.{room}.has_session", lambda: False)
    for room in ("small", "engine_choice"):
        patch.setattr(f"jobs.cluster.{room}.running_ray", lambda: None)


def make_job(source: Path | str | None = None, **sections: Any) -> Job:
    """Make a job whose input and output are not used; ``sections`` replace those of the job file.

    source: the checkpoint folder; in float32, so that answers can be compared token by token.
    """
    spec: dict[str, Any] = {
        "input": {"manifest": "unused.jsonl"},
        "output": "unused",
        "tasks": ["caption"],
    }
    if source is not None:
        spec["model"] = {"source": str(source), "dtype": "float32"}
    if "model" in sections and source is not None:
        sections["model"] = spec["model"] | sections["model"]
    return check_job(spec | sections, "test")
