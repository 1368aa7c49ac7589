"""`RNN`, `GRU`, `LSTM` and their cells as torch.nn spells them, computed by recurra.

Each is torch.nn's own class with another computation: constructor, order of initialisation, `state_dict`, hooks, pickling
and `isinstance` come with it, and so do its checks and its messages. This is the one place where recurra inherits from
what is not abstract, and the one where a tensor may be time first.

The output of a layer is what its backward pass reads: unlike that of torch.nn's GRU and RNN it must not be changed in place
before, and torch says so where it is. Within torch.autocast outputs and states are of the type of the state that is given,
float32 where none is; torch.nn gives bfloat16 for some of its layers and float32 for others.

What works here and not in torch.nn 2.13 on a CPU: forward-mode derivatives of an LSTM in float32, gradients of each sample
through `vmap` (there only for an LSTM without projections), `torch.export` with a dynamic length, and sequences of no steps.
"""

import copy
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from recurra import cells, kernels
from recurra.cells import Cell
from recurra.state import State, flipped

Start = tuple[Tensor, ...]


class RNN(nn.RNN):
    """torch.nn.RNN, computed by `recurra.cells.Elman`."""

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:
        output, (h,) = _sequence(self, input, None if hx is None else (hx,))
        return output, h


class GRU(nn.GRU):
    """torch.nn.GRU, computed by `recurra.cells.GRU`."""

    def forward(self, input: Any, hx: Tensor | None = None) -> Any:
        output, (h,) = _sequence(self, input, None if hx is None else (hx,))
        return output, h


class LSTM(nn.LSTM):
    """torch.nn.LSTM, computed by `recurra.cells.LSTM`, or by `ProjectedLSTM` where `proj_size` is given."""

    def forward(self, input: Any, hx: Start | None = None) -> Any:
        return _sequence(self, input, hx)


class RNNCell(nn.RNNCell):
    """torch.nn.RNNCell, computed by `recurra.cells.Elman`."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return _one_step(self, input, None if hx is None else (hx,))[0]


class GRUCell(nn.GRUCell):
    """torch.nn.GRUCell, computed by `recurra.cells.GRU`."""

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return _one_step(self, input, None if hx is None else (hx,))[0]


class LSTMCell(nn.LSTMCell):
    """torch.nn.LSTMCell, computed by `recurra.cells.LSTM`."""

    def forward(self, input: Tensor, hx: Start | None = None) -> tuple[Tensor, Tensor]:
        h, c = _one_step(self, input, hx)
        return h, c


OURS: dict[type[nn.Module], type[nn.Module]] = {
    nn.RNN: RNN,
    nn.GRU: GRU,
    nn.LSTM: LSTM,
    nn.RNNCell: RNNCell,
    nn.GRUCell: GRUCell,
    nn.LSTMCell: LSTMCell,
}
LSTMS, GRUS = (nn.LSTM, nn.LSTMCell), (nn.GRU, nn.GRUCell)
THEIRS = {ours: theirs for theirs, ours in OURS.items()}


class Report(NamedTuple):
    """What `replace` or `restore` did: names of modules with the class they have now, and those left alone with the reason."""

    changed: dict[str, str]
    left: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{name}: now {kind}" for name, kind in self.changed.items()]
        lines += [f"{name}: left as it is, {reason}" for name, reason in self.left.items()]
        return "\n".join(lines) or "nothing to change: there is no recurrent module of torch.nn in it"


def replace(module: nn.Module) -> Report:
    """Turn every recurrent module of torch.nn within `module`, itself included, into recurra's, in place.

    Weights, hooks, names and whoever holds a reference stay: only the class of each module changes, and with it the
    computation. Subclasses of torch's modules are left alone, since they may compute something else.
    """
    return _turn(module, OURS, "recurra")


def restore(module: nn.Module) -> Report:
    """Undo `replace`: every module of `recurra.drop_in` within `module` is torch.nn's again, in place."""
    return _turn(module, THEIRS, "torch.nn")


