"""What learners without gradients share: many parameter vectors, the members of a population, judged by the same batch.

A member is a vector [P] of all trainable parameters of the model, in their order; a population is [members, P]. All members
start from the state that the current parameters have left, read the same batch, and meet the same noise of training (dropout):
common random numbers, without which the luckier mask would win and not the better weights.

Random numbers follow from a seed and a number of updates that stand in the carry, so a training that is resumed draws them
again, and the global generator is neither read nor moved on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from recurra.data.batch import Batch
from recurra.errors import UsageError
from recurra.learn.base import Learnable, learnt, restarted
from recurra.learn.influence import Pure
from recurra.state import State, detach

SIDE_BY_SIDE = 32
SMALL = 30_000  # parameters; measured with Elman, GRU and LSTM cells on one core: a larger one is quicker by itself


class Draws(NamedTuple):
    """Where the random numbers of a step come from: `seed`, and the `updates` since the start; both int64 []."""

    seed: Tensor
    updates: Tensor

    @classmethod
    def begin(cls, batch: Batch) -> "Draws":
        """From the seed of the training and the step: who starts anew after a refused update draws other numbers."""
        words = np.random.SeedSequence([torch.initial_seed(), batch.step]).generate_state(1, np.uint64)
        return cls(torch.tensor(int(words[0] >> 1)), torch.tensor(0))

    def next(self) -> "Draws":
        return Draws(self.seed, self.updates + 1)

    def numbers(self, place: int, count: int) -> list[int]:
        """So many seeds for one of the places where this step needs some."""
        words = np.random.SeedSequence([int(self.seed), int(self.updates), place]).generate_state(count, np.uint64)
        return [int(word >> 1) for word in words]

    def generator(self, place: int) -> torch.Generator:
        """A generator on the CPU, so that every device sees the same numbers."""
        return torch.Generator().manual_seed(self.numbers(place, 1)[0])


NOISE = 0  # the place of the noise of training; learners draw from 1 on


def vector(task: Learnable) -> Tensor:
    """A copy of the trainable parameters [P]."""
    return torch.cat([parameter.detach().flatten() for parameter in learnt(task).values()])


def parts(task: Learnable, member: Tensor) -> dict[str, Tensor]:
    """A vector [P] cut into the trainable parameters, with their names, shapes and dtypes."""
    own = learnt(task)
    pieces = member.split([parameter.numel() for parameter in own.values()])
    return {
        name: piece.view(parameter.shape).to(parameter.dtype)
        for (name, parameter), piece in zip(own.items(), pieces, strict=True)
    }


@torch.no_grad()
def put(task: Learnable, member: Tensor) -> None:
    """Set the trainable parameters to a vector [P], in place."""
    pieces = parts(task, member)
    for name, parameter in learnt(task).items():
        parameter.copy_(pieces[name])


def losses(task: Learnable, batch: Batch, state: State, members: Tensor, draws: Draws, together: int) -> Tensor:
    """The loss of each member of `members` [members, P] on the batch, from `state`: [members]; infinite where it is no number.

    `together` members are computed side by side, by `torch.vmap` over the plain loops of the cells; 1 is one after the other,
    through the kernels. The model keeps its own parameters.
    """
    pure = Pure(task)

    def one(member: Tensor) -> Tensor:
        return pure.with_weights(parts(task, member), batch, state, anew=True)[0]

    found = []
    for some in members.split(together):
        with torch.no_grad(), _same_noise(task.model, draws):
            several = torch.vmap(one, randomness="same")
            found.append(several(some) if len(some) > 1 else one(some[0])[None])
    return torch.cat(found).nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)


def after(task: Learnable, batch: Batch, state: State, draws: Draws) -> tuple[Tensor, State]:
    """The loss of the parameters in the model on the batch, from `state`, and the state that they leave."""
    with torch.no_grad(), _same_noise(task.model, draws):
        loss, state = task.loss(batch, restarted(task, batch, state))
    return loss.detach(), detach(state)


def side_by_side(task: Learnable, together: int | None) -> int:
    """How many members are computed at once: as asked for, or as many as are quicker so."""
    if together is not None:
        return together
    return SIDE_BY_SIDE if sum(parameter.numel() for parameter in learnt(task).values()) < SMALL else 1


def why_not_together(task: Learnable, batch: Batch, together: int | None) -> str | None:
    """Why members cannot be computed side by side, in words, found by computing two; None where they can."""
    width = side_by_side(task, together)
    if width == 1:
        return None
    members = vector(task).expand(2, -1)
    try:
        losses(task, batch, detach(task.model.initial_state(batch.rows)), members, Draws.begin(batch), width)
    except (RuntimeError, ValueError) as error:
        said = str(error).splitlines()[0].rstrip(".")
        return (
            f"torch.vmap cannot compute its loss for several members at once ({said}); "
            "--set learner.together=1 computes one after the other"
        )
    return None


def at_least(least: float, **given: float | None) -> None:
    """Raise UsageError for an option that is smaller than `least`; None is no value."""
    for name, value in given.items():
        if value is not None and not value >= least:
            raise UsageError(f"learner.{name} was {value}, wanted at least {least}")


def above_zero(**given: float) -> None:
    """Raise UsageError for an option that is not a positive, finite number."""
    for name, value in given.items():
        if not 0 < value < float("inf"):
            raise UsageError(f"learner.{name} was {value}, wanted a number above 0")


@contextmanager
def _same_noise(model: nn.Module, draws: Draws) -> Iterator[None]:
    """The global generators at the seed of this step, for a while: all who compute in it meet the same dropout."""
    device = next(model.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        # Not torch.manual_seed: where there is no GPU it notes down the whole call stack, which takes longer than a small loss.
        torch.default_generator.manual_seed(draws.numbers(NOISE, 1)[0])
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(draws.numbers(NOISE, 1)[0])
        yield
