"""Bundle: a folder with all that a prediction needs, readable by a person, and nothing that can run.

    config.json         the settled config            model.safetensors   the weights, under plain names, tied ones once
    tokenizer.json      text <-> ids, for texts       assets.json         scores, floors, how it was trained
    task.json           labels, scales, where needed
    README.md           the card                      MANIFEST.json       bytes and SHA-256 of all the others

It is written whole or not at all, and verified before a byte of it is used (see `storage`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recurra import storage
from recurra.config import Config, build
from recurra.errors import DamagedError, DataError, UsageError
from recurra.regularize import plain_name
from recurra.tasks import TASKS, Task

KIND = "bundle"
FILES = {"config.json", "model.safetensors", "assets.json", "README.md"}
OF_THE_TASK = {"tokenizer.json", "task.json"}  # those of them that the task has need of


def save(folder: Path, task: Task, report: Mapping[str, Any]) -> None:
    """Write the task as a bundle; what stood in `folder` before stays until the new one is verified."""

    def write(new: Path) -> None:
        storage.write_json(new / "config.json", task.config.model_dump(mode="json"))
        storage.write_tensors(new / "model.safetensors", weights(task.model))
        storage.write_json(new / "assets.json", dict(report))
        task.write_assets(new)
        (new / "README.md").write_text(card(task, report), encoding="utf-8")

    storage.seal(folder, write, KIND)


def load(folder: Path) -> Task:
    """The task in a bundle, or in the `best` bundle of a run, ready to predict; on the CPU, in `eval()`.

    Raises DataError where there is none, DamagedError where a file is not as it was written.
    """
    while True:
        found = find(folder)
        before = found.stat().st_ino
        task = _load(found)
        if found.exists() and found.stat().st_ino == before:  # a training may put a better one in its place meanwhile
            return task


def _load(folder: Path) -> Task:
    files = storage.verify(folder, KIND, FILES | OF_THE_TASK)
    config = _config(files["config.json"]) if "config.json" in files else None
    wanted = FILES | (TASKS[config.task.name].assets if config else set())
    if config is None or wanted - set(files):
        raise DamagedError(
            f"{folder}: {', '.join(sorted(wanted - set(files)))} not in the bundle; wanted {', '.join(sorted(wanted))}"
        )
    tensors = storage.read_tensors(files["model.safetensors"])
    task = TASKS[config.task.name].restore(config, folder)
    try:
        with torch.device("meta"):  # shapes are compared before memory is asked for
            task.build(config)
    except UsageError as error:
        raise _foreign(files["config.json"], error) from error
    _compare(task.model, tensors, files["model.safetensors"])
    with torch.random.fork_rng(devices=[]):
        task.build(config)
    set_weights(task.model, tensors)
    task.model.eval()
    return task


def find(folder: Path) -> Path:
    """The bundle that a user means by a folder: itself, or the best one of a run (set aside, where a kill left it so)."""
    try:
        for place in (folder, folder / "best", folder / ".old-best"):
            if (place / storage.MANIFEST).exists():
                return place
        if not folder.exists():
            raise DataError(f"{folder}: there is no such folder; wanted a run folder or a bundle")
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}; wanted a run folder or a bundle that can be read") from error
    if (folder / "config.toml").exists():
        raise DataError(f"{folder}: this run has not saved a model yet; let it train until its first validation")
    if (folder / "fold-1").is_dir():
        raise DataError(f"{folder}: it holds a run for each fold; name one of them, such as {folder / 'fold-1'}")
    raise DataError(f"{folder}: neither a run folder nor a bundle (no {storage.MANIFEST} in it or in its best/)")


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers under their plain names; a tensor that two modules share stands once."""
    return {plain_name(name): tensor.detach() for name, tensor in _tensors(model)}


def set_weights(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `weights`. Raises DamagedError where names or shapes differ."""
    _compare(model, tensors, Path("model.safetensors"))
    with torch.no_grad():
        for name, tensor in _tensors(model):
            tensor.copy_(tensors[plain_name(name)])


def card(task: Task, report: Mapping[str, Any]) -> str:
    """What a reader of the folder wants to know, as Markdown."""
    count = sum(tensor.numel() for _, tensor in _tensors(task.model))
    lines = [f"# A {task.config.cell.name} network for the {task.name} task", ""]
    lines += [
        f"{count:,} parameters. Made with recurra; load it with `recurra.load(folder)`.",
        "",
        "| | |",
        "| --- | --- |",
    ]
    scores = {**report.get("scores", {}), **{f"floor: {k}": v for k, v in report.get("floors", {}).items()}}
    lines += [f"| {name} | {value:.4f} |" for name, value in scores.items()]
    return "\n".join(lines) + "\n"


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _config(path: Path) -> Config:
    value = storage.read_json(path)
    if not isinstance(value, dict):
        raise DamagedError(f"{path}: expected a config, found {type(value).__name__}; restore it from a copy")
    try:
        config = build(value)
    except UsageError as error:
        raise _foreign(path, error) from error
    if config.task.name not in TASKS:
        raise DamagedError(f"{path}: there is no task called {config.task.name!r}; tasks are {', '.join(TASKS)}")
    if "auto" in config.model.model_dump().values():
        raise DamagedError(f"{path}: [model] holds an auto, wanted the settled values of a run; restore it from a copy")
    return config


def _foreign(path: Path, error: UsageError) -> DamagedError:
    return DamagedError(f"{path}: {error}; it was written by another version of recurra, or altered")


def _compare(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    wanted = {plain_name(name): tuple(tensor.shape) for name, tensor in _tensors(model)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if wanted != found:
        odd = sorted(set(wanted.items()) ^ set(found.items()))[0][0]
        raise DamagedError(
            f"{path}: tensor {odd!r} has shape {found.get(odd, 'none')}, the config wants {wanted.get(odd, 'none')}"
        )
