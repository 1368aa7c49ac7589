"""Cells against NumPy in float64, written from the equations of the papers; lectures' numbers; starts, penalties, noise.

An oracle knows nothing of torch: it is a function of the weights (a dict of arrays), the inputs `[time, inputs]` of one row
and its start state (a tuple of arrays), and gives the outputs `[time, ...]` and the last state.
"""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import recurra
from recurra import init, regularize
from recurra.cells import (
    CELLS,
    GRU,
    LSTM,
    MGU,
    SRU,
    Block,
    Cell,
    Convolved,
    CoupledLSTM,
    Elman,
    Jordan,
    LayerNormGRU,
    LayerNormLSTM,
    Leaky,
    LearntStart,
    MinGRU,
    MinLSTM,
    PeepholeLSTM,
    Projected,
    ProjectedLSTM,
    RandomStart,
    Residual,
    Stacked,
    Window,
    Zoneout,
)
from recurra.cells.layouts import from_concatenated, to_concatenated, with_update_gate_swapped
from recurra.state import leaves, tmap

Array = np.ndarray
Weights = dict[str, Array]
Row = tuple[Array, ...]  # the state of one row
Oracle = Callable[[Weights, Array, Row], tuple[Array, Row]]


# --- oracles ---------------------------------------------------------------------------------------------------------


def sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


ACT = {"tanh": np.tanh, "relu": lambda a: np.maximum(a, 0), "logistic": sigmoid, "identity": lambda a: a}


def layer_norm(a: Array, gain: Array, shift: Array | float = 0.0) -> Array:
    return gain * (a - a.mean()) / np.sqrt(((a - a.mean()) ** 2).mean() + 1e-5) + shift


def elman(w: Weights, xs: Array, state: Row, act: str) -> tuple[Array, Row]:
    (h,), ys = state, []
    for x in xs:
        h = ACT[act](w["weight_ih"] @ x + w["bias_ih"] + w["weight_hh"] @ h + w["bias_hh"])
        ys.append(h)
    return np.stack(ys), (h,)


def jordan(w: Weights, xs: Array, state: Row, act: str = "tanh", out: str = "tanh") -> tuple[Array, Row]:
    (y,), ys = state, []
    for x in xs:
        h = ACT[act](w["weight_ih"] @ x + w["weight_hh"] @ y + w["bias_ih"])
        y = ACT[out](w["weight_ho"] @ h + w["bias_ho"])
        ys.append(y)
    return np.stack(ys), (y,)


def leaky(w: Weights, xs: Array, state: Row, act: str = "tanh", elapsed: bool = False) -> tuple[Array, Row]:
    (h,), ys = state, []
    for features in xs:
        x, dt = (features[:-1], features[-1]) if elapsed else (features, 1.0)
        target = ACT[act](w["weight_ih"] @ x + w["weight_hh"] @ h + w["bias_ih"])
        h = target + (h - target) * np.exp(-dt / np.exp(w["log_tau"]))  # tau dh/dt = target - h, solved
        ys.append(h)
    return np.stack(ys), (h,)


def lstm(w: Weights, xs: Array, state: Row, candidate: Callable[[Array], Array] = np.tanh) -> tuple[Array, Row]:
    (h, c), ys = state, []
    for x in xs:
        i, f, g, o = np.split(w["weight_ih"] @ x + w["bias_ih"] + w["weight_hh"] @ h + w["bias_hh"], 4)
        c = sigmoid(f) * c + sigmoid(i) * candidate(g)
        h = sigmoid(o) * np.tanh(c)
        if "weight_hr" in w:  # Sak et al.: what is said, and recurs, is a projection
            h = w["weight_hr"] @ h
        ys.append(h)
    return np.stack(ys), (h, c)


def lstm_peephole(w: Weights, xs: Array, state: Row) -> tuple[Array, Row]:
    (h, c), ys = state, []
    for x in xs:
        i, f, g, o = np.split(w["weight_ih"] @ x + w["weight_hh"] @ h + w["bias_ih"], 4)
        i, f = sigmoid(i + w["peephole_input"] * c), sigmoid(f + w["peephole_forget"] * c)
        c = f * c + i * np.tanh(g)
        h = sigmoid(o + w["peephole_output"] * c) * np.tanh(c)
        ys.append(h)
    return np.stack(ys), (h, c)


def lstm_coupled(w: Weights, xs: Array, state: Row) -> tuple[Array, Row]:
    (h, c), ys = state, []
    for x in xs:
        f, g, o = np.split(w["weight_ih"] @ x + w["weight_hh"] @ h + w["bias_ih"], 3)
        c = sigmoid(f) * c + (1 - sigmoid(f)) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        ys.append(h)
    return np.stack(ys), (h, c)


