"""Products of bfloat16: sums, gates and states stay float32, and what is multiplied is rounded, each factor once."""

import copy
import os
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import recurra
from recurra import kernels
from recurra.cells import (
    GRU,
    LRU,
    LSTM,
    MGU,
    SRU,
    Cell,
    CoupledLSTM,
    Elman,
    Leaky,
    LiGRU,
    MinGRU,
    Packed,
    PeepholeLSTM,
    with_packed_weights,
)
from recurra.kernels import following, native
from recurra.recurrent import Bidirectional
from recurra.state import leaves, tmap

pytestmark = pytest.mark.skipif(not native.available(), reason="built without a compiler")
rounds = pytest.mark.skipif(
    native.available() and not native._native.multiplies_halves(), reason="a processor without products of bfloat16"
)

CELLS = {
    "elman-tanh": Elman,
    "elman-relu": lambda i, h: Elman(i, h, activation="relu"),
    "elman-logistic": lambda i, h: Elman(i, h, activation="logistic"),
    "leaky": Leaky,
    "lstm": LSTM,
    "lstm-sigmoid": lambda i, h: LSTM(i, h, candidate="sigmoid"),
    "lstm-peephole": PeepholeLSTM,
    "lstm-coupled": CoupledLSTM,
    "gru": GRU,
    "ligru": lambda i, h: LiGRU(i, h, norm="none"),
}
BEHIND = {"mingru": MinGRU, "sru": SRU, "lru": LRU, "mgu": MGU, "gru-before": lambda i, h: GRU(i, h, reset="before")}


def in_bfloat16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def drawn(name: str, batch: int, time: int, inputs: int, units: int) -> tuple[Cell, Tensor, tuple[Tensor, ...]]:
    torch.manual_seed(len(name) + batch + time)
    cell = (CELLS | BEHIND)[name](inputs, units).requires_grad_(False)
    return cell, torch.randn(batch, time, inputs), tmap(torch.randn_like, cell.initial_state(batch))


def some_lengths(batch: int, time: int) -> Tensor:
    return torch.arange(batch) * 3 % (time + 1)


def by_rounded_products(
    cell: Cell, xs: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> list[Tensor]:
    """The plain loop in float64, both factors of every product rounded to bfloat16."""
    linear = F.linear

    def rounded(part: Tensor) -> Tensor:
        return part.float().bfloat16().double()

    with kernels.reference(), monkeypatch.context() as patch:
        patch.setattr(F, "linear", lambda x, weight, bias=None: linear(rounded(x), rounded(weight), bias))
        return list(leaves(cell.double().unroll(xs.double(), tmap(torch.Tensor.double, state), lengths)))


@rounds
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(
    "batch, inputs, units",  # of the last, weights are so large that all rows go together, in more than one tile
    [(1, 5, 33), (1, 64, 128), (7, 3, 1), (9, 40, 100), (16, 31, 17), (37, 64, 32), (19, 3, 740)],
)
@pytest.mark.parametrize("name", CELLS)
def test_each_factor_is_rounded_once_and_nothing_else(
    name: str, batch: int, inputs: int, units: int, ragged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, xs, state = drawn(name, batch, 6, inputs, units)
    lengths = some_lengths(batch, 6) if ragged else None
    with in_bfloat16():
        fast = list(leaves(cell.unroll(xs, state, lengths)))
    exact = by_rounded_products(cell, xs, state, lengths, monkeypatch)
    for one, other in zip(fast, exact, strict=True):
        assert one.dtype == torch.float32
        apart = (one.double() - other).abs() / other.abs().max().clamp(min=1)
        # A sum at the edge of two bfloat16 may be rounded to either: few numbers, and each by a 256th at most.
        assert float(apart.max()) < 1e-2 and float(apart.mean()) < 2e-4


@pytest.mark.parametrize("name", CELLS | BEHIND)
def test_it_is_near_to_float32_and_keeps_a_state_of_float32(name: str) -> None:
    cell, xs, state = drawn(name, 4, 20, 16, 48)
    exact = list(leaves(cell.unroll(xs, state)))
    with in_bfloat16():
        for given in (xs, xs.bfloat16()):
            fast = list(leaves(cell.unroll(given, state)))
            assert [part.dtype for part in fast[1:]] == [torch.float32] * len(state)
            for one, other in zip(fast, exact, strict=True):
                assert float((one - other).abs().max()) < 0.03 * float(other.abs().max())


@pytest.mark.parametrize("name", CELLS | BEHIND)
def test_a_sequence_may_be_cut_anywhere_to_the_bit(name: str) -> None:
    cell, xs, state = drawn(name, 5, 9, 6, 40)
    with in_bfloat16():
        whole, end = cell.unroll(xs, state)
        first, between = cell.unroll(xs[:, :4], state)
        second, last = cell.unroll(xs[:, 4:], between)
    assert torch.equal(whole, torch.cat([first, second], dim=1))
    assert all(map(torch.equal, leaves(end), leaves(last)))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(sorted(CELLS)), st.integers(2, 40), st.integers(1, 20), st.integers(1, 70), st.integers(1, 70))
def test_rows_and_threads_change_no_bit(name: str, batch: int, time: int, inputs: int, units: int) -> None:
    cell, xs, state = drawn(name, batch, time, inputs, units)
    lengths, before = some_lengths(batch, time), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            with in_bfloat16():
                found.append(list(leaves(cell.unroll(xs, state, lengths))))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *found))
    with in_bfloat16():
        some = list(leaves(cell.unroll(xs[:2], tmap(lambda part: part[:2], state), lengths[:2])))
    assert all(torch.equal(one[:2], other) for one, other in zip(found[0], some, strict=True))


