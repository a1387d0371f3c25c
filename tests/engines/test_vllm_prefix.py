"""What vLLM keeps of the beginning that a unit's prompts share. Runs without vLLM."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.engines.vllm.admission import num_cache_tokens
from pipeline.engines.vllm.prefix import (
    KeptPrefix,
    block_tokens,
    kept_by,
    planned_prefix,
    prefix_caching,
)
from pipeline.model.family import family_of
from schemas.job.engines import Vllm
from schemas.job.model import Model
from schemas.tables.unit import PreparedUnit, Prompt
from tests.support.family import family_checkpoint

PLAIN = {"model_type": "qwen3_vl", "text_config": {"num_hidden_layers": 4}}
HYBRID = {"model_type": "qwen3_5", "text_config": {"num_hidden_layers": 4}}
MTP = {"speculative_config": {"method": "mtp", "num_speculative_tokens": 3}}


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family_checkpoint(tmp_path_factory, "qwen3_5")


def text_of(key_heads: int, value_heads: int) -> dict[str, Any]:
    """The text part of a published configuration: heads of full, and values of linear layers."""
    return {
        "num_key_value_heads": key_heads,
        "head_dim": 256,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": value_heads,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "mamba_ssm_dtype": "float32",
    }


@pytest.mark.parametrize(
    ("text", "args", "tokens"),
    [
        (text_of(4, 32), {}, 528),  # Qwen3.5-4B: vllm#40696
        (text_of(4, 48), MTP | {"kv_cache_dtype": "fp8_e4m3"}, 1600),  # Qwen3.8-27B: vllm#45238
    ],
)
def test_blocks_are_as_vllm_logged_them_on_gpus(text, args, tokens):
    """Lines of users' logs: "Setting attention block size to 528 tokens"."""
    model = Model(engine="vllm", vllm=Vllm(engine_args=args))
    assert block_tokens(model, text) == tokens


def test_several_gpus_split_states_and_keys_until_there_is_one_key_head_each():
    text = text_of(2, 32)
    found = [
        block_tokens(Model(engine="vllm", vllm=Vllm(tensor_parallel_size=size)), text)
        for size in (1, 2, 4)
    ]
    assert found == [1056, 1056, 528]


@pytest.mark.parametrize(
    ("config", "args", "expected"),
    [
        (PLAIN, {}, True),
        (PLAIN, MTP, True),
        (PLAIN, {"enable_prefix_caching": False}, False),
        (HYBRID, {}, None),
        (HYBRID, MTP, False),
        (HYBRID, MTP | {"enable_prefix_caching": True}, True),
        (HYBRID, {"enable_prefix_caching": False}, False),
    ],
)
def test_who_decides_whether_there_is_a_prefix_cache(config, args, expected):
    assert prefix_caching(Vllm(engine_args=args), family_of(config)) is expected


@pytest.mark.parametrize(
    ("config", "expected", "said"),
    [
        (
            (True, 1056, "align"),
            KeptPrefix(block_tokens=1056, has_states=True),
            "prefix cache in blocks of 1,056 tokens",
        ),
        ((True, 16, "none"), KeptPrefix(block_tokens=16), "prefix cache in blocks of 16 tokens"),
        ((False, 1056, "none"), KeptPrefix(block_tokens=None), "no prefix cache"),
    ],
)
def test_the_engine_that_runs_says_what_it_keeps(config, expected, said):
    names = ("enable_prefix_caching", "block_size", "mamba_cache_mode")
    found = kept_by(SimpleNamespace(**dict(zip(names, config, strict=True))))
    assert (found, str(found)) == (expected, said)


@pytest.mark.parametrize(
    ("block", "again"), [(1, 0), (16, 16), (528, 944), (2000, 2000), (None, 2000)]
)
def test_what_is_kept_in_no_whole_block_is_read_again(block, again):
    """By two further prompts; where the shortest one ends does not matter without states."""
    for shortest in (1001, 1100, 5000):
        assert KeptPrefix(block_tokens=block).num_read_again(1000, shortest, 3) == again
    assert KeptPrefix(block_tokens=block).num_read_again(1000, 1001, 1) == 0


