"""Rows that are good stay, whatever a plan has: lost plans, cut manifests, changed media."""

import dataclasses
import io
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from rich.console import Console

import jobs.plan.plan_file
from jobs.plan.open_job import JobContext
from jobs.plan.plan_file import draft_again, draft_plan, read_rows, write_plan
from jobs.plan.runs import Run
from jobs.run.finish import finish
from pipeline.output.duplicates import remove_duplicates
from pipeline.output.listing import write_listing
from pipeline.output.table import read_committed
from pipeline.plan.plan_file import media_without_storage
from pipeline.plan.to_do import units_to_do
from pipeline.stages.commit import OUTAGE_UNITS, Commit
from pipeline.storage.storage import Storage
from pipeline.workers.code_version import code_digest
from schemas.errors import StorageError
from schemas.job.job import Job, check_job
from schemas.tables.columns import to_table
from schemas.tables.error import ErrorRecord
from schemas.tables.listing import LISTING
from schemas.tables.manifest import MediaItem
from schemas.tables.media import Media, Sampling
from schemas.tables.unit import ANSWERED, UNIT, AnsweredUnit, Prompt, RawAnswer, Unit

RUN = Run(
    run_id="annotate-20260101-aaaaaa",
    name="annotate",
    run_date="2026-01-01",
    status="running",
    fingerprint={"recipe": "ab" * 8, "manifest": "m"},
    recipe={},
    created_at="2026-01-01T00:00:00+00:00",
    starts=1,
)
FILM = MediaItem(media_id="film", uri="https://h/film.mp4")
MEDIA = Media(
    media_type="video",
    content_version="v1",
    width=64,
    height=64,
    begin_seconds=0.0,
    duration_seconds=300.0,
)


def window(k: int, **fields: object) -> Unit:
    """Minute ``k`` of a film of five."""
    sampling = Sampling(
        start_seconds=60.0 * k,
        end_seconds=60.0 * k + 60,
        num_frames=4,
        resized_height=64,
        resized_width=64,
        grid_thw=(2, 4, 4),
        num_vision_tokens=8,
        sample_fps=1.0,
    )
    one = Unit(
        unit_id=f"u{k}",
        unread_id="unread film",
        media_id=FILM.media_id,
        uri=FILM.uri,
        content_version="v1",
        media=MEDIA,
        sampling=sampling,
        prompts=(Prompt(task="events", num_prompt_tokens=20, num_own_tokens=5),),
        predicted_cost=100.0,
    )
    return dataclasses.replace(one, **fields)


WINDOWS = [window(k) for k in range(5)]


def lost(unit: Unit, kind: str, stage: str = "decode") -> Unit:
    return unit.failed(ErrorRecord(stage=stage, type=kind, message="https://h: no answer"))


def unread(unit_id: str, kind: str, **fields: object) -> Unit:
    bare = window(0, unit_id=unit_id, unread_id=unit_id, media=None, sampling=None, **fields)
    return lost(bare, kind, "plan")


@pytest.fixture
def context(tmp_path: Path) -> JobContext:
    spec = {"input": {"manifest": "m.jsonl", "only_new": True}, "output": str(tmp_path)}
    job: Job = check_job(spec | {"tasks": ["events"]}, "test")
    more = {"checkpoint": None, "num_known": 0, "changes": []}
    return JobContext(job=job, storage=Storage(), run=RUN, **more)


def commit(context: JobContext, *units: Unit) -> None:
    """As the pipeline does with units that were answered, or that failed."""

    def answered(unit: Unit) -> AnsweredUnit:
        fields = {field.name: getattr(unit, field.name) for field in dataclasses.fields(unit)}
        text = f'[{{"start": "00:01", "end": "00:02", "caption": "{unit.unit_id}"}}]'
        raw = RawAnswer(
            task="events",
            raw_text=text,
            finish_reason="stop",
            num_prompt_tokens=20,
            num_output_tokens=3,
        )
        return AnsweredUnit(**fields, answers=() if unit.error else (raw,))

    stage = Commit(context.job, context.run.key, context.storage, code_digest())
    stage(to_table([answered(unit) for unit in units], ANSWERED))


