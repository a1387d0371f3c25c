"""Predict the memory that a training step takes on a GPU, by counting a step without data.

The step runs on torch's fake tensors, which have sizes and no contents: what torch would allocate,
save for the backward pass and free is counted, and nothing is computed. Memory grows linearly with
the number of layers, so models of two and three layers are enough for one of any depth.
"""

import copy
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForImageTextToText

from pipeline.model.checkpoint import load_config
from pipeline.model.family import family_of
from pipeline.model.frame_size import MERGE_SIZE, PATCH_SIZE, TEMPORAL_PATCH_SIZE
from pipeline.training.attention import IMPLEMENTATION, branch_masks
from pipeline.training.load import enable_recompute, trainable, weights_dtype
from pipeline.training.optimizer import make_optimizer
from schemas.errors import ResourceError
from schemas.job.finetune import FinetuneJob

_COUNTED_LAYERS = (2, 3)


@dataclass(frozen=True, kw_only=True)
class Row:
    """The sizes of one batch, in tokens.

    tokens: all.
    branch_tokens: those of branches, which have a mask.
    learnt_tokens: those with a label.
    vision_tokens: those of images and videos.
    """

    tokens: int
    branch_tokens: int
    learnt_tokens: int
    vision_tokens: int


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """Bytes on the GPU of one worker, at the moment when a step takes most.

    weights: of the model, with adapters.
    optimizer: what stays between steps: the optimizer's states.
    working: gradients, activations, logits, or what the optimizer needs for its step.
    media: patches and vision features of the batch.
    """

    weights: float
    optimizer: float
    working: float
    media: float

    @property
    def total(self) -> float:
        """All of it; CUDA's own memory and gaps between blocks come on top."""
        return self.weights + self.optimizer + self.working + self.media


def predict_memory(job: FinetuneJob, row: Row, *, is_bf16: bool, num_workers: int) -> StepMemory:
    """Predict what a step with ``row`` takes on each of ``num_workers`` GPUs, without sharding.

    The activations of the vision tower are not counted: frozen, as by default, it keeps none.

    is_bf16: training computes in bfloat16.

    Raises:
        NotImplementedError: a step of this model cannot be counted; mixtures of experts route
            their tokens by value, and linear layers take a row in hundreds of chunks, one by one,
            for each of which fake tensors take as long as for a layer.
    """
    config = load_config(job.model.source, job.model.revision, job.model.yarn)
    family = family_of(config.to_dict())
    if family.is_hybrid:
        raise NotImplementedError("a model with linear layers")
    depth = config.text_config.num_hidden_layers
    counts = _COUNTED_LAYERS if depth > max(_COUNTED_LAYERS) else (depth,)
    counted = [_count_step(job, _with_layers(config, n), row, is_bf16=is_bf16) for n in counts]

    def at_depth(values: Sequence[float]) -> float:
        slope = values[-1] - values[0]  # of one layer; nothing is left to add where all are counted
        return values[-1] + slope * int(depth - counts[-1])

    weights, trained, optimizer, backward, step = (
        at_depth([getattr(c, name) for c in counted])
        for name in ("weights", "trained", "optimizer", "backward", "step")
    )
    # DistributedDataParallel sums gradients in buckets beside them.
    buckets = 4 * trained if num_workers > 1 else 0.0
    patches = row.vision_tokens * MERGE_SIZE**2 * 3 * TEMPORAL_PATCH_SIZE * PATCH_SIZE**2
    features = row.vision_tokens * config.text_config.hidden_size
    levels = 1 + family.deepstack
    return StepMemory(
        weights=weights,
        optimizer=optimizer,
        working=max(backward, step) - weights - optimizer + buckets,
        # Patches as they come, uint8, and normalised, float32.
        media=patches * (1 + 4) + features * levels * (2 if is_bf16 else 4),
    )


