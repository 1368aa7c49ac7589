"""RFLO: random feedback and a trace that leaks."""

from typing import final

from torch import Tensor

from recurra.data.batch import Batch
from recurra.errors import UsageError
from recurra.learn import local
from recurra.learn.base import MEMORY, Carry, Cost, Learnable, Learner
from recurra.learn.feedback import feedback_of, random_feedback


@final
class RFLO(Learner):
    """Random feedback local online learning (Murray 2019, doi:10.7554/eLife.43299), for units with one field of state:

        h_t = (1 - 1/tau) h_{t-1} + (1/tau) f(a_t),       p_rk(t) = (1 - 1/tau) p_rk(t-1) + (1/tau) f'(a_r(t)) x_k(t)
        dL_t/dw_rk ~ [B (error of the readout)]_j p_rk(t)

    The trace leaks as the unit does, and the error comes back through a random matrix B, not through the readout's weights. Of a
    unit that does not leak (an elman cell) the trace holds nothing but the step at hand: take a leaky cell.

    Memory and time O(batch P) a step, without regard to the length. Biased: recurrent weights have no part in what is learnt. No
    variance.

    seed      of B
    memory    GiB that the traces may take
    """

    def __init__(self, *, seed: int = 0, memory: float = MEMORY) -> None:
        if not 0 <= seed < 2**63:
            raise UsageError(f"learner.seed was {seed}, wanted a number from 0 to 2**63 - 1")
        self.seed, self.memory = seed, memory

    def supports(self, task: Learnable, batch: Batch) -> str | None:
        return local.refused(task, batch, self.memory) or self._why_not_plain(task)

    def _why_not_plain(self, task: Learnable) -> str | None:
        for cell in local.cores(task.model).values():
            if len(cell.blocks) != 1:
                return f"{type(cell).__name__} has gates; it is for leaky units without: take --cell leaky, or eprop"
        return None

    def cost(self, task: Learnable, batch: Batch) -> Cost:
        return local.cost(task, batch)

    def start(self, task: Learnable, batch: Batch) -> Carry:
        return local.start(task, batch)._replace(shared=random_feedback(task, self.seed))

    def __call__(self, task: Learnable, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        return local.learn(task, batch, carry, through_itself=False, feedback=feedback_of(task, carry.shared))
