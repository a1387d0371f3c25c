"""Each trouble of a machine is named, with what to do; a good machine has none."""

from typing import Any

import pytest

from jobs.doctor.cluster import node_findings
from jobs.doctor.finding import State
from jobs.doctor.judge import machine_findings
from jobs.doctor.machine import Facts, Gpu
from tests.support.job_files import make_job
from tests.support.machines import GIB, H100, good_facts

CPU_BUILD = {"torch": "2.13.0+cpu", "cuda": None, "torch_gpus": 0}
NO_GPU = {"gpus": (), "driver": None, **CPU_BUILD}


def found(facts: Facts, name: str, **sections: Any) -> list[tuple[State, str]]:
    job = make_job(**sections) if sections else None
    lines = [each for each in machine_findings(facts, job) if each.name == name]
    return [(each.state, each.text) for each in lines]


def test_a_good_machine_has_no_trouble():
    lines = machine_findings(good_facts(), make_job(model={"engine": "vllm"}))
    assert {each.state for each in lines} == {State.OK}
    names = ["Python", "reelscribe", "packages", "torch", "GPU 0", "GPU 1", "vLLM", "PyAV"]
    assert [each.name for each in lines] == [*names, "torchcodec", "memory", "/dev/shm", "disk"]


BUSY = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=80 * GIB, used_bytes=30 * GIB)


@pytest.mark.parametrize(
    ("changed", "name", "state", "text"),
    [
        ({"wrong_packages": ("ray 2.70.0 is not <2.64,>=2.60",)}, "packages", "to do", "ray 2.70"),
        ({"failures": {"torch": "OSError: libcudart.so.12"}}, "torch", "to do", "libcudart.so.12"),
        ({"failures": {"code": "ImportError: x"}}, "reelscribe", "to do", "install the same"),
        ({"failures": {"driver": "nvidia-smi ended with 9"}}, "GPU", "to do", "restart"),
        (CPU_BUILD, "GPU", "to do", "torch can use 0 of 2 GPUs: install a torch that is built for"),
        (
            CPU_BUILD | {"torch_warning": "The NVIDIA driver on your system is too old"},
            *("GPU", "to do", "0 of 2 GPUs (The NVIDIA driver on your system is too old): install"),
        ),
        ({"torch_gpus": 1}, "GPU", "warning", "look at CUDA_VISIBLE_DEVICES"),
        ({"gpus": (BUSY, H100)}, "GPU 0", "warning", "30.0 GiB of it in use by other programs"),
        (NO_GPU, "GPU", "warning", "engines compute on the CPU"),
        ({"vllm_problem": "vLLM 0.9 is installed here"}, "vLLM", "warning", "vLLM 0.9"),
        ({"failures": {"decoders": "ImportError: av"}}, "decoders", "to do", "PyAV cannot be"),
        ({"shm_free_bytes": 64 << 20}, "/dev/shm", "warning", "a larger --shm-size"),
        ({"shm_free_bytes": 0}, "/dev/shm", "warning", "remove files there"),
        ({"tmp_free_bytes": 30 * GIB}, "disk", "to do", "less than 5% is free"),
        (
            {"source_problem": "there is no checkpoint /m here"},
            "model",
            "to do",
            "to the same path",
        ),
        ({"read_problem": "a.mp4: denied", **NO_GPU}, "input", "to do", "a.mp4: denied"),
        ({"read_problem": "a.mp4: denied"}, "input", "warning", "decoders must not run here"),
        ({"end": "no answer within 90 s, at the step 'torch'"}, "probe", "to do", "'torch'"),
    ],
)
def test_trouble_is_named(changed: dict[str, Any], name: str, state: str, text: str):
    ((given, said),) = found(good_facts(**changed), name)
    assert given == state and text in said


