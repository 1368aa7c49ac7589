"""The faster paths: overrides of a cell's plain loop with the same name and the same numbers.

`KERNELS` maps the name of a recurrence to a function

    kernel(xs, lengths, state, weights, reverse) -> (ys, last state)

    xs       [batch, time, features], batch and time at least 1
    lengths  None where every row is full length, else int64 [batch]; past a row's end `xs` may hold anything, `ys` zeros
    state    tuple of [batch, units], the fields of the cell's state in order
    weights  the cell's parameters in torch's order: weight_ih, weight_hh, bias_ih, bias_hh (zeros for a cell with one bias), and
             what else it has: weight_hr of a projection, peepholes, the share that leaky units keep
    reverse  whether each row is read from its own end to its start

A cell asks `run` and gets None where no kernel takes the call; then it runs its plain loop, which is the definition.

Bfloat16: within `torch.autocast("cpu", torch.bfloat16)` and without gradients, what is multiplied is bfloat16, and sums, gates and
states are float32; on a processor without instructions for it, and where gradients are wanted, all is float32. Sequences through
a cell whose weights are bfloat16 or float16 are computed in the same way, and come back in its own type.

Under torch.compile the native kernels are operators of the graph. Under torch.export a cell writes its loop, so that the
program runs wherever torch does; within `exported_natively()` it writes the operator, which is faster and needs recurra.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from recurra.kernels import following, fused, native, ops
from recurra.state import flipped, leaves, masked

Result = tuple[Tensor, tuple[Tensor, ...]]
Parts = tuple[Tensor, ...]
SHORT = (torch.bfloat16, torch.float16)
Kernel = Callable[[Tensor, Tensor | None, Parts, Parts, bool], Result | None]


def _native_first(name: str, otherwise: fused.Fused | None = None) -> Kernel:
    """The native recurrence where it takes the call (float32 on a CPU), torch's own otherwise, if it has one."""
    theirs = None if otherwise is None else _either_way(otherwise)

    def kernel(xs: Tensor, lengths: Tensor | None, state: Parts, weights: Parts, reverse: bool) -> Result | None:
        if name in native.KINDS and native.takes(xs, state, weights):
            way = native.run if native.has_memory(xs, state, weights) else ops.run
            return way(name, xs, lengths, state, weights, reverse)
        return None if theirs is None else theirs(xs, lengths, state, weights, reverse)

    return kernel


def _either_way(forwards: fused.Fused) -> Kernel:
    def kernel(xs: Tensor, lengths: Tensor | None, state: Parts, weights: Parts, reverse: bool) -> Result:
        if not reverse:
            return forwards(xs, lengths, state, weights)
        ys, last = forwards(flipped(xs, lengths), lengths, state, weights)
        return flipped(ys, lengths), last

    return kernel


KERNELS: dict[str, Kernel] = {
    "elman-tanh": _native_first("elman-tanh", fused.elman_tanh),
    "elman-relu": _native_first("elman-relu", fused.elman_relu),
    "lstm": _native_first("lstm", fused.lstm),
    "lstm-projected": _either_way(fused.lstm_projected),
    "gru": _native_first("gru", fused.gru),
    **{
        name: _native_first(name)
        for name in (
            "elman-logistic", "leaky-tanh", "leaky-relu", "lstm-sigmoid", "lstm-peephole", "lstm-coupled", "ligru",
        )
    },
}  # fmt: skip


class _Switch:
    """A choice that holds within a context of this thread or task.

    A compiled graph cannot see a context variable. It asks whether the choice holds anywhere in the process, and is traced
    anew where the answer has changed.
    """

    def __init__(self, name: str) -> None:
        self._here = ContextVar(name, default=False)
        self._lock, self._contexts, self._anywhere = Lock(), 0, False

    def holds(self) -> bool:
        return self._anywhere if torch.compiler.is_compiling() else self._here.get()

    @contextmanager
    def on(self) -> Iterator[None]:
        token = self._here.set(True)
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)
            self._here.reset(token)

    def _count(self, more: int) -> None:
        with self._lock:
            self._contexts += more
            self._anywhere = self._contexts > 0


_plain_only = _Switch("plain_only")
_natively = _Switch("exported_natively")


@contextmanager
def reference() -> Iterator[None]:
    """Within this context every cell runs its plain loop."""
    with _plain_only.on():
        yield


@contextmanager
def exported_natively() -> Iterator[None]:
    """Within this context torch.export writes the native kernels into a program and not the loop of a cell. Such a program
    runs where recurra is imported, on a CPU, and not in ONNX."""
    with _natively.on():
        yield


def run(
    name: str, xs: Tensor, lengths: Tensor | None, state: Parts, weights: Parts, reverse: bool = False
) -> Result | None:
    """The recurrence `name` on its faster path, or None where the plain loop has to do it."""
    if not wanted() or 0 in xs.shape[:2] or _is_transformed(xs, *state, *weights) or _is_traced_in_short(xs, *state):
        return None
    if _is_mapped():
        suit = name in native.KINDS and native.suits(xs, state, weights)
        return ops.run(name, xs, lengths, state, weights, reverse) if suit else None
    if torch.compiler.is_compiling():
        return _traced(name, xs, lengths, state, weights, reverse)
    if name not in native.KINDS or not _are_short(xs, *state):
        return KERNELS[name](xs, lengths, state, weights, reverse)
    with torch.autocast("cpu", torch.bfloat16, enabled=native.halves() or state[0].dtype is torch.bfloat16):
        done = KERNELS[name](xs.float(), lengths, _floats(state), _floats(weights), reverse)
    return None if done is None else _like(state, *done)


