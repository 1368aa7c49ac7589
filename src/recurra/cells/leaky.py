"""Leaky units: a recurrent network in continuous time."""

from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.cells.base import Cell, add_weights, with_one_bias
from recurra.cells.elman import ACTIVATIONS, Activation


class LeakyState(NamedTuple):
    """What leaky units remember: their potential. `h` [batch, units]."""

    h: Tensor


class LeakyGates(NamedTuple):
    """The gates of one step, [batch, units]: the share of the old state that is kept, in (0, 1), and what it moves to."""

    keep: Tensor
    candidate: Tensor


@final
class Leaky(Cell):
    """Leaky integrators, each with a time constant tau of its own that is learnt:

        tau dh/dt = -h + act(W_ih x + W_hh h + b_ih)

    followed exactly over a step of length dt through which the right-hand activation is held:

        k  = exp(-dt / tau)                             keep: how much of the old state stays
        g  = act(W_ih x + W_hh h + b_ih)                candidate
        h' = k * h + (1 - k) * g

    Output: h'
    State: h [batch, units]
    Parameters: units * (inputs + units + 2)
    Reference: Funahashi & Nakamura 1993, Neural Networks 6; Jaeger et al. 2007, Neural Networks 20 (leaky integrators)

    tau starts log-uniform between 1 and `slowest` steps. dt is 1; with `elapsed=True` it is the last input feature, which
    is not multiplied by weights (then the parameters are fewer by `units`).
    """

    blocks = ("hidden",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        activation: Activation = "tanh",
        slowest: float = 20.0,
        elapsed: bool = False,
    ) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.activation, self.elapsed = activation, elapsed
        add_weights(self, hidden_size, input_size - elapsed, hidden_size, "bias_ih")
        self.log_tau = nn.Parameter(torch.rand(hidden_size) * torch.tensor(slowest).log())

    def initial_state(self, batch: int) -> LeakyState:
        return LeakyState(self.bias_ih.new_zeros(batch, self.output_size))

    def project(self, xs: Tensor) -> tuple[Tensor, Tensor]:
        """The drive and dt, [batch, time, units] and [batch, time, 1]."""
        if self.elapsed:
            return F.linear(xs[..., :-1], self.weight_ih, self.bias_ih), xs[..., -1:]
        return F.linear(xs, self.weight_ih, self.bias_ih), torch.ones_like(xs[..., :1])

    def gates(self, u: tuple[Tensor, Tensor], state: LeakyState) -> LeakyGates:
        drive, dt = u
        candidate = ACTIVATIONS[self.activation](drive + F.linear(state.h, self.weight_hh))
        return LeakyGates((-dt / self.log_tau.exp()).exp(), candidate)

    def step(self, u: tuple[Tensor, Tensor], state: LeakyState) -> tuple[Tensor, LeakyState]:
        gate = self.gates(u, state)
        h = gate.keep * state.h + (1 - gate.keep) * gate.candidate
        return h, LeakyState(h)

    def recurrence(self) -> tuple[str, tuple[Tensor, ...]] | None:
        if self.elapsed or self.activation not in ("tanh", "relu"):
            return None
        keep = (-(-self.log_tau).exp()).exp()  # of a step of length 1
        return f"leaky-{self.activation}", (*with_one_bias(self), keep)
