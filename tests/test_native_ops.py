"""The native kernels as operators of torch: what the operators promise, and whole models compiled and exported with them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_native import CELLS, MANY, in_a_process
from torch import Tensor, nn
from torch import library as operators
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from recurra import kernels
from recurra.cells import GRU, LRU, LSTM, MGU, Cell, MinGRU
from recurra.errors import UsageError
from recurra.kernels import native, ops
from recurra.state import leaves, masked, tmap

pytestmark = pytest.mark.skipif(not native.available(), reason="built without a compiler")

INPUTS, UNITS, CLASSES = 3, 20, 4  # units that fill no panel


class Tagger(nn.Module):
    """A small model: a cell, and a linear layer on what it says."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(cell.output_size, CLASSES)

    def forward(self, xs: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Any]:
        ys, last = self.cell.unroll(xs.tanh(), self.cell.initial_state(xs.shape[0]), lengths)
        return self.head(ys), tuple(last)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch.manual_seed(0)
    torch.compiler.reset()


@pytest.fixture
def _zeroed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept for the way back has gaps, past the end of a row and beside the last units; opcheck compares them too."""
    monkeypatch.setattr(Tensor, "new_empty", Tensor.new_zeros)


def ends(batch: int, time: int) -> Tensor:
    return torch.tensor([time, 0, min(1, time), time // 2, time])[:batch]


def given(name: str, ragged: bool, *, grad: bool, batch: int = 5, time: int = 7) -> tuple[Any, ...]:
    """What a recurrence is given, up to its bias."""
    cell = CELLS[name](INPUTS, UNITS).requires_grad_(grad)
    xs = torch.randn(batch, time, INPUTS)
    lengths = ends(batch, time) if ragged else None
    state = tmap(torch.randn_like, cell.initial_state(batch))
    xs, h, *c = (part.detach().requires_grad_(grad) for part in (masked(xs, lengths), *state))
    weights = [part.detach().requires_grad_(grad) for part in cell.recurrence()[1]]
    return name, xs, lengths, h, c[0] if c else None, weights


def way_back(name: str, ragged: bool, *, wants_dx: bool = True, reverse: bool = False) -> tuple[Any, ...]:
    """What the operator of the gradients is given."""
    start = given(name, ragged, grad=False)
    ys, h, c, saved = torch.ops.recurra.recurrence(*start, reverse, True)
    grads = [torch.randn_like(part) for part in (ys, h, c)]
    return *start, ys, saved, grads[0], None, grads[2] if c.numel() else None, reverse, wants_dx


def same(a: Any, b: Any) -> None:
    torch.testing.assert_close(list(leaves(a)), list(leaves(b)))


# --- the operators ---


@pytest.mark.usefixtures("_zeroed")
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_forward_operator_is_sound(name: str, ragged: bool, grad: bool, reverse: bool) -> None:
    operators.opcheck(torch.ops.recurra.recurrence.default, (*given(name, ragged, grad=grad), reverse, grad))


@pytest.mark.usefixtures("_zeroed")
@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("wants_dx", [False, True])
def test_the_backward_operator_is_sound(name: str, ragged: bool, wants_dx: bool) -> None:
    operators.opcheck(
        torch.ops.recurra.recurrence_backward.default, way_back(name, ragged, wants_dx=wants_dx, reverse=ragged)
    )


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_operators_give_the_bits_of_the_direct_way(name: str, ragged: bool, grad: bool, reverse: bool) -> None:
    _, xs, lengths, h, c, weights = given(name, ragged, grad=grad)
    results = []
    for way in (native.run, ops.run):
        ys, last = way(name, xs, lengths, ops._fields(h, c), tuple(weights), reverse)
        outs = [ys, *last]
        wanted = [xs, *ops._fields(h, c), *weights]
        results.append(outs + (list(torch.autograd.grad(outs, wanted, [out.cos() for out in outs])) if grad else []))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", CELLS)
def test_a_second_derivative_of_the_operator_is_that_of_the_direct_way(name: str) -> None:
    results = []
    _, xs, lengths, h, c, weights = given(name, True, grad=True)
    for way in (native.run, ops.run):
        ys, _ = way(name, xs, lengths, ops._fields(h, c), tuple(weights))
        (first,) = torch.autograd.grad(masked(ys, lengths).square().sum(), xs, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), [xs, *weights]))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", CELLS)
def test_one_output_alone_has_its_gradients(name: str) -> None:
    _, xs, lengths, h, c, weights = given(name, True, grad=True)
    for place in range(len(ops._fields(h, c)) + 1):
        found = []
        for way in (native.run, ops.run):
            ys, last = way(name, xs, lengths, ops._fields(h, c), tuple(weights))
            found.append(torch.autograd.grad((ys, *last)[place].sum(), [xs, *weights]))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_operator_says_what_it_cannot_run() -> None:
    name, xs, lengths, h, c, weights = given("lstm", True, grad=False)
    rest = (False, False)
    op = torch.ops.recurra.recurrence
    wrong: list[tuple[Any, ...]] = [
        ("lstn", xs, lengths, h, c, weights),
        (name, xs, lengths, h, None, weights),
        ("gru", xs, lengths, h, c, weights),
        (name, xs[0], lengths, h, c, weights),
        (name, xs.double(), lengths, h, c, weights),
        (name, xs, lengths + 1, h, c, weights),
        (name, xs, lengths - 1, h, c, weights),
        (name, xs, lengths[1:], h, c, weights),
        (name, xs, lengths.int(), h, c, weights),
        (name, xs, lengths, h[1:], c, weights),
        (name, xs, lengths, h, c[:, 1:], weights),
        (name, xs, lengths, h, c, [*weights[:2], weights[2][1:], weights[3]]),
        (name, xs, lengths, h, c, weights[:3]),
        ("lstm-peephole", xs, lengths, h, c, [*weights, *[h[0]] * 2, h[0][1:]]),
        ("elman-tanh", xs, lengths, h, None, weights),
    ]
    for given_ in wrong:
        with pytest.raises(UsageError, match="wanted"):
            op(*given_, *rest)


def test_the_way_back_says_what_it_cannot_run() -> None:
    right = way_back("lstm", True)
    places = {"ys": 6, "saved": 7, "dys": 8, "dc": 10}
    for name, place in places.items():
        wrong = (*right[:place], right[place][1:], *right[place + 1 :])
        with pytest.raises(UsageError, match=f"{name}.*wanted"):
            torch.ops.recurra.recurrence_backward(*wrong)


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize(("batch", "time"), [(0, 3), (2, 0), (0, 0)])
def test_no_rows_and_no_steps_change_nothing(name: str, batch: int, time: int) -> None:
    start = given(name, True, grad=True, batch=batch, time=time)
    _, _, _, h, c, weights = start
    ys, *last, _ = torch.ops.recurra.recurrence(*start, False, True)
    assert ys.shape == (batch, time, UNITS)
    for before, after in zip(ops._fields(h, c), last, strict=False):
        assert torch.equal(before, after)
    grads = torch.autograd.grad(last[0].sum(), [h, *weights])
    assert torch.equal(grads[0], torch.ones_like(h))
    assert not any(grad.any() for grad in grads[1:])


def test_nothing_kept_gives_no_gradients() -> None:
    ys, *_ = torch.ops.recurra.recurrence(*given("gru", False, grad=True), False, False)
    with pytest.raises(RuntimeError, match="without keeping"):
        ys.sum().backward()


@pytest.mark.parametrize("name", CELLS)
def test_a_fake_tensor_has_a_shape_and_no_address(name: str) -> None:
    with FakeTensorMode():
        cell = CELLS[name](INPUTS, UNITS)
        ys, last = cell.unroll(torch.randn(2, 6, INPUTS), cell.initial_state(2))
        torch.autograd.grad(ys.sum(), list(cell.parameters()))
    assert ys.shape == (2, 6, UNITS)
    assert all(leaf.shape == (2, UNITS) for leaf in leaves(last))


@pytest.mark.parametrize("isa", ["avx512", "avx2", "baseline"])
def test_what_is_kept_is_as_large_on_every_machine(isa: str) -> None:
    code = (
        "from recurra.kernels import native\n"
        "for name, kind in native.KINDS.items():\n"
        "    for units in range(1, 130):\n"
        "        floats = native.saved_floats(name, units)\n"
        "        assert native._native.saved_floats(kind, units) == floats\n"
        "        print(floats)"
    )
    done = in_a_process(code, RECURRA_ISA=isa)
    if "RECURRA_ISA" in done.stderr:
        pytest.skip(f"this machine does not run {isa}")
    assert done.returncode == 0, done.stderr
    here = [native.saved_floats(name, units) for name in native.KINDS for units in range(1, 130)]
    assert [int(line) for line in done.stdout.split()] == here


# --- torch.compile ---


def run_and_compare(model: nn.Module, compiled: Callable[..., Any], batch: int, time: int, ragged: bool) -> None:
    """The same outputs, states and gradients from the compiled model and from the model."""
    xs = torch.randn(batch, time, INPUTS, requires_grad=True)
    lengths = ends(batch, time) if ragged else None
    results = []
    for way in (compiled, model):
        outs = list(leaves(way(xs, lengths)))
        grads = torch.autograd.grad(outs, [xs, *model.parameters()], [out.detach().cos() for out in outs])
        results.append([*outs, *grads])
    torch.testing.assert_close(*results)


def recurrences(graph: torch.fx.GraphModule) -> int:
    """How many recurrences stand in the graph."""
    return sum(str(node.target).startswith("recurra.recurrence") for node in graph.graph.nodes)


@pytest.mark.parametrize("name", sorted(MANY))
@pytest.mark.parametrize("ragged", [False, True])
def test_a_compiled_model_is_the_model_at_any_length(name: str, ragged: bool) -> None:
    model, counter = Tagger(CELLS[name](INPUTS, UNITS)), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    run_and_compare(model, compiled, 4, 6, ragged)
    seen = counter.frame_count  # of an attempt that is begun anew as well
    run_and_compare(model, compiled, 3, 9, ragged)
    assert counter.frame_count == seen
    assert recurrences(counter.graphs[-1]) == 1


@pytest.mark.parametrize("name", sorted(MANY))
@pytest.mark.parametrize("ragged", [False, True])
def test_a_compiled_model_answers_without_gradients(name: str, ragged: bool) -> None:
    model = Tagger(CELLS[name](INPUTS, UNITS)).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for batch, time in ((4, 6), (3, 9)):
            xs, lengths = torch.randn(batch, time, INPUTS), ends(batch, time) if ragged else None
            same(compiled(xs, lengths), model(xs, lengths))


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("ragged", [False, True])
def test_a_compiled_model_is_the_model_with_inductor(ragged: bool) -> None:
    model = Tagger(LSTM(INPUTS, UNITS))
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    for batch, time in ((4, 6), (3, 9)):
        run_and_compare(model, compiled, batch, time, ragged)


def test_the_plain_loop_is_compiled_where_the_kernels_do_not_reach() -> None:
    model, counter = Tagger(GRU(INPUTS, UNITS)), CompileCounterWithBackend("aot_eager")
    compiled, xs = torch.compile(model, fullgraph=True, backend=counter), torch.randn(2, 3, INPUTS)
    same(compiled(xs), model(xs))
    with kernels.reference():
        same(compiled(xs), model(xs))
    with torch.autocast("cpu"):
        compiled(xs)
    model.double()
    same(compiled(xs.double()), model(xs.double()))
    assert [recurrences(graph) for graph in counter.graphs] == [1, 0, 0, 0]
    model.float()
    same(compiled(xs), model(xs))
    assert counter.frame_count == 4  # the first graph again


def test_a_compiled_model_refuses_lengths_beyond_its_inputs() -> None:
    model, xs = Tagger(LSTM(INPUTS, UNITS)), torch.randn(2, 3, INPUTS)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with pytest.raises(UsageError, match="lengths from 2 to 9"):
        compiled(xs, torch.tensor([2, 9]))


def test_samples_may_be_mapped_inside_a_compiled_function() -> None:
    cell, xs = GRU(INPUTS, UNITS), torch.randn(4, 1, 3, INPUTS)

    def of_each(xs: Tensor) -> Tensor:
        return torch.func.vmap(lambda x: cell.unroll(x, cell.initial_state(1))[0])(xs)

    same(torch.compile(of_each, fullgraph=True, backend="aot_eager")(xs), of_each(xs))


# --- torch.export ---


def exported(model: nn.Module, *, strict: bool) -> torch.export.ExportedProgram:
    auto = torch.export.Dim.AUTO
    shapes = {"xs": {0: auto, 1: auto}, "lengths": {0: auto}}
    given = (torch.randn(3, 5, INPUTS), ends(3, 5))
    return torch.export.export(model, given, dynamic_shapes=shapes, strict=strict)


@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")  # parametrize.cached
@pytest.mark.parametrize("name", sorted(MANY))
@pytest.mark.parametrize("strict", [False, True])
def test_a_model_is_exported_natively_on_demand(name: str, strict: bool) -> None:
    model = Tagger(CELLS[name](INPUTS, UNITS)).eval()
    with torch.no_grad(), kernels.exported_natively():
        program = exported(model, strict=strict)
    assert recurrences(program.graph_module) == 1
    with torch.no_grad():
        for batch, time in ((3, 5), (2, 9), (4, 2), (1, 1), (2, 0), (0, 4)):
            xs, lengths = torch.randn(batch, time, INPUTS), ends(batch, time)
            same(program.module()(xs, lengths), model(xs, lengths))


def test_an_exported_program_can_be_trained_and_kept(tmp_path: Path) -> None:
    model = Tagger(LSTM(INPUTS, UNITS))
    with kernels.exported_natively():
        program = exported(model, strict=False)
    torch.export.save(program, tmp_path / "model.pt2")
    module = torch.export.load(tmp_path / "model.pt2").module()
    xs, lengths, results = torch.randn(4, 8, INPUTS), ends(4, 8), []
    for way in (module, model):
        ys, _ = way(xs, lengths)
        results.append(torch.autograd.grad(ys.square().sum(), [dict(way.named_parameters())["cell.weight_hh"]]))
    torch.testing.assert_close(*results)


def test_a_model_is_exported_without_the_kernels_unless_told() -> None:
    model = Tagger(LSTM(INPUTS, UNITS)).eval()
    with torch.no_grad():
        program = exported(model, strict=False)
    assert recurrences(program.graph_module) == 0
    with torch.no_grad():
        xs, lengths = torch.randn(2, 9, INPUTS), ends(2, 9)
        same(program.module()(xs, lengths), model(xs, lengths))


# --- torch.func.vmap ---


@pytest.mark.parametrize("build", [GRU, LSTM, MinGRU, LRU, MGU])
@pytest.mark.parametrize("own_weights", [False, True])
def test_samples_are_mapped_by_the_kernels(build: Callable[[int, int], Cell], own_weights: bool) -> None:
    """With shared weights they are rows of one call, and an ensemble is one call for each member, if weights recur at all."""
    cell, xs = build(3, 5), torch.randn(4, 2, 6, 3, requires_grad=True)
    weights = {
        name: torch.stack([part.detach() + n for n in (0.0, 0.1, 0.2, 0.3)]) if own_weights else part
        for name, part in cell.named_parameters()
    }

    def of_one(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(
            Unrolled(cell), {f"cell.{name}": part for name, part in weights.items()}, (x,)
        )

    def mapped() -> list[Tensor]:
        ys = torch.func.vmap(of_one, in_dims=(0 if own_weights else None, 0))(weights, xs)
        return [ys, *torch.autograd.grad(ys.square().sum(), [xs] if own_weights else [xs, *cell.parameters()])]

    with Counted() as counted:
        fast = mapped()
    assert counted.calls == (4 if own_weights and build is not MinGRU else 1)
    with kernels.reference():
        plain = mapped()
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)


class Unrolled(nn.Module):
    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, xs: Tensor) -> Tensor:
        return self.cell.unroll(xs, self.cell.initial_state(xs.shape[0]))[0]


class Counted(TorchDispatchMode):
    """How often a forward kernel is called as an operator."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func in (torch.ops.recurra.recurrence.default, torch.ops.recurra.follow.default)
        return func(*args, **(kwargs or {}))
