"""Reasoning: what a checkpoint's chat template does about it, found by rendering it.

A template may read the switch ``enable_thinking``, and then opens ``<think>`` in the prompt (on),
or writes an empty block there (off), or one of both. Others open it always, or never.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from schemas.errors import JobFileError
from schemas.job.job import Job
from schemas.task import REASONING_BEGINS, REASONING_ENDS

Setting = Literal["off", "on", "auto"]
SWITCHES: Mapping[Setting, Mapping[str, bool]] = {
    "off": {"enable_thinking": False},
    "on": {"enable_thinking": True},
    "auto": {},
}
"""What the template is given for each value of ``generation.reasoning``."""

_BEGIN_OF_TURN = "<|im_start|>"


@dataclass(frozen=True)
class TemplateReasoning:
    """What a chat template does about reasoning.

    prompts: a question as it is rendered for each setting.
    """

    prompts: Mapping[Setting, str]

    @classmethod
    def of(cls, render: Callable[[Setting], str]) -> "TemplateReasoning":
        """Render a question for each setting."""
        return cls({setting: render(setting) for setting in SWITCHES})

    @property
    def is_always_on(self) -> bool:
        """Whether the answer begins inside ``<think>`` although the switch is off."""
        return is_open(self.prompts["off"])

    def may_come(self, setting: Setting) -> bool:
        """Whether an answer is expected to begin with reasoning.

        Where the prompt says nothing, the model itself writes ``<think>`` if it is switched on.
        """
        prompt = self.prompts[setting]
        if is_open(prompt) or is_closed(prompt):
            return is_open(prompt)
        return prompt != self.prompts["off"]

    def effective(self, setting: Setting, *, is_given: bool) -> Setting:
        """The setting as the recipe has it: ``on`` only where it changes the prompt.

        is_given: the job file has the setting; it is not the default.

        Returns ``auto`` for a checkpoint that reasons and whose template reads no switch.

        Raises:
            JobFileError: the job file requests what the checkpoint's template cannot do.
        """
        if is_given and setting == "off" and self.is_always_on:
            raise JobFileError(
                "generation.reasoning is off, but the checkpoint only reasons: its chat template "
                f"opens {REASONING_BEGINS} whatever the switch says; leave the setting out (the "
                "reasoning is kept apart from the answer), or choose another checkpoint"
            )
        if setting == "on" and not self.may_come("on"):
            raise JobFileError(
                "generation.reasoning is on, but the checkpoint's chat template has no reasoning: "
                "with enable_thinking it is the same as without; leave the setting out, or choose "
                "another checkpoint"
            )
        if self.prompts["off"] == self.prompts["on"] == self.prompts["auto"]:
            return "auto" if self.is_always_on else "off"
        if setting == "auto":
            return "off" if self.prompts["auto"] == self.prompts["off"] else "on"
        return setting


def with_reasoning(job: Job, template: TemplateReasoning) -> Job:
    """Return the job with the effective setting of reasoning for a checkpoint's template.

    Raises:
        JobFileError: see ``TemplateReasoning.effective``.
    """
    given = job.generation
    is_given = "reasoning" in given.model_fields_set
    setting = template.effective(given.reasoning, is_given=is_given)
    if setting == given.reasoning:
        return job
    generation = given.model_copy(update={"reasoning": setting})
    return job.model_copy(update={"generation": generation})


def is_open(prompt: str) -> bool:
    """Whether a prompt ends inside ``<think>``, so that the answer begins with reasoning."""
    turn = prompt.rpartition(_BEGIN_OF_TURN)[2]
    return turn.rfind(REASONING_BEGINS) > turn.rfind(REASONING_ENDS)


def is_closed(prompt: str) -> bool:
    """Whether a prompt ends after a block of reasoning, so that none is expected."""
    turn = prompt.rpartition(_BEGIN_OF_TURN)[2]
    return turn.rfind(REASONING_ENDS) > turn.rfind(REASONING_BEGINS)


def continued(answer: str) -> str:
    """Continue an answer after the template's ``<think>`` and line break.

    An answer without reasoning closes it at once; otherwise the parser would read it as reasoning.
    """
    if REASONING_ENDS in answer:
        return answer.removeprefix(REASONING_BEGINS).removeprefix("\n")
    return f"\n{REASONING_ENDS}\n\n{answer}"
