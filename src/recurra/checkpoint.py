"""Checkpoint: everything that training needs to go on as if it had never stopped.

Bit-identical resume needs all of it: weights, the optimizer's moments, the carried states, the random numbers' states,
the step (from which the data's place and the rate follow), and what the loop remembers of its validations.
"""

import random
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recurra import storage
from recurra.bundle import set_weights, weights
from recurra.errors import DamagedError
from recurra.learn import Carry, Learner
from recurra.regularize import plain_name
from recurra.state import named, unname
from recurra.tasks import Task

FILES = {"model.safetensors", "optimizer.safetensors", "carry.safetensors", "rng.safetensors", "state.json"}
AVERAGE = "average.safetensors"  # where weights are being averaged


@dataclass
class Progress:
    """What the loop remembers. Losses are means, in the unit of the task."""

    step: int = 0
    best: float = float("inf")  # the error of the best validation, and what else it said
    best_loss: float = float("inf")
    best_step: int = 0
    best_train: float = float("nan")
    stale: int = 0  # validations since the best one
    rate_scale: float = 1.0
    refused: int = 0  # updates left out because the loss or the gradient was not finite
    refused_in_a_row: int = 0
    seconds: float = 0.0
    ended: str = ""  # why training ended; empty while it has not
    recent: list[float] = field(default_factory=list)  # training losses since the last validation
    errors: list[float] = field(default_factory=list)  # of all validations, where finite
    averaged: int = 0  # how many steps' weights `Job.average` is the mean of
    clipped: int = 0  # updates whose gradient was clipped
    norms: dict[str, int] = field(default_factory=dict)  # how often the gradient had which norm: `fit.note_norm`


@dataclass
class Job:
    """A training under way: what a checkpoint saves and restores."""

    task: Task
    learner: Learner
    optimizer: torch.optim.Optimizer
    carry: Carry
    progress: Progress
    average: dict[str, Tensor] = field(default_factory=dict)  # mean weights by plain name, once averaging has begun


def save(folder: Path, job: Job) -> None:
    """Write the job's checkpoint of this step; older ones are pruned once it is verified."""

    def write(new: Path) -> None:
        slots, numbers = _optimizer_state(job)
        storage.write_tensors(new / "model.safetensors", weights(job.task.model))
        storage.write_tensors(new / "optimizer.safetensors", slots)
        storage.write_tensors(new / "carry.safetensors", named(job.carry))
        if job.average:
            storage.write_tensors(new / AVERAGE, job.average)
        tensors, python = _random_state()
        storage.write_tensors(new / "rng.safetensors", tensors)
        progress = {key: value for key, value in asdict(job.progress).items() if value == value}  # noqa: PLR0124 - drops NaN
        if progress["best"] == float("inf"):
            del progress["best"], progress["best_loss"]
        storage.write_json(new / "state.json", {"progress": progress, "optimizer": numbers, "python": python})

    storage.save_step(folder, job.progress.step, write)


def restore(folder: Path, job: Job) -> list[str]:
    """Put the newest checkpoint that verifies into `job`; returns complaints about newer, damaged ones.

    Without any checkpoint the job stays at its start. Raises DamagedError where there are some and none is whole.
    """
    newest, complaints = storage.newest(folder, FILES | {AVERAGE})
    if newest is None:
        return complaints
    saved = storage.read_json(newest / "state.json")
    try:
        set_weights(job.task.model, storage.read_tensors(newest / "model.safetensors"))
        _set_optimizer_state(job, storage.read_tensors(newest / "optimizer.safetensors"), saved["optimizer"])
        job.carry = unname(job.carry, storage.read_tensors(newest / "carry.safetensors"))
        job.progress = Progress(**saved["progress"])
        job.average = _average(newest, job)
        _set_random_state(storage.read_tensors(newest / "rng.safetensors"), saved["python"])
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"{newest}: does not fit this run ({error!r}); it was written by another version") from error
    return complaints


def _average(folder: Path, job: Job) -> dict[str, Tensor]:
    if not (folder / AVERAGE).exists():
        return {}
    mean = storage.read_tensors(folder / AVERAGE)
    parameters = {plain_name(name): parameter for name, parameter in job.task.model.named_parameters()}
    return {name: mean[name].to(parameter.device) for name, parameter in parameters.items()}


def _optimizer_state(job: Job) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's state per parameter: tensors as `<parameter>/<slot>`, plain numbers apart."""
    slots: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for name, parameter in job.task.model.named_parameters():
        for slot, value in job.optimizer.state.get(parameter, {}).items():
            key = f"{plain_name(name)}/{slot}"
            (slots if isinstance(value, Tensor) else numbers)[key] = value
    return slots, numbers


def _set_optimizer_state(job: Job, slots: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    job.optimizer.state.clear()
    parameters = {plain_name(name): parameter for name, parameter in job.task.model.named_parameters()}
    for key, value in {**slots, **numbers}.items():
        name, _, slot = key.rpartition("/")
        parameter = parameters[name]
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            job.optimizer.state[parameter][slot] = value.to(parameter.device)
        else:
            job.optimizer.state[parameter][slot] = value


def _random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64))}
    for number in range(torch.cuda.device_count()):
        tensors[f"cuda-{number}"] = torch.cuda.get_rng_state(number)
    version, internal, gauss = random.getstate()
    return tensors, {"numpy": [kind, *rest], "python": [version, list(internal), gauss]}


def _set_random_state(tensors: dict[str, Tensor], python: dict[str, Any]) -> None:
    torch.set_rng_state(tensors["torch"])
    for number in range(torch.cuda.device_count()):
        if f"cuda-{number}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda-{number}"], number)
    kind, *rest = python["numpy"]
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), *rest))
    version, internal, gauss = python["python"]
    random.setstate((version, tuple(internal), gauss))
