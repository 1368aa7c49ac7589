"""The native recurrences as operators of torch, so that a graph can hold them: torch.compile, torch.export, and whatever else
looks at operators and not at memory.

    recurra::recurrence           outputs, last h, last c and, with `keep`, what the way back needs
    recurra::recurrence_backward  the gradients of xs (with `wants_dx`), h, c and the weights
    recurra::follow               outputs, the fields of the last state, and what the way back needs: `following.run`
    recurra::follow_backward      the gradients of what was projected, of the state and of the parameters

A tensor that there is not, such as c of a GRU, is empty among the results. Values are checked here when the operator runs:
a graph was traced without them, and an address is not asked where its array ends.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import library as operators

from recurra.errors import UsageError
from recurra.kernels import following, native
from recurra.kernels.native import _native

GIVEN = "str name, Tensor xs, Tensor? lengths, Tensor h, Tensor? c, Tensor[] weights"
FORWARD = f"recurrence({GIVEN}, bool reverse, bool keep) -> (Tensor ys, Tensor h_last, Tensor c_last, Tensor saved)"
BACKWARD = (
    f"recurrence_backward({GIVEN}, Tensor ys, Tensor saved, Tensor? dys, Tensor? dh, Tensor? dc, bool reverse, bool wants_dx)"
    " -> (Tensor dxs, Tensor dh0, Tensor dc0, Tensor[] dweights)"
)
PROJECTED = "str name, Tensor[] us, Tensor? lengths, Tensor[] state, Tensor[] params"
FOLLOW = f"follow({PROJECTED}, bool keep) -> (Tensor ys, Tensor[] last, Tensor saved)"
FOLLOW_BACKWARD = (
    f"follow_backward({PROJECTED}, Tensor saved, Tensor ys, Tensor? dys, Tensor?[] dlast)"
    " -> (Tensor[] dus, Tensor[] dstate, Tensor[] dparams)"
)
GATES = {name: _native.gates(kind) for name, kind in native.KINDS.items()}
FIELDS = {name: _native.fields(kind) for name, kind in native.KINDS.items()}  # of the state
NOTHING_KEPT = (
    "recurra::{} ran without keeping what its gradients need; trace the graph with gradients enabled and with parameters that "
    "require them"
)

Parts = tuple[Tensor, ...]
Listed = Sequence[Tensor]


def run(
    name: str, xs: Tensor, lengths: Tensor | None, state: native.State, weights: native.Weights, reverse: bool = False
) -> native.Result:
    """`native.run` by the operators: slower to call, and the same bits."""
    keep = native.wants_gradients(xs, state, weights)
    ys, *last, _ = torch.ops.recurra.recurrence(name, xs, lengths, *_both(state), weights, reverse, keep)
    return ys, tuple(last[: len(state)])


def _forward(name: str, *rest: Any) -> Any:
    xs, lengths, h, c, weights, reverse, keep = rest
    _check(name, xs, lengths, h, c, *weights)
    if xs.shape[0] == 0:
        return _forward_fake(name, *rest)
    # Zeros: what an operator gives must not depend on what was in memory, even where nobody looks.
    saved = xs.new_zeros(_saved_floats(name, xs, weights[1])) if keep else None
    ((ys, last),) = native.forward(name, xs, lengths, ((_fields(h, c), tuple(weights), reverse, saved),))
    return ys, *(_or_empty(part, xs) for part in (*_both(last), saved))


def _forward_fake(name: str, *rest: Any) -> tuple[Tensor, ...]:
    xs, _, h, c, weights, _, keep = rest
    batch, steps, _ = xs.shape
    saved = _saved_floats(name, xs, weights[1]) if keep else 0
    return xs.new_empty(batch, steps, weights[1].shape[1]), _fresh(h, xs), _fresh(c, xs), xs.new_empty(saved)


def _backward(name: str, *rest: Any) -> Any:
    xs, lengths, h, c, weights, ys, saved, dys, dh, dc, reverse, wants_dx = rest
    _check(name, xs, lengths, h, c, *weights)
    w_hh = weights[1]
    like = {"dys": (dys, ys), "dh": (dh, h), "dc": (dc, c)}
    shapes = {key: (grad, part.shape) for key, (grad, part) in like.items() if grad is not None and part is not None}
    wanted = {"ys": (ys, (*xs.shape[:2], w_hh.shape[1])), "saved": (saved, (_saved_floats(name, xs, w_hh),)), **shapes}
    _check_shapes(name, wanted)
    if xs.shape[0] == 0:
        *alone, dweights = _backward_fake(name, *rest)
        return *(part.zero_() for part in alone), [part.zero_() for part in dweights]
    state, dlast = _fields(h, c), (dh,) if c is None else (dh, dc)
    way = (state, tuple(weights), reverse, saved, ys, dys, dlast)
    ((dxs, dstate, dweights),) = native.backward(name, xs, lengths, (way,), wants_dx)
    return *(_or_empty(part, xs) for part in (dxs, *_both(dstate))), list(dweights)


def _backward_fake(name: str, *rest: Any) -> Any:
    (xs, _, h, c, weights), wants_dx = rest[:5], rest[-1]
    alone = (_fresh(part, xs) for part in (xs if wants_dx else None, h, c))
    return *alone, [_fresh(part, xs) for part in weights]


def _saved_floats(name: str, xs: Tensor, w_hh: Tensor) -> int:
    """How many floats the way back needs; as many for each row and step, so that batch and time may be symbols."""
    return native.saved_floats(name, int(w_hh.shape[1])) * xs.shape[0] * xs.shape[1]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    name, xs, lengths, h, c, weights, reverse, ctx.keep = inputs
    ys, *_, saved = output
    native.remember(ctx, name, (reverse,), (xs, lengths, *weights, *_fields(h, c)), [ys], [saved])
    ctx.mark_non_differentiable(saved)


def _gradients(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    if not ctx.keep:
        raise RuntimeError(NOTHING_KEPT.format("recurrence"))
    of_outputs = grads[: 1 + FIELDS[ctx.name]]
    dxs, ((dstate, dweights),) = native.gradients(ctx, of_outputs, ctx.needs_input_grad[1], _wanted_gradients)
    return None, dxs, None, *_both(dstate), list(dweights), None, None


def _wanted_gradients(
    name: str, xs: Tensor, lengths: Tensor | None, ways: tuple[tuple[Any, ...], ...], wants_dx: bool
) -> list[native.Gradients]:
    """`native.backward` by the operator."""
    ((state, weights, reverse, saved, ys, dys, dlast),) = ways
    h, c = _both(state)
    dh, dc = (*dlast, None)[:2]
    dxs, dh0, dc0, dweights = torch.ops.recurra.recurrence_backward(
        name, xs, lengths, h, c, weights, ys, saved, dys, dh, dc, reverse, wants_dx
    )
    return [(dxs if wants_dx else None, _fields(dh0, None if c is None else dc0), tuple(dweights))]


def _both(state: native.State) -> tuple[Tensor, Tensor | None]:
    """The fields h and c of a state; None for a c that it does not have."""
    return state[0], state[1] if len(state) > 1 else None


def _fields(h: Tensor, c: Tensor | None) -> native.State:
    return (h,) if c is None else (h, c)


def _or_empty(part: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0) if part is None else part


def _fresh(part: Tensor | None, like: Tensor) -> Tensor:
    return like.new_empty(0 if part is None else part.shape)


def _check(name: str, xs: Tensor, lengths: Tensor | None, h: Tensor, c: Tensor | None, *weights: Tensor) -> None:
    """Raise UsageError where the arguments of a recurrence do not fit each other."""
    known = name in GATES and len(weights) == native.WEIGHTS[name]
    if not known or (c is not None) != (FIELDS[name] == 2) or xs.dim() != 3 or weights[1].dim() != 2:
        raise UsageError(
            f"recurra::recurrence was given name={name!r}, xs of shape {tuple(xs.shape)}, weights of shapes "
            f"{[tuple(weight.shape) for weight in weights]} and {'no c' if c is None else 'c'}; wanted one of "
            f"{', '.join(GATES)}, [batch, time, inputs], its weights, weight_hh [gates * units, units], and c for an lstm only"
        )
    w_ih, w_hh, b_ih, b_hh, *own = weights
    (batch, steps, inputs), units = xs.shape, w_hh.shape[1]
    rows = GATES[name] * units
    wanted = {
        "xs": (xs, (batch, steps, inputs)), "h": (h, (batch, units)), "weight_ih": (w_ih, (rows, inputs)),
        "weight_hh": (w_hh, (rows, units)), "bias_ih": (b_ih, (rows,)), "bias_hh": (b_hh, (rows,)),
    }  # fmt: skip
    wanted |= {f"parameter {place}": (part, (units,)) for place, part in enumerate(own)}
    _check_shapes(name, wanted | ({} if c is None else {"c": (c, (batch, units))}))
    if lengths is not None:
        _check_lengths(name, lengths, batch, steps)


def _check_shapes(name: str, wanted: dict[str, tuple[Tensor, tuple[int, ...]]]) -> None:
    for key, (part, shape) in wanted.items():
        if tuple(part.shape) != shape or part.dtype != torch.float32 or not part.is_cpu:
            raise UsageError(
                f"the recurrence {name} was given {key} as {part.dtype} of shape {tuple(part.shape)} on {part.device}; "
                f"wanted torch.float32 of shape {shape} on cpu"
            )


def _check_lengths(name: str, lengths: Tensor, batch: int, steps: int) -> None:
    if lengths.dtype != torch.int64 or lengths.shape != (batch,) or not lengths.is_cpu:
        raise UsageError(
            f"the recurrence {name} was given lengths as {lengths.dtype} of shape {tuple(lengths.shape)} on "
            f"{lengths.device}; wanted torch.int64 of shape ({batch},) on cpu"
        )
    if batch and (int(lengths.min()) < 0 or int(lengths.max()) > steps):
        raise UsageError(
            f"the recurrence {name} was given lengths from {int(lengths.min())} to {int(lengths.max())} for inputs of "
            f"{steps} steps; wanted each between 0 and {steps}"
        )


# --- what recurs after a projection ---


def follow(name: str, us: Parts, lengths: Tensor | None, state: Parts, params: Parts) -> native.Result:
    """`following.run` by the operators."""
    keep = torch.is_grad_enabled() and any(part.requires_grad for part in (*us, *state, *params))
    ys, last, _ = torch.ops.recurra.follow(name, us, lengths, tuple(state), params, keep)
    return ys, tuple(last)


def _follow(name: str, us: Listed, lengths: Tensor | None, state: Listed, params: Listed, keep: bool) -> Any:
    _check_following(name, us, lengths, state)
    if 0 in us[0].shape[:2]:
        ys, _, saved = _follow_fake(name, us, lengths, state, params, keep)
        return ys, [part.clone() for part in state], saved
    saved = us[0].new_zeros(_following_floats(name, us, state)) if keep else None
    ys, last = following.follow(name, tuple(us), lengths, tuple(state), tuple(params), saved)
    return ys, list(last), _or_empty(saved, ys)


def _follow_fake(name: str, us: Listed, lengths: Tensor | None, state: Listed, params: Listed, keep: bool) -> Any:
    ys, saved = us[0].new_empty(_says(name, us, state)), _following_floats(name, us, state) if keep else 0
    return ys, [part.new_empty(part.shape) for part in state], us[0].new_empty(saved)


def _follow_backward(
    name: str,
    us: Listed,
    lengths: Tensor | None,
    state: Listed,
    params: Listed,
    saved: Tensor,
    ys: Tensor,
    dys: Tensor | None,
    dlast: list[Tensor | None],
) -> Any:
    _check_following(name, us, lengths, state)
    if 0 in us[0].shape[:2]:
        found = _follow_backward_fake(name, us, lengths, state, params, saved, ys, dys, dlast)
        return tuple([part.zero_() for part in parts] for parts in found)
    found = following.follow_back(name, tuple(us), lengths, tuple(state), tuple(params), saved, ys, dys, tuple(dlast))
    return tuple(list(parts) for parts in found)


def _follow_backward_fake(
    name: str, us: Listed, lengths: Tensor | None, state: Listed, params: Listed, *rest: Any
) -> Any:
    return tuple([part.new_empty(part.shape) for part in parts] for parts in (us, state, params))


def _says(name: str, us: Listed, state: Listed) -> tuple[int, ...]:
    """The shape of the outputs."""
    return *us[0].shape[:2], following.SAYS[name] * state[0].shape[1]


def _following_floats(name: str, us: Listed, state: Listed) -> int:
    return following.saved_floats(name, int(state[-1].shape[1])) * us[0].shape[0] * us[0].shape[1]


def _check_following(name: str, us: Listed, lengths: Tensor | None, state: Listed) -> None:
    """Raise UsageError for what the kernel does not look at itself."""
    if name not in following.FOLLOWERS or not us or not state or any(u.dim() != 3 for u in us):
        raise UsageError(
            f"recurra::follow was given name={name!r} and projections of shapes {[tuple(u.shape) for u in us]}; wanted one of "
            f"{', '.join(following.FOLLOWERS)}, and [batch, time, blocks * units]"
        )
    if lengths is not None:
        _check_lengths(name, lengths, us[0].shape[0], us[0].shape[1])


def _remember_following(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    name, us, lengths, state, params, ctx.keep = inputs
    ys, _, saved = output
    following.remember(ctx, name, lengths, len(us), len(state), (*us, *state, *params), ys, saved)
    ctx.mark_non_differentiable(saved)


def _following_gradients(ctx: Any, dys: Tensor | None, dlast: Any, _: Tensor | None) -> tuple[Any, ...]:
    if not ctx.keep:
        raise RuntimeError(NOTHING_KEPT.format("follow"))
    grads = (dys, *(dlast or [None] * ctx.fields))
    found = following.split(following.gradients(ctx, grads, _wanted_following), ctx.blocks, ctx.fields)
    return None, list(found[0]), None, list(found[1]), list(found[2]), None


def _wanted_following(
    name: str, us: Parts, lengths: Any, state: Parts, params: Parts, saved: Tensor, ys: Tensor, dys: Any, dlast: Any
) -> Any:
    """`following.follow_back` by the operator."""
    return torch.ops.recurra.follow_backward(name, us, lengths, state, params, saved, ys, dys, list(dlast))


# --- vmap ---


def _mapped(op: Any, last_of_rows: int) -> Callable[..., tuple[Any, Any]]:
    """The rule of vmap for an operator whose arguments have a row each from place 1 to `last_of_rows`, then weights: what is
    mapped over becomes rows of the batch where the weights are shared; else one call follows the other."""

    def rule(info: Any, in_dims: tuple[Any, ...], *given: Any) -> tuple[Any, Any]:
        size, weights = info.batch_size, last_of_rows + 1
        keep = torch.is_grad_enabled() and _wants_gradients(given)  # from inside vmap nobody could see it
        given = (*given[:-1], keep)
        if any(dim is not None for dim in in_dims[weights]):
            calls = [
                op(*(_sample(part, dim, n) for part, dim in zip(given, in_dims, strict=True))) for n in range(size)
            ]
            outs = [_stacked(parts) for parts in zip(*calls, strict=True)]
            return tuple(outs), tuple([0] * len(out) if isinstance(out, list) else 0 for out in outs)
        rows = (_folded(part, dim, size) for part, dim in zip(given[1:weights], in_dims[1:weights], strict=True))
        *outs, saved = op(given[0], *rows, *given[weights:])
        return (*(_unfolded(out, size) for out in outs), saved), (*(_dims(out) for out in outs), None)

    return rule


def _wants_gradients(part: Any) -> bool:
    if isinstance(part, list | tuple):
        return any(map(_wants_gradients, part))
    return isinstance(part, Tensor) and part.requires_grad


def _sample(part: Any, dim: Any, n: int) -> Any:
    """The n-th of what is mapped over."""
    if isinstance(part, list | tuple):
        return [_sample(one, at, n) for one, at in zip(part, dim, strict=True)]
    return part if dim is None else part.select(dim, n)


def _stacked(parts: tuple[Any, ...]) -> Any:
    return list(map(torch.stack, zip(*parts, strict=True))) if isinstance(parts[0], list) else torch.stack(parts)


def _folded(part: Any, dim: Any, size: int) -> Any:
    """What is mapped over as rows of the batch; what is not, as often."""
    if part is None:
        return None
    if isinstance(part, list | tuple):
        return [_folded(one, at, size) for one, at in zip(part, dim, strict=True)]
    whole = part.expand(size, *part.shape) if dim is None else part.movedim(dim, 0)
    return whole.reshape(-1, *whole.shape[2:])


def _unfolded(out: Any, size: int) -> Any:
    if isinstance(out, list | tuple):
        return [_unfolded(one, size) for one in out]
    return out.unflatten(0, (size, -1)) if out.dim() > 1 else out  # a field that there is not is empty


def _dims(out: Any) -> Any:
    if isinstance(out, list | tuple):
        return [_dims(one) for one in out]
    return 0 if out.dim() > 1 else None


def _register() -> None:
    for schema, on_cpu, fake in (
        (FORWARD, _forward, _forward_fake),
        (BACKWARD, _backward, _backward_fake),
        (FOLLOW, _follow, _follow_fake),
        (FOLLOW_BACKWARD, _follow_backward, _follow_backward_fake),
    ):
        name, _, signature = schema.partition("(")
        operators.define(f"recurra::{name}", f"({signature}", tags=(torch.Tag.pt2_compliant_tag,))
        operators.impl(f"recurra::{name}", "CPU", on_cpu)
        operators.register_fake(f"recurra::{name}", fake)
    operators.register_autograd("recurra::recurrence", _gradients, setup_context=_remember)
    operators.register_vmap("recurra::recurrence", _mapped(torch.ops.recurra.recurrence, 4))
    operators.register_vmap("recurra::follow", _mapped(torch.ops.recurra.follow, 3))
    operators.register_autograd("recurra::follow", _following_gradients, setup_context=_remember_following)


if native.available():
    _register()
