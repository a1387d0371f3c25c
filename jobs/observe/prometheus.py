"""Metrics of a run, for Prometheus: Ray exports them from every node, as ``ray_reelscribe_*``.

The driver counts a unit when its row is committed, with all its measurements: a batch that Ray
repeats counts once, and no numbers are lost with an actor. Shares and rates are computed in the
query: busy seconds per second, divided by the number of actors, is their utilisation. (Busy seconds
are counters, because Ray computes a histogram's sum from the middles of its buckets.)
"""

from collections.abc import Mapping
from typing import Any

_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0]

COUNTERS = {
    "reelscribe_units": ("committed units, by status", ("status",)),
    "reelscribe_errors": ("failed units, by stage and type", ("stage", "type")),
    "reelscribe_answers": ("answers, by task and status", ("task", "status")),
    "reelscribe_retries": ("further attempts at an answer", ("task",)),
    "reelscribe_busy_seconds": ("seconds in which decoders and engines worked", ("stage",)),
    "reelscribe_prompt_tokens": ("tokens that the model read, including those of frames", ()),
    "reelscribe_output_tokens": ("tokens generated", ()),
    "reelscribe_read_bytes": ("bytes of media that the decoders read from storage", ()),
    "reelscribe_predicted_cost_tokens": ("tokens that the plan predicted for these units", ()),
    "reelscribe_actual_cost_tokens": ("tokens that these units took, read and generated", ()),
}
HISTOGRAMS = {
    "reelscribe_decode_seconds": "seconds to read, decode and resize the frames of a unit",
    "reelscribe_engine_seconds": "engine seconds of a unit: its share of its batch",
}
GAUGES = {
    "reelscribe_actors": ("actors of the run, by stage", ("stage",)),
    "reelscribe_waiting_units": ("units of the run without a row", ()),
    "reelscribe_remaining_seconds": ("seconds until the run ends, at its recent rate", ()),
}


class Metrics:
    """The metrics of one process; without Ray's metrics agent they are not exported."""

    def __init__(self, job_name: str) -> None:
        """Create the metrics; needs a Ray session. job_name: label of all metrics."""
        from ray.util import metrics

        self._all: dict[str, Any] = {
            name: metrics.Counter(name, text, (*tags, "job_name"))
            for name, (text, tags) in COUNTERS.items()
        }
        self._all |= {
            name: metrics.Histogram(name, text, _SECONDS, ("job_name",))
            for name, text in HISTOGRAMS.items()
        }
        self._all |= {
            name: metrics.Gauge(name, text, (*tags, "job_name"))
            for name, (text, tags) in GAUGES.items()
        }
        for metric in self._all.values():
            metric.set_default_tags({"job_name": job_name})

    def set(self, name: str, value: float, **tags: str) -> None:
        """Set a gauge."""
        self._all[name].set(value, tags)

    def committed(self, row: Mapping[str, Any]) -> None:
        """Count a unit whose row was just written. row: of COMMITTED."""
        self._count("reelscribe_units", 1, status=str(row["status"]))
        if row["error"] is not None:
            stage, kind = row["error"]["stage"], str(row["error"]["type"])
            self._count("reelscribe_errors", 1, stage=stage, type=kind)
        for response in row["responses"]:
            task = response["task"]
            self._count("reelscribe_answers", 1, task=task, status=str(response["status"]))
            self._count("reelscribe_retries", (response.get("attempts") or 1) - 1, task=task)
            fed = response.get("num_prompt_tokens") or 0
            written = response.get("num_output_tokens") or 0
            self._count("reelscribe_prompt_tokens", fed)
            self._count("reelscribe_output_tokens", written)
            self._count("reelscribe_actual_cost_tokens", written)
        self._count("reelscribe_predicted_cost_tokens", row["predicted_cost"])
        # The model reads the tokens that tasks share once, though each prompt counts them.
        fed = row["num_vision_tokens"] + row["num_text_tokens"]
        self._count("reelscribe_actual_cost_tokens", fed)
        timings = row["timings"]
        self._count("reelscribe_read_bytes", timings["bytes_read"] or 0)
        for stage in ("decode", "engine"):
            if seconds := timings[f"{stage}_seconds"]:
                self._all[f"reelscribe_{stage}_seconds"].observe(seconds)
                self._count("reelscribe_busy_seconds", seconds, stage=stage)

    def _count(self, name: str, value: float, **tags: str) -> None:
        if value > 0:
            self._all[name].inc(value, tags)