def lstm_norm_sums(w: Weights, xs: Array, state: Row) -> tuple[Array, Row]:
    (h, c), ys = state, []
    for x in xs:
        of_input, of_state = w["weight_ih"] @ x, w["weight_hh"] @ h
        sums = layer_norm(of_input, w["gain_ih"]) + layer_norm(of_state, w["gain_hh"]) + w["bias_ih"]
        i, f, g, o = np.split(sums, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(layer_norm(c, w["gain_c"], w["bias_c"]))
        ys.append(h)
    return np.stack(ys), (h, c)


def lstm_norm_gates(w: Weights, xs: Array, state: Row) -> tuple[Array, Row]:
    (h, c), ys = state, []
    gains, biases = np.split(w["gain_hh"], 4), np.split(w["bias_ih"], 4)
    for x in xs:
        sums = np.split(w["weight_ih"] @ x + w["weight_hh"] @ h, 4)
        i, f, g, o = (layer_norm(a, gain, bias) for a, gain, bias in zip(sums, gains, biases, strict=True))
        c = layer_norm(sigmoid(f) * c + sigmoid(i) * np.tanh(g), w["gain_c"], w["bias_c"])
        h = sigmoid(o) * np.tanh(c)
        ys.append(h)
    return np.stack(ys), (h, c)


def gru(w: Weights, xs: Array, state: Row, reset: str) -> tuple[Array, Row]:
    (h,), ys = state, []
    (ir, iz, i_n), (hr, hz, hn) = np.split(w["weight_ih"], 3), np.split(w["weight_hh"], 3)
    (bir, biz, bin_), (bhr, bhz, bhn) = np.split(w["bias_ih"], 3), np.split(w["bias_hh"], 3)
    for x in xs:
        r, z = sigmoid(ir @ x + bir + hr @ h + bhr), sigmoid(iz @ x + biz + hz @ h + bhz)
        back = hn @ (r * h) + bhn if reset == "before" else r * (hn @ h + bhn)
        h = (1 - z) * np.tanh(i_n @ x + bin_ + back) + z * h
        ys.append(h)
    return np.stack(ys), (h,)


def gru_norm(w: Weights, xs: Array, state: Row) -> tuple[Array, Row]:
    (h,), ys = state, []
    n = len(h)
    for x in xs:
        a, b = w["weight_ih"] @ x, w["weight_hh"] @ h
        gates = layer_norm(a[: 2 * n], w["gain_ih"][: 2 * n]) + layer_norm(b[: 2 * n], w["gain_hh"][: 2 * n])
        r, z = np.split(sigmoid(gates + w["bias_ih"][: 2 * n]), 2)
        back = r * (layer_norm(b[2 * n :], w["gain_hh"][2 * n :]) + w["bias_hn"])
        candidate = np.tanh(layer_norm(a[2 * n :], w["gain_ih"][2 * n :]) + w["bias_ih"][2 * n :] + back)
        h = (1 - z) * candidate + z * h
        ys.append(h)
    return np.stack(ys), (h,)


def mgu(w: Weights, xs: Array, state: Row) -> tuple[Array, Row]:
    (h,), ys = state, []
    (i_f, i_n), (hf, hn), (bf, bn) = (np.split(w[name], 2) for name in ("weight_ih", "weight_hh", "bias_ih"))
    for x in xs:
        f = sigmoid(i_f @ x + bf + hf @ h)
        h = (1 - f) * h + f * np.tanh(i_n @ x + bn + hn @ (f * h))
        ys.append(h)
    return np.stack(ys), (h,)


def window(w: Weights, xs: Array, state: Row) -> tuple[Array, Row]:
    seen, ys = list(state[0]), []
    for x in xs:
        seen = [*seen[1:], x]
        ys.append(np.tanh(w["weight_ih"] @ np.concatenate(seen) + w["bias_ih"]))
    return np.stack(ys), (np.stack(seen),)


ORACLES: dict[str, tuple[Callable[[], Cell], Oracle]] = {
    "elman": (lambda: Elman(4, 3), partial(elman, act="tanh")),
    "elman relu": (lambda: Elman(4, 3, activation="relu"), partial(elman, act="relu")),
    "elman logistic": (lambda: Elman(4, 3, activation="logistic"), partial(elman, act="logistic")),
    "elman identity": (lambda: Elman(4, 3, activation="identity"), partial(elman, act="identity")),
    "jordan": (lambda: Jordan(4, 3), jordan),
    "jordan, two outputs": (
        lambda: Jordan(4, 3, outputs=2, activation="logistic", output_activation="identity"),
        partial(jordan, act="logistic", out="identity"),
    ),
    "jordan, five outputs": (
        lambda: Jordan(4, 3, outputs=5, activation="relu", output_activation="logistic"),
        partial(jordan, act="relu", out="logistic"),
    ),
    "leaky": (lambda: Leaky(4, 3), leaky),
    "leaky, elapsed": (
        lambda: Leaky(4, 3, activation="logistic", elapsed=True),
        partial(leaky, act="logistic", elapsed=True),
    ),
    "lstm": (lambda: LSTM(4, 3), lstm),
    "lstm, sigmoid candidate": (lambda: LSTM(4, 3, candidate="sigmoid"), partial(lstm, candidate=sigmoid)),
    "lstm peephole": (lambda: PeepholeLSTM(4, 3), lstm_peephole),
    "lstm coupled": (lambda: CoupledLSTM(4, 3), lstm_coupled),
    "lstm projected": (lambda: ProjectedLSTM(4, 5, projection=2), lstm),
    "lstm layer norm, sums": (lambda: LayerNormLSTM(4, 3, norm="sums"), lstm_norm_sums),
    "lstm layer norm, gates": (lambda: LayerNormLSTM(4, 3, norm="gates"), lstm_norm_gates),
    "gru": (lambda: GRU(4, 3), partial(gru, reset="after")),
    "gru, reset before": (lambda: GRU(4, 3, reset="before"), partial(gru, reset="before")),
    "gru layer norm": (lambda: LayerNormGRU(4, 3), gru_norm),
    "mgu": (lambda: MGU(4, 3), mgu),
    "window": (lambda: Window(4, 3, window=3), window),
    "window longer than the sequence": (lambda: Window(4, 3, window=7), window),
}


def random_like(state: Any) -> Any:
    return tmap(torch.randn_like, state)


@torch.no_grad()
def shaken(cell: Cell) -> Cell:
    """The cell in float64 with every parameter moved: a gain of one or a bias of zero would hide that it is left out."""
    cell = cell.double()
    for parameter in cell.parameters():
        parameter.add_(0.5 * torch.randn_like(parameter))
    return cell


def close(ours: Any, expected: Any) -> None:
    np.testing.assert_allclose(torch.as_tensor(ours).detach().numpy(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ORACLES)
def test_a_cell_gives_the_numbers_of_its_papers_equations(name: str) -> None:
    torch.manual_seed(0)
    build, oracle = ORACLES[name]
    cell = shaken(build())
    weights = {name: parameter.detach().numpy() for name, parameter in cell.named_parameters()}
    xs = 2 * torch.rand(2, 5, cell.input_size, dtype=torch.float64)  # positive, for one of them may be a time
    state = random_like(cell.initial_state(2))
    ys, last = cell.unroll(xs, state)
    for row in range(2):
        expected_ys, expected_last = oracle(weights, xs[row].numpy(), tuple(leaf[row].numpy() for leaf in state))
        close(ys[row], expected_ys)
        for leaf, expected in zip(last, expected_last, strict=True):
            close(leaf[row], expected)


# --- how lectures write them -----------------------------------------------------------------------------------------


def numbers(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).normal(size=shape)


def loaded(cell: Cell, weights: dict[str, Tensor]) -> Cell:
    cell = cell.double()
    cell.load_state_dict(weights)
    return cell


def lecture_gru(w: Weights, xs: Array, h: Array) -> Array:
    ys = []
    for x in xs:
        r = sigmoid(w["W_r"] @ x + w["U_r"] @ h + w["b_r"])
        z = sigmoid(w["W_z"] @ x + w["U_z"] @ h + w["b_z"])
        h = (1 - z) * h + z * np.tanh(w["W_h"] @ x + w["U_h"] @ (r * h) + w["b_h"])
        ys.append(h)
    return np.stack(ys)


def test_a_gru_whose_update_gate_renews_is_ours_with_the_gate_swapped() -> None:
    shapes = {"W": (3, 4), "U": (3, 3), "b": (3,)}
    rng = np.random.default_rng(0)
    w = {f"{kind}_{gate}": rng.normal(size=shapes[kind]) for kind in shapes for gate in "rzh"}
    stacked = {kind: torch.from_numpy(np.concatenate([w[f"{kind}_{gate}"] for gate in "rzh"])) for kind in shapes}
    theirs = {
        "weight_ih": stacked["W"],
        "weight_hh": stacked["U"],
        "bias_ih": stacked["b"],
        "bias_hh": torch.zeros(9, dtype=torch.float64),
    }
    xs, h = rng.normal(size=(5, 4)), rng.normal(size=3)
    cell = loaded(GRU(4, 3, reset="before"), with_update_gate_swapped(theirs))
    ys, _ = cell.unroll(torch.from_numpy(xs)[None], type(cell.initial_state(1))(torch.from_numpy(h)[None]))
    close(ys[0], lecture_gru(w, xs, h))
    for name, back in with_update_gate_swapped(with_update_gate_swapped(theirs)).items():
        assert torch.equal(back, theirs[name])


def lecture_lstm(weight: Array, bias: Array, xs: Array, state: Row, first: str, rows: str) -> tuple[Array, Row]:
    (h, c), ys = state, []
    for x in xs:
        sums = weight @ np.concatenate([h, x] if first == "h" else [x, h]) + bias
        gate = dict(zip(rows, np.split(sums, 4), strict=True))
        c = sigmoid(gate["f"]) * c + sigmoid(gate["i"]) * np.tanh(gate["g"])
        h = sigmoid(gate["o"]) * np.tanh(c)
        ys.append(h)
    return np.stack(ys), (h, c)


@pytest.mark.parametrize("first", ["h", "x"])
@pytest.mark.parametrize("rows", ["ifog", "ifgo", "fgoi"])
def test_a_concatenated_lstm_gives_the_lectures_numbers(first: Any, rows: str) -> None:
    weight, bias, xs, h, c = numbers(12, 7), numbers(12), numbers(5, 4), numbers(3), numbers(3) ** 2
    weights = from_concatenated(torch.from_numpy(weight), torch.from_numpy(bias), units=3, first=first, rows=rows)
    cell = loaded(LSTM(4, 3), weights)
    state = type(cell.initial_state(1))(torch.from_numpy(h)[None], torch.from_numpy(c)[None])
    ys, last = cell.unroll(torch.from_numpy(xs)[None], state)
    expected, expected_last = lecture_lstm(weight, bias, xs, (h, c), first, rows)
    close(ys[0], expected)
    for leaf, of_lecture in zip(last, expected_last, strict=True):
        close(leaf[0], of_lecture)


@pytest.mark.parametrize("first", ["h", "x"])
def test_a_concatenated_elman_network_gives_the_lectures_numbers(first: Any) -> None:
    weight, bias, xs, h = numbers(3, 7), numbers(3), numbers(5, 4), numbers(3)
    cell = loaded(
        Elman(4, 3), from_concatenated(torch.from_numpy(weight), torch.from_numpy(bias), units=3, first=first)
    )
    ys, _ = cell.unroll(torch.from_numpy(xs)[None], type(cell.initial_state(1))(torch.from_numpy(h)[None]))
    for x, y in zip(xs, ys[0], strict=True):
        h = np.tanh(weight @ np.concatenate([h, x] if first == "h" else [x, h]) + bias)
        close(y, h)


ROWS = st.one_of(st.just(""), st.permutations("ifgo").map("".join))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), ROWS, st.sampled_from(["h", "x"]), st.booleans())
def test_concatenated_weights_come_back_as_they_went(
    units: int, inputs: int, rows: str, first: Any, biased: bool
) -> None:
    blocks = max(1, len(rows))
    weight = torch.from_numpy(numbers(blocks * units, units + inputs))
    bias = torch.from_numpy(numbers(blocks * units)) if biased else None
    ours = from_concatenated(weight, bias, units=units, first=first, rows=rows)
    loaded(LSTM(inputs, units) if rows else Elman(inputs, units), ours)
    back, back_bias = to_concatenated(ours, first=first, rows=rows)
    assert torch.equal(back, weight)
    assert torch.equal(back_bias, torch.zeros_like(back_bias) if bias is None else bias)


