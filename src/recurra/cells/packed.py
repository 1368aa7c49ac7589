"""Cells for a stream: frozen, their weights packed once for the native step."""

from typing import Any, final

import torch
from torch import Tensor, nn

from recurra.cells.base import Cell, check_state, check_step
from recurra.cells.elman import FUSED, Elman
from recurra.cells.gru import GRU
from recurra.cells.lstm import LSTM
from recurra.cells.wrap import Wrapper
from recurra.kernels import native
from recurra.state import tmap


@final
class Packed(Wrapper):
    """An `Elman`, `LSTM` or `GRU` that steps natively, with its weights as they are now: later changes do not reach its step.

    State and numbers are those of the cell. Where a gradient is asked for, the cell itself steps.
    """

    def __init__(self, cell: "Elman | LSTM | GRU") -> None:
        super().__init__(cell)  # its parameters are those that were packed; sequences run through it
        weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
        self._step = native.pack(_kind(cell) or "", weights)

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
        """A step from what the native one does not take as it is: it may lie otherwise in memory, or not fit at all."""
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
    return torch._C._are_functorch_transforms_active() or torch.compiler.is_compiling()


def with_packed_weights(cell: Cell) -> Cell:
    """The cell with every cell inside that has a native step replaced by its `Packed`, in place where it is inside."""
    if _kind(cell) is not None and native.packs(cell.weight_ih):
        return Packed(cell)  # type: ignore[arg-type]
    for name, child in cell.named_children():
        if isinstance(child, Cell):
            setattr(cell, name, with_packed_weights(child))
        elif isinstance(child, nn.ModuleList):
            for place, one in enumerate(child):
                if isinstance(one, Cell):
                    child[place] = with_packed_weights(one)
    return cell


def _kind(cell: Cell) -> str | None:
    """The name of the native recurrence that is this very cell in evaluation."""
    if isinstance(cell, Elman) and cell.activation in FUSED:
        return f"elman-{cell.activation}"
    if isinstance(cell, LSTM) and cell.candidate == "tanh":
        return "lstm"
    return "gru" if isinstance(cell, GRU) and cell.reset == "after" else None
