"""Rows that are good stay, whatever a plan has: lost plans, cut manifests, changed media."""

import dataclasses
import io
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from rich.console import Console

import jobs.plan
from jobs.annotate import _committed, _without_storage, finish
from jobs.plan import Opened, make_plan, plan_again
from jobs.runs import Run
from pipeline.same_code import code_digest
from pipeline.stages import OUTAGE_UNITS, Commit
from pipeline.storage import Storage
from pipeline.write import committed
from schemas.errors import ErrorRecord, StorageError
from schemas.job import Job, check_job
from schemas.manifest import MediaItem
from schemas.unit import (
    ANSWERED,
    UNIT,
    AnsweredUnit,
    Media,
    Prompt,
    RawAnswer,
    Sampling,
    Unit,
    to_table,
)

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
def opened(tmp_path: Path) -> Opened:
    spec = {"input": {"manifest": "m.jsonl", "only_new": True}, "output": str(tmp_path)}
    job: Job = check_job(spec | {"tasks": ["events"]}, "test")
    more = {"checkpoint": None, "num_known": 0, "changes": []}
    return Opened(job=job, storage=Storage(), items=[FILM], run=RUN, **more)


def commit(opened: Opened, *units: Unit) -> None:
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

    stage = Commit(opened.job, opened.run.key, opened.storage, code_digest())
    stage(to_table([answered(unit) for unit in units], ANSWERED))


def rows(opened: Opened) -> list[tuple[str, str]]:
    found = committed(opened.job.output, opened.run.key.recipe_id, opened.storage)
    return sorted((row["unit_id"], row["status"]) for row in found.to_pylist())


def close(opened: Opened, plan: pa.Table) -> Run:
    return finish(opened, opened.run, plan, 1.0, Console(file=io.StringIO()))


def planning(monkeypatch: pytest.MonkeyPatch, *units: Unit) -> None:
    """What reading the media's headers now gives."""
    monkeypatch.setattr(jobs.plan, "_probe", lambda items, opened, console: to_table(units, UNIT))


def test_a_plan_that_is_lost_and_made_again_has_what_is_done(opened, monkeypatch):
    commit(opened, *WINDOWS[:3])
    planning(monkeypatch, *WINDOWS)
    plan = make_plan(opened, Console(file=io.StringIO()))
    assert sorted(plan["unit_id"].to_pylist()) == ["u0", "u1", "u2", "u3", "u4"]
    commit(opened, *WINDOWS[3:])
    close(opened, plan)
    assert rows(opened) == [(f"u{k}", "ok") for k in range(5)]


def test_a_stretch_that_the_manifest_lost_keeps_its_row_through_a_retry(opened, monkeypatch):
    commit(opened, *WINDOWS[:2], lost(WINDOWS[2], "decode_timeout"))
    plan = to_table(WINDOWS[:3], UNIT)
    planning(monkeypatch, WINDOWS[2])  # all that the manifest has today
    plan = plan_again(opened, plan, {"film"}, Console())
    assert plan["unit_id"].to_pylist() == ["u2"]
    commit(opened, WINDOWS[2])
    close(opened, plan)
    assert rows(opened) == [("u0", "ok"), ("u1", "ok"), ("u2", "ok")]


def test_rows_of_what_an_object_was_go_wherever_they_lie(opened):
    """Settling the failed row of another item writes their file anew, under another name."""
    other = window(0, unit_id="x0", unread_id="x0", media_id="other")
    commit(opened, WINDOWS[0], lost(WINDOWS[1], "media_changed"), lost(other, "storage_failed"))
    media = dataclasses.replace(MEDIA, content_version="v2")
    now = [window(k, unit_id=f"u{k}-v2", content_version="v2", media=media) for k in range(2)]
    commit(opened, *now, other)
    run = close(opened, to_table([*now, other], UNIT))
    assert rows(opened) == [("u0-v2", "ok"), ("u1-v2", "ok"), ("x0", "ok")]
    assert run.counts["units"] == 3


def test_an_item_of_which_one_window_was_missing_is_told_as_a_whole(opened, monkeypatch):
    commit(opened, *WINDOWS[:3], lost(WINDOWS[3], "decode_timeout"), WINDOWS[4])
    close(opened, to_table(WINDOWS, UNIT))
    planning(monkeypatch, *WINDOWS)
    run = dataclasses.replace(RUN, run_id="annotate-20260102-b", run_date="2026-01-02", starts=0)
    night = dataclasses.replace(opened, run=run)
    plan = make_plan(night, Console(file=io.StringIO()))
    commit(night, WINDOWS[3])
    close(night, plan)
    found = ds.dataset(Path(opened.job.output) / "items").to_table().to_pylist()
    whole = max(found, key=lambda row: row["run_id"])
    assert (whole["num_units"], whole["num_failed_units"], whole["status"]) == (5, 0, "ok")
    said = [event["caption"] for event in whole["events"]]
    assert said == ["u0", "u1", "u2", "u3", "u4"]


def test_storage_that_failed_at_planning_does_not_stop_the_writer(opened):
    away = [unread(f"a{k:02}", "storage_failed", media_id=f"a{k}") for k in range(OUTAGE_UNITS)]
    commit(opened, *WINDOWS, *away)
    assert len(rows(opened)) == len(WINDOWS) + OUTAGE_UNITS
    with pytest.raises(StorageError, match="the storage of the media is away"):
        commit(opened, *[lost(dataclasses.replace(unit, error=None), "storage_failed")
                         for unit in away])  # fmt: skip
    assert _without_storage(to_table([*WINDOWS, *away[:2]], UNIT)) == {"a0", "a1"}


def test_what_is_left_of_a_night_may_be_what_cannot_be_read(opened, monkeypatch):
    denied = unread("d", "media_denied", media_id="denied")
    planning(monkeypatch, denied)
    fresh = dataclasses.replace(opened, run=dataclasses.replace(RUN, starts=0))
    with pytest.raises(StorageError, match="none of the 1 media can be read"):
        make_plan(fresh, Console(file=io.StringIO()))
    night = dataclasses.replace(fresh, num_known=9)
    assert make_plan(night, Console(file=io.StringIO()))["unit_id"].to_pylist() == ["d"]


def test_another_run_leaves_the_error_row_of_a_stretch_that_it_does_not_have(opened):
    commit(opened, WINDOWS[0], unread("stretch 2", "storage_failed"))
    other = dataclasses.replace(opened, run=dataclasses.replace(RUN, run_id="other-20260102-b"))
    _committed(other, other.run, to_table([window(0, unread_id="stretch 0")], UNIT))
    assert rows(opened) == [("stretch 2", "failed"), ("u0", "ok")]
    of_it = window(2, unread_id="stretch 2")
    commit(other, of_it)
    _committed(other, other.run, to_table([of_it], UNIT))
    assert rows(opened) == [("u0", "ok"), ("u2", "ok")]
