"""The facts of each model type are those of transformers' own configuration and model."""

import json
import re
import shutil
import unicodedata
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    Qwen2Tokenizer,
)

from jobs.cli.main import main
from pipeline.model.checkpoint import inspect_checkpoint
from pipeline.model.family import MODEL_TYPES, family_of
from pipeline.model.prompter import Prompter
from pipeline.plan.planner import Planner
from pipeline.storage.storage import Storage
from schemas.errors import ModelError
from schemas.job.finetune import TrainedModel
from schemas.job.model import PUBLISHED_NAMES, Model
from schemas.tables.manifest import MediaItem
from scripts.demo_model import tiny_checkpoint
from tests.support.family import HYBRIDS, family_checkpoint
from tests.support.job_files import TINY_BUDGET, make_job


@pytest.fixture(params=MODEL_TYPES)
def folder(request, tmp_path_factory) -> Path:
    return family_checkpoint(tmp_path_factory, request.param)


def test_each_help_text_names_the_family():
    fields = (Model.model_fields["source"], TrainedModel.model_fields["source"])
    for text in (main.help, *(field.description for field in fields)):
        missing = [n for n in re.findall(r"Qwen[\w.-]+", PUBLISHED_NAMES) if n not in str(text)]
        assert not missing, text


def read(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_there_is_a_tiny_checkpoint_of_each_type():
    assert tiny_checkpoint.MODEL_TYPES == MODEL_TYPES


def test_the_facts_are_those_of_the_model(folder):
    found = family_of(read(folder))
    model = AutoModelForImageTextToText.from_pretrained(folder)
    layers = model.model.language_model.layers
    assert found.model_type == model.config.model_type
    assert found.layer_kinds == tuple(
        "linear" if hasattr(layer, "linear_attn") else "full" for layer in layers
    )
    assert found.is_hybrid == any(hasattr(layer, "linear_attn") for layer in layers)
    assert found.is_moe == hasattr(layers[0].mlp, "experts")
    assert found.deepstack == len(getattr(model.model.visual, "deepstack_merger_list", ()))
    full = [layer for layer in layers if hasattr(layer, "self_attn")]
    assert found.is_indexed == hasattr(full[0].self_attn, "indexer")
    assert found.context == model.config.text_config.max_position_embeddings


def test_the_configuration_reads_the_same_after_transformers_wrote_it(folder):
    assert family_of(AutoConfig.from_pretrained(folder).to_dict()) == family_of(read(folder))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("interval", [None, 3])
def test_what_a_configuration_leaves_out_is_the_default_of_its_class(model_type, interval):
    text = {"num_hidden_layers": 9} | ({"full_attention_interval": interval} if interval else {})
    given = {"model_type": model_type, "text_config": text, "vision_config": {}}
    found = family_of(given)
    config = AutoConfig.for_model(**given)
    expected = getattr(config.text_config, "layer_types", None) or ["full_attention"] * 9
    assert [kind == "linear" for kind in found.layer_kinds] == [
        kind == "linear_attention" for kind in expected
    ]
    deepstack = getattr(config.vision_config, "deepstack_visual_indexes", [])
    assert (found.deepstack, found.context) == (len(deepstack), None)


@pytest.mark.parametrize("model_type", HYBRIDS)
def test_the_recurrent_state_matters_and_stays_finite(model_type, tmp_path_factory):
    """The first token changes what a linear layer makes of the last of 400."""
    folder = family_checkpoint(tmp_path_factory, model_type)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    layer = model.model.language_model.layers[0].linear_attn
    torch.manual_seed(0)
    hidden = torch.randn(1, 400, model.config.text_config.hidden_size)
    other = hidden.clone()
    other[0, 0] = torch.randn(other.shape[-1])
    with torch.inference_mode():
        change = (layer(hidden) - layer(other))[0, -1].abs().max()
        assert torch.isfinite(layer(hidden)).all()
    assert change > 1e-4


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_loading_reports_no_tensor_and_the_answer_depends_on_pixels(model_type, tmp_path_factory):
    folder = family_checkpoint(tmp_path_factory, model_type)
    model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    config = read(folder)
    ids = torch.tensor([[config["vision_start_token_id"]] + [config["image_token_id"]] * 4 + [65]])
    dark = torch.full((16, 1536), -0.5)
    half_light = dark.clone()
    half_light[8:] = 0.5
    with torch.inference_mode():
        dark_logits, light_logits = (
            model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == config["image_token_id"]).long(),
                pixel_values=pixels,
                image_grid_thw=torch.tensor([[1, 4, 4]]),
            ).logits[0, -1]
            for pixels in (dark, half_light)
        )
    assert (dark_logits - light_logits).abs().max() > 0.1


