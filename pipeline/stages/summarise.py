"""The stage that summarises videos: captions of their units in, one summary of each out."""

from typing import Any

import pyarrow as pa

from pipeline.engines.largest import LargestMedia
from pipeline.model.prompter import Prompter
from pipeline.output.summary import Note, Summariser, summary_job
from pipeline.stages.generate import Generate
from schemas.job.job import Job
from schemas.tables.columns import from_table, to_table
from schemas.tables.unit import PREPARED, AnsweredUnit

_NOTE = pa.struct(
    [
        pa.field("start_seconds", pa.float64()),
        pa.field("end_seconds", pa.float64()),
        pa.field("text", pa.string()),
    ]
)

UNSUMMARISED = pa.schema(
    [pa.field("item_id", pa.string(), nullable=False), pa.field("notes", pa.list_(_NOTE))]
)

SUMMARISED = UNSUMMARISED.append(pa.field("summary", pa.string())).append(
    pa.field("summary_note", pa.string())
)


class Summarise:
    """Stage: UNSUMMARISED in, SUMMARISED out. Holds the model."""

    def __init__(self, job: Job, max_model_len: int, deaths: Any, code: str, cpus: float) -> None:
        assert job.summary is not None
        summary = summary_job(job, job.summary)
        self._generate = Generate(summary, deaths, code, cpus, LargestMedia())  # text alone
        self._summariser = Summariser(
            summary.questions()[0],
            Prompter.of(job),
            max_model_len,
            lambda units: from_table(self._generate(to_table(units, PREPARED)), AnsweredUnit),
        )

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Summarise a batch of videos."""
        rows = batch.to_pylist()
        videos = [(row["item_id"], [Note(**note) for note in row["notes"]]) for row in rows]
        for row, (summary, note) in zip(rows, self._summariser.summaries(videos), strict=True):
            row |= {"summary": summary, "summary_note": note}
        return pa.Table.from_pylist(rows, schema=SUMMARISED)
