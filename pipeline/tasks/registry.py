"""All tasks, by name: a new task is a file in this folder and a name in ``TaskName``."""

from importlib import import_module

from schemas.job.task_spec import TASK_NAMES
from schemas.task import Task

TASKS: dict[str, Task] = {name: import_module(f"pipeline.tasks.{name}").TASK for name in TASK_NAMES}