@pytest.mark.parametrize("first", ["h", "x"])
@pytest.mark.parametrize("rows", ["ifog", "gofi"])
def test_an_lstm_written_out_concatenated_gives_its_numbers_in_the_lectures_form(first: Any, rows: str) -> None:
    torch.manual_seed(0)
    cell = shaken(LSTM(4, 3))  # with two biases, which become one
    weight, bias = to_concatenated(cell.state_dict(), first=first, rows=rows)
    xs, state = torch.randn(1, 5, 4, dtype=torch.float64), random_like(cell.initial_state(1))
    start = tuple(leaf[0].numpy() for leaf in state)
    expected, _ = lecture_lstm(weight.numpy(), bias.numpy(), xs[0].numpy(), start, first, rows)
    close(cell.unroll(xs, state)[0][0], expected)


@pytest.mark.parametrize(
    ("weight", "bias", "rows"),
    [
        ((12, 7), (12,), ""),  # an LSTM's, said to be Elman's
        ((3, 7), (3,), "ifog"),
        ((7, 12), (12,), "ifog"),  # transposed
        ((12, 3), (12,), "ifog"),  # no inputs
        ((12,), (12,), "ifog"),
        ((12, 7), (12,), "ifo"),
        ((12, 7), (12,), "iffo"),
        ((12, 7), (12,), "ifox"),
        ((12, 7), (11,), "ifog"),
        ((12, 7), (3,), "ifog"),
        ((3, 7), (4,), ""),
    ],
)
def test_concatenated_weights_that_do_not_fit_are_refused_in_words(
    weight: tuple[int, ...], bias: tuple[int, ...], rows: str
) -> None:
    with pytest.raises(recurra.UsageError):
        from_concatenated(torch.zeros(weight), torch.zeros(bias), units=3, rows=rows)


