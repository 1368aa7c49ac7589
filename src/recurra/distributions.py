"""What a forecast says of a number: its value, or how likely each value is."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from recurra.errors import UsageError

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
SMALLEST_SCALE = 1e-4  # in the scale of the forecaster: a likelihood without bound would be had by certainty


class Output(ABC):
    """From raw numbers of a network `[..., parameters]` to losses, means, quantiles and samples `[...]`.

    `loss` is the training loss of each value; `certain` says whether the output is a value and nothing else. The first
    `locations` of the parameters move with the values. `sample` makes draws of noise `[2, ...]`, uniform in (0, 1], the same
    for the same noise: a draw depends on nothing but its own raw numbers and noise.
    """

    parameters: int
    locations = 1
    certain = False

    @abstractmethod
    def loss(self, raw: Tensor, values: Tensor) -> Tensor: ...

    @abstractmethod
    def mean(self, raw: Tensor) -> Tensor: ...

    @abstractmethod
    def quantiles(self, raw: Tensor, levels: Sequence[float]) -> Tensor:
        """`[..., levels]`."""

    @abstractmethod
    def sample(self, raw: Tensor, noise: Tensor) -> Tensor: ...


@final
class Point(Output):
    """One number. Loss: squared or absolute error."""

    parameters, certain = 1, True

    def __init__(self, absolute: bool) -> None:
        self.absolute = absolute

    def loss(self, raw: Tensor, values: Tensor) -> Tensor:
        error = raw[..., 0] - values
        return error.abs() if self.absolute else error.square()

    def mean(self, raw: Tensor) -> Tensor:
        return raw[..., 0]

    def quantiles(self, raw: Tensor, levels: Sequence[float]) -> Tensor:
        raise UsageError(
            "a point forecast has no quantiles; train with --set task.output=quantiles, gaussian or student-t"
        )

    def sample(self, raw: Tensor, noise: Tensor) -> Tensor:
        return raw[..., 0]


@final
class Gaussian(Output):
    """N(mean, deviation^2), deviation by softplus. Loss: negative log-likelihood, nats. Draws by Box & Muller (1958, The Annals
    of Mathematical Statistics 29)."""

    parameters = 2

    def loss(self, raw: Tensor, values: Tensor) -> Tensor:
        deviation = _positive(raw[..., 1])
        return deviation.log() + 0.5 * math.log(2 * math.pi) + 0.5 * ((values - raw[..., 0]) / deviation).square()

    def mean(self, raw: Tensor) -> Tensor:
        return raw[..., 0]

    def quantiles(self, raw: Tensor, levels: Sequence[float]) -> Tensor:
        z = torch.special.ndtri(torch.tensor(levels, dtype=torch.float64)).to(raw)
        return raw[..., :1] + _positive(raw[..., 1:]) * z

    def sample(self, raw: Tensor, noise: Tensor) -> Tensor:
        size = (-2 * noise[0].log()).sqrt() * torch.cos(2 * math.pi * noise[1])
        return raw[..., 0] + _positive(raw[..., 1]) * size


@final
class StudentT(Output):
    """Student's t with location, scale (softplus) and degrees of freedom (2 + softplus). Loss: negative log-likelihood, nats.
    Draws by Bailey (1994, Mathematics of Computation 62)."""

    parameters = 3

    def loss(self, raw: Tensor, values: Tensor) -> Tensor:
        where, scale, freedom = self._parts(raw)
        half = (freedom + 1) / 2
        constant = torch.lgamma(freedom / 2) - torch.lgamma(half) + 0.5 * (math.pi * freedom).log() + scale.log()
        return constant + half * torch.log1p(((values - where) / scale).square() / freedom)

    def mean(self, raw: Tensor) -> Tensor:
        return raw[..., 0]

    def quantiles(self, raw: Tensor, levels: Sequence[float]) -> Tensor:
        where, scale, freedom = self._parts(raw)
        return torch.stack([where + scale * student_quantile(level, freedom) for level in levels], -1)

    def sample(self, raw: Tensor, noise: Tensor) -> Tensor:
        where, scale, freedom = self._parts(raw)
        size = (freedom * torch.expm1(-2 / freedom * noise[0].log())).sqrt() * torch.cos(2 * math.pi * noise[1])
        return where + scale * size

    def _parts(self, raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return raw[..., 0], _positive(raw[..., 1]), 2 + _positive(raw[..., 2])


@final
class Quantiles(Output):
    """A number for each level, put in order (Chernozhukov, Fernandez-Val & Galichon 2010, Econometrica 78).

    Loss: the pinball loss, averaged over levels (Koenker & Bassett 1978, Econometrica 46).
    """

    def __init__(self, levels: Sequence[float]) -> None:
        self.levels = tuple(levels)
        self.parameters = self.locations = len(self.levels)

    def loss(self, raw: Tensor, values: Tensor) -> Tensor:
        return pinball(raw, values, self.levels).mean(-1)

    def mean(self, raw: Tensor) -> Tensor:
        """The median, which stands for the mean. It is that only if levels lie on both sides of 0.5, or at it."""
        return self.quantiles(raw, (0.5,))[..., 0]

    def quantiles(self, raw: Tensor, levels: Sequence[float]) -> Tensor:
        """Of the levels learnt, and linear between them."""
        known, wanted = torch.tensor(self.levels, dtype=raw.dtype), torch.tensor(levels, dtype=raw.dtype)
        right = (
            torch.searchsorted(known, wanted).clamp(1, len(known) - 1) if len(known) > 1 else torch.zeros(len(wanted))
        )
        right = right.long()
        left = (right - 1).clamp(min=0)
        width = known[right] - known[left]
        share = torch.where(width > 0, (wanted - known[left]) / width.clamp(min=1e-9), 0.0).clamp(0, 1)
        ordered = raw.sort(-1).values
        share = share.to(raw.device)
        return ordered[..., left] * (1 - share) + ordered[..., right] * share

    def sample(self, raw: Tensor, noise: Tensor) -> Tensor:
        raise UsageError("quantiles are no distribution to draw from; take task.output=gaussian or student-t")


def pinball(quantiles: Tensor, values: Tensor, levels: Sequence[float]) -> Tensor:
    """max(q e, (q - 1) e) with e = value - quantile, `[..., levels]`."""
    level = torch.tensor(levels, dtype=quantiles.dtype, device=quantiles.device)
    error = values[..., None] - quantiles
    return torch.maximum(level * error, (level - 1) * error)


def student_quantile(level: float, freedom: Tensor) -> Tensor:
    """The quantile of Student's t of more than 2 degrees of freedom at a level, by the expansion of Hill (1970, algorithm 396,
    Communications of the ACM 13)."""
    n = freedom.double()
    if level == 0.5:
        return torch.zeros_like(freedom)
    tail = 2 * min(level, 1 - level)
    a = 1 / (n - 0.5)
    b = (48 / a) / a  # 48 (n - 0.5)^2
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * (a * math.pi / 2).sqrt() * n
    y = (d * tail) ** (2 / n)
    x = torch.special.ndtri(torch.tensor(tail / 2, dtype=torch.float64))
    far = _near_the_middle(n, a, b, c, d, x)
    near = ((1 / (((n + 6) / (n * y) - 0.089 * d - 0.822) * (n + 2) * 3) + 0.5 / (n + 4)) * y - 1) * (n + 1) / (
        n + 2
    ) + 1 / y
    size = (n * torch.where(y > 0.05 + a, far, near)).sqrt()
    return (size if level > 0.5 else -size).to(freedom)


def _near_the_middle(n: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, x: Tensor) -> Tensor:
    """The branch of Hill's expansion about the normal quantile x; t^2 / n."""
    y = x * x
    c = c + torch.where(n < 5, 0.3 * (n - 4.5) * (x + 0.6), torch.zeros_like(n))
    c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
    y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
    return torch.expm1(a * y * y)


def _positive(raw: Tensor) -> Tensor:
    return F.softplus(raw) + SMALLEST_SCALE
