"""What the model sees in training is what it sees in annotation: the same ids, the same bytes."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig

from pipeline.model.positions import mrope_positions
from pipeline.plan.planner import Planner
from pipeline.stages.prepare import Prepare
from pipeline.storage.storage import Storage
from pipeline.tasks.registry import TASKS
from pipeline.training.groups import group_by_media
from pipeline.training.sample import IGNORED, ROOT, Preparer, Sample, max_tokens
from pipeline.workers.code_version import code_digest
from pipeline.workers.isolated_decoder import IsolatedDecoder
from schemas.conversation import Conversation, DataProblem, Turn
from schemas.errors import ErrorType, UnitError
from schemas.job.finetune import FinetuneJob
from schemas.job.job import Job, check_job
from schemas.job.load import check
from schemas.tables.manifest import MediaItem
from schemas.tables.unit import PreparedUnit
from schemas.task import Question
from tests.support.misbehave import Trap

BUDGET = {"image_tokens": [4, 64], "frame_tokens": [4, 16], "unit_tokens": 256}
SAMPLING = {"fps": 1.5, "min_frames": 4, "max_frames": 10}

FILES = (
    "images/scene-0.jpg",
    "images/orientation-6.jpg",
    "images/alpha.png",
    "images/gray16.png",
    "images/tiny.png",
    "images/wide.png",
    "clips/h264-bframes.mp4",
    "clips/variable.mkv",
    "clips/variable.mp4",
    "clips/starts-late.mp4",
    "clips/rotated-90.mp4",
    "clips/alpha.webm",
    "clips/one-frame.mp4",
    "clips/broadcast.ts",
)


def finetune_job(checkpoint: Path, **changes: Any) -> FinetuneJob:
    spec = {
        "output": "unused",
        "model": {"source": str(checkpoint)},
        "data": ["unused.jsonl"],
        "budget": BUDGET,
        "sampling": SAMPLING,
    }
    return check(FinetuneJob, spec | changes, "test")


def annotate_job(checkpoint: Path, **changes: Any) -> Job:
    spec = {
        "input": {"scan": "unused"},
        "output": "unused",
        "model": {"source": str(checkpoint)},
        "tasks": ["caption", "ocr"],
        "budget": BUDGET,
        "sampling": SAMPLING,
    }
    return check_job(spec | changes, "test")


def annotated(item: MediaItem, job: Job) -> list[PreparedUnit]:
    """The units of an item, as annotate's own stages make them for the engine."""
    prepare = Prepare(job, Storage(), code_digest())
    units = Planner(job, 1 << 20, Storage()).plan([item])
    return [prepare.prepare(unit) for unit in units]


def asked(item: MediaItem, text: str, answer: str = "An answer.") -> Conversation:
    turns = (
        Turn(role="user", parts=(0, text)),
        Turn(role="assistant", parts=(answer,)),
    )
    return Conversation(origin=f"row:{text}", media=(item,), turns=turns)


def media_item(archive: Path, name: str, **fields: Any) -> MediaItem:
    uri = str(archive / name)
    return MediaItem(media_id=name, uri=uri, **fields)


@pytest.fixture(scope="module")
def preparer(checkpoint: Path) -> Preparer:
    return Preparer(finetune_job(checkpoint), Storage())


def assert_same(sample: Sample | DataProblem, unit: PreparedUnit, task: str):
    assert isinstance(sample, Sample), sample
    assert unit.error is None
    (prompt,) = [p for p in unit.prompts if p.task == task]
    assert sample.input_ids[: len(prompt.input_ids)].tolist() == list(prompt.input_ids)
    assert np.argmax(sample.labels != IGNORED) == len(prompt.input_ids)
    (media,) = sample.media
    assert media.grid_thw == tuple(unit.sampling.grid_thw)
    assert media.pixels.tobytes() == unit.frame_data
    assert media.vision.pts_seconds == tuple(unit.sampling.pts_seconds or ())


