"""Synthetic gradients: what is still to come is guessed from the state."""

from typing import final

import torch
from torch import Tensor

from recurra.data.batch import Batch
from recurra.errors import UsageError
from recurra.learn.base import Carry, Cost, Learnable, Learner, add_gradients, learnt, restarted, why_not_stepwise
from recurra.state import detach, flat, unflat


@final
class DNI(Learner):
    """Decoupled neural interfaces over time (Jaderberg et al. 2017, arXiv:1608.05343): bptt in windows, and at the end of each a
    guess of the gradient that all that is still to come would send back, linear in the state:

        g(h) = V h + b,       dE/dtheta ~ sum over windows of d(L_window + g(h_end) . h_end)/dtheta

    where g(h_end) counts as given. g learns from the windows themselves: at the start of each, what it said of that state is drawn
    towards what came, dL_window/dh_start + g(h_end) dh_end/dh_start, by normalised least mean squares (Widrow & Hoff 1960) over
    the rows, rate / (1 + mean |h|^2).

    Memory O(window), as bptt's, and S^2 for g. Biased while g is wrong; credit reaches as far back as g has learnt to see.

    window    steps of a window; none for the whole batch
    rate      of g's learning, from 0 (truncated bptt) to 1
    """

    def __init__(self, *, window: int | None = None, rate: float = 0.1) -> None:
        if window is not None and window < 1:
            raise UsageError(f"learner.window was {window}, wanted at least 1, or none for the whole batch")
        if not 0 <= rate <= 1:
            raise UsageError(f"learner.rate was {rate}, wanted a number from 0 to 1")
        self.window, self.rate = window, rate

    def supports(self, task: Learnable, batch: Batch) -> str | None:
        return why_not_stepwise(task, batch)

    def cost(self, task: Learnable, batch: Batch) -> Cost:
        rows, size = flat(task.model.initial_state(batch.rows)).shape
        return Cost(4 * (size * (size + 1) + 3 * rows * size), 3 * rows * size**2)

    def start(self, task: Learnable, batch: Batch) -> Carry:
        state = restarted(task, batch, task.model.initial_state(batch.rows))
        size = flat(state).shape[1]
        return Carry(state, shared=flat(state).new_zeros(size, size + 1))

    def __call__(self, task: Learnable, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        state, guess, total = carry.state, carry.shared, torch.zeros(())
        parameters = learnt(task)
        for part in batch.windows(self.window):
            begun = flat(restarted(task, part, state))
            before = begun.detach().requires_grad_()
            loss, after = task.loss(part, unflat(state, before))
            share = loss * (part.weight / batch.weight) if batch.weight else loss * 0
            ended = flat(after)
            whole = share + (_guessed(guess, ended.detach()) * ended).sum()
            found = torch.autograd.grad(
                whole, [before, *parameters.values()], allow_unused=True, materialize_grads=True
            )
            add_gradients(parameters, dict(zip(parameters, found[1:], strict=True)))
            if begun.requires_grad:  # the start is learnt
                begun.backward(found[0])
            guess = self._corrected(guess, before.detach(), found[0])
            state, total = detach(after), total + share.detach()
        return total, Carry(detach(state), shared=guess)

    def _corrected(self, guess: Tensor, states: Tensor, came: Tensor) -> Tensor:
        seen = torch.cat([states, states.new_ones(len(states), 1)], 1)
        wrong = came - _guessed(guess, states)
        return guess + self.rate * (wrong.T @ seen) / seen.square().sum().clamp(min=1e-12)


def _guessed(guess: Tensor, states: Tensor) -> Tensor:
    return states @ guess[:, :-1].T + guess[:, -1]
