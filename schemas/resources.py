"""The section ``resources`` of a job file."""

from typing import Annotated, Literal

from pydantic import Field

from schemas.section import Section


class Resources(Section):
    """How the work is spread over the cluster."""

    decoders: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="Decode actors; auto: one for each CPU that the engines leave."
    )
    cpus_per_decoder: float = Field(1.0, gt=0, description="Ray CPUs of a decode actor.")
    decode_timeout_seconds: float = Field(
        300.0,
        gt=0,
        description="Deadline of reading one media item's header, and of decoding one unit, which "
        "gets ten times the length of its video on top. What takes longer is stopped, and its row "
        "says decode_timeout.",
    )
    decode_memory_gib: float = Field(
        4.0,
        gt=0,
        description="Memory that a decoder may take, in GiB. What takes more is stopped, and its "
        "row says media_too_large.",
    )
    replicas: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="Engine actors; auto: one for each GPU, or one on the CPU."
    )
    gpus_per_replica: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="auto: 1 where the cluster has GPUs, else 0."
    )
    cpus_per_replica: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="Ray CPUs of an engine actor, and its threads where it computes on them; "
        "auto: 1 beside a GPU, else three quarters of a node, if the decoders leave so many.",
    )
    wait_seconds: float = Field(
        0.0,
        ge=0,
        description="On a cluster that grows when it is asked to: ask for the nodes of the actors, "
        "and wait so long for them. Give `replicas` and `decoders` as numbers then.",
    )
    engine_timeout_seconds: float = Field(
        1800.0,
        gt=0,
        description="An engine is replaced that takes so much longer than twenty times what its "
        "work took until now, by predicted cost (at first: a second for each token).",
    )
    engine_load_timeout_seconds: float = Field(
        3600.0,
        gt=0,
        description="An engine is started anew that has not loaded its model in this time; the "
        "third time ends the run.",
    )
    engine_growth_gib: float = Field(
        8.0,
        gt=0,
        description="An engine is replaced whose memory has grown by so many GiB since its first "
        "units.",
    )
    max_batch_tokens: int = Field(
        16384,
        ge=256,
        description="Prompt and answer tokens of one engine batch, padding included; what the "
        "tasks of a unit share counts once. vLLM forms its own.",
    )
    units_per_file: int = Field(
        64,
        ge=1,
        description="Units per committed output file, at most: what an interruption costs.",
    )
