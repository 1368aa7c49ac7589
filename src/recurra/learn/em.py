"""Expectation maximisation."""

from typing import Any, NamedTuple, cast, final

import torch
from torch import Tensor

from recurra.cells.latent import Latent
from recurra.data.batch import Batch
from recurra.errors import UsageError
from recurra.learn.base import Carry, Learnable, Learner, restarted
from recurra.state import State, detach, leaves, tmap


class Observed(NamedTuple):
    """A batch as a model with a hidden state reads it: the model, its inputs `[batch, time, ...]` and a target for each."""

    cell: Latent
    inputs: Tensor
    targets: Tensor


class Expected(NamedTuple):
    """What the M-step needs: how many batches of the pass are still to come, and the sums so far."""

    left: Tensor
    sums: State


@final
class EM(Learner):
    """Expectation maximisation (Dempster, Laird & Rubin 1977, JRSS B 39) of the cells `hmm` (Baum-Welch) and `kalman`
    (Shumway & Stoffer 1982).

        E   Q(theta) = sum over rows E[log p(y, z | theta) | y, theta_old]      summed up batch by batch, in float64
        M   theta = argmax Q                                                     in closed form, after each pass

    so a pass is one step of EM: `--epochs 30` are 30. Where rows are whole sequences the likelihood of the training data never
    falls. Where a stream cuts them, the past of a window is known exactly, by the state that is carried on, and its future up to
    the window's end: longer windows (`train.chunk`) are closer. Memory O(window).

    `smoothing` is added to expected counts and squares, so that nothing becomes impossible or certain: it is a prior (Dirichlet,
    inverse gamma or Wishart), and what never falls is the likelihood times it.
    """

    def __init__(self, *, smoothing: float = 1e-3) -> None:
        if smoothing < 0:
            raise UsageError(f"learner.smoothing was {smoothing}, wanted at least 0")
        self.smoothing = smoothing

    def supports(self, task: Learnable, batch: Batch) -> str | None:
        if not hasattr(task, "observed"):
            return "it trains models with a hidden state; take language with --cell hmm, or forecast with --cell kalman"
        try:
            cast(Any, task).observed(batch)
        except UsageError as error:
            return str(error)
        return None

    def start(self, task: Learnable, batch: Batch) -> Carry:
        state = detach(task.model.initial_state(batch.rows))
        return Carry(state, shared=self._anew(task, self._expected(cast(Any, task).observed(batch), batch, state)))

    @torch.no_grad()
    def __call__(self, task: Learnable, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        task.model.eval()
        before, so_far = restarted(task, batch, carry.state), carry.shared
        loss, after = task.loss(batch, before)
        one = cast(Any, task).observed(batch)
        sums = tmap(torch.add, so_far.sums, self._expected(one, batch, before))
        so_far = Expected(so_far.left - 1, sums)
        if int(so_far.left) == 0:
            one.cell.maximise(sums, self.smoothing)
            so_far = self._anew(task, sums)
        return loss, Carry(after, shared=so_far)

    @staticmethod
    def _expected(one: Observed, batch: Batch, state: State) -> State:
        """The sums of a batch; where no state is carried between batches, rows begin where the cell does."""
        rows, steps = one.inputs.shape[:2]
        lengths = torch.full((rows,), steps).to(batch.fresh.device) if batch.lengths is None else batch.lengths
        ys = torch.cat([one.inputs[:, :1], one.targets], 1)
        return one.cell.expected(ys, state if state != () else one.cell.initial_state(rows), lengths, batch.fresh)

    @staticmethod
    def _anew(task: Learnable, sums: State) -> Expected:
        zeros = tmap(torch.zeros_like, sums)
        return Expected(torch.tensor(cast(Any, task).steps_per_epoch(), device=next(leaves(zeros)).device), zeros)
