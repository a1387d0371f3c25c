"""Report, show and export decode as a run does: in children, under the run's limits."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from jobs.cli.main import main
from pipeline.workers.isolated_decoder import IsolatedDecoder
from schemas.tables.error import ErrorRecord
from tests.support.units import KEY, answer, draw_image, image_unit, write_table

BOX = '[{"bbox_2d": [250, 250, 500, 750], "label": "box"}]'
COMMANDS = {
    "report": ["report", "{out}", "-o", "{to}.html"],
    "show": ["show", "{out}", "{uri}", "--contact-sheet", "{to}.png"],
    "coco": ["export", "{out}", "coco", "-o", "{to}"],
    "webdataset": ["export", "{out}", "webdataset", "-o", "{to}"],
}


def many_scans(path: Path, num_scans: int) -> Path:
    """A progressive JPEG of few bytes whose last scan comes again and again."""
    buffer = io.BytesIO()
    Image.new("RGB", (2048, 2048), (9, 99, 199)).save(buffer, "JPEG", progressive=True, quality=90)
    content = buffer.getvalue()
    last = content.rindex(b"\xff\xda")
    path.write_bytes(content[:-2] + content[last:-2] * num_scans + b"\xff\xd9")
    return path


def large(path: Path, side: int) -> Path:
    """A PNG of a few kilobytes whose pixels take five bytes each when it is made RGB."""
    Image.new("1", (side, side), 1).save(path)
    return path


def with_limits(output: Path, **limits: float) -> None:
    """The run's job had these limits."""
    resources = {"decode_timeout_seconds": 300.0, "decode_memory_gib": 4.0} | limits
    run = output / "runs" / KEY.run_id / "run.json"
    run.parent.mkdir(parents=True)
    run.write_text(json.dumps({"job": {"resources": resources}}))


def call(command: str, output: Path, to: Path, uri: str = "") -> str:
    """Run a command; return what it printed, and the page that it wrote."""
    words = [word.format(out=output, to=to, uri=uri) for word in COMMANDS[command]]
    result = CliRunner().invoke(main, words)
    page = to.with_suffix(".html")
    return result.output + (page.read_text() if page.exists() else "")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_decoder_that_takes_too_long_is_ended(command: str, tmp_path: Path):
    hostile = many_scans(tmp_path / "scans.jpg", 3000)
    unit = image_unit(hostile, answer("caption", "A box."), answer("objects", BOX))
    output = Path(write_table(tmp_path / "out", unit))
    with_limits(output, decode_timeout_seconds=0.2)
    assert "not done after 0.2 s" in call(command, output, tmp_path / "to", str(hostile))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_decoder_that_takes_too_much_memory_is_ended(command: str, tmp_path: Path):
    hostile = large(tmp_path / "large.png", 12288)
    unit = image_unit(hostile, answer("caption", "A box."), answer("objects", BOX))
    sampling = replace(unit.sampling, resized_height=64, resized_width=64)
    output = Path(write_table(tmp_path / "out", replace(unit, sampling=sampling)))
    with_limits(output, decode_memory_gib=0.125)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.workers.child_process._TICK_SECONDS", 0.001)
        found = call(command, output, tmp_path / "to", str(hostile))
    assert "over resources.decode_memory_gib" in found


def test_several_large_images_share_one_limit_and_are_shown(tmp_path: Path):
    """Each fits, four at a time do not: those that had to end are decoded alone."""
    units = [image_unit(large(tmp_path / f"{k}.png", 5120)) for k in range(4)]
    small = [
        replace(u, sampling=replace(u.sampling, resized_height=64, resized_width=64)) for u in units
    ]
    output = Path(write_table(tmp_path / "out", *small))
    with_limits(output, decode_memory_gib=0.25)
    page = call("report", output, tmp_path / "to")
    assert page.count("data:image/webp") == 4


@pytest.mark.parametrize("command", COMMANDS)
def test_what_broke_a_decoder_is_not_decoded_again(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sound = draw_image(tmp_path / "a.png")
    error = ErrorRecord(stage="decode", type="decoder_crashed", message="ended with SIGSEGV")
    units = [
        replace(image_unit(sound), unit_id="u2", status="failed", error=error),
        image_unit(draw_image(tmp_path / "b.png"), answer("objects", BOX)),
    ]
    output = Path(write_table(tmp_path / "out", *units))
    decoded = []
    decode = IsolatedDecoder.decode

    def noting(self: IsolatedDecoder, part, decoder: str = "auto"):
        decoded.append(part.uri)
        return decode(self, part, decoder)

    monkeypatch.setattr(IsolatedDecoder, "decode", noting)
    found = call(command, output, tmp_path / "to", str(sound))
    assert str(sound) not in decoded
    if command == "show":
        assert "the model saw none" in found
    else:
        assert decoded == [str(tmp_path / "b.png")]
