"""The grammar of a task's answers, from its JSON Schema; imports no torch."""

import json

from llguidance import LLMatcher

from pipeline.tasks.registry import TASKS
from schemas.errors import JobFileError
from schemas.job.job import Job
from schemas.task import Question


def grammar_of(question: Question, reasoning_ids: tuple[int, int] | None = None) -> str | None:
    """The grammar of a task's answers, in llguidance's Lark syntax; None if it has no schema.

    The JSON may be in a code fence, as models usually write it.

    reasoning_ids: token ids of ``<think>`` and ``</think>``, with which an answer may begin
        reasoning of any tokens that comes before the JSON; None: it has none, or the grammar is
        applied after its end.
    """
    get_schema = TASKS[question.task].json_schema
    schema = get_schema(question) if get_schema else None
    if schema is None:
        return None
    # At most a line break and indentation: weak models would write white space without end.
    schema = schema | {"x-guidance": {"whitespace_pattern": "\\n? {0,16}"}}
    start = "answer"
    if reasoning_ids is not None:
        begin, end = reasoning_ids
        start = f"(<[{begin}]> <[^{end}]>* <[{end}]>)? answer"
    return (
        f'start: {start}\nanswer: json | "```json\\n" json "\\n```"\n'
        f"json: %json {json.dumps(schema)}\n"
    )


def check_grammars(job: Job) -> None:
    """Check before the run that answers can be constrained to the schemas of the job's tasks.

    Raises:
        JobFileError: a schema has a keyword that llguidance does not support.
    """
    for question in job.questions():
        grammar = grammar_of(question) if job.generation.constrained else None
        if grammar is not None and (problem := LLMatcher.validate_grammar(grammar)):
            raise JobFileError(
                f"tasks.{question.name}: answers cannot be constrained to its json_schema: "
                f"{problem.strip().splitlines()[0]}; change it, or set generation.constrained to "
                "false: answers are then only checked against it"
            )
