"""The faster paths: overrides of a cell's plain loop with the same name and the same numbers.

`KERNELS` maps the name of a recurrence to a function

    kernel(xs, lengths, state, weights) -> (ys, last state)

    xs       [batch, time, features], batch and time at least 1
    lengths  None where every row is full length, else int64 [batch]; what is put out past a row's end does not matter
    state    tuple of [batch, units], the fields of the cell's state in order
    weights  the cell's parameters in torch's order: weight_ih, weight_hh, bias_ih, bias_hh, and weight_hr of a projection

A cell asks `run` and gets None where no kernel takes the call; then it runs its plain loop, which is the definition.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from recurra.kernels import fused, native

Result = tuple[Tensor, tuple[Tensor, ...]]
Kernel = Callable[[Tensor, Tensor | None, tuple[Tensor, ...], tuple[Tensor, ...]], Result]


def _native_first(name: str, otherwise: Kernel) -> Kernel:
    """The native recurrence where it takes the call (float32 on a CPU), torch's own otherwise."""

    def kernel(xs: Tensor, lengths: Tensor | None, state: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> Result:
        if native.takes(xs, state, weights):
            return native.run(name, xs, lengths, state, weights)
        return otherwise(xs, lengths, state, weights)

    return kernel


KERNELS: dict[str, Kernel] = {
    "elman-tanh": _native_first("elman-tanh", fused.elman_tanh),
    "elman-relu": _native_first("elman-relu", fused.elman_relu),
    "lstm": _native_first("lstm", fused.lstm),
    "lstm-projected": fused.lstm_projected,
    "gru": _native_first("gru", fused.gru),
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
    if not wanted() or xs.shape[1] == 0 or xs.shape[0] == 0:
        return None
    if _is_transformed(xs, *state, *weights) or torch.compiler.is_compiling():
        return None
    return KERNELS[name](xs, lengths, state, weights)


def wanted() -> bool:
    """Whether faster paths may be taken: false within `reference()`."""
    return not _plain_only.get()


def _is_transformed(*tensors: Tensor) -> bool:
    """Whether forward-mode AD or a function transform (vmap, jvp, grad) is looking: the fused paths lack rules for some."""
    if torch._C._are_functorch_transforms_active():
        return True
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)
