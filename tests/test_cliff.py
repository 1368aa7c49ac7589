"""The loss over a plane, held against losses asked one by one, and steps of torch's own descent."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from recurra import probe
from recurra.cells import LSTM, Cell
from recurra.errors import UsageError


class Unit(Cell):
    """The one unit of figure 6 of Pascanu et al. 2013: h' = w sigmoid(h) + b."""

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
        """After fifty steps the output is to be 0.7."""
        ys, _ = self.unroll(torch.zeros(1, 50, 1), self.initial_state(1))
        return (torch.sigmoid(ys[0, -1, 0]) - 0.7).square()


def test_the_heights_are_the_losses_and_the_steps_those_of_descent() -> None:
    unit = Unit(5.0, -2.5)
    found = probe.cliff(
        unit, unit.error, ("weight[0]", "bias[0]"), spans=((4.0, 6.0), (-3.0, -2.0)), points=9, rate=0.5, most=0.01
    )
    assert (found.here, found.names) == ((5.0, -2.5), ("weight[0]", "bias[0]"))
    for i, j in ((0, 0), (4, 4), (8, 3), (2, 7)):
        other = Unit(float(found.a[i]), float(found.b[j]))
        assert found.loss[i, j] == pytest.approx(float(other.error().detach()), rel=1e-4)
    assert found.loss[4, 4] == float(unit.error().detach())
    for most, landed in ((None, found.plain), (0.01, found.clipped)):
        twin = Unit(5.0, -2.5)
        twin.error().backward()
        if most:
            norm = nn.utils.clip_grad_norm_(twin.parameters(), most)
            assert found.norm == pytest.approx(float(norm), rel=1e-5) and norm > most
        torch.optim.SGD(twin.parameters(), lr=0.5).step()
        assert landed == pytest.approx((float(twin.weight.detach()), float(twin.bias.detach())), rel=1e-5)


def test_the_figure_of_the_paper_has_a_cliff_and_a_bowl_has_none() -> None:
    unit = Unit(5.0, -2.5)
    found = probe.cliff(unit, unit.error, ("weight[0]", "bias[0]"), spans=((4.0, 6.0), (-3.0, -2.0)))
    assert "there is a cliff" in found.words[1]
    bowl = nn.Linear(1, 1)
    told = probe.cliff(bowl, lambda: sum(p.square().sum() for p in bowl.parameters()), ("weight[0, 0]", "bias[0]"))
    assert "there is no cliff" in told.words[1]


def test_any_network_has_a_plane_of_descent_and_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    cell = LSTM(3, 4).double()
    xs = torch.randn(2, 7, 3, dtype=torch.float64)
    loss = lambda: cell.unroll(xs, cell.initial_state(2))[0].square().mean()  # noqa: E731
    before, seed = {k: v.clone() for k, v in cell.state_dict().items()}, torch.random.get_rng_state()
    found = probe.cliff(cell, loss, points=5, rate=0.1)
    assert all(torch.equal(v, before[k]) for k, v in cell.state_dict().items()) and cell.training
    assert torch.equal(seed, torch.random.get_rng_state())
    assert all(p.grad is None for p in cell.parameters())
    slope = torch.autograd.grad(loss(), list(cell.parameters()))
    norm = torch.stack([g.square().sum() for g in slope]).sum().sqrt()
    assert found.gradient == pytest.approx((-float(norm), 0.0), abs=1e-9)
    assert found.plain == pytest.approx((0.1 * float(norm), 0.0), abs=1e-9)
    moved = {n: p.detach() - found.a[3] * g / norm for (n, p), g in zip(cell.named_parameters(), slope, strict=True)}
    twin = LSTM(3, 4).double()
    twin.load_state_dict(moved)
    middle = twin.unroll(xs, twin.initial_state(2))[0].square().mean()
    assert found.loss[3, 2] == pytest.approx(float(middle.detach()), rel=1e-9)
    plane = probe.cliff(cell, loss, ({"weight_hh": torch.ones_like(cell.weight_hh)}, "bias_ih[0]"), points=3)
    assert plane.names == ("A", "bias_ih[0]") and plane.here == (0.0, float(cell.bias_ih.detach()[0]))


class Wrong(NamedTuple):
    along: tuple
    said: str


@pytest.mark.parametrize(
    "wrong",
    [
        Wrong(("weight_hh[0]", "bias_ih[0]"), "no single parameter"),
        Wrong(("weight_hh[9, 0]", "bias_ih[0]"), "no single parameter"),
        Wrong(("nothing[0]", "bias_ih[0]"), "no single parameter"),
        Wrong(({"weight_hh": torch.ones(2)}, "bias_ih[0]"), "wanted of shape"),
        Wrong(({"nothing": torch.ones(2)}, "bias_ih[0]"), "wanted one of"),
    ],
)
def test_directions_that_the_model_has_not_are_refused(wrong: Wrong) -> None:
    cell = LSTM(1, 2)
    xs = torch.zeros(1, 3, 1)
    losses = probe.losses_of(cell, xs)
    with pytest.raises(UsageError, match=wrong.said):
        probe.cliff(cell, lambda: losses().sum(), wrong.along)


def test_a_loss_without_a_gradient_or_of_many_numbers_is_refused() -> None:
    cell = LSTM(1, 2)
    for loss in (lambda: torch.ones(()), lambda: cell.weight_hh):
        with pytest.raises(UsageError, match="a loss of one number"):
            probe.cliff(cell, loss)


def test_what_is_not_finite_is_the_highest_wall() -> None:
    line = nn.Linear(1, 1)
    found = probe.cliff(
        line, lambda: line.weight.sum().log() ** 2, ("weight[0, 0]", "bias[0]"), spans=((-1, 1), (0, 1)), points=5
    )
    assert np.isinf(found.loss[:3]).all() and np.isfinite(found.loss[3:]).all()
