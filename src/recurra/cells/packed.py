"""Cells for a stream: frozen, their weights packed once for the native step."""

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from recurra import kernels
from recurra.cells.base import Cell, check_state, check_step
from recurra.cells.wrap import Wrapper
from recurra.errors import UsageError
from recurra.kernels import native
from recurra.state import tmap


@final
class Packed(Wrapper):
    """A cell with a native recurrence that steps natively too, with its weights as they are now: later changes do not reach
    its step.

    State and numbers are those of the cell. Where a gradient is asked for, the cell itself steps. Products are of bfloat16 in one
    that is built within torch.autocast, as those of its sequences there.
    """

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)  # its parameters are those that were packed; sequences run through it
        known = cell.recurrence()
        if known is None or not native.packs(*known):
            raise UsageError(f"{type(cell).__name__} has no native recurrence as it is set now; it steps in torch")
        self._half = native.halves()
        self._step = native.pack(*known, self._half)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        name, weights = self.cell.recurrence()  # type: ignore[misc]
        self._step = native.pack(name, weights, self._half)

    def project(self, xs: Tensor) -> Tensor:
        return xs  # the native step multiplies by both weights

    def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.step(x, state)

    def step(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        if _is_watched(u, state):
            return self.cell(u, state)
        done = self._step(u, state)
        return self._otherwise(u, state) if done is None else done

    def _otherwise(self, u: Tensor, state: Any) -> tuple[Tensor, Any]:
        """A step from what the native one does not take as it is: it may lie otherwise in memory, be of a shorter type within
        autocast, or not fit at all."""
        if torch.is_autocast_enabled("cpu") and u.dtype in kernels.SHORT:
            u = u.float()
        if u.dtype is not torch.float32 or not u.is_cpu:
            return self.cell(u, state)
        check_step(self, u, state)
        check_state(self, u, state)
        done = self._step(u.contiguous(), tmap(torch.Tensor.contiguous, state))
        return self.cell(u, state) if done is None else done


def _is_watched(u: Tensor, state: tuple[Tensor, ...]) -> bool:
    """Whether a derivative or a transformation may be asked of this step."""
    if torch.is_grad_enabled():
        if u.requires_grad:
            return True
        for part in state:
            if part.requires_grad:
                return True
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0 or u.is_neg():
        return True
    return kernels.reference_is_asked_for() or torch.compiler.is_compiling()


def with_packed_weights(cell: Cell) -> Cell:
    """The cell with every cell inside that has a native step replaced by its `Packed`, in place where it is inside."""
    known = cell.recurrence()
    if known is not None and native.packs(*known):
        return Packed(cell)
    for name, child in cell.named_children():
        if isinstance(child, Cell):
            setattr(cell, name, with_packed_weights(child))
        elif isinstance(child, nn.ModuleList):
            for place, one in enumerate(child):
                if isinstance(one, Cell):
                    child[place] = with_packed_weights(one)
    return cell
