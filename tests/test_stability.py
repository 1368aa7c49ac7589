"""What keeps gradients from vanishing and exploding, held against formulas worked out by hand, brute force and known systems."""

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import recurra
from recurra import config, fit, rates, stability, storage
from recurra.cells import GRU, LSTM, Cell, Elman, Stacked, Window, Zoneout
from recurra.checkpoint import FILES, Job, Progress
from recurra.data.batch import Batch
from recurra.decoder import Decoder, Memory
from recurra.errors import UsageError
from recurra.learn import BPTT, Carry
from recurra.models import AsTheyAre, Encoder, ManyToMany, encoder_layers, language_model
from recurra.stability import lyapunov, omega, watched
from recurra.state import leaves
from recurra.tasks import Validation

# --- Omega --------------------------------------------------------------------------------------------------------------


class Sums(NamedTuple):
    x: Tensor


class ByItsSums(Cell):
    """The network of Pascanu et al.: its state is x_t = W tanh(x_(t-1)) + u_t."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.input_size = self.output_size = size
        self.weight_hh = nn.Parameter(torch.randn(size, size, dtype=torch.float64))

    def initial_state(self, batch: int) -> Sums:
        return Sums(torch.zeros(batch, self.output_size, dtype=torch.float64))

    def step(self, u: Tensor, state: Sums) -> tuple[Tensor, Sums]:
        x = u + state.x.tanh() @ self.weight_hh.T
        return x, Sums(x)


def test_omega_and_its_gradient_are_the_formulas_of_the_paper() -> None:
    torch.manual_seed(0)
    cell, xs = ByItsSums(4), torch.randn(3, 6, 4, dtype=torch.float64)
    with watched(cell) as seen:
        ys, _ = cell.unroll(xs, cell.initial_state(3))
        ys[:, -1].square().sum().backward()
    cell.zero_grad()
    value = stability.add_omega_gradient(seen.steps, 2.0)

    w, total, slope, count = cell.weight_hh.detach().numpy(), 0.0, np.zeros((4, 4)), 0
    for row in xs.numpy():
        x = [np.zeros(4)]
        for u in row:
            x.append(w @ np.tanh(x[-1]) + u)
        g = 2 * x[6]
        for k in range(5, 0, -1):  # g is dE/dx_(k+1); from x_0, which is given, nothing goes on
            keep = 1 - np.tanh(x[k]) ** 2
            back = keep * (w.T @ g)
            ratio = back @ back / (g @ g)
            total += (ratio - 1) ** 2
            slope += 4 * (ratio - 1) / (g @ g) * np.outer(g, keep * back)
            count, g = count + 1, back
    assert value == pytest.approx(total / count, rel=1e-12)
    assert np.abs(slope).max() > 1e-3
    np.testing.assert_allclose(cell.weight_hh.grad.numpy(), 2 * slope / count, rtol=1e-10)


def flat(state: Any) -> Tensor:
    return torch.cat([leaf.flatten(1) for leaf in leaves(state)], 1)


def by_brute_force(cell: Cell, xs: Tensor, gradients: list[Tensor], befores: list[Any]) -> float:
    """Omega from the whole Jacobian of each row and step after the first, for gradients with respect to the states after them."""
    us, terms = cell.project(xs), []
    for t in range(1, xs.shape[1]):
        for row in range(len(xs)):
            g = gradients[t][row]
            if g.square().sum() < 1e-20:
                continue
            sizes = [leaf.shape[1] for leaf in leaves(befores[t])]

            def after(s: Tensor, t: int = t, row: int = row, sizes: list[int] = sizes) -> Tensor:
                state = type(befores[t])(*s[None].split(sizes, 1))
                u = us[row : row + 1, t] if isinstance(us, Tensor) else (us[0][row : row + 1, t], ())
                return flat(cell.step(u, state)[1])[0]

            jacobian = torch.autograd.functional.jacobian(after, flat(befores[t])[row])
            terms.append(((g @ jacobian).square().sum() / g.square().sum() - 1).square())
    return float(torch.stack(terms).mean())


def states_and_gradients(cell: Cell, xs: Tensor, lengths: Tensor, weight: Tensor) -> tuple[list[Any], list[Tensor]]:
    """The state before each step and dE/ds after it, by a loop and one call of autograd."""
    us, state, ys, befores, afters = cell.project(xs), cell.initial_state(len(xs)), [], [], []
    for t in range(xs.shape[1]):
        befores.append(state)
        y, after = cell.step(us[:, t] if isinstance(us, Tensor) else (us[0][:, t], ()), state)
        afters.append(after)
        real = (lengths > t)[:, None]
        state = type(after)(*(torch.where(real, new, old) for new, old in zip(after, state, strict=True)))
        ys.append(torch.where(real, y, 0.0))
    found = torch.autograd.grad(
        (torch.stack(ys, 1) * weight).sum(), [leaf for after in afters for leaf in after], allow_unused=True
    )
    width = len(afters[0])
    filled = [torch.zeros_like(afters[0][0]) if one is None else one for one in found]
    return befores, [torch.cat(filled[at : at + width], 1) for at in range(0, len(filled), width)]


@pytest.mark.parametrize("kind", [Elman, LSTM, GRU])
def test_omega_of_a_cell_is_what_whole_jacobians_give_and_its_gradient_what_differences_give(kind: type[Cell]) -> None:
    torch.manual_seed(1)
    cell, xs = kind(2, 3).double(), torch.randn(2, 5, 2, dtype=torch.float64)
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.mul_(2)
    lengths, weight = torch.tensor([5, 3]), torch.randn(2, 5, 3, dtype=torch.float64)
    with watched(cell) as seen:
        ys, _ = cell.unroll(xs, cell.initial_state(2), lengths)
        (ys * weight).sum().backward()
    cell.zero_grad()
    value = stability.add_omega_gradient(seen.steps, 1.0)
    befores, gradients = states_and_gradients(cell, xs, lengths, weight)
    befores = [type(one)(*(leaf.detach() for leaf in one)) for one in befores]
    assert value == pytest.approx(by_brute_force(cell, xs, gradients, befores), rel=1e-10)
    assert value > 1e-3

    matrix, slope = cell.weight_hh.detach(), torch.zeros_like(cell.weight_hh)
    for entry in range(matrix.numel()):
        sides = []
        for change in (1e-6, -2e-6):
            matrix.view(-1)[entry] += change
            sides.append(by_brute_force(cell, xs, gradients, befores))
        matrix.view(-1)[entry] += 1e-6
        slope.view(-1)[entry] = (sides[0] - sides[1]) / 2e-6
    assert float(slope.abs().max()) > 1e-2
    torch.testing.assert_close(cell.weight_hh.grad, slope, rtol=1e-5, atol=1e-7)
    others = {name for name, one in cell.named_parameters() if one.grad is not None}
    assert others == {"weight_hh"}


def test_omega_of_a_stack_is_the_sum_over_its_cells_each_with_its_own_gradients() -> None:
    torch.manual_seed(2)
    low, high = Elman(2, 3).double(), LSTM(3, 2).double()
    xs, weight = torch.randn(2, 5, 2, dtype=torch.float64), torch.randn(2, 5, 2, dtype=torch.float64)
    stack = Stacked([low, high])
    with watched(stack) as seen:
        (stack.unroll(xs, stack.initial_state(2))[0] * weight).sum().backward()
    full = torch.tensor([5, 5])
    ys = low.unroll(xs, low.initial_state(2))[0].detach().requires_grad_()
    befores, gradients = states_and_gradients(high, ys, full, weight)
    (arriving,) = torch.autograd.grad((high.unroll(ys, high.initial_state(2))[0] * weight).sum(), ys)
    low_befores, low_gradients = states_and_gradients(low, xs, full, arriving)
    apart = by_brute_force(high, ys, gradients, befores) + by_brute_force(low, xs, low_gradients, low_befores)
    assert float(omega(seen.steps).detach()) == pytest.approx(apart, rel=1e-10)


def models() -> dict[str, tuple[nn.Module, Any]]:
    """Whole models, and a loss of each."""
    torch.manual_seed(3)
    tokens, xs, lengths = torch.randint(7, (3, 6)), torch.randn(3, 6, 2), torch.tensor([6, 0, 4])
    text = language_model(7, hidden=4, layers=2, embedding=3, cell="gru")
    both = ManyToMany(Encoder(AsTheyAre(2), encoder_layers("lstm", 2, 4, 2, True)), 3)
    zone = Zoneout(LSTM(2, 4), 0.2)
    fed = Decoder(nn.Embedding(7, 3), GRU(7, 4), 2, feed=True)

    def wrote() -> Tensor:
        cell = fed.attend(Memory(xs, None, xs[:, 0]))
        return cell.unroll(tokens, cell.initial_state(3), lengths)[0].square().mean()

    return {
        "language": (text, lambda: text.unroll(tokens, text.initial_state(3), lengths)[0].square().mean()),
        "tag": (both, lambda: both(xs, lengths)[0].square().mean()),
        "zoneout": (zone.eval(), lambda: zone.unroll(xs, zone.initial_state(3), lengths)[0].square().mean()),
        "fed": (fed, wrote),
    }


@pytest.mark.parametrize("name", ["language", "tag", "zoneout", "fed"])
def test_watching_a_model_sees_every_cell_and_changes_no_gradient(name: str) -> None:
    model, loss = models()[name]
    loss().backward()
    plain = {key: one.grad.clone() for key, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    with watched(model) as seen:
        loss().backward()
    torch.testing.assert_close({key: one.grad for key, one in model.named_parameters() if key in plain}, plain)
    cores = [one for one in model.modules() if isinstance(one, Cell) and "weight_hh" in one._parameters]
    assert {id(step.cell) for step in seen.steps} == {id(core) for core in cores}
    assert len(seen.steps) == 6 * len(cores)
    model.zero_grad()
    stability.add_omega_gradient(seen.steps, 1.0)
    given = {key for key, one in model.named_parameters() if one.grad is not None and bool(one.grad.any())}
    assert given == {key for key, _ in model.named_parameters() if key.endswith("weight_hh")}
    assert not any("step" in vars(one) or "loop" in vars(one) for one in model.modules())


def test_omega_weighs_less_as_training_goes_on_and_flossing_ends() -> None:
    cell, xs = Elman(2, 3), torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0))
    with watched(cell) as seen:
        cell.unroll(xs, cell.initial_state(2))[0].square().mean().backward()
    found = []
    wanted = config.RegularizeConfig(omega=3.0, omega_decay=0.5, flossing=2, flossing_steps=4)
    for step, kinds in [(0, {"omega", "flossing"}), (4, {"omega"}), (8, {"omega"})]:
        cell.zero_grad()
        assert set(fit.penalise(cell, wanted, seen, step)) == kinds
        found.append(cell.weight_hh.grad.clone())
    cell.zero_grad()
    stability.add_omega_gradient(seen.steps, 1.0)
    torch.testing.assert_close(found[1], cell.weight_hh.grad)
    torch.testing.assert_close(found[2], 0.6 * cell.weight_hh.grad)
    assert not torch.allclose(found[0], 3 * cell.weight_hh.grad)


def test_a_model_is_left_as_it_was_where_what_was_watched_fails() -> None:
    cell = Elman(2, 3)
    with pytest.raises(UsageError), watched(cell):
        cell.unroll(torch.zeros(1, 2, 5), cell.initial_state(1))
    assert "step" not in vars(cell) and "loop" not in vars(cell) and recurra.kernels.wanted()


def test_omega_is_of_weights_without_weight_drop_and_descends_to_gradients_that_keep_their_norm() -> None:
    torch.manual_seed(4)
    model = language_model(5, hidden=8, embedding=4, cell="elman", recurrent_dropout=0.5)
    tokens = torch.randint(5, (4, 12))
    optimizer, values = torch.optim.Adam(model.parameters(), 0.01), []
    for _ in range(60):
        optimizer.zero_grad()
        with watched(model) as seen:
            model.unroll(tokens, model.initial_state(4))[0].square().mean().backward()
        model.zero_grad()
        assert float(omega(seen.steps).detach()) == float(omega(seen.steps).detach())
        values.append(stability.add_omega_gradient(seen.steps, 1.0))
        optimizer.step()
    assert values[-1] < 0.5 * values[0]


# --- Clipping -----------------------------------------------------------------------------------------------------------


def test_gradients_clipped_at_each_step_are_those_of_a_backward_pass_by_hand() -> None:
    torch.manual_seed(5)
    cell, xs = Elman(2, 3).double(), torch.randn(2, 6, 2, dtype=torch.float64)
    with torch.no_grad():
        cell.weight_hh.mul_(5)
    most = 2.5
    with watched(cell, most) as seen:
        ys, _ = cell.unroll(xs, cell.initial_state(2))
        ys.square().sum().backward()
    w, h = cell.weight_hh.detach().numpy(), ys.detach().numpy()
    slope, cuts = np.zeros((3, 3)), 0
    for row in h:
        flowing = np.zeros(3)
        for t in range(5, -1, -1):
            g = 2 * row[t] + flowing
            cuts += np.linalg.norm(g) > most
            g = g * min(1.0, most / np.linalg.norm(g))
            a = g * (1 - row[t] ** 2)
            slope += np.outer(a, row[t - 1] if t else np.zeros(3))
            flowing = w.T @ a
    assert 0 < cuts < 12
    assert sum(map(bool, seen.cuts)) > 0
    np.testing.assert_allclose(cell.weight_hh.grad.numpy(), slope, rtol=1e-10)


def test_adaptive_clipping_is_row_by_row_a_share_of_the_weights() -> None:
    torch.manual_seed(6)
    matrix, vector, idle = (nn.Parameter(torch.randn(*shape)) for shape in [(8, 3), (5,), (2, 2)])
    matrix.data[0] = 0
    matrix.grad, vector.grad = torch.randn(8, 3) * torch.logspace(-3, 1, 8)[:, None], torch.randn(5)
    before = [matrix.grad.numpy().copy(), vector.grad.numpy().copy()]
    assert stability.clip_units([matrix, vector, idle], 0.3)
    for parameter, given in zip([matrix, vector], before, strict=True):
        weights, gradients = (np.atleast_2d(one) for one in (parameter.detach().numpy(), given))
        wanted = []
        for w, g in zip(weights, gradients, strict=True):
            limit = 0.3 * max(np.linalg.norm(w), 1e-3)
            wanted.append(g * limit / np.linalg.norm(g) if np.linalg.norm(g) > limit else g)
        np.testing.assert_allclose(np.atleast_2d(parameter.grad.numpy()), np.array(wanted), rtol=1e-5)
    assert idle.grad is None
    assert not stability.clip_units([matrix, vector], 0.31)


@pytest.mark.parametrize(
    ("way", "most"), [("norm", 2.0), ("value", 0.5), ("adaptive", 0.1), ("norm", 0.0), ("value", 0.0)]
)
def test_clipping_tells_the_norm_before_and_whether_it_acted(way: str, most: float) -> None:
    for scale, acts in [(1e-4, False), (10.0, most > 0)]:
        parameter = nn.Parameter(torch.ones(4, 4))
        parameter.grad = torch.full((4, 4), scale)
        chosen = config.OptimizerConfig(clip_by=way, clip=most)  # type: ignore[arg-type]
        norm, clipped = fit.clip([parameter], chosen)
        assert norm == pytest.approx(4 * scale)
        assert clipped == acts
        after = {"norm": most / 4, "value": most, "adaptive": most * 2 / 2}[way]
        expected = after if acts else scale
        torch.testing.assert_close(parameter.grad, torch.full((4, 4), expected))


# --- Lyapunov exponents -------------------------------------------------------------------------------------------------


class Vector(NamedTuple):
    s: Tensor


class Linear(Cell):
    """s' = A s."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.input_size, self.output_size = 1, len(matrix)
        self.weight_hh = nn.Parameter(matrix)

    def initial_state(self, batch: int) -> Vector:
        return Vector(self.weight_hh.new_ones(batch, self.output_size))

    def step(self, u: Tensor, state: Vector) -> tuple[Tensor, Vector]:
        s = state.s @ self.weight_hh.T
        return s, Vector(s)


