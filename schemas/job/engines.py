"""Settings of the engines vllm and simulated."""

from typing import Any, Literal

from pydantic import Field, model_validator

from schemas.job.section import Section

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
"""vLLM's arguments that follow from a key of the job file."""


class Vllm(Section):
    """How vLLM runs the model."""

    tensor_parallel_size: int = Field(1, ge=1, description="GPUs that split each layer.")
    pipeline_parallel_size: int = Field(
        1, ge=1, description="Groups of layers, each on its own GPUs."
    )
    gpu_memory_utilization: float = Field(
        0.9, gt=0, le=1, description="Share of each GPU's memory for weights and KV cache."
    )
    max_num_batched_tokens: int | None = Field(
        None,
        ge=256,
        description="Maximum number of tokens that one step reads or generates; default: vLLM's "
        "for offline work, 16,384 on GPUs from 70 GiB except the A100, 8,192 on others.",
    )
    max_num_seqs: int | None = Field(
        None,
        ge=1,
        description="Maximum number of answers generated at the same time; the KV cache may "
        "allow fewer. Default: 256; for a run of images alone vLLM's for offline work, 1,024 on "
        "GPUs from 70 GiB except the A100, 256 on others.",
    )
    quantization: str | None = Field(
        None,
        min_length=1,
        description="Quantise the weights while loading, such as `fp8`; null: keep the "
        "checkpoint's (FP8 checkpoints are recognised).",
    )
    engine_args: dict[str, Any] = Field(
        default_factory=dict,
        description="Further arguments of vLLM's `AsyncEngineArgs`, passed on unchanged: "
        "`{enforce_eager: true}`; part of the recipe.",
    )

    @model_validator(mode="after")
    def _not_twice(self) -> "Vllm":
        for name in self.engine_args:
            if name in Vllm.model_fields:
                raise ValueError(f"engine_args.{name}: set `model.vllm.{name}` instead")
            if name in OWN_ARGS:
                raise ValueError(
                    f"engine_args.{name} follows from `{OWN_ARGS[name]}`: set that instead"
                )
        return self

    @property
    def gpus(self) -> int:
        """GPUs of one replica."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


SimulatedSize = Literal["2B", "4B", "8B", "32B", "30B-A3B", "235B-A22B"]
SimulatedGpu = Literal["rtx4090", "l40s", "a100", "h100", "h200", "b200"]


class Simulated(Section):
    """The model and GPU that the engine simulates. Each `seconds_` overrides a computed time."""

    size: SimulatedSize = Field("8B", description="Size of the simulated model.")
    gpu: SimulatedGpu = Field("h100", description="The simulated GPU.")
    speed: float = Field(
        1.0, gt=0, description="Speed-up factor; at 100, hours of work take minutes."
    )
    max_num_seqs: int = Field(
        64, ge=1, description="Answers generated at the same time, as with continuous batching."
    )
    output_tokens: int = Field(
        120,
        ge=1,
        description="Mean length of an answer; each has 1/4 to 7/4 of it, at most max_new_tokens.",
    )
    seconds_per_vision_token: float | None = Field(
        None, ge=0, description="Time of the vision encoder per token."
    )
    seconds_per_prompt_token: float | None = Field(
        None, ge=0, description="Time to read a prompt, per token."
    )
    seconds_per_step: float | None = Field(
        None,
        ge=0,
        description="Time of one decoding step, which adds a token to each running answer.",
    )
    seconds_per_cached_token: float | None = Field(
        None,
        ge=0,
        description="Time added to a step by each token in the KV cache of the running answers.",
    )
