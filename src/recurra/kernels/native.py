"""The native recurrences of csrc/: whole sequences in one call, forward and backward, float32 on a CPU.

Rows of any length are taken as they are. Where a derivative of a derivative is asked for, the same recurrence is run through
torch's own operations (`fused`), which have one. What is here reads the memory of tensors, and so wants tensors that have
some; for those of a graph that is being traced, `ops` has the same as operators of torch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from recurra.errors import UsageError
from recurra.kernels import again, fused
from recurra.state import flipped

try:
    from recurra.kernels import _native as _native  # noqa: PLC0414  the kernels beside this file take it from here
except ImportError:  # installed without a compiler
    _native = None  # type: ignore[assignment]

if _native is not None and not _native.open(Tensor, torch.nn.Parameter):  # a torch that describes its tensors otherwise
    _native = None  # type: ignore[assignment]

Result = tuple[Tensor, tuple[Tensor, ...]]
State = tuple[Tensor, ...]
Weights = tuple[Tensor, ...]
Way = tuple[State, Weights, bool]  # the start state, the weights, and whether each row is read from its end
Gradients = tuple[Tensor | None, State, Weights]  # of the inputs, of the start state, of the weights
Step = Callable[[Tensor, Any], tuple[Tensor, Any] | None]

KINDS: dict[str, int] = {} if _native is None else {name: place for place, name in enumerate(_native.kernels())}
WEIGHTS = {name: 4 + _native.params(kind) for name, kind in KINDS.items()}  # how many the kernel wants
FUSED = {"elman-tanh": fused.elman_tanh, "elman-relu": fused.elman_relu, "lstm": fused.lstm, "gru": fused.gru}
PLAIN = (Tensor, torch.nn.Parameter)
MANY_UNITS = 256  # of one step: from here on reading the weights takes longer than waking the threads
STACKED_ROWS = 0 if _native is None else _native.stacked_rows()  # of a stack whose layers run side by side, at most
STACKED_STEPS = 64  # rows times steps: from here on a layer is worth a thread of its own
MANY_STATES = 16384  # of a sweep: from here on it takes longer than waking the threads
LARGEST = 2**40  # elements of any one array: far above any memory, and far below an overflow of its address


def available() -> bool:
    """Whether the native kernels were built."""
    return _native is not None


def described() -> str:
    """What runs the recurrences, in words."""
    return "torch (built without a compiler)" if _native is None else f"native, {_native.instruction_set()}"


def halves() -> bool:
    """Whether whoever calls wants products of bfloat16: he is within `torch.autocast("cpu", torch.bfloat16)`."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") is torch.bfloat16


def takes(xs: Tensor, state: State, weights: Weights) -> bool:
    """Whether this call is one for the native kernels. Raises UsageError where no memory could hold its arrays."""
    if not suits(xs, state, weights):
        return False
    widest = max(xs.shape[2], 5 * weights[1].shape[1])
    if xs.shape[0] * xs.shape[1] * widest >= LARGEST:
        raise UsageError(
            f"{xs.shape[0]} rows of {xs.shape[1]} steps, {widest} numbers each, are more than any memory holds; "
            "give fewer rows or steps at a time, and go on from the state returned"
        )
    return True


def suits(xs: Tensor, state: State, weights: Weights, types: tuple[torch.dtype, ...] = (torch.float32,)) -> bool:
    """Whether these are tensors for the native kernels, of such types and whatever size."""
    if _native is None:
        return False
    for part in (xs, *state, *weights):
        if part.dtype not in types or not part.is_cpu:
            return False
    return True


def has_memory(xs: Tensor, state: State, weights: Weights) -> bool:
    """Whether these are tensors and nothing else: no fakes, no subclass and no mode that wants to see the operator."""
    if torch._C._len_torch_dispatch_stack() != 0:
        return False
    for part in (xs, *state, *weights):
        if type(part) not in PLAIN or part.is_neg():  # a sign that is only noted is not in the memory
            return False
    return True


def run(name: str, xs: Tensor, lengths: Tensor | None, state: State, weights: Weights, reverse: bool = False) -> Result:
    """The recurrence `name` over `xs`; with `reverse`, each row from its own end to its start."""
    return run_ways(name, xs, lengths, ((state, weights, reverse),))[0]