class Henon(Cell):
    """x' = 1 - a x^2 + y, y' = b x (Henon 1976)."""

    def __init__(self) -> None:
        super().__init__()
        self.input_size, self.output_size = 1, 2
        self.a, self.b = (nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in (1.4, 0.3))

    def initial_state(self, batch: int) -> Vector:
        return Vector(torch.stack([torch.linspace(-0.2, 0.2, batch), torch.zeros(batch)], 1).double())

    def step(self, u: Tensor, state: Vector) -> tuple[Tensor, Vector]:
        x, y = state.s.unbind(1)
        s = torch.stack([1 - self.a * x**2 + y, self.b * x], 1)
        return s, Vector(s)


class Lorenz(Cell):
    """A step of dt = 0.03 through the flow of Lorenz 1963 (sigma = 10, r = 28, b = 8/3), by Runge and Kutta's fourth order."""

    dt = 0.03

    def __init__(self) -> None:
        super().__init__()
        self.input_size, self.output_size = 1, 3
        self.r = nn.Parameter(torch.tensor(28.0, dtype=torch.float64))

    def initial_state(self, batch: int) -> Vector:
        draw = torch.Generator().manual_seed(0)
        return Vector(torch.tensor([0.0, 0, 25]) + 8 * torch.randn(batch, 3, generator=draw, dtype=torch.float64))

    def flow(self, s: Tensor) -> Tensor:
        x, y, z = s.unbind(1)
        return torch.stack([10 * (y - x), x * (self.r - z) - y, x * y - 8 / 3 * z], 1)

    def step(self, u: Tensor, state: Vector) -> tuple[Tensor, Vector]:
        s, half = state.s, self.dt / 2
        first = self.flow(s)
        second = self.flow(s + half * first)
        third = self.flow(s + half * second)
        s = s + self.dt / 6 * (first + 2 * second + 2 * third + self.flow(s + self.dt * third))
        return s, Vector(s)


