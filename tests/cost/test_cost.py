"""What a plan costs, what is known of that, and that a run over the limit is refused."""

import dataclasses
import io
import json
import re

import pyarrow as pa
import pytest
from click.testing import CliRunner
from rich.console import Console

from jobs.cli.main import main
from jobs.cost.calibration import Calibration, read_calibration, write_calibration
from jobs.cost.estimate import (
    AGAIN,
    MEDIA,
    check_cost,
    default_rates,
    estimate,
    money,
    print_estimate,
)
from jobs.cost.rates import FEATURES, Rates, Work, features, read_again
from jobs.plan.runs import open_run
from pipeline.engines.vllm.prefix import KeptPrefix
from pipeline.storage.storage import Storage
from schemas.errors import CostError, ErrorType, JobFileError, UnitError
from schemas.job.job import Job, check_job
from schemas.tables.columns import to_table
from schemas.tables.error import ErrorRecord
from schemas.tables.media import Media, Sampling
from schemas.tables.unit import UNIT, Prompt, Unit

RATES = Rates(
    seconds_each=dict(zip(FEATURES, (0.01, 0.002, 0.1), strict=True)),
    output_tokens={"caption": 50.0, "ocr": 200.0},
    origin="hand",
)


def job(output="out", **sections) -> Job:
    spec = {"input": {"scan": "clips"}, "output": str(output), "tasks": ["caption", "ocr"]}
    return check_job(spec | sections, "test")


def planned(count: int = 3, tasks: tuple[str, ...] = ("caption", "ocr")) -> pa.Table:
    """Units of 100 vision tokens, 20 of times and template, and 5 and 7 of their own text."""
    own = dict(zip(tasks, (5, 7), strict=False))
    sampling = Sampling(
        num_frames=2, resized_height=320, resized_width=320, grid_thw=(1, 20, 20),
        num_vision_tokens=100,
    )  # fmt: skip
    units = [
        Unit(
            unit_id=f"u{k}",
            media_id=f"u{k}",
            uri="a.mp4",
            media=Media(media_type="video", width=64, height=64),
            sampling=sampling,
            prompts=tuple(
                Prompt(task=task, num_prompt_tokens=120 + n, num_own_tokens=n)
                for task, n in own.items()
            ),
            num_shared_tokens=120,
            predicted_cost=1.0,
        )
        for k in range(count)
    ]
    return to_table(units, UNIT)


def test_media_cost_once_and_each_task_its_own_text_and_answer():
    found = estimate(planned(), job(), RATES)
    seconds = {share.name: share.seconds for share in found.shares}
    assert seconds == pytest.approx(
        {
            MEDIA: 3 * (100 * 0.01 + 20 * 0.002),
            "caption": 3 * (5 * 0.002 + 50 * 0.1),
            "ocr": 3 * (7 * 0.002 + 200 * 0.1),
        }
    )
    assert found.seconds == pytest.approx(sum(seconds.values()))
    assert [share.num_read for share in found.shares] == [360, 15, 21]
    assert found.unmeasured == ()


@pytest.mark.parametrize(("block", "again"), [(1, 0), (50, 20), (119, 1), (500, 120), (None, 120)])
def test_what_the_engine_does_not_keep_each_further_task_reads_again(block, again):
    """Media of 100 vision tokens in a beginning of 120 tokens, and two tasks."""
    tasks = ("caption", "ocr")
    kept = KeptPrefix(block_tokens=block)
    found = estimate(planned(10, tasks), job(), RATES, kept)
    everything = estimate(planned(10, tasks), job(), RATES)
    shares = {share.name: share for share in found.shares}
    assert (AGAIN in shares) == (again > 0)
    if again:
        assert shares[AGAIN].num_read == 10 * again
    assert found.seconds == pytest.approx(everything.seconds + 10 * again * 0.002)
    assert Work(planned(10, tasks), RATES, kept).total_cost == pytest.approx(found.seconds)
    vision, text, _ = features(planned(1, tasks), {}, kept)[0]
    assert (vision, text) == (100, 20 + 5 + 7 + again), "encoded once, whatever is kept"
    (alone,) = features(planned(1, ("caption",)), {}, kept)[:, 1]
    assert alone == 20 + 5, "one task reads all once"