def run_ways(name: str, xs: Tensor, lengths: Tensor | None, ways: tuple[Way, ...]) -> list[Result]:
    """The same for each of several ways through `xs`, side by side."""
    if not any(wants_gradients(xs, state, weights) for state, weights, _ in ways):
        return forward(name, xs, lengths, tuple((*way, None) for way in ways))
    flat = [part for state, weights, _ in ways for part in (*weights, *state)]
    outs = cast(tuple[Tensor, ...], _Recurrence.apply(name, tuple(way[2] for way in ways), xs, lengths, *flat))
    return [(part[0], part[1:]) for part in _split(outs, len(ways))]


def saved_floats(name: str, units: int) -> int:
    """How many floats `backward` needs of `forward` for each row and step, on any machine."""
    return _native.saved_floats(KINDS[name], units)


def wants_gradients(xs: Tensor, state: State, weights: Weights) -> bool:
    return torch.is_grad_enabled() and any(part.requires_grad for part in (xs, *state, *weights))


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, reverse: tuple[bool, ...], *given: Any) -> tuple[Tensor, ...]:
        (xs, lengths, *flat), count = given, WEIGHTS[name]
        ways = tuple(
            (
                part[count:],
                part[:count],
                back,
                xs.new_empty(xs.shape[0] * xs.shape[1] * saved_floats(name, part[1].shape[1])),
            )
            for part, back in zip(_split(flat, len(reverse)), reverse, strict=True)
        )
        results = forward(name, xs, lengths, ways)
        remember(ctx, name, reverse, given, [ys for ys, _ in results], [way[3] for way in ways])
        return tuple(part for ys, last in results for part in (ys, *last))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        dxs, ways = gradients(ctx, grads, ctx.needs_input_grad[2], backward)
        return None, None, dxs, None, *(part for dstate, dweights in ways for part in (*dweights, *dstate))


def remember(
    ctx: Any, name: str, reverse: tuple[bool, ...], given: Sequence[Any], ys: list[Tensor], saved: list[Tensor]
) -> None:
    """Put into the context of autograd what `gradients` needs; `given` are xs, lengths, and of each way its weights and the
    state."""
    ctx.name, ctx.reverse = name, reverse
    ctx.save_for_backward(*given, *ys, *saved)
    ctx.set_materialize_grads(False)


def gradients(
    ctx: Any, grads: Sequence[Tensor | None], wants_dx: bool, back: Callable[..., list[Gradients]]
) -> tuple[Tensor | None, list[tuple[State, Weights]]]:
    """The gradient of xs, and for each way those of its state and weights, by `back` or as a computation that has derivatives
    itself."""
    xs, lengths, *others = ctx.saved_tensors
    count, weights = len(ctx.reverse), WEIGHTS[ctx.name]
    flat, ys, saved = others[: -2 * count], others[-2 * count : -count], others[-count:]
    ways = [
        (part[weights:], part[:weights], reverse, kept, out, grad[0], grad[1:])
        for part, reverse, kept, out, grad in zip(
            _split(flat, count), ctx.reverse, saved, ys, _split(grads, count), strict=True
        )
    ]
    batched = any(torch._C._functorch.is_legacy_batchedtensor(grad) for grad in grads if grad is not None)
    if torch.is_grad_enabled() or batched:  # many gradients at once have no memory of their own either
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            found = [_again(ctx.name, xs, lengths, way) for way in ways]
    else:
        found = back(ctx.name, xs, lengths, tuple(ways), wants_dx)
    dxs = [dx for dx, _, _ in found if dx is not None]
    return sum(dxs[1:], dxs[0]) if dxs else None, [(dstate, dweights) for _, dstate, dweights in found]


def _split(parts: Sequence[Any], count: int) -> list[tuple[Any, ...]]:
    size = len(parts) // count
    return [tuple(parts[at : at + size]) for at in range(0, len(parts), size)]


def forward(name: str, xs: Tensor, lengths: Tensor | None, ways: tuple[tuple[Any, ...], ...]) -> list[Result]:
    """The outputs and the last state of each way (state, weights, reverse, saved); and what `backward` needs into its `saved`,
    unless it is None: then products are of bfloat16 where they may be."""
    threads = threads_for(xs.shape[0], ways[0][1][1].shape[1], len(ways))
    half = halves() and all(way[3] is None for way in ways)
    return _ordered(_native.forward, KINDS[name], xs, lengths, ways, threads, half)