def test_exponents_of_a_linear_map_are_the_logarithms_of_its_eigenvalues() -> None:
    torch.manual_seed(7)
    basis = torch.randn(4, 4, dtype=torch.float64)
    values = torch.tensor([0.2, 0.6, 1.5, -0.9], dtype=torch.float64)  # the largest neither first nor last
    for matrix in (basis @ values.diag() @ basis.inverse(), values.diag()):
        cell = Linear(matrix)
        xs = torch.zeros(1, 120, 1, dtype=torch.float64)
        found = lyapunov(cell, xs, cell.initial_state(1), warmup=60)[0].detach()
        torch.testing.assert_close(found, values.abs().log().sort(descending=True)[0], atol=1e-6, rtol=0)
        leading = lyapunov(cell, xs, cell.initial_state(1), 2, warmup=60)[0].detach()
        torch.testing.assert_close(leading, found[:2])
        total = lyapunov(cell, xs[:, :3], cell.initial_state(1)).sum()
        (slope,) = torch.autograd.grad(total, cell.weight_hh)  # their sum is log |det A|, whatever the time
        torch.testing.assert_close(float(total.detach()), float(matrix.det().abs().log()))
        torch.testing.assert_close(slope, matrix.inverse().T)


def test_exponents_of_the_henon_map_are_the_published_ones() -> None:
    cell = Henon()
    with torch.no_grad():
        found = lyapunov(cell, torch.zeros(48, 700, 1).double(), cell.initial_state(48), warmup=100)
    assert float(found[:, 0].mean()) == pytest.approx(0.419, abs=0.006)
    assert float(found[:, 1].mean()) == pytest.approx(-1.623, abs=0.006)
    torch.testing.assert_close(found.sum(1), torch.full((48,), math.log(0.3)).double())


