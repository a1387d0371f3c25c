"""``model.engine: auto``: vLLM where the GPUs are if it is there, and a job keeps its engine."""

import dataclasses
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from jobs.cluster import engine_choice
from jobs.cluster.engine_choice import Choice, check_vllm_here, choose, chosen_here, with_engine
from jobs.cluster.one_engine import one_engine
from jobs.cluster.small import early_engine, why_ray
from jobs.plan import plan
from jobs.plan.open_job import JobContext, open_job
from jobs.plan.runs import open_run
from jobs.run import annotate
from pipeline.output.file_names import file_name
from pipeline.output.rows import ANNOTATION
from pipeline.plan.recipe import recipe, recipe_id
from pipeline.storage.parquet import write_parquet
from pipeline.storage.storage import Storage, join
from schemas.errors import JobFileError, ModelError
from schemas.job.engines import Vllm
from schemas.job.job import Job, check_job
from tests.support.job_files import SMALL, make_job
from tests.support.paths import ROOT
from tests.support.ray_cluster import TOKEN, running_cluster

VLLM = Choice("vllm", "the cluster has vLLM 0.33.0 and 8 GPUs")
TRANSFORMERS = Choice("transformers", "this machine has no GPU")
Machine = Callable[..., None]


@pytest.fixture
def machine(no_ray: None, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Sets what this machine has."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def has(*, gpus: int = 0, device_file: bool = True, vllm: str | None = None) -> None:
        problem = None if vllm else "vLLM is not installed here"
        monkeypatch.setattr(engine_choice, "may_have_gpu", lambda: device_file)
        monkeypatch.setattr(engine_choice, "num_gpus", lambda: gpus)
        monkeypatch.setattr(engine_choice, "vllm_problem", lambda: problem)
        monkeypatch.setattr(engine_choice, "vllm_version", lambda: vllm)

    return has


@pytest.mark.parametrize(
    ("has", "engine", "reason"),
    [
        ({"gpus": 2, "vllm": "0.33.0"}, "vllm", "this machine has vLLM 0.33.0 and 2 GPUs"),
        ({"gpus": 1, "vllm": "0.32.1"}, "vllm", "this machine has vLLM 0.32.1 and 1 GPU"),
        ({"gpus": 2}, "transformers", "vLLM is not installed here (pip install 'vllm"),
        ({"device_file": False, "vllm": "0.33.0"}, "transformers", "this machine has no GPU"),
        ({"gpus": 0, "vllm": "0.33.0"}, "transformers", "torch sees no GPU on this machine"),
    ],
)
def test_auto_is_vllm_where_a_gpu_and_vllm_are(
    machine: Machine, has: dict[str, Any], engine: str, reason: str
):
    machine(**has)
    choice = choose(make_job())
    assert choice == chosen_here(make_job())
    assert choice.engine == engine and choice.reason.startswith(reason)


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"model": {"device": "cpu"}}, "model.device is cpu"),
        ({"resources": {"gpus_per_replica": 0}}, "resources.gpus_per_replica is 0"),
        ({"resources": {"gpus_per_replica": 0.5}}, "resources.gpus_per_replica is 0.5"),
        ({"model": {"attn_implementation": "eager"}}, "model.attn_implementation is a setting"),
    ],
)
def test_a_setting_of_the_job_may_mean_transformers(
    machine: Machine, sections: dict[str, Any], reason: str
):
    machine(gpus=8, vllm="0.33.0")
    choice = choose(make_job(**sections))
    assert choice.engine == "transformers" and choice.reason.startswith(reason)


def test_a_small_job_goes_to_ray_with_vllm(machine: Machine):
    machine(gpus=1, vllm="0.33.0")
    assert why_ray(make_job(), 1, "units") == "model.engine is vllm"
    with early_engine(make_job()) as engine:
        assert engine is None
    machine(gpus=1)
    assert why_ray(make_job(), 1, "units") is None


