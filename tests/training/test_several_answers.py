"""Several answers in one conversation, where the chat template rewrites earlier turns.

The oracle is the tokenizer's own ``apply_chat_template``; an image is one token, as in a template.
"""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from jobs.cli.main import main
from pipeline.model.prompter import Prompter, Vision
from pipeline.training.groups import group_by_media, one_answer_each
from pipeline.training.turns import conversation_ids, keeps_turns
from schemas.conversation import Conversation, Turn
from schemas.tables.manifest import MediaItem
from tests.support.chat_templates import TEMPLATES
from tests.support.family import HYBRIDS, family_checkpoint

A, B = (MediaItem(media_id=n, uri=f"{n}.png", media_type="image") for n in "ab")
IMAGE = Vision(media_type="image", pts_seconds=(), tokens_per_slot=1)
REASONED = "<think>\nIt is round.\n</think>\n\nA ball."


def talk(*texts: str, media: tuple[MediaItem, ...] = (A,), later: int = 0) -> Conversation:
    """Questions and answers in turn, the media first; ``later`` of them in the second question."""
    turns = []
    for k, text in enumerate(texts):
        first = range(len(media) - later) if k == 0 else ()
        seen = range(len(media) - later, len(media)) if k == 2 else first
        role = "assistant" if k % 2 else "user"
        turns.append(Turn(role=role, parts=(*seen, text)))
    return Conversation(origin="data.json:1", media=media, turns=tuple(turns))


TALKS = {
    "three": talk("What?", "A square.", "Sure?", "Yes.", "Why?", "It has four corners."),
    "reasoned": talk("What?", REASONED, "Sure?", "Yes.", "Why?", REASONED),
    "later": talk("What?", "A square.", "And this?", "A ball.", media=(A, B), later=1),
    "text": talk("One?", "Two.", "Three?", "Four.", media=()),
}


def by_the_template(prompter: Prompter, conversation: Conversation) -> list[list[int]]:
    """For each answer, what the model sees before it, and the answer."""
    messages, found = [], []
    for turn in conversation.turns:
        texts = [part for part in turn.parts if isinstance(part, str)]
        if turn.role == "user":
            images = [{"type": "image"} for part in turn.parts if isinstance(part, int)]
            content = [*images, *({"type": "text", "text": text} for text in texts)]
            messages.append({"role": "user", "content": content})
            continue
        answer = "".join(texts)
        prompt = prompter.tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking="</think>" in answer,
        )
        written = answer
        if prompt.endswith("<think>\n"):
            no_reasoning = f"\n</think>\n\n{answer}"
            written = answer.removeprefix("<think>\n") if "</think>" in answer else no_reasoning
        ids = prompter.tokenizer.encode(prompt, add_special_tokens=False)
        end = prompter.tokenizer.encode(written + "<|im_end|>", add_special_tokens=False)
        found.append(ids + end)
        messages.append({"role": "assistant", "content": answer})
    return found


@pytest.fixture(params=[*TEMPLATES, *HYBRIDS])
def prompter(request, checkpoint: Path, tmp_path_factory) -> Prompter:
    if request.param in HYBRIDS:
        return Prompter(str(family_checkpoint(tmp_path_factory, request.param)))
    made = Prompter(str(checkpoint))
    made.tokenizer.chat_template = TEMPLATES[request.param]
    return made


@pytest.mark.parametrize("name", TALKS)
def test_each_answer_is_learnt_after_what_the_model_sees_before_it(prompter, name):
    conversation = TALKS[name]
    visions = [IMAGE] * len(conversation.media)
    expected = by_the_template(prompter, conversation)
    parts = one_answer_each([conversation], prompter)
    if keeps_turns(prompter, conversation.turns, visions):
        assert parts == [conversation]
        ids, learnt = conversation_ids(prompter, conversation.turns, visions)
        assert ids == expected[-1]
        ends = [len(wanted) for wanted in expected]
        assert [ids[:end] for end in ends] == expected
        assert all(learnt[end - 1] for end in ends)
        return
    assert len(parts) == len(expected)
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        conversation_ids(prompter, conversation.turns, visions)
    answers = [turn for turn in conversation.turns if turn.role == "assistant"]
    for part, wanted, answer in zip(parts, expected, answers, strict=True):
        ids, learnt = conversation_ids(
            prompter, part.turns, visions[: len(part.media)], only_last=part.only_last
        )
        assert ids == wanted
        first = learnt.index(True)
        assert all(learnt[first:])
        text = prompter.tokenizer.decode(ids[first:])
        assert text.endswith(str(answer.parts[0]).removeprefix("<think>\n") + "<|im_end|>")


def test_parts_share_media_unless_later_turns_have_more(checkpoint: Path):
    made = Prompter(str(checkpoint))
    made.tokenizer.chat_template = TEMPLATES["on by default"]
    asked = Turn(role="system", parts=("Be short.",))
    system = Conversation(origin="s", media=(A,), turns=(asked, *TALKS["three"].turns))
    divided = one_answer_each([TALKS["three"], system, TALKS["later"], TALKS["text"]], made)
    groups = group_by_media(divided, share_media=True)
    assert [len(group) for group in groups] == [3, 3, 1, 1, 1, 1]
    assert [len(group[0].media) for group in groups] == [1, 1, 1, 2, 0, 0]
    assert [len(g) for g in group_by_media(divided, share_media=False)] == [1] * len(divided)


def test_the_check_of_a_data_set_names_each_row_once(tmp_path, archive, tmp_path_factory):
    """Three answers are three parts of one row: one example, one problem, each box once."""
    box = '[{"bbox_2d": [1, 2, 3, 4], "label": "x"}]'
    questions = ["<image>\nWhat?", "Where?", "Sure?"]
    talks = [
        [t for q in questions for t in ({"from": "human", "value": q}, {"from": "gpt", "value": a})]
        for a in (box, "None.")
    ]
    images = (archive / "images/scene-0.jpg", archive / "images/none.jpg")
    rows = [
        {"image": str(image), "conversations": conversation}
        for image, conversation in zip(images, talks, strict=True)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = family_checkpoint(tmp_path_factory, "qwen3_5")
    command = ["check-dataset", str(tmp_path / "data.jsonl"), "--model", str(model)]
    command += ["--report", str(tmp_path / "report.jsonl"), "--boxes", "pixels"]
    command += ["--fix", str(tmp_path / "fixed.jsonl"), "--set=budget.image_tokens=[4,16]"]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    lines = [json.loads(line) for line in (tmp_path / "report.jsonl").read_text().splitlines()]
    assert [(line["origin"][-2:], line["type"]) for line in lines] == [(":2", "media_missing")]
    assert "1 rows, 3 boxes and points in them" in " ".join(result.output.split())
