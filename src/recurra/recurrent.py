"""Layers: `(xs, lengths) -> ys, summary`. They read whole sequences, so what comes later may count too.

A cell can step and a layer cannot; an encoder takes either. Where a sequence starts, from zeros, from a learnt state or
from a random one, is the cell's own business (`LearntStart`, `RandomStart`); who wants all hidden states takes `ys`, who
wants the last one takes `summary`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Literal, cast, final

import torch
from torch import Tensor, nn

from recurra import kernels
from recurra.cells import Cell
from recurra.cells.base import check_call
from recurra.errors import UsageError
from recurra.state import flipped, within


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
class Reversed(Layer):
    """A layer that is handed each row from its own end to its start. Its outputs stand in the order in which it read."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer, self.input_size, self.output_size = layer, layer.input_size, layer.output_size

    def forward(self, xs: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.layer(flipped(xs, lengths), lengths)


Merge = Literal["concat", "sum", "mean", "product"]
MERGES: dict[Merge, Callable[[Tensor, Tensor], Tensor]] = {
    "concat": lambda forwards, backwards: torch.cat([forwards, backwards], dim=-1),
    "sum": torch.add,
    "mean": lambda forwards, backwards: (forwards + backwards) / 2,
    "product": torch.mul,
}


@final
class Bidirectional(Layer):
    """Two cells, one reading each row from its start and one from its own end; outputs side by side, forward first, and the
    summary is what each said last (Schuster & Paliwal 1997, IEEE Transactions on Signal Processing 45). With a `merge` of
    sum, mean or product the outputs of two cells of one size become one of that size, unit by unit."""

    def __init__(self, forwards: Cell, backwards: Cell, *, merge: Merge = "concat") -> None:
        super().__init__()
        if merge not in MERGES:
            raise UsageError(f"there is no merge called {merge!r}; they are {', '.join(MERGES)}")
        if merge != "concat" and forwards.output_size != backwards.output_size:
            raise UsageError(
                f"a {merge} wants as many outputs from both directions, and these cells have {forwards.output_size} and "
                f'{backwards.output_size}; build both of one size, or take merge="concat"'
            )
        if forwards.input_size != backwards.input_size:
            raise UsageError(
                f"the two directions read the same inputs, and these cells have {forwards.input_size} and "
                f"{backwards.input_size}; build both with the same input_size"
            )
        if forwards is backwards:
            raise UsageError("the two directions were given the same cell; build one for each")
        self.forwards, self.backwards = Recurrent(forwards), Recurrent(backwards)
        self.input_size, self.merge = forwards.input_size, merge
        self.output_size = forwards.output_size + (backwards.output_size if merge == "concat" else 0)

    def forward(self, xs: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        both, merge = self._side_by_side(xs, lengths), MERGES[self.merge]
        if both is not None:
            (ys, last), (reversed_ys, first) = both
            return merge(ys, reversed_ys), merge(last[0], first[0])
        ys, end = self.forwards(xs, lengths)
        reversed_ys, begin = self.backwards(flipped(xs, lengths), lengths)
        return merge(ys, flipped(reversed_ys, lengths)), merge(end, begin)

    def _side_by_side(self, xs: Tensor, lengths: Tensor | None) -> list[kernels.Result] | None:
        """Both directions in one call of the kernel, where they have the same one. Its cells put out the first field of their
        state, zeros at the start: what a row said last is that field at its end."""
        cells = (self.forwards.cell, self.backwards.cell)
        one, other = (cell.recurrence() for cell in cells)
        if one is None or other is None or one[0] != other[0] or any(map(_is_hooked, (self.forwards, self.backwards))):
            return None
        states = [cell.initial_state(xs.shape[0]) for cell in cells]
        for cell, state in zip(cells, states, strict=True):
            check_call(cell, xs, state, lengths)
        return kernels.run_both_ways(one[0], xs, lengths, (states[0], states[1]), (one[1], other[1]))


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


def _is_hooked(module: nn.Module) -> bool:
    """Whether somebody wants to see what goes through the module itself."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def at_the_end(ys: Tensor, lengths: Tensor | None) -> Tensor:
    """The output `[batch, features]` at each row's end; zeros for a row of no length."""
    batch, steps, features = ys.shape
    if steps == 0:
        return ys.new_zeros(batch, features)
    if lengths is None:
        return ys[:, -1]
    places = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, features)
    return ys.gather(1, places)[:, 0]  # an empty row's first output is zero, as all its outputs


def mean_over(ys: Tensor, lengths: Tensor | None) -> Tensor:
    """The mean output `[batch, features]` over each row's steps; zeros for a row of no length. Wants zeros past a row's end, as
    layers put out."""
    if lengths is None:
        return ys.mean(1) if ys.shape[1] else ys.new_zeros(ys.shape[0], ys.shape[2])
    return ys.sum(1) / lengths.clamp(min=1)[:, None]


def largest_over(ys: Tensor, lengths: Tensor | None) -> Tensor:
    """The largest value `[batch, features]` of each output over each row's steps; zeros for a row of no length."""
    if ys.shape[1] == 0:
        return ys.new_zeros(ys.shape[0], ys.shape[2])
    if lengths is None:
        return ys.amax(1)
    inside = ys.masked_fill(~within(lengths, ys.shape[1])[:, :, None], -torch.inf).amax(1)
    return torch.where(lengths[:, None] > 0, inside, 0.0)
