"""Gold annotations are only gold if the pictures show them: what is drawn is measured here."""

import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.demo.random_scene import BACKGROUNDS, SceneSpec, irregular_times, random_scene
from jobs.demo.random_text import WORDS, random_line
from jobs.demo.scene import COLORS, Background, Box, Label, Scene, Shape, draw, gold
from schemas.errors import UserError
from scripts.demo_model.fonts import FONTS, font_file
from scripts.demo_model.plan_file import CLIP_KINDS, File, plan_file
from scripts.demo_model.render_dataset import GOLD, Counts, render_dataset
from scripts.demo_model.write_file import write_clip

for package in {font.partition("/")[0] for font in FONTS}:
    pytest.importorskip(package, reason="the data set needs fonts: pip install -e '.[dataset]'")


def stills(count: int) -> list[Scene]:
    return [plan_file("train", "image", n).scene for n in range(count)]


def clips(count: int) -> list[Scene]:
    return [plan_file("train", "video", n).scene for n in range(count)]


def test_in_a_quiet_clip_nothing_happens(tmp_path) -> None:
    rows = rows_of(render_dataset(tmp_path, "validation", Counts(quiet=4), num_workers=1))
    assert [row["uri"].partition("/")[0] for row in rows] == ["quiet"] * 4
    for row in rows:
        assert row["events"] == row["objects"] == []
        assert row["caption"] == ("Text and nothing else." if row["text_spans"] else "Nothing.")
        assert (tmp_path / "validation" / row["uri"]).stat().st_size > 100


def moments(scene: Scene) -> list[float]:
    if math.isinf(scene.duration_seconds):
        return [0.0]
    return [n / 8 for n in range(round(8 * scene.duration_seconds))]


def boxes(scene: Scene, t: float) -> list[Box]:
    return [box for thing in (*scene.shapes, *scene.labels) if (box := thing.box(t))]


def apart(one: Box, other: Box) -> bool:
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def ink(scene: Scene, t: float) -> tuple[int, int, int, int] | None:
    """The box of all that is drawn, without the background."""
    return draw(replace(scene, background=None), t).getchannel("A").getbbox()


def box_at(x1: float, y1: float, x2: float, y2: float) -> dict[str, float]:
    return {"x1": x1, "y1": y1, "x2": x2, "y2": y2}


def corners(box: dict[str, float]) -> list[float]:
    return [box["x1"], box["y1"], box["x2"], box["y2"]]


