"""State: what a recurrent network knows of the past, as a value that goes in and comes out.

A state is a tensor, a NamedTuple of `[batch, ...]` tensors, or a tuple of states; `()` is no state. It is never an
attribute of a module. The functions here serve every state, every batch and every carry of a learner.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import torch
from torch import Tensor

State: TypeAlias = Any  # Tensor | tuple[State, ...]; a recursive alias would be lost on NamedTuples


def tmap(fn: Callable[..., Any], state: State, *rest: State) -> State:
    """Apply `fn` to every tensor of `state` (and of `rest`, taken side by side); the nest of tuples stays as it is."""
    if not isinstance(state, tuple):
        return fn(state, *rest)
    parts = [tmap(fn, *group) for group in zip(state, *rest, strict=True)]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)


def leaves(state: State) -> Iterator[Tensor]:
    """The tensors of a state, from left to right."""
    if isinstance(state, tuple):
        for part in state:
            yield from leaves(part)
    else:
        yield state


def named(state: State, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a state under readable names: `0.h`, `0.c`, `1.h` for two stacked LSTM layers."""
    if not isinstance(state, tuple):
        return {prefix or "state": state}
    fields = getattr(state, "_fields", range(len(state)))
    parts = {}
    for field, part in zip(fields, state, strict=True):
        parts.update(named(part, f"{prefix}.{field}" if prefix else str(field)))
    return parts


def unname(like: State, tensors: dict[str, Tensor]) -> State:
    """The state of the structure of `like` whose tensors are `tensors`, the inverse of `named`."""
    return refill(like, [tensors[name] for name in named(like)])


def refill(like: State, tensors: Iterable[Tensor]) -> State:
    """The state of the structure of `like` whose tensors are `tensors`, the inverse of `leaves`."""
    waiting = iter(tensors)
    return tmap(lambda _: next(waiting), like)


def floating(state: State) -> Iterator[Tensor]:
    """The tensors of a state that are not whole numbers: whatever differentiates or perturbs a state takes these."""
    return (leaf for leaf in leaves(state) if leaf.is_floating_point())


def flat(state: State) -> Tensor:
    """The floating fields of a state side by side, `[batch, size]`; there has to be one."""
    return torch.cat([leaf.flatten(1) for leaf in floating(state)], 1)


def unflat(like: State, values: Tensor) -> State:
    """The state of the structure of `like` whose floating fields are `values` `[batch, size]`, the inverse of `flat`; the others
    are `like`'s."""
    parts = iter(values.split([leaf.shape[1:].numel() for leaf in floating(like)], 1))
    return tmap(lambda leaf: next(parts).view(leaf.shape) if leaf.is_floating_point() else leaf, like)


def detach(state: State) -> State:
    """The same numbers without their past: gradients stop here."""
    return tmap(lambda leaf: leaf.detach(), state)


def choose(rows: Tensor, new: State, old: State) -> State:
    """Row by row: `new` where the boolean `rows` `[batch]` holds, else `old`."""
    return tmap(lambda a, b: torch.where(rows.view(-1, *[1] * (a.dim() - 1)), a, b), new, old)


def take(state: State, rows: Tensor) -> State:
    """The rows with these indices, in this order (a beam that is reordered, a batch that shrinks)."""
    return tmap(lambda leaf: leaf.index_select(0, rows), state)


def flipped(xs: Tensor, lengths: Tensor | None) -> Tensor:
    """`xs` `[batch, time, ...]` with each row read from its own end to its start; what is past the end stays there."""
    if lengths is None:
        return xs.flip(1)
    steps = torch.arange(xs.shape[1], device=xs.device)
    order = torch.where(within(lengths, xs.shape[1]), lengths[:, None] - 1 - steps, steps)
    return xs.gather(1, order.view(*order.shape, *[1] * (xs.dim() - 2)).expand_as(xs))


def within(lengths: Tensor, steps: int) -> Tensor:
    """Boolean `[batch, steps]`: true where a row has not ended yet."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def masked(xs: State, lengths: Tensor | None) -> State:
    """`xs` `[batch, time, ...]` with zeros past each row's end. A selection, not a product: a NaN does not survive it."""
    if lengths is None:
        return xs

    def zero_past_end(x: Tensor) -> Tensor:
        keep = within(lengths, x.shape[1])
        return torch.where(
            keep.view(*keep.shape, *[1] * (x.dim() - 2)), x, torch.zeros((), dtype=x.dtype, device=x.device)
        )

    return tmap(zero_past_end, xs)
