"""The readout in closed form: what a fixed recurrent network says is fitted by least squares."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor

from recurra.data.batch import Batch
from recurra.errors import RecurraError, UsageError
from recurra.learn.base import Carry, Learnable, Learner, restarted
from recurra.state import State, detach

RIDGES = (1e-8, 1e-6, 1e-4, 1e-2, 1.0)  # among which the validation data choose
SHARPNESS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
RAREST = 1e-4  # the frequency below which outputs are held to be no rarer
Link = Literal["identity", "softmax", "logistic"]


class Regression(NamedTuple):
    """A batch as a linear regression: what a readout sees of it, and what it is to say.

    features  `[n, features]`
    targets   `[n, outputs]`: numbers, or of scores zeros and ones
    weights   the parameters `[outputs, ...]` whose columns, side by side, are for the features
    bias      the parameter `[outputs]`
    link      what makes numbers of scores: identity, softmax or logistic
    state     after the batch
    """

    features: Tensor
    targets: Tensor
    weights: tuple[Tensor, ...]
    bias: Tensor
    link: Link = "identity"
    state: State = ()


class Sums(NamedTuple):
    """What least squares need to know of all pairs (x, y) so far, float64, and how many batches of the pass are still to come."""

    left: Tensor
    pairs: Tensor
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor


@final
class Ridge(Learner):
    """Least squares for the readout; the recurrent part and the embedding stay as they were drawn (Jaeger 2001, "The echo state
    approach"; Lukosevicius 2012, doi:10.1007/978-3-642-35289-8_36).

        W = Y X^T (X X^T + lambda I)^-1,   b = mean(y) - W mean(x)

    over all columns x, y of the first pass through the data, x and y taken from their means, so that the intercept is not
    shrunk. lambda is `ridge` times the mean of the diagonal of X X^T; `auto` is 1e-6 until the pass ends, then that of 1e-8,
    1e-6, 1e-4, 0.01 and 1 that does best on the validation data. Sums are kept in float64 and each batch is counted once; the
    readout is solved after every batch, and later passes change nothing: `--epochs 1` is all it needs.

    It is exact for squared errors, and least squares whatever the loss of the task says. Of scores the targets y are zeros and
    ones with frequencies p, so that W x + b estimates probabilities, and the scores are

        log p_k + s (W x + b - p)_k / sqrt(p_k)             softmax
        logit p_k + s (W x + b - p)_k / sqrt(p_k (1 - p_k))     logistic

    with the s of a short list that suits the last batch best. That is below what the cross-entropy could reach.
    """

    def __init__(self, *, ridge: float | Literal["auto"] = "auto") -> None:
        if ridge != "auto" and ridge <= 0:
            raise UsageError(f"learner.ridge was {ridge}, wanted a number above 0, or auto")
        self.ridge = ridge

    def supports(self, task: Learnable, batch: Batch) -> str | None:
        if not hasattr(task, "regression"):
            return "it fits a linear readout on features, and this task has none; take language, classify, regress or forecast"
        try:
            with torch.no_grad():
                cast(Any, task).regression(batch, task.model.initial_state(batch.rows))
        except UsageError as error:
            return str(error)
        return None

    def start(self, task: Learnable, batch: Batch) -> Carry:
        state = detach(task.model.initial_state(batch.rows))
        with torch.no_grad():
            one = cast(Any, task).regression(batch, state)
        zeros = lambda *shape: one.features.new_zeros(shape, dtype=torch.float64)  # noqa: E731
        features, outputs = one.features.shape[1], one.targets.shape[1]
        left = torch.tensor(cast(Any, task).steps_per_epoch(), device=one.features.device)
        sums = Sums(left, zeros(), zeros(features), zeros(outputs), zeros(features, features), zeros(features, outputs))
        return Carry(state, shared=sums)

    @torch.no_grad()
    def __call__(self, task: Learnable, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        task.model.eval()  # no noise in what is solved
        before, sums = restarted(task, batch, carry.state), carry.shared
        if int(sums.left) > 0:
            one = cast(Any, task).regression(batch, before)
            sums = _added(sums, one)
            self._solve(task, sums, one)
        loss, after = task.loss(batch, before)
        return loss, Carry(after, shared=sums)

    def _solve(self, task: Learnable, sums: Sums, one: Regression) -> None:
        if not sums.xx.isfinite().all():
            raise RecurraError(
                "a feature is not a finite number: the recurrent part diverges; take another cell, or a lower "
                "--set cell.radius of a reservoir"
            )
        if self.ridge != "auto" or int(sums.left) > 0:
            put(one, *solved(sums, 1e-6 if self.ridge == "auto" else self.ridge))
            return
        errors = {}
        for ridge in RIDGES:
            put(one, *solved(sums, ridge))
            errors[ridge] = cast(Any, task).validate().error
        put(one, *solved(sums, min(RIDGES, key=lambda ridge: errors[ridge])))


def _added(sums: Sums, one: Regression) -> Sums:
    x, y = one.features.double(), one.targets.double()
    pairs = sums.pairs + len(x)
    return Sums(sums.left - 1, pairs, sums.x + x.sum(0), sums.y + y.sum(0), sums.xx + x.T @ x, sums.xy + x.T @ y)


def solved(sums: Sums, ridge: float) -> tuple[Tensor, Tensor, Tensor]:
    """W `[outputs, features]`, mean(x) and mean(y) of the formula of `Ridge`, float64."""
    pairs = sums.pairs.clamp(min=1)
    xx = sums.xx - torch.outer(sums.x, sums.x) / pairs
    xy = sums.xy - torch.outer(sums.x, sums.y) / pairs
    least = 1e-12 * sums.xx.diagonal().mean()  # of features that never change rounding alone would be solved
    shrinking = torch.maximum(ridge * xx.diagonal().mean(), least)
    shrinking = torch.where(shrinking > 0, shrinking, 1.0)  # or all are nothing, and so are the weights
    weights = torch.linalg.solve(xx + shrinking * torch.eye(len(xx)).to(xx), xy).T
    return weights, sums.x / pairs, sums.y / pairs


def put(one: Regression, weights: Tensor, x: Tensor, y: Tensor) -> None:
    """Set the readout, in place, to what was solved."""
    base = y
    if one.link != "identity":
        base, weights = _as_scores(one, weights, x, y)
    sizes = [part.shape[1] for part in one.weights]
    for parameter, columns in zip(one.weights, weights.split(sizes, 1), strict=True):
        parameter.copy_(columns)
    one.bias.copy_(base - weights @ x)


def _as_scores(one: Regression, weights: Tensor, x: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Scores where `x` is as usual, and their weights, from those of least squares."""
    often = frequencies.clamp(RAREST, 1 - RAREST)
    softmax = one.link == "softmax"
    base = often.log() if softmax else often.logit()
    weights = weights / (often if softmax else often * (1 - often)).sqrt()[:, None]
    apart, targets = (one.features.double() - x) @ weights.T, one.targets.double()
    loss: Callable[..., Tensor] = F.cross_entropy if softmax else F.binary_cross_entropy_with_logits
    sharpest = min(SHARPNESS, key=lambda factor: float(loss(base + factor * apart, targets)))
    return base, weights * sharpest
