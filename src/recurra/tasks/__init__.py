"""What networks are used for. `TASKS` is every name that `recurra train` takes."""

from recurra.errors import UsageError
from recurra.tasks.base import Sources, Task, Unit, Validation
from recurra.tasks.caption import Caption
from recurra.tasks.classify import Classify
from recurra.tasks.forecast import Forecast
from recurra.tasks.language import Language
from recurra.tasks.regress import Regress
from recurra.tasks.seq2seq import Seq2Seq
from recurra.tasks.tag import Tag

TASKS: dict[str, type[Task]] = {
    "language": Language,
    "classify": Classify,
    "tag": Tag,
    "seq2seq": Seq2Seq,
    "caption": Caption,
    "regress": Regress,
    "forecast": Forecast,
}


def task_called(name: str) -> type[Task]:
    """The task of this name. Raises UsageError, which names those there are."""
    if name not in TASKS:
        raise UsageError(f"there is no task called {name!r}; tasks are {', '.join(TASKS)}")
    return TASKS[name]


__all__ = [
    "TASKS",
    "Caption",
    "Classify",
    "Forecast",
    "Language",
    "Regress",
    "Seq2Seq",
    "Sources",
    "Tag",
    "Task",
    "Unit",
    "Validation",
    "task_called",
]