def rows(context: JobContext) -> list[tuple[str, str]]:
    found = read_committed(context.job.output, context.run.recipe_ids, context.storage)
    return sorted((row["unit_id"], row["status"]) for row in found.to_pylist())


def close(context: JobContext, plan: pa.Table) -> Run:
    return finish(context, context.run, plan, 1.0, Console(file=io.StringIO()))


def planning(monkeypatch: pytest.MonkeyPatch, *units: Unit) -> None:
    """Set the units that probing the media gives from now on."""
    monkeypatch.setattr(
        jobs.plan.plan_file, "probe_items", lambda items, context, console: to_table(units, UNIT)
    )


def make_plan(context: JobContext) -> pa.Table:
    return write_plan(draft_plan(context, [FILM], Console(file=io.StringIO())), context)


def remove_superfluous(context: JobContext, plan: pa.Table) -> pa.Table:
    return remove_duplicates(read_rows(context, plan), context.storage, plan)


def test_a_plan_that_is_lost_and_made_again_has_what_is_done(context, monkeypatch):
    commit(context, *WINDOWS[:3])
    planning(monkeypatch, *WINDOWS)
    plan = make_plan(context)
    assert sorted(plan["unit_id"].to_pylist()) == ["u0", "u1", "u2", "u3", "u4"]
    commit(context, *WINDOWS[3:])
    close(context, plan)
    assert rows(context) == [(f"u{k}", "ok") for k in range(5)]


def test_a_span_that_the_manifest_lost_keeps_its_row_through_a_retry(context, monkeypatch):
    commit(context, *WINDOWS[:2], lost(WINDOWS[2], "decode_timeout"))
    plan = to_table(WINDOWS[:3], UNIT)
    planning(monkeypatch, WINDOWS[2])  # all that the manifest has today
    plan = write_plan(draft_again(plan, {"film"}, context, [FILM], Console()), context)
    assert plan["unit_id"].to_pylist() == ["u2"]
    commit(context, WINDOWS[2])
    close(context, plan)
    assert rows(context) == [("u0", "ok"), ("u1", "ok"), ("u2", "ok")]


def test_rows_of_what_an_object_was_go_wherever_they_lie(context):
    """Removing the failed row of another item moves them into a file of another name."""
    other = window(0, unit_id="x0", unread_id="x0", media_id="other")
    commit(context, WINDOWS[0], lost(WINDOWS[1], "media_changed"), lost(other, "storage_failed"))
    media = dataclasses.replace(MEDIA, content_version="v2")
    now = [window(k, unit_id=f"u{k}-v2", content_version="v2", media=media) for k in range(2)]
    commit(context, *now, other)
    run = close(context, to_table([*now, other], UNIT))
    assert rows(context) == [("u0-v2", "ok"), ("u1-v2", "ok"), ("x0", "ok")]
    assert run.counts["units"] == 3


def test_rows_of_earlier_content_stay_where_another_name_has_their_answers(context):
    commit(context, *WINDOWS[:2])
    film = {"uri": FILM.uri, "run_id": "", "recipe_id": context.run.recipe_ids.video,
            "content_version": "v1", "listed_at": datetime.now(UTC), "is_gone": False,
            "answers_of": "film"}  # fmt: skip
    copy = pa.Table.from_pylist([film | {"media_id": "copy"}], schema=LISTING)
    write_listing(copy, context.job.output, context.run.key, context.storage)
    media = dataclasses.replace(MEDIA, content_version="v2")
    now = window(0, unit_id="u0-v2", content_version="v2", media=media)
    commit(context, now)
    close(context, to_table([now], UNIT))
    assert rows(context) == [("u0", "ok"), ("u0-v2", "ok"), ("u1", "ok")]