@torch.no_grad()
def with_ones(cell: Cell) -> Cell:
    for name, parameter in cell.named_parameters():
        parameter.fill_(0.0 if "bias" in name else 1.0)
    return cell


@pytest.mark.parametrize(
    ("cell", "inputs", "outputs"),
    [
        (lambda: Projected(Elman(2, 2, activation="identity"), 2), [1.0, 1.0, 2.0], [4.0, 12.0, 32.0]),
        (lambda: Projected(Elman(2, 2, activation="identity"), 2), [2.0, 1.0, 1.0], [8.0, 20.0, 44.0]),
        (
            lambda: Jordan(2, 2, activation="identity", output_activation="identity"),
            [1.0, 1.0, 2.0],
            [4.0, 20.0, 88.0],
        ),
    ],
    ids=["elman", "elman in another order", "jordan"],
)
def test_the_lectures_networks_of_ones_give_their_worked_numbers(
    cell: Callable[[], Cell], inputs: list[float], outputs: list[float]
) -> None:
    network = with_ones(cell())
    xs = torch.tensor(inputs)[None, :, None].expand(1, 3, 2)  # both inputs alike, and so both outputs
    ys, _ = network.unroll(xs, network.initial_state(1))
    assert ys[0].tolist() == [[y, y] for y in outputs]


# --- docstrings ------------------------------------------------------------------------------------------------------


def count(cell: Cell) -> int:
    return sum(parameter.numel() for parameter in cell.parameters())


