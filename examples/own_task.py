"""Ask a question of your own, and get a typed column: the task ``custom``, a name, a JSON Schema.

    python examples/own_task.py FOLDER OUTPUT

The schema constrains the answer while the model generates it, so every complete answer is valid.
The model does not see the schema: the prompt has to describe the answer. A job may have any number
of such questions. For a task with a parser of its own, see docs/extend.md.
"""

import sys
from pathlib import Path
from typing import Any

from jobs.api import annotate

MODEL = Path(__file__).parents[1] / "jobs" / "demo_model"

PROMPT = """\
Which colour has the largest shape, and how many shapes are there?
Answer as JSON: {"colour": text, "shapes": number}"""

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue", "white", "black", "other"]},
        "shapes": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["colour", "shapes"],
    "additionalProperties": False,
}


def ask(folder: str, output: str) -> dict[str, dict[str, Any]]:
    """Ask the question about every image below ``folder``; return the answers by uri.

    A failed image, and an answer that was cut, are not in what is returned; they have their rows in
    the table.
    """
    job = {
        "name": "own-task",
        "input": {"scan": folder, "glob": "**/*.png"},
        "output": output,
        "model": {"source": str(MODEL)},
        "budget": {"image_tokens": [4, 64]},
        "tasks": [
            {
                "name": "largest",
                "task": "custom",
                "prompt": PROMPT,
                "json_schema": SCHEMA,
                "max_new_tokens": 128,
            }
        ],
    }
    rows = annotate(job).to_arrow().select(["uri", "largest"]).to_pylist()
    return {row["uri"]: row["largest"] for row in rows if row["largest"]}


def main(folder: str, output: str) -> None:
    """Print one answer a line. (The demo model was never taught this question.)"""
    for uri, answer in ask(folder, output).items():
        print(uri, answer["colour"], answer["shapes"], sep="\t")


if __name__ == "__main__":
    main(*sys.argv[1:])
