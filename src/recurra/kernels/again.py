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
}


def follow(name: str, us: Parts, lengths: Tensor | None, state: Parts, params: Parts) -> tuple[Tensor, Parts]:
    """What `following.run` computes: the outputs and each row's own last state."""
    units, ys = state[-1].shape[1], []
    for t in range(us[0].shape[1]):
        blocks = [block for u in us for block in u[:, t].split(units, dim=1)]
        y, after = STEPS[name](blocks, state, params)
        state = after if lengths is None else choose(lengths > t, after, state)
        ys.append(y)
    return masked(torch.stack(ys, dim=1), lengths), state


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
