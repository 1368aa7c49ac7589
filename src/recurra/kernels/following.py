"""The native recurrences of cells whose products with the input were made before: csrc/following.hpp, float32 on a CPU.

What a kernel is given is what `Cell.project` made: tensors `[batch, time, blocks * units]`, one after the other, and with them the
parameters that recur. As in `native`, what is here reads the memory of tensors, and `ops` has the same as operators of torch.
"""

from typing import Any, cast

import torch
from torch import Tensor

from recurra.kernels import again, native
from recurra.kernels.native import _native

Parts = tuple[Tensor, ...]
Result = tuple[Tensor, Parts]

MUCH = 32768  # numbers that are put out: from here on computing them takes longer than waking the threads

FOLLOWERS: dict[str, int] = {} if _native is None else {name: place for place, name in enumerate(_native.followers())}
SAYS: dict[str, int] = {name: _native.says(place) for name, place in FOLLOWERS.items()}  # blocks of an output


def suits(name: str, xs: Tensor, state: Parts, params: Parts, types: tuple[torch.dtype, ...]) -> bool:
    """Whether these are sizes and tensors of such types for the kernel `name`; there is something to compute."""
    some = 0 not in xs.shape[:2] and 0 not in state[0].shape and 0 not in state[-1].shape
    return name in FOLLOWERS and some and native.suits(xs, state, params, types)


def run(name: str, us: Parts, lengths: Tensor | None, state: Parts, params: Parts) -> Result:
    """The recurrence `name` over what was projected: the outputs, zero past a row's end, and each row's own last state."""
    given = (*us, *state, *params)
    if not (torch.is_grad_enabled() and any(part.requires_grad for part in given)):
        return follow(name, us, lengths, state, params, None)
    ys, *last = cast(Parts, _Following.apply(name, lengths, len(us), len(state), *given))
    return ys, tuple(last)


def saved_floats(name: str, units: int) -> int:
    """How many floats the way back needs for each row and step, on any machine."""
    return _native.followers_saved_floats(FOLLOWERS[name], units)


class _Following(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, lengths: Tensor | None, blocks: int, fields: int, *given: Tensor) -> Parts:
        us, state, params = split(given, blocks, fields)
        batch, steps, _ = us[0].shape
        saved = us[0].new_empty(batch * steps * saved_floats(name, state[-1].shape[1]))
        ys, last = follow(name, us, lengths, state, params, saved)
        remember(ctx, name, lengths, blocks, fields, given, ys, saved)
        return ys, *last

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, None, None, None, *gradients(ctx, grads, follow_back)


def remember(
    ctx: Any, name: str, lengths: Tensor | None, blocks: int, fields: int, given: Parts, ys: Tensor, saved: Tensor
) -> None:
    """Put into the context of autograd what `gradients` needs."""
    ctx.name, ctx.blocks, ctx.fields = name, blocks, fields
    ctx.save_for_backward(lengths, ys, saved, *given)
    ctx.set_materialize_grads(False)


def gradients(ctx: Any, grads: tuple[Tensor | None, ...], back: Any) -> list[Tensor | None]:
    """The gradients of us, state and parameters in a row, by `back` or as a computation that has derivatives itself."""
    lengths, ys, saved, *given = ctx.saved_tensors
    batched = any(torch._C._functorch.is_legacy_batchedtensor(grad) for grad in grads if grad is not None)
    if torch.is_grad_enabled() or batched:
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            # It begins at views of what was given: a path from one of them to another is the outer graph's to count.
            given = [part.view_as(part) if part.requires_grad else part for part in given]
            us, state, params = split(given, ctx.blocks, ctx.fields)
            again_ys, last = again.follow(ctx.name, us, lengths, state, params)
            return again.gradients((again_ys, *last), grads, given)
    us, state, params = split(given, ctx.blocks, ctx.fields)
    dus, dstate, dparams = back(ctx.name, us, lengths, state, params, saved, ys, grads[0], grads[1:])
    return [*dus, *dstate, *dparams]


def split(given: Any, blocks: int, fields: int) -> tuple[Parts, Parts, Parts]:
    """What was given in a row as us, state and parameters."""
    return tuple(given[:blocks]), tuple(given[blocks : blocks + fields]), tuple(given[blocks + fields :])


def follow(name: str, us: Parts, lengths: Tensor | None, state: Parts, params: Parts, saved: Tensor | None) -> Result:
    """The outputs and the last state; and what `follow_back` needs into `saved`, unless it is None."""
    given = (FOLLOWERS[name], us, lengths, state, params, saved, _threads(us, state))
    return native._ordered(_native.follow, *given)


def follow_back(
    name: str,
    us: Parts,
    lengths: Tensor | None,
    state: Parts,
    params: Parts,
    saved: Tensor,
    ys: Tensor,
    dys: Tensor | None,
    dlast: tuple[Tensor | None, ...],
) -> tuple[Parts, Parts, Parts]:
    """The gradients of us, of the state and of the parameters."""
    given = (FOLLOWERS[name], us, lengths, state, params, saved, ys, dys, dlast, _threads(us, state))
    return native._ordered(_native.follow_back, *given)


def _threads(us: Parts, state: Parts) -> int:
    batch, steps, _ = us[0].shape
    return torch.get_num_threads() if batch * steps * state[-1].shape[1] >= MUCH else 1
