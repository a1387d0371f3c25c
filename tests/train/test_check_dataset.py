"""`check-dataset` finds every kind of mistake, converts pixel boxes, counts as training does."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

import jobs.train.check_dataset
from jobs.cli.main import main
from jobs.console.output_path import check_output
from pipeline.storage.storage import Storage
from pipeline.training.check import Checker, Work
from pipeline.training.data.read import read_data
from pipeline.training.groups import group_by_media
from pipeline.training.sample import Preparer
from schemas.errors import UserError
from schemas.job.finetune import DataSpec, FinetuneJob
from tests.support.clips import numbered_frames, write_clip

BUDGET = {"image_tokens": [4, 64], "frame_tokens": [4, 16], "unit_tokens": 256}
SMALL = [f"--set=budget.{name}={value}" for name, value in BUDGET.items()]


def row(question, answer, **fields):
    talk = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {**fields, "conversations": talk}


def write(path, rows):
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def call(*args):
    return CliRunner().invoke(main, ["check-dataset", *map(str, args)], catch_exceptions=False)


def conversations(path):
    return read_data(DataSpec(conversations=str(path)), Storage())


def checker(checkpoint, *, headers_only=False, **model):
    model = {"source": str(checkpoint), **model}
    spec = {"output": ".", "model": model, "data": ["none"], "budget": BUDGET}
    return Checker(FinetuneJob.model_validate(spec), Storage(), headers_only=headers_only)


def check(path, checkpoint, **options):
    """Check each conversation of a file by itself."""
    one = checker(checkpoint, **options)
    return [
        one.check(Work(sample=k, conversations=(c,))) for k, c in enumerate(conversations(path))
    ]


# One sample


def test_tokens_are_those_of_training_also_by_headers_alone(tmp_path, archive, checkpoint):
    # From 8.9 s on, so that a timestamp gains a digit: 9.9 -> 10.1.
    clip = tmp_path / "clip.mp4"
    write_clip(clip, numbered_frames(31), fps=10, start_seconds=8.9)
    frames = [str(archive / f"images/plate-{n}.png") for n in range(3)]  # an odd number
    rows = [
        row("<image>What?", "A scene.", image=str(archive / "images/orientation-6.jpg")),
        row("<video>\n<image>What?", "Two.", video=str(clip), image=frames[0]),
        row("<video>What?", "Three.", video=[frames]),
        row("What?", "Nothing to see."),
    ]
    path = write(tmp_path / "data.jsonl", rows)
    decoded, probed = check(path, checkpoint), check(path, checkpoint, headers_only=True)
    assert decoded == probed
    spec = {"output": ".", "model": {"source": str(checkpoint)}, "data": ["-"], "budget": BUDGET}
    preparer = Preparer(FinetuneJob.model_validate(spec), Storage())
    samples = [preparer.prepare([c]) for c in conversations(path)]
    assert [(c.num_tokens, c.num_learnt) for c in decoded] == [
        (sample.num_tokens, sample.num_learnt) for sample in samples
    ]
    assert [c.num_media for c in decoded] == [1, 2, 1, 0]
    assert not any(c.problems for c in decoded)


def test_a_sample_that_is_too_long_says_how_long(tmp_path, archive, checkpoint):
    image = str(archive / "images/scene-0.jpg")
    path = write(tmp_path / "data.jsonl", [row("<image>A?", "B " * 40, image=image)] * 2)
    (alone, _) = check(path, checkpoint, max_model_len=64)
    (problem,) = alone.problems
    assert problem.type == "over_long"
    vision = 54  # 480 x 360 in at most 64 tokens: 9 x 6
    assert problem.message.startswith(
        f"{alone.num_tokens} tokens ({vision} of them vision) are over model.max_model_len = 64"
    )
    assert alone.num_tokens > 64
    (group,) = group_by_media(conversations(path), share_media=True)
    limit = alone.num_tokens + 1  # each fits alone, but not both
    both = checker(checkpoint, max_model_len=limit).check(Work(sample=0, conversations=group))
    assert not both.problems  # training makes two samples of them
    both = checker(checkpoint, max_model_len=64).check(Work(sample=0, conversations=group))
    assert [p.origin for p in both.problems] == [f"{path}:1", f"{path}:2"]


def test_what_is_broken_inside_is_found_by_decoding_only(tmp_path, archive, checkpoint):
    rows = [
        row("<image>What?", "A scene.", image=str(archive / "images/truncated.jpg")),
        row("<video>What?", "A clip.", video=str(archive / "clips/truncated.mp4")),
        row("<video>What?", "A clip.", video=str(archive / "clips/unreadable.mp4")),
    ]
    path = write(tmp_path / "data.jsonl", rows)
    found = [[p.type for p in c.problems] for c in check(path, checkpoint)]
    assert found == [["media_unreadable"]] * 3
    found = [[p.type for p in c.problems] for c in check(path, checkpoint, headers_only=True)]
    assert found == [[], [], ["media_unreadable"]]


# What the reader makes of odd files


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (json.dumps(row("a\u2028b", "c\u0085d"), ensure_ascii=False).encode(), ["c\u0085d"]),
        (b"\xef\xbb\xbf" + json.dumps(row("a", "b")).encode() + b"\r\n", ["b"]),
        (json.dumps(row("a", "b", image=None, images=[])).encode(), ["b"]),
        (json.dumps(row("a", "half \ud83d")).encode(), ["bad_row"]),
        (b"{}\n" + b"[" * 100_000, ["bad_row", "bad_row"]),
    ],
)
def test_odd_files_are_read_or_are_problems(tmp_path, content, found):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    read = conversations(path)
    assert [e.turns[1].parts[0] if hasattr(e, "turns") else e.type for e in read] == found


@pytest.mark.parametrize(
    ("task", "value"),
    [("objects", ["car"]), ("objects", [{"label": "x", "box": [1.0, 2.0]}]), ("caption", 5)],
)
def test_a_column_of_another_form_is_a_bad_row(tmp_path, task, value):
    table = {"uri": ["a.jpg"], "media_type": ["image"], "width": [9], "height": [9], task: [value]}
    pq.write_table(pa.table(table), tmp_path / "table.parquet")
    spec = DataSpec(annotations=str(tmp_path / "table.parquet"), tasks=[task])
    (problem,) = read_data(spec, Storage())
    assert (problem.type, problem.message.partition(":")[0]) == (
        "bad_row",
        f"{task} does not have the column's form",
    )


# The command


def test_every_problem_is_found_and_written(tmp_path, archive, checkpoint, ray_session):
    image = str(archive / "images/scene-0.jpg")
    system = {"from": "system", "value": "Be brief."}
    late = row("<image>A?", "B", image=image)
    late["conversations"].append(system)
    rows = [
        row("<image>A?", "B", image=image),
        "{not json",
        {"image": image},
        late,
        {"conversations": [{"from": "gpt", "value": "B"}, {"from": "human", "value": "A"}]},
        row("A?", "B", image=image),
        row("<image>A?", "B"),
        row("A?", "B", video=str(archive / "clips/h264.mov")),
        row("<video><video>A?", "B", video=str(archive / "clips/h264.mov")),
        row("<image>A?", " ", image=image),
        row("<image>A?", "B", image="missing.jpg"),
        row("<image>A?", "B", image=str(archive / "images/truncated.jpg")),
        row("<video>A?", "B", video=str(archive / "clips/truncated.mp4")),
        row("<image>A?", "B " * 2000, image=image),
        row("<image>A?", '{"bbox_2d": [1, 2, 3, 1900]}', image=image),
        row("<image>A?", '{"bbox_2d": [1, 2, 3, 4', image=image),
        row("\x1b[2J<image>A?", '{"bbox_2d": [1, 2, 3, 4], "point_2d": [7, 7]}', image=image),
    ]
    path = write(tmp_path / "data.jsonl", rows)
    report = tmp_path / "problems.jsonl"
    result = call(path, "-m", checkpoint, "--max-model-len=2048", *SMALL, "--report", report)
    assert result.exit_code == 1
    found = [json.loads(line) for line in report.read_text().splitlines()]
    assert {problem["data_set"] for problem in found} == {str(path)}
    assert [(int(p["origin"].removeprefix(f"{path}:")), p["type"]) for p in found] == [
        (2, "bad_row"),
        (3, "bad_row"),
        (4, "bad_row"),
        (5, "bad_row"),
        (6, "tag_mismatch"),
        (7, "tag_mismatch"),
        (8, "tag_mismatch"),
        (9, "tag_mismatch"),
        (10, "no_answer"),
        (11, "media_missing"),
        (12, "media_unreadable"),
        (13, "media_unreadable"),
        (14, "over_long"),
        (15, "bad_box"),
        (16, "bad_box"),
    ]
    assert "15 problems" in result.output
    assert "data.jsonl:11" in result.output
    assert "missing.jpg" in "".join(map(str.strip, result.output.splitlines()))  # a long path folds
    assert "\x1b" not in result.output


def test_boxes_in_pixels_are_converted(tmp_path, archive, checkpoint, ray_session):
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    for name in ("large.jpg", "scene-0.jpg", "orientation-6.jpg"):  # 1600x1200, 480x360, 360x480
        (tmp_path / "in" / name).write_bytes((archive / "images" / name).read_bytes())
    answer = 'Here: [{"bbox_2d": [160, 120, 1600, 600], "label": "80"}]'
    rows = [
        row("<image>Where?", answer, image="large.jpg", id=7),
        row("<image>Where?", '{"point_2d":[48,36]}', image="scene-0.jpg"),
        row("<image>Where?", '{"bbox": [36, 48, 180, 480]}', image="orientation-6.jpg"),
        row("<image>What?", "A scene — 場面.", image="scene-0.jpg"),
        row("<image>Where?", '{"bbox": [300, 48, 180, 300]}', image="scene-0.jpg"),
        row("<image>Where?", '{"bbox": [1, 2, 3, 4]}', image="missing.jpg"),
        row("<image><image>Which?", '{"bbox": [1, 2, 3, 4]}', image=["large.jpg", "scene-0.jpg"]),
    ]
    path = write(tmp_path / "in" / "data.jsonl", rows)
    fixed_path = tmp_path / "out" / "fixed.jsonl"
    options = ["-m", checkpoint, *SMALL, "--headers-only"]
    result = call(path, *options, "--fix", fixed_path)
    assert result.exit_code == 1  # three rows are left out
    assert "in 1 of 4 conversations with boxes some are over 1000, and all lie" in result.output
    assert "3 rows, 3 boxes and points in them" in result.output
    assert "1 rows as they are" in result.output
    assert "3 rows, with the problems above" in result.output

    fixed = [json.loads(line) for line in fixed_path.read_text().splitlines()]
    assert [r["conversations"][1]["value"] for r in fixed] == [
        'Here: [{"bbox_2d": [100, 100, 1000, 500], "label": "80"}]',
        '{"point_2d":[100,100]}',
        '{"bbox": [100, 100, 500, 1000]}',  # of the picture as it is displayed, 360 x 480
        "A scene — 場面.",
    ]
    assert fixed[0] == rows[0] | {
        "image": str(tmp_path / "in" / "large.jpg"),
        "conversations": fixed[0]["conversations"],
    }
    result = call(fixed_path, *options)
    assert result.exit_code == 0
    assert "nothing is wrong" in result.output


@pytest.fixture
def in_process(monkeypatch):
    """Check without Ray, which takes seconds to start an actor."""

    def check_here(data_sets, job, headers_only, storage, console):
        one = Checker(job, storage, headers_only=headers_only)
        return [replace(data, checked=[one.check(w) for w in data.works]) for data in data_sets]

    monkeypatch.setattr(jobs.train.check_dataset, "check_samples", check_here)


def test_a_fixed_file_beside_keeps_its_relative_paths(tmp_path, archive, checkpoint, in_process):
    (tmp_path / "media").symlink_to(archive / "images")
    answer = '{"bbox": [160, 120, 1600, 600]}'
    rows = [
        row("<image>Where?", answer, image="large.jpg", data_path="media"),
        row("<image>Where?", answer, images=["media/large.jpg"]),
        row("<video>Where?", answer, video=[["media/large.jpg", "media/large.jpg"]]),
    ]
    path = write(tmp_path / "data.jsonl", rows)
    fixed, elsewhere = tmp_path / "fixed.jsonl", tmp_path / "other" / "fixed.jsonl"
    options = ["-m", checkpoint, *SMALL]
    assert call(path, *options).exit_code == 1
    assert call(path, *options, "--fix", fixed).exit_code == 0  # all converted
    for before, after in zip(rows, map(json.loads, fixed.read_text().splitlines()), strict=True):
        assert after["conversations"][1]["value"] == '{"bbox": [100, 100, 1000, 500]}'
        assert after == before | {"conversations": after["conversations"]}
    assert call(fixed, *options).exit_code == 0
    assert call(path, *options, "--fix", elsewhere).exit_code == 0
    first, second, third = map(json.loads, elsewhere.read_text().splitlines())
    large = str(tmp_path / "media" / "large.jpg")
    assert (first["image"], "data_path" in first) == (large, False)
    assert (second["images"], third["video"]) == ([large], [[large, large]])
    assert call(elsewhere, *options).exit_code == 0


def test_boxes_of_an_unsure_unit_are_not_fixed(tmp_path, archive, checkpoint, in_process):
    large, small = (str(archive / "images" / name) for name in ("large.jpg", "scene-0.jpg"))
    rows = [
        row("<image>Where?", '{"bbox": [160, 120, 1600, 600]}', image=large),
        row("<image>Where?", '{"bbox": [1, 2, 30, 400]}', image=small),  # 480 x 360
    ]
    path, fixed = write(tmp_path / "data.jsonl", rows), tmp_path / "fixed.jsonl"
    options = [path, "-m", checkpoint, *SMALL, "--fix", fixed]
    result = call(*options)
    assert (result.exit_code, fixed.exists()) == (2, False)
    assert "in 1 some lie beyond their pictures; if most are in pixels, use" in result.output
    assert "error: --fix needs the unit of the boxes" in result.output
    result = call(*options, "--boxes", "pixels")
    assert result.exit_code == 1
    assert "bbox [1, 2, 30, 400]: 400 is outside the 480 x 360 pixels" in result.output
    assert len(fixed.read_text().splitlines()) == 1
    assert call(*options, "--boxes", "normalised").exit_code == 1
    assert fixed.read_text() == json.dumps(rows[1]) + "\n"


def test_a_job_file_has_all_its_data_checked(tmp_path, archive, checkpoint, ray_session):
    box = {"x1": 48.0, "y1": 36.0, "x2": 240.0, "y2": 180.0}
    flat = {"x1": 48.0, "y1": 36.0, "x2": 48.0, "y2": 180.0}
    table = pa.table(
        {
            "uri": ["images/scene-0.jpg", "images/scene-1.jpg"],
            "media_type": ["image"] * 2,
            "width": [480] * 2,
            "height": [360] * 2,
            "caption": ["A scene.", None],
            "objects": [[{"label": "car", "box": box}], [{"label": "car", "box": flat}]],
        }
    )
    pq.write_table(table, tmp_path / "table.parquet")
    image = str(archive / "images/truncated.jpg")  # only its header is read here
    talk = write(tmp_path / "talk.json", [json.dumps([row("<image>A?", "B", image=image)] * 3)])
    annotations = {
        "annotations": str(tmp_path / "table.parquet"),
        "media_folder": str(archive),
        "tasks": ["caption", "objects"],
    }
    spec = {
        "output": str(tmp_path / "out"),
        "model": {"source": str(checkpoint)},
        "budget": BUDGET,
        "data": [f"{talk}%10", f"{talk}%300"],
        "validation": [annotations],
    }
    job = tmp_path / "job.yaml"
    job.write_text(yaml.safe_dump(spec))
    report = tmp_path / "problems.parquet"
    result = call(job, "--headers-only", "--report", report)
    assert result.exit_code == 1
    (problem,) = pq.read_table(report).to_pylist()
    assert problem == {
        "data_set": str(tmp_path / "table.parquet"),
        "origin": f"{tmp_path / 'table.parquet'}:2/objects",
        "type": "bad_box",
        "message": "bbox_2d [100, 100, 100, 500]: it has no area",
    }
    lines = {
        cells[0]: cells[1:5]
        for line in result.output.splitlines()
        if len(cells := line.split()) > 8
    }
    # rows, wrong, samples, media: the data set that is there with two shares is checked once
    assert lines["all"] == ["6", "1", "3", "3"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["{path}"], "a data set needs --model"),
        (["{path}", "-m", "{ckpt}", "-t", "ocr"], "is read as conversations: leave out --tasks"),
        (["{path}.parquet", "-m", "{ckpt}"], "is read as a table: give --tasks"),
        (["{path}.parquet", "-m", "{ckpt}", "-t", "ocr"], "does not exist"),
        (["{path}", "-m", "{ckpt}", "-t", "poem"], "is read as conversations"),
        (["{path}.parquet", "-m", "{ckpt}", "-t", "poem"], "poem"),
        (["{path}", "-m", "/nowhere"], "there is no folder /nowhere"),
        (["{path}", "-m", "{ckpt}", "--fix", "{path}"], "is an input"),
        (["{path}", "-m", "{ckpt}", "--fix", "x.json"], "--fix writes JSON lines"),
        (["{path}", "-m", "{ckpt}", "--report", "x.csv"], "--report must be"),
        (["{path}.parquet", "-m", "{ckpt}", "-t", "ocr", "--fix", "x.jsonl"], "one such data set"),
        (["{path}", "-m", "{ckpt}", "--max-model-len", "0"], "max_model_len"),
        (["nowhere.yaml"], "there is no job file nowhere.yaml"),
        (["nowhere.yaml", "-t", "ocr"], "do not go with a job file"),
        (["nowhere.jsonl", "-m", "{ckpt}"], "nowhere.jsonl does not exist"),
    ],
)
def test_a_users_mistake_is_one_message(tmp_path, checkpoint, args, message):
    path = write(tmp_path / "data.jsonl", [row("A?", "B")])
    result = call(*(arg.format(path=path, ckpt=checkpoint) for arg in args))
    assert (result.exit_code, result.output.startswith("error: ")) == (2, True)
    assert message in result.output


def test_outputs_spare_what_is_read(tmp_path):
    """Under any name of it."""
    (tmp_path / "folder").mkdir()
    data = tmp_path / "data.jsonl"
    data.write_text("{}")
    (tmp_path / "link.jsonl").symlink_to(data)
    for name in ("data.jsonl", "folder/../data.jsonl", "link.jsonl"):
        with pytest.raises(UserError, match="--report .* is an input"):
            check_output("--report", str(tmp_path / name), [str(data)])
    with pytest.raises(UserError, match="is a folder"):
        check_output("--json", str(tmp_path / "folder"), [])
    with pytest.raises(UserError, match="cannot be written"):
        check_output("--json", str(data / "x.json"), [])
    check_output("--json", str(tmp_path / "new" / "deep" / "x.json"), [str(data)])
    check_output("--json", "s3://bucket/x.json", [str(data)])
