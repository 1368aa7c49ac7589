"""SnAp-n: real-time recurrent learning of what a weight does within n steps."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from recurra.cells import Cell
from recurra.data.batch import Batch
from recurra.errors import UsageError
from recurra.learn.base import (
    MEMORY,
    Carry,
    Cost,
    Learnable,
    Learner,
    add_gradients,
    forgotten,
    learnt,
    over_budget,
    restarted,
    steps,
    why_no_start,
    why_not_stepwise,
)
from recurra.learn.influence import Rows, recurrent
from recurra.learn.local import cores
from recurra.learn.rtrl import whole_cost
from recurra.stability import in_place
from recurra.state import State, detach, flat, leaves, refill, tmap


@final
class SnApN(Learner):
    """The sparse n-step approximation of rtrl (Menick et al. 2021, arXiv:2006.07232): of the influence M_t = A_t M_{t-1} + I_t only
    those entries are kept that a weight reaches within n steps, wherever they are:

        M_t = P_n * (A_t M_{t-1} + I_t),     P_1 = (I != 0),     P_{n+1} = P_n or ((A != 0) P_n != 0)
        dL_t/dtheta = d+L_t/dtheta + (dL_t/dh_t) (P_n * (A_t M_{t-1}))

    n = 1 is snap1, and from some n on (2, where every unit sees every other) rtrl. It is written for the eye: it makes the whole M
    and throws away what it does not keep, at the price of rtrl. Biased by what is thrown away; no variance.

    n         steps
    memory    GiB that M and what it is made of may take
    """

    def __init__(self, *, n: int = 1, memory: float = MEMORY) -> None:
        if n < 1:
            raise UsageError(f"learner.n was {n}, wanted at least 1")
        self.n, self.memory = n, memory

    def supports(self, task: Learnable, batch: Batch) -> str | None:
        words = why_not_stepwise(task, batch) or why_no_start(task)
        if words is None and not _is_seen(task, batch):
            words = "some cell puts out something else than a field of its state; take rtrl"
        return words or over_budget(self.cost(task, batch), self.memory, "take fewer units or rows, or snap1")

    def cost(self, task: Learnable, batch: Batch) -> Cost:
        return whole_cost(task, batch)

    def start(self, task: Learnable, batch: Batch) -> Carry:
        """The influences, and what was seen so far to reach what: which states come from which, and from which weights."""
        state = restarted(task, batch, task.model.initial_state(batch.rows))
        kept, size = recurrent(task, batch).values(), flat(state).shape[1]
        nothing = tuple(one.new_zeros(batch.rows, size, one.numel()) for one in kept)
        edges = flat(state).new_zeros(size, size, dtype=torch.bool)
        return Carry(state, nothing, (edges, tuple(one[0].bool() for one in nothing)))

    def __call__(self, task: Learnable, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        state, influences, (edges, at_once) = carry
        state, influences = restarted(task, batch, state), forgotten(batch, influences)
        parameters, total = learnt(task), torch.zeros(())
        still = {name: one.detach() for name, one in recurrent(task, batch).items()}
        for step in steps(batch):
            rows = Rows(task, step, state)
            loss, state, ahead, direct = _gradients(task, step, state, parameters)
            by_weights, by_state = rows.jacobians(still)
            now = [one.flatten(2) for one in by_weights.values()]
            edges = edges | (by_state != 0).any(0)
            at_once = tuple(one | (own != 0).any(0) for one, own in zip(at_once, now, strict=True))
            before = [by_state @ one * self._reach(edges, own) for one, own in zip(influences, at_once, strict=True)]
            for name, influence in zip(still, before, strict=True):
                direct[name] = direct[name] + torch.einsum("bs,bsp->p", ahead, influence).view(direct[name].shape)
            add_gradients(parameters, direct)
            influences = tuple(one + own for one, own in zip(before, now, strict=True))
            total = total + loss
        return total, Carry(state, influences, (edges, at_once))

    def _reach(self, edges: Tensor, at_once: Tensor) -> Tensor:
        """What weights reach within n steps, boolean `[size, weights]`."""
        reach = at_once
        for _ in range(self.n - 1):
            reach = reach | (edges.float() @ reach.float() > 0)
        return reach


def _gradients(
    task: Learnable, step: Batch, state: State, parameters: dict[str, Tensor]
) -> tuple[Tensor, State, Tensor, dict[str, Tensor]]:
    """The loss of one step, the state after it, and the gradients by this state `[batch, size]` and, in this step, by the
    parameters."""
    nudges: list[Tensor] = []
    nudged = [(cell, "step", _nudged(cell, nudges)) for cell in cores(task.model).values()]
    with in_place(nudged), torch.enable_grad():
        loss, after = task.loss(step, detach(state))
    wanted = [*nudges, *parameters.values()]
    if not loss.requires_grad:
        found = [torch.zeros_like(one) for one in wanted]
    else:
        found = list(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True))
    ahead = torch.cat([one.flatten(1) for one in found[: len(nudges)]], 1)
    return loss.detach(), detach(after), ahead, dict(zip(parameters, found[len(nudges) :], strict=True))


def _nudged(cell: Cell, nudges: list[Tensor]) -> Callable[..., Any]:
    """The cell's step with zeros, left in `nudges`, added to the state that it comes to, so that gradients by this state can be
    asked for."""
    step = cell.step

    def nudged(u: State, state: State) -> tuple[Tensor, State]:
        y, after = step(u, state)
        fields = list(leaves(after))
        zeros = [torch.zeros_like(one).requires_grad_() for one in fields]
        moved = [one + zero for one, zero in zip(fields, zeros, strict=True)]
        nudges.extend(zeros)
        said = next((new for new, old in zip(moved, fields, strict=True) if old is y), y)
        return said, refill(after, moved)

    return nudged


def _is_seen(task: Learnable, batch: Batch) -> bool:
    """Whether every cell puts out a field of its state."""
    found = []
    for cell in cores(task.model).values():
        state = cell.initial_state(1)
        xs = torch.zeros(1, 1, cell.input_size).to(next(cell.parameters()))
        y, after = cell.step(tmap(lambda u: u[:, 0], cell.project(xs)), state)
        found.append(any(one is y for one in leaves(after)))
    return all(found)
