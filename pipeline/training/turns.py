"""Token ids of whole conversations, and which of them are learnt."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.model.prompter import END_OF_TURN, SLOT, Prompter, Vision, escape
from pipeline.model.reasoning import Setting, continued, is_open
from schemas.conversation import Turn
from schemas.task import REASONING_ENDS


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """An answer, and the prompt that the model sees before it."""

    prompt: str
    text: str


def conversation_ids(
    prompter: Prompter,
    turns: Sequence[Turn],
    visions: Sequence[Vision],
    *,
    only_last: bool = False,
) -> tuple[list[int], list[bool]]:
    """Token ids of a whole conversation, and whether each of them is learnt.

    The assistant's turns are learnt, with the token that ends them. A question is tokenised up to
    the answer, as in ``Prompter.input_ids``, and the answer separately, as it is generated. An
    answer with reasoning is learnt after the prompt for which reasoning is on. Where the template
    opens ``<think>``, an answer without reasoning learns to close it at once.

    only_last: of several answers, only the last is learnt; those before are as the template writes
        them.

    Raises:
        ValueError: several answers are to be learnt, and the template rewrites earlier turns; see
            ``keeps_turns``.
    """
    ids: list[int] = []
    learnt: list[bool] = []
    before, unused = "", list(visions)
    answers = list(_answers(prompter, turns, visions))
    for answer in answers[-1:] if only_last else answers:
        if not answer.prompt.startswith(before):
            raise ValueError(
                "the chat template rewrites earlier turns: give each conversation one answer"
            )
        added = answer.prompt[len(before) :]
        question = prompter.prompt_ids(added, unused)
        unused = unused[len(SLOT.findall(added)) :]
        answer_ids = prompter.answer_ids(answer.text)
        ids += question + answer_ids
        learnt += [False] * len(question) + [True] * len(answer_ids)
        before = answer.prompt + answer.text + END_OF_TURN
    return ids, learnt


def keeps_turns(prompter: Prompter, turns: Sequence[Turn], visions: Sequence[Vision]) -> bool:
    """Whether a single sequence has what the model sees before each answer of a conversation.

    Not if the template rewrites earlier turns: most leave out reasoning, or the empty block that
    was in the prompt where reasoning is off.
    """
    before = ""
    for answer in _answers(prompter, turns, visions):
        if not answer.prompt.startswith(before):
            return False
        before = answer.prompt + answer.text + END_OF_TURN
    return True


def _answers(
    prompter: Prompter, turns: Sequence[Turn], visions: Sequence[Vision]
) -> Iterator[_Answer]:
    for k, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        text = "".join(escape(part) for part in turn.parts if isinstance(part, str))
        setting: Setting = "on" if REASONING_ENDS in text else prompter.reasoning
        prompt = prompter.turns_prompt(turns[:k], visions, setting)
        yield _Answer(prompt=prompt, text=continued(text) if is_open(prompt) else text)