def forward_stack(
    name: str, xs: Tensor, lengths: Tensor | None, layers: tuple[tuple[State, Weights], ...]
) -> tuple[Tensor, list[State]]:
    """The outputs of the uppermost of layers on top of each other, and the last state of each: every layer runs as soon as the
    one below has put out enough. Without gradients; at most `STACKED_ROWS` rows."""
    return _ordered(_native.forward_stack, KINDS[name], xs, lengths, layers, torch.get_num_threads(), halves())


def backward(
    name: str, xs: Tensor, lengths: Tensor | None, ways: tuple[tuple[Any, ...], ...], wants_dx: bool
) -> list[Gradients]:
    """The gradients of xs (or None), of the start state and of the weights, for each way (state, weights, reverse, saved,
    outputs, their gradient or None, those of the last state)."""
    threads = threads_for(xs.shape[0], ways[0][1][1].shape[1], len(ways))
    return _ordered(_native.backward, KINDS[name], xs, lengths, ways, threads, wants_dx)


def _ordered(native: Callable[..., Any], *given: Any) -> Any:
    """What a native function answers, given tensors that lie in order: copied where they do not."""
    done = native(*given)
    if done is None:
        done = native(*map(_contiguous, given))
    if done is None:
        raise TypeError(f"the native recurrences cannot read tensors of shapes {_shapes(given)}")
    return done


def _shapes(part: Any) -> Any:
    if isinstance(part, tuple):
        return tuple(map(_shapes, part))
    return tuple(part.shape) if isinstance(part, Tensor) else part


def _contiguous(part: Any) -> Any:
    if isinstance(part, tuple):
        return tuple(map(_contiguous, part))
    return part.contiguous() if isinstance(part, Tensor) else part


def _again(name: str, xs: Tensor, lengths: Tensor | None, way: tuple[Any, ...]) -> Gradients:
    """The backward pass of one way as a differentiable computation. It begins at views of what was given: a path from one of
    them to another, such as a state that came of the same weights, is the outer graph's to count."""
    given, *_ = way
    xs, *others = [part.view_as(part) if part.requires_grad else part for part in (xs, *given, *way[1])]
    state, weights = tuple(others[: len(given)]), tuple(others[len(given) :])
    reverse, _, _, *grads = way[2:]
    run_again = FUSED.get(name) or partial(again.recur, name)
    ys, last = run_again(flipped(xs, lengths) if reverse else xs, lengths, state, weights)
    outs = (flipped(ys, lengths) if reverse else ys, *last)
    dxs, *found = again.gradients(outs, (grads[0], *grads[1]), (xs, *state, *weights))
    return dxs, tuple(found[: len(state)]), tuple(found[len(state) :])  # type: ignore[arg-type]


def packs(name: str, weights: Sequence[Tensor]) -> bool:
    """Whether these weights of the recurrence `name` can be packed for a step."""
    return _native is not None and name in KINDS and all(one.dtype == torch.float32 and one.is_cpu for one in weights)


def pack(name: str, weights: Sequence[Tensor], half: bool) -> Step:
    """One step of the recurrence `name`, with the weights that the kernel wants as they are now: from x `[batch, inputs]`
    and a state the output and the next state, or None where they are not ordinary tensors that lie in order and fit. With `half`
    its products are of bfloat16 where they may be."""
    threads = torch.get_num_threads() if weights[1].shape[1] >= MANY_UNITS else 1
    return _native.pack(KINDS[name], tuple(weight.detach().contiguous() for weight in weights), threads, half).step


def sweep(weights: Tensor, order: Tensor, states: Tensor, fields: Tensor, tiny: float) -> int:
    """One sweep over the units of a binary Hopfield network, as csrc/problem.hpp has it: `states` and `fields` [rows, units] are
    changed in place. Returns how many units were turned over. All float32 on the CPU, in order in memory."""
    threads = torch.get_num_threads() if states.numel() >= MANY_STATES else 1
    turned = _native.sweep(weights, order, states, fields, tiny, threads)
    if turned < 0:
        raise TypeError(f"a sweep cannot read weights {weights.dtype} and states {states.dtype} as they lie in memory")
    return turned


def threads_for(batch: int, units: int, ways: int = 1) -> int:
    """How many threads share a call: a table made from benchmarks/kernels.py, so that the same call gives the same bits."""
    most = torch.get_num_threads()
    alone = units < 128 if batch < 4 * most else batch * units < 256
    return min(most, ways) if alone else most
