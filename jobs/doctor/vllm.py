"""Say what is known of vLLM before it runs: what it keeps for the further tasks of a unit."""

from jobs.doctor.finding import Finding, Warn, checked
from jobs.doctor.model import Found
from pipeline.engines.vllm.prefix import planned_prefix
from schemas.job.job import Job


def vllm_findings(job: Job, found: Found) -> list[Finding]:
    """Say whether the tasks of a unit share what vLLM has read of its media.

    No finding with another engine, or one task: nothing is shared.
    """
    num_tasks = len(job.questions())
    if job.model.engine != "vllm" or num_tasks == 1:
        return []

    def shared() -> str:
        model = job.model.model_copy(update={"source": str(found.folder), "revision": None})
        kept = planned_prefix(model)
        if kept.block_tokens is None:
            raise Warn(
                f"vLLM has no prefix cache with these engine_args: each of {num_tasks} tasks reads "
                "the media again, which are still encoded once; `plan` counts that"
            )
        if kept.block_tokens == 1:
            return f"on: {num_tasks} tasks share what was read of a unit's media"
        return (
            f"on, in blocks of {kept.block_tokens:,} tokens by vLLM's arithmetic for linear "
            "layers: media with fewer tokens are read once for each task, which `plan` counts; "
            "run.json says what vLLM chose"
        )

    return [checked("model", "prefix cache", shared)]
