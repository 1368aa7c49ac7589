"""Cells made of cells."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import cast, final

from torch import Tensor, nn

from recurra.cells.base import Cell
from recurra.errors import UsageError
from recurra.regularize import locked_mask
from recurra.state import State


@final
class Stacked(Cell):
    """One cell on top of another: the output of each is the input of the next. Its state is the tuple of their states."""

    def __init__(self, cells: Iterable[Cell]) -> None:
        super().__init__()
        layers = list(cells)
        self.cells = nn.ModuleList(layers)
        for below, above in pairwise(layers):
            if below.output_size != above.input_size:
                raise UsageError(
                    f"a cell with {below.output_size} outputs cannot stand under one with {above.input_size} inputs; "
                    f"build the upper one with input_size={below.output_size}"
                )
        self.input_size, self.output_size = layers[0].input_size, layers[-1].output_size

    def initial_state(self, batch: int) -> State:
        return tuple(cell.initial_state(batch) for cell in self.layers())

    def layers(self) -> Iterator[Cell]:
        """The cells, lowest first."""
        return (cast(Cell, cell) for cell in self.cells)

    def project(self, xs: Tensor) -> State:
        return next(self.layers()).project(xs)

    def step(self, u: State, state: State) -> tuple[Tensor, State]:
        lowest, *above = self.layers()
        y, first = lowest.step(u, state[0])
        after = [first]
        for cell, before in zip(above, state[1:], strict=True):
            y, now = cell(y, before)
            after.append(now)
        return y, tuple(after)

    def scan(self, xs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        after = []
        for cell, before in zip(self.layers(), state, strict=True):
            xs, now = cell.unroll(xs, before, lengths)
            after.append(now)
        return xs, tuple(after)


@final
class LockedDropout(Cell):
    """The cell, with a share of its outputs dropped in training: the same units at every step of one `unroll`."""

    def __init__(self, cell: Cell, share: float) -> None:
        super().__init__()
        self.cell, self.share = cell, share
        self.input_size, self.output_size = cell.input_size, cell.output_size

    def initial_state(self, batch: int) -> State:
        return self.cell.initial_state(batch)

    def project(self, xs: Tensor) -> State:
        return self.cell.project(xs), self._mask(xs)

    def step(self, u: State, state: State) -> tuple[Tensor, State]:
        inner, mask = u
        y, state = self.cell.step(inner, state)
        return y if isinstance(mask, tuple) else y * mask, state

    def scan(self, xs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        ys, state = self.cell.unroll(xs, state, lengths)
        mask = self._mask(xs)
        return ys if isinstance(mask, tuple) else ys * mask, state

    def _mask(self, xs: Tensor) -> State:
        if not self.training or self.share == 0:
            return ()
        like = xs.new_empty((), dtype=xs.dtype).expand(xs.shape[0], 1, self.output_size)
        return locked_mask(like, self.share).expand(-1, xs.shape[1], -1)
