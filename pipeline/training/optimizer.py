"""Which parameters learn, how fast each part does, and Muon beside AdamW."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from schemas.errors import ModelError
from schemas.finetune import Lora, Training, Tune

_PARTS = {
    "projector": re.compile(r"visual\.(merger|deepstack_merger_list)\."),
    "vision": re.compile(r"visual\."),
}
# Muon is for matrices inside the layers. Tables of embeddings and the output are matrices too, but
# their rows are looked up one by one. Source: the optimizer's author, kellerjordan.github.io.
_NOT_MUON = re.compile(r"embed_tokens|lm_head|pos_embed|patch_embed")


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to: projector, vision or language."""
    return next((part for part, named in _PARTS.items() if named.search(name)), "language")


def choose_parameters(model: nn.Module, tune: Tune) -> None:
    """Let the chosen parts learn, and freeze the others."""
    learns = {
        "vision": tune.tune_mm_vision,
        "projector": tune.tune_mm_mlp,
        "language": tune.tune_mm_llm,
    }
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learns[part_of(name)])


def with_lora(model: nn.Module, lora: Lora) -> nn.Module:
    """Wrap the language model's layers with adapters; everything else is frozen.

    Raises:
        ModelError: the model has no module of these names.
    """
    from peft import LoraConfig, get_peft_model

    names = "|".join(re.escape(name) for name in lora.target_modules)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=rf".*language_model\.layers\..*\.({names})",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"lora.target_modules: {error}") from None


def cpu_has_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16: without, it is ten times slower at it."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def make_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Group the learning parameters by part and kind, each group with its learning rate."""
    rates = {
        "language": training.learning_rate,
        "projector": training.mm_projector_lr or training.learning_rate,
        "vision": training.vision_tower_lr or training.learning_rate,
    }
    muon: dict[str, list[nn.Parameter]] = {}
    adamw: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part = part_of(name)
        if training.optimizer == "muon" and parameter.ndim == 2 and not _NOT_MUON.search(name):
            muon.setdefault(part, []).append(parameter)
        else:
            adamw.setdefault((part, parameter.ndim > 1), []).append(parameter)
    groups = [
        {
            "params": parameters,
            "lr": training.adamw_lr or rates[part] if training.optimizer == "muon" else rates[part],
            "weight_decay": training.weight_decay if is_matrix else 0.0,
        }
        for (part, is_matrix), parameters in adamw.items()
    ]
    optimizers: list[torch.optim.Optimizer] = []
    if groups:
        optimizers.append(torch.optim.AdamW(groups, betas=(0.9, 0.95 if muon else 0.999)))
    if muon:
        if not torch.cuda.is_available() and not cpu_has_bf16():
            _muon_in_float32()
        muon_groups = [{"params": params, "lr": rates[part]} for part, params in muon.items()]
        optimizers.append(
            torch.optim.Muon(
                muon_groups,
                weight_decay=training.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers[0] if len(optimizers) == 1 else Together(optimizers)


def _muon_in_float32() -> None:
    """Let torch's Muon make gradients orthogonal in float32, in this process.

    It goes to bfloat16 for that, which is meant for GPUs, and offers no choice. Without
    instructions for it a step of a small model took 20 s on a CPU, and takes 2 s so.
    """
    module = torch.optim._muon
    module._zeropower_via_newtonschulz = _newton_schulz


def _newton_schulz(
    grad: torch.Tensor, ns_coefficients: tuple[float, float, float], ns_steps: int, eps: float
) -> torch.Tensor:
    """Bring a matrix's singular values near 1. Source: Keller Jordan's Muon, as torch has it."""
    a, b, c = ns_coefficients
    is_tall = grad.size(0) > grad.size(1)
    wide = grad.T if is_tall else grad
    wide = wide / wide.norm().clamp(min=eps)
    for _ in range(ns_steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if is_tall else wide


class Together(torch.optim.Optimizer):
    """Several optimizers, each for its own parameters, as one: schedules see all groups."""

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers
        parameters = [p for o in optimizers for g in o.param_groups for p in g["params"]]
        super().__init__(parameters, {})
        self.param_groups = [group for o in optimizers for group in o.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Let each make its step."""
        for optimizer in self._optimizers:
            optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all."""
        for optimizer in self._optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The states of all, in order."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self._optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the states of all; schedules hold the same group objects as before."""
        for optimizer, state in zip(self._optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.param_groups = [group for o in self._optimizers for group in o.param_groups]


def count_parameters(model: nn.Module) -> dict[str, int]:
    """Numbers of parameters: of each part, and of those that learn."""
    counts = {"language": 0, "projector": 0, "vision": 0, "learning": 0}
    for name, parameter in model.named_parameters():
        counts[part_of(name)] += parameter.numel()
        counts["learning"] += parameter.numel() if parameter.requires_grad else 0
    return counts
