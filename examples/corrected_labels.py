"""Teach the model by corrected labels: export, correct in Label Studio, import, fine-tune.

    make demo
    python examples/corrected_labels.py export demo/output corrected
    # Import corrected/labels/*.json into Label Studio, correct, export as JSON: labels.json
    python examples/corrected_labels.py train demo/output labels.json corrected

The training has three steps of the small demo model, to show the way. For a real one, set
``source`` to the checkpoint that wrote the table, and leave out ``training``, ``sampling`` and
``budget`` where the annotate job had the defaults. Needs the packages of
``pip install '.[finetune]'``.
"""

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from jobs.api import read
from jobs.cli.main import main as reelscribe

MODEL = Path(__file__).parents[1] / "jobs" / "demo_model"
TASKS = ("caption", "ocr", "objects")


def export(output: str, folder: str) -> None:
    """Write the images and videos of a table as Label Studio tasks, answers as predictions."""
    run("export", output, "labelstudio", "--output", f"{folder}/labels")


def train(output: str, labels: str, folder: str) -> None:
    """Train on the rows that have a label; ``folder/run/model`` is the new checkpoint.

    labels: the project's export from Label Studio, in its format JSON.
    """
    run("import-labels", labels, "--output", f"{folder}/gold.jsonl")
    write_corrected(output, f"{folder}/gold.jsonl", f"{folder}/corrected.parquet")
    job_file = write_job(folder)
    run("check-dataset", str(job_file), "--headers-only")
    run("finetune", str(job_file))


def write_corrected(output: str, gold: str, path: str) -> None:
    """Put the labels into the rows of their images, and write these rows as a table.

    An answer that a person emptied becomes null, which is not learnt.
    """
    lines = [json.loads(line) for line in Path(gold).read_text().splitlines()]
    labels = {line["media_id"]: line for line in lines}
    table = read(output).to_arrow()
    rows = [
        row | {task: labels[row["media_id"]].get(task) or None for task in TASKS}
        for row in table.to_pylist()
        if row["media_id"] in labels and row["media"]["media_type"] == "image"
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)


def write_job(folder: str) -> Path:
    """Write the training job file; what the model sees is as in jobs/specs/demo.yaml."""
    job = {
        "name": "corrected",
        "output": f"{folder}/run",
        "model": {"source": str(MODEL), "max_model_len": 2048},
        "data": [{"annotations": f"{folder}/corrected.parquet", "tasks": list(TASKS)}],
        "budget": {"image_tokens": [4, 64], "frame_tokens": [4, 30], "unit_tokens": 256},
        "training": {
            "max_steps": 3,
            "per_device_train_batch_size": 2,
            "logging_steps": 1,
            "dataloader_num_workers": 0,
        },
    }
    path = Path(folder, "corrected.yaml")
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def run(*arguments: str) -> None:
    """Run ``reelscribe`` with these arguments, in this process; end the script if it fails."""
    exit_code = reelscribe(arguments, standalone_mode=False)
    if exit_code:
        sys.exit(exit_code)


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "export":
        export(*arguments)
    else:
        train(*arguments)