def test_an_item_of_which_one_window_was_missing_is_one_row_of_items(context, monkeypatch):
    commit(context, *WINDOWS[:3], lost(WINDOWS[3], "decode_timeout"), WINDOWS[4])
    close(context, to_table(WINDOWS, UNIT))
    planning(monkeypatch, *WINDOWS)
    run = dataclasses.replace(RUN, run_id="annotate-20260102-b", run_date="2026-01-02", starts=0)
    night = dataclasses.replace(context, run=run)
    plan = make_plan(night)
    commit(night, WINDOWS[3])
    close(night, plan)
    found = ds.dataset(Path(context.job.output) / "items").to_table().to_pylist()
    whole = max(found, key=lambda row: row["run_id"])
    assert (whole["num_units"], whole["num_failed_units"], whole["status"]) == (5, 0, "ok")
    captions = [event["caption"] for event in whole["events"]]
    assert captions == ["u0", "u1", "u2", "u3", "u4"]


def test_storage_that_failed_at_planning_does_not_stop_the_writer(context):
    away = [unread(f"a{k:02}", "storage_failed", media_id=f"a{k}") for k in range(OUTAGE_UNITS)]
    commit(context, *WINDOWS, *away)
    assert len(rows(context)) == len(WINDOWS) + OUTAGE_UNITS
    with pytest.raises(StorageError, match="the storage of the media fails"):
        commit(context, *[lost(dataclasses.replace(unit, error=None), "storage_failed")
                         for unit in away])  # fmt: skip
    assert media_without_storage(to_table([*WINDOWS, *away[:2]], UNIT)) == {"a0", "a1"}


def test_what_is_left_of_a_night_may_be_what_cannot_be_read(context, monkeypatch):
    denied = unread("d", "media_denied", media_id="denied")
    planning(monkeypatch, denied)
    fresh = dataclasses.replace(context, run=dataclasses.replace(RUN, starts=0))
    with pytest.raises(StorageError, match="none of the 1 media can be read"):
        make_plan(fresh)
    night = dataclasses.replace(fresh, num_known=9)
    assert make_plan(night)["unit_id"].to_pylist() == ["d"]


def test_another_run_leaves_the_error_row_of_a_span_that_it_does_not_have(context):
    commit(context, WINDOWS[0], unread("span 2", "storage_failed"))
    other = dataclasses.replace(context, run=dataclasses.replace(RUN, run_id="other-20260102-b"))
    remove_superfluous(other, to_table([window(0, unread_id="span 0")], UNIT))
    assert rows(context) == [("span 2", "failed"), ("u0", "ok")]
    readable_now = window(2, unread_id="span 2")
    commit(other, readable_now)
    remove_superfluous(other, to_table([readable_now], UNIT))
    assert rows(context) == [("u0", "ok"), ("u2", "ok")]


def test_units_to_do_are_those_without_a_row_or_with_a_transient_error(context):
    """Errors of the storage are done again by the same run too. Nothing is written."""
    done, timeout, away = WINDOWS[0], lost(WINDOWS[1], "decode_timeout"), WINDOWS[2]
    commit(context, done, timeout, lost(away, "storage_failed"))
    plan = to_table(WINDOWS, UNIT)
    found = read_rows(context, plan)
    before = rows(context)
    assert units_to_do(plan, found, RUN.run_id)["unit_id"].to_pylist() == ["u2", "u3", "u4"]
    later = "annotate-20260102-b"
    assert units_to_do(plan, found, later)["unit_id"].to_pylist() == ["u1", "u2", "u3", "u4"]
    assert rows(context) == before


def test_an_error_row_of_earlier_content_makes_place(context):
    """Broken before and broken now: the unit has one id, and one row, of what it is now."""
    before = unread("x", "media_unreadable", media_id="x", content_version="v1")
    now = unread("x", "media_unreadable", media_id="x", content_version="v2")
    other = unread("y", "media_unreadable", media_id="y", content_version="v1")
    commit(context, before, other, WINDOWS[0])
    plan = to_table([now, other, WINDOWS[0]], UNIT)
    left = remove_superfluous(context, plan)
    later = "annotate-20260102-b"
    assert units_to_do(plan, left, later)["content_version"].to_pylist() == ["v2"]
    commit(context, now)
    found = remove_superfluous(context, plan)
    assert sorted(zip(found["unit_id"].to_pylist(), found["content_version"].to_pylist(),
                      strict=True)) == [("u0", "v1"), ("x", "v2"), ("y", "v1")]  # fmt: skip
