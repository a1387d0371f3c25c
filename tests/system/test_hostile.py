"""Hostile media: each gives an answer or an error of the right type, and the same one each time."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from jobs.run import annotate
from pipeline.output.table import read_committed
from pipeline.plan.planner import Planner
from pipeline.stages.prepare import Prepare
from pipeline.storage.storage import Storage
from pipeline.workers.child_process import Isolated
from pipeline.workers.code_version import code_digest
from schemas.errors import ErrorType
from schemas.job.job import check_job
from schemas.tables.manifest import MediaItem
from schemas.tables.unit import PreparedUnit, Unit
from tests.support.hostile.corpus import Case, cases
from tests.support.job_files import SMALL
from tests.support.misbehave import Trap

SEED = 20261124


@pytest.fixture(scope="module")
def job(checkpoint):
    spec = {
        "input": {"scan": "unused"},
        "output": "unused",
        "model": {"source": str(checkpoint)},
        "budget": SMALL["budget"],
        "sampling": {"max_frames": 8, "segmentation": {"kind": "none"}},
        "resources": {"decode_timeout_seconds": 100, "decode_memory_gib": 1.5},
    }
    return check_job(spec, "test")


@pytest.fixture(scope="module")
def prepare(job):
    return Prepare(job, Storage(), code_digest())


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Every case, and its file."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "sound").mkdir()
    made = {}
    for k, case in enumerate(cases(SEED, folder / "sound")):
        made[case] = folder / "media" / str(k) / case.name
        made[case].parent.mkdir(parents=True)
        case.make(made[case])
    return made


@pytest.fixture(scope="module")
def found(hostile, job, prepare) -> dict[Case, tuple[Unit, PreparedUnit]]:
    """Every case as it was planned, and then decoded, in child processes."""
    items = [MediaItem(media_id=case.id, uri=str(path)) for case, path in hostile.items()]
    isolated = Isolated("pipeline.plan.sampler", 8)
    planned = Planner(job, 262_144, Storage(), isolated).plan(items)
    isolated.close()
    for case, path in hostile.items():
        case.later(path)
    assert [unit.media_id for unit in planned] == [case.id for case in hostile]
    return {c: (unit, prepare.prepare(unit)) for c, unit in zip(hostile, planned, strict=True)}


def outcome(unit: Unit) -> str:
    return unit.error.type if unit.error else "ok"


def test_there_are_enough_of_them(hostile):
    assert len(hostile) >= 200
    assert len({case.kind for case in hostile}) >= 25


def test_each_gives_an_answer_or_an_error_of_the_right_type(found):
    wrong = [
        f"{case.id}: {outcome(unit)} {unit.error and unit.error.message}"
        for case, (_, unit) in found.items()
        if outcome(unit) not in case.allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_every_answer_has_its_frames_and_their_times(found):
    answers = [unit for _, unit in found.values() if unit.error is None]
    assert len(answers) >= 100
    for unit in answers:
        sampling = unit.sampling
        size = sampling.num_frames * sampling.resized_height * sampling.resized_width * 3
        assert len(unit.frame_data) == size
        assert all(len(prompt.input_ids) == prompt.num_prompt_tokens for prompt in unit.prompts)
        if unit.media.media_type == "video":
            pts = np.array(sampling.pts_seconds)
            assert len(pts) == sampling.num_frames
            assert np.isfinite(pts).all(), unit.media_id
            assert (np.diff(pts) >= 0).all(), unit.media_id


def test_every_error_says_what_is_wrong_in_one_line(found):
    for _, unit in found.values():
        if unit.error:
            assert unit.error.stage in ("plan", "decode")
            assert 10 < len(unit.error.message) < 600
            assert "Traceback" not in unit.error.message


def test_again_it_is_the_same(found, prepare):
    """Of the broken ones that reached the decoder: the same error, or the same pixels."""
    for case, (planned, first) in found.items():
        if case.kind in ("truncated", "bit-flipped", "zero bytes", "missing boxes"):
            again = prepare.prepare(planned)
            assert outcome(again) == outcome(first), case.id
            assert again.frame_data == first.frame_data, case.id


TRAPS = {
    "crash plan.png": ErrorType.DECODER_CRASHED,
    "crash decode.png": ErrorType.DECODER_CRASHED,
    "hang decode.png": ErrorType.DECODE_TIMEOUT,
    "bomb decode.png": ErrorType.MEDIA_TOO_LARGE,
}


@pytest.mark.long
def test_a_run_over_hostile_media(archive, checkpoint, ray_session, monkeypatch, tmp_path):
    """A case of each kind, sound images, and four that end, stall or fill who decodes them."""
    monkeypatch.setattr("jobs.plan.open_job.Storage", Trap)
    folder = tmp_path / "media"
    folder.mkdir()
    (folder / "sound").mkdir()
    of_kind = {case.kind: case for case in cases(SEED, folder / "sound")}
    for kind in ("growing file", "removed file"):
        of_kind.pop(kind)  # nothing happens to them while this run reads
    allowed = {f"{kind} {case.name}": case.allowed for kind, case in of_kind.items()}
    for kind, case in of_kind.items():
        case.make(folder / f"{kind} {case.name}")
    allowed |= {name: frozenset({kind}) for name, kind in TRAPS.items()}
    allowed |= {f"sound {k}.jpg": frozenset({"ok"}) for k in range(6)}
    source = (archive / "images" / "gray.jpg").read_bytes()
    for name in [*TRAPS, *(f"sound {k}.jpg" for k in range(6))]:
        (folder / name).write_bytes(source)
    files = [path for path in folder.iterdir() if path.is_file()]  # whatever their names end with
    lines = [json.dumps({"uri": str(path)}) + "\n" for path in files]
    (tmp_path / "all.jsonl").write_text("".join(lines))
    spec = {
        "tasks": ["caption"],
        "input": {"manifest": str(tmp_path / "all.jsonl")},
        "output": str(tmp_path / "output"),
        "model": {"source": str(checkpoint)},
        "resources": {"decode_timeout_seconds": 8, "decode_memory_gib": 0.5},
    }
    job = check_job(SMALL | spec, "test")
    finished = annotate.run(job, Console(file=io.StringIO()))
    columns = ("unit_id", "uri", "status", "error")
    rows = read_committed(job.output, finished.recipe_ids, Storage(), columns).to_pylist()
    assert len({row["unit_id"] for row in rows}) == len(rows) == finished.counts["units"]
    errors: dict[str, list] = {}  # of one file there may be many: its header may tell of days
    for row in rows:
        errors.setdefault(Path(row["uri"]).name, []).append(row["error"])
    assert set(errors) == {path.name for path in files}
    for name, found in errors.items():
        types = {error["type"] if error else "ok" for error in found}
        assert types <= allowed[name], (name, [error for error in found if error][:3])
    stages = {name: [error["stage"] for error in errors[name]] for name in TRAPS}
    assert stages == {name: [name.split()[1].partition(".")[0]] for name in TRAPS}