def rows_of(place: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(place / "gold.parquet").to_pylist()
    return rows


def test_a_still_in_words() -> None:
    circle = Shape(kind="circle", color="red", size=40, start=(30, 50), end=(30, 50))
    star = Shape(kind="star", color="orange", size=40, start=(150, 40), end=(150, 40))
    square = Shape(kind="square", color="blue", size=40, start=(90, 40), end=(90, 40))
    labels = tuple(
        Label(text=text, position=(9, y), size=20) for text, y in (("B", 120), ("A", 90))
    )
    scene = Scene(width=200, height=150, background=None, shapes=(star, circle), labels=labels)
    answer = gold(scene)
    assert answer["caption"] == "A red circle and an orange star above text."
    assert answer["ocr"] == "A\nB"
    assert answer["objects"] == [
        {"label": "circle", "box": box_at(10, 30, 50, 70), "pts_seconds": None},
        {"label": "star", "box": box_at(130, 20, 170, 60), "pts_seconds": None},
    ]
    assert [span["text"] for span in answer["text_spans"]] == ["A", "B"]
    assert answer["events"] is None

    bare = gold(replace(scene, shapes=(star, circle, square), labels=()))
    assert bare["caption"] == "A red circle, a blue square and an orange star."
    assert (bare["ocr"], bare["text_spans"]) == ("There is no text.", [])
    header = (Label(text="A", position=(9, 2), size=16),)
    answer = gold(replace(scene, shapes=(star,), labels=header))
    assert answer["caption"] == "An orange star below text."


def test_a_sign_is_its_text(tmp_path: Path) -> None:
    place = render_dataset(tmp_path, "train", Counts(signs=12))
    rows = pq.read_table(place / "gold.parquet").to_pylist()
    assert [Path(row["uri"]).parent.name for row in rows] == ["signs"] * 12
    for row in rows:
        (span,) = row["text_spans"]
        assert row["ocr"] == span["text"] and not row["objects"]
        box = span["box"]
        assert 0 <= box["x1"] < box["x2"] <= row["width"]
        assert 0 <= box["y1"] < box["y2"] <= row["height"]
        with Image.open(place / row["uri"]) as image:
            assert image.size == (row["width"], row["height"])


def test_a_clip_in_words() -> None:
    late = Shape(
        kind="circle", color="red", size=40, start=(30, 50), end=(30, 50),
        appears_seconds=1.5, vanishes_seconds=4.0,
    )  # fmt: skip
    early = Shape(
        kind="star", color="orange", size=40, start=(150, 40), end=(110, 40), motion="left",
        appears_seconds=0.5, vanishes_seconds=2.5,
    )  # fmt: skip
    label = Label(text="EXIT", position=(9, 100), size=20)
    scene = Scene(
        width=200, height=150, background=None, shapes=(late, early), labels=(label,),
        duration_seconds=4.0,
    )  # fmt: skip
    answer = gold(scene, start_seconds=10.0)
    assert answer["caption"] == "An orange star, then a red circle above text."
    assert answer["events"] == [
        {"start_seconds": 10.5, "end_seconds": 12.5, "caption": "An orange star moves left."},
        {"start_seconds": 11.5, "end_seconds": 14.0, "caption": "A red circle stands still."},
    ]
    assert answer["objects"] == [
        {"label": "star", "box": box_at(130, 20, 170, 60), "pts_seconds": 10.5},
        {"label": "circle", "box": box_at(10, 30, 50, 70), "pts_seconds": 11.5},
    ]
    assert [span["pts_seconds"] for span in answer["text_spans"]] == [10.0]


def test_nothing_touches_anything_and_all_is_large_enough() -> None:
    for scene in stills(200) + clips(200):
        area = math.sqrt(scene.width * scene.height)
        assert len({shape.color for shape in scene.shapes}) == len(scene.shapes)
        assert all(shape.size >= 0.13 * area for shape in scene.shapes)
        assert all(label.size >= scene.height / 10 for label in scene.labels)
        for t in moments(scene):
            shown = boxes(scene, t)
            assert all(apart(*pair) for pair in combinations(shown, 2)), scene
            for x1, y1, x2, y2 in shown:
                assert 0 <= x1 < x2 <= scene.width and 0 <= y1 < y2 <= scene.height, scene


def test_boxes_are_those_of_the_ink() -> None:
    for scene in stills(200):
        answer = gold(scene)
        alone = [replace(scene, shapes=(), labels=(label,)) for label in scene.labels]
        assert [list(ink(one, 0.0) or ()) for one in alone] == [
            corners(span["box"]) for span in answer["text_spans"]
        ]
        for shape, found in zip(scene.shapes, answer["objects"], strict=True):
            drawn = ink(replace(scene, shapes=(shape,), labels=()), 0.0)
            assert drawn == tuple(corners(found["box"]))


def test_a_colour_is_in_its_box_and_nowhere_else() -> None:
    for scene in stills(100):
        pixels = np.asarray(draw(replace(scene, labels=()), 0.0))
        for shape, found in zip(scene.shapes, gold(scene)["objects"], strict=True):
            x1, y1, x2, y2 = map(round, corners(found["box"]))
            mask = (pixels == COLORS[shape.color]).all(axis=-1)
            assert mask[y1:y2, x1:x2].mean() > 0.25
            mask[y1:y2, x1:x2] = False
            assert not mask.any()


def test_shapes_come_and_go_on_the_half_second_one_at_a_time() -> None:
    for scene in clips(200):
        starts = [shape.appears_seconds for shape in scene.shapes]
        assert len(set(starts)) == len(starts)
        for shape in scene.shapes:
            appears, vanishes = shape.appears_seconds, shape.vanishes_seconds
            assert (2 * appears).is_integer() and (2 * vanishes).is_integer()
            assert 0 <= appears <= vanishes - 1.0 and vanishes <= scene.duration_seconds


def test_shapes_stand_still_or_move_clearly_one_way() -> None:
    shapes = [(scene, shape) for scene in clips(200) for shape in scene.shapes]
    assert {shape.motion for _, shape in shapes} == {"", "left", "right", "up", "down"}
    for scene, shape in shapes:
        right, down = (end - start for start, end in zip(shape.start, shape.end, strict=True))
        if shape.motion in ("left", "right"):
            assert down == 0 and abs(right) >= 0.15 * scene.width
            assert (right > 0) == (shape.motion == "right")
        elif shape.motion:
            assert right == 0 and abs(down) >= 0.15 * scene.height
            assert (down > 0) == (shape.motion == "down")
        else:
            assert right == down == 0


def test_every_shape_stands_out_from_every_background() -> None:
    for background in BACKGROUNDS:
        for color in COLORS.values():
            assert np.linalg.norm(np.subtract(background, color)) > 70, (background, color)


@pytest.mark.parametrize("pattern", ["", "stripes", "checks", "blotches"])
def test_patterns_are_soft(pattern: str) -> None:
    grey = (120, 130, 140)
    paper = Background(top=grey, bottom=grey, pattern=pattern, strength=8, period=20, seed=1)
    pixels = np.asarray(draw(Scene(width=200, height=150, background=paper), 0.0)).astype(int)
    assert np.abs(pixels - grey).max() <= 8
    assert (pixels.std() > 0) and ((pixels - grey).std() > 2) == bool(pattern)


def test_lines_are_short_and_of_the_letters_of_signs() -> None:
    rng = random.Random(0)
    lines = [random_line(rng) for _ in range(2000)]
    assert all(1 <= len(line) <= 12 for line in lines)
    assert set("".join(lines)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789- ")
    assert len(WORDS) == len(set(WORDS)) >= 140
    unknown = [line for line in lines if line.isalpha() and line not in WORDS]
    assert 0.2 < len(unknown) / len(lines) < 0.3


def test_irregular_frames_include_every_half_second() -> None:
    times = irregular_times(random.Random(0), 3.0)
    assert list(times) == sorted(set(times))
    assert {n / 2 for n in range(6)} < set(times)
    assert times[-1] < 3.0


def test_a_missing_font_says_what_to_install() -> None:
    with pytest.raises(UserError, match="pip install 'font-roboto'"):
        font_file("font_missing/Missing.ttf")


def test_splits_and_seeds_differ() -> None:
    files = [
        plan_file(split, "image", 0, seed)
        for split in ("train", "validation", "test")
        for seed in (0, 1)
    ]
    assert len({file.scene for file in files}) == len(files)
    assert plan_file("train", "video", 3) == plan_file("train", "video", 3)


def test_same_seed_gives_the_same_files_whatever_the_workers(tmp_path: Path) -> None:
    for name, num_workers in (("one", 1), ("two", 2)):
        counts = Counts(images=6, clips=4)
        render_dataset(tmp_path / name, "test", counts, num_workers=num_workers)
    names = {path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*")}
    assert len(names) == 6 + 4 + 3
    assert names == {path.relative_to(tmp_path / "two") for path in (tmp_path / "two").rglob("*.*")}
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_a_larger_count_only_adds_files(tmp_path: Path) -> None:
    place = render_dataset(tmp_path, "train", Counts(images=3, clips=1), num_workers=1)
    before = {path: path.stat().st_mtime_ns for path in place.glob("*/*")}
    rows = rows_of(place)
    render_dataset(tmp_path, "train", Counts(images=5, clips=2), num_workers=1)
    assert len(before) == 4
    assert len(list(place.glob("*/*"))) == 7
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [row for row in rows_of(place) if row in rows] == rows
    assert len(rows_of(place)) == 7
    with pytest.raises(UserError, match="has files of seed 0, not 1"):
        render_dataset(tmp_path, "train", Counts(images=1), seed=1)


def test_tables_name_every_file(tmp_path: Path) -> None:
    place = render_dataset(tmp_path, "validation", Counts(images=4, clips=2), num_workers=1)
    assert pq.read_schema(place / "gold.parquet").equals(GOLD)
    rows = rows_of(place)
    assert {row["uri"] for row in rows} == {
        path.relative_to(place).as_posix() for path in place.glob("*/*")
    }
    assert all(row["media_id"] == f"validation/{row['uri']}" for row in rows)
    assert [row["media_type"] for row in rows] == ["image"] * 4 + ["video"] * 2
    assert [row["duration_seconds"] is None for row in rows] == [True] * 4 + [False] * 2
    lines = (place / "manifest.jsonl").read_text().splitlines()
    for entry, row in zip(map(json.loads, lines), rows, strict=True):
        assert entry == {
            **{name: row[name] for name in ("uri", "media_id", "media_type", "codec")},
            "num_shapes": len(row["objects"]),
            "num_lines": len(row["text_spans"]),
        }


def seen(pixels: np.ndarray, box: dict[str, float]) -> str:
    """The name of the colour in the middle of the box; nothing if it is far from all of them."""
    x, y = round((box["x1"] + box["x2"]) / 2), round((box["y1"] + box["y2"]) / 2)
    middle = np.median(pixels[y - 4 : y + 5, x - 4 : x + 5].reshape(-1, 3), axis=0)
    away = {name: float(np.linalg.norm(middle - color)) for name, color in COLORS.items()}
    nearest = min(away, key=lambda name: away[name])
    return nearest if away[nearest] < 60 else ""


def test_images_show_their_gold_through_noise_and_compression(tmp_path: Path) -> None:
    place = render_dataset(tmp_path, "train", Counts(images=60), num_workers=1)
    for n, row in enumerate(rows_of(place)):
        with Image.open(place / row["uri"]) as image:
            assert (image.format or "").lower() == row["codec"]
            assert image.size == (row["width"], row["height"])
            pixels = np.asarray(image.convert("RGB"))
        colors = [shape.color for shape in plan_file("train", "image", n).scene.shapes]
        assert [seen(pixels, found["box"]) for found in row["objects"]] == colors


def first_of_each_kind() -> Iterator[File]:
    """A clip of every container and codec, one of variable rate and one that starts late."""
    wanted = {(suffix, codec) for suffix, codec, _, _ in CLIP_KINDS} | {"variable", "late"}
    for n in range(1000):
        file = plan_file("train", "video", n)
        traits = {(Path(file.uri).suffix, file.codec)}
        traits |= {"variable"} if file.pts_seconds else set()
        traits |= {"late"} if file.start_seconds else set()
        if traits & wanted:
            wanted -= traits
            yield file
    assert not wanted


def test_clips_show_their_gold_at_its_times(tmp_path: Path) -> None:
    for file in first_of_each_kind():
        path = tmp_path / Path(file.uri).name
        write_clip(file, path)
        with av.open(str(path)) as container:
            shown = {
                round(frame.time, 3): frame.to_ndarray(format="rgb24")
                for frame in container.decode(video=0)
            }
        answer = gold(file.scene, start_seconds=file.start_seconds)
        start = file.start_seconds
        assert min(shown) == start
        assert max(shown) < start + file.scene.duration_seconds
        assert {start + n / 2 for n in range(round(2 * file.scene.duration_seconds))} <= set(shown)
        by_time = sorted(file.scene.shapes, key=lambda shape: shape.appears_seconds)
        for shape, found, event in zip(by_time, answer["objects"], answer["events"], strict=True):
            assert seen(shown[event["start_seconds"]], found["box"]) == shape.color, file.uri
            before, after = event["start_seconds"] - 0.5, event["end_seconds"]
            if before in shown:
                assert seen(shown[before], found["box"]) == "", file.uri
            (x, y), half = shape.end, shape.size / 2
            end = box_at(x - half, y - half, x + half, y + half)
            if after in shown:
                assert seen(shown[after], end) == "", file.uri
            if not shape.motion:
                assert seen(shown[max(t for t in shown if t < after)], end) == shape.color


def test_a_scene_without_room_for_text_or_time_is_still_drawn() -> None:
    for n in range(50):
        tiny = random_scene(random.Random(n), 20, 14)
        assert tiny.labels == ()
        flash = random_scene(random.Random(n), 320, 240, SceneSpec(duration_seconds=0.1))
        assert len(flash.shapes) == 1
        assert draw(flash, 0.05).size == (320, 240)