@pytest.mark.parametrize("name", CELLS)
def test_the_number_of_parameters_is_the_formula_of_the_docstring(name: str) -> None:
    formulas = re.findall(r"^ *Parameters: (.+)$", CELLS[name].__doc__ or "", re.MULTILINE)
    assert len(formulas) == 1, f"{CELLS[name].__name__} has {len(formulas)} lines of parameters in its docstring"
    values = {
        "inputs": 7,
        "units": 6,
        "outputs": 6,
        "projection": 3,
        "window": 8,
        "width": 2,
        "rounds": 5,
        "heads": 1,
        "channels": 6,
        "places": 1,
        "kernel": 3,
    }
    assert count(CELLS[name](7, 6)) == eval(formulas[0], {"__builtins__": {}}, values)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("line", ["State", "Output", "Reference"])
def test_the_docstring_of_a_cell_says_what_it_must(name: str, line: str) -> None:
    assert re.search(rf"^ *{line}: \S", CELLS[name].__doc__ or "", re.MULTILINE)


def test_options_change_the_number_of_parameters_as_the_docstrings_say() -> None:
    assert count(Leaky(7, 6, elapsed=True)) == count(Leaky(7, 6)) - 6
    assert count(LayerNormLSTM(7, 6, norm="gates")) == count(LayerNormLSTM(7, 6)) - 4 * 6
    assert count(Jordan(7, 6, outputs=2)) == 6 * (7 + 2 + 1) + 2 * (6 + 1)
    assert count(ProjectedLSTM(7, 6, projection=4)) == 4 * 6 * (7 + 4 + 2) + 4 * 6
    assert count(Window(7, 6, window=3)) == 6 * (3 * 7 + 1)
    assert count(Projected(GRU(7, 6), 2)) == count(GRU(7, 6)) + 2 * (6 + 1)


# --- starts ----------------------------------------------------------------------------------------------------------


def blocks(cell: Any, parameter: str) -> dict[str, Array]:
    """The rows of a parameter by the names of their gates."""
    rows = np.split(getattr(cell, parameter).detach().numpy(), len(cell.blocks))
    return dict(zip(cell.blocks, rows, strict=True))


GATED: dict[
    str, tuple[Callable[[int, int], Any], str, float]
] = {  # the gate that keeps, and 1 where open means to keep
    "lstm": (LSTM, "forget", 1.0),
    "lstm peephole": (PeepholeLSTM, "forget", 1.0),
    "lstm coupled": (CoupledLSTM, "forget", 1.0),
    "lstm projected": (ProjectedLSTM, "forget", 1.0),
    "lstm layer norm": (LayerNormLSTM, "forget", 1.0),
    "gru": (GRU, "update", 1.0),
    "gru, reset before": (partial(GRU, reset="before"), "update", 1.0),
    "gru layer norm": (LayerNormGRU, "update", 1.0),
    "mgu": (MGU, "forget", -1.0),
    "mingru": (MinGRU, "update", -1.0),
    "sru": (SRU, "forget", 1.0),
}


@pytest.mark.parametrize("build", [Elman, LSTM, GRU, MGU, CoupledLSTM])
def test_orthogonal_makes_each_block_orthogonal(build: Callable[[int, int], Any]) -> None:
    cell = build(5, 4).double()
    init.orthogonal_(cell, gain=2.0)
    for block in blocks(cell, "weight_hh").values():
        np.testing.assert_allclose(block @ block.T, 4 * np.eye(4), atol=1e-12)


@pytest.mark.parametrize("build", [Elman, LSTM, GRU])
def test_identity_makes_each_block_the_identity_and_leaves_no_bias(build: Callable[[int, int], Any]) -> None:
    cell = build(5, 4)
    init.identity_(cell, scale=0.5)
    for block in blocks(cell, "weight_hh").values():
        np.testing.assert_array_equal(block, 0.5 * np.eye(4))
    assert not cell.bias_ih.any() and not cell.bias_hh.any()


def test_glorot_goes_by_the_size_of_a_block_and_not_of_all() -> None:
    torch.manual_seed(0)
    cell = LSTM(200, 100)
    init.glorot_(cell)
    for block in blocks(cell, "weight_ih").values():
        assert block.var() == pytest.approx(2 / (200 + 100), rel=0.05)


@pytest.mark.parametrize("name", GATED)
def test_forget_bias_is_on_the_gate_that_keeps_and_nowhere_else(name: str) -> None:
    build, gate, sign = GATED[name]
    cell = build(5, 4)
    init.forget_bias_(cell, 1.5)
    for block, values in blocks(cell, "bias_ih").items():
        np.testing.assert_array_equal(values, sign * 1.5 if block == gate else 0.0)
    assert not getattr(cell, "bias_hh", torch.zeros(1)).any()


@pytest.mark.parametrize("name", GATED)
def test_a_large_forget_bias_remembers_and_a_small_one_forgets(name: str) -> None:
    torch.manual_seed(0)
    cell = GATED[name][0](5, 4).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
    before = random_like(cell.initial_state(3))
    x = torch.randn(3, 5, dtype=torch.float64)
    for value, expected in [(40.0, before[-1]), (-40.0, 0 * before[-1])]:  # the last field is what remembers
        init.forget_bias_(cell, value)
        np.testing.assert_allclose(cell(x, before)[1][-1].detach().numpy(), expected.numpy(), atol=1e-12)


