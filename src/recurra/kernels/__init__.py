"""The faster paths: overrides of a cell's plain loop with the same name and the same numbers.

`KERNELS` maps the name of a recurrence to a function

    kernel(xs, state, weights) -> (ys, last state)

    xs       [batch, time, features], every row full length
    state    tuple of [batch, units], the fields of the cell's state in order
    weights  the cell's parameters in torch's order: weight_ih, weight_hh, bias_ih, bias_hh

A cell asks `run` and gets None where no kernel takes the call; then it runs its plain loop, which is the definition.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from recurra.kernels import fused

Kernel = Callable[[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]], tuple[Tensor, tuple[Tensor, ...]]]

KERNELS: dict[str, Kernel] = {
    "elman-tanh": fused.elman_tanh,
    "elman-relu": fused.elman_relu,
    "lstm": fused.lstm,
    "gru": fused.gru,
}

_plain_only: ContextVar[bool] = ContextVar("plain_only", default=False)


@contextmanager
def reference() -> Iterator[None]:
    """Within this context every cell runs its plain loop."""
    token = _plain_only.set(True)
    try:
        yield
    finally:
        _plain_only.reset(token)


def run(
    name: str, xs: Tensor, lengths: Tensor | None, state: tuple[Tensor, ...], weights: tuple[Tensor, ...]
) -> tuple[Tensor, tuple[Tensor, ...]] | None:
    """The recurrence `name` on its faster path, or None where the plain loop has to do it."""
    if _plain_only.get() or lengths is not None or xs.shape[1] == 0 or xs.shape[0] == 0:
        return None
    if _is_transformed(xs, *state, *weights) or torch.compiler.is_compiling():
        return None
    return KERNELS[name](xs, state, weights)


def _is_transformed(*tensors: Tensor) -> bool:
    """Whether forward-mode AD or a function transform (vmap, jvp, grad) is looking: the fused paths lack rules for some."""
    if torch._C._are_functorch_transforms_active():
        return True
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)
