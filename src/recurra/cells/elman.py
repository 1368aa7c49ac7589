"""The simple recurrent network (Elman 1990, "Finding structure in time")."""

from typing import Literal, NamedTuple, final

import torch.nn.functional as F
from torch import Tensor, nn

from recurra import kernels
from recurra.cells.base import Cell
from recurra.init import uniform_


class ElmanState(NamedTuple):
    """What an Elman network remembers: its last output. `h` [batch, units]."""

    h: Tensor


ACTIVATIONS = {"tanh": F.tanh, "relu": F.relu}


@final
class Elman(Cell):
    """h' = act(W_ih x + b_ih + W_hh h + b_hh), with act = tanh or relu; the output is h'.

    State: h [batch, units]. Parameters: units * (inputs + units + 2).
    Names and shapes as in torch.nn.RNNCell: weight_ih [units, inputs], weight_hh [units, units].
    """

    def __init__(self, input_size: int, hidden_size: int, *, activation: Literal["tanh", "relu"] = "tanh") -> None:
        super().__init__()
        self.input_size, self.output_size, self.activation = input_size, hidden_size, activation
        self.weight_ih = nn.Parameter(uniform_(hidden_size, hidden_size, input_size))
        self.weight_hh = nn.Parameter(uniform_(hidden_size, hidden_size, hidden_size))
        self.bias_ih = nn.Parameter(uniform_(hidden_size, hidden_size))
        self.bias_hh = nn.Parameter(uniform_(hidden_size, hidden_size))

    def initial_state(self, batch: int) -> ElmanState:
        return ElmanState(self.bias_hh.new_zeros(batch, self.output_size))

    def project(self, xs: Tensor) -> Tensor:
        return F.linear(xs, self.weight_ih, self.bias_ih + self.bias_hh)

    def step(self, u: Tensor, state: ElmanState) -> tuple[Tensor, ElmanState]:
        h = ACTIVATIONS[self.activation](u + F.linear(state.h, self.weight_hh))
        return h, ElmanState(h)

    def scan(self, xs: Tensor, state: ElmanState, lengths: Tensor | None) -> tuple[Tensor, ElmanState]:
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        fast = kernels.run(f"elman-{self.activation}", xs, lengths, state, weights)
        return self.loop(xs, state, lengths) if fast is None else (fast[0], ElmanState(*fast[1]))