@pytest.mark.parametrize("name", GATED)
def test_chrono_biases_are_logarithms_of_the_times_asked_for(name: str) -> None:
    torch.manual_seed(0)
    build, gate, sign = GATED[name]
    cell = build(2, 400).double()
    init.chrono_(cell, longest=50.0)
    of_gate = blocks(cell, "bias_ih")
    times = np.exp(sign * of_gate[gate])
    assert 1 <= times.min() < 3 and 47 < times.max() <= 49
    assert times.mean() == pytest.approx(25, rel=0.1)
    for block, values in of_gate.items():
        if block != gate:
            np.testing.assert_array_equal(values, -of_gate[gate] if block == "input" else 0.0)
    assert not getattr(cell, "bias_hh", torch.zeros(1)).any()


def test_a_chrono_start_shares_out_a_minlstm_by_the_times() -> None:
    cell = MinLSTM(2, 400).double()
    init.chrono_(cell, longest=50.0)
    with torch.no_grad():
        cell.weight_ih.zero_()
    gate = cell.gates(cell.project(torch.zeros(1, 1, 2, dtype=torch.float64))[0], cell.initial_state(1))
    times = blocks(cell, "bias_ih")["forget"]
    np.testing.assert_allclose(gate.input[0].detach().numpy(), 1 / (1 + np.exp(times)), rtol=1e-12)


@pytest.mark.parametrize("build", [Elman, LSTM, GRU, Leaky])
def test_the_spectral_radius_of_each_block_is_the_one_asked_for(build: Callable[[int, int], Any]) -> None:
    torch.manual_seed(0)
    cell = build(5, 9).double()
    init.spectral_radius_(cell, 0.7)
    for block in blocks(cell, "weight_hh").values():
        assert np.abs(np.linalg.eigvals(block)).max() == pytest.approx(0.7, rel=1e-9)


@pytest.mark.parametrize(("asked", "given"), [(3, 3), (1, 1), (40, 9)])
def test_sparse_gives_each_row_its_number_of_connections(asked: int, given: int) -> None:
    torch.manual_seed(0)
    cell = GRU(5, 9)
    init.sparse_(cell, asked)
    heard = cell.weight_hh.detach().numpy() != 0
    assert (heard.sum(axis=1) == given).all()
    assert given == 9 or len(np.unique(heard, axis=0)) > 5  # drawn row by row


def test_sparse_weights_grow_small_as_connections_grow_many() -> None:
    torch.manual_seed(0)
    cell = Elman(1, 400)
    init.sparse_(cell, 16)
    weights = cell.weight_hh.detach().numpy()
    assert weights[weights != 0].std() == pytest.approx(1 / 4, rel=0.05)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("preset", init.PRESETS)
def test_every_start_works_on_every_cell(preset: str, name: str) -> None:
    torch.manual_seed(0)
    cell = CELLS[name](7, 6)  # type: ignore[call-arg]
    init.PRESETS[preset](cell)
    assert all(parameter.isfinite().all() for parameter in cell.parameters())


# --- penalties and limits --------------------------------------------------------------------------------------------


def reader() -> tuple[nn.Module, list[nn.Parameter]]:
    """A module with all kinds of parameters, moved from their starts, and the matrices among them."""
    torch.manual_seed(0)
    embedding, normed, slow, out = nn.Embedding(7, 4), LayerNormLSTM(4, 3), Leaky(3, 3), nn.Linear(3, 7)
    module = nn.ModuleList([embedding, shaken(normed), shaken(slow), out]).double()
    return module, [normed.weight_ih, normed.weight_hh, slow.weight_ih, slow.weight_hh, out.weight]


def test_the_penalty_is_the_sum_over_matrices_alone() -> None:
    module, matrices = reader()
    weights = [matrix.detach().numpy() for matrix in matrices]
    expected = sum(0.3 * np.abs(w).sum() + 0.7 / 2 * (w**2).sum() for w in weights)
    close(regularize.penalty(module, l1=0.3, l2=0.7), expected)
    close(regularize.penalty(module), 0.0)


def test_a_tied_embedding_is_not_penalised() -> None:
    module = nn.ModuleList([nn.Embedding(7, 3), nn.Linear(3, 7)])
    module[1].weight = module[0].weight
    assert regularize.penalised(module) == []


def test_the_gradient_added_is_that_of_the_penalty() -> None:
    module, matrices = reader()
    unused = matrices.pop()
    before = {}
    for parameter in module.parameters():
        if parameter is not unused:
            parameter.grad = torch.randn_like(parameter)
            before[parameter] = parameter.grad.clone()
    of_penalty = torch.autograd.grad(regularize.penalty(module, l1=0.3, l2=0.7), matrices)
    regularize.add_penalty_gradient(module, l1=0.3, l2=0.7)
    for matrix, gradient in zip(matrices, of_penalty, strict=True):
        close(matrix.grad, (before.pop(matrix) + gradient).numpy())
    assert unused.grad is None
    assert all(torch.equal(other.grad, gradient) for other, gradient in before.items())
    assert len(before) > 5  # biases, gains, time constants, embedding


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_activity_is_the_mean_square_of_outputs_and_of_their_changes(steps: int) -> None:
    ys = numbers(2, steps, 3)
    slow = (np.diff(ys, axis=1) ** 2).mean() if steps > 1 else 0.0
    of = partial(regularize.activity, torch.from_numpy(ys))
    close(of(ar=2.0), 2 * (ys**2).mean())
    close(of(tar=0.5), 0.5 * slow)
    close(of(ar=2.0, tar=0.5), 2 * (ys**2).mean() + 0.5 * slow)


