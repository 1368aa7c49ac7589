"""The drop-in modules against torch.nn: the same numbers, the same errors, and more that can be asked of them."""

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import recurra

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "RNN tanh": ("RNN", {}),
    "RNN relu": ("RNN", {"nonlinearity": "relu"}),
    "GRU": ("GRU", {}),
    "LSTM": ("LSTM", {}),
    "LSTM proj_size": ("LSTM", {"proj_size": 2}),
}
CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "RNNCell tanh": ("RNNCell", {}),
    "RNNCell relu": ("RNNCell", {"nonlinearity": "relu"}),
    "GRUCell": ("GRUCell", {}),
    "LSTMCell": ("LSTMCell", {}),
}
INPUTS, UNITS, BATCH, TIME = 2, 3, 4, 5
SIZES = (INPUTS, UNITS)
TOLERANCE = {torch.float32: (1e-6, 1e-5), torch.float64: (1e-12, 1e-11)}  # of outputs and states, and of gradients


def build(home: Any, kind: str, sizes: tuple[int, int] = SIZES, **options: Any) -> Any:
    """A module of this kind from `recurra` or from `torch.nn`, always with the same numbers in it."""
    name, fixed = (KINDS | CELLS)[kind]
    torch.manual_seed(0)
    return getattr(home, name)(*sizes, **fixed, **options)


def pair(kind: str, sizes: tuple[int, int] = SIZES, **options: Any) -> tuple[Any, Any]:
    """Ours and torch's, with the same numbers in them."""
    return build(recurra, kind, sizes, **options), build(nn, kind, sizes, **options)


def states(module: Any, *batch: int) -> tuple[Tensor, ...]:
    """A start state, as a tuple also where torch has a single tensor."""
    rows = [] if isinstance(module, nn.RNNCellBase) else [module.num_layers * (1 + module.bidirectional)]
    sizes = [getattr(module, "proj_size", 0) or module.hidden_size]
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        sizes.append(module.hidden_size)
    return tuple(torch.randn(*rows, *batch, size, dtype=next(module.parameters()).dtype) for size in sizes)


def as_torch_takes_it(hx: tuple[Tensor, ...] | None) -> Any:
    return hx[0] if hx is not None and len(hx) == 1 else hx


def tensors(result: Any) -> list[Tensor]:
    """All tensors that a module gave, packed outputs as their data."""
    if isinstance(result, PackedSequence):
        return [result.data]
    return [result] if isinstance(result, Tensor) else [tensor for part in result for tensor in tensors(part)]


