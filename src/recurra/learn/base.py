"""Learner: the contract of a learning rule."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from recurra.data.batch import Batch
from recurra.state import State, choose, detach


class Carry(NamedTuple):
    """What a learner takes from one batch to the next: trees of tensors, opaque to the loop, saved with a checkpoint.

    rows     has a batch axis; a row starts anew where the batch is fresh
    shared   has none
    """

    rows: State
    shared: State = ()


class Learnable(Protocol):
    """What a learner needs to know of a task."""

    @property
    def model(self) -> Any:
        """A module with `initial_state(batch)`: () where no state is carried from batch to batch."""

    def loss(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        """The summed losses of the steps divided by `batch.weight`, and the state after them. Pure."""


class Learner(ABC):
    """Turns a batch into gradients in `.grad` and the carry for the next batch."""

    @abstractmethod
    def start(self, task: Learnable, batch: Batch) -> Carry:
        """The carry before the first batch."""

    @abstractmethod
    def __call__(self, task: Learnable, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        """Add the gradients of the batch's loss to `.grad`; return the loss (no graph) and the next carry."""

    def supports(self, task: Learnable, batch: Batch) -> str | None:
        """Why this learner cannot train this task, in words; None where it can."""
        return None


def restarted(task: Learnable, batch: Batch, state: State) -> State:
    """`state`, cut off from its past, with the fresh rows of the batch at the model's initial state."""
    if not bool(batch.fresh.any()):
        return detach(state)
    return choose(batch.fresh, task.model.initial_state(batch.rows), detach(state))
