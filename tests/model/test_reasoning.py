"""Reasoning in chat templates: the switch, the prompts, the plan, the recipe and the answers."""

import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from jobs.doctor.model import model_findings
from jobs.plan.open_job import JobContext, open_job
from jobs.plan.print_plan import print_plan
from pipeline.engines.transformers.engine import TransformersEngine
from pipeline.model.prompter import VIDEO_SLOT, Prompter, Vision
from pipeline.model.reasoning import with_reasoning
from pipeline.output.rows import annotation_row
from pipeline.plan.planner import Planner
from pipeline.plan.recipe import recipe, recipe_id
from pipeline.storage.storage import Storage
from pipeline.tasks.parse import parse_raw
from pipeline.training.turns import conversation_ids
from schemas.conversation import Turn
from schemas.errors import JobFileError
from schemas.job.job import Job, load_job
from schemas.tables.columns import to_table
from schemas.tables.unit import UNIT
from tests.support.chat_templates import (
    ON_BY_DEFAULT,
    SILENT,
    TEMPLATES,
    THINKING,
    with_template,
)
from tests.support.family import HYBRIDS, family_checkpoint
from tests.support.job_files import TINY_BUDGET, make_job
from tests.support.messages import assistant, image, read, text, user
from tests.support.prepared import media_items, prepare_units
from tests.support.run_key import run_key

FILES = ["images/scene-0.jpg", "clips/vp9.webm"]
IMAGE = Vision(media_type="image", pts_seconds=(), tokens_per_slot=3)
CLIP = Vision(media_type="video", pts_seconds=(0.0, 0.5, 1.0, 1.5), tokens_per_slot=2)
SETTINGS = ("off", "on", "auto")


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "model")


def prompter_of(checkpoint: Path, template: str, reasoning: str = "off") -> Prompter:
    """template: its name, or its text."""
    prompter = Prompter(str(checkpoint), None, reasoning)
    prompter.tokenizer.chat_template = TEMPLATES.get(template, template)
    return prompter


def job_of(folder: Path, archive: Path, **sections) -> Job:
    defaults = {"budget": TINY_BUDGET, "input": {"scan": str(archive)}, "output": str(folder)}
    return make_job(folder, **defaults | sections)


OPENED, CLOSED, BARE = "assistant\n<think>\n", "assistant\n<think>\n\n</think>\n\n", "assistant\n"


@pytest.mark.parametrize(
    ("name", "reasoning", "end", "expected"),
    [
        ("thinking", "off", OPENED, True),
        ("thinking", "on", OPENED, True),
        ("thinking", "auto", OPENED, True),
        ("silent", "off", BARE, False),
        ("silent", "auto", BARE, False),
        ("on by default", "off", CLOSED, False),
        ("on by default", "on", OPENED, True),
        ("on by default", "auto", OPENED, True),
        ("off by default", "off", CLOSED, False),
        ("off by default", "on", OPENED, True),
        ("off by default", "auto", CLOSED, False),
        ("model opens", "off", CLOSED, False),
        ("model opens", "on", BARE, True),
        ("model opens", "auto", BARE, True),
    ],
)
def test_the_template_is_asked_for_what_the_job_says(checkpoint, name, reasoning, end, expected):
    prompter = prompter_of(checkpoint, name, reasoning)
    prompt = prompter.tokenizer.decode(prompter.input_ids(IMAGE, "What?"))
    assert prompt.endswith("<|im_start|>" + end)
    assert prompter.opens_reasoning == (end == OPENED)
    assert prompter.expects_reasoning == expected


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("reasoning", SETTINGS)
def test_prompts_are_the_templates_own(checkpoint, name, reasoning):
    """As transformers renders them with the same switch, and as long as the plan counts."""
    prompter = prompter_of(checkpoint, name, reasoning)
    switch = {"off": {"enable_thinking": False}, "on": {"enable_thinking": True}, "auto": {}}
    content = [{"type": "video"}, {"type": "text", "text": "What?"}]
    rendered = prompter.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=False,
        add_generation_prompt=True,
        **switch[reasoning],
    )
    pair = "<|vision_start|><|video_pad|><|video_pad|><|vision_end|>"
    frames = f"<0.2 seconds>{pair}<1.2 seconds>{pair}"
    expected = prompter.tokenizer.encode(rendered.replace(VIDEO_SLOT, frames))
    assert prompter.input_ids(CLIP, "What?") == expected
    assert prompter.length(CLIP, "What?").num_tokens == len(expected)


