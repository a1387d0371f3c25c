"""The examples run, on real media, and give what their docstrings promise."""

import json
import shutil
from pathlib import Path

import duckdb
import jsonschema
import pyarrow.parquet as pq
import pytest
from PIL import Image

from examples import annotate_folder, corrected_labels, own_engine, own_task, query_table
from tests.support.paths import ROOT

EXAMPLES = {path.stem for path in (ROOT / "examples").glob("[a-z]*.py")}


def copy_media(archive: Path, folder: Path, *names: str) -> Path:
    """Copy some of the archive's files into a folder of their own."""
    folder.mkdir()
    for name in names:
        shutil.copy(archive / name, folder)
    return folder


def test_every_example_has_a_test():
    tests = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert len(EXAMPLES) == 5 and tests >= EXAMPLES


def test_annotate_folder(archive, tmp_path, no_ray, capsys):
    names = ("images/scene-0.jpg", "images/truncated.jpg", "clips/vp9.webm")
    folder = copy_media(archive, tmp_path / "media", *names)
    annotate_folder.main(str(folder), str(tmp_path / "output"))
    printed = [line.split("\t") for line in capsys.readouterr().out.splitlines() if "\t" in line]
    rows = {Path(uri).name: (status, text) for uri, status, text in printed}
    assert set(rows) == {Path(name).name for name in names}
    gold = map(json.loads, (archive / "gold.jsonl").read_text().splitlines())
    captions = {Path(row["uri"]).name: row.get("caption") for row in gold}
    assert rows["scene-0.jpg"] == ("ok", captions["scene-0.jpg"])
    assert rows["truncated.jpg"][0] == "failed" and "truncated" in rows["truncated.jpg"][1]


def test_query_table(demonstrated, capsys):
    output = demonstrated / "demo" / "output"
    query_table.main(str(output))
    printed = capsys.readouterr().out
    assert all(title in printed for title in query_table.QUERIES) and "media_unreadable" in printed
    with query_table.connect(str(output)) as connection:
        words, events, objects, failed = map(connection.sql, query_table.QUERIES.values())
        assert words.columns == ["file", "pts_seconds", "text"] and len(words) > 10
        seconds = [row[3] for row in events.fetchall()]
        assert len(seconds) == 5 and seconds == sorted(seconds, reverse=True)
        labels = {row[0] for row in objects.fetchall()}
        assert labels >= {"circle", "square", "triangle", "star"}
        assert failed.fetchall()[0][:2] == ("media_unreadable", 4)


def test_own_task(archive, tmp_path, no_ray, capsys):
    folder = copy_media(archive, tmp_path / "media", "images/plate-1.png", "images/scene-0.jpg")
    own_task.main(str(folder), str(tmp_path / "output"))
    printed = [line.split("\t") for line in capsys.readouterr().out.splitlines() if "\t" in line]
    ((uri, colour, shapes),) = printed  # it asks about *.png only
    assert Path(uri).name == "plate-1.png"
    jsonschema.validate({"colour": colour, "shapes": int(shapes)}, own_task.SCHEMA)


def test_own_engine(archive, capsys):
    names = ("images/gray.jpg", "images/plate-1.png", "clips/vp9.webm", "images/truncated.jpg")
    own_engine.main(*(str(archive / name) for name in names))
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in lines] == ["ok", "ok", "ok", "failed"]
    for name, (_, _, text) in zip(names[:2], lines, strict=False):
        pixels = Image.open(archive / name).convert("L").resize((1, 1), Image.Resampling.BOX)
        assert text == f"The picture is {'bright' if pixels.getpixel((0, 0)) > 127 else 'dark'}."


@pytest.fixture
def labels(demonstrated, tmp_path) -> Path:
    """A Label Studio export: three images as predicted, the caption of the first one corrected."""
    corrected_labels.export(str(demonstrated / "demo" / "output"), str(tmp_path))
    tasks = json.loads((tmp_path / "labels" / "images.json").read_text())[:3]
    for task in tasks:
        task["annotations"] = [{"result": task["predictions"][0]["result"]}]
    for result in tasks[0]["annotations"][0]["result"]:
        if result["from_name"] == "caption":
            result["value"]["text"] = ["A corrected caption."]
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(tasks))
    return path


def test_corrected_labels(demonstrated, labels, tmp_path):
    output = demonstrated / "demo" / "output"
    corrected_labels.train(str(output), str(labels), str(tmp_path))
    corrected = pq.read_table(tmp_path / "corrected.parquet")
    assert corrected.num_rows == 3 and "A corrected caption." in corrected["caption"].to_pylist()
    changed = duckdb.sql(
        f"SELECT count(*) FROM '{tmp_path}/corrected.parquet' AS now "
        f"JOIN '{output}/annotations/*/*.parquet' AS before USING (unit_id) "
        "WHERE now.caption IS DISTINCT FROM before.caption OR now.ocr IS DISTINCT FROM before.ocr"
    )
    assert changed.fetchall() == [(1,)]
    steps = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert sum('"loss"' in step for step in steps) == 3
    assert (tmp_path / "run" / "model" / "config.json").exists()