@pytest.mark.parametrize("name", FILES)
def test_ids_and_pixels_are_those_of_annotation(archive, checkpoint, preparer, name: str):
    job = annotate_job(checkpoint, sampling=SAMPLING | {"segmentation": {"kind": "none"}})
    item = media_item(archive, name)
    (unit,) = annotated(item, job)
    text = TASKS["ocr"].prompt(Question(task="ocr"), unit.media.media_type)
    assert_same(preparer.prepare([asked(item, text)]), unit, "ocr")


def test_a_window_is_trained_as_it_was_annotated(archive, checkpoint, preparer):
    """The time span of a row gives the same frames that the unit had."""
    windows = SAMPLING | {"segmentation": {"seconds": 2.3, "min_seconds": 0.0}}
    for name in ("clips/h264-bframes.mp4", "clips/variable.mkv", "clips/starts-late.mp4"):
        units = annotated(media_item(archive, name), annotate_job(checkpoint, sampling=windows))
        assert len(units) > 1
        for unit in units:
            span = {k: getattr(unit.sampling, k) for k in ("start_seconds", "end_seconds")}
            item = media_item(archive, name, **span)
            text = TASKS["caption"].prompt(Question(task="caption"), "video")
            assert_same(preparer.prepare([asked(item, text)]), unit, "caption")


def test_a_frame_list_has_its_own_times(archive, checkpoint, preparer):
    frames = tuple(str(archive / f"images/plate-{n}.png") for n in range(3))
    item = media_item(archive, "images/plate-0.png", frames=frames, sample_fps=4.0)
    (unit,) = annotated(item, annotate_job(checkpoint))
    text = TASKS["caption"].prompt(Question(task="caption"), "video")
    sample = preparer.prepare([asked(item, text)])
    assert_same(sample, unit, "caption")
    assert sample.media[0].vision.pts_seconds == (0.0, 0.25, 0.5, 0.5)


@pytest.mark.parametrize("decoder", ["torchcodec", "pyav"])
def test_the_decoder_is_the_one_of_the_job(archive, checkpoint, monkeypatch, decoder: str):
    used = []
    original = IsolatedDecoder.decode

    def noting(*args: Any) -> Any:
        frames = original(*args)
        used.append(frames.decoder)
        return frames

    monkeypatch.setattr(IsolatedDecoder, "decode", noting)
    job = finetune_job(checkpoint, sampling=SAMPLING | {"decoder": decoder})
    prepared = Preparer(job, Storage()).prepare([asked(media_item(archive, "clips/h264.mov"), "?")])
    assert isinstance(prepared, Sample)
    assert used == [decoder]


def problem(preparer: Preparer, item: MediaItem) -> tuple[str, str]:
    found = preparer.prepare([asked(item, "?")])
    assert isinstance(found, DataProblem)
    assert found.origin == "row:?"
    return str(found.type), found.message


