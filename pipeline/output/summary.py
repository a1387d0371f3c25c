"""Summarise a video from its units' captions, with the same model, from text alone.

Captions that together are too long for the context are summarised in pieces; then the summaries of
the pieces are summarised, until one is left.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipeline.model.prompter import Prompter
from pipeline.tasks.answers.intervals import clock
from pipeline.tasks.parse import parse_raw
from schemas.job.generation import Summary
from schemas.job.job import Job
from schemas.job.task_spec import TaskSpec
from schemas.tables.unit import AnsweredUnit, PreparedUnit, Prompt
from schemas.task import AnswerStatus, Question

TASK = "caption"
"""The task of the summary's prompt; its answer is free text."""


@dataclass(frozen=True, kw_only=True)
class Note:
    """Text about a time span of a video, in seconds on the PTS clock."""

    start_seconds: float
    end_seconds: float
    text: str

    def line(self) -> str:
        """The note as one line of the prompt: a line break would look like another note."""
        span = f"{clock(self.start_seconds)} - {clock(self.end_seconds)}"
        return f"{span}: {' '.join(self.text.split())}"


@dataclass(kw_only=True)
class _Video:
    notes: list[Note]
    problems: list[str] = field(default_factory=list)
    summary: str | None = None
    pieces: list[list[Note]] = field(default_factory=list)


def summary_job(job: Job, summary: Summary) -> Job:
    """The job of the engine that writes summaries: the same job with one task."""
    task = TaskSpec(task=TASK, prompt=summary.prompt, max_new_tokens=summary.max_new_tokens)
    return job.model_copy(update={"tasks": (task,)})


class Summariser:
    """Summarises many videos at once with an engine."""

    def __init__(
        self,
        question: Question,
        prompter: Prompter,
        max_model_len: int,
        generate: Callable[[list[PreparedUnit]], list[AnsweredUnit]],
    ) -> None:
        """question: the one of ``summary_job``. generate: the engine's method."""
        self._question = question
        self._prompter = prompter
        self._generate = generate
        empty_prompt = prompter.input_ids(None, self._text([]))
        self._max_note_tokens = max_model_len - question.max_new_tokens - len(empty_prompt)
        if self._max_note_tokens < 64:
            raise ValueError(
                f"the context of {max_model_len} tokens has no room for a summary: lower "
                "summary.max_new_tokens"
            )

    def summaries(
        self, videos: Sequence[tuple[str, Sequence[Note]]]
    ) -> list[tuple[str | None, str | None]]:
        """Summarise videos. Returns for each its summary and its problems, or None for either.

        videos: ids and notes, the notes in order of time.
        """
        states = [_Video(notes=list(notes)) for _, notes in videos]
        waiting = [k for k, state in enumerate(states) if state.notes]
        level = 0
        while waiting:
            units, owners = [], []
            for k in waiting:
                states[k].pieces = self._pieces(states[k])
                for j, piece in enumerate(states[k].pieces):
                    units.append(self._unit(f"{videos[k][0]}/{level}/{j}", piece))
                    owners.append(k)
            answers: dict[int, list[tuple[str | None, str | None]]] = {k: [] for k in waiting}
            for k, unit in zip(owners, self._generate(units), strict=True):
                answers[k].append(self._answer(unit))
            waiting = [k for k in waiting if not _store_answers(states[k], answers[k])]
            level += 1
        return [
            (state.summary, "; ".join(dict.fromkeys(state.problems)) or None) for state in states
        ]

    def _pieces(self, video: _Video) -> list[list[Note]]:
        """Split a video's notes into consecutive pieces that fit the context.

        Longer notes are cut, so that each piece but the last has two notes or more.
        """
        encode = self._prompter.tokenizer.encode
        pieces: list[list[Note]] = [[]]
        used = 0
        for note in video.notes:
            ids = encode(note.line() + "\n", add_special_tokens=False)
            if len(ids) > self._max_note_tokens // 2:
                video.problems.append("a caption too long for the context was cut")
                kept = self._prompter.decode(ids[: self._max_note_tokens // 2 - 32]).partition(
                    ": "
                )[2]
                note = dataclasses.replace(note, text=kept)
                ids = ids[: self._max_note_tokens // 2]
            if used + len(ids) > self._max_note_tokens:
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


def _store_answers(video: _Video, answers: list[tuple[str | None, str | None]]) -> bool:
    """Store a level's answers, as the summary or as the notes of the next level.

    Returns whether the video is finished.
    """
    video.problems += [problem for _, problem in answers if problem]
    if len(video.pieces) == 1:
        video.summary = answers[0][0]
        return True
    video.notes = [
        Note(start_seconds=piece[0].start_seconds, end_seconds=piece[-1].end_seconds, text=text)
        for piece, (text, _) in zip(video.pieces, answers, strict=True)
        if text is not None
    ]
    return not video.notes