def run_both_ways(
    name: str, xs: Tensor, lengths: Tensor | None, states: Sequence[Parts], weights: Sequence[Parts]
) -> list[Result] | None:
    """The recurrence `name` from the start of each row and another one from its end, side by side on the threads; None where
    they have to run one after the other."""
    ways = ((states[0], weights[0], False), (states[1], weights[1], True))
    if not wanted() or 0 in xs.shape[:2] or name not in native.KINDS or torch.compiler.is_compiling():
        return None
    for state, own, _ in ways:
        if (
            _is_mapped()
            or _is_transformed(xs, *state, *own)
            or not native.takes(xs, state, own)
            or not native.has_memory(xs, state, own)
        ):
            return None
    same_size = states[0][0].shape == states[1][0].shape
    return native.run_ways(name, xs, lengths, ways) if same_size else None


def run_stack(
    name: str, xs: Tensor, lengths: Tensor | None, states: Sequence[Parts], weights: Sequence[Parts]
) -> tuple[Tensor, list[Parts]] | None:
    """The recurrence `name` in layers on top of each other, side by side on the threads; None where they have to run one after the
    other, or are as quick that way."""
    if not wanted() or 0 in xs.shape[:2] or name not in native.KINDS or torch.compiler.is_compiling() or _is_mapped():
        return None
    rows, steps = xs.shape[:2]
    if torch.get_num_threads() == 1 or rows > native.STACKED_ROWS or rows * steps < native.STACKED_STEPS:
        return None
    for state, own in zip(states, weights, strict=True):
        if (
            native.threads_for(rows, own[1].shape[1]) > 1  # one layer on all threads is as quick
            or native.wants_gradients(xs, state, own)
            or _is_transformed(xs, *state, *own)
            or not native.takes(xs, state, own)
            or not native.has_memory(xs, state, own)
        ):
            return None
    return native.forward_stack(name, xs, lengths, tuple(zip(states, weights, strict=True)))


def follow(
    name: str,
    project: Callable[[Tensor], Any],
    xs: Tensor,
    lengths: Tensor | None,
    state: Parts,
    params: Parts,
) -> Result | None:
    """The recurrence `name` of `csrc/following.hpp` over what `project` makes of `xs`, which has zeros past a row's end; or None,
    where the plain loop has to do it."""
    if not wanted() or _is_transformed(xs, *state, *params) or _is_traced_in_short(xs, *state):
        return None
    if not following.suits(name, xs, state, params, (torch.float32, *SHORT)):
        return None
    if torch.compiler.is_exporting() and not _natively.holds():
        return None
    us, start, own = _floats(leaves(project(masked(xs, lengths)))), _floats(state), _floats(params)
    if torch.compiler.is_compiling() or _is_mapped() or not native.has_memory(us[0], (*us, *start), own):
        done = ops.follow(name, us, lengths, start, own)
    else:
        done = following.run(name, us, lengths, start, own)
    return _like(state, *done)


def _are_short(*parts: Tensor) -> bool:
    return any(part.dtype in SHORT and part.is_cpu for part in parts)


def _is_traced_in_short(*parts: Tensor) -> bool:
    """Whether short floats, or what autocast makes short, are looked at by a tracer or mapped over: the loop knows how."""
    return (torch.is_autocast_enabled("cpu") or _are_short(*parts)) and (torch.compiler.is_compiling() or _is_mapped())


def _floats(parts: Iterable[Tensor]) -> Parts:
    """Short floats as float32, and the others as they are."""
    return tuple(part.float() if part.dtype in SHORT else part for part in parts)


def _like(state: Parts, ys: Tensor, last: Parts) -> Result:
    """A result in the type of the state that it began with."""
    return ys.to(state[0].dtype), tuple(part.to(one.dtype) for part, one in zip(last, state, strict=True))


def _traced(
    name: str, xs: Tensor, lengths: Tensor | None, state: Parts, weights: Parts, reverse: bool
) -> Result | None:
    """The recurrence as an operator of the graph that is being traced."""
    if name not in native.KINDS or not native.suits(xs, state, weights):
        return None
    if torch.compiler.is_exporting() and not _natively.holds():
        return None
    return ops.run(name, xs, lengths, state, weights, reverse)


def wanted() -> bool:
    """Whether faster paths may be taken: false within `reference()`."""
    return not _plain_only.holds()


def may_take_another_way(*tensors: Tensor) -> bool:
    """Whether a cell may compute these in another order than its loop: nobody is within `reference()`, and neither a tracer nor
    a transform is looking, which follow the loop."""
    looked_at = torch.compiler.is_compiling() or _is_mapped() or _is_transformed(*tensors)
    return wanted() and not looked_at


def reference_is_asked_for() -> bool:
    """Whether anybody is within `reference()`, in this thread or another: quicker to ask than `wanted`."""
    return _plain_only._anywhere


def _is_mapped() -> bool:
    """Whether vmap is looking, and nothing else: the operators have a rule for it."""
    if not torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling():
        return False
    layers = torch._C._functorch.get_interpreter_stack() or []
    return all(layer.key() == torch._C._functorch.TransformType.Vmap for layer in layers)


def _is_transformed(*tensors: Tensor) -> bool:
    """Whether forward-mode AD or a function transform other than vmap alone (jvp, grad) is looking: the fused paths lack rules."""
    if torch._C._are_functorch_transforms_active() and not _is_mapped():
        return True
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)
