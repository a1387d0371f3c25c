"""What vLLM takes of the sampling settings: an error before work, not one for each unit."""

import importlib.util

import pytest

from jobs.doctor.settings import job_findings
from jobs.plan.open_job import open_job
from pipeline.engines.vllm.limits import check_sampling
from pipeline.storage.storage import Storage
from schemas.errors import JobFileError
from schemas.job.generation import Generation
from schemas.job.job import Job
from schemas.task import Question
from tests.support.job_files import make_job

needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here: make test-vllm"
)

REFUSED = [
    {"temperature": 2.01},
    {"temperature": 0.009},
    {"retry": {"temperature": 2.01}},
    {"retry": {"temperature": 0.009}},
]
TAKEN = [
    {},
    {"retry": None},
    {"temperature": 0.01},
    {"temperature": 2.0},
    {"temperature": 1.0, "top_p": 1e-9},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": (1 << 31) - 1},
    {"temperature": 1.0, "seed": (1 << 63) - 1},
    {"repetition_penalty": 1e-9},
    {"repetition_penalty": 1e300},
    {"presence_penalty": -2.0},
    {"presence_penalty": 2.0},
    {"max_new_tokens": 65536},
]


def job_of(checkpoint, archive, generation, engine: str = "vllm") -> Job:
    inputs = {"input": {"scan": str(archive)}, "output": str(checkpoint / "out")}
    return make_job(checkpoint, model={"engine": engine}, generation=generation, **inputs)


@pytest.mark.parametrize("generation", REFUSED)
def test_a_temperature_that_vllm_does_not_take_stops_the_job(checkpoint, archive, generation):
    job = job_of(checkpoint, archive, generation)
    name = "retry.temperature" if "retry" in generation else "temperature"
    message = f"generation.{name} is .*, and vLLM takes 0 .greedy., or 0.01 to 2: .* transformers"
    with pytest.raises(JobFileError, match=message):
        open_job(job)
    found, _ = job_findings(job, Storage(), has_machines=False)
    (finding,) = [each for each in found if each.name == "answers"]
    assert message.split(" is ")[0] in finding.text
    check_sampling(job_of(checkpoint, archive, generation, "transformers"))


@pytest.mark.parametrize("generation", TAKEN)
def test_all_else_that_a_job_may_have_is_no_error(checkpoint, archive, generation):
    check_sampling(job_of(checkpoint, archive, generation))


@pytest.mark.parametrize("name", ["top_k", "repetition_penalty"])
@pytest.mark.parametrize("value", [float("inf"), 1 << 64])
def test_values_without_a_limit_are_no_settings(name, value):
    """vLLM sends its engine whole numbers of 64 bits, and refuses an infinite penalty."""
    if name == "repetition_penalty" and value == 1 << 64:
        value = float("nan")
    for given in ({name: value}, {"retry": {name: value}}):
        with pytest.raises(ValueError, match=name):
            Generation.model_validate(given)


@needs_vllm
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("generation", [given for given in TAKEN + REFUSED if "retry" not in given])
def test_the_limits_are_those_of_vllm(generation):
    """Of the installed version: it takes a request as it is, or fails, or takes another one."""
    import msgspec
    from vllm.exceptions import VLLMValidationError

    from pipeline.engines.vllm.inputs import sampling_params

    given = Generation.model_validate(generation)
    question = Question(task="caption", max_new_tokens=given.max_new_tokens)

    def taken():
        params = sampling_params(given, question, "unit/caption", None)
        msgspec.msgpack.encode(params)  # as it is sent to the engine's process
        return params.temperature, params.top_k, params.repetition_penalty

    if generation in TAKEN:
        assert taken() == (given.temperature, given.top_k, given.repetition_penalty)
    elif given.temperature > 2:
        with pytest.raises(VLLMValidationError, match="temperature"):
            taken()
    else:
        assert taken()[0] != given.temperature