@pytest.mark.parametrize("model_type", HYBRIDS)
@pytest.mark.parametrize("reasoning", SETTINGS)
def test_prompts_of_the_family_are_those_of_its_template(tmp_path_factory, model_type, reasoning):
    folder = family_checkpoint(tmp_path_factory, model_type)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    switch = {"off": {"enable_thinking": False}, "on": {"enable_thinking": True}, "auto": {}}
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=False,
        add_generation_prompt=True,
        **switch[reasoning],
    )
    pads = rendered.replace("<|image_pad|>", "<|image_pad|>" * IMAGE.tokens_per_slot)
    expected = tokenizer.encode(pads, add_special_tokens=False)
    prompter = Prompter(str(folder), None, reasoning)
    assert prompter.input_ids(IMAGE, "What?") == expected
    assert prompter.expects_reasoning == (reasoning != "off")


@pytest.mark.parametrize("reasoning", SETTINGS)
def test_a_tag_in_the_templates_instructions_opens_nothing(checkpoint, reasoning):
    quoted = SILENT.replace("{%- for m", "{{ 'Write <think> first.' }}{%- for m", 1)
    prompter = prompter_of(checkpoint, quoted, reasoning)
    assert not prompter.opens_reasoning and not prompter.expects_reasoning


@pytest.mark.parametrize(
    ("template", "given", "effective"),
    [
        ("silent", None, "off"),
        ("silent", "off", "off"),
        ("silent", "auto", "off"),
        ("thinking", None, "auto"),
        ("thinking", "on", "auto"),
        ("thinking", "auto", "auto"),
        ("on by default", None, "off"),
        ("on by default", "auto", "on"),
        ("on by default", "on", "on"),
        ("off by default", "auto", "off"),
        ("off by default", "on", "on"),
        ("model opens", None, "off"),
        ("model opens", "auto", "on"),
    ],
)
def test_the_recipe_has_the_setting_where_it_changes_the_prompt(
    checkpoint, template, given, effective
):
    job = make_job(checkpoint, generation={} if given is None else {"reasoning": given})
    found = with_reasoning(job, prompter_of(checkpoint, template).template_reasoning)
    assert found.generation.reasoning == effective
    assert with_reasoning(found, prompter_of(checkpoint, template).template_reasoning) == found
    plain = recipe(make_job(checkpoint), "w")
    assert (recipe_id(recipe(found, "w")) == recipe_id(plain)) == (effective != "on")
    assert prompter_of(checkpoint, template, given or "off").input_ids(None, "?") == prompter_of(
        checkpoint, template, effective
    ).input_ids(None, "?")


@pytest.mark.parametrize(
    ("template", "given", "message"),
    [
        ("thinking", "off", "reasoning is off, but the checkpoint only reasons"),
        ("silent", "on", "reasoning is on, but the checkpoint's chat template has no reasoning"),
    ],
)
def test_what_the_template_cannot_do_stops_the_job(folder, archive, template, given, message):
    with_template(folder, TEMPLATES[template])
    job = job_of(folder, archive, generation={"reasoning": given})
    with pytest.raises(JobFileError, match=message):
        open_job(job)
    findings, found = model_findings(job)
    assert found is None
    assert [f.name for f in findings if re.search(message, f.text)] == ["tokenizer"]


