"""Real-time recurrent learning: the influence of every weight on the state goes forwards with the data."""

from typing import final

import torch
from torch import Tensor

from recurra.data.batch import Batch
from recurra.learn import local
from recurra.learn.base import (
    MEMORY,
    Carry,
    Cost,
    Learnable,
    Learner,
    add_gradients,
    learnt,
    over_budget,
    restarted,
    steps,
    why_not_stepwise,
)
from recurra.learn.influence import Rows, begun, gradients, recurrent
from recurra.state import choose, detach, flat, tmap


@final
class RTRL(Learner):
    """Real-time recurrent learning (Williams & Zipser 1989, doi:10.1162/neco.1989.1.2.270), exact for any cell.

    The influence M_t = dh_t/dtheta of the weights on the state is carried along, and no step is kept:

        M_t = A_t M_{t-1} + I_t,   A_t = dh_t/dh_{t-1},   I_t = d+h_t/dtheta,   M_0 = 0
        dL_t/dtheta = d+L_t/dtheta + (dL_t/dh_{t-1}) M_{t-1}

    which for the tanh network is p_ij^k(t+1) = f'(s_k(t)) [sum_l w_kl p_ij^l(t) + delta_ik z_j(t)] with p(0) = 0, where p_ij^k is
    the entry of M of state k and weight ij (and M_0 is the derivative of the start, where that is learnt). d+ holds the state
    before the step still. With weights that are held still the gradients of the steps add up to those of bptt over the whole
    sequence; where they change in between, M is a little out of date.

    Where no unit sees another it is done as `rtrl-diagonal` does it, which is as exact and costs less. Else, for states of S
    numbers and P weights that they hang on: memory O(batch S P) and time O(batch S^2 P) a step, both without regard to the length.
    No bias, no variance.

    memory    GiB that M and what it is made of may take
    """

    def __init__(self, *, memory: float = MEMORY) -> None:
        self.memory = memory

    def supports(self, task: Learnable, batch: Batch) -> str | None:
        instead = "take fewer units or rows, or --learner snap1, which holds only what a weight does to its own unit"
        return why_not_stepwise(task, batch) or over_budget(self.cost(task, batch), self.memory, instead)

    def cost(self, task: Learnable, batch: Batch) -> Cost:
        return local.cost(task, batch) if why_not_diagonal(task, batch) is None else whole_cost(task, batch)

    def start(self, task: Learnable, batch: Batch) -> Carry:
        if why_not_diagonal(task, batch) is None:
            return local.start(task, batch)
        state = detach(task.model.initial_state(batch.rows))
        size, kept = flat(state).shape[1], recurrent(task, batch).values()
        return Carry(state, tuple(one.new_zeros(batch.rows, size, one.numel()) for one in kept))

    def __call__(self, task: Learnable, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        state, influences = carry.state, carry.traces
        if any(isinstance(one, local.Traces) for one in influences):
            return local.learn(task, batch, carry, through_itself=True, feedback={})
        parameters, total, kept = learnt(task), torch.zeros(()), recurrent(task, batch)
        state = restarted(task, batch, state)
        influences = choose(
            batch.fresh, tmap(lambda one: one.expand(batch.rows, -1, -1), begun(task, kept)), influences
        )
        still = {name: one.detach() for name, one in kept.items()}
        for step in steps(batch):
            rows = Rows(task, step, state)
            loss, state, back, direct = gradients(task, step, state, parameters)
            for (name, one), influence in zip(kept.items(), influences, strict=True):
                direct[name] = direct[name] + torch.einsum("bs,bsp->p", back, influence).view(one.shape)
            add_gradients(parameters, direct)
            influences = carried_on(rows, still, influences)
            total = total + loss
        return total, Carry(state, influences)


def whole_cost(task: Learnable, batch: Batch) -> Cost:
    """What the whole of M takes."""
    size = flat(task.model.initial_state(batch.rows)).shape[1]
    numbers = batch.rows * size * sum(one.numel() for one in recurrent(task, batch).values())
    return Cost(3 * numbers * 4, numbers * size)


def carried_on(rows: Rows, weights: dict[str, Tensor], influences: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The influences `[batch, size, weights]` after a step: A M + I."""
    by_weights, by_state = rows.jacobians(weights)
    both = zip(by_weights.values(), influences, strict=True)
    return tuple(torch.baddbmm(now.flatten(2), by_state, influence) for now, influence in both)


@final
class RTRLDiagonal(Learner):
    """rtrl of elementwise recurrences, in which no unit sees another (IndRNN, minGRU, LRU): exact, with one number for each weight
    and field of the state.

        m_p(t) = J_j(t) m_p(t-1) + i_p(t),       dL_t/dw_p = d+L_t/dw_p + (dL_t/ds_j(t-1)) m_p(t-1)

    for the weight p of unit j, whose derivative by its own past is J_j (Mozer 1989, "A focused backpropagation algorithm for
    temporal pattern recognition"; Irie, Gopalakrishnan & Schmidhuber 2024, arXiv:2305.19044, section 3.1). Of one layer: two of
    them are no longer elementwise. Memory and time O(batch P F) a step for P weights and states of F fields, without regard to the
    length. No bias, no variance.

    memory    GiB that the traces may take
    """

    def __init__(self, *, memory: float = MEMORY) -> None:
        self.memory = memory

    def supports(self, task: Learnable, batch: Batch) -> str | None:
        instead = "take fewer units or rows, or bptt with learner.window"
        return why_not_diagonal(task, batch) or over_budget(self.cost(task, batch), self.memory, instead)

    def cost(self, task: Learnable, batch: Batch) -> Cost:
        return local.cost(task, batch)

    def start(self, task: Learnable, batch: Batch) -> Carry:
        return local.start(task, batch)

    def __call__(self, task: Learnable, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        return local.learn(task, batch, carry, through_itself=True, feedback={})


def why_not_diagonal(task: Learnable, batch: Batch) -> str | None:
    """Why one number for each weight and field would not be exact for a task, in words; None where it is."""
    words = why_not_stepwise(task, batch) or local.why_not(task, batch)
    if words:
        return words
    found = local.cores(task.model)
    if len(found) != 1:
        return (
            f"there are {len(found)} layers, and only one of them alone is elementwise; take --layers 1, rtrl or snap1"
        )
    name, cell = next(iter(found.items()))
    if local.mixes(task, batch):
        return f"the units of {type(cell).__name__} see each other; take rtrl, or snap1, which leaves that out"
    below = [one for one in recurrent(task, batch) if not one.startswith(f"{name}.")]
    if below:
        return f"{', '.join(below)} lies below the cell and leads into all units; take --set embed.kind=onehot, or rtrl"
    return None
