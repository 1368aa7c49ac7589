"""LSTMs in which input and state meet by multiplication before the gates see them."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.cells.base import Cell, add_weights
from recurra.cells.lstm import LSTMGates, LSTMState
from recurra.errors import UsageError
from recurra.init import uniform_


@final
class MultiplicativeLSTM(Cell):
    """An LSTM with another recurrence for each input: its gates see m, the product of input and state, where others see h.

        m = (W_mx x) * (W_mh h)                         intermediate state
        i = sigmoid(W_ix x + W_im m + b_i)              input gate
        f = sigmoid(W_fx x + W_fm m + b_f)              forget gate
        g = tanh(W_gx x + W_gm m + b_g)                 candidate
        o = sigmoid(W_ox x + W_om m + b_o)              output gate
        c' = f * c + i * g
        h' = o * tanh(c')

    Output: h'
    State: h, c [batch, units]
    Parameters: 5 * units * (inputs + units) + 4 * units
    Reference: Krause, Lu, Murray & Renals 2017, "Multiplicative LSTM for sequence modelling", arXiv:1609.07959

    An earlier form leaves the candidate linear and squashes last, h' = tanh(o * c'); this is the one that spread. Not the
    mLSTM of xLSTM, which is `lstm-matrix`.
    """

    blocks = LSTMGates._fields

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        add_weights(self, hidden_size, input_size, hidden_size, "bias_ih")
        self.weight_mx = nn.Parameter(uniform_(hidden_size, hidden_size, input_size))
        self.weight_mh = nn.Parameter(uniform_(hidden_size, hidden_size, hidden_size))

    def initial_state(self, batch: int) -> LSTMState:
        zeros = self.bias_ih.new_zeros(batch, self.output_size)
        return LSTMState(zeros, zeros.clone())

    def project(self, xs: Tensor) -> tuple[Tensor, Tensor]:
        """The sums of the input, [batch, time, 4 * units], and its factor of m, [batch, time, units]."""
        return F.linear(xs, self.weight_ih, self.bias_ih), F.linear(xs, self.weight_mx)

    def gates(self, u: tuple[Tensor, Tensor], state: LSTMState) -> LSTMGates:
        sums, factor = u
        m = factor * F.linear(state.h, self.weight_mh)
        i, f, g, o = (sums + F.linear(m, self.weight_hh)).chunk(4, dim=1)
        return LSTMGates(i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid())

    def step(self, u: tuple[Tensor, Tensor], state: LSTMState) -> tuple[Tensor, LSTMState]:
        gate = self.gates(u, state)
        c = gate.forget * state.c + gate.input * gate.candidate
        h = gate.output * c.tanh()
        return h, LSTMState(h, c)


@final
class Mogrifier(Cell):
    """An LSTM whose input and state gate each other in turns before it sees them. From x_(-1) = x and h_0 = h:

        x_i = 2 sigmoid(Q_i h_(i-1)) * x_(i-2)          in the odd rounds i
        h_i = 2 sigmoid(R_i x_(i-1)) * h_(i-2)          in the even rounds i

    and of the last two of them, x^ and h^, an LSTM:

        i, f, o = sigmoid(W_i. x^ + W_h. h^ + b_.)      gates
        g = tanh(W_ig x^ + W_hg h^ + b_g)               candidate
        c' = f * c + i * g
        h' = o * tanh(c')

    Output: h'
    State: h, c [batch, units]
    Parameters: 4 * units * (inputs + units + 1) + rounds * inputs * units
    Reference: Melis, Kocisky & Blunsom 2020, "Mogrifier LSTM", arXiv:1909.01792

    `rounds` is 5 unless it is given; 0 is the LSTM. Q and R are whole matrices without biases: the paper factors large ones.
    """

    blocks = LSTMGates._fields

    def __init__(self, input_size: int, hidden_size: int, *, rounds: int = 5) -> None:
        super().__init__()
        if rounds < 0:
            raise UsageError(f"a Mogrifier was given {rounds} rounds, wanted 0 or more")
        self.input_size, self.output_size, self.rounds = input_size, hidden_size, rounds
        add_weights(self, hidden_size, input_size, hidden_size, "bias_ih")
        odd, even = (rounds + 1) // 2, rounds // 2
        self.weight_q = nn.Parameter(uniform_(hidden_size, odd, input_size, hidden_size)) if odd else None
        self.weight_r = nn.Parameter(uniform_(input_size, even, hidden_size, input_size)) if even else None

    def initial_state(self, batch: int) -> LSTMState:
        zeros = self.bias_ih.new_zeros(batch, self.output_size)
        return LSTMState(zeros, zeros.clone())

    def gates(self, u: Tensor, state: LSTMState) -> LSTMGates:
        x, h = self._mogrified(u, state.h)
        i, f, g, o = (F.linear(x, self.weight_ih, self.bias_ih) + F.linear(h, self.weight_hh)).chunk(4, dim=1)
        return LSTMGates(i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid())

    def step(self, u: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        gate = self.gates(u, state)
        c = gate.forget * state.c + gate.input * gate.candidate
        h = gate.output * c.tanh()
        return h, LSTMState(h, c)

    def _mogrified(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        for at in range(self.rounds):
            if at % 2 == 0 and self.weight_q is not None:
                x = 2 * torch.sigmoid(F.linear(h, self.weight_q[at // 2])) * x
            elif self.weight_r is not None:
                h = 2 * torch.sigmoid(F.linear(x, self.weight_r[at // 2])) * h
        return x, h
