"""Choose the trainable parameters and their learning rates, and combine Muon with AdamW."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from schemas.errors import ModelError
from schemas.job.finetune import Lora, Training, Tune

_PARTS = {
    "projector": re.compile(r"visual\.(merger|deepstack_merger_list)\."),
    "vision": re.compile(r"visual\."),
}
# Muon is for the hidden layers' matrices, not for embeddings and the output.
# Source: its author's description, kellerjordan.github.io/posts/muon.
_LINEAR_MODULES = ("in_proj_qkv", "in_proj_z", "out_proj")
"""Projections of a linear layer that do what those of attention do."""
_NOT_MUON = re.compile(r"embed_tokens|lm_head|pos_embed|patch_embed")


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to: projector, vision or language."""
    return next((part for part, named in _PARTS.items() if named.search(name)), "language")


def choose_parameters(model: nn.Module, tune: Tune) -> None:
    """Make the chosen parts trainable, and freeze the others."""
    is_trained = {
        "vision": tune.tune_mm_vision,
        "projector": tune.tune_mm_mlp,
        "language": tune.tune_mm_llm,
    }
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_trained[part_of(name)])


def with_lora(model: nn.Module, lora: Lora) -> nn.Module:
    """Add LoRA adapters to the language model's layers; everything else is frozen.

    If the job names no modules, a model with linear layers gets adapters there, too.

    Raises:
        ModelError: the model has no modules of these names.
    """
    from peft import LoraConfig, get_peft_model

    modules = lora.target_modules
    if "target_modules" not in lora.model_fields_set and _has_linear(model):
        modules += _LINEAR_MODULES
    names = "|".join(re.escape(name) for name in modules)
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


def _has_linear(model: nn.Module) -> bool:
    return any(hasattr(module, "linear_attn") for module in model.modules())


def cpu_has_bf16() -> bool:
    """Whether this CPU has bfloat16 instructions; without them bfloat16 is ten times slower."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def make_optimizer(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Make the optimizer, with a parameter group for each part of the model.

    Muon takes the matrices of the hidden layers, AdamW the rest; weight decay is on matrices only.
    """
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
            _set_muon_to_float32()
        muon_groups = [{"params": params, "lr": rates[part]} for part, params in muon.items()]
        optimizers.append(
            torch.optim.Muon(
                muon_groups,
                weight_decay=training.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers[0] if len(optimizers) == 1 else CombinedOptimizer(optimizers)


def _set_muon_to_float32() -> None:
    """Replace the function of torch's Muon that orthogonalises gradients, in this process.

    Torch's own computes in bfloat16, and has no option. On a CPU without bfloat16 instructions a
    step of a small model took 20 s with it, and takes 2 s in float32.
    """
    module = torch.optim._muon
    module._zeropower_via_newtonschulz = _newton_schulz


def _newton_schulz(
    grad: torch.Tensor, ns_coefficients: tuple[float, float, float], ns_steps: int, eps: float
) -> torch.Tensor:
    """Bring the singular values of a matrix near 1. Source: ``torch.optim.Muon``."""
    a, b, c = ns_coefficients
    is_tall = grad.size(0) > grad.size(1)
    wide = grad.T if is_tall else grad
    wide = wide / wide.norm().clamp(min=eps)
    for _ in range(ns_steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if is_tall else wide


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimizers, each for its own parameters, as one.

    param_groups: the optimizers' own group objects, so that a schedule changes all of them.
    """

    def __init__(self, optimizers: list[torch.optim.Optimizer]) -> None:
        self.optimizers = optimizers
        parameters = [p for o in optimizers for g in o.param_groups for p in g["params"]]
        super().__init__(parameters, {})
        self.param_groups = [group for o in optimizers for group in o.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Make a step with each optimizer."""
        for optimizer in self.optimizers:
            optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The states of all optimizers, in order."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the states of all optimizers."""
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.param_groups = [group for o in self.optimizers for group in o.param_groups]
