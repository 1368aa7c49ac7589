"""The native recurrences of csrc/: whole sequences in one call, forward and backward, float32 on a CPU.

Rows of any length are taken as they are. Where a derivative of a derivative is asked for, the same recurrence is run through
torch's own operations (`fused`), which have one. What is here takes addresses, and so wants tensors that have memory; for
those of a graph that is being traced, `ops` has the same as operators of torch.
"""

import os
from collections.abc import Callable, Sequence
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
PLAIN = (Tensor, torch.nn.Parameter)
WIDEST = 32  # units of the widest panel among the instruction sets, and a multiple of every other
MANY_UNITS = 256  # of one step: from here on reading the weights takes longer than waking the threads
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
    widest = max(xs.shape[2], 5 * weights[1].shape[1])
    return suits(xs, state, weights) and xs.shape[0] * xs.shape[1] * widest < LARGEST


def suits(xs: Tensor, state: State, weights: Weights) -> bool:
    """Whether these are tensors for the native kernels, of whatever size."""
    if _native is None or torch.is_autocast_enabled("cpu"):
        return False
    for part in (xs, *state, *weights):
        if part.dtype is not torch.float32 or not part.is_cpu:
            return False
    return True


def has_memory(xs: Tensor, state: State, weights: Weights) -> bool:
    """Whether these are tensors and nothing else: no fakes, no subclass and no mode that wants to see the operator."""
    if torch._C._len_torch_dispatch_stack() != 0:
        return False
    for part in (xs, *state, *weights):
        if type(part) not in PLAIN:
            return False
    return True


def run(name: str, xs: Tensor, lengths: Tensor | None, state: State, weights: Weights, reverse: bool = False) -> Result:
    """The recurrence `name` over `xs`; with `reverse`, each row from its own end to its start."""
    if wants_gradients(xs, state, weights):
        h, c = both(state)
        ys, *last = cast(tuple[Tensor, ...], _Recurrence.apply(name, xs, lengths, h, c, *weights, reverse))
        return ys, tuple(last)
    ys, ends, _ = forward(name, xs, lengths, state, weights, reverse, keep=False)
    return ys, ends


def saved_floats(name: str, units: int) -> int:
    """How many floats `backward` needs of `forward` for each row and step, on any machine: a compiled graph with that
    number in it may be kept, and loaded where vectors are of another width."""
    whole = -(-units // WIDEST) * WIDEST
    return _native.saved_floats(KINDS[name], 1, 1, whole)


def wants_gradients(xs: Tensor, state: State, weights: Weights) -> bool:
    return torch.is_grad_enabled() and any(part.requires_grad for part in (xs, *state, *weights))


def both(state: State) -> tuple[Tensor, Tensor | None]:
    """The fields h and c of a state; None for a c that it does not have."""
    return state[0], state[1] if len(state) > 1 else None


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, ...]:
        name, xs, lengths, h, c, *weights, reverse = given
        ys, last, saved = forward(name, xs, lengths, fields(h, c), tuple(weights), reverse, keep=True)
        remember(ctx, given, ys, saved)
        return ys, *last

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return gradients(ctx, grads, backward)


def remember(ctx: Any, given: tuple[Any, ...], ys: Tensor, saved: Tensor | None) -> None:
    """Put into the context of autograd what `gradients` needs."""
    name, *tensors, reverse = given
    ctx.name, ctx.reverse = name, reverse
    ctx.save_for_backward(*tensors, ys, saved)
    ctx.set_materialize_grads(False)


def gradients(
    ctx: Any, grads: tuple[Tensor | None, ...], back: Callable[..., tuple[Tensor | None, ...]]
) -> tuple[Tensor | None, ...]:
    """The gradients of what was given, in its order, by `back` or as a computation that has derivatives itself."""
    xs, lengths, h, c, *weights, ys, saved = ctx.saved_tensors
    dys, dh, dc = (*grads, None)[:3]
    if torch.is_grad_enabled():
        dx, *others = _again(ctx, xs, lengths, h, c, weights, (dys, dh, dc))
    else:
        wants_dx = ctx.needs_input_grad[1]
        dx, *others = back(ctx.name, xs, lengths, h, c, *weights, ys, saved, dys, dh, dc, ctx.reverse, wants_dx)
    return None, dx, None, *others, None


