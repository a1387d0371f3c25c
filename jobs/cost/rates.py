"""Predict the seconds of units from their tokens, with rates fitted to measured seconds.

The plan has the tokens. The seconds per token depend on model, engine and GPU. A run fits them to
the files that it commits, for its remaining time, and stores them for the order and the predicted
cost of the next run; a calibration measures them before any run.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter, ValidationError

from pipeline.engines.vllm.prefix import KeptPrefix

FEATURES = ("num_vision_tokens", "num_text_tokens", "num_output_tokens")
"""Tokens that determine the seconds: vision tokens, once for all tasks; other tokens that the
engine reads, those that tasks share once if it keeps them; and tokens that it generates."""

_ALL_KEPT = KeptPrefix()

_SHARED_WEIGHTS = ([[0, 1], [2]], [[0, 1, 2]])
"""Which of FEATURES may share a weight: all that are read, then all."""
_SAME_ERROR = 0.01
"""Share of the seconds by which a fit with shared weights may be worse."""

_MIN_FILES = 6

Array = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Measured costs.

    seconds_each: engine seconds per token, for each of FEATURES.
    output_tokens: mean tokens of an answer, by task.
    origin: where the rates come from, as printed.
    """

    seconds_each: dict[str, float]
    output_tokens: dict[str, float]
    origin: str = ""

    @classmethod
    def read(cls, content: Any) -> "Rates | None":
        """Read rates from JSON; None if there are none, or those of another version."""
        if not isinstance(content, dict) or set(content) != set(cls.__dataclass_fields__):
            return None
        try:
            rates = TypeAdapter(cls).validate_python(content)
        except ValidationError:
            return None
        values = [*rates.seconds_each.values(), *rates.output_tokens.values()]
        is_valid = all(0 <= value < math.inf for value in values)
        return rates if is_valid and set(rates.seconds_each) == set(FEATURES) else None

    @property
    def weights(self) -> Array:
        """Seconds per token of each of FEATURES, float64 [3]."""
        return np.array([self.seconds_each[name] for name in FEATURES])


class Work:
    """The cost of a run's units, and how much of it is done.

    Costs are in seconds if rates are known, else in the plan's tokens. Where units become known one
    slice after the other, the totals are about: those of the known ones, over their share.
    """

    def __init__(self, units: pa.Table, rates: Rates | None, kept: KeptPrefix = _ALL_KEPT) -> None:
        """units: UNIT rows to do. rates: known from before, or None. kept: by the engine.

        Its field ``costs`` has the cost of each unit that was added last, float64 [N].
        """
        self.rates = rates
        self.costs = np.zeros(0)
        self.done_cost = 0.0
        self.share_known = 1.0
        self._kept = kept
        self._num_known = 0
        self._known_cost = 0.0
        self._read = np.zeros(2)
        self._num_prompts: Counter[str] = Counter()
        self._observed: list[tuple[Array, float]] = []
        self._num_answers: Counter[str] = Counter()
        self._num_written: Counter[str] = Counter()
        self._next_fit = _MIN_FILES
        self.add(units)

    def add(self, units: pa.Table, share_known: float = 1.0) -> None:
        """Add units to do. share_known: of all units, of which these are the last, about."""
        each = features(units, self.rates.output_tokens if self.rates else {}, self._kept)
        self.costs = units["predicted_cost"].to_numpy()
        if self.rates is not None:
            self.costs = each @ self.rates.weights
        self.share_known = share_known
        self._num_known += units.num_rows
        self._known_cost += float(self.costs.sum())
        self._read += each[:, :2].sum(axis=0)
        self._num_prompts.update(num_prompts(units))

    @property
    def num_units(self) -> int:
        """Number of units, about if not all are known."""
        return round(self._num_known / (self.share_known or 1.0))

    @property
    def total_cost(self) -> float:
        """The cost of all units, about if not all are known."""
        return max(self._known_cost / (self.share_known or 1.0), self.done_cost)

    def count_done(self, rows: pa.Table) -> float:
        """Count the rows of a committed file; returns their cost. rows: COMMITTED."""
        sums = np.array([float(pc.sum(rows[name]).as_py()) for name in FEATURES])
        self._observed.append((sums, float(pc.sum(rows["engine_seconds"]).as_py())))
        responses: list[Any] = pc.list_flatten(rows["responses"]).to_pylist()
        for response in responses:
            if response["num_output_tokens"] is not None:
                self._num_answers[response["task"]] += 1
                self._num_written[response["task"]] += response["num_output_tokens"]
        if self.rates is None:
            cost = float(pc.sum(rows["predicted_cost"]).as_py())
        else:
            cost = float(sums @ self.rates.weights)
        self.done_cost += cost
        return cost

    def update_rates(self) -> bool:
        """Fit the rates again after 6, 12, 24, ... files; returns whether they have changed."""
        if len(self._observed) < self._next_fit:
            return False
        self._next_fit *= 2
        weights = fit(self._observed)
        if weights is None:
            return False
        means = {task: self._num_written[task] / count for task, count in self._num_answers.items()}
        self.rates = rates_of(weights, means)
        to_write = sum(
            count * expected_output_tokens(task, self.rates.output_tokens)
            for task, count in self._num_prompts.items()
        )
        self.done_cost = float(sum(sums for sums, _ in self._observed) @ weights)
        self._known_cost = float(np.append(self._read, to_write) @ weights)
        return True


def rates_of(weights: Array, output_tokens: dict[str, float], origin: str = "") -> Rates:
    """Make rates from fitted weights, float64 [3]."""
    seconds_each = dict(zip(FEATURES, weights.tolist(), strict=True))
    return Rates(seconds_each=seconds_each, output_tokens=output_tokens, origin=origin)