@pytest.mark.parametrize(
    ("kept", "again"),
    [
        (KeptPrefix(), 0),
        (KeptPrefix(block_tokens=None), 2 * 120),
        (KeptPrefix(block_tokens=100), 2 * 20),
        # The first prompt's state is at 100 of its 125 tokens, or at 122, behind the media.
        (KeptPrefix(block_tokens=100, has_states=True), 2 * 20),
        (KeptPrefix(block_tokens=61, has_states=True), 120 + 59),
    ],
)
def test_prompts_with_another_beginning_share_nothing(kept, again):
    """Of five prompts two have tools before the media, in a beginning of 150 tokens."""
    unit = Unit(
        unit_id="u",
        media_id="u",
        uri="a.mp4",
        prompts=tuple(
            Prompt(task=f"t{n}", num_prompt_tokens=begin + n, num_own_tokens=n)
            for begin, n in ((150, 5), (120, 9), (120, 5), (150, 7), (120, 7))
        ),
        num_shared_tokens=270,
    )
    alone = dataclasses.replace(unit, prompts=unit.prompts[:2])
    further = {1: 0, 100: 50, 61: 28, None: 150}[kept.block_tokens]
    assert read_again(to_table([unit, alone], UNIT), kept).tolist() == [again + further, 0]


def test_the_page_says_what_is_read_again_and_by_which_rule():
    shown = io.StringIO()
    kept = KeptPrefix(block_tokens=528)
    print_estimate(estimate(planned(), job(), RATES, kept), job(), Console(file=shown, width=200))
    assert "media, read again by further tasks" in shown.getvalue()
    assert "prefix cache in blocks of 528 tokens" in shown.getvalue()


def test_what_cannot_be_done_costs_nothing_and_nothing_is_no_error():
    error = ErrorRecord.from_error("plan", UnitError(ErrorType.OVER_CONTEXT, "too long"))
    (good,) = [Unit(unit_id="x", media_id="x", uri="x").failed(error)]
    with_failed = pa.concat_tables([planned(), to_table([good], UNIT)])
    assert estimate(with_failed, job(), RATES).seconds == estimate(planned(), job(), RATES).seconds
    assert estimate(UNIT.empty_table(), job(), RATES).seconds == 0


def test_an_answer_that_was_never_measured_is_taken_as_long_as_it_may_be():
    asked = job(tasks=["caption", "events"], generation={"max_new_tokens": 300})
    found = estimate(planned(tasks=("caption", "events")), asked, RATES)
    assert found.unmeasured == ("events",)
    assert [share.num_written for share in found.shares] == [0, 150, 900]


def test_a_run_over_the_limit_is_refused_in_money_or_in_hours():
    found = estimate(planned(1000), job(), RATES)
    hours = found.hours
    price = {"per_hour": 2.0, "currency": "EUR"}
    check_cost(found, job())
    check_cost(found, job(limits={"max_cost": hours * 1.01}))
    check_cost(found, job(limits={"max_cost": hours * 2.01}, cost=price))
    with pytest.raises(CostError, match=r"predicted to cost \d+\.\d\d EUR, over .* by hand"):
        check_cost(found, job(limits={"max_cost": hours * 1.99}, cost=price))
    with pytest.raises(CostError, match="engine hours .there is no cost.per_hour"):
        check_cost(found, job(limits={"max_cost": hours * 0.99}))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.00335, "0.00335 engine seconds"),
        (9.3e-07, "<0.001 engine seconds"),
        (12.0, "12.00 engine seconds"),
        (35.9, "35.90 engine seconds"),
        (36.0, "0.01 engine hours"),
        (5400.0, "1.500 engine hours"),
    ],
)
def test_a_short_time_is_in_seconds_and_no_number_has_an_exponent(seconds: float, text: str):
    found = dataclasses.replace(estimate(planned(), job(), RATES), seconds=seconds)
    assert money(found, job()) == text
    console = Console(file=io.StringIO(), width=120)
    priced = job(cost={"per_hour": 2.0, "currency": "EUR"})
    print_estimate(found, priced, console)
    assert text.rpartition(" ")[2] in console.file.getvalue()
    assert not re.search(r"\de[-+]\d", console.file.getvalue() + money(found, priced))


