"""The fixed-window network: what a recurrent network is measured against."""

from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra import kernels
from recurra.cells.base import Cell
from recurra.init import uniform_
from recurra.state import masked


class WindowState(NamedTuple):
    """What a window knows: the last n inputs, oldest first, zeros before the first. `inputs` [batch, n, features]."""

    inputs: Tensor


@final
class Window(Cell):
    """A hidden layer over the last n inputs, the present one among them. It has a memory and no recurrence:

        y = tanh(W_ih [x_(t-n+1); ...; x_t] + b_ih)

    Output: y
    State: inputs [batch, n, features]
    Parameters: units * (window * inputs + 1)
    Reference: Bengio, Ducharme, Vincent & Jauvin 2003, "A neural probabilistic language model", JMLR 3

    The optional direct connections of that paper, from the inputs to the scores, are left out.
    """

    blocks = ("hidden",)

    def __init__(self, input_size: int, hidden_size: int, *, window: int = 8) -> None:
        super().__init__()
        self.input_size, self.output_size, self.window = input_size, hidden_size, window
        self.weight_ih = nn.Parameter(uniform_(window * input_size, hidden_size, window * input_size))
        self.bias_ih = nn.Parameter(uniform_(window * input_size, hidden_size))

    def initial_state(self, batch: int) -> WindowState:
        return WindowState(self.bias_ih.new_zeros(batch, self.window, self.input_size))

    def step(self, u: Tensor, state: WindowState) -> tuple[Tensor, WindowState]:
        inputs = torch.cat([state.inputs[:, 1:], u[:, None]], dim=1)
        return F.linear(inputs.flatten(1), self.weight_ih, self.bias_ih).tanh(), WindowState(inputs)

    def scan(self, xs: Tensor, state: WindowState, lengths: Tensor | None) -> tuple[Tensor, WindowState]:
        """All windows at once: nothing here waits for the step before."""
        steps = xs.shape[1]
        if not kernels.wanted() or torch.compiler.is_compiling() or steps == 0:
            return self.loop(xs, state, lengths)
        seen = torch.cat([state.inputs, masked(xs, lengths)], dim=1)
        ys = F.linear(windows(seen[:, 1:], self.window), self.weight_ih, self.bias_ih).tanh()
        return masked(ys, lengths), WindowState(latest(seen, self.window, lengths))


def windows(seen: Tensor, width: int) -> Tensor:
    """Of `[batch, width - 1 + time, features]` at each step the last `width`, side by side: `[batch, time, width * features]`."""
    return seen.unfold(1, width, 1).transpose(2, 3).flatten(2)


def latest(seen: Tensor, count: int, lengths: Tensor | None) -> Tensor:
    """Of the `count` inputs before and those of now, `[batch, count + time, features]`, the last `count` at each row's end."""
    if lengths is None:
        return seen[:, seen.shape[1] - count :]
    places = lengths[:, None] + torch.arange(count, device=seen.device)
    return seen.gather(1, places[..., None].expand(-1, -1, seen.shape[2]))