def expected_output_tokens(task: str, output_tokens: Mapping[str, float]) -> float:
    """Mean tokens of a task's answers; if it was not measured, the mean of the other tasks."""
    mean = sum(output_tokens.values()) / len(output_tokens) if output_tokens else 0.0
    return output_tokens.get(task, mean)


def num_prompts(units: pa.Table) -> dict[str, int]:
    """Number of prompts of each task in a plan, without units that failed."""
    prompts = pc.list_flatten(units.filter(pc.is_null(units["error"]))["prompts"])
    counts = pc.value_counts(pc.struct_field(prompts, "task"))
    return {found["values"]: found["counts"] for found in counts.to_pylist()}


def features(
    units: pa.Table, output_tokens: Mapping[str, float], kept: KeptPrefix = _ALL_KEPT
) -> Array:
    """FEATURES of each planned unit, float64 [N, 3]; zeros for those that failed.

    output_tokens: mean tokens of an answer, by task.
    kept: what the engine keeps of the beginning that a unit's prompts share.
    """
    vision = _vision_tokens(units["sampling"]) + _sum_of_lists(
        units["parts"], lambda part: _vision_tokens(pc.struct_field(part, "sampling"))
    )
    prompts = units["prompts"]
    own = _sum_of_lists(prompts, lambda p: np.asarray(pc.struct_field(p, "num_own_tokens")))
    written = _sum_of_lists(prompts, lambda p: _written(p, output_tokens))
    shared = units["num_shared_tokens"].to_numpy()
    text = shared + own + read_again(units, kept) - vision
    failed = pc.is_valid(units["error"]).to_numpy()
    each = np.stack([vision, text, written], axis=1)
    return np.where(failed[:, None], 0.0, each)


def read_again(units: pa.Table, kept: KeptPrefix) -> Array:
    """Tokens of its shared beginning that the engine reads again in each unit, float64 [N].

    Prompts of a unit share a beginning if it is of one length: tools before the media change it.
    """
    prompts = units["prompts"]
    flat = pc.list_flatten(prompts)
    rows = np.asarray(pc.list_parent_indices(prompts)).astype(np.int64)
    lengths = np.asarray(pc.struct_field(flat, "num_prompt_tokens")).astype(np.int64)
    begins = lengths - np.asarray(pc.struct_field(flat, "num_own_tokens"))
    groups = rows * (begins.max(initial=0) + 1) + begins
    order = np.lexsort((lengths, groups))
    _, firsts, counts = np.unique(groups[order], return_index=True, return_counts=True)
    shortest = order[firsts]
    again = kept.num_read_again(begins[shortest], lengths[shortest], counts)
    return np.bincount(rows[shortest], weights=again, minlength=len(units)).astype(np.float64)


def _written(prompts: Any, output_tokens: Mapping[str, float]) -> Array:
    tasks = pc.dictionary_encode(pc.struct_field(prompts, "task")).combine_chunks()
    means = [expected_output_tokens(task, output_tokens) for task in tasks.dictionary.to_pylist()]
    expected: Array = np.array([*means, 0.0])[np.asarray(tasks.indices)]
    return expected


def _vision_tokens(sampling: Any) -> Array:
    tokens = pc.fill_null(pc.struct_field(sampling, "num_vision_tokens"), 0)
    return np.asarray(tokens, dtype=np.float64)


def _sum_of_lists(lists: "pa.ChunkedArray[Any]", values: Callable[[Any], Array]) -> Array:
    """For each row, sum the values of its list's elements."""
    of_elements = values(pc.list_flatten(lists))
    rows = np.asarray(pc.list_parent_indices(lists))
    return np.bincount(rows, weights=of_elements, minlength=len(lists)).astype(np.float64)


def fit(observed: Sequence[tuple[Array, float]], min_files: int = _MIN_FILES) -> Array | None:
    """Fit the seconds per token of each feature, float64 [3]; None: too few files.

    observed: for each file, the sums of its rows' features and of their engine seconds: an engine
        knows only the time of a batch, and divides it among the rows.

    Least squares without negative weights: a feature that would get one is left out. It was not
    measured then, and shares the weight of others if that fits the seconds as well.
    """
    useful = [(sums, seconds) for sums, seconds in observed if seconds > 0]
    if len(useful) < min_files:
        return None
    inputs = np.array([sums for sums, _ in useful])
    seconds = np.array([s for _, s in useful])
    apart = _fit_groups(inputs, seconds, [[0], [1], [2]])
    if (apart > 0).all():
        return apart
    for groups in _SHARED_WEIGHTS:
        shared = _fit_groups(inputs, seconds, groups)
        more = np.abs(inputs @ shared - seconds).sum() - np.abs(inputs @ apart - seconds).sum()
        if (shared > 0).all() and more <= _SAME_ERROR * seconds.sum():
            return shared
    return apart if apart.any() else None


def _fit_groups(inputs: Array, seconds: Array, groups: Sequence[list[int]]) -> Array:
    """Fit one weight for each group of features. inputs: float64 [files, 3]."""
    sums = np.stack([inputs[:, group].sum(axis=1) for group in groups], axis=1)
    scale = np.maximum(sums.max(axis=0), 1.0)
    used: list[int] = np.flatnonzero(sums.any(axis=0)).tolist()
    weights = np.zeros(inputs.shape[1])
    while used:
        found = np.linalg.lstsq(sums[:, used] / scale[used], seconds, rcond=1e-6)[0] / scale[used]
        if (found >= 0).all():
            for k, weight in zip(used, found, strict=True):
                weights[groups[k]] = weight
            break
        used.remove(used[int((found * scale[used]).argmin())])
    return weights
