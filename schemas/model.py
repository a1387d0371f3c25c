"""Which checkpoint, and how it is run."""

from typing import Literal

from pydantic import Field, model_validator

from schemas.section import Section
from schemas.simulated import Simulated
from schemas.vllm import Vllm


class Yarn(Section):
    """YaRN: a longer context by stretched rotary positions."""

    factor: float = Field(
        2.0,
        gt=1,
        le=4,
        description="2 to 3 suffices for a million tokens: positions grow slower than tokens.",
    )
    original_max_position_embeddings: int | None = Field(
        None, ge=256, description="Context it was trained with; default: the checkpoint's."
    )


class Model(Section):
    """Which checkpoint, and how the engine runs it."""

    source: str = Field(
        "Qwen/Qwen3-VL-4B-Instruct",
        description="A Qwen3-VL checkpoint, dense or MoE: hub id or local folder.",
    )
    revision: str | None = Field(None, description="Hub revision: branch, tag or commit.")
    adapter: str | None = Field(
        None,
        min_length=1,
        description="A LoRA adapter for it, as `reelscribe finetune` or peft writes it: hub id or "
        "local folder.",
    )
    engine: Literal["transformers", "vllm", "simulated"] = Field(
        "transformers",
        description="What runs the model. vllm: continuous batching, made for GPUs (not measured "
        "on one yet); simulated: nothing does, but it takes as long.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Of weights and activations; auto: as the checkpoint says."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: cuda if the engine actor was given a GPU, else cpu."
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = Field(
        "sdpa", description="With engine transformers: its attention implementation."
    )
    max_model_len: int | None = Field(
        None,
        ge=256,
        description="Longest prompt plus answer, in tokens; default: the checkpoint's own "
        "context, with yarn the stretched one.",
    )
    yarn: Yarn | None = Field(
        None, description="A context longer than the checkpoint's own, to a million tokens."
    )
    vllm: Vllm = Field(default_factory=Vllm, description="With engine vllm: how it runs.")
    simulated: Simulated = Field(
        default_factory=Simulated, description="With engine simulated: what it pretends to be."
    )

    @model_validator(mode="after")
    def _of_the_engine(self) -> "Model":
        if self.engine != "vllm" and self.vllm != Vllm():
            raise ValueError("`vllm` has settings of the engine vllm: set `engine: vllm` too")
        if self.engine == "vllm" and self.attn_implementation != "sdpa":
            raise ValueError(
                "attn_implementation is for the engine transformers; vLLM chooses its own, or "
                "takes `vllm: {engine_args: {attention_backend: ...}}`"
            )
        return self
