"""Evolution strategy: the gradient of a smoothed loss, from losses alone."""

from typing import final

import torch
from torch import Tensor

from recurra.data.batch import Batch
from recurra.learn.base import Carry, Learnable, Learner, add_gradients, learnt
from recurra.learn.population import (
    Draws,
    above_zero,
    after,
    at_least,
    losses,
    parts,
    side_by_side,
    vector,
    why_not_together,
)
from recurra.state import State, detach


@final
class ES(Learner):
    """Evolution strategy (Salimans et al. 2017, arXiv:1703.03864): an estimate of the gradient of the smoothed loss.

        L_sigma(theta) = E L(theta + sigma eps),  eps ~ N(0, I)
        grad L_sigma ~ 1 / (2 n sigma) sum_i (u_i+ - u_i-) eps_i,  u_i+- = the rank of L(theta +- sigma eps_i)

    `pairs` n are mirrored (antithetic), so that of a linear loss only the directions drawn matter and constants cancel.
    `ranks` puts ranks among the 2 n losses, from -1/2 to 1/2, in the place of the losses: the scale of the loss and its
    outliers do not matter, and a member whose loss is no number is the worst. Without it the estimate is unbiased for
    grad L_sigma, with a variance of about P / n times its square. The estimate goes to `.grad`, so optimizer, rate, schedule,
    clipping, penalties and weight decay are those of any other learner.

    Noise is drawn again from its seed when it is needed a second time, not kept: memory O(together * P). Time 2 n + 1 losses
    a step and no backward pass, so a loss need not have a gradient. `together` members are computed at once (none: 32 below
    30,000 parameters, else 1, through the kernels). Dropout is the same for all members of a step.
    """

    def __init__(self, *, pairs: int = 32, sigma: float = 0.1, ranks: bool = True, together: int | None = None) -> None:
        at_least(1, pairs=pairs, together=together)
        above_zero(sigma=sigma)
        self.pairs, self.sigma, self.ranks, self.together = pairs, sigma, ranks, together

    def supports(self, task: Learnable, batch: Batch) -> str | None:
        return why_not_together(task, batch, self.together)

    def start(self, task: Learnable, batch: Batch) -> Carry:
        return Carry(detach(task.model.initial_state(batch.rows)), shared=Draws.begin(batch))

    def __call__(self, task: Learnable, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        draws = carry.shared
        slope = self._slope(task, batch, carry.state, draws)
        add_gradients(learnt(task), parts(task, slope))
        loss, state = after(task, batch, carry.state, draws)
        return loss, Carry(state, shared=draws.next())

    def _slope(self, task: Learnable, batch: Batch, state: State, draws: Draws) -> Tensor:
        """The estimate [P]."""
        here, width = vector(task), side_by_side(task, self.together)
        seeds, some = draws.numbers(1, self.pairs), max(1, width // 2)
        groups = [seeds[first : first + some] for first in range(0, self.pairs, some)]
        found = []
        for group in groups:
            steps = self.sigma * _noise(group, here)
            found.append(losses(task, batch, state, torch.cat([here + steps, here - steps]), draws, width).view(2, -1))
        values = torch.cat(found, dim=1)
        values = centred_ranks(values.flatten()).view(2, -1) if self.ranks else values
        shares = ((values[0] - values[1]) / (2 * self.pairs * self.sigma)).to(here.dtype)
        slope = torch.zeros_like(here)
        for group, share in zip(groups, shares.split(some), strict=True):
            slope += share @ _noise(group, here)
        return slope


def centred_ranks(values: Tensor) -> Tensor:
    """The rank of each of `values` [n], from -1/2 for the smallest to 1/2; equal ones share the mean of their ranks."""
    smaller = (values[:, None] > values).sum(1) + ((values[:, None] == values).sum(1) - 1) / 2
    return smaller / max(1, len(values) - 1) - 0.5


def _noise(seeds: list[int], like: Tensor) -> Tensor:
    """The directions eps of the pairs with these seeds, [pairs, P]: the same ones in whatever groups they are asked for."""
    generator = torch.Generator()
    rows = [torch.randn(len(like), generator=generator.manual_seed(seed), dtype=like.dtype) for seed in seeds]
    return torch.stack(rows).to(like.device)
