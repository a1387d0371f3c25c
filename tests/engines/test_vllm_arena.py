"""Shared memory of vLLM's processes. Runs without vLLM."""

import logging
from types import SimpleNamespace

import pytest

from pipeline.engines.vllm import args
from schemas.job.engines import Vllm

GIB = 1 << 30


@pytest.mark.parametrize(
    ("free", "gpus", "is_on"),
    [
        (64 << 20, 1, False),
        (64 << 20, 2, False),
        (16 * GIB, 1, False),
        (16 * GIB, 2, True),
        (4 * GIB, 2, True),
        (3 * GIB, 2, True),  # of a container with 4 GiB
        (3 * GIB - 1, 2, False),
    ],
)
def test_patches_go_to_several_gpus_in_shared_memory_where_there_is_enough(
    monkeypatch, caplog, free, gpus, is_on
):
    """vLLM does not start where its arena does not fit, as in a container with 64 MB."""
    monkeypatch.setattr(args.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with caplog.at_level(logging.WARNING):
        assert args._has_arena(Vllm(tensor_parallel_size=gpus)) is is_on
    assert ("GiB free: vLLM sends frames" in caplog.text) is (gpus > 1 and not is_on)


def test_a_machine_without_shared_memory_has_no_arena(monkeypatch, caplog):
    monkeypatch.setattr(args, "_SHARED_MEMORY", "/no/such/folder")
    assert not args._has_arena(Vllm(pipeline_parallel_size=2))
    assert "has 0.0 GiB free" in caplog.text
