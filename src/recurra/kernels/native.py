"""The native recurrences of csrc/: whole sequences in one call, forward and backward, float32 on a CPU.

Rows of any length are taken as they are. Where a derivative of a derivative is asked for, the same recurrence is run through
torch's own operations (`fused`), which have one.
"""

import os
from typing import Any, cast

import torch
from torch import Tensor

from recurra.kernels import fused

try:
    from recurra.kernels import _native
except ImportError:  # installed without a compiler
    _native = None  # type: ignore[assignment]

Result = tuple[Tensor, tuple[Tensor, ...]]
State = tuple[Tensor, ...]
Weights = tuple[Tensor, ...]

KINDS = {"elman-tanh": 0, "elman-relu": 1, "lstm": 2, "gru": 3}
AGAIN = {"elman-tanh": fused.elman_tanh, "elman-relu": fused.elman_relu, "lstm": fused.lstm, "gru": fused.gru}
LARGEST = 2**40  # elements of any one array: far above any memory, and far below an overflow of its address

_forked = False


def available() -> bool:
    """Whether the native kernels were built."""
    return _native is not None


def described() -> str:
    """What runs the recurrences, in words."""
    return "torch (built without a compiler)" if _native is None else f"native, {_native.instruction_set()}"


def takes(xs: Tensor, state: State, weights: Weights) -> bool:
    """Whether this call is one for the native kernels."""
    return (
        _native is not None
        and xs.dtype == torch.float32
        and xs.device.type == "cpu"
        and all(part.dtype == torch.float32 and part.device.type == "cpu" for part in (*state, *weights))
        and not torch.is_autocast_enabled("cpu")
        and xs.shape[0] * xs.shape[1] * max(xs.shape[2], 5 * weights[1].shape[1]) < LARGEST
    )


def run(name: str, xs: Tensor, lengths: Tensor | None, state: State, weights: Weights, reverse: bool = False) -> Result:
    """The recurrence `name` over `xs`; with `reverse`, each row from its own end to its start."""
    lengths = None if lengths is None else lengths.contiguous()
    if torch.is_grad_enabled() and any(part.requires_grad for part in (xs, *state, *weights)):
        ys, *last = cast(
            tuple[Tensor, ...], _Recurrence.apply(name, reverse, xs, lengths, len(state), *state, *weights)
        )
        return ys, tuple(last)
    ys, ends, _ = _forward(name, xs, lengths, state, weights, reverse, keep=False)
    return ys, ends


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, name: str, reverse: bool, xs: Tensor, lengths: Tensor | None, fields: int, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        state, weights = rest[:fields], rest[fields:]
        ys, last, saved = _forward(name, xs, lengths, state, weights, reverse, keep=True)
        ctx.name, ctx.reverse, ctx.fields = name, reverse, fields
        ctx.save_for_backward(xs, *rest, ys, cast(Tensor, saved), *(() if lengths is None else (lengths,)))
        ctx.set_materialize_grads(False)
        return ys, *last

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        fields = ctx.fields
        xs, *rest = ctx.saved_tensors
        given, (ys, saved, *lengths) = rest[: fields + 4], rest[fields + 4 :]
        ends = lengths[0] if lengths else None
        if torch.is_grad_enabled():
            return _again(ctx, xs, given, ends, grads)
        dx, *others = _backward(
            ctx.name, xs, ends, given, fields, ctx.reverse, ys, saved, grads, ctx.needs_input_grad[2]
        )
        return None, None, dx, None, None, *others


def _forward(
    name: str, xs: Tensor, lengths: Tensor | None, state: State, weights: Weights, reverse: bool, keep: bool
) -> tuple[Tensor, State, Tensor | None]:
    batch, steps, inputs = xs.shape
    units = weights[1].shape[1]
    xs, state, weights = xs.contiguous(), _contiguous(state), _contiguous(weights)
    ys = xs.new_empty(batch, steps, units)
    last = tuple(torch.empty_like(part) for part in state)
    saved = xs.new_empty(_native.saved_floats(KINDS[name], batch, steps, units)) if keep else None
    sizes = (batch, steps, inputs, units, int(reverse), threads_for(name, batch, units))
    given = _addresses(lengths, xs, state, weights, ys, saved)
    _native.forward(KINDS[name], sizes, given, (last[0].data_ptr(), last[1].data_ptr() if len(last) > 1 else 0))
    return ys, last, saved


def _backward(
    name: str,
    xs: Tensor,
    lengths: Tensor | None,
    given: list[Tensor],
    fields: int,
    reverse: bool,
    ys: Tensor,
    saved: Tensor,
    grads: tuple[Tensor | None, ...],
    wants_dx: bool,
) -> tuple[Tensor | None, ...]:
    """The gradients of xs (or None), of the fields of the start state, and of the weights."""
    batch, steps, inputs = xs.shape
    units = given[fields + 1].shape[1]
    xs, given = xs.contiguous(), [part.contiguous() for part in given]
    came = [None if grad is None else grad.contiguous() for grad in grads] + [None] * (2 - fields)
    dx = torch.empty_like(xs) if wants_dx else None
    dstate = [torch.empty_like(part) for part in given[:fields]]
    dweights = [torch.empty_like(part) for part in given[fields:]]
    sizes = (batch, steps, inputs, units, int(reverse), threads_for(name, batch, units))
    pointers = _addresses(lengths, xs, tuple(given[:fields]), tuple(given[fields:]), ys, saved)
    results = (dx, dstate[0], dstate[1] if fields > 1 else None, *dweights)
    _native.backward(KINDS[name], sizes, pointers, tuple(map(_address, came)), tuple(map(_address, results)))
    return dx, *dstate, *dweights


def _again(
    ctx: Any, xs: Tensor, given: list[Tensor], lengths: Tensor | None, grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """The backward pass as a differentiable computation."""
    if ctx.reverse:
        raise NotImplementedError("a reversed recurrence has no derivative of its derivative; flip the inputs instead")
    state, weights = tuple(given[: ctx.fields]), tuple(given[ctx.fields :])
    ys, last = AGAIN[ctx.name](xs, lengths, state, weights)
    pairs = [(out, grad) for out, grad in zip((ys, *last), grads, strict=True) if grad is not None]
    inputs = (xs, *given)
    wanted = [part for part in inputs if part.requires_grad]
    found = iter(
        torch.autograd.grad(
            [out for out, _ in pairs], wanted, [grad for _, grad in pairs], create_graph=True, allow_unused=True
        )
    )
    dx, *others = [next(found) if part.requires_grad else None for part in inputs]
    return None, None, dx, None, None, *others


def threads_for(name: str, batch: int, units: int) -> int:
    """How many threads share a call: a table made from benchmarks/kernels.py, so that the same call gives the same bits."""
    most = 1 if _forked else torch.get_num_threads()
    if batch < 4 * most:
        return most if units >= 128 else 1
    return most if batch * units >= 256 else 1


def _contiguous(parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(part.contiguous() for part in parts)


def _address(part: Tensor | None) -> int:
    return 0 if part is None else part.data_ptr()


def _addresses(
    lengths: Tensor | None, xs: Tensor, state: State, weights: Weights, ys: Tensor, saved: Tensor | None
) -> tuple[int, ...]:
    c = state[1] if len(state) > 1 else None
    return tuple(map(_address, (lengths, xs, state[0], c, *weights, ys, saved)))


def _after_fork() -> None:
    """A forked child has no threads but the one that forked, and the pool of its parent does not come back."""
    global _forked  # noqa: PLW0603
    _forked = True


os.register_at_fork(after_in_child=_after_fork)