def test_the_table_has_each_task_its_price_and_where_that_is_from():
    console = Console(file=io.StringIO(), width=120)
    asked = job(cost={"per_hour": 36.0, "currency": "CHF"}, summary={})
    print_estimate(estimate(planned(), asked, RATES), asked, console)
    said = console.file.getvalue()
    lines = {
        line.split("  ")[1].strip(): line.split() for line in said.splitlines() if "  " in line
    }
    assert "CHF" in said and "By hand." in said and "Summaries" in said
    assert lines["ocr"][-1] == f"{3 * (7 * 0.002 + 200 * 0.1) / 100:.3f}"  # 36 an hour: a cent a s


def test_defaults_say_that_they_are_and_of_what(checkpoint):
    asked = job(model={"source": str(checkpoint), "simulated": {"gpu": "a100"}})
    rates = default_rates(asked, planned())
    assert "NOT measured" in rates.origin and "A100" in rates.origin
    assert set(rates.seconds_each) == set(FEATURES)
    assert all(seconds > 0 for seconds in rates.seconds_each.values())
    assert not estimate(planned(), asked, None).is_measured


def calibration(model: str = "a", created_at: str = "2026-11-24T20:00:00+00:00") -> Calibration:
    return Calibration(
        created_at=created_at, device="cpu", model={"weights": model}, rates=RATES, rounds=[],
        error=0.1,
    )  # fmt: skip


def test_a_new_run_takes_what_was_measured_last_or_what_the_job_names(tmp_path):
    storage, recipe = Storage(), {"model": {"weights": "a"}}
    asked = job(tmp_path)
    write_calibration(calibration(), str(tmp_path / "calibration.json"), storage)
    run, _ = open_run(asked, "one", recipe, storage)
    assert run.cost == RATES
    assert open_run(asked, "one", {"model": {"weights": "b"}}, storage)[0].cost is None
    # A run that was planned before the calibration, and not begun, takes it too.
    dataclasses.replace(run, cost=None).save(asked, storage)
    assert open_run(asked, "one", recipe, storage)[0].cost == RATES

    learnt = dataclasses.replace(RATES, output_tokens={"caption": 1.0}, origin="")
    later = dataclasses.replace(run, cost=learnt, created_at="2026-11-25T00:00:00+00:00", starts=1)
    later.save(asked, storage)
    assert open_run(asked, "two", recipe, storage)[0].cost.output_tokens == {"caption": 1.0}
    named = job(tmp_path, cost={"calibration": str(tmp_path / "calibration.json")})
    assert open_run(named, "two", recipe, storage)[0].cost == RATES


def test_a_named_calibration_that_is_of_no_use_is_a_mistake(tmp_path):
    path = tmp_path / "c.json"
    asked = job(cost={"calibration": str(path)})
    with pytest.raises(JobFileError, match="there is no .*c.json: `reelscribe calibrate`"):
        read_calibration(asked, {"weights": "a"}, Storage())
    write_calibration(calibration("b"), str(path), Storage())
    with pytest.raises(JobFileError, match="another model, engine or precision"):
        read_calibration(asked, {"weights": "a"}, Storage())
    for content in ("[]", "no json", json.dumps({"rates": {}})):
        path.write_text(content)
        with pytest.raises(JobFileError, match="is not a calibration that this version can read"):
            read_calibration(asked, {"weights": "a"}, Storage())


def test_plan_and_annotate_refuse_with_exit_code_4(archive, checkpoint, tmp_path, no_ray):
    spec = tmp_path / "job.yaml"
    spec.write_text(
        f"input: {{scan: {archive}/images}}\noutput: {tmp_path / 'out'}\ntasks: [caption, ocr]\n"
        f"model: {{source: {checkpoint}}}\nbudget: {{image_tokens: [4, 64]}}\n"
        "generation: {max_new_tokens: 4}\ncost: {per_hour: 2.5, currency: EUR}\n"
    )

    def call(*args):
        return CliRunner().invoke(main, [*args, str(spec)], prog_name="reelscribe")

    planned = call("plan")
    assert planned.exit_code == 0, planned.output
    assert "EUR" in planned.output and "NOT measured" in planned.output
    for command in ("plan", "annotate"):
        refused = call(command, "--max-cost", "1e-9")
        assert refused.exit_code == 4, refused.output
        assert refused.output.count("predicted to cost") == 1
        assert "over limits.max_cost 1e-09" in refused.output
    assert not (tmp_path / "out" / "annotations").exists()
    (run,) = (tmp_path / "out" / "runs").glob("*/run.json")
    assert json.loads(run.read_text())["starts"] == 0