def test_limited_norms_are_within_the_limit_and_small_rows_are_as_they_were() -> None:
    module, matrices = reader()
    with torch.no_grad():
        matrices[0][0] = 0.0  # a row of no norm has no direction to keep
    before = {parameter: parameter.detach().clone() for parameter in module.parameters()}
    norms = torch.cat([matrix.detach().norm(dim=1) for matrix in matrices])
    most = norms.median().item()
    regularize.limit_norms(module, most)
    for matrix in matrices:
        old, new = before.pop(matrix).numpy(), matrix.detach().numpy()
        length = np.linalg.norm(old, axis=1, keepdims=True)
        assert (np.linalg.norm(new, axis=1) <= most * (1 + 1e-12)).all()
        small = length[:, 0] <= most
        np.testing.assert_array_equal(new[small], old[small])
        np.testing.assert_allclose(new[~small], old[~small] * most / length[~small], rtol=1e-12)
    assert all(torch.equal(other, value) for other, value in before.items())


@pytest.mark.parametrize("share", [1.0, -0.1, math.nan])
def test_a_share_that_is_none_is_refused_in_words(share: float) -> None:
    with pytest.raises(recurra.UsageError, match="at least 0 and less than 1"):
        regularize.check_share(share, "the share")
    with pytest.raises(recurra.UsageError, match="at least 0 and less than 1"):
        Zoneout(LSTM(4, 3), share)
    with pytest.raises(recurra.UsageError, match="candidate_dropout"):
        LSTM(4, 3, candidate_dropout=share)


def test_a_share_comes_back_as_it_was() -> None:
    assert [regularize.check_share(share, "the share") for share in (0.0, 0.5, 0.99)] == [0.0, 0.5, 0.99]


# --- cells made of cells ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [LSTM, GRU, Jordan, CoupledLSTM])
def test_zoneout_mixes_old_and_new_by_its_share_in_eval(build: Callable[[int, int], Cell]) -> None:
    torch.manual_seed(0)
    inner = shaken(build(4, 3))
    cell = Zoneout(inner, 0.3).eval()
    x, before = torch.randn(2, 4, dtype=torch.float64), random_like(cell.initial_state(2))
    y, after = cell(x, before)
    for mixed, old, new in zip(after, before, inner(x, before)[1], strict=True):
        close(mixed, (0.3 * old + 0.7 * new).detach().numpy())
    assert torch.equal(y, after[0])


@torch.no_grad()
def test_zoneout_keeps_a_share_of_the_old_entries_in_training() -> None:
    torch.manual_seed(0)
    inner = shaken(LSTM(4, 50))
    cell = Zoneout(inner, 0.3).train()
    x, before = torch.randn(200, 4, dtype=torch.float64), random_like(cell.initial_state(200))
    _, after = cell(x, before)
    kept = [now == old for now, old in zip(after, before, strict=True)]
    for mask, mixed, new in zip(kept, after, inner(x, before)[1], strict=True):
        assert mask.double().mean().item() == pytest.approx(0.3, abs=0.02)
        close(mixed[~mask], new[~mask].numpy())
    both = (kept[0] & kept[1]).double().mean().item()
    assert both == pytest.approx(0.3**2, abs=0.02)  # each field has noise of its own


@torch.no_grad()
def test_zoneout_draws_anew_at_every_step() -> None:
    torch.manual_seed(0)
    cell = Zoneout(shaken(GRU(4, 50)), 0.3).train()
    start = random_like(cell.initial_state(200))
    ys, _ = cell.unroll(torch.randn(200, 2, 4, dtype=torch.float64), start)
    first, second = ys[:, 0] == start[0], ys[:, 1] == ys[:, 0]
    assert second.double().mean().item() == pytest.approx(0.3, abs=0.02)
    assert (first & second).double().mean().item() == pytest.approx(0.3**2, abs=0.02)


@pytest.mark.parametrize(
    "build",
    [lambda: Projected(GRU(4, 3), 3), lambda: Stacked([LSTM(4, 3), LSTM(3, 3)]), lambda: Window(4, 3)],
    ids=["projected", "stacked", "window"],
)
def test_zoneout_refuses_in_words_what_it_would_not_reach(build: Callable[[], Cell]) -> None:
    with pytest.raises(recurra.UsageError, match="not the first field of its state"):
        Zoneout(build(), 0.1)


def test_a_convolved_cell_is_its_equations() -> None:
    cell = Convolved(GRU(4, 3), width=3).double()
    xs, state = torch.randn(2, 6, 4).double(), tmap(torch.randn_like, cell.initial_state(2))
    seen = torch.cat([state.inputs, xs], dim=1)
    summed = F.conv1d(seen.mT, cell.weight_window.T[:, None], cell.bias_window, groups=4).mT
    expected, last = cell.cell.unroll(summed, state.cell)
    ys, after = cell.unroll(xs, state)
    torch.testing.assert_close(ys, expected)
    torch.testing.assert_close(after, type(after)(last, xs[:, -2:]))
    assert (
        sum(part.numel() for part in cell.parameters()) == sum(part.numel() for part in cell.cell.parameters()) + 4 * 4
    )
    with pytest.raises(recurra.UsageError, match="a width of 0"):
        Convolved(GRU(4, 3), width=0)
    with pytest.raises(recurra.UsageError, match="a convolution reads features"):
        Convolved(CELLS["hmm"](5, 3))
    with pytest.raises(recurra.UsageError, match="holds inputs of before, which zoneout must not mix"):
        Zoneout(Convolved(GRU(4, 4)), 0.5)


