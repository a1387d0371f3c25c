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
from pipeline.model.sizes import GPUS, PUBLISHED
from schemas.job.sampling import Budget

QUESTION_TOKENS = 100
"""Of a prompt behind the media: a question of usual length, with what the template adds."""

CHECKPOINTS = ("2B", "4B", "8B", "30B-A3B", "32B")
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
    memory = ModelMemory(size=PUBLISHED[checkpoint])
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
