"""Calibration: what the real engine took foretells what other units of the same job take."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rich.console import Console

from jobs.cost.estimate import estimate
from jobs.cost.rates import FEATURES
from jobs.plan.open_job import open_job
from jobs.run import calibrate
from jobs.run.calibrate import Round, calibration
from schemas.errors import ResourceError
from schemas.job.job import check_job


@pytest.fixture(scope="module")
def calibrated(annotated, tmp_path_factory):
    """Half of the archive's items, measured: the job, and what was found and said."""
    job, _, _ = annotated
    output = tmp_path_factory.mktemp("calibrated")
    half = job.input.model_copy(update={"sample": 0.5})
    job = job.model_copy(update={"input": half, "output": str(output)})
    console = Console(file=io.StringIO(), width=160)
    return job, calibrate.run(job, console, seconds=8), console.file.getvalue()


def test_it_foretells_units_that_were_not_measured(annotated, calibrated):
    whole, output, run = annotated
    _, found, _ = calibrated
    (path,) = (output / "runs" / run.run_id / "plan").glob("*.parquet")
    plan = pq.read_table(path)
    measured = {item.media_id for item in open_job(calibrated[0])[1]}
    plan = plan.filter(pc.invert(pc.is_in(plan["media_id"], pa.array(sorted(measured)))))
    rows = ds.dataset(output / "annotations").to_table(columns=["unit_id", "timings", "status"])
    rows = rows.filter(pc.is_in(rows["unit_id"], plan["unit_id"]))
    assert rows.num_rows > 10
    took = pc.sum(pc.struct_field(rows["timings"], "engine_seconds")).as_py()
    predicted = estimate(plan, whole, found.rates)
    assert predicted.unmeasured == ()
    # The factor is generous: the run had the machine to itself, or not.
    assert took / 5 < predicted.seconds < took * 5


def test_plan_and_run_take_it_from_the_output(calibrated):
    job, found, said = calibrated
    file = Path(job.output) / "calibration.json"
    assert json.loads(file.read_text())["rates"]["seconds_each"] == found.rates.seconds_each
    assert open_job(job)[0].run.cost == found.rates
    assert found.rates.origin.startswith("a calibration on 2 CPU")
    assert str(file) in said and "from the measured seconds" in said
    assert len(found.rounds) >= 3
    assert set(found.rates.output_tokens) == {task.name for task in job.tasks}
    # A random checkpoint says something until it may say no more.
    assert all(0 < tokens <= 6 for tokens in found.rates.output_tokens.values())
    assert not (Path(job.output) / "annotations").exists()


def test_after_a_night_with_only_new_all_media_can_be_measured(annotated):
    """The table has them all, and they cost the same."""
    job, _, _ = annotated
    job = job.model_copy(update={"input": job.input.model_copy(update={"only_new": True})})
    assert open_job(job)[1] == []
    assert calibrate.items_to_measure(job)[1]


def test_too_few_rounds_are_no_calibration(calibrated):
    context, _ = open_job(calibrated[0])
    one = Round(num_units=1, sums=np.array([10.0, 5.0, 3.0]), seconds=0.5)
    with pytest.raises(ResourceError, match="only 2 rounds"):
        calibration(context, "cpu", [one, one], {})


def test_costs_are_those_of_the_rounds(calibrated):
    rng = np.random.default_rng(3)
    truth = np.array([0.02, 0.004, 0.3])
    sums = [rng.integers(10, 1000, 3).astype(float) for _ in range(9)]
    rounds = [Round(num_units=4, sums=s, seconds=float(s @ truth)) for s in sums]
    found = calibration(open_job(calibrated[0])[0], "cpu", rounds, {"caption": (4, 100)})
    assert [found.rates.seconds_each[name] for name in FEATURES] == pytest.approx(truth.tolist())
    assert found.rates.output_tokens == {"caption": 25.0}
    assert found.error == pytest.approx(0.0, abs=1e-9)


def test_it_begins_with_a_unit_that_can_be_done(annotated, archive, tmp_path):
    """The cheapest one, which it would begin with, is whole in its header only."""
    job, _, _ = annotated
    media = tmp_path / "media"
    media.mkdir()
    whole = sorted((archive / "images").iterdir())[:6]
    for path in whole:
        (media / path.name).write_bytes(path.read_bytes())
    broken = io.BytesIO()
    Image.new("RGB", (64, 64)).save(broken, "PNG")
    (media / "broken.png").write_bytes(broken.getvalue()[:60])
    spec = job.model_dump() | {"input": {"scan": str(media)}, "output": str(tmp_path / "out")}
    found = calibrate.run(check_job(spec, "test"), Console(file=io.StringIO()), seconds=1)
    assert len(found.rounds) >= 3


def test_a_job_of_which_nothing_can_be_done_is_said_so(annotated, tmp_path):
    job, _, _ = annotated
    (tmp_path / "broken.png").write_bytes(b"no image")
    spec = job.model_dump() | {"input": {"scan": str(tmp_path)}, "output": str(tmp_path / "out")}
    with pytest.raises(ResourceError, match="none of 1 items of the job can be done"):
        calibrate.run(check_job(spec, "test"), Console(file=io.StringIO()))