def test_exponents_of_the_lorenz_flow_are_the_published_ones() -> None:
    """0.906, 0, -14.572 a unit of time (Viswanath 1998, "Lyapunov exponents from random Fibonacci sequences to the Lorenz
    equations"); their sum is the divergence of the flow, -(10 + 1 + 8/3)."""
    cell = Lorenz()
    with torch.no_grad():
        found = lyapunov(cell, torch.zeros(96, 700, 1).double(), cell.initial_state(96), warmup=300) / cell.dt
    mean = found.mean(0)
    assert float(mean[0]) == pytest.approx(0.906, abs=0.05)
    assert float(mean[1]) == pytest.approx(0, abs=0.05)
    assert float(mean[2]) == pytest.approx(-14.572, abs=0.1)
    torch.testing.assert_close(found.sum(1), torch.full((96,), -(11 + 8 / 3)).double(), atol=2e-2, rtol=0)


@pytest.mark.parametrize("kind", [Elman, LSTM])
def test_exponents_are_of_the_whole_state_row_by_row_up_to_each_rows_length(kind: type[Cell]) -> None:
    torch.manual_seed(8)
    cell, xs, lengths = kind(2, 3).double(), torch.randn(3, 6, 2).double(), torch.tensor([6, 4, 0])
    xs[1, 4:] = torch.nan
    found = lyapunov(cell, xs, cell.initial_state(3), lengths=lengths)
    (slope,) = torch.autograd.grad(found[:2].sum(), cell.weight_hh)
    assert slope.isfinite().all() and slope.any()
    found = found.detach()
    assert not found[2].any()
    for row, steps in [(0, 6), (1, 4)]:
        own = lyapunov(cell, xs[row : row + 1, :steps], cell.initial_state(1))[0].detach()
        torch.testing.assert_close(found[row], own)
        state, volumes = flat(cell.initial_state(1))[0], []
        size = len(state)
        for t in range(steps):

            def after(s: Tensor, t: int = t, row: int = row) -> Tensor:
                return flat(cell(xs[row : row + 1, t], type(cell.initial_state(1))(*s[None].split(3, 1)))[1])[0]

            volumes.append(torch.autograd.functional.jacobian(after, state).det().abs().log())
            state = after(state).detach()
        assert len(own) == size
        torch.testing.assert_close(own.sum(), torch.stack(volumes).mean())


