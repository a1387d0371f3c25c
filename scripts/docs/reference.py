"""Write the reference pages from the code.

`python -m scripts.docs.reference` writes docs/job-file.md, finetune-file.md, output-schema.md,
budgets.md and the JSON Schemas of both job files. With `--check` it changes nothing, and the exit
code is 1 if one of them is stale.
"""

import json
import sys
from pathlib import Path

import click

from schemas.job.json_schema import finetune_schema, job_schema
from scripts.docs.budgets import budgets_page
from scripts.docs.job_pages import finetune_page, job_page
from scripts.docs.tables_page import output_page

DOCS = Path(__file__).parents[2] / "docs"


def pages() -> dict[str, str]:
    """Return the reference pages: file name in docs/ -> content."""
    schema, training = job_schema(), finetune_schema()
    return {
        "job-file.md": job_page(schema),
        "job.schema.json": json.dumps(schema, indent=2, ensure_ascii=False) + "\n",
        "finetune-file.md": finetune_page(training),
        "finetune.schema.json": json.dumps(training, indent=2, ensure_ascii=False) + "\n",
        "output-schema.md": output_page(),
        "budgets.md": budgets_page(),
    }


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 if a page is stale.")
def main(check: bool) -> None:
    """Write the reference pages in docs/."""
    stale = []
    for name, content in pages().items():
        path = DOCS / name
        if path.exists() and path.read_text(encoding="utf-8") == content:
            continue
        stale.append(name)
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(content, encoding="utf-8")
    for name in stale:
        state = "is stale, run `python -m scripts.docs.reference`" if check else "was written"
        click.echo(f"docs/{name} {state}", err=check)
    sys.exit(1 if check and stale else 0)


if __name__ == "__main__":
    main(prog_name="python -m scripts.docs.reference")
