"""One summary of a video out of its units' captions, by the same model, from text alone.

Captions that are too long for the context together are summarised in pieces first, then the
pieces' summaries, until one remains.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipeline.parse import parse_raw
from pipeline.prompt import Prompter
from pipeline.tasks.intervals import clock
from schemas.job import Job, Summary
from schemas.task import AnswerStatus, Question
from schemas.task_spec import TaskSpec
from schemas.unit import AnsweredUnit, PreparedUnit, Prompt

TASK = "caption"
"""The task whose question the summary is: free text."""


@dataclass(frozen=True, kw_only=True)
class Note:
    """What is said of a stretch of a video, in seconds on the PTS clock."""

    start_seconds: float
    end_seconds: float
    text: str

    def line(self) -> str:
        """The note as the model reads it; line breaks of its own would look like further notes."""
        stretch = f"{clock(self.start_seconds)} - {clock(self.end_seconds)}"
        return f"{stretch}: {' '.join(self.text.split())}"


@dataclass(kw_only=True)
class _Video:
    said: list[Note]
    problems: list[str] = field(default_factory=list)
    summary: str | None = None
    pieces: list[list[Note]] = field(default_factory=list)


def summary_job(job: Job, summary: Summary) -> Job:
    """The job whose engine writes summaries: the same, asked one question."""
    task = TaskSpec(name=TASK, prompt=summary.prompt, max_new_tokens=summary.max_new_tokens)
    return job.model_copy(update={"tasks": (task,)})


class Summariser:
    """Asks an engine for summaries of many videos at once."""

    def __init__(
        self,
        question: Question,
        prompter: Prompter,
        max_model_len: int,
        generate: Callable[[list[PreparedUnit]], list[AnsweredUnit]],
    ) -> None:
        """question: that of ``summary_job``."""
        self._question = question
        self._prompter = prompter
        self._generate = generate
        asked = prompter.input_ids(None, self._text([]))
        self._room = max_model_len - question.max_new_tokens - len(asked)
        if self._room < 64:
            raise ValueError(f"the context of {max_model_len} leaves no room for a summary")

    def summaries(
        self, videos: Sequence[tuple[str, Sequence[Note]]]
    ) -> list[tuple[str | None, str | None]]:
        """Summary and note of each video; no summary where nothing is said of it, or it failed.

        videos: id and notes, in their order in time.
        """
        states = [_Video(said=list(said)) for _, said in videos]
        waiting = [k for k, state in enumerate(states) if state.said]
        level = 0
        while waiting:
            units, asked = [], []
            for k in waiting:
                states[k].pieces = self._pieces(states[k])
                for j, piece in enumerate(states[k].pieces):
                    units.append(self._unit(f"{videos[k][0]}/{level}/{j}", piece))
                    asked.append(k)
            answers: dict[int, list[tuple[str | None, str | None]]] = {k: [] for k in waiting}
            for k, unit in zip(asked, self._generate(units), strict=True):
                answers[k].append(self._answer(unit))
            waiting = [k for k in waiting if _is_unfinished(states[k], answers[k])]
            level += 1
        return [
            (state.summary, "; ".join(dict.fromkeys(state.problems)) or None) for state in states
        ]

    def _pieces(self, video: _Video) -> list[list[Note]]:
        """Consecutive notes that fit the context together, two at the least where there are two."""
        encode = self._prompter.tokenizer.encode
        pieces: list[list[Note]] = [[]]
        used = 0
        for note in video.said:
            ids = encode(note.line() + "\n", add_special_tokens=False)
            if len(ids) > self._room // 2:
                video.problems.append("a caption too long for the context was cut")
                kept = self._prompter.decode(ids[: self._room // 2 - 32]).partition(": ")[2]
                note = dataclasses.replace(note, text=kept)
                ids = ids[: self._room // 2]
            if used + len(ids) > self._room:
                pieces.append([])
                used = 0
            pieces[-1].append(note)
            used += len(ids)
        return pieces

    def _text(self, piece: Sequence[Note]) -> str:
        return "\n".join([str(self._question.prompt), "", *(note.line() for note in piece)])

    def _unit(self, unit_id: str, piece: Sequence[Note]) -> PreparedUnit:
        ids = tuple(self._prompter.input_ids(None, self._text(piece)))
        return PreparedUnit(
            unit_id=unit_id,
            media_id=unit_id,
            uri="",
            prompts=(
                Prompt(
                    task=TASK, num_prompt_tokens=len(ids), num_own_tokens=len(ids), input_ids=ids
                ),
            ),
            predicted_cost=float(len(ids) + self._question.max_new_tokens),
        )

    def _answer(self, unit: AnsweredUnit) -> tuple[str | None, str | None]:
        if unit.error is not None:
            return None, f"{unit.error.type}: {unit.error.message}"
        answer = parse_raw(unit, unit.answers[0], {TASK: self._question})
        note = None if answer.status == AnswerStatus.OK else answer.note
        return answer.value, note


def _is_unfinished(video: _Video, answers: list[tuple[str | None, str | None]]) -> bool:
    """Take a level's answers in: the summary, or the notes of the next level."""
    video.problems += [problem for _, problem in answers if problem]
    if len(video.pieces) == 1:
        video.summary = answers[0][0]
        return False
    video.said = [
        Note(start_seconds=piece[0].start_seconds, end_seconds=piece[-1].end_seconds, text=text)
        for piece, (text, _) in zip(video.pieces, answers, strict=True)
        if text is not None
    ]
    return bool(video.said)