@pytest.mark.parametrize(
    ("facts", "name", "sections", "state", "text"),
    [
        (NO_GPU, "GPU", {"model": {"device": "cuda"}}, "to do", "there is no GPU here"),
        (NO_GPU, "GPU", {"model": {"device": "cpu"}}, "ok", "none is needed"),
        (CPU_BUILD, "GPU", {"model": {"device": "cpu"}}, "warning", "0 of 2 GPUs"),
        (
            {"vllm": None, "vllm_problem": "vLLM is not installed here"},
            *("vLLM", {"model": {"engine": "vllm"}}, "to do", "pip install 'vllm"),
        ),
        (
            {"vllm": None, "vllm_problem": "vLLM is not installed here"},
            *("vLLM", {"model": {"device": "cpu"}}, "ok", "not installed, and not needed here"),
        ),
        (
            {"torchcodec_problem": "libavutil.so.59"},
            *("torchcodec", {"sampling": {"decoder": "torchcodec"}}, "to do", "apt-get install"),
        ),
        (
            {"torchcodec_problem": "libavutil.so.59"},
            *("torchcodec", {"sampling": {"decoder": "auto"}}, "ok", "PyAV decodes"),
        ),
    ],
)
def test_what_is_trouble_depends_on_the_job(facts, name, sections, state, text):
    ((given, said),) = found(good_facts(**facts), name, **sections)
    assert given == state and text in said


# Nodes of a cluster


def test_alike_nodes_share_a_line():
    decoder = good_facts(**NO_GPU)
    nodes = {f"10.0.0.{k}": good_facts(shm_free_bytes=(k + 90) * GIB) for k in range(5)}
    lines = node_findings(nodes | {"10.0.1.1": decoder}, "c0de", None)
    assert [(each.name, each.state) for each in lines] == [
        ("10.0.0.0, 10.0.0.1, 10.0.0.2 and 2 more", State.OK),
        ("10.0.1.1", State.OK),
    ]
    assert "2 x NVIDIA H100 80GB HBM3, driver 550.54.15" in lines[0].text
    assert lines[1].text.endswith("torch 2.13.0+cpu, no GPU")


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"code": "01d"}, "other code (01d) than the driver (c0de): install the same version"),
        ({"code": None, "failures": {"code": "No module"}}, "reelscribe: cannot be imported"),
        ({"tmp_free_bytes": GIB}, "disk: 1.0 GiB of 1,000.0 GiB free in /tmp: Ray stops"),
        ({"read_problem": "a.mp4: no credentials found", **NO_GPU}, "input: a.mp4: no credentials"),
        ({"source_problem": "there is no checkpoint /m here"}, "model: there is no checkpoint"),
        ({"end": "the node does not answer"}, "probe: the node does not answer"),
    ],
)
def test_a_node_in_trouble_has_a_line_of_its_own(changed: dict[str, Any], text: str):
    nodes = {"10.0.0.1": good_facts(), "10.0.0.2": good_facts(**changed)}
    lines = node_findings(nodes, "c0de", make_job())
    assert [(each.name, each.state) for each in lines] == [
        ("10.0.0.1", State.OK),
        ("10.0.0.2", State.TO_DO),
    ]
    assert lines[1].text.startswith(text)


def test_a_node_that_only_decodes_needs_neither_gpu_nor_vllm():
    job = make_job(model={"engine": "vllm", "device": "cuda"})
    decoder = good_facts(**NO_GPU, vllm_problem="pip install vllm")
    lines = node_findings({"a": good_facts(), "b": decoder}, "c0de", job)
    assert [each.state for each in lines] == [State.OK, State.OK]
    (line,) = node_findings({"b": decoder}, "c0de", job)
    assert line.state == State.TO_DO
    assert "GPU: model.device is cuda" in line.text and "vLLM: pip install vllm" in line.text


def test_a_nodes_warnings_are_in_its_line():
    (line,) = node_findings({"a": good_facts(shm_free_bytes=0)}, "c0de", None)
    assert line.state == State.WARNING and line.text.startswith("/dev/shm: 0.0 MiB of 128.0 GiB")