def test_exponents_are_differentiable_in_weights_and_inputs() -> None:
    torch.manual_seed(9)
    cell, xs = LSTM(2, 2).double(), torch.randn(1, 4, 2).double().requires_grad_()

    def two(weight: Tensor, xs: Tensor) -> Tensor:
        return torch.func.functional_call(Measured(cell), {"cell.weight_hh": weight}, (xs,))

    assert torch.autograd.gradcheck(two, (cell.weight_hh.detach().clone().requires_grad_(), xs))


class Measured(nn.Module):
    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, xs: Tensor) -> Tensor:
        return lyapunov(self.cell, xs, self.cell.initial_state(1), 2)


def test_flossing_draws_the_leading_exponents_to_zero() -> None:
    torch.manual_seed(10)
    cell, xs = Elman(2, 16), torch.randn(4, 25, 2)
    with torch.no_grad():
        cell.weight_hh.mul_(0.5)
    optimizer = torch.optim.Adam(cell.parameters(), 0.01)
    first = lyapunov(cell, xs, cell.initial_state(4), 6).detach()
    for _ in range(50):
        optimizer.zero_grad()
        with watched(cell) as seen:
            cell.unroll(xs, cell.initial_state(4))
        stability.add_flossing_gradient(seen.runs, 3, 1.0)
        optimizer.step()
    last = lyapunov(cell, xs, cell.initial_state(4), 6).detach()
    assert float(first[:, :3].abs().mean()) > 0.8
    assert float(last[:, :3].abs().mean()) < 0.15
    assert float(last[:, 5].mean()) < -0.3  # the others are left alone


def test_what_cannot_be_measured_is_refused_in_words() -> None:
    cell = Elman(2, 3)
    xs, start = torch.zeros(1, 4, 2), cell.initial_state(1)
    with pytest.raises(UsageError, match="4 Lyapunov exponents of a state of 3 numbers"):
        lyapunov(cell, xs, start, 4)
    with pytest.raises(UsageError, match="warmup was 4 of 4 steps"):
        lyapunov(cell, xs, start, warmup=4)
    window = Window(2, 3)
    with watched(window) as seen:
        window.unroll(xs, window.initial_state(1))[0].sum().backward()
    with pytest.raises(UsageError, match="a cell with recurrent weights"):
        omega(seen.steps)
    with pytest.raises(UsageError, match="steps them one by one"):
        stability.flossing([], 2)


# --- Noise --------------------------------------------------------------------------------------------------------------


def test_gradient_noise_has_the_published_variance_and_is_a_function_of_seed_and_step() -> None:
    def noise(step: int, seed: int) -> Tensor:
        parameter = nn.Parameter(torch.zeros(100, 200))
        parameter.grad = torch.zeros(100, 200)
        stability.add_noise([parameter], 0.3, step, seed)
        return parameter.grad

    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    for step in (0, 1, 1000):
        drawn = noise(step, 5)
        assert float(drawn.var()) == pytest.approx(0.3 / (1 + step) ** 0.55, rel=0.04)
        assert abs(float(drawn.mean())) < 4 * float(drawn.std()) / 141
        torch.testing.assert_close(noise(step, 5), drawn)
    assert not torch.allclose(noise(1, 5), noise(1, 6)) and not torch.allclose(noise(1, 5), noise(2, 5), rtol=0.5)
    torch.testing.assert_close(torch.rand(3), expected)


