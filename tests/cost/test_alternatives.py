"""Other settings, by arithmetic on a plan: the same tokens as if the media were planned anew."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from jobs.cost.alternatives import (
    alternatives,
    other_settings,
    print_alternatives,
    recount_unit,
    sample_units,
)
from jobs.cost.estimate import estimate
from jobs.cost.rates import FEATURES, Rates
from pipeline.plan.planner import Planner
from pipeline.storage.storage import Storage
from schemas.job.job import Job, check_job
from schemas.tables.columns import to_table
from schemas.tables.manifest import MediaItem, PartSettings
from schemas.tables.unit import UNIT, Unit

RATES = Rates(
    seconds_each=dict(zip(FEATURES, (0.01, 0.01, 0.0), strict=True)), output_tokens={"caption": 1.0}
)
CONTEXT = 32_768


def job(checkpoint: Path, **sections) -> Job:
    spec = {
        "input": {"scan": "clips"},
        "output": "out",
        "model": {"source": str(checkpoint)},
        "tasks": ["caption", "events"],
        "budget": {"image_tokens": [4, 64], "frame_tokens": [4, 32], "unit_tokens": 128},
        "generation": {"max_new_tokens": 8},
        "sampling": {"segmentation": {"kind": "window", "seconds": 2}},
    }
    return check_job(spec | sections, "test")


def items(archive: Path) -> list[MediaItem]:
    paths = [p for p in sorted(archive.glob("*/*")) if p.suffix in (".mp4", ".png", ".jpg")]
    whole = [p for p in paths if not p.stem.startswith(("unreadable", "truncated", "long"))]
    return [MediaItem(media_id=p.name, uri=str(p)) for p in whole[:16]]


def plan(asked: Job, media: list[MediaItem]) -> list[Unit]:
    return Planner(asked, CONTEXT, Storage()).plan(media)


def test_every_neighbour_is_what_the_planner_makes_of_it(archive: Path, checkpoint: Path):
    asked = job(checkpoint)
    media = items(archive)
    units = plan(asked, media)
    assert {unit.media.media_type for unit in units} == {"image", "video"}
    others = list(other_settings(asked))
    assert len(others) == 11
    changes, off = 0, []
    for setting, other in others:
        anew = {unit.unit_id: unit for unit in plan(other, media)}
        for unit in units:
            found, expected = recount_unit(unit, asked, other), anew[unit.unit_id]
            counted = [found.sampling.num_frames, found.sampling.num_vision_tokens]
            truth = [expected.sampling.num_frames, expected.sampling.num_vision_tokens]
            assert counted == truth, (setting, unit.uri)
            changes += found != unit
            off.append(abs(found.num_shared_tokens - expected.num_shared_tokens))
            lengths = zip(found.prompts, expected.prompts, strict=True)
            assert {abs(a.num_prompt_tokens - b.num_prompt_tokens) for a, b in lengths} == {off[-1]}
    assert changes > 50
    # At a variable frame rate, a time may gain its digit a pair earlier or later than planned.
    assert max(off) <= 1 and off.count(0) > 0.95 * len(off)


def test_items_with_a_size_of_their_own_stay_as_they_are(archive: Path, checkpoint: Path):
    asked = job(checkpoint)
    first = next(item for item in items(archive) if item.uri.endswith(".png"))
    settings = PartSettings(resized_height=256, resized_width=256)
    (unit,) = plan(asked, [MediaItem(media_id="x", uri=first.uri, settings=settings)])
    for _, other in other_settings(asked):
        assert recount_unit(unit, asked, other) == unit


def test_costs_scale_with_what_is_fed_and_what_does_not_fit_costs_nothing(
    archive: Path, checkpoint: Path
):
    asked = job(checkpoint)
    table = to_table(plan(asked, items(archive)), UNIT)
    predicted = estimate(table, asked, RATES)
    units = sample_units(table)
    assert len(units) == table.num_rows
    found = {a.setting: a for a in alternatives(units, asked, predicted, CONTEXT)}
    fewer = found["sampling.fps=1"]
    assert fewer.vision <= 1 and fewer.seconds < 1 and fewer.over == 0
    assert found["budget.image_tokens=[4,128]"].vision > 1
    largest = max(prompt.num_prompt_tokens for unit in units for prompt in unit.prompts)
    tight = {a.setting: a for a in alternatives(units, asked, predicted, largest + 8)}
    assert tight["sampling.fps=1"] == fewer
    assert any(a.over > 0 for a in tight.values())


def test_the_table_says_what_to_set_and_what_has_no_effect(archive: Path, checkpoint: Path):
    asked = job(checkpoint, cost={"per_hour": 3600.0, "currency": "EUR"})
    table = to_table(plan(asked, items(archive)), UNIT)
    console = Console(file=io.StringIO(), width=120)
    print_alternatives(table, asked, estimate(table, asked, RATES), CONTEXT, console)
    said = console.file.getvalue()
    assert "budget.image_tokens=[4,32]" in said and "EUR" in said
    assert "Without effect on these media: " in said
    assert "sampling.max_frames=1536" in said.split("Without effect")[1]
    empty = Console(file=io.StringIO())
    nothing = UNIT.empty_table()
    print_alternatives(nothing, asked, estimate(nothing, asked, RATES), CONTEXT, empty)
    assert empty.file.getvalue() == ""


@pytest.mark.parametrize(
    "sampling", [{"num_frames": 6}, {"fps": 0.5, "min_frames": 2, "max_frames": 2}]
)
def test_settings_that_have_no_neighbour_in_force_are_valid_still(checkpoint: Path, sampling):
    assert all(other for _, other in other_settings(job(checkpoint, sampling=sampling)))
