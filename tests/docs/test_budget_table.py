"""The page of what a clip costs, against the planner itself and the reference's own figures."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from transformers import AutoConfig

from pipeline.model.prompter import Prompter
from pipeline.model.sizes import GPUS, ModelSize
from pipeline.plan.planner import Planner
from pipeline.storage.storage import Storage
from pipeline.tasks.registry import TASKS
from schemas.job.model import Model
from schemas.tables.manifest import MediaItem
from schemas.tables.media import Media
from scripts.docs.budgets import (
    CLIP,
    CONTEXT,
    ROOM,
    WHOLE,
    WINDOWS,
    budgets_page,
    job_with,
    shape_of,
    unit_costs,
)
from scripts.docs.memory_tables import CARDS, SIZES, smallest_gpu
from tests.support.paths import ROOT

DEMO = ROOT / "jobs" / "demo_model"
"""Its tokenizer splits numbers as the published one does: digit by digit."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    """The page's clip: 18,000 frames, of which the planner reads the header only."""
    path = tmp_path_factory.mktemp("clip") / "ten-minutes.mp4"
    with av.open(str(path), "w") as container:
        options = {"preset": "ultrafast", "tune": "zerolatency"}
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.width, stream.height = CLIP.width, CLIP.height
        black = av.VideoFrame.from_ndarray(np.zeros((CLIP.height, CLIP.width, 3), np.uint8))
        first, second = (p for _ in range(2) for p in stream.encode(black))
        assert first.is_keyframe and not second.is_keyframe
        for n in range(18_000):
            packet = first if n == 0 else av.Packet(bytes(second))
            packet.pts = packet.dts = n
            packet.time_base, packet.stream, packet.duration = Fraction(1, 30), stream, 1
            container.mux(packet)
    return path


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("none", row) for row in WHOLE] + [("window", row) for row in WINDOWS],
    ids=str,
)
def test_the_page_says_what_the_planner_plans(clip, kind, settings):
    job = job_with(settings, kind).model_copy(update={"model": Model(source=str(DEMO))})
    item = MediaItem(media_id="a", uri=str(clip))
    units = Planner(job, 10_000_000, Storage()).plan([item])
    (question,) = job.questions()
    prompt = TASKS[question.task].prompt(question, "video")
    around = len(Prompter(str(DEMO)).input_ids(None, prompt))
    told = unit_costs(job)
    assert len(told) == len(units) == (1 if kind == "none" else 10)
    for cost, unit in zip(told, units, strict=True):
        assert unit.status == "planned", unit.error
        seen = unit.sampling
        assert cost.num_frames == seen.num_frames
        assert (cost.size.resized_width, cost.size.grid_thw) == (seen.resized_width, seen.grid_thw)
        assert cost.size.num_tokens == seen.num_vision_tokens
        assert cost.num_tokens + around == unit.prompts[0].num_prompt_tokens


def test_the_references_defaults_cost_what_the_reference_says():
    """180 s of 1080p: qwen-vl-utils by total_pixels, transformers' processor by longest_edge."""
    clip = Media(
        media_type="video",
        width=1920,
        height=1080,
        begin_seconds=0.0,
        duration_seconds=180.0,
        average_fps=30.0,
    )
    total_pixels = int(0.9 * 128_000) * 32 * 32
    job = job_with({"unit_tokens": total_pixels // (32 * 32)}, "none")
    assert unit_costs(job, clip)[0].size.num_tokens == 106_920
    longest_edge = 25_165_824
    rule = {"unit_tokens": longest_edge // (2 * 32 * 32), "video_rule": "per_clip"}
    assert unit_costs(job_with(rule, "none"), clip)[0].size.num_tokens == 11_880


def test_what_needs_a_longer_context_says_so():
    rows = [line for line in budgets_page().splitlines() if " yes | " in line or "yarn: {" in line]
    assert len(rows) == len(WHOLE)
    for row in rows:
        in_all, fits = (cell.strip() for cell in row.split("|")[-5:-3])
        assert (int(in_all.replace(",", "")) + ROOM <= CONTEXT) == (fits == "yes")
    assert "| `yarn: {factor: 2}` |" in rows[-2]


@pytest.mark.parametrize("settings", WHOLE, ids=str)
def test_a_long_unit_is_offered_only_where_its_keys_and_values_fit(settings):
    """By hand: 147,456 bytes of a token in a 4B's and an 8B's cache, two for each weight."""
    (cost,) = unit_costs(job_with(settings, "none"))
    by_memory = sorted(GPUS, key=lambda name: GPUS[name].memory_bytes)
    for checkpoint, weights in (("4B", 8.9e9), ("8B", 17.5e9)):
        needed = weights + 147_456 * cost.num_tokens
        gpu = smallest_gpu(shape_of(cost, 1), checkpoint)
        if gpu == "none":
            assert needed > 0.8 * 180e9
            continue
        memory = GPUS[gpu].memory_bytes
        assert needed < 0.9 * memory
        smaller = [name for name in by_memory if GPUS[name].memory_bytes < memory]
        if smaller:  # beside what a pass of the model takes
            assert needed > 0.65 * GPUS[smaller[-1]].memory_bytes
    assert smallest_gpu(shape_of(cost, 1), "4B") != "none"


def test_the_page_has_the_units_that_fit():
    lines = budgets_page().splitlines()
    (of_4b,) = (line for line in lines if line.startswith("| 4B |"))
    counts = dict(zip(CARDS, [int(cell) for cell in of_4b.split("|")[3:-1:2]], strict=True))
    assert counts["h100"] >= 12 and counts["l40s"] < counts["h100"] < counts["h200"]


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [
        ("Qwen3.5-9B", 9.4e9, 9.4e9),
        ("Qwen3.5-27B", 27.4e9, 27.4e9),
        ("Qwen3.5-35B-A3B", 35.1e9, 3.9e9),  # with both embeddings, 1 billion, and the tower
    ],
)
def test_hybrids_have_the_parameters_of_their_names(name: str, total: float, active: float):
    size = SIZES[name]
    assert size.parameters == pytest.approx(total, rel=0.01)
    assert size.vision.parameters + size.text.active_parameters == pytest.approx(active, rel=0.02)
    assert f"| {name} |" in budgets_page()


@pytest.mark.parametrize(
    ("model_type", "name"), [("qwen3_5", "Qwen3.5-9B"), ("qwen3_5_moe", "Qwen3.5-35B-A3B")]
)
def test_two_of_them_are_the_defaults_of_transformers_classes(model_type: str, name: str):
    config = AutoConfig.for_model(model_type).to_dict()
    config["vision_config"]["out_hidden_size"] = config["text_config"]["hidden_size"]
    assert ModelSize.of(config) == SIZES[name]
