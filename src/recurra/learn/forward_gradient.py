"""Forward gradients: a directional derivative along a random direction, times the direction."""

from typing import Any, final

import torch
from torch import Tensor
from torch.func import jvp

from recurra import kernels
from recurra.data.batch import Batch
from recurra.errors import UsageError
from recurra.learn.base import Carry, Cost, Learnable, Learner, add_gradients, learnt
from recurra.learn.influence import Pure
from recurra.regularize import seeded
from recurra.state import State, detach, floating


@final
class ForwardGradient(Learner):
    """The forward gradient (Baydin et al. 2022, arXiv:2202.08587): of random directions v ~ N(0, 1),

        dE/dtheta ~ mean over v of (dE/dtheta . v) v

    whose derivative along v is computed as the network runs forwards, through all steps of a batch; what goes on from the batch
    before counts as given. Memory O(batch S), as many forward passes as directions. No bias within a batch; the variance is
    that of the gradient times the number of weights: for small networks only.

    directions    how many are drawn for a batch
    seed          of the directions; the same seed and step draw the same
    """

    def __init__(self, *, directions: int = 1, seed: int = 0) -> None:
        if directions < 1:
            raise UsageError(f"learner.directions was {directions}, wanted at least 1")
        if not 0 <= seed < 2**63:
            raise UsageError(f"learner.seed was {seed}, wanted a number from 0 to 2**63 - 1")
        self.directions, self.seed = directions, seed

    def cost(self, task: Learnable, batch: Batch) -> Cost:
        weights = sum(one.numel() for one in learnt(task).values())
        state = task.model.initial_state(batch.rows)
        size = sum(leaf.numel() for leaf in floating(state))
        return Cost(4 * (2 * weights + size), self.directions * 2 * batch.rows * weights)

    def start(self, task: Learnable, batch: Batch) -> Carry:
        return Carry(detach(task.model.initial_state(batch.rows)))

    def __call__(self, task: Learnable, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        pure, parameters = Pure(task), learnt(task)
        weights = {name: one.detach() for name, one in parameters.items()}
        draw = seeded(self.seed, batch.step)

        def loss(weights: dict[str, Tensor]) -> tuple[Tensor, State]:
            return pure.with_weights(weights, batch, carry.state, anew=True)

        for _ in range(self.directions):
            along = {name: torch.randn(one.shape, generator=draw).to(one) for name, one in weights.items()}
            with kernels.reference(), torch.no_grad():
                found: Any = jvp(loss, (weights,), (along,), has_aux=True)
                value, slope, after = found
            add_gradients(parameters, {name: one * (slope / self.directions) for name, one in along.items()})
        return value.detach(), Carry(detach(after))
