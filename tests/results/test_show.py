"""`reelscribe show`, and the Python functions."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from jobs.api import read
from jobs.cli.main import main
from pipeline.media.decode import decode_unit
from pipeline.storage.storage import Storage
from schemas.errors import UserError
from schemas.tables.manifest import default_media_id
from tests.support.clips import write_clip
from tests.support.units import (
    answer,
    clip_unit,
    draw_image,
    failed_unit,
    image_unit,
    video_unit,
    write_table,
)


def show(*arguments: object):
    return CliRunner().invoke(main, ["show", *map(str, arguments)])


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "colors.mp4"
    frames = [Image.new("RGB", (320, 192), ("red", "lime", "blue")[k // 10]) for k in range(30)]
    write_clip(path, frames, fps=10)
    return path


def test_what_the_model_saw_is_written_pixel_for_pixel(clip: Path, tmp_path: Path):
    unit = video_unit(clip, answer("caption", "Three colours.\x1b[31m"))
    output = write_table(tmp_path / "out", unit, failed_unit("bad"))
    sheet = tmp_path / "sheet.png"
    result = show(
        *(output, "colors.mp4", "--contact-sheet", sheet),
        *("--what-the-model-saw", tmp_path / "frames"),
    )
    assert result.exit_code == 0, result.output
    assert "Describe this video" in result.output and "Three colours.\\x1b[31m" in result.output
    files = sorted((tmp_path / "frames").iterdir())
    assert [f.name for f in files[:2]] == ["00-000-0.000s.png", "00-001-0.500s.png"]
    fed = decode_unit(unit, Storage()).pixels
    assert len(files) == len(fed) == 6
    for file, frame in zip(files, fed, strict=True):
        assert np.array_equal(np.asarray(Image.open(file)), frame)
    with Image.open(sheet) as image:
        cell = (320 + 8, 192 + 8)
        assert image.size == (4 * cell[0] + 8, 2 * cell[1] + 8)
        assert image.getpixel((8 + 160, 8 + 96)) == pytest.approx((254, 0, 0), abs=12)


def test_show_says_which_unit_it_does_not_know(tmp_path: Path):
    path = draw_image(tmp_path / "a.png")
    units = [image_unit(path, unit_id=f"u{k}", media_id=f"m{k}") for k in range(2)]
    output = write_table(tmp_path / "out", *units, failed_unit("bad", "it is \x1b[31m broken"))
    for name, message in (("nothing", "no unit has the id"), ("a.png", "matches 2 units")):
        result = show(output, name)
        assert result.exit_code == 2 and message in result.output
    assert "media_unreadable at decode" in show(output, "bad").output
    result = show(output, "bad", "--contact-sheet", tmp_path / "x.png")
    assert result.exit_code == 2 and "the model saw none" in result.output
    path.unlink()
    result = show(output, "u0", "--contact-sheet", tmp_path / "x.png")
    assert result.exit_code == 2 and "does not exist" in result.output


@pytest.mark.parametrize(
    "name", ["u-b", "my id", "s3://bucket/b.png", "bucket/b.png", "https://h/b.png?X-Sig=secret"]
)
def test_a_unit_is_named_by_its_id_its_media_or_its_uri(tmp_path: Path, name: str):
    path = draw_image(tmp_path / "x.png")
    uri = name if "://" in name else "s3://bucket/b.png"
    media_id = default_media_id([uri]) if "?" in uri else "my id"  # rows have no queries
    units = [
        image_unit(path, unit_id="u-b1", media_id=media_id, uri=uri),
        image_unit(path, unit_id="u-a1", media_id="my id 2", uri="s3://bucket/b.png.png"),
    ]
    result = show(write_table(tmp_path / "out", *units), name)
    assert result.exit_code == 0 and "u-b1" in result.output and "secret" not in result.output
    if "?" in uri:  # of the same path, but other media
        assert show(tmp_path / "out", uri + "2").exit_code == 2


def test_of_many_matches_some_are_named_and_the_others_counted(tmp_path: Path):
    units = [clip_unit("long", start, start + 10.0) for start in range(0, 120, 10)]
    output = write_table(tmp_path / "out", *units, clip_unit("short"))
    for name in ("long", "/archive/long.mp4", "long-"):
        result = show(output, name)
        assert result.exit_code == 2 and "matches 12 units" in result.output
        assert "(from 0 s), " in result.output and result.output.rstrip().endswith(" and 7 more")
    result = show(output, "nothing")
    assert result.exit_code == 2 and result.output.rstrip().endswith(" and 8 more")
    result = show(output, "short")
    assert result.exit_code == 0


def test_results_are_read_as_arrow_and_pandas(clip: Path, tmp_path: Path):
    events = '[{"start": "00:00.00", "end": "00:01.00", "caption": "red"}]'
    unit = video_unit(clip, answer("caption", "Colours."), answer("events", events))
    output = write_table(tmp_path / "out", unit, failed_unit("bad"))
    results = read(output)
    assert len(results) == 2 and results.run_ids == ["test-20261122-abc"]
    assert results.to_arrow().schema.field("caption").metadata[b"description"]
    frame = results.to_pandas().set_index("media_id")
    assert frame.loc["colors", "caption"] == "Colours."
    assert frame.loc["colors", "events"][0]["caption"] == "red"
    with pytest.raises(UserError, match="no row is of run"):
        read(output, run_id="other")