def test_settings_of_vllm_are_allowed_and_said_to_be_idle():
    job = make_job(model={"vllm": {"quantization": "fp8"}})
    chosen, line = with_engine(job, VLLM)
    assert line == "vllm: the cluster has vLLM 0.33.0 and 8 GPUs"
    explicit = make_job(model={"engine": "vllm", "vllm": {"quantization": "fp8"}})
    assert recipe(chosen, "w") == recipe(explicit, "w")
    chosen, line = with_engine(job, TRANSFORMERS)
    assert line == (
        "transformers: this machine has no GPU; the settings in model.vllm have no effect"
    )
    assert recipe(chosen, "w") == recipe(make_job(model={"engine": "transformers"}), "w")
    with pytest.raises(JobFileError, match="`engine` is transformers"):
        make_job(model={"engine": "transformers", "vllm": {"max_num_seqs": 8}})


def test_several_gpus_for_an_engine_need_vllm():
    job = make_job(resources={"gpus_per_replica": 2})
    assert with_engine(job, VLLM)[0].model.engine == "vllm"
    with pytest.raises(JobFileError, match="uses one GPU: this machine has no GPU"):
        with_engine(job, TRANSFORMERS)


@pytest.fixture
def job(no_ray: None, archive: Path, checkpoint: Path, tmp_path: Path) -> Job:
    spec = SMALL | {"input": {"scan": str(archive / "images"), "limit": 3}}
    spec |= {"output": str(tmp_path / "out"), "model": {"source": str(checkpoint)}}
    return check_job(spec, "test")


@pytest.fixture
def choice(monkeypatch: pytest.MonkeyPatch) -> Callable[[Choice], None]:
    """Sets what the machines of the next command have."""
    return lambda made: monkeypatch.setattr("jobs.plan.job_engine.choose", lambda _: made)


def begun(context: JobContext, kind: str | None = "image") -> str:
    """Write the run as one that has begun, and a file of rows of a kind; returns its id."""
    run = dataclasses.replace(context.run, starts=1)
    run.save(context.job, context.storage)
    if kind is not None:
        name = file_name(run.run_id, getattr(run.recipe_ids, kind))
        folder = join(context.job.output, "annotations", f"run_date={run.run_date}")
        write_parquet(ANNOTATION.empty_table(), join(folder, name), context.storage)
    return run.run_id


def test_plan_and_run_json_say_which_engine_and_why(job: Job, choice):
    choice(TRANSFORMERS)
    said = io.StringIO()
    plan.run(job, Console(file=said, width=200))
    assert "the engine is transformers: this machine has no GPU" in said.getvalue()
    (written,) = Path(job.output, "runs").glob("*/run.json")
    content = json.loads(written.read_text())
    assert content["engine"] == "transformers: this machine has no GPU"
    assert content["job"]["model"]["engine"] == content["recipe"]["model"]["engine"]


def test_what_was_planned_without_a_gpu_is_annotated_with_one(job: Job, choice):
    choice(TRANSFORMERS)
    planned = plan.run(job, Console(file=io.StringIO()))
    choice(VLLM)
    context, _ = open_job(job)
    assert context.job.model.engine == "vllm"
    assert context.run.engine == "vllm: the cluster has vLLM 0.33.0 and 8 GPUs"
    (written,) = Path(job.output, "runs").glob("*/run.json")
    assert context.run.run_id == written.parent.name and context.changes == []
    assert context.run.fingerprint["recipe"] == recipe_id(context.run.recipe)
    assert context.run.recipe["model"]["engine"] == "vllm"
    assert planned.num_rows == 3
    assert plan.run(job, Console(file=io.StringIO())).equals(planned), "not planned again"


def test_a_job_that_has_rows_keeps_its_engine(job: Job, choice, machine: Machine):
    choice(VLLM)
    first = begun(open_job(job)[0])
    choice(TRANSFORMERS)
    context, _ = open_job(job)
    assert (context.run.run_id, context.job.model.engine) == (first, "vllm")
    assert context.run.engine == f"vllm: {VLLM.reason}", "what was known at its start"
    another_night = job.input.model_copy(update={"limit": 2})
    context, _ = open_job(job.model_copy(update={"input": another_night}))
    assert context.run.run_id != first and context.job.model.engine == "vllm"
    line = f"vllm: as in the run {first}; another one would answer its units again"
    assert context.run.engine == line
    machine(device_file=False)
    with pytest.raises(
        ModelError, match=f"{first} has the engine vllm.*vLLM is not installed here"
    ):
        annotate.run(job, Console(file=io.StringIO()))


