"""SnAp-1: real-time recurrent learning of what a weight does to its own unit."""

from typing import final

from torch import Tensor

from recurra.data.batch import Batch
from recurra.learn import local
from recurra.learn.base import MEMORY, Carry, Cost, Learnable, Learner


@final
class SnAp1(Learner):
    """The sparse n-step approximation of rtrl with n = 1 (Menick et al. 2021, arXiv:2006.07232).

    Of the influence M_t = A_t M_{t-1} + I_t only those entries are kept that a weight has at once, in its own step: those of the
    unit that it leads into. What it does to that unit by way of others is left out. (`local` has the equations.) With several
    layers each keeps to itself; what lies below the cells, such as an embedding, learns from the step at hand.

    Memory and time O(batch P F) a step for P weights and states of F fields, without regard to the length: two or three times a
    step of bptt. Biased: what goes through other units is missing. No variance.

    memory    GiB that the traces may take
    """

    def __init__(self, *, memory: float = MEMORY) -> None:
        self.memory = memory

    def supports(self, task: Learnable, batch: Batch) -> str | None:
        return local.refused(task, batch, self.memory)

    def cost(self, task: Learnable, batch: Batch) -> Cost:
        return local.cost(task, batch)

    def start(self, task: Learnable, batch: Batch) -> Carry:
        return local.start(task, batch)

    def __call__(self, task: Learnable, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        return local.learn(task, batch, carry, through_itself=True, feedback={})
