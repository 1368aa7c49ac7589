"""The two verbs of Python users: `recurra.train` and `recurra.load`."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from recurra import bundle, config, folds, run
from recurra.data import read
from recurra.errors import UsageError
from recurra.tasks import Sources, Task

PathLike = str | Path

# The options that the command line spells out, and the config key that each stands for.
SHORT = {
    "cell": ("cell", "name"),
    "hidden": ("model", "hidden"),
    "layers": ("model", "layers"),
    "epochs": ("train", "epochs"),
    "minutes": ("train", "minutes"),
    "steps": ("train", "steps"),
    "learner": ("learner", "name"),
    "vectors": ("embed", "vectors"),
    "text": ("data", "text"),
    "label": ("data", "label"),
    "folds": ("data", "folds"),
    "device": ("train", "device"),
    "seed": ("train", "seed"),
    "threads": ("train", "threads"),
}


def train(
    task: str,
    data: PathLike | Iterable[PathLike],
    *,
    valid: PathLike | Iterable[PathLike] = (),
    test: PathLike | Iterable[PathLike] = (),
    out: PathLike | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    tell: Callable[..., None] = lambda kind, **fields: None,
    **short: Any,
) -> Task:
    """Train a task on files, or resume the run folder `out`, and return it with its best model, ready to use.

    task      a name in `TASKS`, such as "language"
    data      a file, several, or a folder; `valid` and `test` likewise, else the end of the data is kept for validation
    out       the run folder; by default `runs/` and the name of the first file
    settings  config values by section: {"model": {"dropout": 0.5}}
    short     cell, hidden, layers, epochs, minutes, steps, learner, vectors, text, label, folds, device, seed, threads, as on
              the command line
    tell      called as tell(kind, **numbers) at every event

    >>> task = recurra.train("language", "corpus.txt", minutes=5)  # doctest: +SKIP
    """
    sources = as_sources(data, valid, test)
    values = merged(settings or {}, short)
    folder = Path(out) if out is not None else run.default_folder(sources, values)
    return folds.train(task, sources, folder, values, tell).task


def load(folder: PathLike, device: str = "cpu") -> Task:
    """The task in a run folder or bundle, ready to `.generate`, `.predict`, `.evaluate` and `.stream()`, on a device.

    Nothing in the folder is executed, and no network is touched. Raises DataError, DamagedError.
    """
    task = bundle.load(Path(folder))
    task.model.to(run.device_called(device))
    run.attach_data(task, Path(folder))
    return task


def as_sources(data: Any, valid: Any = (), test: Any = ()) -> Sources:
    """Paths, or lists of them, as Sources. Raises DataError for what is not there."""
    some = lambda given: [given] if isinstance(given, str | Path) else list(given)  # noqa: E731
    valid, test = some(valid), some(test)
    return Sources(read.sources(some(data)), read.sources(valid) if valid else (), read.sources(test) if test else ())


def merged(settings: Mapping[str, Mapping[str, Any]], short: Mapping[str, Any]) -> dict[str, Any]:
    """Config values by section with the short options that are not None put in. Raises UsageError for unknown names."""
    values: dict[str, Any] = {
        section: dict(fields) if isinstance(fields, Mapping) else fields for section, fields in settings.items()
    }
    for name, value in short.items():
        if name not in SHORT:
            raise UsageError(f"{name!r} is no option of train; options are {', '.join(SHORT)}, and settings={{...}}")
        if value is not None:
            section, key = SHORT[name]
            values.setdefault(section, {})[key] = value
    config.build(values)
    return values
