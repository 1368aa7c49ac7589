"""Layers: `(xs, lengths) -> ys, summary`. They read whole sequences, so what comes later may count too.

A cell can step and a layer cannot; an encoder takes either. Where a sequence starts, from zeros, from a learnt state or
from a random one, is the cell's own business (`LearntStart`, `RandomStart`); who wants all hidden states takes `ys`, who
wants the last one takes `summary`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import cast, final

import torch
from torch import Tensor, nn

from recurra.cells import Cell
from recurra.errors import UsageError
from recurra.state import flipped


class Layer(nn.Module, ABC):
    """From inputs `[batch, time, input_size]`, with the `lengths` of the rows or None, to outputs
    `[batch, time, output_size]`, zero past each row's end, and a summary `[batch, output_size]`, zero for an empty row.

    Raises UsageError as `Cell.unroll` does.
    """

    input_size: int
    output_size: int

    @abstractmethod
    def forward(self, xs: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]: ...


@final
class Recurrent(Layer):
    """A cell run from its start state; the summary is the output at each row's end."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell, self.input_size, self.output_size = cell, cell.input_size, cell.output_size

    def forward(self, xs: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        ys, _ = self.cell.unroll(xs, self.cell.initial_state(xs.shape[0]), lengths)
        return ys, at_the_end(ys, lengths)


@final
class Bidirectional(Layer):
    """Two cells, one reading each row from its start and one from its own end; outputs side by side, forward first, and the
    summary is what each said last (Schuster & Paliwal 1997, IEEE Transactions on Signal Processing 45)."""

    def __init__(self, forwards: Cell, backwards: Cell) -> None:
        super().__init__()
        if forwards.input_size != backwards.input_size:
            raise UsageError(
                f"the two directions read the same inputs, and these cells have {forwards.input_size} and "
                f"{backwards.input_size}; build both with the same input_size"
            )
        if forwards is backwards:
            raise UsageError("the two directions were given the same cell; build one for each")
        self.forwards, self.backwards = Recurrent(forwards), Recurrent(backwards)
        self.input_size = forwards.input_size
        self.output_size = forwards.output_size + backwards.output_size

    def forward(self, xs: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        ys, last = self.forwards(xs, lengths)
        reversed_ys, first = self.backwards(flipped(xs, lengths), lengths)
        return torch.cat([ys, flipped(reversed_ys, lengths)], dim=2), torch.cat([last, first], dim=1)


@final
class Deep(Layer):
    """Layers on top of each other; the summary is the uppermost's."""

    def __init__(self, layers: Iterable[Layer]) -> None:
        super().__init__()
        stacked = list(layers)
        if not stacked:
            raise UsageError("a deep layer was given no layers, wanted at least one")
        for below, above in pairwise(stacked):
            if below.output_size != above.input_size:
                raise UsageError(
                    f"a layer with {below.output_size} outputs cannot stand under one with {above.input_size} inputs; "
                    f"build the upper one with input_size={below.output_size}"
                )
        self.layers = nn.ModuleList(stacked)
        self.input_size, self.output_size = stacked[0].input_size, stacked[-1].output_size

    def forward(self, xs: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        summary = xs.new_zeros(xs.shape[0], 0)
        for layer in self._each():
            xs, summary = layer(xs, lengths)
        return xs, summary

    def _each(self) -> Iterator[Layer]:
        return (cast(Layer, layer) for layer in self.layers)


def at_the_end(ys: Tensor, lengths: Tensor | None) -> Tensor:
    """The output `[batch, features]` at each row's end; zeros for a row of no length."""
    batch, steps, features = ys.shape
    if steps == 0:
        return ys.new_zeros(batch, features)
    if lengths is None:
        return ys[:, -1]
    places = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, features)
    return ys.gather(1, places)[:, 0]  # an empty row's first output is zero, as all its outputs
