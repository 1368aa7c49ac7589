"""The clockwork network: groups of units that are renewed at periods of their own."""

from typing import NamedTuple, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor

from recurra.cells.base import Cell, add_weights
from recurra.cells.elman import ACTIVATIONS, Activation
from recurra.errors import UsageError


class ClockworkState(NamedTuple):
    """What a clockwork knows: its last output, `h` [batch, units], and how many steps were made, `t` int64 [batch]."""

    h: Tensor
    t: Tensor


@final
class Clockwork(Cell):
    """A simple recurrent network in groups: group g is renewed in every T_g-th step, the first among them, and otherwise stays as
    it is; it hears its own group and those that are slower.

        a_g = act(W_g x + sum over k with T_k >= T_g of U_gk h_k + b_g)
        h_g' = a_g where t mod T_g = 0, else h_g
        t' = t + 1

    Output: h'
    State: h [batch, units], t [batch]
    Parameters: units * (inputs + units + 1)
    Reference: Koutnik, Greff, Gomez & Schmidhuber 2014, "A clockwork RNN", arXiv:1402.3511

    `periods` are the T_g in steps, 1, 2, 4 and 8 unless they are given; the units are shared out evenly in this order. The
    weights from faster to slower groups, about half of U, are counted and not used. act is tanh, relu, logistic or identity.
    """

    blocks = ("hidden",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        periods: tuple[int, ...] = (1, 2, 4, 8),
        activation: Activation = "tanh",
    ) -> None:
        super().__init__()
        if not periods or min(periods) < 1:
            raise UsageError(f"a clockwork was given the periods {periods}, wanted one or more, each 1 step or longer")
        self.input_size, self.output_size, self.activation = input_size, hidden_size, activation
        add_weights(self, hidden_size, input_size, hidden_size, "bias_ih")
        group = torch.arange(hidden_size) * len(periods) // max(1, hidden_size)
        period = torch.tensor(periods)[group]
        self.register_buffer("period", period, persistent=False)
        self.register_buffer("heard", period[:, None] <= period, persistent=False)

    def initial_state(self, batch: int) -> ClockworkState:
        zeros = self.bias_ih.new_zeros
        return ClockworkState(zeros(batch, self.output_size), zeros(batch, dtype=torch.int64))

    def project(self, xs: Tensor) -> Tensor:
        return F.linear(xs, self.weight_ih, self.bias_ih)

    def step(self, u: Tensor, state: ClockworkState) -> tuple[Tensor, ClockworkState]:
        due = state.t[:, None] % cast(Tensor, self.period) == 0
        recurrent = F.linear(state.h, self.weight_hh * cast(Tensor, self.heard))
        h = torch.where(due, ACTIVATIONS[self.activation](u + recurrent), state.h)
        return h, ClockworkState(h, state.t + 1)
