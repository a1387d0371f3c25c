"""Every kind of checkpoint runs by configuration alone: tiny random ones of each, end to end."""

import json
import shutil
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from jobs.plan import open_job
from jobs.tiny_checkpoint import write_tiny_checkpoint
from pipeline.checkpoint import inspect_checkpoint
from pipeline.engines.transformers import TransformersEngine
from pipeline.plan import Planner
from pipeline.same_code import code_digest
from pipeline.stages import Prepare
from pipeline.storage import Storage
from pipeline.write import RunKey, annotation_row
from schemas.errors import ModelError
from schemas.job import Job, check_job
from schemas.manifest import MediaItem
from schemas.unit import AnsweredUnit
from tests.test_conversation import THINKING

YARN = {"factor": 3.0, "original_max_position_embeddings": 1024}
KEY = RunKey(run_id="r", recipe_id="r", run_date="2026-11-22")


def job(checkpoint: Path, *, model=None, **changes) -> Job:
    spec = {
        "input": {"manifest": "unused.jsonl"},
        "output": "unused",
        "model": {"source": str(checkpoint), "dtype": "float32"} | (model or {}),
        "tasks": ["caption"],
        "budget": {"image_tokens": [4, 64], "frame_tokens": [4, 16], "unit_tokens": 512},
        "generation": {"max_new_tokens": 12},
    }
    return check_job(spec | changes, "test")


def answered(asked: Job, archive: Path, name: str = "images/scene-0.jpg") -> AnsweredUnit:
    """What a job's plan, decoder, prompter and engine make of a file."""
    context = inspect_checkpoint(asked.model).max_model_len
    item = MediaItem(media_id="a", uri=str(archive / name))
    (unit,) = Planner(asked, context, Storage()).plan([item])
    prepared = Prepare(asked, Storage(), code_digest()).prepare(unit)
    (found,) = TransformersEngine(asked, num_threads=2).generate([prepared])
    return found


def copied(checkpoint: Path, folder: Path) -> Path:
    shutil.copytree(checkpoint, folder)
    return folder


@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("name", ["images/scene-0.jpg", "clips/vp9.webm"])
def test_dense_and_mixture_of_experts(tmp_path, archive, moe, name):
    folder = write_tiny_checkpoint(tmp_path / "model", moe=moe)
    asked = job(folder, model={"attn_implementation": "eager"})
    assert inspect_checkpoint(asked.model).model_type == ("qwen3_vl_moe" if moe else "qwen3_vl")
    unit = answered(asked, archive, name)
    assert unit.error is None and unit.answers[0].num_output_tokens


class TestThinking:
    @pytest.fixture
    def thinking(self, checkpoint, tmp_path) -> Path:
        folder = copied(checkpoint, tmp_path / "thinking")
        for name in ("tokenizer_config.json", "chat_template.json"):
            config = json.loads((folder / name).read_text())
            (folder / name).write_text(json.dumps(config | {"chat_template": THINKING}))
        return folder

    ADVICE = MappingProxyType(
        {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "eos_token_id": 450}
    )

    def resolved(self, folder, archive, **generation):
        """The generation settings with which a job would run."""
        (folder / "generation_config.json").write_text(json.dumps(dict(self.ADVICE)))
        asked = job(folder, generation=generation, input={"scan": str(archive)})
        return open_job(asked).job.generation

    def test_they_run_as_their_makers_advise_and_instruct_ones_greedily(
        self, thinking, checkpoint, archive, tmp_path
    ):
        found = self.resolved(thinking, archive)
        assert (found.temperature, found.top_p, found.top_k) == (0.6, 0.95, 20)
        assert found.max_new_tokens == 8192
        found = self.resolved(thinking, archive, temperature=0.2, max_new_tokens=99)
        assert (found.temperature, found.top_p, found.max_new_tokens) == (0.2, 0.95, 99)
        assert self.resolved(thinking, archive, defaults="greedy").temperature == 0
        instruct = copied(checkpoint, tmp_path / "instruct")
        found = self.resolved(instruct, archive)
        assert (found.temperature, found.max_new_tokens) == (0, 512)
        found = self.resolved(instruct, archive, defaults="checkpoint")
        assert (found.temperature, found.top_k, found.max_new_tokens) == (0.6, 20, 512)

    def test_reasoning_that_was_cut_is_no_answer(self, thinking, archive):
        asked = job(thinking)
        unit = answered(asked, archive)
        assert unit.answers[0].opens_reasoning
        row = annotation_row(unit, {q.task: q for q in asked.questions()}, KEY)
        (response,) = row["responses"]
        assert (row["caption"], response["status"]) == (None, "truncated")
        assert response["reasoning"] == response["raw_text"].strip()


