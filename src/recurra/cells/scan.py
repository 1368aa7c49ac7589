"""Linear recurrences, which need not be followed step by step.

    h_t = a_t * h_(t-1) + b_t

Two steps are one of the same kind, with a = a_2 a_1 and b = a_2 b_1 + b_2, and so a sequence can be cut into pieces that are
followed side by side. Everything stays in linear space: no logarithm asks for signs, and a start of zero has gradients.
"""

from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from recurra import kernels
from recurra.cells.base import Cell
from recurra.state import leaves

FEW = 1024  # numbers in a step: below it the call of an operation takes longer than what it computes
SHORT = 64  # steps: below it there is nothing to gain


def may_scan(cell: Cell, xs: Tensor, state: Any) -> bool:
    """Whether this call may run through a scan: there are steps, and only eager torch is looking."""
    return xs.shape[1] > 0 and kernels.may_take_another_way(xs, *leaves(state), *cell.parameters())


def followed(a: Tensor, b: Tensor, start: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """All h `[batch, time, units]` of h_t = a_t * h_(t-1) + b_t, real or complex, from `start` `[batch, units]`, and each row's h
    at its own end; what stands past the end of a row means nothing. Against the steps one by one, float32 differs in its last
    digits; derivatives of any order."""
    fast = _natively(a, b, start, lengths)
    if fast is not None:
        return fast
    hs = cast(Tensor, _Recurrence.apply(a, b, start, False))
    if lengths is None:
        return hs, hs[:, -1]
    places = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, hs.shape[2])
    return hs, torch.where(lengths[:, None] > 0, hs.gather(1, places)[:, 0], start)


def _natively(a: Tensor, b: Tensor, start: Tensor, lengths: Tensor | None) -> tuple[Tensor, Tensor] | None:
    if not b.is_complex():
        fast = kernels.follow("linear", lambda _: (a, b), b, lengths, (start,), ())
        return None if fast is None else (fast[0], fast[1][0])
    parts, begin = (a.real, a.imag, b.real, b.imag), (start.real, start.imag)
    fast = kernels.follow("linear-complex", lambda _: parts, b.real, lengths, begin, ())
    return None if fast is None else (torch.complex(*fast[0].chunk(2, dim=2)), torch.complex(*fast[1]))


class _Recurrence(torch.autograd.Function):
    """The recurrence, or with `reverse` the one from the end to the start, h_t = a_t * h_(t+1) + b_t. The gradient of each is the
    other, with the factors moved by a step:

    g_t = dL/dh_t + conj(a_(t+1)) g_(t+1),   dL/db_t = g_t,   dL/da_t = g_t conj(h_(t-1)),   dL/dh_0 = conj(a_1) g_1
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, start: Tensor, reverse: bool) -> Tensor:
        hs = _computed(a, b, start, reverse)
        ctx.reverse = reverse
        ctx.save_for_backward(a, start, hs)
        return hs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        a, start, hs = ctx.saved_tensors
        factors = a.conj()
        nothing = torch.zeros_like(start)
        later = _moved(factors, nothing, not ctx.reverse)
        back = cast(Tensor, _Recurrence.apply(later, grads[0], nothing, not ctx.reverse))
        first = -1 if ctx.reverse else 0
        before = _moved(hs, start, ctx.reverse) if ctx.needs_input_grad[0] else None
        return None if before is None else back * before.conj(), back, factors[:, first] * back[:, first], None


def _moved(xs: Tensor, end: Tensor, earlier: bool) -> Tensor:
    """`xs` a step earlier, or later, in time, with `end` `[batch, units]` where nothing came."""
    return torch.cat([xs[:, 1:], end[:, None]] if earlier else [end[:, None], xs[:, :-1]], dim=1)


def _computed(a: Tensor, b: Tensor, start: Tensor, reverse: bool) -> Tensor:
    steps = b.shape[1]
    if steps < SHORT or start.numel() > FEW:
        return _one_by_one(a, b, start, reverse)
    return _in_pieces(a, b, start, reverse, round(steps**0.5))


def _one_by_one(a: Tensor, b: Tensor, start: Tensor, reverse: bool) -> Tensor:
    hs = torch.empty_like(b)
    _fill(hs, a, b, start, reverse)
    return hs


def _fill(hs: Tensor, a: Tensor, b: Tensor, start: Tensor, reverse: bool) -> None:
    """Write the recurrence along axis 1 into `hs`."""
    slices = list(zip(a.unbind(1), b.unbind(1), hs.unbind(1), strict=True))
    h = start
    for factor, term, out in reversed(slices) if reverse else slices:
        h = torch.addcmul(term, factor, h, out=out)


def _in_pieces(a: Tensor, b: Tensor, start: Tensor, reverse: bool, size: int) -> Tensor:
    """Pieces of `size` steps, all at once from a start of zero; then from piece to piece what the true start adds. Two times
    sqrt(steps) operations on many numbers in place of `steps` operations on few."""
    whole = b.shape[1] // size * size
    cut = b.shape[1] - whole if reverse else whole  # the steps that fill no piece come last
    parts = (slice(cut, None), slice(None, cut)) if reverse else (slice(None, cut), slice(cut, None))
    hs = torch.empty_like(b)
    first, rest = (hs[:, part] for part in parts)
    pieces, factors = (
        x[:, parts[0]].unflatten(1, (-1, size)).transpose(1, 2) for x in (b, a)
    )  # [batch, size, pieces, ...]
    inside, product = torch.empty_like(pieces), torch.empty_like(factors)
    _fill(inside, factors, pieces, torch.zeros_like(pieces[:, 0]), reverse)
    _fill_products(product, factors, reverse)
    end = 0 if reverse else -1
    ends = _one_by_one(product[:, end], inside[:, end], start, reverse)
    begins = _moved(ends, start, reverse)
    torch.addcmul(inside, product, begins[:, None], out=first.unflatten(1, (-1, size)).transpose(1, 2))
    _fill(rest, a[:, parts[1]], b[:, parts[1]], ends[:, end], reverse)
    return hs


def _fill_products(product: Tensor, factors: Tensor, reverse: bool) -> None:
    """Write the products of the factors so far along axis 1."""
    slices = list(zip(factors.unbind(1), product.unbind(1), strict=True))
    ordered = slices[::-1] if reverse else slices
    ordered[0][1].copy_(ordered[0][0])
    for (_, before), (factor, out) in pairwise(ordered):
        torch.mul(factor, before, out=out)
