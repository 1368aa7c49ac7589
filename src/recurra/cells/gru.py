"""The gated recurrent unit (Cho et al. 2014, arXiv:1406.1078), with the reset gate after the product as in cuDNN."""

from typing import NamedTuple, final

import torch.nn.functional as F
from torch import Tensor, nn

from recurra import kernels
from recurra.cells.base import Cell
from recurra.init import uniform_


class GRUState(NamedTuple):
    """What a GRU knows: its last output. `h` [batch, units]."""

    h: Tensor


class GRUGates(NamedTuple):
    """The gates of one step, each [batch, units]: two in (0, 1), the candidate in (-1, 1)."""

    reset: Tensor
    update: Tensor
    candidate: Tensor


@final
class GRU(Cell):
    """A state that is kept or renewed, unit by unit.

        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)             reset gate
        z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)             update gate: how much of the old state stays
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))          candidate
        h' = (1 - z) * n + z * h

    State: h [batch, units]. Parameters: 3 * units * (inputs + units + 2). Gate order r, z, n and names as in
    torch.nn.GRUCell.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.weight_ih = nn.Parameter(uniform_(hidden_size, 3 * hidden_size, input_size))
        self.weight_hh = nn.Parameter(uniform_(hidden_size, 3 * hidden_size, hidden_size))
        self.bias_ih = nn.Parameter(uniform_(hidden_size, 3 * hidden_size))
        self.bias_hh = nn.Parameter(uniform_(hidden_size, 3 * hidden_size))

    def initial_state(self, batch: int) -> GRUState:
        return GRUState(self.bias_hh.new_zeros(batch, self.output_size))

    def project(self, xs: Tensor) -> Tensor:
        return F.linear(xs, self.weight_ih, self.bias_ih)

    def gates(self, u: Tensor, state: GRUState) -> GRUGates:
        ur, uz, un = u.chunk(3, dim=1)
        hr, hz, hn = F.linear(state.h, self.weight_hh, self.bias_hh).chunk(3, dim=1)
        reset = (ur + hr).sigmoid()
        return GRUGates(reset, (uz + hz).sigmoid(), (un + reset * hn).tanh())

    def step(self, u: Tensor, state: GRUState) -> tuple[Tensor, GRUState]:
        gate = self.gates(u, state)
        h = (1 - gate.update) * gate.candidate + gate.update * state.h
        return h, GRUState(h)

    def scan(self, xs: Tensor, state: GRUState, lengths: Tensor | None) -> tuple[Tensor, GRUState]:
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        fast = kernels.run("gru", xs, lengths, state, weights)
        return self.loop(xs, state, lengths) if fast is None else (fast[0], GRUState(*fast[1]))
