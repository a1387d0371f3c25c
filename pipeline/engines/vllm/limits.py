"""What vLLM takes of a job's sampling settings: less than a job file may have.

Importing this module does not import vLLM.

Source: ``SamplingParams`` of vLLM 0.32.
"""

from schemas.errors import JobFileError
from schemas.job.job import Job

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 2.0
"""Beside 0, which is greedy. vLLM takes a lower temperature as the minimum, and refuses requests
with a higher one."""


def check_sampling(job: Job) -> None:
    """Check that vLLM takes the job's temperatures; another engine takes all.

    Else each unit would fail by itself, or be answered with another temperature.

    Raises:
        JobFileError: it does not take one of them.
    """
    if job.model.engine != "vllm":
        return
    given = {"generation.temperature": job.generation.temperature}
    if job.generation.retry is not None:
        given["generation.retry.temperature"] = job.generation.retry.temperature
    for name, temperature in given.items():
        if temperature and not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
            raise JobFileError(
                f"{name} is {temperature:g}, and vLLM takes 0 (greedy), or {MIN_TEMPERATURE:g} to "
                f"{MAX_TEMPERATURE:g}: change it, or set model.engine to transformers"
            )
