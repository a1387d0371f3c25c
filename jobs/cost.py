"""How long units take: seconds by their tokens, learnt from a run's own rows.

The plan knows tokens. What they cost depends on model, engine and GPU, so it is learnt: from the
first files that a run commits for its time left, and stored with the run for the next one's order.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

FEATURES = ("num_vision_tokens", "num_prompt_tokens", "num_answers")
"""What seconds follow from; an answer's own length is not known before, so it has its mean."""

_LEAST_FILES = 6

Array = np.ndarray[Any, np.dtype[np.float64]]


class Work:
    """The units of a run, what each costs, and how much is done.

    Costs are in seconds where they are known, else in the plan's tokens.
    """

    def __init__(self, units: pa.Table, seconds_each: dict[str, float]) -> None:
        """``units``: UNIT rows to do. seconds_each: of FEATURES, by an earlier run, if any."""
        self.num_units = units.num_rows
        self.seconds_each = seconds_each
        each = features(units)
        self._weights: Array | None = None
        if seconds_each:
            self._weights = np.array([seconds_each.get(name, 0.0) for name in FEATURES])
        self.costs = (
            units["predicted_cost"].to_numpy() if self._weights is None else each @ self._weights
        )
        self.total_cost = float(self.costs.sum())
        self.done_cost = 0.0
        self._all = each.sum(axis=0)
        self._observed: list[tuple[Array, float]] = []
        self._next_fit = _LEAST_FILES

    def done(self, rows: pa.Table) -> float:
        """Count the rows of a file, COMMITTED; returns their cost."""
        sums = np.array([float(pc.sum(rows[name]).as_py()) for name in FEATURES])
        self._observed.append((sums, float(pc.sum(rows["engine_seconds"]).as_py())))
        if self._weights is None:
            cost = float(pc.sum(rows["predicted_cost"]).as_py())
        else:
            cost = float(sums @ self._weights)
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
        self._weights = weights
        self.seconds_each = dict(zip(FEATURES, weights.tolist(), strict=True))
        self.done_cost = float(sum(sums for sums, _ in self._observed) @ weights)
        self.total_cost = max(float(self._all @ weights), self.done_cost)
        return True


def features(units: pa.Table) -> Array:
    """FEATURES of each planned unit, float64 [N, 3]; zeros for those that failed."""
    parts = _sum_of_lists(
        units["parts"], lambda part: _vision_tokens(pc.struct_field(part, "sampling"))
    )
    prompts = units["prompts"]
    columns = [
        _vision_tokens(units["sampling"]) + parts,
        _sum_of_lists(prompts, lambda p: np.asarray(pc.struct_field(p, "num_prompt_tokens"))),
        _sum_of_lists(prompts, lambda p: np.ones(len(p))),
    ]
    failed = pc.is_valid(units["error"]).to_numpy()
    return np.where(failed[:, None], 0.0, np.stack(columns, axis=1))


def _vision_tokens(sampling: Any) -> Array:
    tokens = pc.fill_null(pc.struct_field(sampling, "num_vision_tokens"), 0)
    return np.asarray(tokens, dtype=np.float64)


def _sum_of_lists(lists: pa.ChunkedArray, values: Callable[[Any], Array]) -> Array:
    """Sum, for each row, what ``values`` makes of its list's elements."""
    of_elements = values(pc.list_flatten(lists))
    rows = np.asarray(pc.list_parent_indices(lists))
    return np.bincount(rows, weights=of_elements, minlength=len(lists)).astype(np.float64)


def fit(observed: Sequence[tuple[Array, float]]) -> Array | None:
    """Seconds of each feature, float64 [3], from sums of files; None: too few files to tell.

    observed: of each file, the sum of its rows' features and of their engine seconds. Sums, since
    an engine knows the time of a batch only, and shares it out among the rows.

    Least squares; no feature gives time back: one that would is left out.
    """
    useful = [(sums, seconds) for sums, seconds in observed if seconds > 0]
    if len(useful) < _LEAST_FILES:
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
