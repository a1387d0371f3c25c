"""The script ``latest.sql`` of an output, as the end of a run writes it."""

from pathlib import Path

from pipeline.output.views import write_views
from pipeline.storage.storage import Storage


def latest_sql(output: Path | str) -> str:
    write_views(str(output), Storage())
    return Path(output, "latest.sql").read_text()
