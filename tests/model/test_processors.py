"""A checkpoint's own processors: patches that differ are refused, larger budgets are warned of."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from jobs.doctor.finding import State
from jobs.doctor.model import model_findings
from jobs.plan.open_job import open_job
from jobs.plan.print_plan import print_plan
from pipeline.model.checkpoint import inspect_checkpoint
from pipeline.model.family import Processors
from schemas.errors import ModelError
from schemas.job.model import Model
from schemas.job.sampling import Budget
from schemas.tables.columns import to_table
from schemas.tables.unit import UNIT
from tests.support.job_files import make_job

IMAGE, VIDEO, NESTED = (
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
)


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


def change(folder: Path, name: str, part: str | None = None, **values: Any) -> None:
    """Change values of a JSON file; those that are None are removed."""
    config = json.loads((folder / name).read_text())
    place = config if part is None else config[part]
    place |= values
    for key in [key for key, value in values.items() if value is None]:
        del place[key]
    (folder / name).write_text(json.dumps(config))


def processors(folder: Path) -> Processors:
    return inspect_checkpoint(Model(source=str(folder))).processors


@pytest.mark.parametrize("form", ["size", "max_pixels", "nested"])
def test_the_limits_are_those_of_the_processors(folder: Path, form: str):
    """In three forms of the files, as transformers reads them; its videos need torchvision."""
    image, video = 777 * 1024, 1234 * 2048
    for name, pixels in ((IMAGE, image), (VIDEO, video)):
        if form == "max_pixels":
            change(folder, name, size=None, min_pixels=4096, max_pixels=pixels)
        else:
            change(folder, name, size={"shortest_edge": 4096, "longest_edge": pixels})
    if form == "nested":
        names = {"image_processor": IMAGE, "video_processor": VIDEO}
        joined = {kind: json.loads((folder / name).read_text()) for kind, name in names.items()}
        (folder / NESTED).write_text(json.dumps(joined))
        change(folder, IMAGE, size={"shortest_edge": 4096, "longest_edge": 8192})
    own = Qwen2VLImageProcessorPil.from_pretrained(folder)
    assert own.size["longest_edge"] == image
    assert processors(folder) == Processors(image_tokens=777, clip_tokens=1234)


def test_files_that_say_nothing_limit_nothing(folder: Path):
    for name in (IMAGE, VIDEO):
        change(folder, name, size=None)
    assert processors(folder) == Processors()
    for name in (IMAGE, VIDEO):
        (folder / name).unlink()
    assert processors(folder) == Processors()


@pytest.mark.parametrize(
    ("name", "part", "values"),
    [
        (IMAGE, None, {"patch_size": 14}),
        (IMAGE, None, {"image_mean": [0.48145466, 0.4578275, 0.40821073]}),
        (IMAGE, None, {"rescale_factor": 1.0}),
        (VIDEO, None, {"merge_size": 4}),
        (VIDEO, None, {"image_std": [0.5, 0.5, 0.2]}),
        (VIDEO, None, {"do_normalize": False}),
        ("config.json", "vision_config", {"patch_size": 14}),
        ("config.json", "vision_config", {"spatial_merge_size": "two"}),
        ("config.json", "vision_config", {"temporal_patch_size": [2, 1]}),
    ],
)
def test_other_patches_are_refused(folder: Path, name, part, values):
    change(folder, name, part, **values)
    (key,) = values
    with pytest.raises(ModelError, match=rf"other patches: {key} is .* by its {name}, and"):
        inspect_checkpoint(Model(source=str(folder)))


def test_the_same_patches_in_other_words_are_taken(folder: Path):
    change(folder, "config.json", "vision_config", patch_size=[16, 16], temporal_patch_size=[2, 2])
    change(folder, IMAGE, image_mean=0.5, rescale_factor=0.00392156862745098)
    assert processors(folder).image_tokens == 16384


@pytest.mark.parametrize(
    ("budget", "keys"),
    [
        ({}, []),  # the defaults, with limits as published
        ({"image_tokens": [4, 16385]}, ["image_tokens"]),
        ({"unit_tokens": 200_000}, []),  # the rule of qwen-vl-utils, which has its own limits
        ({"video_rule": "per_clip", "unit_tokens": 12288}, []),
        ({"video_rule": "per_clip", "unit_tokens": 12289}, ["unit_tokens"]),
    ],
)
def test_budgets_beyond_the_processors_are_named(folder: Path, budget, keys):
    lines = list(processors(folder).exceeded(Budget(**budget)))
    assert [line.split()[0].removeprefix("budget.").split("[")[0] for line in lines] == keys


def test_plan_and_doctor_warn(folder: Path, archive: Path, tmp_path: Path):
    change(folder, IMAGE, size={"shortest_edge": 4096, "longest_edge": 640 * 1024})
    line = "budget.image_tokens[1] is 16,384, and the checkpoint's own processor gives an image at"
    job = make_job(folder, input={"scan": str(archive)}, output=str(tmp_path / "out"))
    findings, found = model_findings(job)
    assert found is not None
    (text,) = [f.text for f in findings if f.state == State.WARNING and f.name == "budget"]
    assert text.startswith(f"{line} most 640 tokens")
    context, _ = open_job(job)
    console = Console(file=io.StringIO(), width=400)
    print_plan(to_table([], UNIT), context, console, dry_run=True)
    assert f"warning: {line} most 640 tokens" in console.file.getvalue()  # type: ignore[attr-defined]
    change(folder, IMAGE, size={"shortest_edge": 4096, "longest_edge": 16384 * 1024})
    findings, _ = model_findings(job)
    assert not [f for f in findings if f.name == "budget"]
