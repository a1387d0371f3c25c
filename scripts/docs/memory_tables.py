"""Tables of what fits into the memory of GPUs, by the arithmetic of the planner."""

from collections.abc import Iterator

from pipeline.model.frame_size import MERGE_SIZE, Size, image_size
from pipeline.model.memory import (
    START_ANSWER_TOKENS,
    BatchShape,
    ModelMemory,
    num_fitting,
    usable_bytes,
)
from pipeline.model.sizes import GPUS, PUBLISHED, ModelSize
from schemas.job.sampling import Budget

QUESTION_TOKENS = 100
"""Of a prompt behind the media: a question of usual length, with what the template adds."""


_VISION = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_position_embeddings": 2304,
}
_TEXT = {
    "head_dim": 256,
    "vocab_size": 248_320,
    "full_attention_interval": 4,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}
_MOE = {
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}


def _hybrid(**text: int) -> ModelSize:
    """The size by a configuration's fields."""
    config = {
        "model_type": "qwen3_5_moe" if "num_experts" in text else "qwen3_5",
        "vision_config": _VISION | {"out_hidden_size": text["hidden_size"]},
        "text_config": _TEXT | text,
    }
    return ModelSize.of(config)


SIZES = PUBLISHED | {
    "Qwen3.5-9B": _hybrid(
        num_hidden_layers=32,
        hidden_size=4096,
        intermediate_size=12_288,
        num_attention_heads=16,
        num_key_value_heads=4,
        linear_num_value_heads=32,
    ),
    "Qwen3.5-27B": _hybrid(
        num_hidden_layers=64,
        hidden_size=5120,
        intermediate_size=17_408,
        num_attention_heads=24,
        num_key_value_heads=4,
        linear_num_value_heads=48,
    ),
    "Qwen3.5-35B-A3B": _hybrid(
        num_hidden_layers=40,
        hidden_size=2048,
        num_attention_heads=16,
        num_key_value_heads=2,
        linear_num_value_heads=32,
        **_MOE,
    ),
}
"""By name; those without one are of Qwen3-VL.

Source of the hybrids: the defaults of transformers' configuration classes for 9B and 35B-A3B, and
for 27B the values of ``config.json`` of Qwen/Qwen3.6-27B. Not read from published files here.
"""

CHECKPOINTS = ("2B", "4B", "8B", "30B-A3B", "32B", *list(SIZES)[len(PUBLISHED) :])
CARDS = ("l40s", "h100", "h200")
NUM_TASKS = 5


def unit_shape(num_vision_tokens: int, num_time_tokens: int, num_tasks: int) -> BatchShape:
    """One unit as the engine would batch it."""
    return BatchShape(
        num_roots=1,
        prefix_tokens=num_vision_tokens + num_time_tokens,
        num_branches=num_tasks,
        suffix_tokens=QUESTION_TOKENS,
        answer_tokens=START_ANSWER_TOKENS,
        num_patches=num_vision_tokens * MERGE_SIZE**2,
    )


def units_on(unit: BatchShape, checkpoint: str, gpu: str) -> int:
    """How many units like ``unit`` a GPU works on at a time, in bfloat16."""
    memory = ModelMemory(size=SIZES[checkpoint])
    left = usable_bytes(GPUS[gpu].memory_bytes) - memory.weight_bytes
    return num_fitting(memory, unit, left)


def smallest_gpu(unit: BatchShape, checkpoint: str) -> str:
    """The GPU with the least memory into which a unit fits; "none" if it fits into none."""
    by_memory = sorted(GPUS, key=lambda name: GPUS[name].memory_bytes)
    return next((name for name in by_memory if units_on(unit, checkpoint, name)), "none")


def image_of_1080p() -> Size:
    """An image of 1920 x 1080 by the default budget."""
    return image_size(1080, 1920, Budget())


def units_rows(window: BatchShape) -> Iterator[tuple[str, ...]]:
    """Rows of the table of units: a checkpoint, then images and windows on each GPU."""
    image = unit_shape(image_of_1080p().num_tokens, 0, NUM_TASKS)
    for checkpoint in CHECKPOINTS:
        counts = (units_on(unit, checkpoint, gpu) for gpu in CARDS for unit in (image, window))
        yield (checkpoint, *(str(count) if count else "none" for count in counts))