# --- Averages, statistics and rates, on a toy -----------------------------------------------------------------------------


class Bowl:
    """E(w) = 1/2 sum curvature w^2 + noise . w: everything about its descent is known."""

    def __init__(self, curvature: float = 2.0, noise: float = 0.0, broken: tuple[int, ...] = ()) -> None:
        self.model = nn.Linear(3, 1, bias=False).double()
        self.model.initial_state = lambda batch: ()  # type: ignore[assignment]
        self.model.weight.data.fill_(1.0)
        self.curvature, self.noise, self.broken = curvature, noise, broken
        self.validated: list[Tensor] = []

    def batches(self, start: int = 0):
        for step in range(start, 100_000):
            drawn = np.random.default_rng(step).normal(size=(1, 3)) * self.noise
            yield Batch(torch.from_numpy(drawn), torch.zeros(1), None, 1.0, torch.ones(1, dtype=torch.bool), step)

    def loss(self, batch: Batch, state: Any) -> tuple[Tensor, Any]:
        w = self.model.weight
        loss = 0.5 * self.curvature * w.square().sum() + (batch.inputs * w).sum()
        return (loss * math.nan if batch.step in self.broken else loss), ()

    def held(self, share: float) -> list[nn.Parameter]:
        return []

    def validate(self) -> Validation:
        w = self.model.weight.detach().clone()
        self.validated.append(w)
        loss = float(0.5 * self.curvature * w.square().sum())
        return Validation(loss, loss)


def begun(task: Any, **sections: dict[str, Any]) -> tuple[Job, config.Config]:
    settled = config.build({"optimizer": {"name": "sgd", "rate": 0.1, "warmup": 0, "clip": 0.0, "weight_decay": 0.0,
                                          "schedule": "constant", **sections.get("optimizer", {})},
                            "train": {"steps": 60, "validations": 30, "patience": 1000, **sections.get("train", {})}})  # fmt: skip
    optimizer = fit.make_optimizer(task.model, settled.optimizer)
    return Job(task, BPTT(), optimizer, Carry(()), Progress()), settled


def descend(job: Job, settled: config.Config, improved: Any = lambda: None) -> list[tuple[str, dict[str, Any]]]:
    events: list[tuple[str, dict[str, Any]]] = []
    fit.fit(job, settled, lambda kind, **told: events.append((kind, told)), lambda: None, improved, lambda: False)
    return events


