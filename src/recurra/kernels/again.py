"""The native recurrences once more in torch's own operations: for derivatives of derivatives, which the kernels do not have.

A step has the blocks that were projected, the fields of the state and the parameters, in the order of csrc/, and gives the output
and the next state.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from recurra.state import choose, masked

Parts = tuple[Tensor, ...]
Step = Callable[[Sequence[Tensor], Parts, Parts], tuple[Tensor, Parts]]
Curve = Callable[[Tensor], Tensor]

CURVES: dict[str, Curve] = {"tanh": torch.tanh, "relu": torch.relu, "logistic": torch.sigmoid, "identity": lambda a: a}
CANDIDATES: dict[str, Curve] = {
    "identity": lambda a: a,
    "positive": lambda a: torch.where(a >= 0, a + 0.5, a.sigmoid()),
}


def _linear(u: Sequence[Tensor], s: Parts, p: Parts) -> tuple[Tensor, Parts]:
    h = u[0] * s[0] + u[1]
    return h, (h,)


def _complex(u: Sequence[Tensor], s: Parts, p: Parts) -> tuple[Tensor, Parts]:
    re, im = u[0] * s[0] - u[1] * s[1] + u[2], u[0] * s[1] + u[1] * s[0] + u[3]
    return torch.cat([re, im], dim=1), (re, im)


def _lru(u: Sequence[Tensor], s: Parts, p: Parts) -> tuple[Tensor, Parts]:
    return _complex((p[0], p[1], p[2] * u[0], p[2] * u[1]), s, ())


def _mingru(candidate: Curve) -> Step:
    def step(u: Sequence[Tensor], s: Parts, p: Parts) -> tuple[Tensor, Parts]:
        z = u[0].sigmoid()
        h = (1 - z) * s[0] + z * candidate(u[1])
        return h, (h,)

    return step


def _minlstm(candidate: Curve) -> Step:
    def step(u: Sequence[Tensor], s: Parts, p: Parts) -> tuple[Tensor, Parts]:
        apart = torch.nn.functional.logsigmoid(u[0]) - torch.nn.functional.logsigmoid(u[1])
        h = apart.sigmoid() * s[0] + (-apart).sigmoid() * candidate(u[2])
        return h, (h,)

    return step


def _indrnn(curve: Curve) -> Step:
    def step(u: Sequence[Tensor], s: Parts, p: Parts) -> tuple[Tensor, Parts]:
        h = curve(u[0] + p[0] * s[0])
        return h, (h,)

    return step


def _qrnn(u: Sequence[Tensor], s: Parts, p: Parts) -> tuple[Tensor, Parts]:
    f = u[1].sigmoid()
    c = f * s[0] + (1 - f) * u[0].tanh()
    return u[2].sigmoid() * c if len(u) > 2 else c, (c,)


def _sru(curve: Curve) -> Step:
    def step(u: Sequence[Tensor], s: Parts, p: Parts) -> tuple[Tensor, Parts]:
        sums = [a + v * s[0] for a, v in zip(u, p, strict=False)] if p else u
        f, r = sums[0].sigmoid(), sums[1].sigmoid()
        c = f * s[0] + (1 - f) * u[2]
        return r * curve(c) + (1 - r) * u[3], (c,)

    return step


def _matrix(arithmetic: Step) -> Step:
    """A step whose first parameter is multiplied by the first field of the state and added to the blocks."""

    def step(u: Sequence[Tensor], s: Parts, p: Parts) -> tuple[Tensor, Parts]:
        return arithmetic((torch.cat(list(u), dim=1) + s[0] @ p[0].mT).chunk(len(u), dim=1), s, p[1:])

    return step


def _elman(curve: Curve) -> Step:
    def step(a: Sequence[Tensor], s: Parts, p: Parts) -> tuple[Tensor, Parts]:
        h = curve(a[0])
        return h, (h,)

    return _matrix(step)


def _leaky(curve: Curve) -> Step:
    def step(a: Sequence[Tensor], s: Parts, p: Parts) -> tuple[Tensor, Parts]:
        h = p[0] * s[0] + (1 - p[0]) * curve(a[0])
        return h, (h,)

    return _matrix(step)


def _lstm_sigmoid(a: Sequence[Tensor], s: Parts, p: Parts) -> tuple[Tensor, Parts]:
    i, f, g, o = (one.sigmoid() for one in a)
    c = f * s[1] + i * g
    h = o * c.tanh()
    return h, (h, c)


def _lstm_peephole(a: Sequence[Tensor], s: Parts, p: Parts) -> tuple[Tensor, Parts]:
    i, f = (a[0] + p[0] * s[1]).sigmoid(), (a[1] + p[1] * s[1]).sigmoid()
    c = f * s[1] + i * a[2].tanh()
    h = (a[3] + p[2] * c).sigmoid() * c.tanh()
    return h, (h, c)


def _lstm_coupled(a: Sequence[Tensor], s: Parts, p: Parts) -> tuple[Tensor, Parts]:
    f = a[0].sigmoid()
    c = f * s[1] + (1 - f) * a[1].tanh()
    h = a[2].sigmoid() * c.tanh()
    return h, (h, c)


def _ligru(a: Sequence[Tensor], s: Parts, p: Parts) -> tuple[Tensor, Parts]:
    z = a[0].sigmoid()
    h = z * s[0] + (1 - z) * a[1].relu()
    return h, (h,)


def _gru_before(u: Sequence[Tensor], s: Parts, p: Parts) -> tuple[Tensor, Parts]:
    units = s[0].shape[1]
    gates, candidate = p[0].split([2 * units, units])
    r, z = (torch.cat([u[0], u[1]], dim=1) + s[0] @ gates.mT).sigmoid().chunk(2, dim=1)
    h = z * s[0] + (1 - z) * (u[2] + (r * s[0]) @ candidate.mT).tanh()
    return h, (h,)


def _mgu(u: Sequence[Tensor], s: Parts, p: Parts) -> tuple[Tensor, Parts]:
    gate, candidate = p[0].chunk(2)
    f = (u[0] + s[0] @ gate.mT).sigmoid()
    h = (1 - f) * s[0] + f * (u[1] + (f * s[0]) @ candidate.mT).tanh()
    return h, (h,)


def _lstm_projected(a: Sequence[Tensor], s: Parts, p: Parts) -> tuple[Tensor, Parts]:
    c = a[1].sigmoid() * s[1] + a[0].sigmoid() * a[2].tanh()
    h = (a[3].sigmoid() * c.tanh()) @ p[0].mT
    return h, (h, c)


def _normed(a: Tensor, groups: Sequence[int]) -> Tensor:
    """Each group of features with mean 0 and variance 1."""
    return torch.cat([torch.nn.functional.layer_norm(part, part.shape[1:]) for part in a.split(list(groups), 1)], dim=1)


def _lstm_normed(u: Sequence[Tensor], s: Parts, p: Parts) -> tuple[Tensor, Parts]:
    units, sums, recurrent, by_gate = s[1].shape[1], torch.cat(list(u), dim=1), s[0] @ p[0].mT, len(p) == 5
    normed = _normed(sums + recurrent, [units] * 4) if by_gate else _normed(recurrent, [4 * units])
    i, f, g, o = (p[1] * normed + (p[2] if by_gate else sums)).chunk(4, dim=1)
    c = f.sigmoid() * s[1] + i.sigmoid() * g.tanh()
    of_c = p[-2] * _normed(c, [units]) + p[-1]
    h = o.sigmoid() * of_c.tanh()
    return h, (h, of_c if by_gate else c)


def _gru_normed(u: Sequence[Tensor], s: Parts, p: Parts) -> tuple[Tensor, Parts]:
    units = s[0].shape[1]
    r, z, n = (p[1] * _normed(s[0] @ p[0].mT, [2 * units, units])).chunk(3, dim=1)
    r, z = (u[0] + r).sigmoid(), (u[1] + z).sigmoid()
    h = z * s[0] + (1 - z) * (u[2] + r * (n + p[2])).tanh()
    return h, (h,)


STEPS: dict[str, Step] = {
    "linear": _linear,
    "linear-complex": _complex,
    "lru": _lru,
    **{f"mingru-{name}": _mingru(curve) for name, curve in CANDIDATES.items()},
    **{f"minlstm-{name}": _minlstm(curve) for name, curve in CANDIDATES.items()},
    **{f"indrnn-{name}": _indrnn(curve) for name, curve in CURVES.items()},
    "qrnn-f": _qrnn,
    "qrnn-fo": _qrnn,
    **{f"sru-{name}": _sru(curve) for name, curve in CURVES.items()},
    **{f"sru-peephole-{name}": _sru(curve) for name, curve in CURVES.items()},
    **{f"elman-{name}": _elman(curve) for name, curve in CURVES.items()},
    **{f"leaky-{name}": _leaky(curve) for name, curve in CURVES.items()},
    "lstm-sigmoid": _matrix(_lstm_sigmoid),
    "lstm-peephole": _matrix(_lstm_peephole),
    "lstm-coupled": _matrix(_lstm_coupled),
    "ligru": _matrix(_ligru),
    "gru-before": _gru_before,
    "mgu": _mgu,
    "lstm-projected": _matrix(_lstm_projected),
    "lstm-normed-sums": _lstm_normed,
    "lstm-normed-gates": _lstm_normed,
    "gru-normed": _gru_normed,
}


def follow(name: str, us: Parts, lengths: Tensor | None, state: Parts, params: Parts) -> tuple[Tensor, Parts]:
    """What `following.run` computes: the outputs and each row's own last state."""
    units, ys = state[-1].shape[1], []
    for t, slices in enumerate(zip(*(u.unbind(1) for u in us), strict=True)):  # taken apart at once, as in `Cell.loop`
        blocks = [block for u in slices for block in u.split(units, dim=1)]
        y, after = STEPS[name](blocks, state, params)
        state = after if lengths is None else choose(lengths > t, after, state)
        ys.append(y)
    return masked(torch.stack(ys, dim=1), lengths), state


def recur(name: str, xs: Tensor, lengths: Tensor | None, state: Parts, weights: Parts) -> tuple[Tensor, Parts]:
    """What `native.run` computes from its inputs on."""
    w_ih, w_hh, b_ih, b_hh, *own = weights
    us = torch.nn.functional.linear(masked(xs, lengths), w_ih, b_ih + b_hh)
    return follow(name, (us,), lengths, state, (w_hh, *own))


def gradients(outs: Sequence[Any], grads: Sequence[Any], given: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients of those of `given` that require one, as computations that have derivatives themselves."""
    pairs = [(out, grad) for out, grad in zip(outs, grads, strict=True) if grad is not None]
    wanted = [part for part in given if part.requires_grad]
    found = iter(
        torch.autograd.grad(
            [out for out, _ in pairs], wanted, [grad for _, grad in pairs], create_graph=True, allow_unused=True
        )
    )
    return [next(found) if part.requires_grad else None for part in given]
