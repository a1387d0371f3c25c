"""The section ``resources`` of a job file."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.job.section import Section


class DecodeLimits(Section):
    """Limits of the processes that read media."""

    decode_timeout_seconds: float = Field(
        300.0,
        gt=0,
        le=86_400,
        allow_inf_nan=False,
        description="Deadline for reading one media item's header, and for decoding one unit; "
        "ten times the duration of a unit's video is added. A unit that takes longer fails with "
        "decode_timeout.",
    )
    decode_memory_gib: float = Field(
        4.0,
        gt=0,
        le=1024,
        allow_inf_nan=False,
        description="Maximum memory of a decoder, in GiB; without Ray, of all decoders of the job "
        "together, and at planning, of all headers that are read at a time. A unit that takes more "
        "alone fails with media_too_large.",
    )


class Resources(DecodeLimits):
    """How the work is distributed over the cluster."""

    ray: Literal["auto", "always"] = Field(
        "auto",
        description="auto: a job of at most 256 items and 256 units, on one machine without "
        "RAY_ADDRESS or a running Ray and with room for one engine, runs without Ray, whose start "
        "takes longer than such a job; model.engine vllm always runs on Ray.",
    )
    decoders: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="Number of decode actors; auto: one for each CPU that the engines leave free.",
    )
    cpus_per_decoder: float = Field(1.0, gt=0, description="Ray CPUs of a decode actor.")
    replicas: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="Number of engine actors; auto: one for each GPU, or one on the CPU."
    )
    gpus_per_replica: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="GPUs of an engine actor; auto: those of `model.vllm`, or 1, if the cluster "
        "has GPUs, else 0. With `wait_seconds`, vLLM requests GPUs unless this is 0 or "
        "`model.device` is cpu; other engines request them if it is a number or `model.device` is "
        "cuda.",
    )
    cpus_per_replica: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="Ray CPUs of an engine actor, and its threads if it computes on the CPU; "
        "auto: 1 with a GPU, for vLLM 2 and one for each GPU if the decoders keep half; without a "
        "GPU three quarters of a node, if the decoders leave as many.",
    )
    wait_seconds: float = Field(
        0.0,
        ge=0,
        description="On a cluster with autoscaling: request the nodes of the actors, and wait this "
        "long for those of the first engine and decoder; the others are used as soon as they are "
        "there. `replicas` and `decoders` must then be numbers.",
    )
    engine_timeout_seconds: float = Field(
        1800.0,
        gt=0,
        description="An engine is replaced if a block takes longer than this plus twenty times its "
        "expected time, which follows from its predicted cost and earlier blocks (first block: "
        "one second per token in place of the twentyfold time, on a GPU 0.01 s).",
    )
    engine_load_timeout_seconds: float = Field(
        3600.0,
        gt=0,
        description="An engine that has not loaded its model in this time is started again; the "
        "third failure ends the run.",
    )
    engine_growth_gib: float = Field(
        8.0,
        gt=0,
        description="An engine is replaced when its memory has grown by this many GiB since its "
        "first units.",
    )
    max_batch_tokens: Annotated[int, Field(ge=256)] | Literal["auto"] = Field(
        "auto",
        description="Maximum prompt and answer tokens of one batch of the engine transformers, "
        "padding included; tokens that the tasks of a unit share count once, and answers as long "
        "as they are expected to be. auto: as many as the memory holds that the GPU has left when "
        "the model is loaded; on a CPU at most 16,384. vLLM forms its own batches.",
    )
    units_per_file: int = Field(
        64,
        ge=1,
        description="Maximum units of a piece: a file in which rows wait until all units of their "
        "shard have one. An interruption loses the units of an unwritten piece.",
    )