def as_fp8(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint as the published FP8 ones are: matrices of the language model's layers in
    float8_e4m3fn, a scale for each block of 128 x 128."""
    copied(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    for name in [
        n for n in weights if ".language_model.layers." in n and n.endswith("proj.weight")
    ]:
        whole = weights[name].float()
        scale = whole.abs().max() / torch.finfo(torch.float8_e4m3fn).max
        weights[name] = (whole / scale).to(torch.float8_e4m3fn)
        blocks = [-(-size // 128) for size in whole.shape]
        weights[f"{name}_scale_inv"] = scale.expand(*blocks).contiguous().float()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["lm_head", "model.visual"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_fp8_weights(checkpoint, tmp_path, archive):
    """Without a GPU that computes in FP8 transformers takes them to a wider type, with scales."""
    folder = as_fp8(checkpoint, tmp_path / "fp8")
    asked = job(folder, model={"dtype": "auto"})
    unit = answered(asked, archive)
    assert unit.error is None and unit.answers[0].num_output_tokens
    loaded = TransformersEngine(asked)._model.state_dict()
    for name, weight in load_file(checkpoint / "model.safetensors").items():
        most = 0.05 if name.endswith("proj.weight") else 0.005
        assert (loaded[name].float() - weight).norm() <= most * weight.norm(), name


class TestLongContext:
    def test_what_is_over_the_context_fits_with_yarn(self, checkpoint, archive):
        tasks = [{"caption": {"max_new_tokens": 1200}}]
        short = job(checkpoint, tasks=tasks, model={"max_model_len": 1024})
        with pytest.raises(AssertionError):
            self.planned(short, archive)
        long = job(checkpoint, tasks=tasks, model={"yarn": YARN, "max_model_len": 3072})
        self.planned(long, archive)
        assert inspect_checkpoint(long.model).max_model_len == 3072
        too_long = long.model.model_copy(update={"max_model_len": 3073})
        with pytest.raises(ModelError, match="over the checkpoint's context of 3072$"):
            inspect_checkpoint(too_long)

    def planned(self, asked: Job, archive: Path) -> None:
        context = inspect_checkpoint(asked.model).max_model_len
        item = MediaItem(media_id="a", uri=str(archive / "images" / "scene-0.jpg"))
        (unit,) = Planner(asked, context, Storage()).plan([item])
        assert unit.error is None

    def test_the_engine_runs_transformers_own_yarn(self, checkpoint, tmp_path, archive):
        """Written into a checkpoint's config by hand, it gives the same answers."""
        folder = copied(checkpoint, tmp_path / "stretched")
        config = AutoConfig.from_pretrained(folder)
        rope = config.text_config.rope_parameters
        config.text_config.rope_parameters = rope | {"rope_type": "yarn", **YARN}
        config.text_config.max_position_embeddings = 3072
        config.save_pretrained(folder)
        ids = torch.arange(300)[None] % 400
        asked = (job(folder), job(checkpoint, model={"yarn": YARN}), job(checkpoint))
        with torch.inference_mode():
            by_hand, by_field, plain = (TransformersEngine(j)._model(ids).logits for j in asked)
        torch.testing.assert_close(by_field, by_hand)
        assert (by_field - plain).abs().max() > 1e-3
        assert answered(asked[1], archive).error is None
