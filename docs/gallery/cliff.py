"""The cliff in the loss of one recurrent unit, and a step of descent with and without clipping.

Run it with: python docs/gallery/cliff.py
"""

import torch
from torch import Tensor, nn

from recurra import probe
from recurra.cells import Cell
from recurra.probe.figures import Section, cliff_section, text_section

STEPS, RATE, CLIP = 50, 0.005, 1.0
FORMULA = """\
h_t = w sigmoid(h_(t-1)) + b,   h_0 = 0.5,       L = (sigmoid(h_50) - 0.7)^2

unclipped   theta <- theta - rate g
clipped     theta <- theta - rate g min(1, most / |g|)

(Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063, figure 6)"""


class Unit(Cell):
    """The one unit of the figure."""

    def __init__(self, w: float, b: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.tensor([w])), nn.Parameter(torch.tensor([b]))
        self.input_size = self.output_size = 1

    def initial_state(self, batch: int) -> Tensor:
        return torch.full((batch, 1), 0.5)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h = self.weight * torch.sigmoid(state) + self.bias
        return h, h

    def error(self) -> Tensor:
        """L after `STEPS` steps."""
        ys, _ = self.unroll(torch.zeros(1, STEPS, 1), self.initial_state(1))
        return (torch.sigmoid(ys[0, -1, 0]) - 0.7).square()


def steepest(unit: Unit, start: tuple[float, float], along: float, steps: int = 200) -> Unit:
    """Where the gradient is longest on the way up in w: the foot of the cliff."""
    best, most = unit, 0.0
    for k in range(steps):
        other = Unit(start[0] + along * k / steps, start[1])
        other.error().backward()
        norm = float(torch.cat([other.weight.grad, other.bias.grad]).norm())  # type: ignore[list-item]
        if norm > most:
            best, most = other, norm
    return best


def sections() -> list[Section]:
    """The map, and the two steps from the steepest place of a line across it."""
    unit = steepest(Unit(4.5, -2.6), (4.5, -2.6), 2.0)
    found = probe.cliff(
        unit, unit.error, ("weight[0]", "bias[0]"), spans=((4.0, 7.0), (-3.2, -1.8)), points=45, rate=RATE, most=CLIP
    )
    return [text_section("The cliff, and clipping", [FORMULA]), cliff_section(found)]


if __name__ == "__main__":
    print("\n".join(word for one in sections() for word in one.words))
