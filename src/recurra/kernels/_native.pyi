from collections.abc import Sequence
from typing import Any

from torch import Tensor

Parts = tuple[Tensor, ...]

def open(tensor: type, parameter: type) -> bool: ...
def instruction_set() -> str: ...
def saved_floats(kind: int, units: int) -> int: ...
def forward(
    kind: int,
    xs: Tensor,
    lengths: Tensor | None,
    state: Parts,
    weights: Parts,
    reverse: bool,
    threads: int,
    saved: Tensor | None,
) -> tuple[Tensor, Parts] | None: ...
def backward(
    kind: int,
    xs: Tensor,
    lengths: Tensor | None,
    state: Parts,
    weights: Parts,
    reverse: bool,
    threads: int,
    ys: Tensor,
    saved: Tensor,
    dys: Tensor | None,
    dlast: Sequence[Tensor | None],
    wants_dx: bool,
) -> tuple[Tensor | None, Parts, Parts] | None: ...

class Packed:
    def step(self, x: Tensor, state: Any) -> tuple[Tensor, Any] | None: ...

def pack(kind: int, weights: Parts, threads: int) -> Packed: ...
