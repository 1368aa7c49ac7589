"""What networks are used for. `TASKS` is every name that `recurra train` takes."""

from recurra.tasks.base import Sources, Task
from recurra.tasks.language import Language

TASKS: dict[str, type[Task]] = {"language": Language}

__all__ = ["TASKS", "Language", "Sources", "Task"]