def test_a_block_is_its_equations() -> None:
    def normed(a: Array, norm: Any) -> Array:
        gain, shift = (p.detach().numpy() for p in (norm.weight, norm.bias))
        return gain * (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + norm.eps) + shift

    torch.manual_seed(0)
    block = shaken(Block(GRU(3, 3), inputs=4, width=2))
    xs, state = torch.randn(2, 5, 4, dtype=torch.float64), random_like(block.initial_state(2))
    ys, last = block.unroll(xs, state)
    past = xs.numpy() @ block.weight_in.detach().numpy().T
    plain, plain_last = block.cell.unroll(torch.from_numpy(normed(past, block.norm_below)), state)
    a = past + plain.detach().numpy()
    wide = normed(a, block.norm_above) @ block.widen.weight.detach().numpy().T + block.widen.bias.detach().numpy()
    wide *= np.vectorize(lambda w: 0.5 * (1 + math.erf(w / math.sqrt(2))))(wide)
    close(ys, a + wide @ block.narrow.weight.detach().numpy().T + block.narrow.bias.detach().numpy())
    close(last.h, plain_last.h.detach().numpy())
    inner = sum(p.numel() for p in block.cell.parameters())
    assert sum(p.numel() for p in block.parameters()) - inner == 3 * (2 * 2 * 3 + 2 + 5) + 3 * 4
    with pytest.raises(
        recurra.UsageError, match="has 4 inputs and 3 outputs; make them equal, and give the block inputs=4"
    ):
        Block(GRU(4, 3))


def test_a_residual_cell_adds_its_input() -> None:
    torch.manual_seed(0)
    inner = shaken(LSTM(4, 4))
    xs, state = torch.randn(2, 5, 4, dtype=torch.float64), random_like(inner.initial_state(2))
    ys, last = Residual(inner).unroll(xs, state)
    plain, plain_last = inner.unroll(xs, state)
    close(ys, (xs + plain).detach().numpy())
    close(Residual(inner)(xs[:, 0], state)[0], (xs + plain)[:, 0].detach().numpy())
    for ours, expected in zip(last, plain_last, strict=True):
        close(ours, expected.detach().numpy())


def test_a_learnt_start_gets_a_gradient_and_is_where_rows_start() -> None:
    torch.manual_seed(0)
    cell = LearntStart(LSTM(4, 3))
    ys, _ = cell.unroll(torch.randn(2, 5, 4), cell.initial_state(2))
    ys.sum().backward()
    starts = list(cell.start.parameters())
    assert len(starts) == 2
    for parameter in starts:
        assert parameter.grad is not None and parameter.grad.all()
        with torch.no_grad():
            parameter.add_(1.0)
    assert all((leaf == 1).all() and len(leaf) == 5 for leaf in leaves(cell.initial_state(5)))


def test_a_random_start_is_drawn_in_training_alone() -> None:
    torch.manual_seed(0)
    inner = LearntStart(LSTM(4, 30))  # whose own start is not all zeros
    with torch.no_grad():
        for parameter in inner.start.parameters():
            parameter.fill_(2.0)
    cell = RandomStart(inner, std=0.5).train()
    for one, other in zip(leaves(cell.initial_state(100)), leaves(cell.initial_state(100)), strict=True):
        assert (one != other).all()
        assert one.mean().item() == pytest.approx(2.0, abs=0.05)
        assert one.std().item() == pytest.approx(0.5, rel=0.05)
    assert all((leaf == 2.0).all() for leaf in leaves(cell.eval().initial_state(100)))


def test_candidate_dropout_is_the_seeds_and_of_training_alone() -> None:
    torch.manual_seed(0)
    cell = LSTM(4, 8, candidate_dropout=0.5)
    xs, state = torch.randn(3, 5, 4), random_like(cell.initial_state(3))

    def with_seed(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return cell.unroll(xs, state)[0]

    assert torch.equal(with_seed(1), with_seed(1))
    assert not torch.equal(with_seed(1), with_seed(2))
    plain = LSTM(4, 8)
    plain.load_state_dict(cell.state_dict())
    cell.eval()
    assert torch.equal(with_seed(1), with_seed(2))
    torch.testing.assert_close(with_seed(1), plain.unroll(xs, state)[0])


@torch.no_grad()
def test_candidate_dropout_drops_a_share_of_what_is_written_and_scales_the_rest() -> None:
    torch.manual_seed(0)
    cell = shaken(LSTM(4, 50, candidate_dropout=0.2)).train()
    x, empty = torch.randn(200, 4, dtype=torch.float64), cell.initial_state(200)
    written = cell(x, empty)[1].c  # nothing was remembered, so c' = i * g
    dropped = written == 0
    assert dropped.double().mean().item() == pytest.approx(0.2, abs=0.02)
    close(written[~dropped], (cell.eval()(x, empty)[1].c[~dropped] / 0.8).numpy())