def _turn(module: nn.Module, classes: dict[type[nn.Module], type[nn.Module]], home: str) -> Report:
    report = Report({}, {})
    for name, child in module.named_modules():
        shown = name or "the module itself"
        if type(child) in classes:
            child.__class__ = classes[type(child)]
            report.changed[shown] = f"{home}.{type(child).__name__}"
        elif isinstance(child, tuple(classes)) and type(child) not in classes.values():
            report.left[shown] = f"{type(child).__qualname__} is a subclass and may compute something else"
    return report


def _sequence(module: Any, input: Any, hx: Start | None) -> Any:
    """What torch.nn.RNNBase.forward returns: output in the layout of the input, and the last state as a tuple."""
    if isinstance(input, PackedSequence):
        _check(module, input.data, hx, input.batch_sizes)
        padding = _Padding(input)
        ys, last = _layers(module, padding.padded(input.data), padding.lengths, hx)
        return input._replace(data=padding.packed(ys)), last
    if input.dim() not in (2, 3):
        raise ValueError(f"{type(module).__name__}: Expected input to be 2D or 3D, got {input.dim()}D instead")
    batched, rows = input.dim() == 3, 0 if module.batch_first else 1
    if hx is not None:
        _check_dimensions(input, hx)
    whole = input if batched else input.unsqueeze(rows)
    start = None if hx is None else tuple(part if batched else part[:, None] for part in hx)
    _check(module, whole, start, None)
    ys, last = _layers(module, whole if module.batch_first else whole.transpose(0, 1), None, start)
    ys = ys if module.batch_first else ys.transpose(0, 1)
    return (ys, last) if batched else (ys.select(rows, 0), tuple(part[:, 0] for part in last))


def _check_dimensions(input: Tensor, hx: Start) -> None:
    """Raise what torch.nn raises where a batched input comes with an unbatched state, or the other way."""
    if all(part.dim() == input.dim() for part in hx):
        return
    names, given = "hx", f"{hx[0].dim()}-D tensor"
    if len(hx) > 1:
        names, given = "hx and cx", f"({', '.join(f'{part.dim()}-D' for part in hx)}) tensors"
    raise RuntimeError(
        f"For {'batched 3' if input.dim() == 3 else 'unbatched 2'}-D input, {names} should also be {input.dim()}-D "
        f"but got {given}"
    )


def _check(module: Any, input: Tensor, hx: Start | None, batch_sizes: Tensor | None) -> None:
    """Raise what torch.nn raises, in its words, where sizes or dtypes do not fit. Not by `check_forward_args`: that compares
    with a list of the weights that has to be renewed, on the module, whenever something stands in for one of them."""
    wanted, automatic = module.weight_ih_l0.dtype, torch._C._is_any_autocast_enabled()
    if input.dtype != wanted and not automatic:
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({wanted}). "
            f"Convert input: input.to({wanted}), or convert model: model.to({input.dtype})"
        )
    if input.shape[-1] != module.input_size:
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {module.input_size}, got {input.shape[-1]}"
        )
    if hx is None:
        return
    sizes = [module.get_expected_hidden_size(input, batch_sizes)]
    if isinstance(module, nn.LSTM):
        sizes.append(module.get_expected_cell_size(input, batch_sizes))
    for number, (part, size) in enumerate(zip(hx, sizes, strict=True)):
        which = f"hidden[{number}]" if isinstance(module, nn.LSTM) else "hidden"
        module.check_hidden_size(part, size, f"Expected {which} size {{}}, got {{}}")
        if part.dtype != input.dtype and not automatic:
            raise RuntimeError(f"input and {which} must have the same dtype, but got {input.dtype} and {part.dtype}")


