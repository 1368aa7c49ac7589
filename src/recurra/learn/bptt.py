"""Backpropagation through time."""

from typing import final

from torch import Tensor

from recurra.data.batch import Batch
from recurra.errors import UsageError
from recurra.learn.base import Carry, Learnable, Learner, restarted
from recurra.state import detach, leaves


@final
class BPTT(Learner):
    """Backpropagation through time (Werbos 1990, doi:10.1109/5.58337), whole or truncated.

        dE/dtheta = sum_t sum_{k<=t} dE_t/dh_t (prod_{j=k+1..t} dh_j/dh_{j-1}) d+h_k/dtheta

    `window` None differentiates through every step of a batch; a number cuts the batch into windows of that many steps
    and drops the products that reach over a cut (Williams & Peng 1990), while the state itself is carried on.
    Memory O(window), time O(1) a step; no variance; biased where the window is shorter than the dependence.
    """

    def __init__(self, *, window: int | None = None) -> None:
        if window is not None and window < 1:
            raise UsageError(f"learner.window was {window}, wanted at least 1, or none for the whole batch")
        self.window = window

    def supports(self, task: Learnable, batch: Batch) -> str | None:
        if self.window is not None and not any(True for _ in leaves(task.model.initial_state(1))):
            return "it reads whole sequences, and learner.window would cut them; leave learner.window out"
        return None

    def start(self, task: Learnable, batch: Batch) -> Carry:
        return Carry(detach(task.model.initial_state(batch.rows)))

    def __call__(self, task: Learnable, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        state, total = carry.rows, None
        for part in batch.windows(self.window):
            loss, state = task.loss(part, restarted(task, part, state))
            share = loss * (part.weight / batch.weight) if batch.weight else loss * 0
            share.backward()
            total = share.detach() if total is None else total + share.detach()
        assert total is not None
        return total, Carry(detach(state))