def results(
    module: Any, x: Tensor, hx: tuple[Tensor, ...] | None, pack: Callable[[Tensor], Any] = lambda x: x
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs with last states, and the gradients of a projection of them all to input, start state and parameters."""
    x = x.detach().requires_grad_()
    hx = None if hx is None else tuple(part.detach().requires_grad_() for part in hx)
    outs = tensors(module(pack(x), as_torch_takes_it(hx)))
    weights = [torch.linspace(-1.0, 1.5, out.numel(), dtype=out.dtype).view(out.shape) for out in outs]
    return outs, list(torch.autograd.grad(outs, [x, *(hx or ()), *module.parameters()], weights))


@contextmanager
def whatever_torch_warns_of() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def agree(ours: Any, theirs: Any, x: Tensor, hx: tuple[Tensor, ...] | None, **options: Any) -> None:
    """Outputs, last states and gradients of both are the same. Ours goes first: a warning that torch gives once is heard."""
    outs, grads = results(ours, x, hx, **options)
    with whatever_torch_warns_of():
        their_outs, their_grads = results(theirs, x, hx, **options)
    for given, wanted, tolerance in zip((outs, grads), (their_outs, their_grads), TOLERANCE[x.dtype], strict=True):
        torch.testing.assert_close(given, wanted, rtol=tolerance, atol=tolerance)


# --- the same numbers ------------------------------------------------------------------------------------------------

GRID = list(product(*[(False, True)] * 3, (1, 2)))
GRID_NAMES = [f"bias={b}, batch_first={f}, bidirectional={d}, layers={n}" for b, f, d, n in GRID]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("bias", "batch_first", "bidirectional", "num_layers"), GRID, ids=GRID_NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_module_gives_the_numbers_and_gradients_of_torch(
    kind: str, bias: bool, batch_first: bool, bidirectional: bool, num_layers: int, dtype: torch.dtype
) -> None:
    options = dict(bias=bias, batch_first=batch_first, bidirectional=bidirectional, num_layers=num_layers)
    ours, theirs = pair(kind, **options, dtype=dtype)
    xs = torch.randn(*((BATCH, TIME) if batch_first else (TIME, BATCH)), INPUTS, dtype=dtype)
    x = torch.randn(TIME, INPUTS, dtype=dtype)
    for given, hx in [(xs, None), (xs, states(ours, BATCH)), (x, None), (x, states(ours))]:
        agree(ours, theirs, given, hx)


ROWS = {
    "two rows": ([5, 3], True),
    "five rows": ([5, 3, 3, 2, 2], True),
    "unsorted rows": ([2, 5, 3], False),
    "rows of one length": ([4, 4], True),
}


@pytest.mark.parametrize("started", [False, True], ids=["from zeros", "from a state"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one direction", "two directions"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_sequence_gives_the_packed_sequence_of_torch(
    kind: str, rows: str, bidirectional: bool, started: bool
) -> None:
    lengths, enforce_sorted = ROWS[rows]
    ours, theirs = pair(kind, num_layers=2, bidirectional=bidirectional)
    xs = torch.randn(len(lengths), max(lengths), INPUTS)
    hx = states(ours, len(lengths)) if started else None

    def pack(xs: Tensor) -> PackedSequence:
        return pack_padded_sequence(xs, torch.tensor(lengths), batch_first=True, enforce_sorted=enforce_sorted)

    agree(ours, theirs, xs, hx, pack=pack)
    given = ours(pack(xs), as_torch_takes_it(hx))[0]
    with whatever_torch_warns_of():
        wanted = theirs(pack(xs), as_torch_takes_it(hx))[0]
    assert isinstance(given, PackedSequence)
    for part in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        mine, torchs = getattr(given, part), getattr(wanted, part)
        assert torch.equal(mine, torchs) if torchs is not None else mine is None, part


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_and_states_need_not_be_contiguous(kind: str, batch_first: bool) -> None:
    ours, theirs = pair(kind, num_layers=2, bidirectional=True, batch_first=batch_first)
    outer, inner = (BATCH, TIME) if batch_first else (TIME, BATCH)
    transposed = torch.randn(inner, outer, INPUTS).transpose(0, 1)
    every_second = torch.randn(outer, inner, 2 * INPUTS)[..., ::2]
    hx = tuple(part.transpose(0, 1).contiguous().transpose(0, 1) for part in states(ours, BATCH))
    for xs in (transposed, every_second, torch.randn(INPUTS, inner, outer).permute(2, 1, 0)):
        assert not xs.is_contiguous() and not hx[0].is_contiguous()
        agree(ours, theirs, xs, hx)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("kind", CELLS)
def test_one_step_gives_the_numbers_and_gradients_of_torch(kind: str, bias: bool, dtype: torch.dtype) -> None:
    ours, theirs = pair(kind, bias=bias, dtype=dtype)
    for batch in ([BATCH], []):
        x = torch.randn(*batch, INPUTS, dtype=dtype)
        for hx in (None, states(ours, *batch)):
            agree(ours, theirs, x, hx)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_of_nothing_changes_nothing(kind: str) -> None:
    with whatever_torch_warns_of():
        theirs = build(nn, kind, num_layers=2, dropout=0.0)
    agree(
        build(recurra, kind, num_layers=2, dropout=0.0).train(), theirs.train(), torch.randn(TIME, BATCH, INPUTS), None
    )


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one direction", "two directions"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_drops_the_same_units_as_in_torch(kind: str, bidirectional: bool, batch_first: bool) -> None:
    ours, theirs = pair(kind, num_layers=3, dropout=0.5, bidirectional=bidirectional, batch_first=batch_first)
    xs = torch.randn(BATCH, TIME, INPUTS)
    torch.manual_seed(1)
    given = tensors(ours(xs))
    torch.manual_seed(1)
    with whatever_torch_warns_of():
        wanted = tensors(theirs(xs))
    torch.testing.assert_close(given, wanted, rtol=1e-6, atol=1e-6)
    assert not torch.equal(tensors(ours(xs))[0], given[0]), "nothing was dropped"
    agree(ours.eval(), theirs.eval(), xs, None)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_of_a_packed_sequence_is_drawn_from_the_seed(kind: str) -> None:
    ours = build(recurra, kind, num_layers=2, dropout=0.5)
    packed = pack_padded_sequence(torch.randn(2, TIME, INPUTS), torch.tensor([5, 3]), batch_first=True)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(ours(packed)[0].data)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


# --- the same modules ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_the_same_seed_starts_the_same_parameters_under_the_same_names(kind: str) -> None:
    options = {} if kind in CELLS else dict(num_layers=2, bidirectional=True)
    ours, theirs = pair(kind, **options)
    assert isinstance(ours, type(theirs)) and type(ours) is getattr(recurra, type(theirs).__name__)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.state_dict().items())
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_weights_load_from_torch_and_into_torch(kind: str) -> None:
    ours, theirs = pair(kind)
    x = torch.randn(TIME, INPUTS) if kind in KINDS else torch.randn(INPUTS)
    for source, sink in ((theirs, ours), (ours, theirs)):
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.uniform_(-1, 1)
        sink.load_state_dict(source.state_dict())
        agree(ours, theirs, x, None)


@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_a_module_comes_back_from_pickle_and_deepcopy(kind: str) -> None:
    ours = build(recurra, kind)
    x = torch.randn(TIME, INPUTS) if kind in KINDS else torch.randn(INPUTS)
    before = tensors(ours(x))
    for other in (pickle.loads(pickle.dumps(ours)), copy.deepcopy(ours)):
        assert type(other) is type(ours)
        assert all(torch.equal(a, b) for a, b in zip(tensors(other(x)), before, strict=True))
        with torch.no_grad():
            next(other.parameters()).add_(1.0)
        assert not torch.equal(tensors(other(x))[0], before[0]), "the copy computes with other weights than its own"
    assert torch.equal(tensors(ours(x))[0], before[0]), "a change to a copy reached the original"


def test_a_module_moves_to_another_dtype_and_back() -> None:
    ours, theirs = pair("LSTM", bidirectional=True)
    agree(ours.double(), theirs.double(), torch.randn(TIME, BATCH, INPUTS, dtype=torch.float64), None)
    agree(ours.float(), theirs.float(), torch.randn(TIME, BATCH, INPUTS), None)


def test_the_constructor_warns_and_refuses_as_that_of_torch() -> None:
    for home in (recurra, nn):
        with pytest.warns(UserWarning, match="dropout option adds dropout after all but last"):
            home.LSTM(2, 3, dropout=0.5)
        with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM"):
            home.GRU(2, 3, proj_size=1)


# --- the same errors -------------------------------------------------------------------------------------------------


def changed(parts: tuple[Tensor, ...], number: int, change: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    return tuple(change(part) if at == number else part for at, part in enumerate(parts))


def packed(xs: Tensor) -> PackedSequence:
    return pack_padded_sequence(xs, torch.full((xs.shape[1],), xs.shape[0]))


GOOD = torch.zeros(TIME, BATCH, INPUTS)
# what is wrong: the input, the start state (from the right one), and what is said of it
WRONG: dict[str, tuple[Any, Callable[[tuple[Tensor, ...]], tuple[Tensor, ...] | None], str]] = {
    "features": (torch.zeros(TIME, BATCH, 6), lambda hx: hx, r"input.size\(-1\) must be equal .* Expected 2, got 6"),
    "features, from zeros": (torch.zeros(TIME, BATCH, 6), lambda hx: None, "Expected 2, got 6"),
    "features, unbatched": (torch.zeros(TIME, 6), lambda hx: None, "Expected 2, got 6"),
    "features, packed": (packed(torch.zeros(TIME, BATCH, 6)), lambda hx: hx, "Expected 2, got 6"),
    "features, packed, from zeros": (packed(torch.zeros(TIME, BATCH, 6)), lambda hx: None, "Expected 2, got 6"),
    "input of 4 dimensions": (GOOD[None], lambda hx: None, "Expected input to be 2D or 3D, got 4D"),
    "input of 1 dimension": (GOOD[0, 0], lambda hx: None, "Expected input to be 2D or 3D, got 1D"),
    "dtype of the input": (GOOD.double(), lambda hx: None, r"RNN input dtype \(torch.float64\) does not match weight"),
    "rows of the state": (
        GOOD,
        lambda hx: tuple(part[:, 1:] for part in hx),
        r"Expected hidden(\[0\])? size \(2, 4, 3\), got \[2, 3, 3\]",
    ),
    "layers of the state": (GOOD, lambda hx: tuple(part[1:] for part in hx), r"size \(2, 4, 3\), got \[1, 4, 3\]"),
    "units of the state": (GOOD, lambda hx: tuple(part[..., 1:] for part in hx), r"\(2, 4, 3\), got \[2, 4, 2\]"),
    "units of the state, packed": (packed(GOOD), lambda hx: tuple(part[..., 1:] for part in hx), r"got \[2, 4, 2\]"),
    "state without rows": (
        GOOD,
        lambda hx: tuple(part[:, 0] for part in hx),
        r"For batched 3-D input, hx( and cx)? should also be 3-D but got (2-D tensor|\(2-D, 2-D\) tensors)",
    ),
    "state with rows": (
        GOOD[:, 0],
        lambda hx: hx,
        r"For unbatched 2-D input, hx( and cx)? should also be 2-D but got (3-D tensor|\(3-D, 3-D\) tensors)",
    ),
    "dtype of the state": (GOOD, lambda hx: tuple(part.double() for part in hx), "same dtype|unsupported data type"),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", ["RNN tanh", "GRU", "LSTM"])
def test_a_wrong_call_raises_what_torch_raises(kind: str, wrong: str) -> None:
    input, change, words = WRONG[wrong]
    modules = pair(kind, num_layers=2)
    if kind == "LSTM" and "packed" in wrong:
        modules = modules[
            :1
        ]  # torch.nn.LSTM does not look at what comes with a packed sequence, and gives some numbers
    kinds = []
    for module in modules:
        hx = as_torch_takes_it(change(states(module, BATCH)))
        with pytest.raises((RuntimeError, ValueError), match=words) as caught:
            module(input, hx)
        kinds.append(caught.type)
    assert len(set(kinds)) == 1


def test_a_wrong_cell_state_of_an_lstm_raises_what_torch_raises() -> None:
    for module in pair("LSTM", num_layers=2):
        hx = changed(states(module, BATCH), 1, lambda c: c[:, :1])
        with pytest.raises(RuntimeError, match=r"Expected hidden\[1\] size \(2, 4, 3\), got \[2, 1, 3\]"):
            module(GOOD, hx)


def test_a_state_of_the_wrong_kind_raises_what_torch_raises() -> None:
    for module in pair("GRU"):
        with pytest.raises(AttributeError, match="no attribute 'dim'"):
            module(GOOD, states(module, BATCH))


WRONG_STEPS: dict[str, tuple[Tensor, Callable[[tuple[Tensor, ...]], tuple[Tensor, ...] | None], str]] = {
    "features": (torch.zeros(BATCH, 6), lambda hx: hx, "inconsistent input_size: got 6,? expected 2"),
    "features, from zeros": (torch.zeros(BATCH, 6), lambda hx: None, "inconsistent input_size: got 6,? expected 2"),
    "features, one row": (torch.zeros(6), lambda hx: None, "inconsistent input_size: got 6,? expected 2"),
    "input of 3 dimensions": (GOOD, lambda hx: None, "Expected input to be 1D or 2D, got 3D"),
    "state of 3 dimensions": (GOOD[0], lambda hx: tuple(part[None] for part in hx), "to be 1D or 2D, got 3D"),
    "rows of the state": (
        GOOD[0],
        lambda hx: tuple(part[1:] for part in hx),
        "size 4 doesn't match hidden0 batch size 3",
    ),
    "one row of state for many": (GOOD[0], lambda hx: tuple(part[:1] for part in hx), "hidden0 batch size 1"),
    "units of the state": (GOOD[0], lambda hx: tuple(part[:, 1:] for part in hx), "hidden_size: got 2, expected 3"),
    "state without rows": (
        GOOD[0],
        lambda hx: tuple(part[0] for part in hx),
        "size 4 doesn't match hidden0 batch size 3",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_STEPS)
@pytest.mark.parametrize("kind", CELLS)
def test_a_wrong_step_raises_what_torch_raises(kind: str, wrong: str) -> None:
    x, change, words = WRONG_STEPS[wrong]
    kinds = []
    for module in pair(kind):
        hx = as_torch_takes_it(change(states(module, BATCH)))
        with pytest.raises((RuntimeError, ValueError), match=words) as caught:
            module(x, hx)
        kinds.append(caught.type)
    assert kinds[0] is kinds[1]


@pytest.mark.parametrize("change", [lambda c: c[:1], lambda c: c[:, :1]], ids=["rows", "units"])
def test_a_cell_state_is_not_stretched_to_fit(change: Callable[[Tensor], Tensor]) -> None:
    for module in pair("LSTMCell"):
        with pytest.raises(RuntimeError, match="hidden1"):
            module(GOOD[0], changed(states(module, BATCH), 1, change))


# --- more than torch.nn ----------------------------------------------------------------------------------------------


def test_forward_mode_works_for_an_lstm_in_float32_and_not_in_torch() -> None:
    ours, theirs = pair("LSTM", num_layers=2, bidirectional=True)
    xs, direction = torch.randn(2, TIME, BATCH, INPUTS).unbind()
    _, tangent = torch.func.jvp(lambda xs: ours(xs)[0], (xs,), (direction,))
    oracle, step = copy.deepcopy(theirs).double(), 1e-6 * direction.double()
    with torch.no_grad():
        difference = (oracle(xs.double() + step)[0] - oracle(xs.double() - step)[0]) / 2e-6
    torch.testing.assert_close(tangent, difference.float(), rtol=1e-4, atol=1e-5)
    with pytest.raises(NotImplementedError, match="forward AD"):
        torch.func.jvp(lambda xs: theirs(xs)[0], (xs,), (direction,))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_each_sample_come_out_of_vmap_and_in_torch_for_the_plain_lstm_alone(kind: str) -> None:
    # sizes that no other test has, so that nothing of this module was made before, outside of vmap
    ours, theirs = pair(kind, (5, 7), batch_first=True)
    xs = torch.randn(BATCH, TIME, 5)

    def total(module: Any) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
        return lambda weights, x: torch.func.functional_call(module, weights, (x,))[0].square().sum()

    weights = {name: parameter.detach() for name, parameter in ours.named_parameters()}
    each = torch.func.vmap(torch.func.grad(total(ours)), in_dims=(None, 0))(weights, xs)
    for row in range(BATCH):
        with whatever_torch_warns_of():
            theirs.zero_grad()
            theirs(xs[row])[0].square().sum().backward()
        alone = {name: parameter.grad for name, parameter in theirs.named_parameters()}
        torch.testing.assert_close({name: grads[row] for name, grads in each.items()}, alone, rtol=1e-4, atol=1e-5)
    if kind != "LSTM":
        with whatever_torch_warns_of(), pytest.raises(RuntimeError, match="doesn't match the broadcast shape"):
            torch.func.vmap(torch.func.grad(total(theirs)), in_dims=(None, 0))(weights, xs)


class Tagger(nn.Module):
    """A small module that holds a recurrent one."""

    def __init__(self, rnn: Any) -> None:
        super().__init__()
        self.rnn, self.readout = rnn, nn.Linear(rnn.hidden_size, 2)

    def forward(self, xs: Tensor) -> Tensor:
        return self.readout(self.rnn(xs)[0])


ANY_SIZE = {"xs": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN tanh"])
def test_an_exported_module_takes_any_batch_and_any_length(kind: str) -> None:
    model = Tagger(build(recurra, kind, (3, 6), batch_first=True)).eval()
    with torch.no_grad():
        program = torch.export.export(model, (torch.randn(3, 7, 3),), dynamic_shapes=ANY_SIZE).module()
        for batch, time in ((3, 7), (5, 11), (2, 2)):
            xs = torch.randn(batch, time, 3)
            torch.testing.assert_close(program(xs), model(xs), rtol=1e-6, atol=1e-6)


def test_torch_still_writes_the_length_of_the_example_into_the_exported_program() -> None:
    model = Tagger(build(nn, "GRU", (3, 6), batch_first=True)).eval()
    with whatever_torch_warns_of(), torch.no_grad(), pytest.raises(Exception, match=r"(?i)specializ|constraint"):
        torch.export.export(model, (torch.randn(3, 7, 3),), dynamic_shapes=ANY_SIZE)


@pytest.mark.parametrize("kind", [*KINDS, *CELLS])
def test_weights_given_for_one_call_are_used(kind: str) -> None:
    ours, theirs = pair(kind)
    x = torch.randn(TIME, INPUTS, dtype=torch.float64) if kind in KINDS else torch.randn(INPUTS, dtype=torch.float64)
    other = {name: torch.rand_like(parameter, dtype=torch.float64) for name, parameter in ours.named_parameters()}
    before = tensors(ours(x.float()))
    given = tensors(torch.func.functional_call(ours, other, (x,)))
    theirs.double().load_state_dict(other)
    with whatever_torch_warns_of():
        wanted = tensors(theirs(x))
    torch.testing.assert_close(given, wanted, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(a, b) for a, b in zip(tensors(ours(x.float())), before, strict=True)), "they stayed"


class Half(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_parametrised_weight_is_used(kind: str) -> None:
    ours, theirs = pair(kind, num_layers=2)
    xs = torch.randn(TIME, BATCH, INPUTS)
    parametrize.register_parametrization(ours, "weight_hh_l1", Half())
    with torch.no_grad():
        theirs.weight_hh_l1.div_(2)
    given = tensors(ours(xs))
    with whatever_torch_warns_of():
        torch.testing.assert_close(given, tensors(theirs(xs)), rtol=1e-6, atol=1e-6)
    given[0].sum().backward()
    with whatever_torch_warns_of():
        theirs(xs)[0].sum().backward()
    original = ours.parametrizations.weight_hh_l1.original
    torch.testing.assert_close(original.grad, theirs.weight_hh_l1.grad / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_have_gradients(kind: str) -> None:
    ours = build(recurra, kind, bidirectional=True, dtype=torch.float64)
    names = list(dict(ours.named_parameters()))

    def run(x: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
        hx, weights = parts[: -len(names)], dict(zip(names, parts[-len(names) :], strict=True))
        return tuple(tensors(torch.func.functional_call(ours, weights, (x, as_torch_takes_it(hx)))))

    x = torch.randn(2, 1, INPUTS, dtype=torch.float64)
    given = [part.detach().requires_grad_() for part in (x, *states(ours, 1), *ours.parameters())]
    assert torch.autograd.gradcheck(run, given, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, given, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_of_no_steps_leaves_the_state_as_it_was_and_is_refused_by_torch(kind: str) -> None:
    ours, theirs = pair(kind, num_layers=2)
    xs, hx = torch.zeros(0, BATCH, INPUTS), states(ours, BATCH)
    output, *last = tensors(ours(xs, as_torch_takes_it(hx)))
    assert output.shape == (0, BATCH, hx[0].shape[2])
    assert all(torch.equal(a, b) for a, b in zip(last, hx, strict=True))
    with whatever_torch_warns_of(), pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
        theirs(xs, as_torch_takes_it(hx))


# --- replace and restore ---------------------------------------------------------------------------------------------


class Doubled(nn.LSTM):
    """A user's own: it computes something else."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        output, last = super().forward(input, hx)
        return 2 * output, last


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)
        self.narrow = nn.GRU(8, 3, batch_first=True)


