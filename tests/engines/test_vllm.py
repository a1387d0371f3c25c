"""The vLLM engine against the transformers engine: in float32 all tokens are the same.

Runs where vLLM is installed: `make test-vllm`, its CPU build. On a GPU it was never run.
"""

import dataclasses
import importlib.util
import io
import json
import shutil
import threading
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pyarrow.dataset as ds
import pytest
import torch

from jobs.demo.demo import MODEL, SPEC
from schemas.job.job import Job, load_job
from schemas.tables.unit import PreparedUnit
from tests.support.chat_templates import make_thinking
from tests.support.job_files import make_job
from tests.support.messages import SYSTEM, image, read, text, user, video
from tests.support.prepared import media_items, prepare_units

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed here: make test-vllm", allow_module_level=True)

import vllm

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1800)]

IMAGES = ("images/scene-0.jpg", "images/plate-0.png", "images/wide.png", "images/tiny.png")
CLIPS = ("clips/h264-bframes.mp4", "clips/variable.mkv", "clips/vp9.webm")
COLOR = {
    "type": "object",
    "properties": {
        "color": {"enum": ["red", "green"]},
        "n": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["color", "n"],
    "additionalProperties": False,
}
CPU_ARGS = {"enforce_eager": True, "skip_mm_profiling": True}
"""Without a GPU; with one, vLLM starts as for a user."""


def engine_job(source: Path, *, engine: str = "vllm", model=None, **sections) -> Job:
    settings = {"engine": engine, "max_model_len": 4096, **(model or {})}
    if engine == "vllm":
        on_cpu = not torch.cuda.is_available()
        # On a CPU a step holds all prompts: vLLM 0.32 ends when it reads half of one with a seed.
        settings["vllm"] = {
            "max_num_seqs": 16,
            "max_num_batched_tokens": 16384 if on_cpu else None,
            "engine_args": CPU_ARGS if on_cpu else {},
        }
    defaults = {
        "tasks": [
            "caption",
            "events",
            {"objects": {"labels": ["circle", "square"]}},
            {"custom": {"prompt": "Which color?", "json_schema": COLOR, "max_new_tokens": 120}},
            "chat",
        ],
        "sampling": {"segmentation": {"kind": "window", "seconds": 6}},
        "budget": {"image_tokens": [4, 64], "frame_tokens": [4, 30], "unit_tokens": 256},
        "generation": {"max_new_tokens": 40},
    }
    return make_job(source, model=settings, **defaults | sections)


def of_files(job: Job, archive: Path, names=IMAGES + CLIPS) -> list[PreparedUnit]:
    return prepare_units(job, media_items(archive, names), 4096)


def rows(answered) -> list[list[tuple]]:
    return [
        [(a.task, a.raw_text, a.finish_reason, a.num_prompt_tokens, a.num_output_tokens) for a in u]
        for u in (unit.answers for unit in answered)
    ]


@pytest.fixture(scope="module")
def started():
    """Engines by job file, each started once."""
    from pipeline.engines.vllm.engine import VllmEngine

    engines = {}

    def start(job: Job):
        key = job.model_dump_json()
        if key not in engines:
            engines[key] = VllmEngine(job)
        return engines[key]

    yield start
    for engine in engines.values():
        engine.close()


@pytest.fixture
def both(started):
    """The engines of a job on the demo's model: vLLM's, and transformers'."""
    from pipeline.engines.transformers.engine import TransformersEngine

    return SimpleNamespace(
        vllm=started(engine_job(MODEL)),
        transformers=TransformersEngine(engine_job(MODEL, engine="transformers"), num_threads=2),
    )


def assert_same(both, units, generation=None) -> list[list[tuple]]:
    found = both.vllm.generate(units, generation)
    assert [unit.error for unit in found] == [None] * len(units)
    assert rows(found) == rows(both.transformers.generate(units, generation))
    return rows(found)


def test_images_and_videos_and_several_tasks(both, archive):
    units = of_files(engine_job(MODEL), archive)
    answers = assert_same(both, units)
    assert {len(unit) for unit in answers} == {3, 4}, "events are asked of videos only"
    assert len({row[1] for unit in answers for row in unit}) > 8, "the model says something"


def test_times_of_variable_frame_rates_are_those_of_the_frames(both, archive):
    units = of_files(engine_job(MODEL, tasks=["events"]), archive, ["clips/variable.mkv"])
    times = [unit.sampling.pts_seconds for unit in units]
    steps = {round(after - before, 3) for unit in times for before, after in pairwise(unit)}
    assert len(steps) > 1, "the clip's frames are not evenly spaced"
    assert_same(both, units)


def test_conversations_of_several_media_and_of_none(both, archive):
    talks = [
        [SYSTEM, user(image(IMAGES[0]), image(IMAGES[3]), text("What is the same?"))],
        [user(video(CLIPS[1]), text("and"), image(IMAGES[2]), video(CLIPS[0]), text("?"))],
        [user(image(IMAGES[0]), video(CLIPS[0], num_frames=4), image(IMAGES[0]), text("?"))],
        [SYSTEM, user(text("What is a circle?"))],
    ]
    assert_same(both, prepare_units(engine_job(MODEL, tasks=["chat"]), read(archive, *talks), 4096))


def test_answers_are_held_to_the_schema(both, archive):
    """The demo model was not trained on such JSON and may stay in blanks, which do not count."""
    wholes = [f'{{"color":"{c}","n":{n}}}' for c in ("red", "green") for n in range(10)]
    begun = 0
    for unit in both.vllm.generate(of_files(engine_job(MODEL), archive, IMAGES)):
        (raw,) = [answer for answer in unit.answers if answer.task == "custom"]
        said = "".join(raw.raw_text.removeprefix("```json").removesuffix("```").split())
        assert any(whole.startswith(said) for whole in wholes), raw.raw_text
        assert raw.finish_reason != "stop" or said in wholes
        begun += said.startswith('{"color"')
    assert begun


def test_penalties_and_greedy_settings_are_the_same(both, archive):
    generation = engine_job(MODEL).generation.model_copy(
        update={"repetition_penalty": 1.3, "presence_penalty": 0.7}
    )
    assert_same(both, of_files(engine_job(MODEL), archive, IMAGES[:2] + CLIPS[:1]), generation)


def test_a_seed_draws_the_same_answers_in_any_company(both, archive):
    drawn = engine_job(MODEL).generation.model_copy(
        update={"temperature": 1.5, "top_k": 50, "seed": 7}
    )
    other = drawn.model_copy(update={"seed": 8})
    units = of_files(engine_job(MODEL), archive)
    together = rows(both.vllm.generate(units, drawn))
    assert rows(both.vllm.generate(units[2:3], drawn)) == together[2:3]
    assert rows(both.vllm.generate(units, other)) != together


def test_the_engine_says_what_vllm_chose(both):
    """Never compared on a GPU, where vLLM chooses V2, and smaller blocks."""
    config = both.vllm.async_llm.vllm_config
    runner = "V2" if config.use_v2_model_runner else "V1"
    block = config.cache_config.block_size
    assert both.vllm.name == (
        f"vLLM {vllm.__version__}, model runner {runner}, prefix cache in blocks of {block} tokens"
    )
    assert runner == "V1" or torch.cuda.is_available()


def test_media_are_encoded_once_for_all_tasks(both, archive):
    """Of a unit's further prompts only the text after the media is new to vLLM."""
    seen = []
    original = both.vllm.async_llm.generate

    async def watched(*args, **kwargs):
        async for output in original(*args, **kwargs):
            if output.finished:
                seen.append((len(output.prompt_token_ids), output.num_cached_tokens))
            yield output

    unit = of_files(engine_job(MODEL), archive, ["clips/h265.mp4"])[0]
    both.vllm.async_llm.generate = watched
    try:
        both.vllm.generate([unit])
        both.vllm.generate([unit])
    finally:
        both.vllm.async_llm.generate = original
    assert all(cached > 0.5 * fed for fed, cached in seen[4:]), seen


def test_what_is_broken_is_an_error_row_and_no_other_unit_notices(both, archive):
    units = of_files(engine_job(MODEL), archive, IMAGES[:3])
    first = units[0].prompts[0]
    long = dataclasses.replace(first, num_prompt_tokens=first.num_prompt_tokens + 1)
    lying = dataclasses.replace(units[0], prompts=(long, *units[0].prompts[1:]))
    fewer = [t for t in first.input_ids if t != 643] + [643]
    cut = dataclasses.replace(first, input_ids=tuple(fewer), num_prompt_tokens=len(fewer))
    half = dataclasses.replace(units[1], prompts=(cut,))
    ids = (*first.input_ids, *[5] * 5000)
    endless = dataclasses.replace(first, input_ids=ids, num_prompt_tokens=len(ids))
    over = dataclasses.replace(units[2], prompts=(endless,))
    answered = both.vllm.generate([lying, half, over, *units])
    assert [u.error and u.error.type for u in answered[:3]] == [
        "token_mismatch",
        "token_mismatch",
        "over_context",
    ]
    assert "were planned" in answered[0].error.message
    assert rows(answered[3:]) == rows(both.vllm.generate(units))


def test_media_that_only_our_side_of_the_cache_knows_are_sent_again(both, archive, monkeypatch):
    """vLLM 0.33 only notes that its process lost them, and looks at its notes in code that we skip.

    So the second attempt must not depend on what this side of the cache says.
    """
    llm = both.vllm.async_llm
    units = of_files(engine_job(MODEL), archive, IMAGES[1:2] + CLIPS[1:2])
    first = rows(both.vllm.generate(units))

    generate, forgotten = llm.generate, []

    async def forgetful(*args, **kwargs):
        if not forgotten:
            forgotten.append(True)
            await llm.engine_core.call_utility_async("reset_mm_cache")
        async for output in generate(*args, **kwargs):
            yield output

    monkeypatch.setattr(llm, "generate", forgetful)
    cache = llm.input_processor.renderer.mm_processor_cache
    monkeypatch.setattr(cache, "invalidate", lambda mm_hash: None)
    again = both.vllm.generate(units)
    assert [unit.error for unit in again] == [None] * len(units)
    assert rows(again) == first


def test_a_prompt_that_fails_ends_the_others_of_its_unit(both, archive):
    """Nobody would read their answers, which may take minutes."""
    unit = of_files(engine_job(MODEL), archive, IMAGES[:1])[0]
    first = unit.prompts[0]
    lying = dataclasses.replace(first, num_prompt_tokens=first.num_prompt_tokens + 1)
    broken = dataclasses.replace(unit, prompts=(*unit.prompts[1:], lying))
    unfinished = both.vllm.async_llm.output_processor.get_num_unfinished_requests
    (answered,) = both.vllm.generate([broken])
    assert answered.error.type == "token_mismatch"
    assert unfinished() == 0


@pytest.fixture
def special(checkpoint, tmp_path) -> dict:
    """A Thinking checkpoint of random weights, an adapter for it, and a stretched context."""
    import peft
    from transformers import AutoModelForImageTextToText

    folder = make_thinking(shutil.copytree(checkpoint, tmp_path / "thinking"))
    base = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    lora = peft.LoraConfig(
        r=8, target_modules=r".*language_model.*(q|v|o)_proj", init_lora_weights=False
    )
    torch.manual_seed(0)
    peft.get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
    model = {
        "adapter": str(tmp_path / "adapter"),
        "yarn": {"factor": 2.0, "original_max_position_embeddings": 2048},
    }
    return {"source": folder, "model": model}


def test_thinking_adapter_and_yarn_are_as_with_the_other_engine(started, special, archive):
    from pipeline.engines.transformers.engine import TransformersEngine

    changes = {
        "model": special["model"],
        "tasks": ["caption", {"custom": {"prompt": "Which?", "json_schema": COLOR}}],
        "generation": {"max_new_tokens": 300, "defaults": "greedy"},
    }
    units = of_files(engine_job(special["source"], **changes), archive, IMAGES)
    job = engine_job(special["source"], engine="transformers", **changes)
    other = rows(TransformersEngine(job, num_threads=2).generate(units))
    plain = engine_job(special["source"], engine="transformers", **(changes | {"model": {}}))
    assert other != rows(TransformersEngine(plain, num_threads=2).generate(units)), "adapter acts"
    assert rows(started(engine_job(special["source"], **changes)).generate(units)) == other


def test_the_demo_archive_end_to_end(both, archive, tmp_path, ray_session):
    """`reelscribe annotate` with either engine writes the same table."""
    from rich.console import Console

    from jobs.run import annotate

    tables = {}
    for engine in ("transformers", "vllm"):
        model = engine_job(MODEL, engine=engine).model.model_dump()
        settings = {
            "input.scan": str(archive),
            "output": str(tmp_path / engine),
            "model": model,
            "summary": {},
        }
        console = Console(file=io.StringIO(), width=160)
        run = annotate.run(load_job(SPEC, settings), console)
        table = ds.dataset(tmp_path / engine / "annotations", partitioning="hive").to_table()
        tables[engine] = {row["unit_id"]: row for row in table.to_pylist()}
        assert run.counts["units"] == len(tables[engine])
        said = json.loads((tmp_path / engine / "runs" / run.run_id / "run.json").read_text())
        expected = [] if engine == "transformers" else [both.vllm.name]
        assert said["engine_versions"] == run.engine_versions == expected
    assert tables["vllm"].keys() == tables["transformers"].keys()
    for unit_id, row in tables["vllm"].items():
        other = tables["transformers"][unit_id]
        for name in ("status", "error", "caption", "events", "ocr", "text_spans", "objects"):
            assert row[name] == other[name], (row["uri"], name)


def test_an_engine_that_is_killed_is_replaced(archive, tmp_path, ray_session):
    """Its actor ends with it; Ray starts another, and no unit is lost or done twice."""
    import psutil
    from rich.console import Console

    from jobs.run import annotate

    killed, ended = [], threading.Event()

    def kill():
        """End vLLM's process as soon as the first rows are written, in a piece of a file."""
        while not ended.is_set() and not killed:
            if list(tmp_path.glob("out/annotations*/*/part-*")):
                for actor in psutil.Process().children(recursive=True):
                    if not actor.name().startswith("ray::"):
                        continue
                    for process in actor.children():
                        if "EngineCore" in " ".join(process.cmdline()):
                            process.kill()
                            killed.append(process.pid)
            time.sleep(0.02)

    settings = {
        "input.scan": str(archive),
        "output": str(tmp_path / "out"),
        "model": engine_job(MODEL).model.model_dump(),
        "resources.units_per_file": 2,
        "generation.max_new_tokens": 64,
    }
    watcher = threading.Thread(target=kill)
    watcher.start()
    try:
        run = annotate.run(load_job(SPEC, settings), Console(file=io.StringIO(), width=160))
    finally:
        ended.set()
        watcher.join()
    table = ds.dataset(tmp_path / "out" / "annotations", partitioning="hive").to_table()
    written = table.to_pylist()
    assert killed, "vLLM's process was never seen"
    assert len({row["unit_id"] for row in written}) == len(written) == run.counts["units"]
    assert not [
        row["error"] for row in written if row["error"] and row["error"]["stage"] == "engine"
    ]
