"""Backpropagation through time."""

from collections import deque
from math import gcd
from typing import final

import torch
from torch import Tensor

from recurra.data.batch import Batch
from recurra.errors import UsageError
from recurra.learn.base import Carry, Learnable, Learner, carries_a_state, restarted
from recurra.state import State, detach


@final
class BPTT(Learner):
    """Backpropagation through time (Werbos 1990, doi:10.1109/5.58337), whole or truncated.

        dE/dtheta = sum_t sum_{k<=t} dE_t/dh_t (prod_{j=k+1..t} dh_j/dh_{j-1}) d+h_k/dtheta

    `window` None differentiates through every step of a batch; a number cuts the batch into windows of that many steps
    and drops the products that reach over a cut (Williams & Peng 1990, doi:10.1162/neco.1990.2.4.490), while the state itself is
    carried on. With `every` k_1 < `window` k_2 the errors of each k_1 steps flow back through the last k_2 of them (their
    BPTT(h; h')): every error has at least k_2 - k_1 + 1 steps before it, so that none falls on the near
    side of a cut; the k_2 - k_1 steps are run twice. The beginning of a batch is a cut for both.

    Memory O(window), time O(1) a step, O(window / every) with `every`; no variance; biased where the window is shorter than the
    dependence.
    """

    def __init__(self, *, window: int | None = None, every: int | None = None) -> None:
        if window is not None and window < 1:
            raise UsageError(f"learner.window was {window}, wanted at least 1, or none for the whole batch")
        if every is not None and (window is None or not 1 <= every <= window):
            raise UsageError(f"learner.every was {every}, wanted from 1 to learner.window, which was {window}")
        self.window, self.every = window, every

    def supports(self, task: Learnable, batch: Batch) -> str | None:
        if self.window is not None and not carries_a_state(task):
            return "it reads whole sequences, and learner.window would cut them; leave learner.window out"
        return None

    def start(self, task: Learnable, batch: Batch) -> Carry:
        return Carry(detach(task.model.initial_state(batch.rows)))

    def __call__(self, task: Learnable, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        state, total, past = restarted(task, batch, carry.state), torch.zeros(()), deque[tuple[Batch, State]]()
        again = 0 if self.every is None or self.window is None else self.window - self.every
        for part in batch.windows(self.window if self.every is None else self.every):
            now = past[0][1] if past else state
            for before, _ in past:
                now = task.loss(before, now)[1]  # once more, this time with a graph
            share = torch.zeros(())
            for piece in part.windows(gcd(self.every or 0, again) or None):
                past.append((piece, detach(now)))
                loss, now = task.loss(piece, now)
                share = share + (loss * (piece.weight / batch.weight) if batch.weight else loss * 0)
            share.backward()
            total = total + share.detach()
            state = detach(now)
            while sum(piece.time for piece, _ in past) > again:
                past.popleft()
        return total, Carry(state)