def check_fits(needed: StepMemory, available: int) -> None:
    """Check before the model is loaded that a step fits on a GPU of ``available`` bytes.

    Raises:
        ResourceError: it does not.
    """
    if needed.total > available:
        raise ResourceError(
            f"a step needs {needed.total / 1e9:.1f} GB of GPU memory, of which weights take "
            f"{needed.weights / 1e9:.1f}, and the GPU has {available / 1e9:.1f}: lower "
            "training.per_device_train_batch_size, model.max_model_len or budget.unit_tokens, set "
            "training.gradient_checkpointing or lora, or shard the model by trainer.deepspeed"
        )


@dataclass(frozen=True, kw_only=True)
class _Counted:
    """Bytes of a step: weights, states, and the peaks of both passes and of the optimizer's step.

    trained: parameters that are trained, their number.
    """

    weights: int
    trained: int
    optimizer: int
    backward: int
    step: int


def _with_layers(config: Any, num_layers: int) -> Any:
    config = copy.deepcopy(config)
    config.text_config.num_hidden_layers = num_layers
    return config


def _count_step(job: FinetuneJob, config: Any, row: Row, *, is_bf16: bool) -> _Counted:
    if getattr(config.text_config, "num_experts", None):
        raise NotImplementedError("a mixture of experts")
    dtype = getattr(torch, weights_dtype(job, is_bf16=is_bf16))
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(
            config, dtype=dtype, attn_implementation=IMPLEMENTATION
        )
        model = trainable(model, job).train()
    if job.training.gradient_checkpointing:
        enable_recompute(model)
    with FakeTensorMode():
        _make_fake(model)
        with _Allocated() as allocated:
            for parameter in model.parameters():
                allocated.add(parameter)
            weights = allocated.now
            optimizer = make_optimizer(model, job.training)
            # On CUDA AdamW steps with all parameters of a group at once, by default, and needs a
            # temporary number for each.
            for group in optimizer.param_groups:
                group |= {"foreach": True} if "foreach" in group else {}
            _run_step(model, row, is_bf16=is_bf16)
            optimizer.step()
            optimizer.zero_grad()
            states = allocated.now - weights
            # The first batch's gradients are there while the second is computed.
            for _ in range(min(job.training.gradient_accumulation_steps, 2)):
                allocated.peak = 0
                _run_step(model, row, is_bf16=is_bf16)
            backward, allocated.peak = allocated.peak, allocated.now
            optimizer.step()
    return _Counted(
        weights=weights,
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        optimizer=states,
        backward=backward,
        step=allocated.peak,
    )


def _run_step(model: Any, row: Row, *, is_bf16: bool) -> None:
    """Both passes of a batch of text of the row's size, as the Trainer runs them."""
    root_end = row.tokens - row.branch_tokens
    spans = ((0, root_end, row.tokens),)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        outputs = model(
            input_ids=torch.zeros(1, row.tokens, dtype=torch.int64),
            position_ids=torch.zeros(3, 1, row.tokens, dtype=torch.int64),
            logits_to_keep=torch.zeros(row.learnt_tokens, dtype=torch.int64),
            spans=spans,
            branch_masks=branch_masks(torch.zeros(row.tokens, dtype=torch.int32), spans),
            use_cache=False,
        )
    targets = torch.zeros(row.learnt_tokens, dtype=torch.int64)
    logits = outputs.logits[0].float()
    del outputs
    loss = nn.functional.cross_entropy(logits, targets, reduction="sum")
    del logits
    loss.backward()  # type: ignore[no-untyped-call]


def _make_fake(model: nn.Module) -> None:
    """Replace the parameters and buffers of a model on ``meta`` by fake ones on the CPU.

    Not with ``to_empty``, which refuses fake tensors. Tied weights stay tied.
    """
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in made:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                made[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
            module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


class _Allocated(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's are untyped
    """Counts the bytes of all storages that operations return, while they are referred to.

    now, peak: bytes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += self._sizes[key]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        pytree.tree_map_only(torch.Tensor, self.add, result)
        return result
