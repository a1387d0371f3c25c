"""How actors are fitted into a cluster: a run that cannot be scheduled must say so."""

import os
import socket
import subprocess
import sys

import pytest

from jobs.cluster import session as cluster
from jobs.cluster import start
from jobs.cluster.fit import fit_pools
from jobs.cluster.session import actor_errors, fit_job, plan_actors
from pipeline.stages.plan import Plan
from schemas.errors import ResourceError
from schemas.job.job import check_job
from schemas.job.resources import Resources
from tests.support.paths import ROOT


def test_on_two_cpus_one_engine_and_one_decoder():
    pools = fit_pools(Resources(), [{"CPU": 2}])
    assert (pools.replicas, pools.decoders, pools.gpus_per_replica) == (1, 1, 0)


def test_an_engine_for_each_gpu_and_the_other_cpus_decode():
    pools = fit_pools(Resources(), [{"CPU": 64, "GPU": 8}])
    assert (pools.replicas, pools.gpus_per_replica, pools.decoders) == (8, 1, 56)


@pytest.mark.parametrize(
    ("given", "cpus", "replica", "decoders"),
    [
        ({}, [3], 2, 1),
        ({}, [8], 6, 2),
        ({"decoders": 4}, [8], 4, 4),
        ({"cpus_per_replica": 1.0}, [8], 1, 7),
        ({"replicas": 2}, [8], 3, 2),
        ({"replicas": 2}, [8, 8], 6, 4),
        ({"replicas": 3}, [0, 8, 8], 3, 7),
        ({"replicas": 2}, [4, 8], 3, 6),
        ({"replicas": 2, "decoders": 10}, [8, 8], 3, 10),
    ],
)
def test_an_engine_without_a_gpu_has_most_of_a_node(given, cpus, replica, decoders):
    pools = fit_pools(Resources(**given), [{"CPU": each} for each in cpus])
    assert (pools.cpus_per_replica, pools.decoders) == (replica, decoders)