def forward(
    name: str, xs: Tensor, lengths: Tensor | None, state: State, weights: Weights, reverse: bool, keep: bool
) -> tuple[Tensor, State, Tensor | None]:
    """The outputs, the last state and, with `keep`, what `backward` needs."""
    batch, steps, inputs = xs.shape
    units = weights[1].shape[1]
    xs, state, weights = xs.contiguous(), _contiguous(state), _contiguous(weights)
    lengths = None if lengths is None else lengths.contiguous()
    ys = xs.new_empty(batch, steps, units)
    last = tuple(xs.new_empty(batch, units) for _ in state)
    saved = xs.new_empty(batch * steps * saved_floats(name, units)) if keep else None
    sizes = (batch, steps, inputs, units, int(reverse), threads_for(name, batch, units))
    given = _addresses(lengths, xs, state, weights, ys, saved)
    _native.forward(KINDS[name], sizes, given, (last[0].data_ptr(), last[1].data_ptr() if len(last) > 1 else 0))
    return ys, last, saved


def backward(
    name: str,
    xs: Tensor,
    lengths: Tensor | None,
    h: Tensor,
    c: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor,
    b_hh: Tensor,
    ys: Tensor,
    saved: Tensor,
    dys: Tensor | None,
    dh: Tensor | None,
    dc: Tensor | None,
    reverse: bool,
    wants_dx: bool,
) -> tuple[Tensor | None, ...]:
    """The gradients of xs (or None), of h and c (or None) of the start state, and of the weights."""
    batch, steps, inputs = xs.shape
    units = w_hh.shape[1]
    xs, state, weights = xs.contiguous(), _contiguous(fields(h, c)), _contiguous((w_ih, w_hh, b_ih, b_hh))
    lengths = None if lengths is None else lengths.contiguous()
    came = [None if grad is None else grad.contiguous() for grad in (dys, dh, dc)]
    dx = xs.new_empty(xs.shape) if wants_dx else None
    dstate = both(tuple(part.new_empty(part.shape) for part in state))
    dweights = [part.new_empty(part.shape) for part in weights]
    sizes = (batch, steps, inputs, units, int(reverse), threads_for(name, batch, units))
    pointers = _addresses(lengths, xs, state, weights, ys, saved)
    results = (dx, *dstate, *dweights)
    _native.backward(KINDS[name], sizes, pointers, tuple(map(_address, came)), tuple(map(_address, results)))
    return results


def _again(
    ctx: Any,
    xs: Tensor,
    lengths: Tensor | None,
    h: Tensor,
    c: Tensor | None,
    weights: list[Tensor],
    grads: tuple[Tensor | None, ...],
) -> list[Tensor | None]:
    """The backward pass as a differentiable computation."""
    if ctx.reverse:
        raise NotImplementedError("a reversed recurrence has no derivative of its derivative; flip the inputs instead")
    ys, last = AGAIN[ctx.name](xs, lengths, fields(h, c), tuple(weights))
    pairs = [(out, grad) for out, grad in zip((ys, *last), grads, strict=False) if grad is not None]
    inputs = (xs, h, c, *weights)
    wanted = [part for part in inputs if part is not None and part.requires_grad]
    found = iter(
        torch.autograd.grad(
            [out for out, _ in pairs], wanted, [grad for _, grad in pairs], create_graph=True, allow_unused=True
        )
    )
    return [next(found) if part is not None and part.requires_grad else None for part in inputs]


def fields(h: Tensor, c: Tensor | None) -> State:
    return (h,) if c is None else (h, c)


def packs(weight: Tensor) -> bool:
    """Whether weights such as this one can be packed for a step."""
    return _native is not None and weight.dtype == torch.float32 and weight.is_cpu


def pack(name: str, weights: Sequence[Tensor]) -> Callable[[int, int, int, int, int, int], None]:
    """One step of the recurrence `name`, with weight_ih, weight_hh, bias_ih, bias_hh as they are now. It is called with the
    number of rows and the addresses of x, h, c, the next h and the next c (0 where there is no c)."""
    held = [weight.detach().contiguous() for weight in weights]
    inputs, units = held[0].shape[1], held[1].shape[1]
    threads = torch.get_num_threads() if units >= MANY_UNITS else 1
    first, second, third, fourth = map(_address, held)
    return _native.pack(KINDS[name], (inputs, units, threads), (first, second, third, fourth)).step


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