@pytest.mark.parametrize(
    ("prefix", "lengths", "cached"),
    [
        (144, (160, 217, 292), (0, 0, 0)),  # no whole block is shared
        (199, (215, 272, 347), (0, 160, 160)),
        (199, (347, 392, 482, 602), (0, 0, 160, 160)),  # the first state is behind the media
        (199, (392, 482), (0, 0)),
        (304, (320, 377, 452), (0, 160, 160)),  # the last token of two whole blocks is read
        (304, (452, 497, 587, 707), (0, 0, 160, 160)),
        (554, (570, 627, 702), (0, 480, 480)),
        (554, (837, 957, 1077), (0, 0, 480)),
        (554, (1077,), (0,)),
    ],
)
def test_a_state_behind_the_shared_beginning_is_of_no_use(prefix, lengths, cached):
    """cached: as vLLM 0.32 reported of such prompts, in blocks of 160 tokens."""
    kept = KeptPrefix(block_tokens=160, has_states=True)
    again = sum(prefix - of_prompt for of_prompt in cached[1:])
    assert kept.num_read_again(prefix, min(lengths), len(lengths)) == again
    arrays = [np.array([number] * 2) for number in (prefix, min(lengths), len(lengths))]
    assert kept.num_read_again(*arrays).tolist() == [again] * 2


@pytest.mark.parametrize(("block", "tokens"), [(1, 1090), (16, 1106), (528, 2034), (None, 3090)])
def test_a_unit_takes_the_cache_that_its_prompts_do_not_share(block, tokens):
    prompts = tuple(
        Prompt(
            task=str(own),
            num_prompt_tokens=1000 + own,
            num_own_tokens=own,
            input_ids=(7,) * (1000 + own),
        )
        for own in (20, 30, 40)
    )
    unit = PreparedUnit(unit_id="u", media_id="u", uri="u", prompts=prompts)
    assert num_cache_tokens(unit, KeptPrefix(block_tokens=block)) == tokens
    assert num_cache_tokens(dataclasses.replace(unit, prompts=()), KeptPrefix()) == 0


@pytest.mark.parametrize(("own", "tokens"), [((20, 30), 1522), ((60, 70), 2130)])
def test_a_prompt_that_reads_all_takes_the_cache_for_all(own, tokens):
    """In blocks of 528: the state of the first one is at 528, or behind the media at 1056."""
    prompts = tuple(
        Prompt(
            task=str(number),
            num_prompt_tokens=1000 + number,
            num_own_tokens=number,
            input_ids=(7,) * (1000 + number),
        )
        for number in own
    )
    unit = PreparedUnit(unit_id="u", media_id="u", uri="u", prompts=prompts)
    assert num_cache_tokens(unit, KeptPrefix(block_tokens=528, has_states=True)) == tokens


def test_before_a_run_the_plan_takes_what_vllm_will_do(checkpoint: Path, hybrid: Path):
    def planned(source: Path, engine: str = "vllm", **args: Any) -> KeptPrefix:
        own = {"vllm": {"engine_args": args}} if engine == "vllm" else {}
        return planned_prefix(Model(source=str(source), engine=engine, **own))

    assert planned(checkpoint) == planned(hybrid, "transformers") == KeptPrefix(block_tokens=1)
    assert planned(checkpoint, enable_prefix_caching=False) == KeptPrefix(block_tokens=None)
    assert planned(hybrid, **MTP) == KeptPrefix(block_tokens=None)
    text = json.loads((hybrid / "config.json").read_text())["text_config"]
    expected = block_tokens(Model(engine="vllm"), text)
    assert planned(hybrid) == KeptPrefix(block_tokens=expected, has_states=True)
    assert expected > 16
