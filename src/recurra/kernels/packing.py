"""One native step with weights that are packed once."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from recurra.kernels import native

try:
    from recurra.kernels import _native
except ImportError:  # installed without a compiler
    pass

MANY_UNITS = 256  # from here on reading the weights takes longer than waking the threads


def packs(weight: Tensor) -> bool:
    """Whether weights such as this one can be packed."""
    return native.available() and weight.dtype == torch.float32 and weight.device.type == "cpu"


def pack(name: str, weights: Sequence[Tensor]) -> Callable[[int, int, int, int, int, int], None]:
    """The step of the recurrence `name` with weight_ih, weight_hh, bias_ih, bias_hh as they are now. It is called with the
    number of rows and the addresses of x, h, c, the next h and the next c (0 where there is no c)."""
    held = [weight.detach().contiguous() for weight in weights]
    inputs, units = held[0].shape[1], held[1].shape[1]
    threads = torch.get_num_threads() if units >= MANY_UNITS else 1
    first, second, third, fourth = (weight.data_ptr() for weight in held)
    return _native.pack(native.KINDS[name], (inputs, units, threads), (first, second, third, fourth)).step
