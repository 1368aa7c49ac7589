"""Liquid networks: units in continuous time whose time constants hang on what they see."""

from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.cells.base import Cell, add_weights
from recurra.cells.leaky import LeakyState
from recurra.errors import UsageError
from recurra.init import uniform_


@final
class LTC(Cell):
    """Liquid time constants: the drive f both pulls a unit towards A and shortens its time constant.

        dh/dt = -(1 / tau + f) * h + f * A,    f = sigmoid(W_ih x + W_hh h + b_ih)

    followed over a step of length dt by `unfolds` steps of the fused solver, each of length s = dt / unfolds:

        h <- (h + s * f * A) / (1 + s * (1 / tau + f))

    Output: h'
    State: h [batch, units]
    Parameters: units * (inputs + units + 3)
    Reference: Hasani, Lechner, Amini, Rus & Grosu 2021, "Liquid time-constant networks", arXiv:2006.04439

    f is one number a unit, as in the paper's equations; its authors' code gives every synapse a sigmoid and a target of its
    own. tau starts log-uniform between 1 and `slowest` steps, A uniform in [-1, 1]. The solver is implicit: no dt makes it
    unstable. dt is 1; with `elapsed=True` it is the last input feature, which is not multiplied by weights (then the
    parameters are fewer by `units`). `unfolds` is 6 unless it is given.
    """

    blocks = ("hidden",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        unfolds: int = 6,
        slowest: float = 20.0,
        elapsed: bool = False,
    ) -> None:
        super().__init__()
        if unfolds < 1:
            raise UsageError(f"the solver of an LTC was given {unfolds} steps, wanted 1 or more")
        self.input_size, self.output_size = input_size, hidden_size
        self.unfolds, self.elapsed = unfolds, elapsed
        add_weights(self, hidden_size, input_size - elapsed, hidden_size, "bias_ih")
        self.log_tau = nn.Parameter(torch.rand(hidden_size) * torch.tensor(slowest).log())
        self.target = nn.Parameter(uniform_(1, hidden_size))

    def initial_state(self, batch: int) -> LeakyState:
        return LeakyState(self.bias_ih.new_zeros(batch, self.output_size))

    def project(self, xs: Tensor) -> tuple[Tensor, Tensor]:
        """The sums of the input and dt, [batch, time, units] and [batch, time, 1]."""
        return with_elapsed(xs, self.weight_ih, self.bias_ih, self.elapsed)

    def step(self, u: tuple[Tensor, Tensor], state: LeakyState) -> tuple[Tensor, LeakyState]:
        sums, dt = u
        h, short, rate = state.h, dt / self.unfolds, (-self.log_tau).exp()
        for _ in range(self.unfolds):
            f = (sums + F.linear(h, self.weight_hh)).sigmoid()
            h = (h + short * f * self.target) / (1 + short * (rate + f))
        return h, LeakyState(h)


class CfCGates(NamedTuple):
    """Of one step, each [batch, units]: the share of `first` in (0, 1), and what is mixed, both in (-1, 1)."""

    share: Tensor
    first: Tensor
    second: Tensor


@final
class CfC(Cell):
    """The closed form of a liquid network: two answers, mixed by the time that has gone by.

        f = W_f x + U_f h + b_f                         how fast the first gives way to the second
        g = tanh(W_g x + U_g h + b_g)                   first answer: of a short time
        k = tanh(W_k x + U_k h + b_k)                   second answer: of a long time, where f > 0
        h' = sigmoid(-f dt) * g + (1 - sigmoid(-f dt)) * k

    Output: h'
    State: h [batch, units]
    Parameters: 3 * units * (inputs + units + 1)
    Reference: Hasani et al. 2022, "Closed-form continuous-time neural networks", Nature Machine Intelligence 4, arXiv:2106.13898

    The shared layers below f, g and k (the backbone of the paper) are left out; a layer below does as well. In its authors'
    code the sigmoid has a term of its own that is not multiplied by dt. dt is 1; with `elapsed=True` it is the last input
    feature, which is not multiplied by weights (then the parameters are fewer by 3 * units).
    """

    blocks = CfCGates._fields

    def __init__(self, input_size: int, hidden_size: int, *, elapsed: bool = False) -> None:
        super().__init__()
        self.input_size, self.output_size, self.elapsed = input_size, hidden_size, elapsed
        add_weights(self, hidden_size, input_size - elapsed, hidden_size, "bias_ih")

    def initial_state(self, batch: int) -> LeakyState:
        return LeakyState(self.bias_ih.new_zeros(batch, self.output_size))

    def project(self, xs: Tensor) -> tuple[Tensor, Tensor]:
        """The sums of the input and dt, [batch, time, 3 * units] and [batch, time, 1]."""
        return with_elapsed(xs, self.weight_ih, self.bias_ih, self.elapsed)

    def gates(self, u: tuple[Tensor, Tensor], state: LeakyState) -> CfCGates:
        sums, dt = u
        f, g, k = (sums + F.linear(state.h, self.weight_hh)).chunk(3, dim=1)
        return CfCGates((-f * dt).sigmoid(), g.tanh(), k.tanh())

    def step(self, u: tuple[Tensor, Tensor], state: LeakyState) -> tuple[Tensor, LeakyState]:
        gate = self.gates(u, state)
        h = gate.share * gate.first + (1 - gate.share) * gate.second
        return h, LeakyState(h)


def with_elapsed(xs: Tensor, weight: Tensor, bias: Tensor, elapsed: bool) -> tuple[Tensor, Tensor]:
    """The sums of the input, and the length of each step: the last feature, or 1."""
    if elapsed:
        return F.linear(xs[..., :-1], weight, bias), xs[..., -1:]
    return F.linear(xs, weight, bias), torch.ones_like(xs[..., :1])