@pytest.mark.parametrize("word", ["off", "on", "auto"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_yamls_booleans_are_the_words(tmp_path, word, quote):
    file = tmp_path / "job.yaml"
    file.write_text(
        f"input: {{scan: a}}\noutput: b\ngeneration: {{reasoning: {quote}{word}{quote}}}\n"
    )
    assert load_job(file).generation.reasoning == word


def opened(folder: Path, archive: Path, **generation) -> JobContext:
    return open_job(job_of(folder, archive, generation=generation))[0]


def plan_text(context: JobContext) -> str:
    console = Console(record=True, width=200)
    print_plan(to_table([], UNIT), context, console, dry_run=True)
    return console.export_text()


def test_the_plan_and_the_defaults_follow_the_reasoning(folder, archive):
    published = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}
    (folder / "generation_config.json").write_text(json.dumps(published))
    with_template(folder, ON_BY_DEFAULT)
    off, on = opened(folder, archive), opened(folder, archive, reasoning="on")
    assert (off.job.generation.temperature, off.job.generation.max_new_tokens) == (0, 512)
    assert (on.job.generation.temperature, on.job.generation.max_new_tokens) == (0.6, 8192)
    assert "reasoning" not in plan_text(off)
    assert "answers begin with reasoning: generation.reasoning is on" in plan_text(on)
    with_template(folder, THINKING)
    assert "begin with reasoning: the checkpoint always does so" in plan_text(
        opened(folder, archive)
    )


@pytest.mark.parametrize("template", ["on by default", "model opens"])
@pytest.mark.parametrize("reasoning", ["off", "on"])
def test_the_plan_counts_what_the_engine_is_fed(folder, archive, template, reasoning):
    """Of images, videos and a conversation; the two settings differ by the empty block."""
    with_template(folder, TEMPLATES[template])
    tasks = ["caption", "chat"]
    generation = {"reasoning": reasoning, "max_new_tokens": 8, "defaults": "greedy"}
    job = job_of(folder, archive, tasks=tasks, generation=generation)
    talk = [
        user(image(FILES[0]), text("What is it?")),
        assistant("<think>zebra</think>A star."),
        user(text("Sure?")),
    ]
    items = media_items(archive, FILES) + read(archive, talk)
    planned = Planner(job, 262_144, Storage()).plan(items)
    units = prepare_units(job, items)
    answered = TransformersEngine(job, num_threads=1).generate(units)
    tokenizer = Prompter(str(folder)).tokenizer
    for plan, unit, done in zip(planned, units, answered, strict=True):
        assert done.error is None
        for count, prompt, raw in zip(plan.prompts, unit.prompts, done.answers, strict=True):
            said = tokenizer.decode(prompt.input_ids)
            assert said.endswith("</think>\n\n") == (reasoning == "off")
            assert "zebra" not in said  # the template leaves out what was thought before
            assert count.num_prompt_tokens == len(prompt.input_ids) == raw.num_prompt_tokens
            assert raw.opens_reasoning == (template == "on by default" and reasoning == "on")


def test_an_answer_that_was_cut_while_reasoning_is_not_a_caption(folder, archive):
    with_template(folder, ON_BY_DEFAULT)
    for reasoning, is_answer in (("off", True), ("on", False)):
        generation = {"reasoning": reasoning, "max_new_tokens": 8, "retry": None}
        job = job_of(folder, archive, generation=generation)
        (unit,) = TransformersEngine(job, num_threads=1).generate(
            prepare_units(job, media_items(archive, FILES[:1]))
        )
        row = annotation_row(unit, {q.task: q for q in job.questions()}, run_key("r", "r"))
        (response,) = row["responses"]
        assert response["status"] == "truncated"
        assert (row["caption"] is not None) == is_answer
        assert (response["reasoning"] is None) == is_answer


def turns(*texts: str) -> list[Turn]:
    roles = ("user", "assistant")
    return [Turn(role=roles[k % 2], parts=(part,)) for k, part in enumerate(texts)]


@pytest.mark.parametrize(
    ("template", "answer", "end"),
    [
        ("on by default", "A cat.", CLOSED + "A cat."),
        ("on by default", "<think>\nhm\n</think>\n\nA cat.", OPENED + "hm\n</think>\n\nA cat."),
        ("model opens", "A cat.", CLOSED + "A cat."),
        ("model opens", "<think>\nhm</think>A cat.", BARE + "<think>\nhm</think>A cat."),
        ("silent", "A cat.", BARE + "A cat."),
    ],
)
def test_an_answer_is_learnt_after_the_prompt_that_it_answers(checkpoint, template, answer, end):
    """One with reasoning after that of ``on``, any other after that of ``off``."""
    prompter = prompter_of(checkpoint, template)
    ids, learnt = conversation_ids(prompter, turns("What?", answer), [])
    assert prompter.tokenizer.decode(ids).endswith(f"<|im_start|>{end}<|im_end|>")
    question = prompter_of(checkpoint, template, "on" if "hm" in answer else "off")
    assert ids[: learnt.index(True)] == question.input_ids(None, "What?")


SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green"]}},
    "required": ["color"],
    "additionalProperties": False,
}


def _scale_end(folder: Path, factor: float) -> None:
    """Make `</think>` after some tokens far more, after others far less likely than the rest."""
    weights = load_file(folder / "model.safetensors")
    token = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("</think>")
    weights["lm_head.weight"][token] *= factor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("model_type", ["qwen3_vl", "qwen3_5"])
@pytest.mark.parametrize("template", ["on by default", "model opens"])
def test_a_grammar_holds_after_what_a_model_reasons(
    tmp_path_factory, tmp_path, archive, model_type, template
):
    """Of two opposite factors, one does not end the reasoning at the first token."""
    made = family_checkpoint(tmp_path_factory, model_type)
    folder = with_template(shutil.copytree(made, tmp_path / "model"), TEMPLATES[template])
    names = [f"color_{k}" for k in range(12)]
    custom = {"task": "custom", "prompt": "Which?", "json_schema": SCHEMA}
    generation = {"reasoning": "on", "max_new_tokens": 300, "stop_loops": False, "seed": 1}
    generation |= {"temperature": 1.0}
    tasks = [{"name": name} | custom for name in names]
    job = job_of(folder, archive, tasks=tasks, generation=generation)
    (unit,) = prepare_units(job, media_items(archive, FILES[:1]))
    questions = {question.name: question for question in job.questions()}
    reasoned = 0
    for factor in (10, -1):
        _scale_end(folder, factor)
        (answered,) = TransformersEngine(job, num_threads=1).generate([unit])
        assert answered.error is None
        for raw in answered.answers:
            read = parse_raw(answered, raw, questions)
            if read.status == "ok":
                assert read.value["color"] in ("red", "green")
                reasoned += read.reasoning is not None
            else:
                assert read.value is None
    assert reasoned
