"""The reservoir of an echo state network: a recurrent network that does not learn."""

from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor

from recurra.cells.base import Cell
from recurra.errors import UsageError


class ReservoirState(NamedTuple):
    """The echo of the inputs so far. `h` [batch, units]."""

    h: Tensor


@final
class Reservoir(Cell):
    """Leaky units with random weights that stay as they are; what is learnt is a readout (`--learner ridge`):

        g  = tanh(W_ih x + W_hh h + b_ih)
        h' = (1 - leak) * h + leak * g

    Output: h'
    State: h [batch, units]
    Parameters: 0
    Reference: Jaeger 2001, "The echo state approach", GMD report 148; Lukosevicius 2012, "A practical guide to applying echo
    state networks", doi:10.1007/978-3-642-35289-8_36

    W_ih and b_ih are uniform in [-scale, scale]. A share `density` of the entries of W_hh is not zero; they are drawn from a
    normal and scaled so that the largest eigenvalue has the modulus `radius`: below 1 the echo of an input fades, as a rule.
    All are buffers, drawn from torch's generator, and saved with the model.
    """

    blocks = ("hidden",)
    weight_ih: Tensor  # type: ignore[assignment]  # buffers, where other cells have parameters
    weight_hh: Tensor  # type: ignore[assignment]
    bias_ih: Tensor  # type: ignore[assignment]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        radius: float = 0.9,
        density: float = 0.1,
        leak: float = 1.0,
        scale: float = 0.5,
    ) -> None:
        super().__init__()
        if not 0 < leak <= 1 or not 0 < density <= 1:
            raise UsageError(f"cell.leak was {leak} and cell.density {density}, wanted both above 0 and at most 1")
        if radius < 0 or scale < 0:
            raise UsageError(f"cell.radius was {radius} and cell.scale {scale}, wanted neither below 0")
        self.input_size, self.output_size, self.leak = input_size, hidden_size, leak
        self.register_buffer("weight_ih", torch.empty(hidden_size, input_size).uniform_(-scale, scale))
        self.register_buffer("weight_hh", _sparse(hidden_size, density, radius))
        self.register_buffer("bias_ih", torch.empty(hidden_size).uniform_(-scale, scale))

    def initial_state(self, batch: int) -> ReservoirState:
        return ReservoirState(self.bias_ih.new_zeros(batch, self.output_size))

    def project(self, xs: Tensor) -> Tensor:
        return F.linear(xs, self.weight_ih, self.bias_ih)

    def step(self, u: Tensor, state: ReservoirState) -> tuple[Tensor, ReservoirState]:
        candidate = torch.tanh(u + F.linear(state.h, self.weight_hh))
        h = (1 - self.leak) * state.h + self.leak * candidate
        return h, ReservoirState(h)


def _sparse(units: int, density: float, radius: float) -> Tensor:
    """A random matrix of this density and spectral radius, or of none where no unit is heard by itself in the end."""
    weights = torch.randn(units, units) * (torch.rand(units, units) < density)
    largest = torch.linalg.eigvals(weights).abs().max()
    return torch.where(largest > 1e-3, weights * radius / largest, 0.0)