@pytest.mark.parametrize("change", ["name", "fps"])
def test_rows_that_another_run_would_use_keep_their_engine(job: Job, choice, change: str):
    """Rows are used by runs of every name, and another rate of frames asks no image again."""
    choice(TRANSFORMERS)
    first = begun(open_job(job)[0])
    choice(VLLM)
    changed: dict[str, Any] = {"name": "another"}
    if change == "fps":
        changed = {"sampling": job.sampling.model_copy(update={"fps": 0.5})}
    context, _ = open_job(job.model_copy(update=changed))
    assert context.run.run_id != first
    assert context.job.model.engine == "transformers"


@pytest.mark.parametrize("kind", [None, "unread"])
def test_a_run_without_answers_binds_no_engine(job: Job, choice, kind: str | None):
    """Its engine may have failed while it loaded the model."""
    choice(VLLM)
    begun(open_job(job)[0], kind)
    choice(TRANSFORMERS)
    assert open_job(job)[0].job.model.engine == "transformers"


def test_the_engine_of_the_newest_rows_wins_and_a_named_one_begins_a_new_run(job: Job, choice):
    choice(TRANSFORMERS)
    first = begun(open_job(job)[0])
    named = job.model_copy(update={"model": job.model.model_copy(update={"engine": "simulated"})})
    context, _ = open_job(named)
    assert context.run.engine == "simulated: set by model.engine"
    assert context.run.run_id != first
    assert context.changes == [f"recipe.model.engine differs from {first}"]
    begun(context)
    choice(VLLM)
    assert open_job(job)[0].run.run_id == first, "simulated rows are no answers"
    other = job.model_copy(update={"tasks": job.tasks[:1]})
    assert open_job(other)[0].job.model.engine == "vllm", "another recipe answers again anyway"


def test_a_planned_run_is_taken_for_another_engine_and_for_nothing_else(job: Job, choice):
    choice(TRANSFORMERS)
    context, _ = open_job(job)
    context.run.save(context.job, context.storage)
    storage = Storage()
    settings = context.run.recipe | {"budget": {}}
    fresh, changes = open_run(job, context.run.fingerprint["manifest"], settings, storage)
    assert fresh.run_id != context.run.run_id and changes
    begun(context)
    choice(VLLM)
    assert open_job(job)[0].job.model.engine == "transformers"


def test_a_planned_run_does_not_take_the_place_of_one_that_has_begun(job: Job, choice):
    choice(VLLM)
    context, _ = open_job(job)
    begun_run = dataclasses.replace(context.run, starts=1)
    planned = dataclasses.replace(context.run, run_id="0-planned")
    digest, settings = context.run.fingerprint["manifest"], context.run.recipe
    for runs in ([planned, begun_run], [begun_run, planned]):
        assert open_run(job, digest, settings, Storage(), runs)[0].run_id == begun_run.run_id


def test_weights_are_predicted_in_the_precision_of_the_chosen_engine(job: Job, choice):
    model = job.model.model_copy(update={"vllm": Vllm(quantization="fp8")})
    set_ = job.model_copy(update={"model": model})
    for made, is_fp8 in ((TRANSFORMERS, False), (VLLM, True)):
        choice(made)
        assert open_job(set_)[0].checkpoint.memory.is_fp8 == is_fp8


def test_a_plan_for_vllm_needs_no_vllm_and_work_does(job: Job, machine: Machine, monkeypatch):
    model = job.model.model_copy(update={"engine": "vllm"})
    named = job.model_copy(update={"model": model})
    monkeypatch.setattr("pipeline.engines.vllm.args.vllm_problem", lambda: "vLLM is not here")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    said = io.StringIO()
    assert plan.run(named, Console(file=said, width=200), gpu="h100").num_rows == 3
    assert "memory of h100" in said.getvalue() and "GB, vllm" in said.getvalue()
    with pytest.raises(ModelError, match="^model.engine is vllm, but vLLM is not here"):
        annotate.run(named, Console(file=io.StringIO()))
    with (
        pytest.raises(ModelError, match="^model.engine is vllm, but vLLM is not here"),
        one_engine(named, 1, Console(file=io.StringIO())),
    ):
        pass