@pytest.mark.parametrize("name", ["images/scene-0.jpg", "clips/vp9.webm"])
def test_a_plan_differs_in_the_name_of_the_checkpoint_alone(name, tmp_path_factory, archive):
    """The same frames, sizes and numbers of vision tokens; each its own weights' identity."""
    identities, sampled = set(), []
    for model_type in MODEL_TYPES:
        job = make_job(family_checkpoint(tmp_path_factory, model_type), budget=TINY_BUDGET)
        found = inspect_checkpoint(job.model)
        assert (found.model_type, found.max_model_len) == (model_type, 262_144)
        identities.add(found.identity)
        item = MediaItem(media_id="a", uri=str(archive / name))
        (unit,) = Planner(job, found.max_model_len, Storage()).plan([item])
        assert unit.error is None
        sampled.append(unit.sampling)
    assert len(identities) == len(MODEL_TYPES)
    assert all(sampling == sampled[0] for sampling in sampled)


@pytest.mark.parametrize("model_type", HYBRIDS)
@pytest.mark.parametrize("factor", [None, 2.0])
def test_the_context_is_the_one_that_transformers_reads(
    model_type, factor, tmp_path, tmp_path_factory
):
    folder = shutil.copytree(family_checkpoint(tmp_path_factory, model_type), tmp_path / "copy")
    config = read(folder)
    del config["text_config"]["max_position_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    yarn = {"factor": factor} if factor else None
    found = inspect_checkpoint(make_job(folder, model={"yarn": yarn}).model)
    context = AutoConfig.from_pretrained(folder).text_config.max_position_embeddings
    assert found.max_model_len == (factor or 1) * context


def test_quantised_weights_are_found_in_each_type(tmp_path, tmp_path_factory):
    for model_type in MODEL_TYPES:
        made = family_checkpoint(tmp_path_factory, model_type)
        folder = shutil.copytree(made, tmp_path / model_type)
        config = read(folder) | {"quantization_config": {"quant_method": "fp8"}}
        (folder / "config.json").write_text(json.dumps(config))
        found = inspect_checkpoint(make_job(folder).model)
        assert found.quantization == "fp8" and found.memory.is_fp8


def test_another_type_is_refused_with_those_that_run(tmp_path, tmp_path_factory):
    made = family_checkpoint(tmp_path_factory, "qwen3_5")
    folder = shutil.copytree(made, tmp_path / "copy")
    (folder / "config.json").write_text(json.dumps(read(folder) | {"model_type": "qwen3_next"}))
    with pytest.raises(ModelError, match=r"'qwen3_next' model; .* Qwen3.5, .*, qwen4_exp\)"):
        inspect_checkpoint(make_job(folder).model)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_text_is_split_as_the_checkpoints_own_tokenizer_does(model_type, tmp_path_factory):
    """Marks, as the vowels of Hindi, stay with their letters in the types after Qwen3-VL."""
    folder = family_checkpoint(tmp_path_factory, model_type)
    text = "हिन्दी में क्या लिखा है, it's 120 e\u0301"
    own = AutoTokenizer.from_pretrained(folder)
    assert Prompter(str(folder)).tokenizer.encode(text) == own.encode(text)
    assert own.decode(own.encode(text)) == unicodedata.normalize("NFC", text)
    if model_type in HYBRIDS:
        assert own.encode(text) != Qwen2Tokenizer.from_pretrained(folder).encode(text)