def test_media_that_fail_are_named_problems(archive, preparer, tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("not a picture")
    missing = problem(preparer, media_item(archive, "images/none.jpg"))
    assert missing[0] == "media_missing"
    assert missing[1].startswith("media_missing: ") and missing[1].endswith("does not exist")
    assert problem(preparer, media_item(archive, "clips/unreadable.mp4"))[0] == "media_unreadable"
    assert problem(preparer, media_item(archive, "clips/truncated.mp4"))[0] == "media_unreadable"
    assert problem(preparer, media_item(archive, "images/truncated.jpg"))[0] == "media_unreadable"
    assert problem(preparer, media_item(tmp_path, "empty.jpg")) == (
        "media_unreadable",
        "media_unreadable: the file is empty",
    )
    assert problem(preparer, media_item(tmp_path, "text.png"))[0] == "media_unreadable"
    outside = media_item(archive, "clips/h264.mov", start_seconds=90.0, end_seconds=95.0)
    assert "requests 90.000 to 95.000 s" in problem(preparer, outside)[1]
    private = MediaItem(media_id="x", uri="http://127.0.0.1:1/x", media_type="image")
    denied = problem(preparer, private)
    assert denied[0] == "media_missing" and "media_denied" in denied[1]


def test_a_decoder_that_breaks_costs_its_own_sample(archive, preparer, monkeypatch, caplog):
    def broken(*args: Any) -> Any:
        raise RuntimeError("hostile")

    monkeypatch.setattr(IsolatedDecoder, "decode", broken)
    found = problem(preparer, media_item(archive, FILES[0]))
    assert found == ("media_unreadable", "decoding failed: RuntimeError: hostile")
    assert "decoding the media of row:?" in caplog.text


@pytest.mark.parametrize("name", ["crash plan", "crash decode"])
def test_a_decoder_that_crashes_costs_its_own_sample(archive, checkpoint, tmp_path, name):
    """Media are read and decoded in children, as in a run."""
    for copy in (name, "sound"):
        shutil.copy(archive / "images" / "gray.jpg", tmp_path / f"{copy}.jpg")
    preparer = Preparer(finetune_job(checkpoint), Trap())
    kind, message = problem(preparer, media_item(tmp_path, f"{name}.jpg"))
    assert (kind, message.partition(":")[0]) == ("media_unreadable", "decoder_crashed")
    assert isinstance(preparer.prepare([asked(media_item(tmp_path, "sound.jpg"), "?")]), Sample)


def test_a_decoder_that_hangs_costs_its_own_sample(archive, checkpoint, tmp_path):
    """It has the deadline of a run: one bad file must not hold up all workers."""
    shutil.copy(archive / "images" / "gray.jpg", tmp_path / "hang decode.jpg")
    resources = {"decode_timeout_seconds": 0.5}
    preparer = Preparer(finetune_job(checkpoint, resources=resources), Trap())
    kind, message = problem(preparer, media_item(tmp_path, "hang decode.jpg"))
    assert (kind, message.partition(":")[0]) == ("media_unreadable", "decode_timeout")


def test_a_sample_may_be_as_long_as_the_checkpoints_context(checkpoint):
    """A default window has 23,400 vision tokens: a smaller default would leave all of them out."""
    context = AutoConfig.from_pretrained(checkpoint).text_config.max_position_embeddings
    assert max_tokens(finetune_job(checkpoint)) == context > 24_576
    model = {"source": str(checkpoint), "yarn": {"factor": 2}}
    assert max_tokens(finetune_job(checkpoint, model=model)) == 2 * context


def test_an_over_long_sample_says_how_long_it_is(archive, checkpoint):
    item = media_item(archive, FILES[0])
    length = Preparer(finetune_job(checkpoint), Storage()).prepare([asked(item, "?")]).num_tokens
    for limit, fits in ((length, True), (length - 1, False)):
        model = {"source": str(checkpoint), "max_model_len": max(limit, 64)}
        found = Preparer(finetune_job(checkpoint, model=model), Storage()).prepare(
            [asked(item, "?")]
        )
        assert isinstance(found, Sample) == fits
    assert found.type == "over_long"
    assert found.message.startswith(f"{length} tokens are over model.max_model_len = {length - 1};")


@pytest.fixture(scope="module")
def conversations(archive: Path) -> list[Conversation]:
    item = media_item(archive, "clips/h264-bframes.mp4")
    texts = {"What is shown?": "A star.", "What happens?": "It moves.", "Why?": "Who knows"}
    return [asked(item, text, answer) for text, answer in texts.items()]


@pytest.fixture(scope="module")
def shared(preparer, conversations) -> Sample:
    return preparer.prepare(conversations)


class TestSharedMedia:
    """Conversations about the same media: once the media, then a branch for each."""

    def test_each_branch_with_the_root_is_its_conversation(self, preparer, conversations, shared):
        assert set(shared.branches) == {ROOT, 1, 2, 3}
        for k, conversation in enumerate(conversations, start=1):
            alone = preparer.prepare([conversation])
            own = np.isin(shared.branches, (ROOT, k))
            assert shared.input_ids[own].tolist() == alone.input_ids.tolist()
            assert shared.types[own].tolist() == alone.types.tolist()
            np.testing.assert_array_equal(shared.positions[:, own], alone.positions)
            labels = np.where(shared.branches == ROOT, IGNORED, shared.labels)[own]
            assert labels.tolist() == alone.labels.tolist()

    def test_the_media_are_there_once_and_nothing_of_the_root_is_learnt(self, shared, preparer):
        assert len(shared.media) == 1
        assert (shared.types != 0).sum() == np.prod(shared.media[0].grid_thw) // 4
        assert not shared.types[shared.branches != ROOT].any()
        assert (shared.labels[shared.branches == ROOT] == IGNORED).all()
        # What is learnt is predicted from the token before it, which must be its own.
        learnt = np.flatnonzero(shared.labels != IGNORED)
        assert (shared.branches[learnt] == shared.branches[learnt - 1]).all()

    def test_the_same_question_twice(self, preparer, conversations):
        first = conversations[0]
        other = dataclasses.replace(first.turns[1], parts=("A comet.",))
        second = dataclasses.replace(first, turns=(first.turns[0], other))
        sample = preparer.prepare([first, second])
        learnt = np.flatnonzero(sample.labels != IGNORED)
        assert (sample.branches[learnt] == sample.branches[learnt - 1]).all()
        decode = preparer.prompter.tokenizer.decode
        said = [decode(sample.input_ids[learnt][sample.branches[learnt] == k]) for k in (1, 2)]
        assert said == ["A star.<|im_end|>", "A comet.<|im_end|>"]

    def test_neighbours_with_the_same_media_are_grouped(self, archive, conversations):
        other = asked(media_item(archive, FILES[0]), "?")
        late = dataclasses.replace(
            other, turns=(Turn(role="user", parts=("See:", 0)), other.turns[1])
        )
        span = asked(media_item(archive, "clips/h264-bframes.mp4", end_seconds=2.0), "?")
        text = dataclasses.replace(
            other, media=(), turns=(Turn(role="user", parts=("?",)), other.turns[1])
        )
        rows = [*conversations, other, late, other, *conversations[:2], span, text, text]
        groups = group_by_media(rows, share_media=True)
        assert [len(group) for group in groups] == [3, 1, 1, 1, 2, 1, 1, 1]
        assert [c for group in groups for c in group] == rows
        assert [len(g) for g in group_by_media(rows, share_media=False)] == [1] * len(rows)


def test_several_media_in_the_order_of_their_tags(archive, preparer):
    names = ("images/scene-0.jpg", "clips/h264.mov", "images/tiny.png")
    turns = (
        Turn(role="user", parts=("First", 0, "then", 1, "differ?")),
        Turn(role="assistant", parts=("Yes.",)),
        Turn(role="user", parts=(2, "and this?")),
        Turn(role="assistant", parts=("No.",)),
    )
    items = tuple(media_item(archive, name) for name in names)
    sample = preparer.prepare([Conversation(origin="x", media=items, turns=turns)])
    assert [part.media_type for part in sample.media] == ["image", "video", "image"]
    for part, item in zip(sample.media, items, strict=True):
        alone = preparer.prepare([asked(item, "?")]).media[0]
        assert part.pixels.tobytes() == alone.pixels.tobytes()
    grids = [part.grid_thw for part in sample.media]
    np.testing.assert_array_equal(sample.positions, mrope_positions(sample.types, grids))


def test_missing_and_denied_are_one_type(preparer, archive, monkeypatch):
    """The closed list is shorter here; the message keeps the pipeline's own type."""

    def failing(error_type: ErrorType) -> Any:
        def fail(item: MediaItem) -> Any:
            raise UnitError(error_type, "because")

        return fail

    expected = {
        ErrorType.MEDIA_MISSING: "media_missing",
        ErrorType.MEDIA_DENIED: "media_missing",
        ErrorType.MEDIA_TOO_LARGE: "media_unreadable",
        ErrorType.STORAGE_FAILED: "media_unreadable",
    }
    for error_type, kind in expected.items():
        monkeypatch.setattr(preparer, "prepare_media", failing(error_type))
        assert problem(preparer, media_item(archive, FILES[0])) == (kind, f"{error_type}: because")
