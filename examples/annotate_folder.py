"""Annotate a folder of images and videos from Python, and print each caption.

    python examples/annotate_folder.py FOLDER OUTPUT

The model is the small one of ``make demo``, which runs on a CPU and knows only coloured shapes.
For your own media, set ``source`` to a published checkpoint and leave out ``sampling`` and
``budget``. The same command again continues an interrupted run, and skips what is done.
"""

import sys
from pathlib import Path

from jobs.api import Results, annotate

MODEL = Path(__file__).parents[1] / "jobs" / "demo_model"


def annotate_folder(folder: str, output: str) -> Results:
    """Annotate all media below ``folder``, write the table to ``output``, and return its rows."""
    job = {
        "name": "folder",
        "input": {"scan": folder},
        "output": output,
        "model": {"source": str(MODEL)},
        "sampling": {"fps": 4.0, "segmentation": {"kind": "window", "seconds": 6}},
        "budget": {"image_tokens": [4, 64], "frame_tokens": [4, 30], "unit_tokens": 256},
        "tasks": ["caption", "ocr"],
        "generation": {"max_new_tokens": 96},
    }
    return annotate(job, progress=True)


def main(folder: str, output: str) -> None:
    """Annotate, and print one line for each row: its caption, or its error."""
    for row in annotate_folder(folder, output).to_arrow().to_pylist():
        error = row["error"] or {}
        print(row["uri"], row["status"], row["caption"] or error.get("message"), sep="\t")


if __name__ == "__main__":
    main(*sys.argv[1:])