@pytest.mark.parametrize("name", CELLS | BEHIND)
def test_gradients_are_those_of_float32(name: str) -> None:
    cell, xs, state = drawn(name, 3, 5, 6, 20)
    cell.requires_grad_()
    wanted = list(cell.parameters())
    exact = torch.autograd.grad(cell.unroll(xs, state)[0].square().sum(), wanted, allow_unused=True)
    with in_bfloat16():
        loss = cell.unroll(xs, state)[0].square().sum()
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    near = 0.0 if name in CELLS else 0.05  # what comes before the kernel is torch's, which rounds
    for one, other in zip(found, exact, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert float((one - other).abs().max()) <= near * float(other.abs().max())


@pytest.mark.parametrize("name", CELLS | BEHIND)
def test_a_cell_of_bfloat16_is_computed_natively_and_gives_bfloat16(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, xs, state = drawn(name, 3, 7, 6, 20)
    calls, module = [], following if name in BEHIND else native
    verb = "follow" if name in BEHIND else "forward"
    computed = getattr(module, verb)
    monkeypatch.setattr(module, verb, lambda *given: calls.append(given) or computed(*given))
    exact = list(leaves(cell.unroll(xs, state)))
    short, state = cell.bfloat16(), tmap(torch.Tensor.bfloat16, state)
    calls.clear()
    found = list(leaves(short.unroll(xs.bfloat16(), state)))
    assert len(calls) == 1
    with kernels.reference():
        plain = list(leaves(short.unroll(xs.bfloat16(), state)))
    for one, other, third in zip(found, exact, plain, strict=True):
        assert one.dtype == third.dtype == torch.bfloat16
        far = float((third.float() - other).abs().max())
        assert float((one.float() - other).abs().max()) < max(1.5 * far, 0.01 * float(other.abs().max()))
    short.requires_grad_()
    grads = torch.autograd.grad(
        short.unroll(xs.bfloat16(), state)[0].float().sum(), [*short.parameters()], allow_unused=True
    )
    assert all(grad is None or grad.dtype == torch.bfloat16 for grad in grads)


@rounds
@pytest.mark.parametrize("batch", [1, 3, 19])
@pytest.mark.parametrize("name", CELLS)
def test_a_stream_that_is_packed_within_autocast_steps_in_bfloat16(name: str, batch: int) -> None:
    cell, xs, state = drawn(name, batch, 5, 7, 33)
    with torch.no_grad(), in_bfloat16():
        whole, end = cell.unroll(xs, state)
        packed = with_packed_weights(cell)
    apart, at = [], state
    with torch.no_grad():
        exact, _ = cell.unroll(xs, state)
        for t in range(xs.shape[1]):
            y, at = packed(xs[:, t], at)
            apart.append((y - whole[:, t]).abs().max())
    assert max(map(float, apart)) < 4e-3 * float(whole.abs().max())
    assert not torch.equal(exact, whole)
    assert all(float((a - b).abs().max()) < 0.01 for a, b in zip(leaves(at), leaves(end), strict=True))


def test_no_number_stays_no_number_and_stays_in_its_row() -> None:
    cell, xs, state = drawn("lstm", 4, 6, 5, 20)
    xs[2, 3, 1] = torch.nan
    with in_bfloat16():
        ys, _ = cell.unroll(xs, state)
    assert ys[2, 3:].isnan().all()
    assert not ys[[0, 1, 3]].isnan().any() and not ys[2, :3].isnan().any()


@pytest.mark.parametrize("units", [3, 33, 4])
@pytest.mark.parametrize("name", CELLS)
def test_an_infinite_input_makes_no_more_of_it_than_in_float32(name: str, units: int) -> None:
    cell, xs, state = drawn(name, 3, 6, 1, units)
    xs[0, 1, 0], xs[1, 2, 0] = torch.inf, -torch.inf
    exact, _ = cell.unroll(xs, state)
    with in_bfloat16():
        found, _ = cell.unroll(xs, state)
    assert torch.equal(found.isnan(), exact.isnan())


@pytest.mark.parametrize("name", CELLS | BEHIND)
def test_derivatives_that_have_derivatives_are_those_of_float32_too(name: str) -> None:
    cell, xs, state = drawn(name, 3, 5, 6, 20)
    xs.requires_grad_()
    with in_bfloat16():
        loss = cell.unroll(xs, state)[0].square().sum()
        (once,) = torch.autograd.grad(loss, xs, retain_graph=True)
        (again,) = torch.autograd.grad(loss, xs, create_graph=True)
        (twice,) = torch.autograd.grad(again.sum(), xs, retain_graph=True)
        (batched,) = torch.autograd.grad(loss, xs, torch.ones(2), retain_graph=True, is_grads_batched=True)
    near = 1e-5 if name in CELLS else 0.02  # what comes before the kernel is torch's, which rounds
    for found in (again.detach(), *batched.detach()):
        assert float((found - once).abs().max()) <= near * float(once.abs().max())
    assert twice.isfinite().all()


def test_a_packed_cell_keeps_its_products_when_it_is_copied_and_takes_short_inputs() -> None:
    cell, xs, state = drawn("gru", 2, 1, 7, 33)
    with torch.no_grad():
        whole = Packed(cell)
        with in_bfloat16():
            half, of_whole = Packed(cell), copy.deepcopy(whole)
        for one, other in ((half, copy.deepcopy(half)), (half, pickle.loads(pickle.dumps(half))), (whole, of_whole)):
            assert torch.equal(one(xs[:, 0], state)[0], other(xs[:, 0], state)[0])
        with in_bfloat16():
            y, after = half(xs[:, 0].bfloat16(), state)
            assert torch.equal(y, half(xs[:, 0].bfloat16().float(), state)[0])
            assert after[0].dtype == torch.float32
    with pytest.raises(recurra.UsageError, match="no native recurrence as it is set now"):
        Packed(cell.bfloat16())


@pytest.mark.parametrize("name", CELLS | BEHIND)
def test_compiled_stepped_and_plain_cells_give_the_types_of_the_eager_ones(name: str) -> None:
    cell, xs, state = drawn(name, 2, 3, 6, 20)

    def types(result: Any) -> list[torch.dtype]:
        return [part.dtype for part in leaves(result)]

    with in_bfloat16():
        wanted = types(cell.unroll(xs, state))
        assert wanted == [torch.float32] * (1 + len(state))
        with kernels.reference():
            assert types(cell.unroll(xs, state)) == wanted
        assert types(cell(xs[:, 0], state)) == wanted
        assert types(torch.compile(cell.unroll, backend="eager")(xs, state)) == wanted


def test_both_directions_take_products_of_bfloat16() -> None:
    torch.manual_seed(0)
    layer, xs, lengths = Bidirectional(LSTM(6, 20), LSTM(6, 20)), torch.randn(5, 8, 6), some_lengths(5, 8)
    with torch.no_grad():
        exact, _ = layer(xs, lengths)
        with in_bfloat16():
            found, _ = layer(xs, lengths)
    assert found.dtype == torch.float32
    assert torch.equal(found, exact) != native._native.multiplies_halves()
    assert float((found - exact).abs().max()) < 0.02


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM"])
def test_layers_as_torch_spells_them_give_float32_near_to_those_of_torch(name: str) -> None:
    torch.manual_seed(0)
    theirs, xs = getattr(torch.nn, name)(6, 20, num_layers=2), torch.randn(7, 3, 6)
    ours = getattr(recurra, name)(6, 20, num_layers=2)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad(), in_bfloat16():
        found, expected = ours(xs)[0], theirs(xs)[0]
    assert found.dtype == torch.float32
    assert float((found - expected.float()).abs().max()) < 0.02


def test_autocast_to_float16_computes_in_float32() -> None:
    cell, xs, state = drawn("gru", 3, 5, 6, 20)
    exact, _ = cell.unroll(xs, state)
    with torch.autocast("cpu", torch.float16):
        found, _ = cell.unroll(xs, state)
    assert torch.equal(found, exact)


FLOATS = """
import torch
from recurra.cells import GRU
torch.manual_seed(0)
cell, xs = GRU(5, 20).requires_grad_(False), torch.randn(3, 6, 5)
exact, _ = cell.unroll(xs, cell.initial_state(3))
with torch.autocast("cpu", torch.bfloat16):
    found, _ = cell.unroll(xs, cell.initial_state(3))
assert torch.equal(found, exact)
"""


def test_a_processor_without_products_of_bfloat16_computes_in_float32() -> None:
    subprocess.run([sys.executable, "-c", FLOATS], check=True, env=os.environ | {"RECURRA_ISA": "baseline"})


@pytest.mark.timeout(900)
@pytest.mark.skipif(not (native.available() and native._native.multiplies_tiles()), reason="a processor without tiles")
def test_what_holds_by_tiles_holds_by_vectors_too() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            __file__,
            "-k",
            "not vectors",
        ],
        env=os.environ | {"RECURRA_TILES": "0", "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
