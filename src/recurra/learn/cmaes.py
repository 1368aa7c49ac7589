"""CMA-ES: a normal distribution of parameter vectors that learns its own mean, scale and covariance."""

import math
from typing import NamedTuple, final

import torch
from torch import Tensor

from recurra.data.batch import Batch
from recurra.learn.base import Carry, Learnable, Learner
from recurra.learn.population import (
    Draws,
    above_zero,
    after,
    at_least,
    losses,
    put,
    side_by_side,
    vector,
    why_not_together,
)
from recurra.state import detach

MOST = 3_000  # parameters: two matrices of their square are 144 MB, and an eigendecomposition takes some seconds


class Search(NamedTuple):
    """What is known beside the mean, which is in the model. float64; C = axes diag(scales^2) axes^T as it was last decomposed.

    sigma [], path_sigma [P], path_c [P], covariance [P, P], axes [P, P], scales [P]
    """

    draws: Draws
    sigma: Tensor
    path_sigma: Tensor
    path_c: Tensor
    covariance: Tensor
    axes: Tensor
    scales: Tensor


class Constants(NamedTuple):
    """Weights of recombination [members], their effective number, and the rates of learning (Hansen 2016, table 1)."""

    weights: Tensor
    effective: float
    c_sigma: float
    d_sigma: float
    c_c: float
    c_1: float
    c_mu: float


@final
class CMA(Learner):
    """Covariance matrix adaptation evolution strategy (Hansen 2016, "The CMA evolution strategy: a tutorial", arXiv:1604.00772).

        x_k = m + sigma y_k,  y_k ~ N(0, C);  y_w = sum of w_i y_i over the better half, the best first
        m' = m + sigma y_w
        p_sigma' = (1 - c_sigma) p_sigma + sqrt(c_sigma (2 - c_sigma) mu_eff) C^(-1/2) y_w
        sigma' = sigma exp(c_sigma / d_sigma (|p_sigma'| / E|N(0, I)| - 1))
        p_c' = (1 - c_c) p_c + h_sigma sqrt(c_c (2 - c_c) mu_eff) y_w
        C' = (1 + c_1 (1 - h_sigma) c_c (2 - c_c) - c_1 - c_mu sum w) C + c_1 p_c' p_c'^T + c_mu sum w_i y_i y_i^T

    with negative weights for the worse half (active). The mean is what is in the model, and what stays there; the optimizer and
    its options, penalties on weights among them, have no part in it. Only the order of the losses within a batch counts.

    `members` of a population, none: 4 + 3 ln P; more of them help where batches are small and noisy. `sigma` is the scale that
    it starts from, in the unit of the weights. Memory 16 P^2 bytes, so P is at most 3,000. Time: one loss a member and one for
    the mean, and an eigendecomposition, P^3, every so many steps. `together` members are computed at once (none: 32).
    Dropout is the same for all members of a step.
    """

    def __init__(self, *, members: int | None = None, sigma: float = 0.1, together: int | None = None) -> None:
        at_least(4, members=members)
        at_least(1, together=together)
        above_zero(sigma=sigma)
        self.members, self.sigma, self.together = members, sigma, together

    def supports(self, task: Learnable, batch: Batch) -> str | None:
        size = len(vector(task))
        if size > MOST:
            return (
                f"it keeps two matrices of {size:,} x {size:,} numbers for {size:,} parameters, {16 * size**2:,} bytes, and "
                f"takes at most {MOST:,} parameters; take fewer units with --hidden or a smaller embed.size, or --learner es"
            )
        return why_not_together(task, batch, self.together)

    def start(self, task: Learnable, batch: Batch) -> Carry:
        return Carry(
            detach(task.model.initial_state(batch.rows)), shared=begin(vector(task), self.sigma, Draws.begin(batch))
        )

    def __call__(self, task: Learnable, batch: Batch, carry: Carry) -> tuple[Tensor, Carry]:
        search, before = carry.shared, vector(task)
        mean = before.double()
        steps = sample(search, self.members or usual_members(len(mean)))
        found = losses(
            task, batch, carry.state, mean + search.sigma * steps, search.draws, side_by_side(task, self.together)
        )
        move, search = update(constants(len(mean), len(steps)), search, steps, found)
        put(task, mean + move)
        loss, state = after(task, batch, carry.state, search.draws)
        if not math.isfinite(float(loss)):  # the loop leaves out this update, and the model has to be as it was
            put(task, before)
        return loss, Carry(state, shared=search._replace(draws=search.draws.next()))


def usual_members(size: int) -> int:
    """4 + floor(3 ln P)."""
    return 4 + int(3 * math.log(size))