class _Padding:
    """Where the steps of a packed sequence lie in `[batch, time]`, its rows in the order of the user, and back.

    Each way is a selection whose gradient is the selection of the other way: torch's own functions copy step by step.
    """

    def __init__(self, like: PackedSequence) -> None:
        sizes, device = like.batch_sizes, like.data.device
        rows, steps, count = int(sizes[0]), len(sizes), like.data.shape[0]
        here = torch.arange(rows) < sizes[:, None]  # [time, row]: in the order in which a packed sequence lies
        time, row = here.nonzero(as_tuple=True)
        if like.sorted_indices is not None:
            row = like.sorted_indices.cpu()[row]
        places = row * steps + time
        origin = torch.full((rows * steps,), count)  # past the last step: a step of zeros
        origin[places] = torch.arange(count)
        self._shape, self._places, self._origin = (rows, steps), places.to(device), origin.to(device)
        self.lengths = torch.bincount(row, minlength=rows).to(device)

    def padded(self, data: Tensor) -> Tensor:
        """[steps in all, features] -> [batch, time, features], zeros past each row's end."""
        return _Selection.apply(data, self._origin, self._places).unflatten(0, self._shape)

    def packed(self, xs: Tensor) -> Tensor:
        """[batch, time, features] -> [steps in all, features]."""
        return _Selection.apply(xs.flatten(0, 1), self._places, self._origin)


class _Selection(torch.autograd.Function):
    """Rows of a matrix by index, zeros for the index past the last; `back` says for each row of the matrix where it went."""

    generate_vmap_rule = True

    @staticmethod
    def forward(matrix: Tensor, index: Tensor, back: Tensor) -> Tensor:
        if index.numel() > matrix.shape[0]:
            matrix = F.pad(matrix, (0, 0, 0, 1))
        return matrix.index_select(0, index)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        index, back = ctx.saved_tensors
        return _Selection.apply(grad, back, index), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        index, back = ctx.saved_tensors
        return _Selection.apply(tangent, index, back)


def _layers(module: Any, xs: Tensor, lengths: Tensor | None, hx: Start | None) -> tuple[Tensor, Start]:
    """All layers and directions over `[batch, time, features]`; torch numbers the states layer by layer, forward first."""
    ends: list[Start] = []
    ways = 2 if module.bidirectional else 1
    for layer in range(module.num_layers):
        weights = [_weights(module, f"_l{layer}{suffix}") for suffix in ("", "_reverse")[:ways]]
        starts = [
            _zeros(module, xs.shape[0], own[1]) if hx is None else tuple(part[len(ends) + way] for part in hx)
            for way, own in enumerate(weights)
        ]
        both = kernels.run_both_ways(_name(module), xs, lengths, starts, weights) if ways == 2 else None
        sides = both or [_one_way(module, xs, lengths, starts[way], weights[way], way == 1) for way in range(ways)]
        ends += [last for _, last in sides]
        xs = sides[0][0] if ways == 1 else torch.cat([ys for ys, _ in sides], dim=2)
        if module.dropout > 0 and layer < module.num_layers - 1:
            xs = _dropout(xs, module)
    if len(ends) == 1:
        return xs, tuple(part[None] for part in ends[0])
    return xs, tuple(torch.stack(parts) for parts in zip(*ends, strict=True))


def _one_way(
    module: Any, xs: Tensor, lengths: Tensor | None, start: Start, weights: Start, reverse: bool
) -> tuple[Tensor, Start]:
    """One layer in one direction. Not by `Cell.unroll`: torch's checks were made."""
    name = _name(module)
    fast = kernels.run(name, xs, lengths, start, weights, reverse)
    if fast is not None:
        return fast
    cell = _cell(name, xs.shape[2], module.hidden_size, weights)
    ys, last = cell.scan(flipped(xs, lengths) if reverse else xs, _state(cell, start), lengths)
    return flipped(ys, lengths) if reverse else ys, last


def _zeros(module: Any, batch: int, like: Tensor) -> Start:
    h = like.new_zeros(batch, like.shape[1])
    if not isinstance(module, LSTMS):
        return (h,)
    return h, h if like.shape[1] == module.hidden_size else like.new_zeros(batch, module.hidden_size)


def _dropout(xs: Tensor, module: Any) -> Tensor:
    """Drawn time first, as torch.nn draws it for padded input: the same seed gives the same numbers."""
    if not module.training:
        return xs
    return F.dropout(xs.transpose(0, 1).contiguous(), module.dropout).transpose(0, 1)


def _state(cell: Cell, parts: Start) -> State:
    return type(cell.initial_state(0))(*parts)


