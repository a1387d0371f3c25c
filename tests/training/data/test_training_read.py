"""Training data: the reference's JSON, Reelscribe's own tables, and what is wrong with them."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.train.finetune import mix
from pipeline.storage.storage import Storage
from pipeline.tasks.parse import parse_answer
from pipeline.training.data.read import read_data
from schemas.conversation import Conversation, DataProblem
from schemas.errors import JobFileError, ManifestError
from schemas.job.finetune import DataSpec, FinetuneJob, as_data
from schemas.job.load import check
from schemas.task import Question, View


def talk(*texts: str) -> list[dict[str, str]]:
    roles = ("human", "gpt") * len(texts)
    return [{"from": role, "value": text} for role, text in zip(roles, texts, strict=False)]


def write(path: Path, rows: list[Any]) -> Path:
    as_lines = path.suffix == ".jsonl"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) if as_lines else json.dumps(rows), encoding="utf-8")
    return path


def read(path: Path, **settings: Any) -> list[Conversation | DataProblem]:
    return read_data(DataSpec(conversations=str(path), **settings), Storage())


def read_row(tmp_path: Path, row: Any) -> Conversation | DataProblem:
    (example,) = read(write(tmp_path / "one.jsonl", [row]))
    return example


def parts(example: Conversation | DataProblem) -> list[tuple[str | int, ...]]:
    assert isinstance(example, Conversation), example
    return [turn.parts for turn in example.turns]


def uris(example: Conversation | DataProblem) -> list[str]:
    assert isinstance(example, Conversation), example
    return [item.uri for item in example.media]


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_rows_of_json_and_json_lines(tmp_path: Path, suffix: str):
    rows = [
        {"image": "a.jpg", "conversations": talk("<image>\nWhat?", "A cat.")},
        {"video": "b.mp4", "conversations": talk("When? <video> ", "Now.", "Sure?", "Yes.")},
        {"conversations": talk("Say hi.", "Hi.")},
    ]
    first, second, third = read(write(tmp_path / f"data{suffix}", rows))
    assert uris(first) == [str(tmp_path / "a.jpg")]
    assert parts(first) == [(0, "What?"), ("A cat.",)]
    assert [item.media_type for item in second.media] == ["video"]
    assert parts(second) == [("When?", 0), ("Now.",), ("Sure?",), ("Yes.",)]
    assert [turn.role for turn in second.turns] == ["user", "assistant"] * 2
    assert parts(third) == [("Say hi.",), ("Hi.",)]
    assert third.media == ()
    assert first.origin == f"{tmp_path}/data{suffix}:1"


def test_line_ends_of_unicode_inside_a_text_do_not_end_the_line(tmp_path: Path):
    text = "one\u2028two\u2029three\u0085four\x1cfive\x0csix"
    path = tmp_path / "data.jsonl"
    line = json.dumps({"conversations": talk("x", text)}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n\r\n{line}\r\n".encode())
    first, second = read(path)
    assert parts(first)[1] == parts(second)[1] == (text,)
    assert second.origin.endswith(":3")


def test_where_media_paths_start(tmp_path: Path):
    row = {"image": "pics/a.jpg", "conversations": talk("<image>", "x")}
    path = write(tmp_path / "data.jsonl", [row])
    assert uris(read(path)[0]) == [str(tmp_path / "pics/a.jpg")]
    assert uris(read(path, media_folder="s3://bucket/media/")[0]) == [
        "s3://bucket/media/pics/a.jpg"
    ]
    assert uris(read_row(tmp_path, row | {"data_path": "sub/folder"})) == [
        str(tmp_path / "sub/folder/pics/a.jpg")
    ]
    assert uris(read_row(tmp_path, row | {"data_path": "/else"})) == ["/else/pics/a.jpg"]
    assert uris(read_row(tmp_path, row | {"data_path": "s3://b/m/"})) == ["s3://b/m/pics/a.jpg"]
    for uri in ("/abs/a.jpg", "s3://b/a.jpg", "https://host/a.jpg", "data:image/png;base64,AA=="):
        assert uris(read_row(tmp_path, row | {"image": uri})) == [uri]


def test_several_media_are_taken_by_their_tags_in_order(tmp_path: Path):
    row = {
        "image": ["a.jpg", "b.jpg"],
        "video": ["c.mp4"],
        "conversations": talk("<image>\nand <video> differ?", "Yes.", "And <image>", "No."),
    }
    example = read_row(tmp_path, row)
    assert [Path(uri).name for uri in uris(example)] == ["a.jpg", "c.mp4", "b.jpg"]
    assert parts(example) == [(0, "and", 1, "differ?"), ("Yes.",), ("And", 2), ("No.",)]


def test_a_video_may_be_a_list_of_its_frames(tmp_path: Path):
    row = {"video": [["1.jpg", "2.jpg"], "b.mp4"], "conversations": talk("<video><video>?", "x")}
    example = read_row(tmp_path, row)
    frames, clip = example.media
    assert frames.frames == (str(tmp_path / "1.jpg"), str(tmp_path / "2.jpg"))
    assert (frames.media_type, frames.uri) == ("video", frames.frames[0])
    assert (clip.frames, clip.uri) == ((), str(tmp_path / "b.mp4"))


def test_roles_and_keys_by_either_name(tmp_path: Path):
    turns = [
        {"role": "system", "content": "Be brief. <image>"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": " <image> is a tag\n"},
    ]
    example = read_row(tmp_path, {"conversations": turns, "image": None})
    assert [turn.role for turn in example.turns] == ["system", "user", "assistant"]
    # Only a user shows media, and an answer is learnt as it is.
    assert parts(example) == [("Be brief. <image>",), ("Hi",), (" <image> is a tag\n",)]


@pytest.mark.parametrize(
    ("row", "type_", "message"),
    [
        ({"image": "a.jpg", "conversations": talk("no tag", "x")}, "tag_mismatch", "1 more files"),
        (
            {"image": ["a.jpg", "b.jpg"], "conversations": talk("<image>", "x")},
            "tag_mismatch",
            "1 more files than <image> tags, first .*b.jpg",
        ),
        ({"conversations": talk("<image>", "x")}, "tag_mismatch", "more <image> tags than files"),
        (
            {"image": "a.jpg", "conversations": talk("<video>", "x")},
            "tag_mismatch",
            "more <video> tags",
        ),
        (
            {"video": ["a.mp4"], "conversations": talk("<video>", "x", "<video>", "y")},
            "tag_mismatch",
            "more <video> tags",
        ),
        # Only a user's tags show media.
        ({"image": "a.jpg", "conversations": talk("x", "<image>")}, "tag_mismatch", "1 more files"),
        ({"conversations": talk("x")}, "bad_row", r"must go human, gpt.*got \['user'\]"),
        ({"conversations": talk("x", "y", "z")}, "bad_row", "must go human, gpt"),
        ({"conversations": talk("x", "y")[::-1]}, "bad_row", "must go human, gpt"),
        ({"conversations": []}, "bad_row", "must go human, gpt"),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "bad_row", "got from 'bot'"),
        ({"conversations": [{"from": "human", "value": 5}]}, "bad_row", "needs `from`"),
        ({"conversations": ["x"]}, "bad_row", "a turn must be an object, got 'x'"),
        ({"conversations": "x"}, "bad_row", "needs `conversations`, a list"),
        ([1], "bad_row", "needs `conversations`"),
        ({"image": 5, "conversations": talk("<image>", "x")}, "bad_row", "must be text, got 5"),
        ({"image": "", "conversations": talk("<image>", "x")}, "bad_row", "must be text, got ''"),
        ({"video": [[]], "conversations": talk("<video>", "x")}, "bad_row", "must be text"),
        ({"conversations": talk("x", "  \n")}, "no_answer", "an answer is empty"),
        ({"conversations": talk("x", "y", "z", "")}, "no_answer", "an answer is empty"),
    ],
)
def test_a_wrong_row_is_a_named_problem(tmp_path: Path, row: Any, type_: str, message: str):
    good = {"conversations": talk("x", "y")}
    before, problem, after = read(write(tmp_path / "data.jsonl", [good, row, good]))
    assert isinstance(before, Conversation) and isinstance(after, Conversation)
    assert isinstance(problem, DataProblem)
    assert (problem.type, problem.origin) == (type_, f"{tmp_path}/data.jsonl:2")
    assert re.search(message, problem.message)


def test_a_line_that_is_no_json_is_that_lines_problem(tmp_path: Path):
    path = tmp_path / "data.jsonl"
    path.write_text('{"conversations": [}\n' + json.dumps({"conversations": talk("a", "b")}))
    broken, good = read(path)
    assert (broken.type, broken.origin) == ("bad_row", f"{path}:1")
    assert "not valid JSON" in broken.message
    assert isinstance(good, Conversation)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "has no rows"),
        (b"[{]", "is not valid JSON: .*column 3"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, content: bytes | None, message: str):
    path = tmp_path / "data.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ManifestError, match=f"data.json {message}"):
        read(path)


class TestShares:
    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        """40 rows: two questions about each of 20 pictures."""
        rows = [
            {"image": f"{k // 2}.jpg", "conversations": talk("<image>?", f"answer {k}")}
            for k in range(40)
        ]
        return write(tmp_path / "data.jsonl", rows)

    def mixed(self, *specs: Any, share_media: bool = False, seed: int = 0) -> list[str]:
        made = [DataSpec.model_validate(as_data(spec)) for spec in specs]
        groups = mix(made, Storage(), share_media=share_media, seed=seed)
        return [str(c.turns[-1].parts[0]) for group in groups for c in group]

    def test_all_half_and_more(self, data: Path):
        whole = self.mixed(str(data))
        assert whole == [f"answer {k}" for k in range(40)]
        half = self.mixed(f"{data}%50")
        assert len(half) == len(set(half)) == 20
        assert half == self.mixed(f"{data}%50")
        assert half != self.mixed(f"{data}%50", seed=1)
        more = self.mixed(f"{data}%250")
        assert {more.count(text) for text in whole} == {2, 3}
        assert len(more) == 100
        assert len(self.mixed(f"{data}%12.5")) == 5

    def test_each_data_set_by_its_own_share(self, data: Path):
        assert len(self.mixed(f"{data}%25", {"conversations": str(data), "share": 200})) == 90

    def test_questions_about_one_picture_stay_together(self, data: Path):
        half = self.mixed(f"{data}%50", share_media=True)
        pairs = {(half[k], half[k + 1]) for k in range(0, 20, 2)}
        assert pairs <= {(f"answer {k}", f"answer {k + 1}") for k in range(0, 40, 2)}
        assert len(pairs) == 10

    def test_a_share_of_no_sample_is_an_error(self, data: Path):
        with pytest.raises(ManifestError, match="a share of 1% of 40 samples is less than one"):
            self.mixed(f"{data}%1")

    def test_wrong_rows_stop_before_training(self, data: Path):
        data.write_text(data.read_text() + "\n{}\n[]")
        with pytest.raises(ManifestError, match=r"2 of 42 examples are wrong, first .*jsonl:41: "):
            self.mixed(str(data))

    def test_notation(self):
        assert as_data("a%b.jsonl") == {"conversations": "a%b.jsonl"}
        assert as_data("s3://b/a.json%33.3") == {"conversations": "s3://b/a.json", "share": 33.3}
        spec = {"output": "o", "model": {"source": "m"}, "data": ["a.jsonl%0"]}
        with pytest.raises(JobFileError, match="share"):
            check(FinetuneJob, spec, "job")


class TestAnnotations:
    """Tables: the output of annotate itself, and hand-written gold."""

    def read(self, uri: Path, *tasks: Any, **settings: Any) -> list[Any]:
        spec = {"annotations": str(uri), "tasks": tasks or ("caption",), **settings}
        job = {"output": "o", "model": {"source": "m"}, "data": [spec]}
        return read_data(check(FinetuneJob, job, "job").data[0], Storage())

    @pytest.fixture
    def gold(self, tmp_path: Path) -> Path:
        box = {"x1": 64.0, "y1": 36.0, "x2": 320.0, "y2": 180.0}
        rows = [
            {"uri": "pics/a.jpg", "caption": "A cat.", "split": "train"},
            {"uri": "clips/b.mp4", "caption": "A dog runs.", "split": "train"},
            {"uri": "pics/a.jpg", "objects": [{"label": "cat", "box": box}], "split": "test"},
            {"uri": "s3://b/c.png", "caption": None, "split": "test"},
        ]
        for row in rows:
            row |= {"width": 640, "height": 360}
        names = ("uri", "caption", "objects", "split", "width", "height")
        path = tmp_path / "gold.parquet"
        pq.write_table(pa.Table.from_pylist([{n: r.get(n) for n in names} for r in rows]), path)
        return path

    def test_hand_written_gold(self, gold: Path, tmp_path: Path):
        cat, dog, boxes = self.read(gold, "caption", {"objects": {"labels": ["cat", "dog"]}})
        assert uris(cat) == [str(tmp_path / "pics/a.jpg")]
        assert parts(cat) == [(0, "Describe this image in detail."), ("A cat.",)]
        assert [item.media_type for item in dog.media] == ["video"]  # by its extension
        assert parts(dog)[0] == (0, "Describe this video in detail.")
        question, answer = parts(boxes)
        assert '"cat, dog"' in question[1]
        assert answer == ('```json\n[{"bbox_2d": [100, 100, 500, 500], "label": "cat"}]\n```',)
        assert [e.origin for e in (cat, dog, boxes)] == [
            f"{gold}:{place}" for place in ("1/caption", "2/caption", "3/objects")
        ]

    def test_columns_that_only_later_files_have(self, tmp_path: Path):
        """A job of another night asked one question more, and one with more members."""
        rows = [
            {"uri": "a.jpg", "caption": "A."},
            {"uri": "b.jpg", "caption": "B.", "season": "spring", "box": {"x": 1}},
            {"uri": "c.jpg", "caption": "C.", "season": "autumn", "box": {"x": 1, "y": 2}},
        ]
        for k, row in enumerate(rows):
            pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"part-{k}.parquet")
        season = {"name": "season", "task": "custom", "prompt": "Which season?"}
        answers = [parts(e)[1][0] for e in self.read(tmp_path, "caption", season)]
        assert answers == ["A.", "B.", "spring", "C.", "autumn"]
        (only,) = self.read(tmp_path, season, where="box.y = 2")
        assert parts(only) == [(0, "Which season?"), ("autumn",)]

    def test_where_is_sql_over_the_columns(self, gold: Path):
        (only,) = self.read(gold, where="split = 'train' AND uri LIKE '%.mp4'")
        assert parts(only)[1] == ("A dog runs.",)
        with pytest.raises(ManifestError, match=r"no answers to learn: .*selects none"):
            self.read(gold, where="len(objects) > 0 AND objects[1].label = 'cat'")

    @pytest.mark.parametrize(
        ("where", "message"),
        [
            ("splt = 'train'", 'where: .*"splt" not found'),
            ("split = ", "where: .*syntax error"),
            ("EXISTS (SELECT * FROM read_text('/etc/passwd'))", "where: .*disabled"),
            ("EXISTS (SELECT * FROM '/etc/passwd')", "where: .*(disabled|does not exist)"),
            ("true; SET threads = 1", "where: Parser Error"),
            ("true; COPY annotations TO '/tmp/stolen.csv'", "where: Parser Error"),
        ],
    )
    def test_sql_that_is_wrong_or_reaches_out(self, gold: Path, where: str, message: str):
        with pytest.raises(ManifestError, match=f"(?s){message}"):
            self.read(gold, where=where)

    def test_columns_and_files_that_are_missing(self, gold: Path, tmp_path: Path):
        with pytest.raises(ManifestError, match=r"gold.parquet has no column \['ocr'\]; it has"):
            self.read(gold, "ocr")
        with pytest.raises(ManifestError, match="none.parquet does not exist"):
            self.read(tmp_path / "none.parquet")
        (tmp_path / "broken.parquet").write_bytes(b"no Parquet")
        with pytest.raises(ManifestError, match="broken.parquet is not a Parquet table"):
            self.read(tmp_path / "broken.parquet")
        pq.write_table(pa.table({"caption": ["x"]}), tmp_path / "no-uri.parquet")
        with pytest.raises(ManifestError, match="no-uri.parquet has no column uri"):
            self.read(tmp_path / "no-uri.parquet")

    def rows(self, tmp_path: Path, *rows: dict[str, Any], task: str = "caption") -> list[Any]:
        pq.write_table(pa.Table.from_pylist(list(rows)), tmp_path / "rows.parquet")
        return self.read(tmp_path / "rows.parquet", task)

    def test_rows_that_cannot_be_learnt(self, tmp_path: Path):
        def problem(task: str, **row: Any) -> tuple[str, str]:
            (found,) = self.rows(tmp_path, row, task=task)
            return found.type, found.message

        event = [{"start_seconds": 0.0, "end_seconds": 1.0, "caption": "x"}]
        box = [{"label": "x", "box": {"x1": 0.0, "y1": 0.0, "x2": 1.0, "y2": 1.0}}]
        assert problem("events", uri="a.jpg", events=event) == (
            "bad_row",
            "events is a task for video only",
        )
        sizeless = "boxes and points need the media's"
        assert problem("objects", uri="a.jpg", objects=box)[1].startswith(sizeless)
        point = [{"label": "x", "point": {"x": 1.0, "y": 2.0}}]
        assert problem("points", uri="a.jpg", points=point)[1].startswith(sizeless)
        far = [{"label": "x", "point": {"x": 1.0, "y": 12.5}}]
        assert problem("points", uri="a.jpg", points=far, width=10, height=10) == (
            "bad_box",
            "[1.0, 12.5] is outside of the 10 x 10 pixels that the row gives its media",
        )
        assert problem("caption", uri="a.xyz", caption="x")[1].startswith("media_type must be")
        assert problem("caption", uri="a.jpg", caption=" ")[0] == "no_answer"
        assert problem("caption", uri="a.jpg", caption=5)[0] == "bad_row"
        assert problem("events", uri="a.mp4", events=[{"from": 1}])[0] == "bad_row"

    def test_a_time_span_and_a_frame_list(self, tmp_path: Path):
        clip = {"uri": "a.mp4", "caption": "x", "start_seconds": 2.0, "end_seconds": 5.0}
        (found,) = self.rows(tmp_path, clip)
        assert [(m.start_seconds, m.end_seconds) for m in found.media] == [(2.0, 5.0)]
        listed = {"uri": "1.jpg", "caption": "x", "frames": ["1.jpg", "2.jpg"], "sample_fps": 4.0}
        (found,) = self.rows(tmp_path, listed)
        assert found.media[0].frames == (str(tmp_path / "1.jpg"), str(tmp_path / "2.jpg"))
        assert (found.media[0].media_type, found.media[0].sample_fps) == ("video", 4.0)
        # The output table has the first frame's uri only: alone, it would be another video.
        media = {"media_type": "video", "container": "frames", "width": 9, "height": 9}
        (problem,) = self.rows(tmp_path, {"uri": "1.jpg", "caption": "x", "media": media})
        assert (problem.type, "column `frames`" in problem.message) == ("bad_row", True)

    def test_a_folder_of_parquet(self, gold: Path, tmp_path: Path):
        folder = tmp_path / "corrected" / "day=1"
        folder.mkdir(parents=True)
        gold.rename(folder / "part.parquet")
        (tmp_path / "corrected" / "README.md").write_text("not Parquet")
        cat, _ = self.read(tmp_path / "corrected", where="day = 1")
        assert uris(cat) == [str(tmp_path / "corrected/pics/a.jpg")]
        with pytest.raises(ManifestError, match="holds no Parquet files"):
            self.read(tmp_path / "corrected" / "empty")

    def test_what_annotate_wrote(self, annotated):
        """Its output folder as it is: each answer that was read is learnt as the model's own."""
        _, output, _ = annotated
        names = ("caption", "events", "ocr", "text_spans", "objects")
        examples = self.read(output, *names)
        assert all(isinstance(example, Conversation) for example in examples)
        table = pq.ParquetDataset(output / "annotations").read().to_pylist()
        kept = [(row, task) for row in table for task in names if row[task] is not None]
        assert len(examples) == len(kept) > 20
        by_unit = {(row["uri"], row["sampling"]["start_seconds"], t): row for row, t in kept}
        rng = random.Random(0)
        for example in rng.sample(examples, 15):
            task = example.origin.rpartition("/")[2]
            (item,) = example.media
            row = by_unit[item.uri, item.start_seconds, task]
            assert item.media_id == row["media_id"]
            assert item.end_seconds == row["sampling"]["end_seconds"]
            (asked,) = [r["prompt"] for r in row["responses"] if r["task"] == task]
            assert parts(example)[0] == (0, asked)
            view = View(
                media_type=row["media"]["media_type"],
                width=row["media"]["width"],
                height=row["media"]["height"],
                pts_seconds=tuple(row["sampling"]["pts_seconds"] or ()),
            )
            answer = parse_answer(parts(example)[1][0], Question(task=task), view)
            assert answer.value == row[task]
        where = "status <> 'failed' AND media.media_type = 'video' AND uri LIKE '%variable%'"
        chosen = self.read(output, "caption", where=where)
        assert {Path(e.media[0].uri).stem for e in chosen} == {"variable"}