def test_a_ray_on_this_machine_has_its_own_vllm(machine: Machine, monkeypatch):
    """One that was started with ``ray start`` on a head without GPUs."""
    machine()
    monkeypatch.setattr("pipeline.engines.vllm.args.vllm_problem", lambda: "vLLM is not here")
    job = make_job(model={"engine": "vllm"})
    with pytest.raises(ModelError):
        check_vllm_here(job)
    monkeypatch.setattr(engine_choice, "running_ray", lambda: "10.0.0.1:6379")
    check_vllm_here(job)
    monkeypatch.setattr(engine_choice, "running_ray", lambda: None)
    monkeypatch.setattr(engine_choice, "has_session", lambda: True)
    check_vllm_here(job)


def test_quantised_weights_are_refused_before_work_or_given_to_vllm(
    job: Job, choice, checkpoint: Path, monkeypatch, caplog
):
    file = checkpoint / "config.json"
    whole = file.read_text()
    config = json.loads(whole) | {"quantization_config": {"quant_method": "fp8"}}
    file.write_text(json.dumps(config))
    try:
        choice(TRANSFORMERS)
        with pytest.raises(ModelError, match=r"quantised \(fp8\).*transformers: this machine has"):
            open_job(job)
        plan.run(job, Console(file=io.StringIO()), dry_run=True)
        assert "transformers computes only with further packages" in caplog.text
        for model in ({"engine": "transformers"}, {}):  # named, or chosen by a cluster
            if not model:
                monkeypatch.setattr("jobs.plan.job_engine.runs_here", lambda: False)
            named = job.model_copy(update={"model": job.model.model_copy(update=model)})
            with pytest.raises(ModelError, match=r"quantised \(fp8\)"):
                open_job(named, only_plan=True)
        choice(VLLM)
        assert open_job(job)[0].checkpoint.quantization == "fp8"
    finally:
        file.write_text(whole)


ASK = """
from jobs.cluster.engine_choice import choose
from tests.support.job_files import make_job
print(*choose(make_job()), sep=": ")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("have_it", "said"),
    [
        ([True, True], "vllm: the cluster has vLLM 0.33.1 and 4 GPUs"),
        ([True, False], "transformers: on 1 of 2 machines with a GPU: vLLM is not installed here"),
    ],
)
def test_the_machines_of_a_cluster_are_asked(tmp_path: Path, have_it: list[bool], said: str):
    """Not the driver's, which has no vLLM in this test."""
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    (tmp_path / "vllm-0.33.1.dist-info").mkdir()
    (tmp_path / "vllm-0.33.1.dist-info" / "METADATA").write_text("Name: vllm\nVersion: 0.33.1\n")
    found = {"PYTHONPATH": str(tmp_path)}
    workers = [
        {"num_cpus": 1, "num_gpus": 2, "env_vars": found if has else {"PYTHONPATH": ""}}
        for has in have_it
    ]
    with running_cluster({"num_cpus": 1, "num_gpus": 0}, *workers) as cluster:
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
        done = subprocess.run(
            [sys.executable, "-c", ASK],
            env=os.environ | token | {"RAY_ADDRESS": cluster.head},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stdout.startswith(said), done.stderr


def test_a_growing_cluster_without_a_gpu_yet_wants_the_engine_named(
    monkeypatch: pytest.MonkeyPatch,
):
    import ray

    from schemas.errors import ResourceError

    monkeypatch.setattr(engine_choice, "has_session", lambda: True)
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0}}])
    assert choose(make_job()).reason == "the cluster has no machine with a GPU"
    growing = {"wait_seconds": 60, "replicas": 1, "decoders": 1}
    with pytest.raises(ResourceError, match=r"no machine with a GPU yet.*set model\.engine"):
        choose(make_job(resources=growing))
    assert choose(make_job(resources=growing | {"gpus_per_replica": 0})).engine == "transformers"