def test_half_a_gpu_each():
    pools = fit_pools(Resources(gpus_per_replica=0.5), [{"CPU": 16, "GPU": 2}])
    assert (pools.replicas, pools.gpus_per_replica) == (4, 0.5)


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus"),
    [
        (Resources(replicas=3), 16, 2),
        (Resources(decoders=16), 16, 0),
        (Resources(), 1, 0),
        (Resources(gpus_per_replica=1.0, replicas=1), 8, 0),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(resources, cpus, gpus):
    with pytest.raises(
        ResourceError, match=rf"do not fit into the cluster's {cpus} CPUs and {gpus}"
    ):
        fit_pools(resources, [{"CPU": cpus, "GPU": gpus}])


def test_a_replica_is_on_one_node():
    nodes = [{"CPU": 8}, {"CPU": 8, "GPU": 4}, {"CPU": 8, "GPU": 7}]
    assert fit_pools(Resources(gpus_per_replica=2.0), nodes).replicas == 5
    with pytest.raises(ResourceError, match="24 CPUs and 11 GPUs on 3 nodes, a replica on one"):
        fit_pools(Resources(gpus_per_replica=8.0), nodes)
    with pytest.raises(ResourceError, match="on 3 nodes"):
        fit_pools(Resources(replicas=1, gpus_per_replica=0, cpus_per_replica=12), nodes)


def test_ten_tenths_of_a_gpu_are_ten():
    assert fit_pools(Resources(gpus_per_replica=0.1), [{"CPU": 16, "GPU": 1}]).replicas == 10


@pytest.mark.parametrize(
    ("nodes", "tensor_parallel", "expected"),
    [
        ([{"CPU": 64, "GPU": 8}], 1, (8, 1, 3, 40)),
        ([{"CPU": 64, "GPU": 8}], 4, (2, 4, 6, 52)),
        ([{"CPU": 16, "GPU": 8}], 1, (8, 1, 1, 8)),  # the decoders keep half
        ([{"CPU": 2, "GPU": 1}], 1, (1, 1, 1, 1)),
        ([{"CPU": 96}, {"CPU": 32, "GPU": 8}], 1, (8, 1, 2, 112)),
    ],
)
def test_vllm_has_cpus_for_its_processes(nodes, tensor_parallel, expected, machines_of):
    machines_of(nodes)
    pools = fit_job(vllm_job(tensor_parallel))
    found = (pools.replicas, pools.gpus_per_replica, pools.cpus_per_replica, pools.decoders)
    assert found == expected


def test_decoders_of_a_given_number_come_before_cpus_of_engines(machines_of):
    machines_of([{"CPU": 24, "GPU": 4}])
    pools = fit_job(vllm_job(1, decoders=18))
    assert (pools.replicas, pools.cpus_per_replica, pools.decoders) == (4, 1, 18)


def vllm_job(tensor_parallel: int, device: str = "auto", **resources):
    model = {"engine": "vllm", "vllm": {"tensor_parallel_size": tensor_parallel}, "device": device}
    spec = {"input": {"scan": "x"}, "output": "y", "model": model, "resources": resources}
    return check_job(spec, "test")


@pytest.fixture
def machines_of(monkeypatch: pytest.MonkeyPatch):
    """A cluster of the given nodes; a list of such lists: it grows, one at each look."""
    import ray

    monkeypatch.setattr("jobs.cluster.machines.has_session", lambda: True)
    monkeypatch.setattr(cluster.time, "sleep", lambda seconds: None)

    def set_nodes(*looks) -> None:
        left = list(looks)
        monkeypatch.setattr(
            ray,
            "nodes",
            lambda: [
                {"Alive": True, "Resources": node}
                for node in (left.pop(0) if len(left) > 1 else left[0])
            ],
        )

    return set_nodes


@pytest.mark.parametrize(
    ("job", "engine"),
    [
        (vllm_job(4, replicas=2, decoders=3, wait_seconds=60), {"CPU": 1.0, "GPU": 4}),
        (vllm_job(1, replicas=2, decoders=3, wait_seconds=60), {"CPU": 1.0, "GPU": 1}),
        (vllm_job(1, "cpu", replicas=2, decoders=3, wait_seconds=60), {"CPU": 1.0}),
        (
            vllm_job(1, replicas=2, decoders=3, wait_seconds=60, gpus_per_replica=0),
            {"CPU": 1.0},
        ),
    ],
)
def test_a_growing_cluster_is_asked_for_the_gpus_of_vllm(job, engine, machines_of, monkeypatch):
    """Engines are not fitted on the CPU nodes that are there first."""
    import ray.autoscaler.sdk

    asked = []
    monkeypatch.setattr(
        ray.autoscaler.sdk, "request_resources", lambda bundles: asked.append(bundles)
    )
    gpus = {"GPU": 8.0} if "GPU" in engine else {}
    machines_of([{"CPU": 3.0}], [{"CPU": 64.0, **gpus}])
    with cluster.fitted_pools(job) as pools:
        assert pools.gpus_per_replica == engine.get("GPU", 0)
        assert asked == [[engine] * 2 + [{"CPU": 1.0}] * 3]


def test_a_growing_cluster_is_asked_for_the_gpu_of_a_job_for_cuda(machines_of, monkeypatch):
    import ray.autoscaler.sdk

    asked = []
    monkeypatch.setattr(
        ray.autoscaler.sdk, "request_resources", lambda bundles: asked.append(bundles)
    )
    spec = {"input": {"scan": "x"}, "output": "y", "model": {"device": "cuda"}}
    spec |= {"resources": {"replicas": 1, "decoders": 1, "wait_seconds": 60}}
    machines_of([{"CPU": 8.0}], [{"CPU": 8.0, "GPU": 1.0}])
    with cluster.fitted_pools(check_job(spec, "test")) as pools:
        assert pools.gpus_per_replica == 1
    assert asked[0] == [{"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0}]


def test_ray_data_does_not_end_a_run_while_engines_load(ray_session):
    """Its guard, as an execution makes it, is off; an engine may load for an hour."""
    import ray
    from ray.data._internal.execution.no_progress_guard import NoProgressGuard
    from rich.console import Console

    context = ray.data.DataContext.get_current()
    context.execution_no_progress_timeout_s = 1800.0
    with cluster.ray_session(Console(quiet=True)):
        limit = ray.data.DataContext.get_current().execution_no_progress_timeout_s
        assert not NoProgressGuard({}, limit).enabled


@pytest.mark.parametrize(("items", "actors"), [(1, 1), (256, 1), (257, 2), (10**6, 3)])
def test_planning_uses_more_actors_for_more_items(ray_session, items: int, actors: int):
    assert plan_actors(items) == actors


def test_workers_with_other_code_stop_the_run_with_one_message(ray_session):
    import ray

    dataset = ray.data.from_items([{"item": 1}]).map_batches(
        Plan,
        fn_constructor_args=(None, 0, None, "0123456789abcdef"),
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    with pytest.raises(ResourceError, match="install the same version") as caught, actor_errors():
        dataset.materialize()
    assert "Traceback" not in str(caught.value)


def test_waiting_for_the_nodes_of_a_growing_cluster(monkeypatch: pytest.MonkeyPatch):
    """The autoscaler is asked once, and the job starts when the nodes are there."""
    import ray
    import ray.autoscaler.sdk

    asked, slept = [], []
    cpus = lambda: 6.0 if len(slept) == 2 else 0.0  # noqa: E731
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": cpus()}}])
    monkeypatch.setattr("jobs.cluster.machines.has_session", lambda: True)
    monkeypatch.setattr(
        ray.autoscaler.sdk, "request_resources", lambda bundles: asked.append(bundles)
    )
    monkeypatch.setattr(cluster.time, "sleep", slept.append)
    spec = {"input": {"scan": "x"}, "output": "y", "model": {"device": "cpu"}}
    spec |= {"resources": {"replicas": 2, "decoders": 3, "wait_seconds": 60}}
    with cluster.fitted_pools(check_job(spec, "test")) as fitted:
        assert (fitted.replicas, fitted.decoders, fitted.max_decoders) == (2, 3, None)
        assert asked == [[{"CPU": 1.0}] * 5]
    assert asked[1:] == [[]]  # let go


@pytest.mark.parametrize(
    ("machines", "replicas", "decoders"),
    [
        ([{"CPU": 2.0, "GPU": 1.0}], 4, 1),
        ([{"CPU": 8.0, "GPU": 1.0}], 4, 7),
        ([{"CPU": 4.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}], 4, 5),
        ([{"CPU": 64.0, "GPU": 3.0}], 4, 16),
    ],
)
def test_a_run_begins_with_the_nodes_that_are_there(
    machines, replicas, decoders, machines_of, monkeypatch
):
    """The engines that do not fit yet are pending actors; decoders take no CPU of theirs."""
    import ray.autoscaler.sdk

    monkeypatch.setattr(ray.autoscaler.sdk, "request_resources", lambda bundles: None)
    machines_of(machines)
    spec = {"input": {"scan": "x"}, "output": "y", "model": {"engine": "transformers"}}
    sizes = {"replicas": 4, "decoders": 16, "gpus_per_replica": 1, "wait_seconds": 60}
    with cluster.fitted_pools(check_job(spec | {"resources": sizes}, "test")) as fitted:
        found = (fitted.replicas, fitted.decoders, fitted.max_decoders)
        assert found == (replicas, decoders, 16)
        assert fitted.gpus_per_replica == 1
    del sizes["wait_seconds"]
    with (
        pytest.raises(ResourceError, match="do not fit"),
        cluster.fitted_pools(check_job(spec | {"resources": sizes}, "test")),
    ):
        pass


@pytest.mark.parametrize("address", ["127.0.0.1:{refused}", "no-such-host.invalid:6379", "head:x"])
def test_a_cluster_that_does_not_answer_is_one_message(
    address: str, monkeypatch: pytest.MonkeyPatch
):
    """After a second here, after 30 for a cluster that may be starting."""
    monkeypatch.setattr(start, "_CLUSTER_SECONDS", 1.0)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # bound but not listening: it refuses
        address = address.format(refused=bound.getsockname()[1])
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ResourceError, match=f"RAY_ADDRESS={address} does not answer"):
            start.start_ray()


def test_a_server_that_is_no_ray_is_one_message(http):
    """In a process of its own: Ray reads its timeouts once."""
    address = f"127.0.0.1:{http.server_port}"
    code = "from jobs.cluster.start import start_ray; start_ray()"
    timeouts = {
        f"RAY_{name}_timeout_s": "1" for name in ("gcs_rpc_server_connect", "py_gcs_connect")
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | timeouts | {"RAY_ADDRESS": address},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert f"the Ray cluster at RAY_ADDRESS={address} does not answer" in done.stderr


def test_a_ray_that_is_late_to_start_is_one_message(monkeypatch: pytest.MonkeyPatch):
    """On a busy machine; Ray raises an exception of no class of its own. It is tried twice."""
    import ray

    late = Exception("The current node timed out during startup.\nMore of it.")
    fails = [late, None, late, late]

    def init(**options: object) -> None:
        if error := fails.pop(0):
            raise error

    monkeypatch.setenv("RAY_ADDRESS", "local")
    ended = []
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))  # not that of other tests
    start.start_ray()
    assert len(fails) == 2 and len(ended) == 1  # what had started of the first is ended
    with pytest.raises(ResourceError, match=r"join Ray: .* timed out during startup\.$"):
        start.start_ray()
