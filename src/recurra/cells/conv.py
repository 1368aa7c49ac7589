"""LSTMs on a grid, whose products with weights are convolutions."""

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from recurra.cells.base import Cell
from recurra.cells.lstm import LSTMGates, LSTMState
from recurra.errors import UsageError
from recurra.init import uniform_


@final
class ConvLSTM(Cell):
    """An LSTM on a grid of places, with ** the convolution (zeros past the edges) and peepholes of each place and channel:

        i = sigmoid(W_xi ** x + W_hi ** h + w_ci * c + b_i)     input gate
        f = sigmoid(W_xf ** x + W_hf ** h + w_cf * c + b_f)     forget gate
        g = tanh(W_xg ** x + W_hg ** h + b_g)                   candidate
        c' = f * c + i * g
        o = sigmoid(W_xo ** x + W_ho ** h + w_co * c' + b_o)    output gate
        h' = o * tanh(c')

    Output: h' [batch, units], flat: units = channels * H * W
    State: h, c [batch, units]
    Parameters: 4 * channels * (kernel**2 * (inputs + units) // places + 1) + 3 * units
    Reference: Shi, Chen, Wang, Yeung, Wong & Woo 2015, "Convolutional LSTM network", arXiv:1506.04214

    Inputs are flat vectors of C * H * W features, `grid=(C, H, W)`, channel by channel and row by row; the units are shared
    out to the H * W places. Without a grid there is one place. `kernel` is the odd width of the convolutions. Layers on each
    other share one grid where they have as many units as inputs.
    """

    blocks = LSTMGates._fields

    def __init__(
        self, input_size: int, hidden_size: int, *, grid: tuple[int, int, int] | None = None, kernel: int = 3
    ) -> None:
        super().__init__()
        inputs, self.height, self.width = grid or (input_size, 1, 1)
        places = self.height * self.width
        if min(inputs, places) < 1 or inputs * places != input_size or hidden_size % places:
            raise UsageError(
                f"a ConvLSTM was given {input_size} inputs, {hidden_size} units and the grid {grid}; wanted C * H * W inputs and a "
                "multiple of H * W units"
            )
        if kernel < 1 or kernel % 2 == 0:
            raise UsageError(f"a ConvLSTM was given a kernel {kernel} wide, wanted an odd width, which has a middle")
        self.input_size, self.output_size, self.kernel = input_size, hidden_size, kernel
        channels = hidden_size // places
        heard = kernel**2 * channels
        self.kernel_ih = nn.Parameter(uniform_(heard, 4 * channels, inputs, kernel, kernel))
        self.kernel_hh = nn.Parameter(uniform_(heard, 4 * channels, channels, kernel, kernel))
        self.bias_ih = nn.Parameter(uniform_(heard, 4 * channels))
        self.peephole_input = nn.Parameter(uniform_(hidden_size, hidden_size))
        self.peephole_forget = nn.Parameter(uniform_(hidden_size, hidden_size))
        self.peephole_output = nn.Parameter(uniform_(hidden_size, hidden_size))

    def initial_state(self, batch: int) -> LSTMState:
        zeros = self.bias_ih.new_zeros(batch, self.output_size)
        return LSTMState(zeros, zeros.clone())

    def project(self, xs: Tensor) -> Tensor:
        """The sums of the input, [batch, time, 4 * units]."""
        return self._convolved(xs.flatten(0, 1), self.kernel_ih, self.bias_ih).unflatten(0, xs.shape[:2])

    def gates(self, u: Tensor, state: LSTMState) -> LSTMGates:
        i, f, g, o = (u + self._convolved(state.h, self.kernel_hh)).chunk(4, dim=1)
        input = (i + self.peephole_input * state.c).sigmoid()
        forget = (f + self.peephole_forget * state.c).sigmoid()
        candidate = g.tanh()
        c = forget * state.c + input * candidate
        return LSTMGates(input, forget, candidate, (o + self.peephole_output * c).sigmoid())

    def step(self, u: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        gate = self.gates(u, state)
        c = gate.forget * state.c + gate.input * gate.candidate
        h = gate.output * c.tanh()
        return h, LSTMState(h, c)

    def _convolved(self, flat: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Flat in, flat out: `[n, channels * H * W]`."""
        picture = flat.view(-1, weight.shape[1], self.height, self.width)
        return F.conv2d(picture, weight, bias, padding=self.kernel // 2).flatten(1)
