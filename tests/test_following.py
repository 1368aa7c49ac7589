"""The native kernels that go on from a projection: outputs, last state and every gradient against the plain loop in float64."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import reduce
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_native import everything, in_a_process
from torch import Tensor, nn
from torch import library as operators
from torch._dynamo.testing import CompileCounterWithBackend

from recurra import kernels
from recurra.cells import (
    GRU,
    LRU,
    MGU,
    QRNN,
    SRU,
    Cell,
    IndRNN,
    LayerNormGRU,
    LayerNormLSTM,
    MinGRU,
    MinLSTM,
    ProjectedLSTM,
)
from recurra.cells.scan import followed
from recurra.errors import UsageError
from recurra.kernels import again, following, ops
from recurra.state import leaves, masked, tmap

pytestmark = pytest.mark.skipif(not following.FOLLOWERS, reason="built without a compiler")


def calm(cell: Cell) -> Cell:
    """The cell with gains that let its state settle: normed sums are as large whatever the weights, and with a gain of one they
    make a rounding grow from step to step, in any order of adding."""
    with torch.no_grad():
        cell.gain_hh.mul_(0.3)
    return cell


CELLS: dict[str, Callable[[int, int], Cell]] = {
    "mingru": MinGRU,
    "mingru, positive": lambda i, h: MinGRU(i, h, candidate="positive"),
    "minlstm": MinLSTM,
    "minlstm, positive": lambda i, h: MinLSTM(i, h, candidate="positive"),
    "lru": LRU,
    "qrnn": lambda i, h: QRNN(i, h, width=3),
    "qrnn, f": lambda i, h: QRNN(i, h, pooling="f"),
    **{f"indrnn, {act}": lambda i, h, act=act: IndRNN(i, h, activation=act) for act in again.CURVES},
    **{f"sru, {act}": lambda i, h, act=act: SRU(i, h, activation=act) for act in again.CURVES},
    **{f"sru, {act}, peephole": lambda i, h, act=act: SRU(i, h, activation=act, peephole=True) for act in again.CURVES},
    "gru, reset before": lambda i, h: GRU(i, h, reset="before"),
    "mgu": MGU,
    "lstm, projected": ProjectedLSTM,
    "lstm, projected to more": lambda i, h: ProjectedLSTM(i, h, projection=h + 9),
    "lstm, normed sums": lambda i, h: calm(LayerNormLSTM(i, h)),
    "lstm, normed gates": lambda i, h: calm(LayerNormLSTM(i, h, norm="gates")),
    "gru, normed": lambda i, h: calm(LayerNormGRU(i, h)),
}
TOLERANCE = 5e-6  # sums over all steps and rows


def errors(found: list[Tensor], exact: list[Tensor], outs: int) -> list[float]:
    """Of outputs and states beside the largest of them, of gradients beside the largest gradient: a sum whose terms cancel has
    the error of its terms."""
    scales = [
        max((float(b.abs().max()) for b in part if b.numel()), default=0.0) or 1.0
        for part in (exact[:outs], exact[outs:])
    ]
    return [
        float((a.double() - b).abs().max()) / scales[place >= outs] if b.numel() else 0.0
        for place, (a, b) in enumerate(zip(found, exact, strict=True))
    ]


def compare(name: str, batch: int, time: int, inputs: int, units: int, lengths: Tensor | None, seed: int = 0) -> None:
    torch.manual_seed(seed)
    cell = CELLS[name](inputs, units)
    xs, state = torch.randn(batch, time, inputs), tmap(torch.randn_like, cell.initial_state(batch))
    fast = everything(cell, xs, state, lengths)
    with kernels.reference():
        plain = everything(cell, xs, state, lengths)
        exact = everything(cell.double(), xs.double(), tmap(Tensor.double, state), lengths)
    # A sum that rounds to the other side of the kink of a relu has the slope of the other side, and both are right.
    if "relu" in name and not all(torch.equal(part[0] > 0, exact[0] > 0) for part in (fast, plain)):
        fast, plain, exact = fast[:1], plain[:1], exact[:1]
    outs = 1 + len(list(leaves(state)))
    pairs = zip(errors(fast, exact, outs), errors(plain, exact, outs), strict=True)
    for place, (error, least) in enumerate(pairs):
        assert error <= max(TOLERANCE, 2 * least), f"result {place} of {name}: {error:.1e}, plain float32: {least:.1e}"


def handed(cell: Cell, xs: Tensor, state: Any, lengths: Tensor | None = None) -> list[tuple[Any, ...]]:
    """What the kernel is given in a call of the cell: nothing where it is not asked."""
    seen = []

    def noted(*given: Any) -> Any:
        seen.append(given)
        return original(*given)

    original, following.run = following.run, noted
    try:
        cell.unroll(xs, state, lengths)
    finally:
        following.run = original
    return seen


@pytest.mark.parametrize("name", CELLS)
def test_the_kernel_is_taken(name: str) -> None:
    cell, xs = CELLS[name](3, 16), torch.randn(2, 3, 3)
    assert len(handed(cell, xs, cell.initial_state(2))) == 1
    with kernels.reference():
        assert not handed(cell, xs, cell.initial_state(2))
    cell.double()
    assert not handed(cell, xs.double(), cell.initial_state(2))


@pytest.mark.parametrize("name", CELLS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 9), time=st.integers(1, 40), inputs=st.integers(1, 20), units=st.integers(1, 70),
    ragged=st.booleans(), seed=st.integers(0, 10**6),
)  # fmt: skip
def test_fast_is_plain_in_every_result(
    name: str, batch: int, time: int, inputs: int, units: int, ragged: bool, seed: int
) -> None:
    some = torch.Generator().manual_seed(seed)
    compare(name, batch, time, inputs, units, torch.randint(0, time + 1, (batch,), generator=some) if ragged else None)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(("batch", "time", "units"), [(1, 300, 130), (40, 20, 33), (5, 1, 1)])
def test_fast_is_plain_at_the_edges(name: str, batch: int, time: int, units: int) -> None:
    compare(name, batch, time, units, units, None)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(("batch", "units"), [(1, 200), (5, 130), (33, 96)])
def test_the_bits_do_not_depend_on_the_number_of_threads(
    name: str, batch: int, units: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell, xs = CELLS[name](20, units), torch.randn(batch, 30, 20)
    lengths, state = torch.randint(0, 31, (batch,)), tmap(torch.randn_like, cell.initial_state(batch))
    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(following, "_threads", lambda *_, n=threads: n)
        results.append(everything(cell, xs, state, lengths))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True) if a is not None)


@pytest.mark.parametrize("name", CELLS)
def test_a_sequence_may_be_cut_anywhere_to_the_bit(name: str) -> None:
    cell, xs = CELLS[name](5, 21).requires_grad_(False), torch.randn(3, 9, 5)
    ((known, us, _, state, params),) = handed(cell, xs, tmap(torch.randn_like, cell.initial_state(3)))
    whole, end = following.run(known, us, None, state, params)
    first, middle = following.run(known, tuple(u[:, :4] for u in us), None, state, params)
    second, last = following.run(known, tuple(u[:, 4:] for u in us), None, middle, params)
    assert torch.equal(torch.cat([first, second], dim=1), whole)
    assert all(torch.equal(a, b) for a, b in zip(end, last, strict=True))


LARGE = (10, 640)  # rows and steps: all that backward touches is more than a cache holds, and of one row it is less


@pytest.mark.parametrize("units", [256, 250])  # 250: few rows of it begin where a line of memory does
@pytest.mark.parametrize("name, blocks, params", [("linear", 2, 0), ("sru-peephole-tanh", 4, 2), ("qrnn-fo", 3, 0)])
def test_what_is_stored_past_the_caches_is_the_same_to_the_bit(name: str, blocks: int, params: int, units: int) -> None:
    torch.manual_seed(0)
    us = [torch.rand(*LARGE, units) for _ in range(blocks)]
    state, own = torch.randn(LARGE[0], units), [torch.randn(units) for _ in range(params)]
    lengths, wanted = torch.arange(LARGE[0], 0, -1) * 64, torch.randn(*LARGE, units)

    def run(rows: slice) -> list[Tensor]:
        given = [part.clone().requires_grad_() for part in (*(u[rows] for u in us), state[rows], *own)]
        (*parts, start), mine = given[: blocks + 1], given[blocks + 1 :]
        ys, last = following.run(name, tuple(parts), lengths[rows], (start,), tuple(mine))
        return [ys, *last, *torch.autograd.grad((ys * wanted[rows]).sum(), given)]

    together, *alone = run(slice(None)), *(run(slice(row, row + 1)) for row in range(LARGE[0]))
    for place, found in enumerate(together):
        parts = [one[place] for one in alone]
        joined = torch.cat(parts) if place < len(together) - params else reduce(Tensor.add, parts)
        assert torch.equal(found, joined), f"result {place} of {name}"


@pytest.mark.parametrize("name", CELLS)
def test_what_is_past_the_end_is_not_read(name: str) -> None:
    cell, lengths = CELLS[name](4, 19), torch.tensor([8, 0, 3])
    xs, state = torch.randn(3, 8, 4), tmap(torch.randn_like, cell.initial_state(3))
    padded = torch.where(masked(torch.ones_like(xs), lengths) > 0, xs, torch.nan)
    found, wanted = (everything(cell, one, state, lengths) for one in (padded, masked(xs, lengths)))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True) if a is not None)
    assert not found[0][1].any()
    assert all(torch.equal(after[1], before[1]) for after, before in zip(found[1:], leaves(state), strict=False))


@pytest.mark.parametrize("name", CELLS)
def test_a_nan_stays_in_its_row_and_is_not_hidden(name: str) -> None:
    cell, xs = CELLS[name](4, 40), torch.randn(6, 8, 4)
    xs[1, 3, 2] = float("nan")
    ys, _ = cell.unroll(xs, cell.initial_state(6))
    with kernels.reference():
        plain, _ = cell.unroll(xs, cell.initial_state(6))
    assert torch.equal(ys.isnan(), plain.isnan())
    assert ys[1].isnan().any()
    assert ys[[0, 2, 3, 4, 5]].isfinite().all()


@pytest.mark.parametrize("name", CELLS)
def test_inputs_may_lie_in_memory_as_they_like(name: str) -> None:
    cell, whole = CELLS[name](6, 24), torch.randn(9, 12, 5).transpose(0, 2)[..., :6]
    state = tmap(
        lambda leaf: torch.randn(*leaf.shape[::-1]).permute(*reversed(range(leaf.dim()))), cell.initial_state(5)
    )
    a, b = cell.unroll(whole, state), cell.unroll(whole.contiguous(), tmap(torch.Tensor.contiguous, state))
    assert all(torch.equal(x, y) for x, y in zip(leaves(a), leaves(b), strict=True))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(("batch", "time"), [(0, 3), (2, 0), (0, 0)])
def test_no_rows_and_no_steps_change_nothing(name: str, batch: int, time: int) -> None:
    cell = CELLS[name](3, 4)
    state = tmap(torch.randn_like, cell.initial_state(batch))
    ys, last = cell.unroll(torch.randn(batch, time, 3), state)
    assert ys.shape == (batch, time, cell.output_size)
    assert all(torch.equal(a, b) for a, b in zip(leaves(state), leaves(last), strict=True))


def second_derivatives(cell: Cell, xs: Tensor, lengths: Tensor | None) -> tuple[Tensor, ...]:
    """Through two calls: the state of the second came of the same weights, and that path is not to be counted twice."""
    wanted = [xs, *cell.parameters()]
    some = torch.Generator().manual_seed(2)  # the norm of a state of zeros has no slope to compare
    start = tmap(lambda leaf: torch.randn(leaf.shape, generator=some), cell.initial_state(2))
    first, state = cell.unroll(xs[:, :3], start)
    second, _ = cell.unroll(xs[:, 3:], state, lengths)
    total = first.square().sum() + second.square().sum()
    once = torch.autograd.grad(total, wanted, create_graph=True)
    return *once, *torch.autograd.grad(sum(part.square().sum() for part in once), wanted, allow_unused=True)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("ragged", [False, True])
def test_a_second_derivative_is_that_of_the_loop(name: str, ragged: bool) -> None:
    torch.manual_seed(1)
    cell, xs = CELLS[name](3, 4), torch.randn(2, 6, 3, requires_grad=True)
    lengths = torch.tensor([3, 1]) if ragged else None
    fast = second_derivatives(cell, xs, lengths)
    with kernels.reference():
        plain = second_derivatives(cell, xs, lengths)
    largest = max(float(part.detach().abs().max()) for part in plain)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-6 * max(10.0, largest))


@pytest.mark.parametrize("name", CELLS)
def test_many_gradients_at_once_are_those_one_by_one(name: str) -> None:
    cell, xs = CELLS[name](3, 4), torch.randn(2, 3, 3)
    run = lambda xs: cell.unroll(xs, cell.initial_state(2))[0]  # noqa: E731
    at_once = torch.autograd.functional.jacobian(run, xs, vectorize=True)
    torch.testing.assert_close(at_once, torch.autograd.functional.jacobian(run, xs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_scan_of_given_factors_is_its_definition(dtype: torch.dtype, ragged: bool) -> None:
    torch.manual_seed(0)
    a, b, start = (torch.randn(*shape, dtype=dtype) for shape in ((3, 20, 5), (3, 20, 5), (3, 5)))
    lengths = torch.tensor([20, 0, 7]) if ragged else None
    given = [part.requires_grad_() for part in (0.5 * a, b, start)]

    def results(given: list[Tensor]) -> list[Tensor]:
        hs, last = followed(*given, lengths)
        outs = [masked(hs, lengths), last]
        return [*outs, *torch.autograd.grad(sum((out.abs() ** 2).sum() for out in outs), given)]

    fast = results(given)
    with kernels.reference():
        exact = results(
            [
                part.detach().to(torch.complex128 if part.is_complex() else torch.float64).requires_grad_()
                for part in given
            ]
        )
    for one, other in zip(fast, exact, strict=True):
        torch.testing.assert_close(one, other.to(dtype), rtol=1e-4, atol=1e-4)


def test_shares_of_gates_that_are_both_next_to_nothing_are_right() -> None:
    us = torch.tensor([[-200.0, -150.0, 2.0], [-150.0, -200.0, 2.0], [-90.0, -90.0, 2.0], [90.0, -90.0, 2.0]])[:, None]
    h, _ = following.run("minlstm-identity", (us,), None, (torch.ones(4, 1),), ())
    torch.testing.assert_close(h.flatten(), torch.tensor([2.0, 1.0, 1.5, 1.0]))


# --- the operators, torch.compile and torch.export ---


class Tagger(nn.Module):
    """A small model: a cell, and a linear layer on what it says."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(cell.output_size, 4)

    def forward(self, xs: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        ys, last = self.cell.unroll(xs.tanh(), self.cell.initial_state(xs.shape[0]), lengths)
        return self.head(ys), tuple(last)


def operands(name: str, ragged: bool, *, grad: bool) -> tuple[Any, ...]:
    """What the operator is given when a cell is run."""
    cell, lengths = CELLS[name](3, 20).requires_grad_(False), torch.tensor([7, 0, 3, 7, 1]) if ragged else None
    ((known, *parts),) = handed(cell, torch.randn(5, 7, 3), tmap(torch.randn_like, cell.initial_state(5)), lengths)
    us, _, state, params = (
        None if part is None else [p.requires_grad_(grad) for p in part] if isinstance(part, tuple) else part
        for part in parts
    )
    return known, us, lengths, state, params


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_the_operators_are_sound(name: str, ragged: bool, grad: bool) -> None:
    given = operands(name, ragged, grad=grad)
    operators.opcheck(torch.ops.recurra.follow.default, (*given, grad))
    given = operands(name, ragged, grad=False)
    ys, last, saved = torch.ops.recurra.follow(*given, True)
    dlast = [torch.randn_like(part) for part in last]
    operators.opcheck(torch.ops.recurra.follow_backward.default, (*given, saved, ys, torch.randn_like(ys), dlast))
    if not grad:
        operators.opcheck(torch.ops.recurra.follow_backward.default, (*given, saved, ys, None, [None, *dlast[1:]]))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_the_operators_give_the_bits_of_the_direct_way(name: str, ragged: bool, grad: bool) -> None:
    known, us, lengths, state, params = operands(name, ragged, grad=grad)
    results = []
    for way in (following.run, ops.follow):
        ys, last = way(known, tuple(us), lengths, tuple(state), tuple(params))
        outs = [ys, *last]
        results.append(
            outs + (list(torch.autograd.grad(outs, [*us, *state, *params], [o.cos() for o in outs])) if grad else [])
        )
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_operator_says_what_it_cannot_run() -> None:
    known, us, lengths, state, params = operands("sru, tanh", True, grad=False)
    op = torch.ops.recurra.follow
    for wrong in (
        ("sru-tangent", us, lengths, state, params),
        (known, [us[0][0]], lengths, state, params),
        (known, us, lengths + 1, state, params),
        (known, us, lengths - 1, state, params),
        (known, us, lengths[1:], state, params),
    ):
        with pytest.raises(UsageError, match="wanted"):
            op(*wrong, False)
    for wrong in (
        (known, us[:2], lengths, state, params),
        (known, us, lengths, [state[0][1:]], params),
        (known, us, lengths, [state[0][:, 1:]], params),
        (known, us, lengths, [*state, *state], params),
        (known, us, lengths, state, [state[0]]),
        (known, [u.double() for u in us], lengths, state, params),
    ):
        with pytest.raises(TypeError, match="cannot read"):
            op(*wrong, False)


def test_nothing_kept_gives_no_gradients() -> None:
    ys, *_ = torch.ops.recurra.follow(*operands("mingru", False, grad=True), False)
    with pytest.raises(RuntimeError, match="without keeping"):
        ys.sum().backward()


def same(a: Any, b: Any) -> None:
    torch.testing.assert_close(list(leaves(a)), list(leaves(b)))


def kernels_in(graph: torch.fx.GraphModule) -> int:
    return sum(str(node.target).startswith("recurra.follow") for node in graph.graph.nodes)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("ragged", [False, True])
def test_a_compiled_model_is_the_model_at_any_length(name: str, ragged: bool) -> None:
    torch.compiler.reset()
    model, counter = Tagger(CELLS[name](3, 20)), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for batch, time in ((4, 6), (3, 9)):
        xs, lengths = (
            torch.randn(batch, time, 3, requires_grad=True),
            torch.tensor([time, 0, 1, 2])[:batch] if ragged else None,
        )
        results = []
        for way in (compiled, model):
            outs = list(leaves(way(xs, lengths)))
            grads = torch.autograd.grad(outs, [xs, *model.parameters()], [out.detach().cos() for out in outs])
            results.append([*outs, *grads])
        torch.testing.assert_close(*results)
    assert kernels_in(counter.graphs[-1]) == 1


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("natively", [False, True])
def test_an_exported_model_takes_any_length(name: str, natively: bool) -> None:
    model, auto = Tagger(CELLS[name](3, 20)).eval(), torch.export.Dim.AUTO
    shapes, given = {"xs": {0: auto, 1: auto}, "lengths": {0: auto}}, (torch.randn(3, 5, 3), torch.tensor([5, 0, 2]))
    with torch.no_grad(), kernels.exported_natively() if natively else nullcontext():
        program = torch.export.export(model, given, dynamic_shapes=shapes)
    assert kernels_in(program.graph_module) == natively
    with torch.no_grad():
        for batch, time in ((3, 5), (2, 9), (4, 2)):
            xs, lengths = torch.randn(batch, time, 3), torch.tensor([time, 0, 1, time])[:batch]
            same(program.module()(xs, lengths), model(xs, lengths))


@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
def test_every_instruction_set_gives_the_numbers_of_the_plain_loop(isa: str) -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from recurra.kernels import native\n"
        "import torch, test_following as t\n"
        "for cell in t.CELLS:\n"
        "    t.compare(cell, 5, 11, 17, 37, torch.tensor([11, 0, 3, 5, 1]))\n"
        "print(native.described())"
    )
    done = in_a_process(code, RECURRA_ISA=isa)
    if "RECURRA_ISA" in done.stderr:
        pytest.skip(f"this machine does not run {isa}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"native, {isa}"
