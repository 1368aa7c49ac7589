"""Where states go and stay, held against systems whose fixed points are known, plain sums and brute force."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from test_probe import one
from torch import Tensor, nn

from recurra import probe
from recurra.cells import CELLS, GRU, LSTM, Cell, Elman
from recurra.errors import UsageError
from recurra.state import flat, tmap, unflat


def test_a_path_is_on_the_axes_of_most_variance_and_ends_where_its_row_ends() -> None:
    torch.manual_seed(0)
    cell, xs, lengths = GRU(2, 5).double(), torch.randn(3, 9, 2, dtype=torch.float64), torch.tensor([9, 4, 1])
    losses = probe.losses_of(cell, xs, lengths=lengths)
    track = probe.record(cell, losses).tracks[0]
    found = probe.trajectory(track, axes=2)
    ys = cell.unroll(xs, cell.initial_state(3), lengths)[0].detach().numpy()
    seen = np.concatenate([ys[row, :length] for row, length in enumerate(lengths.tolist())])
    spread = np.linalg.svd(seen - seen.mean(0), compute_uv=False) ** 2
    np.testing.assert_allclose(found.share, (spread / spread.sum())[:2], rtol=1e-9)
    np.testing.assert_allclose(found.axes @ found.axes.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(found.points[0], (ys[0] - seen.mean(0)) @ found.axes.T, atol=1e-12)
    np.testing.assert_allclose(found.on(ys[0]), found.points[0], atol=1e-12)
    assert np.isnan(found.points[1, 4:]).all() and np.isfinite(found.points[1, :4]).all()
    with pytest.raises(UsageError, match="no state called 'c'"):
        probe.trajectory(track, "c")


class Affine(Cell):
    """s' = A s + x."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.input_size = self.output_size = len(matrix)
        self.matrix = nn.Parameter(matrix)

    def initial_state(self, batch: int) -> Tensor:
        return self.matrix.new_zeros(batch, self.output_size)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        s = state @ self.matrix.T + u
        return s, s


def tanh_of(weights: Tensor, bias: Tensor) -> Elman:
    """h' = tanh(W h + b), with no say of the input."""
    cell = Elman(1, len(bias)).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        cell.weight_hh.copy_(weights)
        cell.bias_hh.copy_(bias)
    return cell


def test_a_linear_network_stays_at_one_point_and_returns_by_its_eigenvalues() -> None:
    torch.manual_seed(1)
    matrix = torch.randn(4, 4, dtype=torch.float64) * 0.4
    x = torch.randn(4, dtype=torch.float64)
    found = probe.fixed_points(Affine(matrix), x, torch.randn(8, 4, dtype=torch.float64))
    wanted = np.linalg.solve(np.eye(4) - matrix.numpy(), x.numpy())
    np.testing.assert_allclose(found.states, wanted[None], atol=1e-9)
    assert found.started.tolist() == [8] and found.speed[0] < 1e-9
    wanted = np.linalg.eigvals(matrix.numpy())
    np.testing.assert_allclose(np.sort(np.abs(found.eigenvalues[0])), np.sort(np.abs(wanted)), rtol=1e-9)
    assert found.stable.tolist() == [bool(np.abs(wanted).max() < 1)]


def test_a_unit_that_holds_two_values_has_a_point_between_them_that_is_not_stable() -> None:
    """h = tanh(2 h): 0, where the slope is 2, and the two others, where it is 2 (1 - h^2)."""
    cell = tanh_of(torch.tensor([[2.0]]), torch.zeros(1))
    starts = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None]
    found = probe.fixed_points(cell, torch.zeros(1), cell.initial_state(21)._replace(h=starts))
    h = 0.5
    for _ in range(200):
        h = math.tanh(2 * h)
    order = np.argsort(found.states[:, 0])
    np.testing.assert_allclose(found.states[order, 0], [-h, 0, h], atol=1e-7)
    assert found.stable[order].tolist() == [True, False, True]
    np.testing.assert_allclose(found.eigenvalues[order, 0].real, [2 * (1 - h * h), 2, 2 * (1 - h * h)], rtol=1e-6)
    assert found.started.sum() == 21 and found.names == ["h"]
    assert "3 fixed points were found from 21 of 21 states: 2 stable, 0 saddles" in found.words[0]


def test_a_unit_that_leaps_from_side_to_side_is_not_stable_between_them() -> None:
    """h' = tanh(-2 h): the slope at 0 is -2."""
    cell = tanh_of(torch.tensor([[-2.0]]), torch.zeros(1))
    found = probe.fixed_points(cell, torch.zeros(1), cell.initial_state(1))
    assert found.stable.tolist() == [False] and found.eigenvalues[0, 0] == pytest.approx(-2)


