"""The section ``model`` of a job file."""

from typing import Literal

from pydantic import Field, model_validator

from schemas.job.engines import Simulated, Vllm
from schemas.job.section import Section

PUBLISHED_NAMES = "Qwen3-VL, Qwen3.5, Qwen3.6 and Qwen3.8"
"""Checkpoints that Reelscribe runs, for messages."""

SOURCE = f"A checkpoint ({PUBLISHED_NAMES}; dense or MoE): hub id or local folder."


class Yarn(Section):
    """YaRN: a longer context by interpolated rotary positions."""

    factor: float = Field(
        2.0,
        gt=1,
        le=4,
        description="Factor of the context; 2 to 3 is enough for a million tokens, since a "
        "video has fewer positions than tokens.",
    )
    original_max_position_embeddings: int | None = Field(
        None, ge=256, description="Context length of the training; default: the checkpoint's."
    )


class Model(Section):
    """Which checkpoint, and how the engine runs it."""

    source: str = Field("Qwen/Qwen3-VL-4B-Instruct", description=SOURCE)
    revision: str | None = Field(None, description="Hub revision: branch, tag or commit.")
    adapter: str | None = Field(
        None,
        min_length=1,
        description="A LoRA adapter, as written by `reelscribe finetune` or peft: hub id or "
        "local folder.",
    )
    engine: Literal["auto", "transformers", "vllm", "simulated"] = Field(
        "auto",
        description="The engine that runs the model. auto: vllm if the machines with GPUs have it, "
        "else transformers; a job that has rows keeps the engine that made them. vllm: continuous "
        "batching, made for GPUs; simulated: runs no model and takes as long as one would.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Type of weights and activations; auto: the checkpoint's, by its config.json, "
        "else by its weights.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: cuda if the engine actor has a GPU, else cpu."
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", description="Attention implementation of the engine transformers."
    )
    max_model_len: int | None = Field(
        None,
        ge=256,
        description="Maximum length of prompt plus answer, in tokens; default: the checkpoint's "
        "context, extended if `yarn` is set.",
    )
    yarn: Yarn | None = Field(
        None, description="A context longer than the checkpoint's, up to a million tokens."
    )
    vllm: Vllm = Field(
        default_factory=Vllm,
        description="Settings of the engine vllm; without effect if `auto` is another engine.",
    )
    simulated: Simulated = Field(
        default_factory=Simulated, description="Settings of the engine simulated."
    )

    @model_validator(mode="after")
    def _of_the_engine(self) -> "Model":
        if self.engine not in ("auto", "vllm") and self.vllm != Vllm():
            raise ValueError(
                f"`vllm` has settings of the engine vllm, and `engine` is {self.engine}: set "
                "`engine: vllm`, or leave it at auto"
            )
        if self.engine == "vllm" and self.attn_implementation != "sdpa":
            raise ValueError(
                "attn_implementation is for the engine transformers; for vLLM set "
                "`vllm: {engine_args: {attention_backend: ...}}`"
            )
        return self
