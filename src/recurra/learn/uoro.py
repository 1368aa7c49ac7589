"""Unbiased online recurrent optimisation: the influence of the weights as one random product of two vectors."""

from typing import final

import torch
from torch import Tensor

from recurra.data.batch import Batch
from recurra.errors import UsageError
from recurra.learn.base import (
    Carry,
    Cost,
    Learnable,
    Learner,
    add_gradients,
    learnt,
    restarted,
    steps,
    why_not_stepwise,
)
from recurra.learn.influence import Rows, begun, gradients, recurrent
from recurra.regularize import seeded
from recurra.state import State, choose, detach, flat

TINY = 1e-30  # keeps the scales finite where a vector is zero


@final
class UORO(Learner):
    """Unbiased online recurrent optimisation (Tallec & Ollivier 2017, arXiv:1702.05043).

    In place of the influence M_t of rtrl each row keeps two vectors whose product is M_t in the mean over random signs v_t:

        s_t = rho_0 A_t s_{t-1} + rho_1 v_t,     theta_t = theta_{t-1} / rho_0 + (v_t I_t) / rho_1,     E[s_t theta_t] = M_t
        rho_0 = sqrt(|theta_{t-1}| / |A_t s_{t-1}|),     rho_1 = sqrt(|v_t I_t| / |v_t|)
        dL_t/dtheta = d+L_t/dtheta + (dL_t/dh_{t-1} s_{t-1}) theta_{t-1}

    The scales rho keep the variance least. Memory O(batch (S + P)), time that of two backward passes of a step, without regard to
    the length. No bias; the variance is great and grows with S, so that small rates are needed.

    seed    of the signs; the same seed and step draw the same
    """

    def __init__(self, *, seed: int = 0) -> None:
        if not 0 <= seed < 2**63:
            raise UsageError(f"learner.seed was {seed}, wanted a number from 0 to 2**63 - 1")
        self.seed = seed

    def supports(self, task: Learnable, batch: Batch) -> str | None:
        words = why_not_stepwise(task, batch)
        if words is None and not recurrent(task, batch):
            words = "no weight has a part in its state, so that there is nothing to carry on; take snap1 or bptt"
        return words

    def cost(self, task: Learnable, batch: Batch) -> Cost:
        state = task.model.initial_state(batch.rows)
        weights = sum(one.numel() for one in recurrent(task, batch).values())
        return Cost(3 * batch.rows * (flat(state).shape[1] + weights) * 4, 3 * batch.rows * weights)

    def start(self, task: Learnable, batch: Batch) -> Carry:
        state = detach(task.model.initial_state(batch.rows))
        thetas = tuple(one.new_zeros(batch.rows, *one.shape) for one in recurrent(task, batch).values())
        return Carry(state, (torch.zeros_like(flat(state)), thetas))

    def __call__(self, task: Learnable, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        state = restarted(task, batch, carry.state)
        parameters, total = learnt(task), torch.zeros(())
        kept = {name: one.detach() for name, one in recurrent(task, batch).items()}
        draw = seeded(self.seed, batch.step)
        states, thetas = choose(batch.fresh, _begun(task, batch, carry.traces[0], draw), carry.traces)
        for step in steps(batch):
            rows = Rows(task, step, state)
            loss, state, back, direct = gradients(task, step, state, parameters)
            share = (back * states).sum(1)
            for name, theta in zip(kept, thetas, strict=True):
                direct[name] = direct[name] + torch.einsum("b,b...->...", share, theta)
            add_gradients(parameters, direct)
            signs = (torch.randint(0, 2, states.shape, generator=draw) * 2 - 1).to(states)
            by_weights, _ = rows.products(kept, signs)
            states, thetas = _rolled(rows.pushed(kept, states), thetas, signs, tuple(by_weights.values()))
            total = total + loss
        return total, Carry(state, (states, thetas))


def _begun(task: Learnable, batch: Batch, like: Tensor, draw: torch.Generator) -> tuple[Tensor, State]:
    """The two vectors where rows begin: nothing; or, where the start is learnt, random signs v and v dh_0/dtheta."""
    weights = recurrent(task, batch)
    starts, signs = begun(task, weights), torch.zeros_like(like)
    if any(bool(one.any()) for one in starts):
        signs = (torch.randint(0, 2, like.shape, generator=draw) * 2 - 1).to(like)
    thetas = ((signs @ one).view(-1, *weight.shape) for one, weight in zip(starts, weights.values(), strict=True))
    return signs, tuple(thetas)


def _rolled(
    pushed: Tensor, thetas: tuple[Tensor, ...], signs: Tensor, immediate: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The two vectors after a step; what is zero stays so, whatever its scale."""
    rho_0 = (_norms(*thetas) / _norms(pushed).clamp(min=TINY)).sqrt()
    rho_0 = torch.where(rho_0 > 0, rho_0, 1.0)
    rho_1 = (_norms(*immediate) / _norms(signs)).sqrt()
    rho_1 = torch.where(rho_1 > 0, rho_1, 1.0)
    both = zip(thetas, immediate, strict=True)
    return (
        rho_0[:, None] * pushed + rho_1[:, None] * signs,
        tuple(_scaled(theta, 1 / rho_0) + _scaled(now, 1 / rho_1) for theta, now in both),
    )


def _norms(*parts: Tensor) -> Tensor:
    """Of each row, over all parts."""
    return torch.stack([part.flatten(1).square().sum(1) for part in parts]).sum(0).sqrt()


def _scaled(part: Tensor, scale: Tensor) -> Tensor:
    return part * scale.view(-1, *[1] * (part.dim() - 1))