def _one_step(module: Any, input: Tensor, hx: Start | None) -> State:
    """What the forward of a torch.nn cell returns, as a state of ours."""
    name = type(module).__name__
    if input.dim() not in (1, 2):
        raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
    for number, part in enumerate(hx or ()):
        if part.dim() not in (1, 2):
            which = f"hx[{number}]" if isinstance(module, nn.LSTMCell) else "hidden"
            raise ValueError(f"{name}: Expected {which} to be 1D or 2D, got {part.dim()}D instead")
    batched = input.dim() == 2
    x = input if batched else input[None]
    start = None if hx is None else tuple(part if batched else part[None] for part in hx)
    _check_one_step(module, x, start or ())
    cell = _cell(_name(module), x.shape[1], module.hidden_size, _weights(module, ""))
    _, after = cell(x, cell.initial_state(x.shape[0]) if start is None else _state(cell, start))
    return after if batched else tuple(part[0] for part in after)


def _check_one_step(module: Any, x: Tensor, start: Start) -> None:
    """Raise what torch's operators raise, in their words, where sizes do not fit: some would be broadcast here."""
    if x.shape[1] != module.input_size:
        raise RuntimeError(f"input has inconsistent input_size: got {x.shape[1]} expected {module.input_size}")
    for number, part in enumerate(start):
        if part.shape[0] != x.shape[0]:
            raise RuntimeError(f"Input batch size {x.shape[0]} doesn't match hidden{number} batch size {part.shape[0]}")
        if part.shape[1] != module.hidden_size:
            raise RuntimeError(
                f"hidden{number} has inconsistent hidden_size: got {part.shape[1]}, expected {module.hidden_size}"
            )


def _weights(module: Any, suffix: str) -> tuple[Tensor, ...]:
    """What the module has now under torch's names with this suffix: weight_ih, weight_hh, bias_ih, bias_hh, and weight_hr of
    a projection. Whatever stands in for one (a parametrisation, `functional_call`) is used."""
    parameters = module._parameters  # looked up where they are: a module asks three dictionaries for each

    def weight(name: str) -> Tensor:
        found = parameters.get(name + suffix)
        return getattr(module, name + suffix) if found is None else found

    w_ih, w_hh = weight("weight_ih"), weight("weight_hh")
    if module.bias:
        b_ih, b_hh = weight("bias_ih"), weight("bias_hh")
    else:
        b_ih = b_hh = w_hh.new_zeros(w_hh.shape[0])
    projected = (weight("weight_hr"),) if getattr(module, "proj_size", 0) else ()
    return w_ih, w_hh, b_ih, b_hh, *projected


def _name(module: Any) -> str:
    """Of the recurrence, as in `kernels.KERNELS`."""
    if isinstance(module, LSTMS):
        return "lstm-projected" if getattr(module, "proj_size", 0) else "lstm"
    return "gru" if isinstance(module, GRUS) else f"elman-{module.nonlinearity}"


def _cell(name: str, inputs: int, units: int, weights: tuple[Tensor, ...]) -> Cell:
    """A cell of ours over these weights."""
    cell = copy.copy(_frame(name, inputs, units, weights[1].shape[1]))
    # As plain attributes: not all of them are parameters, and none is the cell's own.
    cell.__dict__.update(zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"), weights, strict=False))
    return cell


@lru_cache(maxsize=256)
def _frame(name: str, inputs: int, units: int, outputs: int) -> Cell:
    """A cell without weights."""
    build: Callable[[], Cell] = {
        "elman-tanh": lambda: cells.Elman(inputs, units),
        "elman-relu": lambda: cells.Elman(inputs, units, activation="relu"),
        "gru": lambda: cells.GRU(inputs, units),
        "lstm": lambda: cells.LSTM(inputs, units),
        "lstm-projected": lambda: cells.ProjectedLSTM(inputs, units, projection=outputs),
    }[name]
    with torch.device("meta"), torch._C._DisableFuncTorch():  # vmap refuses the random start, though it is on no device
        cell = build()
    cell._parameters.clear()
    return cell
