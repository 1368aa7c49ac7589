"""Learner: the contract of a learning rule."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from recurra.data.batch import Batch
from recurra.state import State, choose, detach, leaves, tmap

MEMORY = 2.0  # GiB that a learner may take beside the model, unless it is told


class Carry(NamedTuple):
    """What a learner takes from one batch to the next: trees of tensors, opaque to the loop, saved with a checkpoint.

    state    the network's; a row starts anew where the batch is fresh
    traces   whatever else has a batch axis, and starts anew with the rows
    shared   what has none
    """

    state: State
    traces: State = ()
    shared: State = ()


class Cost(NamedTuple):
    """What a learner takes beside the model and its gradient, for one batch: bytes that it holds at once, and multiplications
    a time step, of all rows together, beside those of the network's own step."""

    bytes: int
    operations: int

    def __str__(self) -> str:
        size, unit = (self.bytes / 2**20, "MiB") if self.bytes < 2**30 else (self.bytes / 2**30, "GiB")
        return f"{size:,.1f} {unit} and {self.operations:,} multiplications a step"


class Learnable(Protocol):
    """What a learner needs to know of a task."""

    @property
    def model(self) -> Any:
        """A module with `initial_state(batch)`: () where no state is carried from batch to batch."""

    def loss(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        """The summed losses of the steps divided by `batch.weight`, and the state after them. Pure."""


class Learner(ABC):
    """Turns a batch into gradients in `.grad`, or sets the parameters itself, and the carry for the next batch."""

    @abstractmethod
    def start(self, task: Learnable, batch: Batch) -> Carry:
        """The carry before the first batch."""

    @abstractmethod
    def __call__(self, task: Learnable, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        """Add the gradients of the batch's loss to `.grad`, or leave that alone and set the parameters; return the loss (no graph)
        and the next carry."""

    def supports(self, task: Learnable, batch: Batch) -> str | None:
        """Why this learner cannot train this task, in words; None where it can."""
        return None

    def cost(self, task: Learnable, batch: Batch) -> Cost | None:
        """What it takes to train this task; None where that is nothing but what the network itself takes."""
        return None


def restarted(task: Learnable, batch: Batch, state: State) -> State:
    """`state`, cut off from its past, with the fresh rows of the batch at the model's initial state."""
    if not bool(batch.fresh.any()):
        return detach(state)
    return choose(batch.fresh, task.model.initial_state(batch.rows), detach(state))


def forgotten(batch: Batch, traces: State) -> State:
    """`traces` `[batch, ...]` with zeros in the fresh rows: nothing that came before has a part in what they say."""
    if not bool(batch.fresh.any()):
        return traces
    return choose(batch.fresh, tmap(torch.zeros_like, traces), traces)


def why_no_start(task: Learnable) -> str | None:
    """Why a learner that knows nothing of where rows begin cannot train a task, in words; None where the start is not learnt."""
    with torch.enable_grad():
        if any(leaf.requires_grad for leaf in leaves(task.model.initial_state(1))):
            return "the state that it begins from is learnt, which is for bptt, rtrl and uoro"
    return None


def steps(batch: Batch) -> Iterator[Batch]:
    """The batch step by step. Each step has the weight of the whole: their losses add up to that of the batch."""
    return (replace(part, weight=batch.weight) for part in batch.windows(1))


def learnt(task: Learnable) -> dict[str, Tensor]:
    """The parameters that learn, by name."""
    return {name: one for name, one in task.model.named_parameters() if one.requires_grad}


def add_gradients(parameters: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
    """Add to `.grad`."""
    for name, gradient in gradients.items():
        parameter = parameters[name]
        parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient


def carries_a_state(task: Learnable) -> bool:
    """Whether what is learnt goes on from batch to batch and step to step, or reads whole sequences."""
    return any(True for _ in leaves(task.model.initial_state(1)))


def why_not_stepwise(task: Learnable, batch: Batch) -> str | None:
    """Why a task cannot be learnt step after step, in words; None where it can."""
    if not carries_a_state(task):
        return (
            "it reads whole sequences before it says anything, and this learner goes with the data step by step; "
            "take bptt, or a task with a target at each step such as language"
        )
    weights = getattr(getattr(task, "config", None), "regularize", None)
    if weights is not None and (weights.ar or weights.tar):
        return "regularize.ar and tar need the steps side by side; leave them out"
    return None


def over_budget(cost: Cost, memory: float, instead: str) -> str | None:
    """Why a learner would not fit into so many GiB, in words, with what to take `instead`; None where it fits."""
    if cost.bytes <= memory * 2**30:
        return None
    return f"it takes {cost} beside the network, and learner.memory is {memory:g} GiB; {instead}"
