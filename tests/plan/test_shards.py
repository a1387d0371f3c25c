"""Shards: whole media, neighbours by uri together, never too large."""

import io
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from jobs.plan import plan as plan_job
from jobs.run import annotate
from pipeline.plan import shards
from pipeline.plan.shards import keep_shards, with_shards
from schemas.job.job import check_job
from schemas.tables.columns import to_table
from schemas.tables.unit import UNIT, Unit
from tests.support.job_files import SIMULATED, SMALL


def plan_of(*media: tuple[str, int, float]) -> pa.Table:
    """UNIT rows. media: uri, number of units, and cost of each unit."""
    units = [
        Unit(unit_id=f"{uri}-{n}", media_id=f"m-{uri}", uri=uri, predicted_cost=cost)
        for uri, number, cost in media
        for n in range(number)
    ]
    return to_table(units, UNIT)


def shards_of(plan: pa.Table) -> dict[str, set[int]]:
    """The shards of each medium, by uri."""
    found: dict[str, set[int]] = {}
    for row in plan.select(["uri", "shard"]).to_pylist():
        found.setdefault(row["uri"], set()).add(row["shard"])
    return found


@given(st.dictionaries(st.text("ab/", min_size=1), st.tuples(st.integers(1, 9), st.floats(0, 9))))
def test_media_stay_whole_and_in_order_of_uri(media):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_UNITS", 8)
        patch.setattr(shards, "SHARD_COST", 20.0)
        patch.setattr(shards, "MIN_SHARD_UNITS", 2)
        plan = plan_of(*((uri, *of) for uri, of in media.items()))
        found = with_shards(plan)
    assert found.drop_columns(["shard"]) == plan.drop_columns(["shard"])
    of_media = shards_of(found)
    assert all(len(of) == 1 for of in of_media.values())
    in_order = [of_media[uri].pop() for uri in sorted(media, key=lambda uri: uri.encode())]
    assert in_order == sorted(in_order)
    assert sorted(set(in_order)) == list(range(len(set(in_order))))
    uris = sorted(media, key=lambda uri: uri.encode())
    for _, some in groupby(zip(in_order, uris, strict=True), key=lambda pair: pair[0]):
        sizes = [media[uri][0] for _, uri in some]
        assert sum(sizes) <= 8 or len(sizes) == 1


def test_a_shard_ends_at_its_cost_but_not_below_its_least_number_of_units(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_COST", 100.0)
    monkeypatch.setattr(shards, "MIN_SHARD_UNITS", 3)
    cheap = with_shards(plan_of(*((f"{k}", 1, 30.0) for k in range(8))))
    assert cheap["shard"].to_pylist() == [0, 0, 0, 1, 1, 1, 2, 2]
    costly = with_shards(plan_of(*((f"{k}", 1, 500.0) for k in range(8))))
    assert costly["shard"].to_pylist() == [0, 0, 0, 1, 1, 1, 2, 2]


def test_a_small_job_is_one_shard_and_no_job_has_none():
    assert set(with_shards(plan_of(("a", 300, 1e4), ("b", 1, 1.0)))["shard"].to_pylist()) == {0}
    assert with_shards(UNIT.empty_table()) == UNIT.empty_table()


def test_media_that_are_planned_again_stay_in_their_shard(monkeypatch):
    monkeypatch.setattr(shards, "SHARD_UNITS", 2)
    plan = with_shards(plan_of(("a", 2, 1.0), ("b", 2, 1.0), ("c", 1, 1.0)))
    again = keep_shards(plan_of(("c", 3, 1.0), ("a", 1, 1.0)), plan)
    assert shards_of(again) == {"c": {2}, "a": {0}}


def test_a_plan_of_an_earlier_version_has_no_shards(
    archive: Path, checkpoint: Path, tmp_path: Path, no_ray
):
    spec = SMALL | {"input": {"scan": str(archive / "images")}, "output": str(tmp_path)}
    job = check_job(spec | {"model": SIMULATED | {"source": str(checkpoint)}}, "test")
    console = Console(file=io.StringIO())
    plan = plan_job.run(job, console)
    (file,) = tmp_path.glob("runs/*/plan/*.parquet")
    pq.write_table(pq.read_table(file).drop_columns(["shard"]), file)
    run = annotate.run(job, console)
    assert run.counts["units"] == plan.num_rows
    assert annotate.run(job, console).status == "complete"