def constants(size: int, members: int) -> Constants:
    """Table 1 of Hansen 2016, for P = `size`."""
    raw = torch.tensor([math.log((members + 1) / 2) - math.log(i) for i in range(1, members + 1)], dtype=torch.float64)
    up, down = raw.clamp(min=0), -raw.clamp(max=0)
    effective, effective_down = (float(side.sum() ** 2 / side.square().sum()) for side in (up, down))
    c_sigma = (effective + 2) / (size + effective + 5)
    d_sigma = 1 + 2 * max(0.0, math.sqrt((effective - 1) / (size + 1)) - 1) + c_sigma
    c_c = (4 + effective / size) / (size + 4 + 2 * effective / size)
    c_1 = 2 / ((size + 1.3) ** 2 + effective)
    c_mu = min(1 - c_1, 2 * (0.25 + effective + 1 / effective - 2) / ((size + 2) ** 2 + effective))
    # No more than: what keeps the trace of C, what the number of the worse ones bears, what keeps C positive definite.
    most = min(1 + c_1 / c_mu, 1 + 2 * effective_down / (effective + 2), (1 - c_1 - c_mu) / (size * c_mu))
    return Constants(up / up.sum() - most * down / down.sum(), effective, c_sigma, d_sigma, c_c, c_1, c_mu)


def begin(mean: Tensor, sigma: float, draws: Draws) -> Search:
    """The round distribution N(mean, sigma^2 I)."""
    zero = torch.zeros(len(mean), dtype=torch.float64, device=mean.device)
    eye = torch.eye(len(mean), dtype=torch.float64, device=mean.device)
    return Search(draws, zero.new_tensor(sigma), zero, zero.clone(), eye, eye.clone(), zero + 1)


def sample(search: Search, members: int) -> Tensor:
    """y ~ N(0, C), [members, P]."""
    normal = torch.randn(members, len(search.scales), generator=search.draws.generator(1), dtype=torch.float64)
    return (normal.to(search.scales.device) * search.scales) @ search.axes.T


def update(known: Constants, search: Search, steps: Tensor, found: Tensor) -> tuple[Tensor, Search]:
    """How far the mean moves [P], and the search after it, from the steps y [members, P] and their losses [members]."""
    steps, weights = steps[found.argsort(stable=True)], known.weights.to(steps.device)
    size, mean_step = steps.shape[1], weights.clamp(min=0) @ steps
    length = math.sqrt(2) * math.exp(math.lgamma((size + 1) / 2) - math.lgamma(size / 2))  # E|N(0, I)|
    path = _decayed(search.path_sigma, known.c_sigma, known.effective, _whitened(search, mean_step))
    age = 1 - (1 - known.c_sigma) ** (2 * (int(search.draws.updates) + 1))
    # While the path is long, sigma is too small; C must not grow for it.
    steady = float(path.norm()) / math.sqrt(age) < (1.4 + 2 / (size + 1)) * length
    path_c = _decayed(search.path_c, known.c_c, known.effective, steady * mean_step)
    covariance = _covariance(known, search, steps, weights, path_c, steady)
    axes, scales = search.axes, search.scales
    if (int(search.draws.updates) + 1) % _gap(known, size) == 0:
        axes, scales = _decomposed(covariance)
    sigma = search.sigma * torch.exp((path.norm() / length - 1) * (known.c_sigma / known.d_sigma))
    return search.sigma * mean_step, Search(search.draws, sigma, path, path_c, covariance, axes, scales)


def _covariance(
    known: Constants, search: Search, steps: Tensor, weights: Tensor, path_c: Tensor, steady: bool
) -> Tensor:
    """C', from the steps in the order of their losses."""
    lengths = _whitened(search, steps).square().sum(1).clamp(min=1e-12)
    scaled = torch.where(weights >= 0, weights, weights * steps.shape[1] / lengths)
    lost = 0.0 if steady else known.c_1 * known.c_c * (2 - known.c_c)
    keep = 1 + lost - known.c_1 - known.c_mu * float(weights.sum())
    covariance = keep * search.covariance + known.c_1 * torch.outer(path_c, path_c)
    return covariance + known.c_mu * (steps.T * scaled) @ steps


def _decayed(path: Tensor, rate: float, effective: float, step: Tensor) -> Tensor:
    return (1 - rate) * path + math.sqrt(rate * (2 - rate) * effective) * step


def _whitened(search: Search, steps: Tensor) -> Tensor:
    """C^(-1/2) y for `steps` [..., P]."""
    return (steps @ search.axes / search.scales) @ search.axes.T


def _decomposed(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Axes and scales of C, which rounding may have left with eigenvalues that are not above zero."""
    values, axes = torch.linalg.eigh((covariance + covariance.T) / 2)
    # Row by row in memory, as it is read back from a checkpoint: sums in another order have other last bits.
    return axes.contiguous(), values.clamp(min=float(values[-1]) * 1e-14).sqrt()


def _gap(known: Constants, size: int) -> int:
    """Steps from one decomposition to the next: C changes so slowly that a tenth of its learning may wait (Hansen 2016, B.2)."""
    return max(1, int(1 / (10 * size * (known.c_1 + known.c_mu))))
