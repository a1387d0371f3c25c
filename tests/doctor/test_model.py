"""A job's checkpoint: what is missing, cut or mixed is named; sizes are those of real models."""

import http.server
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from safetensors.numpy import load_file, save_file

from jobs.doctor.finding import Finding, State
from jobs.doctor.model import Found, memory_findings, model_findings
from jobs.doctor.settings import assumed
from pipeline.model.checkpoint import Checkpoint
from pipeline.model.memory import ModelMemory
from pipeline.model.sizes import PUBLISHED
from schemas.job.job import Job
from schemas.job.resources import Resources
from tests.support.job_files import make_job
from tests.support.machines import GIB, good_facts
from tests.support.paths import ROOT

DEMO = ROOT / "jobs" / "demo_model"
FIRST, SECOND = (f"model-0000{k}-of-00002.safetensors" for k in (1, 2))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model, in two files with an index, as the published ones are."""
    folder = tmp_path_factory.mktemp("whole") / "model"
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tensors = load_file(DEMO / "model.safetensors")
    half = len(tensors) // 2
    names = sorted(tensors)
    parts = {FIRST: names[:half], SECOND: names[half:]}
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, folder / file)
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {name: file for file, part in parts.items() for name in part},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(whole, tmp_path / "model"))


def job_of(source: Path | str, **model: Any) -> Job:
    return make_job(model={"source": str(source), **model})


def states(found: list[Finding]) -> dict[str, tuple[State, str]]:
    return {each.name: (each.state, each.text) for each in found}


def test_a_whole_checkpoint(whole: Path):
    found, checkpoint = model_findings(job_of(whole))
    assert {each.state for each in found} == {State.OK}
    assert [each.name for each in found] == ["found", "whole", "tokenizer"]
    assert checkpoint is not None
    assert checkpoint.checkpoint.memory.weight_bytes == sum(
        t.nbytes for t in load_file(DEMO / "model.safetensors").values()
    )
    config = json.loads((DEMO / "config.json").read_text())
    values = {each.name: each.text for each in assumed(job_of(whole), checkpoint, None)}
    assert values == {
        "model.dtype": config.get("dtype", "float32"),
        "model.max_model_len": str(config["text_config"]["max_position_embeddings"]),
    }


def test_a_checkpoint_of_one_file():
    found, checkpoint = model_findings(job_of(DEMO))
    assert {each.state for each in found} == {State.OK}
    assert checkpoint is not None


def remove(*names: str):
    def break_(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return break_


def cut(name: str):
    def break_(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return break_


def mixed(folder: Path) -> None:
    """The second file is of another download, which was divided in another way."""
    tensors = load_file(folder / SECOND)
    tensors.pop(max(tensors))
    save_file(tensors, folder / SECOND)


def other_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llava\x1b[2J"}))


def no_template(folder: Path) -> None:
    (folder / "chat_template.json").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


NO_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")


@pytest.mark.parametrize(
    ("break_", "name", "text"),
    [
        (remove(SECOND), "whole", SECOND),
        (cut(FIRST), "whole", f"{FIRST} cannot be read"),
        (remove(FIRST, SECOND, "model.safetensors.index.json"), "whole", "no *.safetensors"),
        (cut("model.safetensors.index.json"), "whole", "index.json cannot be read"),
        (mixed, "whole", f"{SECOND} lacks 1 tensors that model.safetensors.index.json says"),
        (remove("config.json"), "whole", "config.json"),
        (other_type, "whole", "is a 'llava\\x1b[2J' model; Reelscribe runs Qwen3-VL"),
        (remove(*NO_TOKENIZER), "tokenizer", "tokenizer"),
        (no_template, "tokenizer", "chat template"),
    ],
)
def test_a_broken_checkpoint_is_named(model: Path, break_: Any, name: str, text: str):
    break_(model)
    found, checkpoint = model_findings(job_of(model))
    state, said = states(found)[name]
    assert state == State.TO_DO and text in said, said
    assert said.isprintable() and checkpoint is None


def test_no_such_folder(tmp_path: Path):
    found, _ = model_findings(job_of(tmp_path / "gone"))
    assert states(found) == {
        "found": (State.TO_DO, f"model.source: there is no folder {tmp_path}/gone")
    }


# The hub's cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def in_cache(cache: Path, whole: Path) -> Path:
    """Lay a checkpoint into the cache, as the hub's library does; returns its folder there."""
    repository = cache / "models--org--model"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(whole, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return snapshot


def test_a_checkpoint_in_the_cache(cache: Path, whole: Path):
    snapshot = in_cache(cache, whole)
    _, checkpoint = model_findings(job_of("org/model"))
    assert checkpoint is not None and checkpoint.folder == snapshot
    (snapshot / SECOND).unlink()  # a download that was interrupted
    state, text = states(model_findings(job_of("org/model"))[0])["whole"]
    assert state == State.TO_DO and SECOND in text


def test_not_in_the_cache_and_offline(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    ((found,), checkpoint) = model_findings(job_of("org/model"))
    assert found.state == State.TO_DO and "HF_HUB_OFFLINE is set" in found.text
    assert checkpoint is None


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch):
    """A hub that has org/model, of 8 GiB, org/huge, of an exbibyte, and nothing else."""
    asked: list[str] = []

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            sizes = {"/api/models/org/model": 8 * GIB, "/api/models/org/huge": 1 << 60}
            size = sizes.get(self.path.partition("?")[0].removesuffix("/revision/main"))
            is_there = size is not None
            files = [{"rfilename": "model.safetensors", "size": size}]
            found = {"id": "org/x", "sha": "0" * 40, "siblings": files} if is_there else {}
            body = json.dumps(found).encode()
            self.send_response(200 if is_there else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_checkpoint_that_is_to_be_downloaded(cache: Path, hub: list[str]):
    ((found,), _) = model_findings(job_of("org/model"))
    assert found.state == State.WARNING
    assert found.text.endswith("each machine will download it, 8.0 GiB")
    asked = [path for path in hub if "org/model" in path]
    assert asked == ["/api/models/org/model?blobs=true"]  # for sizes; no file, no tree
    assert not cache.exists()


def test_a_disk_that_is_too_small_for_the_download(cache: Path, hub: list[str]):
    ((found,), _) = model_findings(job_of("org/huge"))
    assert found.state == State.TO_DO
    assert "is to be downloaded, 1,073,741,824.0 GiB, and" in found.text
    assert f"are free in {cache}: remove files there, or set HF_HOME" in found.text


def test_a_checkpoint_that_the_hub_does_not_have(cache: Path, hub: list[str]):
    ((found,), _) = model_findings(job_of("org/mistyped"))
    assert found.state == State.TO_DO and "the hub does not give it (" in found.text
    assert "404" in found.text


# Adapters


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"r": 16}')
    tensors = load_file(DEMO / "model.safetensors")
    save_file(dict(list(tensors.items())[:2]), folder / "adapter_model.safetensors")
    return folder


def adapter_line(adapter: Path) -> tuple[State, str]:
    return states(model_findings(job_of(DEMO, adapter=str(adapter)))[0])["adapter"]


def test_an_adapter(adapter: Path):
    assert adapter_line(adapter) == (State.OK, f"{adapter}, rank 16, 2 tensors")


@pytest.mark.parametrize(
    ("break_", "text"),
    [
        (remove("adapter_config.json"), "it has no adapter_config.json"),
        (remove("adapter_model.safetensors"), "adapter_model.safetensors cannot be read"),
        (cut("adapter_model.safetensors"), "adapter_model.safetensors cannot be read"),
        (shutil.rmtree, "there is no folder"),
    ],
)
def test_a_broken_adapter_is_named(adapter: Path, break_: Any, text: str):
    break_(adapter)
    state, said = adapter_line(adapter)
    assert state == State.TO_DO and text in said


# What fits


def found_of(size: str, dtype: str = "bfloat16") -> Found:
    memory = ModelMemory(size=PUBLISHED[size], value_bytes=4 if dtype == "float32" else 2)
    checkpoint = Checkpoint(
        model_type="qwen3_vl",
        max_model_len=262_144,
        identity="x",
        generation={},
        quantization=None,
        memory=memory,
    )
    unused: Any = None
    return Found(
        folder=Path("m"),
        checkpoint=checkpoint,
        prompter=unused,
        dtype=dtype,
    )


@pytest.mark.parametrize(
    ("size", "settings", "machine", "state", "text"),
    [
        ("8B", {}, {}, "ok", "weights of 16.3 GiB in 1 x NVIDIA H100 80GB HBM3, of which 72.0 GiB"),
        ("8B", {"dtype": "float32"}, {}, "ok", "weights of 32.7 GiB in 1 x"),
        ("32B", {"dtype": "float32"}, {}, "to do", "leave no room to answer: take a smaller"),
        (
            "32B",
            {"engine": "vllm", "dtype": "float32", "vllm": {"tensor_parallel_size": 2}},
            *({}, "ok", "weights of 124.3 GiB in 2 x NVIDIA H100 80GB HBM3, of which 144.0 GiB"),
        ),
        ("32B", {"device": "cpu"}, {}, "ok", "in 256.0 GiB of the machine's memory; the rest is"),
        ("32B", {"device": "cpu"}, {}, "ok", "at most 16,384 tokens of cache"),
        # A quarter of what 4.0 GiB of weights leave, in tokens of 112 KiB.
        ("2B", {}, {"gpus": (), "memory_bytes": 5 * GIB}, "ok", "at most 2,427 tokens of cache"),
        ("8B", {"gpus": 0.5}, {}, "ok", "in 0.5 x NVIDIA H100 80GB HBM3, of which 36.0 GiB"),
        ("8B", {"gpus": 0.25}, {}, "ok", "of which 18.0 GiB"),
        ("8B", {"gpus": 0.2}, {}, "to do", "leave no room to answer"),
        ("8B", {"gpus": 0}, {}, "ok", "in 256.0 GiB of the machine's memory"),
        ("8B", {}, {"gpus": (), "memory_bytes": 16 * GIB}, "to do", "with more memory"),
    ],
)
def test_what_fits(size: str, settings: dict, machine: dict, state: str, text: str):
    resources = Resources(gpus_per_replica=settings.get("gpus", "auto"))
    model = {name: value for name, value in settings.items() if name != "gpus"}
    job = job_of("x", **model).model_copy(update={"resources": resources})
    (line,) = memory_findings(
        job, found_of(size, settings.get("dtype", "bfloat16")), [good_facts(**machine)]
    )
    assert line.state == state and text in line.text
