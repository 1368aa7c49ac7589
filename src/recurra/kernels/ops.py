"""The native recurrences as operators of torch, so that a graph can hold them: torch.compile, torch.export, and whatever else
looks at operators and not at memory.

    recurra::recurrence           outputs, last h, last c and, with `keep`, what the way back needs
    recurra::recurrence_backward  the gradients of xs (with `wants_dx`), h, c and the four weights
    recurra::follow               outputs, the fields of the last state, and what the way back needs: `following.run`
    recurra::follow_backward      the gradients of what was projected, of the state and of the parameters

A tensor that there is not, such as c of a GRU, is empty among the results. Values are checked here when the operator runs:
a graph was traced without them, and an address is not asked where its array ends.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch import library as operators

from recurra.errors import UsageError
from recurra.kernels import following, native
from recurra.kernels.native import _native

GIVEN = "str name, Tensor xs, Tensor? lengths, Tensor h, Tensor? c, Tensor w_ih, Tensor w_hh, Tensor b_ih, Tensor b_hh"
FORWARD = f"recurrence({GIVEN}, bool reverse, bool keep) -> (Tensor ys, Tensor h_last, Tensor c_last, Tensor saved)"
BACKWARD = (
    f"recurrence_backward({GIVEN}, Tensor ys, Tensor saved, Tensor? dys, Tensor? dh, Tensor? dc, bool reverse, bool wants_dx)"
    " -> (Tensor dxs, Tensor dh0, Tensor dc0, Tensor dw_ih, Tensor dw_hh, Tensor db_ih, Tensor db_hh)"
)
PROJECTED = "str name, Tensor[] us, Tensor? lengths, Tensor[] state, Tensor[] params"
FOLLOW = f"follow({PROJECTED}, bool keep) -> (Tensor ys, Tensor[] last, Tensor saved)"
FOLLOW_BACKWARD = (
    f"follow_backward({PROJECTED}, Tensor saved, Tensor ys, Tensor? dys, Tensor?[] dlast)"
    " -> (Tensor[] dus, Tensor[] dstate, Tensor[] dparams)"
)
GATES = {name: _native.gates(kind) for name, kind in native.KINDS.items()}
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
    ys, *last, _ = torch.ops.recurra.recurrence(name, xs, lengths, *_both(state), *weights, reverse, keep)
    return ys, tuple(last[: len(state)])


def _forward(name: str, *rest: Any) -> tuple[Tensor, ...]:
    *given, reverse, keep = rest
    _check(name, *given)
    xs, lengths, h, c, *weights = given
    if xs.shape[0] == 0:
        return _forward_fake(name, *rest)
    # Zeros: what an operator gives must not depend on what was in memory, even where nobody looks.
    saved = xs.new_zeros(_saved_floats(name, xs, weights[1])) if keep else None
    ((ys, last),) = native.forward(name, xs, lengths, ((_fields(h, c), tuple(weights), reverse, saved),))
    return ys, *(_or_empty(part, xs) for part in (*_both(last), saved))


def _forward_fake(name: str, *rest: Any) -> tuple[Tensor, ...]:
    xs, _, h, c, _, w_hh, _, _, _, keep = rest
    batch, steps, _ = xs.shape
    saved = _saved_floats(name, xs, w_hh) if keep else 0
    return xs.new_empty(batch, steps, w_hh.shape[1]), _fresh(h, xs), _fresh(c, xs), xs.new_empty(saved)


def _backward(name: str, *rest: Any) -> tuple[Tensor, ...]:
    given, (ys, saved, dys, dh, dc), (reverse, wants_dx) = rest[:8], rest[8:13], rest[13:]
    xs, lengths, h, c, *weights = given
    w_hh = weights[1]
    _check(name, *given)
    like = {"dys": (dys, ys), "dh": (dh, h), "dc": (dc, c)}
    shapes = {key: (grad, part.shape) for key, (grad, part) in like.items() if grad is not None and part is not None}
    wanted = {"ys": (ys, (*xs.shape[:2], w_hh.shape[1])), "saved": (saved, (_saved_floats(name, xs, w_hh),)), **shapes}
    _check_shapes(name, wanted)
    if xs.shape[0] == 0:
        return tuple(part.zero_() for part in _backward_fake(name, *rest))
    state, dlast = _fields(h, c), (dh,) if c is None else (dh, dc)
    way = (state, tuple(weights), reverse, saved, ys, dys, dlast)
    ((dxs, dstate, dweights),) = native.backward(name, xs, lengths, (way,), wants_dx)
    return tuple(_or_empty(part, xs) for part in (dxs, *_both(dstate), *dweights))


def _backward_fake(name: str, *rest: Any) -> tuple[Tensor, ...]:
    (xs, _, h, c, *weights), wants_dx = rest[:8], rest[-1]
    return tuple(_fresh(part, xs) for part in (xs if wants_dx else None, h, c, *weights))


def _saved_floats(name: str, xs: Tensor, w_hh: Tensor) -> int:
    """How many floats the way back needs; as many for each row and step, so that batch and time may be symbols."""
    return native.saved_floats(name, int(w_hh.shape[1])) * xs.shape[0] * xs.shape[1]


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    name, xs, lengths, h, c, *weights, reverse, ctx.keep = inputs
    ys, *_, saved = output
    native.remember(ctx, name, (reverse,), (xs, lengths, *weights, *_fields(h, c)), [ys], [saved])
    ctx.mark_non_differentiable(saved)


def _gradients(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    if not ctx.keep:
        raise RuntimeError(NOTHING_KEPT.format("recurrence"))
    of_outputs = grads[: 3 if ctx.name == "lstm" else 2]
    dxs, ((dstate, dweights),) = native.gradients(ctx, of_outputs, ctx.needs_input_grad[1], _wanted_gradients)
    return None, dxs, None, *_both(dstate), *dweights, None, None


def _wanted_gradients(
    name: str, xs: Tensor, lengths: Tensor | None, ways: tuple[tuple[Any, ...], ...], wants_dx: bool
) -> list[native.Gradients]:
    """`native.backward` by the operator."""
    ((state, weights, reverse, saved, ys, dys, dlast),) = ways
    h, c = _both(state)
    dh, dc = (*dlast, None)[:2]
    dxs, dh0, dc0, *dweights = torch.ops.recurra.recurrence_backward(
        name, xs, lengths, h, c, *weights, ys, saved, dys, dh, dc, reverse, wants_dx
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


def _check(
    name: str,
    xs: Tensor,
    lengths: Tensor | None,
    h: Tensor,
    c: Tensor | None,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor,
    b_hh: Tensor,
) -> None:
    """Raise UsageError where the arguments of a recurrence do not fit each other."""
    if name not in GATES or (c is None) == (name == "lstm") or xs.dim() != 3 or w_hh.dim() != 2:
        raise UsageError(
            f"recurra::recurrence was given name={name!r}, xs of shape {tuple(xs.shape)}, weight_hh of shape "
            f"{tuple(w_hh.shape)} and {'no c' if c is None else 'c'}; wanted one of {', '.join(GATES)}, "
            "[batch, time, inputs], [gates * units, units], and c for an lstm only"
        )
    (batch, steps, inputs), units = xs.shape, w_hh.shape[1]
    rows = GATES[name] * units
    wanted = {
        "xs": (xs, (batch, steps, inputs)), "h": (h, (batch, units)), "weight_ih": (w_ih, (rows, inputs)),
        "weight_hh": (w_hh, (rows, units)), "bias_ih": (b_ih, (rows,)), "bias_hh": (b_hh, (rows,)),
    }  # fmt: skip
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
    operators.register_autograd("recurra::follow", _following_gradients, setup_context=_remember_following)


if native.available():
    _register()