def test_two_such_units_have_saddles_between_four_stable_corners() -> None:
    cell = tanh_of(2 * torch.eye(2), torch.zeros(2))
    grid = torch.linspace(-1, 1, 9, dtype=torch.float64)
    found = probe.fixed_points(
        cell, torch.zeros(1), cell.initial_state(81)._replace(h=torch.cartesian_prod(grid, grid))
    )
    outside = (np.abs(found.eigenvalues) > 1).sum(1)
    assert sorted(outside.tolist()) == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert "9 fixed points were found from 81 of 81 states: 4 stable, 4 saddles" in found.words[0]


def test_what_starts_at_nothing_is_found_too() -> None:
    assert probe.fixed_points(Affine(torch.eye(2) * 0.5), torch.zeros(2), torch.zeros(3, 2)).states.tolist() == [[0, 0]]
    found = probe.fixed_points(Affine(torch.eye(2) * 0.5), torch.ones(2), torch.zeros(3, 2))
    np.testing.assert_allclose(found.states, [[2, 2]])


def test_a_state_that_never_rests_is_not_said_to_rest() -> None:
    """s' = s + 1."""
    found = probe.fixed_points(Affine(torch.eye(1)), torch.ones(1), torch.zeros(3, 1))
    assert not len(found.states) and "No fixed point" in found.words[0]


@pytest.mark.parametrize("name", [name for name, kind in CELLS.items() if not kind.tokens])
def test_every_cell_stays_where_it_is_said_to_stay(name: str) -> None:
    cell, xs = one(name, rows=4)
    before = {key: value.clone() for key, value in cell.state_dict().items()}
    _, states = cell.unroll(xs, cell.initial_state(4))
    x = xs.new_zeros(xs.shape[2])
    found = probe.fixed_points(cell, x, states)
    like = tmap(lambda leaf: leaf[:1], states)
    for row in found.states:
        state = unflat(like, torch.tensor(row)[None])
        with torch.no_grad():
            after = cell(x[None], state)[1]
        assert (flat(after) - flat(state)).norm() < 1e-3
    assert all(torch.equal(value, before[key]) for key, value in cell.state_dict().items())


def test_fixed_points_of_too_large_a_state_are_refused() -> None:
    cell = LSTM(1, 600)
    with pytest.raises(UsageError, match="1200 numbers"):
        probe.fixed_points(cell, torch.zeros(1), cell.initial_state(1))


# --- neighbours ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", ["cosine", "euclidean"])
def test_neighbours_are_those_that_all_distances_say(measure: Any) -> None:
    torch.manual_seed(2)
    corpus, queries = torch.randn(40, 6).double(), torch.randn(7, 6).double()
    found = probe.neighbours(queries, corpus, 4, measure=measure)
    for at, query in enumerate(queries):
        if measure == "cosine":
            all_ = nn.functional.cosine_similarity(query[None], corpus).numpy()
            order = np.argsort(-all_)[:4]
        else:
            all_ = np.sqrt(((query - corpus) ** 2).sum(1).numpy())
            order = np.argsort(all_)[:4]
        assert found.steps[at].tolist() == order.tolist()
        np.testing.assert_allclose(found.nearness[at], all_[order], rtol=1e-9)


def test_a_step_and_those_around_it_are_no_neighbours_of_their_own() -> None:
    corpus = torch.arange(20.0)[:, None] + 1
    own = torch.tensor([3, 10])
    found = probe.neighbours(corpus[own], corpus, 2, measure="euclidean", own=own, apart=3)
    assert sorted(found.steps[0].tolist()) == [0, 6] and sorted(found.steps[1].tolist()) == [7, 13]
    with pytest.raises(UsageError, match="20 neighbours"):
        probe.neighbours(corpus[own], corpus, 20, own=own)
    with pytest.raises(UsageError, match=r"wanted \[q, units\]"):
        probe.neighbours(corpus[0], corpus)


# --- attention ----------------------------------------------------------------------------------------------------------


def test_entropy_and_coverage_are_plain_sums() -> None:
    weights = np.array([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4])
    found = probe.attention(weights)
    np.testing.assert_allclose(found.entropy, [0, 1, 2])
    np.testing.assert_allclose(found.places, [1, 2, 4])
    np.testing.assert_allclose(found.coverage, [1.75, 0.75, 0.25, 0.25])
    assert found.peak.tolist() == [0, 0, 0]
    again = probe.attention(np.eye(3)[[0, 1, 1, 1]])
    assert "goes on or stays 100% of the time; 1 places were passed over" in again.words[0]
    assert "1 looked at more than 2 times" in again.words[0]
    for wrong in (np.ones((2, 3)), np.ones(3) / 3, np.zeros((0, 3)), np.array([[1.5, -0.5]])):
        with pytest.raises(UsageError, match="each row summing to 1"):
            probe.attention(wrong)
