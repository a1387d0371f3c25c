"""A decoding step waits for the device once: to read its tokens.

The model runs on the meta device, whose tensors have no values: whatever would wait for a GPU
fails. Tensors of the CPU may not take part either, as each would be copied to the GPU first.
"""

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from pipeline.engines.grammar import Grammars
from pipeline.engines.token_sampling import RowProcessors, RowSampler, Warper, row_processors
from pipeline.engines.transformers.branches import Branches, spare_tokens
from pipeline.engines.transformers.decoding import generate_answers
from pipeline.engines.transformers.load import load_model
from pipeline.engines.transformers.prefix import Prefix, RootTokens
from pipeline.model.prompter import Prompter
from schemas.job.generation import Generation
from schemas.task import Question
from tests.support.family import family_checkpoint
from tests.support.job_files import make_job

META = torch.device("meta")
PAD_IDS = {"image": 500, "video": 501}
SUFFIXES = [[[7, 8, 9], [5], [6, 4]], [[3, 2], [4, 5, 6]]]
"""Three tasks about the first root, two about the second."""


class Device(TorchDispatchMode):
    """Counts the operators of the meta device, and fails where the CPU takes part in one."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = Counter()
        self.sent = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        devices = {each.device.type for each in leaves if isinstance(each, torch.Tensor)}
        devices |= {each.type for each in leaves if isinstance(each, torch.device)}
        if devices == {"cpu", "meta"}:
            assert func.overloadpacket.__name__ in ("to", "_to_copy"), f"{func} of both devices"
            assert kwargs.get("non_blocking"), "the CPU waits until the copy is done"
            self.sent.append(args[0])
        elif "meta" in devices:
            self.operators[func.overloadpacket.__name__] += 1
        return func(*args, **kwargs)


class Reading(TorchFunctionMode):
    """Answers ``tolist`` with the token 9, and counts it; fails where a list becomes a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.num_reads = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.tolist and args[0].is_meta:
            self.num_reads += 1
            return [9] * len(args[0])
        if func in (torch.tensor, torch.as_tensor):
            assert (kwargs or {}).get("device") in (None, torch.device("cpu")), "a list is copied"
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(each, list) for each in index), "a list is copied"
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def model(checkpoint: Path):
    return load_model(make_job(checkpoint).model, torch.device("cpu")).to(META)


@pytest.fixture(scope="module", params=["qwen3_5", "qwen3_5_moe"])
def hybrid(request, tmp_path_factory):
    """Layers of qwen4_exp count tokens on the device: there, each of them waits in each step."""
    source = family_checkpoint(tmp_path_factory, request.param)
    model = make_job(source, model={"dtype": "bfloat16"}).model  # grouped products need it here
    return load_model(model, torch.device("cpu")).to(META)


def make_branches(model) -> Branches:
    roots = [RootTokens.of(ids, PAD_IDS, []) for ids in ([1] * 30, [2] * 20)]
    prefix = Prefix(model, roots, "sdpa", spare_tokens(SUFFIXES))
    for rows in prefix.passes():
        prefix.run(rows, [None] * len(roots[rows]))
    return Branches(model, prefix, SUFFIXES, "sdpa", None)


def processors(checkpoint: Path) -> RowProcessors:
    """All there are, but the sampler: torch has no random numbers for this device."""
    prompts = torch.ones((5, 4), dtype=torch.long, device=META)
    tokenizer = Prompter(str(checkpoint)).tokenizer
    fields = Question(task="fields", keys=("name",))
    grammars = Grammars([fields], tokenizer, 512, has_reasoning=False)
    penalties = Generation(repetition_penalty=1.3, presence_penalty=0.5, temperature=0)
    held = grammars.processors(["fields", "caption", "fields", "caption", "caption"], META)
    assert len(held) == 1
    warpers = [TemperatureLogitsWarper(0.7), TopKLogitsWarper(40), TopPLogitsWarper(0.9)]
    first = row_processors(penalties, ["row"] * 5, prompts, 512, held)
    return RowProcessors([first, *map(Warper, warpers)])


