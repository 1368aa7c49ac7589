"""Long short-term memory (Hochreiter & Schmidhuber 1997; with the forget gate of Gers, Schmidhuber & Cummins 2000)."""

from typing import NamedTuple, final

import torch.nn.functional as F
from torch import Tensor, nn

from recurra import kernels
from recurra.cells.base import Cell
from recurra.init import uniform_


class LSTMState(NamedTuple):
    """What an LSTM knows: `h`, what it says, and `c`, what it remembers, both [batch, units]."""

    h: Tensor
    c: Tensor


class LSTMGates(NamedTuple):
    """The gates of one step, each [batch, units]: three in (0, 1), the candidate in (-1, 1)."""

    input: Tensor
    forget: Tensor
    candidate: Tensor
    output: Tensor


@final
class LSTM(Cell):
    """A cell state kept by addition, and three gates.

        i = sigmoid(W_ii x + b_ii + W_hi h + b_hi)      input gate
        f = sigmoid(W_if x + b_if + W_hf h + b_hf)      forget gate
        g = tanh(W_ig x + b_ig + W_hg h + b_hg)         candidate
        o = sigmoid(W_io x + b_io + W_ho h + b_ho)      output gate
        c' = f * c + i * g
        h' = o * tanh(c')

    State: h, c [batch, units]. Parameters: 4 * units * (inputs + units + 2). Gate order i, f, g, o and names as in
    torch.nn.LSTMCell.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.weight_ih = nn.Parameter(uniform_(hidden_size, 4 * hidden_size, input_size))
        self.weight_hh = nn.Parameter(uniform_(hidden_size, 4 * hidden_size, hidden_size))
        self.bias_ih = nn.Parameter(uniform_(hidden_size, 4 * hidden_size))
        self.bias_hh = nn.Parameter(uniform_(hidden_size, 4 * hidden_size))

    def initial_state(self, batch: int) -> LSTMState:
        zeros = self.bias_hh.new_zeros(batch, self.output_size)
        return LSTMState(zeros, zeros)

    def project(self, xs: Tensor) -> Tensor:
        return F.linear(xs, self.weight_ih, self.bias_ih + self.bias_hh)

    def gates(self, u: Tensor, state: LSTMState) -> LSTMGates:
        i, f, g, o = (u + F.linear(state.h, self.weight_hh)).chunk(4, dim=1)
        return LSTMGates(i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid())

    def step(self, u: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        gate = self.gates(u, state)
        c = gate.forget * state.c + gate.input * gate.candidate
        h = gate.output * c.tanh()
        return h, LSTMState(h, c)

    def scan(self, xs: Tensor, state: LSTMState, lengths: Tensor | None) -> tuple[Tensor, LSTMState]:
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        fast = kernels.run("lstm", xs, lengths, state, weights)
        return self.loop(xs, state, lengths) if fast is None else (fast[0], LSTMState(*fast[1]))
