"""How long units take: seconds by their tokens, learnt from a run's own rows, or by calibration.

The plan knows tokens. What they cost depends on model, engine and GPU, so it is learnt: from the
first files that a run commits for its time left, and stored with the run for the next one's order
and price.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

FEATURES = ("num_vision_tokens", "num_text_tokens", "num_output_tokens")
"""What seconds follow from: what is seen, once for all tasks; the other tokens that the engine
reads, with what tasks share once; and what it writes."""

_LEAST_FILES = 6

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What work costs.

    seconds_each: engine seconds of each of FEATURES.
    output_tokens: of an answer of each task, in the mean.
    origin: where this is from, in words.
    """

    seconds_each: dict[str, float]
    output_tokens: dict[str, float]
    origin: str = ""

    @classmethod
    def read(cls, content: Any) -> "Rates | None":
        """Rates from JSON; None if there are none, or such as another version knew."""
        if not isinstance(content, dict) or set(content) != set(cls.__dataclass_fields__):
            return None
        return cls(**content) if set(content["seconds_each"]) == set(FEATURES) else None

    @property
    def weights(self) -> Array:
        """Seconds of each of FEATURES, float64 [3]."""
        return np.array([self.seconds_each[name] for name in FEATURES])


class Work:
    """The units of a run, what each costs, and how much is done.

    Costs are in seconds where they are known, else in the plan's tokens.
    """

    def __init__(self, units: pa.Table, rates: Rates | None) -> None:
        """``units``: UNIT rows to do. rates: as known before, if they are."""
        self.num_units = units.num_rows
        self.rates = rates
        each = features(units, rates.output_tokens if rates else {})
        self.costs = units["predicted_cost"].to_numpy() if rates is None else each @ rates.weights
        self.total_cost = float(self.costs.sum())
        self.done_cost = 0.0
        self._read = each[:, :2].sum(axis=0)
        self._asked = num_prompts(units)
        self._observed: list[tuple[Array, float]] = []
        self._answers: Counter[str] = Counter()
        self._written: Counter[str] = Counter()
        self._next_fit = _LEAST_FILES

    def done(self, rows: pa.Table) -> float:
        """Count the rows of a file, COMMITTED; returns their cost."""
        sums = np.array([float(pc.sum(rows[name]).as_py()) for name in FEATURES])
        self._observed.append((sums, float(pc.sum(rows["engine_seconds"]).as_py())))
        for response in pc.list_flatten(rows["responses"]).to_pylist():
            if response["num_output_tokens"] is not None:
                self._answers[response["task"]] += 1
                self._written[response["task"]] += response["num_output_tokens"]
        if self.rates is None:
            cost = float(pc.sum(rows["predicted_cost"]).as_py())
        else:
            cost = float(sums @ self.rates.weights)
        self.done_cost += cost
        return cost

    def learnt(self) -> bool:
        """Learn from what was done, after 6, 12, 24, ... files; whether costs have changed."""
        if len(self._observed) < self._next_fit:
            return False
        self._next_fit *= 2
        weights = fit(self._observed)
        if weights is None:
            return False
        means = {task: self._written[task] / count for task, count in self._answers.items()}
        self.rates = rates_of(weights, means)
        to_write = sum(
            count * output_of(task, self.rates.output_tokens) for task, count in self._asked.items()
        )
        self.done_cost = float(sum(sums for sums, _ in self._observed) @ weights)
        self.total_cost = max(float(np.append(self._read, to_write) @ weights), self.done_cost)
        return True


def rates_of(weights: Array, output_tokens: dict[str, float], origin: str = "") -> Rates:
    """Rates from what was fitted."""
    seconds_each = dict(zip(FEATURES, weights.tolist(), strict=True))
    return Rates(seconds_each=seconds_each, output_tokens=output_tokens, origin=origin)


def output_of(task: str, output_tokens: Mapping[str, float]) -> float:
    """Expected tokens of an answer; of a task that is not known, the mean of those that are."""
    mean = sum(output_tokens.values()) / len(output_tokens) if output_tokens else 0.0
    return output_tokens.get(task, mean)


def num_prompts(units: pa.Table) -> dict[str, int]:
    """How often each task is asked in a plan, where units can be done."""
    prompts = pc.list_flatten(units.filter(pc.is_null(units["error"]))["prompts"])
    counts = pc.value_counts(pc.struct_field(prompts, "task"))
    return {found["values"]: found["counts"] for found in counts.to_pylist()}


def features(units: pa.Table, output_tokens: Mapping[str, float]) -> Array:
    """FEATURES of each planned unit, float64 [N, 3]; zeros for those that failed.

    output_tokens: of an answer of each task, in the mean.
    """
    vision = _vision_tokens(units["sampling"]) + _sum_of_lists(
        units["parts"], lambda part: _vision_tokens(pc.struct_field(part, "sampling"))
    )
    prompts = units["prompts"]
    own = _sum_of_lists(prompts, lambda p: np.asarray(pc.struct_field(p, "num_own_tokens")))
    written = _sum_of_lists(prompts, lambda p: _written(p, output_tokens))
    text = units["num_shared_tokens"].to_numpy() + own - vision
    failed = pc.is_valid(units["error"]).to_numpy()
    each = np.stack([vision, text, written], axis=1)
    return np.where(failed[:, None], 0.0, each)


def _written(prompts: Any, output_tokens: Mapping[str, float]) -> Array:
    tasks = pc.dictionary_encode(pc.struct_field(prompts, "task")).combine_chunks()
    means = [output_of(task, output_tokens) for task in tasks.dictionary.to_pylist()]
    expected: Array = np.array([*means, 0.0])[np.asarray(tasks.indices)]
    return expected


def _vision_tokens(sampling: Any) -> Array:
    tokens = pc.fill_null(pc.struct_field(sampling, "num_vision_tokens"), 0)
    return np.asarray(tokens, dtype=np.float64)


def _sum_of_lists(lists: pa.ChunkedArray, values: Callable[[Any], Array]) -> Array:
    """Sum, for each row, what ``values`` makes of its list's elements."""
    of_elements = values(pc.list_flatten(lists))
    rows = np.asarray(pc.list_parent_indices(lists))
    return np.bincount(rows, weights=of_elements, minlength=len(lists)).astype(np.float64)


def fit(observed: Sequence[tuple[Array, float]], least: int = _LEAST_FILES) -> Array | None:
    """Seconds of each feature, float64 [3], from sums of files; None: too few files to tell.

    observed: of each file, the sum of its rows' features and of their engine seconds. Sums, since
    an engine knows the time of a batch only, and shares it out among the rows.
    least: so many files tell.

    Least squares; no feature gives time back: one that would is left out.
    """
    useful = [(sums, seconds) for sums, seconds in observed if seconds > 0]
    if len(useful) < least:
        return None
    inputs = np.array([sums for sums, _ in useful])
    seconds = np.array([s for _, s in useful])
    scale = np.maximum(inputs.max(axis=0), 1.0)
    used = list(np.flatnonzero(inputs.any(axis=0)))
    weights = np.zeros(inputs.shape[1])
    while used:
        found = np.linalg.lstsq(inputs[:, used] / scale[used], seconds, rcond=1e-6)[0]
        if (found >= 0).all():
            weights[used] = found / scale[used]
            break
        used.remove(used[int(found.argmin())])
    return weights if weights.any() else None