@torch.inference_mode()
def generate(branches: Branches, processors: RowProcessors, limits: list[int]):
    with Device() as device, Reading() as reading:
        answers = generate_answers(branches, processors, limits, [0], stop_loops=False)
    assert [len(answer.ids) for answer in answers] == limits
    return device, reading


def test_a_step_reads_its_tokens_and_nothing_else(checkpoint, model):
    """70 steps: the room that there was at first is used up on the way."""
    device, reading = generate(make_branches(model), processors(checkpoint), [70] * 5)
    assert reading.num_reads == 70
    # What grammars allow is sent: a bit a token, while the device works.
    assert [(tuple(bits.shape), bits.dtype) for bits in device.sent] == [
        ((5, 64), torch.uint8)
    ] * 70


def test_the_model_alone_is_sent_nothing(model):
    device, reading = generate(make_branches(model), RowProcessors([]), [70] * 5)
    assert (reading.num_reads, device.sent) == (70, [])


def test_a_hybrid_waits_no_more(hybrid):
    device, reading = generate(make_branches(hybrid), RowProcessors([]), [70] * 5)
    assert (reading.num_reads, device.sent) == (70, [])


def test_a_step_of_a_hybrid_copies_states_and_new_keys_only(hybrid):
    steps = []
    for length in (10, 11):
        device, _ = generate(make_branches(hybrid), RowProcessors([]), [length] * 5)
        steps.append(device.operators)
    step = steps[1] - steps[0]
    for made in ("eye", "masked_fill", "masked_fill_", "nonzero", "repeat", "_unsafe_index"):
        assert step[made] == 0, made
    assert step["argmax"] == 1
    assert step["index_copy_"] == step["index_select"] == 1
    num_linear = num_full = hybrid.config.text_config.num_hidden_layers // 2
    of_rotary_embedding = 4
    # Written in place: a key and a value; two states, and the output of transformers' own kernel.
    assert step["copy_"] == 2 * num_full + 3 * num_linear + of_rotary_embedding


def test_a_step_makes_no_mask(model):
    """Its bias was laid out for 64 steps before; no layer converts or repeats it."""
    steps = []
    for length in (10, 11):
        device, _ = generate(make_branches(model), RowProcessors([]), [length] * 5)
        steps.append(device.operators)
    step = steps[1] - steps[0]
    assert step["argmax"] == 1
    assert step["index_copy_"] == step["index_select"] == 1  # tokens to slots, logits from slots
    for made in ("eye", "where", "masked_fill", "masked_fill_", "repeat", "index", "nonzero"):
        assert step[made] == 0, made
    num_layers = model.config.text_config.num_hidden_layers
    # Of keys and of values, one new token is written in place; nothing of the cache is copied.
    of_rotary_embedding = 4
    assert step["copy_"] == 2 * num_layers + of_rotary_embedding


def test_the_sampler_reads_nothing():
    class NoReading(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    names = []
    sampler = RowSampler([1, 2, 3], torch.device("cpu"))
    scores = torch.zeros(3, 50)
    with NoReading():
        sampler(scores)
    assert names.count("exponential_") == 3
    assert not {"_local_scalar_dense", "nonzero", "item", "_to_copy"} & set(names)


@pytest.mark.parametrize(
    "bad",
    [
        lambda branches, tokens: tokens[[0, 1]],
        lambda branches, tokens: tokens.index_select(0, torch.tensor([0, 1], device=META)),
        lambda branches, tokens: tokens[tokens > 3],
        lambda branches, tokens: tokens.add(torch.arange(5)),
        lambda branches, tokens: bool((tokens > 3).any()),
        lambda branches, tokens: int(tokens[0]),
        lambda branches, tokens: torch.arange(5).to(META),
    ],
)
def test_the_test_would_notice(model, monkeypatch, bad):
    original = Branches.feed

    def feed(self, tokens):
        bad(self, tokens)
        original(self, tokens)

    branches = make_branches(model)
    monkeypatch.setattr(Branches, "feed", feed)
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError)):
        generate(branches, RowProcessors([]), [3] * 5)
