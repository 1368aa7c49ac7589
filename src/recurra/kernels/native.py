"""The native recurrences of csrc/: whole sequences in one call, forward and backward, float32 on a CPU.

Rows of any length are taken as they are. Where a derivative of a derivative is asked for, the same recurrence is run through
torch's own operations (`fused`), which have one. What is here reads the memory of tensors, and so wants tensors that have
some; for those of a graph that is being traced, `ops` has the same as operators of torch.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from recurra.kernels import fused
from recurra.state import flipped

try:
    from recurra.kernels import _native
except ImportError:  # installed without a compiler
    _native = None  # type: ignore[assignment]

if _native is not None and not _native.open(Tensor, torch.nn.Parameter):  # a torch that describes its tensors otherwise
    _native = None  # type: ignore[assignment]

Result = tuple[Tensor, tuple[Tensor, ...]]
State = tuple[Tensor, ...]
Weights = tuple[Tensor, ...]
Gradients = tuple[Tensor | None, State, Weights]  # of the inputs, of the start state, of the weights
Step = Callable[[Tensor, Any], tuple[Tensor, Any] | None]

KINDS = {"elman-tanh": 0, "elman-relu": 1, "lstm": 2, "gru": 3}
AGAIN = {"elman-tanh": fused.elman_tanh, "elman-relu": fused.elman_relu, "lstm": fused.lstm, "gru": fused.gru}
PLAIN = (Tensor, torch.nn.Parameter)
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
        ys, *last = cast(tuple[Tensor, ...], _Recurrence.apply(name, reverse, xs, lengths, *weights, *state))
        return ys, tuple(last)
    return forward(name, xs, lengths, state, weights, reverse)


def saved_floats(name: str, units: int) -> int:
    """How many floats `backward` needs of `forward` for each row and step, on any machine."""
    return _native.saved_floats(KINDS[name], units)


def wants_gradients(xs: Tensor, state: State, weights: Weights) -> bool:
    return torch.is_grad_enabled() and any(part.requires_grad for part in (xs, *state, *weights))


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, reverse: bool, *given: Any) -> tuple[Tensor, ...]:
        xs, lengths, *weights_and_state = given
        weights, state = tuple(weights_and_state[:4]), tuple(weights_and_state[4:])
        saved = xs.new_empty(xs.shape[0] * xs.shape[1] * saved_floats(name, weights[1].shape[1]))
        ys, last = forward(name, xs, lengths, state, weights, reverse, saved)
        remember(ctx, name, reverse, given, ys, saved)
        return ys, *last

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        dxs, dstate, dweights = gradients(ctx, grads[0], grads[1:], ctx.needs_input_grad[2], backward)
        return None, None, dxs, None, *dweights, *dstate


def remember(
    ctx: Any, name: str, reverse: bool, given: Sequence[Tensor | None], ys: Tensor, saved: Tensor | None
) -> None:
    """Put into the context of autograd what `gradients` needs; `given` are xs, lengths, four weights and the state."""
    ctx.name, ctx.reverse = name, reverse
    ctx.save_for_backward(*given, ys, saved)
    ctx.set_materialize_grads(False)


def gradients(
    ctx: Any, dys: Tensor | None, dlast: tuple[Tensor | None, ...], wants_dx: bool, back: Callable[..., Gradients]
) -> Gradients:
    """The gradients of what was given, by `back` or as a computation that has derivatives itself."""
    xs, lengths, *others, ys, saved = ctx.saved_tensors
    weights, state = tuple(others[:4]), tuple(others[4:])
    if torch.is_grad_enabled():
        return _again(ctx, xs, lengths, state, weights, (dys, *dlast))
    return back(ctx.name, xs, lengths, state, weights, ctx.reverse, ys, saved, dys, dlast, wants_dx)


def forward(
    name: str,
    xs: Tensor,
    lengths: Tensor | None,
    state: State,
    weights: Weights,
    reverse: bool,
    saved: Tensor | None = None,
) -> Result:
    """The outputs and the last state; and what `backward` needs, into `saved`."""
    threads = threads_for(xs.shape[0], weights[1].shape[1])
    return _ordered(_native.forward, KINDS[name], xs, lengths, state, weights, reverse, threads, saved)


def backward(
    name: str,
    xs: Tensor,
    lengths: Tensor | None,
    state: State,
    weights: Weights,
    reverse: bool,
    ys: Tensor,
    saved: Tensor,
    dys: Tensor | None,
    dlast: tuple[Tensor | None, ...],
    wants_dx: bool,
) -> Gradients:
    """The gradients of xs (or None), of the start state and of the weights."""
    threads = threads_for(xs.shape[0], weights[1].shape[1])
    given = (KINDS[name], xs, lengths, state, weights, reverse, threads, ys, saved, dys, dlast, wants_dx)
    return _ordered(_native.backward, *given)


def _ordered(native: Callable[..., Any], *given: Any) -> Any:
    """What a native function answers, given tensors that lie in order: copied where they do not."""
    done = native(*given)
    if done is None:
        done = native(*map(_contiguous, given))
    if done is None:
        raise TypeError(f"the native recurrences cannot read {[getattr(part, 'shape', part) for part in given]}")
    return done


def _contiguous(part: Any) -> Any:
    if isinstance(part, tuple):
        return tuple(map(_contiguous, part))
    return part.contiguous() if isinstance(part, Tensor) else part


def _again(
    ctx: Any,
    xs: Tensor,
    lengths: Tensor | None,
    state: State,
    weights: Weights,
    grads: tuple[Tensor | None, ...],
) -> Gradients:
    """The backward pass as a differentiable computation."""
    ys, last = AGAIN[ctx.name](flipped(xs, lengths) if ctx.reverse else xs, lengths, state, weights)
    ys = flipped(ys, lengths) if ctx.reverse else ys
    pairs = [(out, grad) for out, grad in zip((ys, *last), grads, strict=True) if grad is not None]
    wanted = [part for part in (xs, *state, *weights) if part.requires_grad]
    found = iter(
        torch.autograd.grad(
            [out for out, _ in pairs], wanted, [grad for _, grad in pairs], create_graph=True, allow_unused=True
        )
    )
    dxs, *others = [next(found) if part.requires_grad else None for part in (xs, *state, *weights)]
    return dxs, tuple(others[: len(state)]), tuple(others[len(state) :])  # type: ignore[arg-type]


def packs(weight: Tensor) -> bool:
    """Whether weights such as this one can be packed for a step."""
    return _native is not None and weight.dtype == torch.float32 and weight.is_cpu


def pack(name: str, weights: Sequence[Tensor]) -> Step:
    """One step of the recurrence `name`, with weight_ih, weight_hh, bias_ih, bias_hh as they are now: from x `[batch, inputs]`
    and a state the output and the next state, or None where they are not ordinary tensors that lie in order and fit."""
    threads = torch.get_num_threads() if weights[1].shape[1] >= MANY_UNITS else 1
    return _native.pack(KINDS[name], tuple(weight.detach().contiguous() for weight in weights), threads).step


def threads_for(batch: int, units: int) -> int:
    """How many threads share a call: a table made from benchmarks/kernels.py, so that the same call gives the same bits."""
    most = 1 if _forked else torch.get_num_threads()
    if batch < 4 * most:
        return most if units >= 128 else 1
    return most if batch * units >= 256 else 1


def _after_fork() -> None:
    """A forked child has no threads but the one that forked, and the pool of its parent does not come back."""
    global _forked  # noqa: PLW0603
    _forked = True


os.register_at_fork(after_in_child=_after_fork)
