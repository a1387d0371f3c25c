"""Nobody let in, no secret out: checkpoints that would run code, planted secrets, hostile names."""

import functools
import http.server
import io
import json
import os
import pickle
import shutil
import threading
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from jobs.plan import plan as plan_job
from jobs.run import annotate
from pipeline.engines.transformers.load import load_model
from pipeline.model.checkpoint import inspect_checkpoint
from pipeline.model.prompter import Prompter
from schemas.errors import ModelError
from schemas.job.job import check_job
from schemas.job.model import Model

SECRET = "PLANTED-5EC12E7"


class Trap:
    """Unpickled, it touches a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def trapped(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint with code of its own that its config asks for."""
    folder = tmp_path / "trapped"
    shutil.copytree(checkpoint, folder)
    (folder / "trap.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Config: pass\nclass Model: pass\n"
    )
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        content["auto_map"] = {
            "AutoConfig": "trap.Config",
            "AutoModelForImageTextToText": "trap.Model",
            "AutoTokenizer": ["trap.Model", "trap.Model"],
        }
        (folder / name).write_text(json.dumps(content))
    return folder


def test_a_checkpoints_own_code_is_not_run(trapped: Path, tmp_path: Path):
    model = Model(source=str(trapped), device="cpu")
    inspect_checkpoint(model)
    Prompter(str(trapped))
    assert load_model(model, torch.device("cpu")).config.model_type == "qwen3_vl"
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_an_unknown_kind_with_code_is_refused(trapped: Path, tmp_path: Path):
    config = json.loads((trapped / "config.json").read_text()) | {"model_type": "mine"}
    (trapped / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="is a .mine. model"):
        inspect_checkpoint(Model(source=str(trapped)))
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_not_loaded(checkpoint: Path, tmp_path: Path):
    folder = tmp_path / "pickled"
    shutil.copytree(checkpoint, folder)
    (weights,) = folder.glob("*.safetensors")
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    model = Model(source=str(folder), device="cpu")
    with pytest.raises(ModelError, match=r"has no \*\.safetensors weights"):
        inspect_checkpoint(model)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "ran")))
    with pytest.raises(ModelError, match="cannot load"):
        load_model(model, torch.device("cpu"))
    assert not (tmp_path / "ran").exists()


def test_a_planted_secret_is_in_nothing_that_is_written(
    checkpoint: Path, tmp_path: Path, ray_session, monkeypatch: pytest.MonkeyPatch
):
    """In storage options, signed urls (of media that fail, too), and the environment."""
    import ray

    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        host, signed = f"127.0.0.1:{server.server_port}", f"X-Amz-Signature={SECRET}"
        uris = [f"http://{host}/a.png?{signed}", f"http://{host}/none.png?{signed}"]
        uris += [f"http://{host}/denied.png?{signed}", f"http://u:{SECRET}@{host}/a.png"]
        uris += [f"HTTP://{host}/a.png?hdnts={SECRET}", f"http://{host}/a.png?verify={SECRET}"]
        uris += [f"http://{host}/none.png?pw={SECRET}", f"http://u:p@{SECRET}@{host}/a.png"]
        # What is there already is of other tests; terminal escapes in names are shown, not sent.
        uris += ["\x1b[31m\x1b]0;title\x07.png"]
        lines = "".join(
            json.dumps({"uri": uri, "media_id": f"m{k}"}) + "\n" for k, uri in enumerate(uris)
        )
        (tmp_path / "manifest.jsonl").write_text(lines)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        simulated = {"speed": 1000.0, "output_tokens": 4}
        spec = {
            "input": {"manifest": str(tmp_path / "manifest.jsonl"), "allow_private_hosts": True},
            "output": str(tmp_path / "out"),
            "model": {"source": str(checkpoint), "engine": "simulated", "simulated": simulated},
            "storage_options": {"s3": {"key": "k", "secret": SECRET}},
        }
        console = Console(file=io.StringIO(), width=200)
        job = check_job(spec, "test")
        plan_job.run(job, console)
        processes = [
            " ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])
        ]
        run = annotate.run(job, console)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert run.counts["units"] == len(uris)
    assert run.counts["status"]["failed"] >= 4
    assert run.counts["status"]["ok"] >= 3
    said = console.file.getvalue()
    assert SECRET not in said
    assert "\x1b" not in said and "\x07" not in said
    assert not any(SECRET in line for line in processes)
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(written) >= 3
    for path in written:
        assert SECRET.encode() not in path.read_bytes(), path
        if path.suffix == ".parquet" and "annotations" in path.parts:  # compressed, so by rows too
            assert SECRET not in str(pq.read_table(path).to_pylist())
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    for path in (session / "logs").rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        self.path = self.path.partition("?")[0]
        if self.path == "/denied.png":
            self.send_error(403)
            return
        super().do_GET()

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        pass