class Model(nn.Module):
    """Every recurrent module of torch.nn, one of the user's own, and one that is not recurrent."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.steps = nn.ModuleList([nn.RNNCell(3, 3), nn.GRUCell(3, 3), nn.LSTMCell(3, 3)])
        self.simple = nn.RNN(3, 3, nonlinearity="relu", batch_first=True)
        self.own = Doubled(3, 3, batch_first=True)
        self.readout = nn.Linear(3, 2)

    def forward(self, xs: Tensor) -> Tensor:
        ys, _ = self.encoder.narrow(self.encoder.rnn(xs)[0])
        elman, gru, lstm = self.steps
        one, two, three, said = None, None, None, []
        for y in ys.unbind(1):
            one = elman(y, one)
            two = gru(one, two)
            three = lstm(two, three)
            said.append(three[0])
        return self.readout(self.own(self.simple(torch.stack(said, dim=1))[0])[0])


REPLACED = {
    "encoder.rnn": "LSTM",
    "encoder.narrow": "GRU",
    "steps.0": "RNNCell",
    "steps.1": "GRUCell",
    "steps.2": "LSTMCell",
    "simple": "RNN",
}


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model()


@pytest.fixture
def xs() -> Tensor:
    return torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(1))


def test_replace_changes_every_recurrent_module_in_place_and_restore_changes_it_back(model: Model, xs: Tensor) -> None:
    before, parameters, modules = model(xs), [id(p) for p in model.parameters()], [id(m) for m in model.modules()]
    report = recurra.replace(model)
    assert report.changed == {name: f"recurra.{kind}" for name, kind in REPLACED.items()}
    assert "encoder.rnn: now recurra.LSTM" in str(report).splitlines()
    assert all(type(model.get_submodule(name)) is getattr(recurra, kind) for name, kind in REPLACED.items())
    torch.testing.assert_close(model(xs), before, rtol=1e-6, atol=1e-6)
    report = recurra.restore(model)
    assert report.changed == {name: f"torch.nn.{kind}" for name, kind in REPLACED.items()}
    assert not report.left, "only what is ours could be restored"
    assert "simple: now torch.nn.RNN" in str(report).splitlines()
    assert all(type(model.get_submodule(name)) is getattr(nn, kind) for name, kind in REPLACED.items())
    assert torch.equal(model(xs), before)
    assert [id(p) for p in model.parameters()] == parameters and [id(m) for m in model.modules()] == modules


def test_a_subclass_is_left_alone_with_the_reason(model: Model) -> None:
    report = recurra.replace(model)
    assert report.left == {"own": "Doubled is a subclass and may compute something else"}
    assert "own: left as it is, Doubled is a subclass and may compute something else" in str(report).splitlines()
    assert type(model.own) is Doubled


def test_a_parametrised_module_of_torch_is_left_alone() -> None:
    model = nn.Sequential(nn.LSTM(2, 3))
    parametrize.register_parametrization(model[0], "weight_hh_l0", Half())
    report = recurra.replace(model)
    assert not report.changed and "ParametrizedLSTM is a subclass" in report.left["0"]


def test_hooks_still_fire_and_the_weights_are_still_those_that_were_there(model: Model, xs: Tensor) -> None:
    fired = []
    model.encoder.rnn.register_forward_hook(lambda module, given, result: fired.append(type(module)))
    model.encoder.rnn.register_forward_pre_hook(lambda module, given: fired.append("before"))
    recurra.replace(model)
    model(xs)
    assert fired == ["before", recurra.LSTM]
    with torch.no_grad():
        model.encoder.rnn.weight_hh_l1_reverse.add_(1.0)
    now = model(xs)
    recurra.restore(model)
    torch.testing.assert_close(model(xs), now, rtol=1e-6, atol=1e-6)


def test_a_module_that_is_recurrent_itself_is_replaced() -> None:
    module = nn.LSTM(2, 3)
    assert str(recurra.replace(module)) == "the module itself: now recurra.LSTM"
    assert type(module) is recurra.LSTM
    recurra.restore(module)
    assert type(module) is nn.LSTM


def test_a_model_without_recurrent_modules_is_reported_as_such() -> None:
    for turn in (recurra.replace, recurra.restore):
        report = turn(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
        assert not report.changed and not report.left
        assert str(report).startswith("nothing to change")


def test_replacing_twice_is_harmless(model: Model, xs: Tensor) -> None:
    recurra.replace(model)
    before = model(xs)
    report = recurra.replace(model)
    assert not report.changed and list(report.left) == ["own"]
    assert torch.equal(model(xs), before)
    recurra.restore(model)
    assert not recurra.restore(model).changed


def test_an_optimizer_built_before_trains_the_model_after(model: Model, xs: Tensor) -> None:
    def train(model: Model, change: Callable[[nn.Module], Any]) -> list[Tensor]:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        change(model)
        for _ in range(3):
            optimizer.zero_grad()
            model(xs).square().mean().backward()
            optimizer.step()
        return [parameter.detach() for parameter in model.parameters()]

    started = [parameter.detach().clone() for parameter in model.parameters()]
    expected = train(copy.deepcopy(model), lambda model: None)
    trained = train(model, recurra.replace)
    torch.testing.assert_close(trained, expected, rtol=1e-5, atol=1e-6)
    assert not any(torch.equal(now, then) for now, then in zip(trained, started, strict=True))


def test_derivatives_of_a_packed_sequence_are_right_in_every_mode() -> None:
    packed = pack_padded_sequence(torch.randn(3, 5, 2), torch.tensor([4, 2, 5]), batch_first=True, enforce_sorted=False)
    module = recurra.GRU(2, 3, batch_first=True)

    def total(data: Tensor) -> Tensor:
        ys, last = module(packed._replace(data=data))
        return ys.data.square().sum() + last.sum()

    data = packed.data.clone().requires_grad_()
    (reverse,) = torch.autograd.grad(total(data), data)
    torch.testing.assert_close(torch.func.grad(total)(packed.data), reverse, rtol=1e-5, atol=1e-6)
    _, forward = torch.func.jvp(total, (packed.data,), (torch.ones_like(packed.data),))
    torch.testing.assert_close(forward, reverse.sum(), rtol=1e-4, atol=1e-5)
    module.double()
    assert torch.autograd.gradgradcheck(total, (packed.data.double().requires_grad_(),))
