"""A recurrent network whose recurrent matrix turns the state and neither shrinks nor grows it."""

import math
from typing import Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from recurra.cells.base import Cell, add_weights
from recurra.cells.elman import ElmanState


class _Rotation(nn.Module):
    """The orthogonal matrix, of determinant 1, that the entries above the diagonal of a square matrix stand for."""

    def __init__(self, map: Literal["exp", "cayley"]) -> None:
        super().__init__()
        self.map = map

    def forward(self, angles: Tensor) -> Tensor:
        above = angles.triu(1)
        skew = above - above.mT
        if self.map == "exp":
            return torch.linalg.matrix_exp(skew)
        one = torch.eye(len(skew), dtype=skew.dtype, device=skew.device)
        return torch.linalg.solve(one + skew, one - skew)


@final
class Orthogonal(Cell):
    """A network whose recurrent weights are an orthogonal matrix Q whatever is learnt, so that what goes through it in time
    keeps its norm, forwards and backwards:

        A = triu(Theta, 1) - triu(Theta, 1)^T           skew-symmetric
        Q = exp(A), or (I + A)^(-1) (I - A)
        a = W x + Q h
        h' = sign(a) * relu(|a| + b)                    modrelu

    Output: h'
    State: h [batch, units]
    Parameters: units * (inputs + units + 1)
    Reference: Lezcano-Casado & Martinez-Rubio 2019, arXiv:1901.08428 (exp); Helfrich, Willmott & Ye 2018, arXiv:1707.09520 (Cayley)

    `map` is exp or cayley, which is without the fixed signs D that the second reference multiplies it by. Theta starts with turns
    of pairs of units by angles uniform in (-pi, pi) (Henaff, Szlam & LeCun 2016, arXiv:1602.06662), those of the Cayley map at most
    pi/2; what is on and below its diagonal is counted and not used. b starts near 0: with b = 0 the network is linear. W starts at
    a tenth of the usual size, since nothing is forgotten. Q is computed once in a call of `unroll`, and once for a stream. Starts
    of `recurra.init` and dropped recurrent weights leave it alone.
    """

    blocks = ("hidden",)

    def __init__(self, input_size: int, hidden_size: int, *, map: Literal["exp", "cayley"] = "exp") -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        add_weights(self, hidden_size, input_size, hidden_size)
        self.bias = nn.Parameter(0.01 * (2 * torch.rand(hidden_size) - 1))
        with torch.no_grad():
            self.weight_ih.mul_(0.1)  # nothing is forgotten: what a hundred steps add is ten times what one does
            self.weight_hh.copy_(_turns(hidden_size, map))
        parametrize.register_parametrization(self, "weight_hh", _Rotation(map))

    def initial_state(self, batch: int) -> ElmanState:
        return ElmanState(self.bias.new_zeros(batch, self.output_size))

    def project(self, xs: Tensor) -> Tensor:
        return F.linear(xs, self.weight_ih)

    def scan(self, xs: Tensor, state: ElmanState, lengths: Tensor | None) -> tuple[Tensor, ElmanState]:
        _ = self.weight_hh  # kept for the call from here on: a loop that is exported would compute it at every step
        return self.loop(xs, state, lengths)

    def step(self, u: Tensor, state: ElmanState) -> tuple[Tensor, ElmanState]:
        a = u + F.linear(state.h, self.weight_hh)
        h = a.sign() * torch.relu(a.abs() + self.bias)
        return h, ElmanState(h)


def _turns(units: int, map: str) -> Tensor:
    """The Theta that turns the units two by two."""
    angles = (2 * torch.rand(units // 2) - 1) * (math.pi if map == "exp" else math.pi / 2)
    theta, even = torch.zeros(units, units), torch.arange(units // 2) * 2
    theta[even, even + 1] = (
        angles if map == "exp" else (angles / 2).tan()
    )  # the Cayley map turns by twice the arc tangent
    return theta
