"""Settings of the vLLM engine."""

from typing import Any

from pydantic import Field, model_validator

from schemas.section import Section

OWN_ARGS = {
    "model": "model.source",
    "tokenizer": "model.source",
    "revision": "model.revision",
    "dtype": "model.dtype",
    "max_model_len": "model.max_model_len",
    "hf_overrides": "model.yarn",
    "enable_lora": "model.adapter",
    "reasoning_parser": "generation",
    "mm_processor_kwargs": "budget",
}
"""Arguments of vLLM's that the job file has a key for, or that follow from one."""


class Vllm(Section):
    """How vLLM runs the model."""

    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that share each layer.")
    pipeline_parallel_size: int = Field(
        1, ge=1, description="Groups of layers, each on GPUs of its own."
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="Share of a GPU's memory for weights and cache."
    )
    max_num_seqs: int = Field(
        256, ge=1, description="Answers written at the same time, at most; the cache may hold less."
    )
    quantization: str | None = Field(
        None,
        min_length=1,
        description="Quantise the weights as they are loaded, such as `fp8`; null: as the "
        "checkpoint is (FP8 checkpoints say so themselves).",
    )
    engine_args: dict[str, Any] = Field(
        default_factory=dict,
        description="Any further arguments of vLLM's `AsyncEngineArgs`, as they are: "
        "`{enforce_eager: true}`; part of the recipe.",
    )

    @model_validator(mode="after")
    def _not_twice(self) -> "Vllm":
        for name in self.engine_args:
            if name in Vllm.model_fields:
                raise ValueError(f"engine_args.{name}: give it as `model.vllm.{name}`")
            if name in OWN_ARGS:
                raise ValueError(f"engine_args.{name} is made from `{OWN_ARGS[name]}`: set that")
        return self

    @property
    def gpus(self) -> int:
        """Of one replica."""
        return self.tensor_parallel_size * self.pipeline_parallel_size