def test_the_mean_of_the_weights_is_what_is_validated_and_kept_once_validation_stops_getting_better() -> None:
    task, kept = Bowl(noise=3.0), []
    job, settled = begun(task, optimizer={"average": "nt"})
    own: list[Tensor] = []
    events: list[str] = []

    def tell(kind: str, **told: Any) -> None:
        events.append(kind)
        if kind == "step":
            own.append(task.model.weight.detach().clone())

    fit.fit(job, settled, tell, lambda: None, lambda: kept.append(task.model.weight.detach().clone()), lambda: False)
    began = events[: events.index("averaging")].count("step")
    assert 12 <= began <= 40  # a validation every 2 steps, and more than 5 of them
    for step in range(began + 2, 61, 2):
        mean = torch.stack(own[began - 1 : step]).mean(0)
        torch.testing.assert_close(task.validated[step // 2 - 1], mean)
    torch.testing.assert_close(task.validated[began // 2 - 1], own[began - 1])
    assert any(torch.equal(kept[-1], one) for one in task.validated[began // 2 :])
    assert torch.equal(task.model.weight.detach(), own[-1])  # training itself goes on from its own weights, to the bit
    assert float(task.validated[-1].norm()) < float(torch.stack(own[-20:]).norm(dim=(1, 2)).mean())


def test_averaging_begins_by_the_rule_of_the_paper() -> None:
    draw = np.random.default_rng(12)
    for _ in range(30):
        errors = np.abs(np.cumsum(draw.normal(-0.1, 1, 25)) + 5).tolist()
        job, settled = begun(Bowl(), optimizer={"average": "nt"})
        begins = None
        for number, error in enumerate(errors):
            fit.begin_averaging(job, settled, error, lambda kind, **_: None)
            if job.average:
                begins = number
                break
        rule = [t for t in range(25) if t > 5 and errors[t] > min(errors[: t - 5])]
        assert begins == (rule[0] if rule else None)


def test_statistics_of_the_norms_are_those_of_all_updates() -> None:
    draw, progress = np.random.default_rng(13), Progress()
    norms = draw.lognormal(0.5, 1.5, 4000)
    for norm in norms:
        fit.note_norm(progress, fit.Gradients(0.0, Carry(()), float(norm), bool(norm > 3), {}))
    progress = Progress(**json.loads(json.dumps({"norms": progress.norms, "clipped": progress.clipped})))
    said = fit.gradient_statistics(progress)
    assert said["steps"] == 4000 and said["clipped"] == pytest.approx(float((norms > 3).mean()))
    for name, share in [("median", 0.5), ("q90", 0.9), ("q99", 0.99), ("largest", 1.0)]:
        assert said[name] == pytest.approx(float(np.quantile(norms, share, method="inverted_cdf")), rel=0.05)
    assert said["threshold"] == pytest.approx(2 * said["median"], rel=0.05)
    assert len(progress.norms) < 200


def advice_of(job: Job, settled: config.Config) -> str:
    report = {"scores": {"loss": 0.0}, "headline": "loss", "higher_is_better": False, "floors": {}}
    return " ".join(fit.advice(job.progress, report, settled.optimizer))


def test_clipping_that_acts_always_or_is_missing_is_said_with_a_threshold() -> None:
    job, settled = begun(Bowl(noise=5.0), optimizer={"clip": 0.5})
    descend(job, settled)
    said = fit.gradient_statistics(job.progress)
    assert said["clipped"] > 0.9
    assert f"--set optimizer.clip={said['threshold']:g}" in advice_of(job, settled)
    job, settled = begun(Bowl(noise=5.0), optimizer={"clip": said["threshold"]})
    descend(job, settled)
    assert 0 < fit.gradient_statistics(job.progress)["clipped"] < 0.5
    assert "optimizer.clip" not in advice_of(job, settled)
    job, settled = begun(Bowl())
    job.progress.norms = {"0": 500, "40": 2}
    assert "32 times as long as the median (1), and none was clipped; --set optimizer.clip=2" in advice_of(job, settled)


@pytest.mark.parametrize(
    ("steps", "optimizer", "decay"),
    [
        (2000, {"rate": 2e-3, "name": "adamw"}, "weight_decay=1)"),
        (4341, {"rate": 8e-3, "name": "adamw"}, "weight_decay=0.1)"),
        (4341, {"rate": 8e-3, "name": "adamw", "weight_decay": 0.3}, None),
        (2000, {"rate": 2e-3, "name": "adam"}, None),
    ],
)
def test_who_overfits_is_told_of_a_weight_decay_that_goes_with_the_rate_and_the_steps(
    steps: int, optimizer: dict[str, Any], decay: str | None
) -> None:
    job, settled = begun(Bowl(), optimizer=optimizer)
    job.progress.step = job.progress.best_step = steps
    job.progress.best_train, job.progress.best_loss = 0.8, 1.2
    said = advice_of(job, settled)
    assert "overfitting" in said
    assert (f"more weight decay (--set optimizer.{decay}" in said) if decay else ("weight_decay" not in said)


def test_updates_that_are_not_finite_are_counted_told_and_said_at_the_end() -> None:
    job, settled = begun(Bowl(broken=(3, 10)), train={"steps": 40})
    events = descend(job, settled)
    refused = [told for kind, told in events if kind == "refused"]
    assert [told["step"] for told in refused] == [4, 11]
    assert all(math.isnan(told["loss"]) and math.isnan(told["grad_norm"]) for told in refused)
    assert fit.gradient_statistics(job.progress)["refused"] == 2
    assert fit.gradient_statistics(job.progress)["steps"] == 38
    assert "2 updates had a loss or gradient that was not finite" in advice_of(job, settled)


@pytest.mark.parametrize("curvature", [0.5, 20.0])
def test_the_range_test_stops_where_descent_must_break_down_and_suggests_a_rate_below(curvature: float) -> None:
    job, settled = begun(Bowl(curvature, noise=0.3))
    found = rates.range_test(job, settled, torch.device("cpu"))
    breaks = 2 / curvature  # gradient descent on a bowl diverges above it
    assert breaks < found.rates[-1] < 10
    assert found.losses[-1] > 10 * found.losses[0] or found.smoothed[-1] > 2 * min(found.smoothed)
    assert breaks / 50 < found.suggested < breaks / 2
    weights = np.full(3, 1.0)
    for step, rate in enumerate(found.rates[:50]):
        noise = np.random.default_rng(step).normal(size=3) * 0.3
        assert found.losses[step] == pytest.approx(0.5 * curvature * weights @ weights + noise @ weights)
        assert rate == pytest.approx(1e-6 * 1e7 ** (step / 299))
        weights = weights - rate * (curvature * weights + noise)
    mean = np.average(found.losses[:31], weights=0.95 ** np.arange(30, -1, -1.0))
    assert found.smoothed[30] == pytest.approx(mean)


def test_a_linear_schedule_falls_to_nothing_after_its_warmup() -> None:
    chosen = config.OptimizerConfig(schedule="linear", warmup=10)
    shares = [fit.schedule(chosen, step, 100) for step in range(100)]
    assert shares[4] == pytest.approx(0.5 * 0.96)
    np.testing.assert_allclose(shares[10:], 1 - np.arange(10, 100) / 100)


# --- Runs ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, draw = tmp_path_factory.mktemp("text") / "text.txt", np.random.default_rng(14)
    path.write_text("".join(draw.choice(["the ", "a ", "cat ", "dog\n", "sat "], 700)))
    return path


class Stop(Exception):  # noqa: N818
    """Raised from `tell`, as a caller may."""


CHOICES: dict[str, dict[str, Any]] = {
    "omega": {"regularize": {"omega": 1.0, "omega_decay": 0.1}},
    "flossing": {"regularize": {"flossing": 2, "flossing_steps": 12}},
    "noise": {"regularize": {"gradient_noise": 0.1}},
    "step": {"optimizer": {"clip_by": "step", "clip": 0.2}},
    "adaptive": {"optimizer": {"clip_by": "adaptive", "clip": 0.05}},
    "average": {
        "train": {"validations": 16},
        "optimizer": {"average": "nt", "name": "sgd", "rate": 40.0, "schedule": "constant", "warmup": 0},
    },
}


def trained(text: Path, out: Path, choice: dict[str, Any], stop_at: int = -1) -> list[tuple[str, dict[str, Any]]]:
    events: list[tuple[str, dict[str, Any]]] = []

    def tell(kind: str, **told: Any) -> None:
        events.append((kind, told))
        if kind == "step" and told["step"] == stop_at:
            raise Stop

    train = {"rows": 4, "chunk": 8, "checkpoint_seconds": 1e-9, "validations": 8, "patience": 1000, "seed": 3}
    train |= choice.get("train", {})
    settings = {"model": {"dropout": 0.2, "recurrent_dropout": 0.2}, **choice, "train": train}
    try:
        recurra.train("language", text, out=out, settings=settings, tell=tell, steps=16, hidden=6, layers=2, threads=1)
    except Stop:
        assert stop_at >= 0
    return events


def bits_of(out: Path) -> dict[str, Any]:
    last, _ = storage.newest(out / "checkpoints", FILES | {"average.safetensors"})
    assert last is not None
    progress = json.loads((last / "state.json").read_text())["progress"]
    files = {path.name: path.read_bytes() for path in last.glob("*.safetensors")}
    return files | {
        "best": (out / "best" / "model.safetensors").read_bytes(),
        "progress": {key: value for key, value in progress.items() if key != "seconds"},
    }


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_acts_in_a_run_and_resumes_exactly(
    name: str, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    events = trained(text, tmp_path / "straight", CHOICES[name])
    first = trained(text, tmp_path / "broken", CHOICES[name], stop_at=13)
    trained(text, tmp_path / "broken", CHOICES[name])
    straight = bits_of(tmp_path / "straight")
    assert bits_of(tmp_path / "broken") == straight
    trained(text, tmp_path / "without", {section: {"warmup": 0} for section in CHOICES[name] if section == "optimizer"})
    assert bits_of(tmp_path / "without")["model.safetensors"] != straight["model.safetensors"]
    steps = [told for kind, told in events if kind == "step"]
    if name in ("omega", "flossing"):
        assert [name in told for told in steps] == [True] * (16 if name == "omega" else 12) + [False] * (
            0 if name == "omega" else 4
        )
    if name in ("step", "adaptive"):
        assert straight["progress"]["clipped"] > 10
    if name == "average":
        assert any(kind == "averaging" for kind, _ in first) and "average.safetensors" in straight
    last = [json.loads(line) for line in (tmp_path / "broken" / "log.jsonl").read_text().splitlines()]
    said = next(line for line in last if line["event"] == "gradients")
    assert said["steps"] == 16 and said["median"] > 0


@pytest.mark.parametrize(
    ("wanted", "cell", "words"),
    [
        ({"omega": 1.0}, "window", "regularize.omega wants gradients that flow back"),
        ({"flossing": 20}, "elman", "20 Lyapunov exponents of a state of 6 numbers"),
    ],
)
def test_penalties_that_a_network_cannot_have_are_refused_before_there_is_a_run(
    wanted: dict[str, Any], cell: str, words: str, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=words):
        recurra.train(
            "language", text, out=tmp_path / "run", cell=cell, hidden=6, steps=5, settings={"regularize": wanted}
        )
    assert not (tmp_path / "run" / "config.toml").exists()


def test_the_range_test_of_the_command_line_writes_a_page_and_trains_nothing(text: Path, shell: Any) -> None:
    shape = ["--steps", "40", "--hidden", "8", "--set", "train.rows=4", "--set", "train.chunk=8", "--threads", "1"]
    answer = shell("train", "language", text, "--out", "runs/some", "--find-lr", "--json", *shape)
    assert answer.code == 0, answer.err
    found = json.loads(answer.out)
    assert len(found["rates"]) == len(found["losses"]) == len(found["smoothed"]) > 100
    assert 1e-4 < found["suggested"] < 1
    page = Path(found["page"]).read_text(encoding="utf-8")
    assert "Plotly.newPlot" in page and 'src="http' not in page
    assert not Path("runs/some").exists()
    again = shell("train", "language", text, "--find-lr", *shape)
    assert f"--set optimizer.rate={found['suggested']:g}" in again.out
    assert Path("runs/text-find-lr.html").exists() and not Path("runs/text").exists()
