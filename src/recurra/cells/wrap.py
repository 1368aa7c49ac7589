"""Cells made of cells."""

from abc import ABC
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import NamedTuple, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra import kernels
from recurra.cells.base import Cell
from recurra.cells.window import latest
from recurra.errors import UsageError
from recurra.init import uniform_
from recurra.regularize import check_share, locked_mask
from recurra.state import State, leaves, masked, named, refill, tmap


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
        self.tokens = layers[0].tokens

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
        done = self._side_by_side(xs, state, lengths)
        if done is not None:
            return done
        after = []
        for cell, before in zip(self.layers(), state, strict=True):
            xs, now = cell.unroll(xs, before, lengths)
            after.append(now)
        return xs, tuple(after)

    def _side_by_side(self, xs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State] | None:
        """All layers in one call of the kernel, where they have the same one, and without gradients."""
        if torch.is_grad_enabled() or len(self.cells) < 2:
            return None
        known = [_undropped(cell).recurrence() for cell in self.layers()]
        names = {one[0] for one in known if one is not None}
        if None in known or len(names) != 1:
            return None
        done = kernels.run_stack(names.pop(), xs, lengths, state, [one[1] for one in known if one is not None])
        return None if done is None else (done[0], tuple(map(refill, state, done[1])))


class Wrapper(Cell, ABC):
    """A cell around a cell, which does as the inner one wherever it says nothing else."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell, self.tokens = cell, cell.tokens
        self.input_size, self.output_size = cell.input_size, cell.output_size

    def initial_state(self, batch: int) -> State:
        return self.cell.initial_state(batch)

    def project(self, xs: Tensor) -> State:
        return self.cell.project(xs)

    def step(self, u: State, state: State) -> tuple[Tensor, State]:
        return self.cell.step(u, state)

    def scan(self, xs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        return self.cell.unroll(xs, state, lengths)


@final
class LockedDropout(Wrapper):
    """The cell, with a share of its outputs dropped in training: the same units at every step of one `unroll`."""

    def __init__(self, cell: Cell, share: float) -> None:
        super().__init__(cell)
        self.share = check_share(share, "the share of outputs to drop")

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


def _undropped(cell: Cell) -> Cell:
    """The cell without a wrapper that drops nothing as it is set now."""
    while isinstance(cell, LockedDropout) and (cell.share == 0 or not cell.training):
        cell = cell.cell
    return cell


@final
class Residual(Wrapper):
    """The cell with its input added to its output: y = x + cell(x). The cell has as many outputs as inputs."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        if cell.input_size != cell.output_size:
            raise UsageError(
                f"a residual cell adds its input to its output, and this {type(cell).__name__} has {cell.input_size} inputs "
                f"and {cell.output_size} outputs; make them equal, or wrap it in Projected(cell, {cell.input_size}) first"
            )

    def project(self, xs: Tensor) -> State:
        return self.cell.project(xs), xs

    def step(self, u: State, state: State) -> tuple[Tensor, State]:
        y, state = self.cell.step(u[0], state)
        return y + u[1], state

    def scan(self, xs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        ys, state = self.cell.unroll(xs, state, lengths)
        return ys + masked(xs, lengths), state


@final
class Block(Wrapper):
    """The cell with a way past it and a layer behind it that mixes the units, as recurrences that are linear in their state are
    published; N(a) is a, shifted and scaled to mean 0 and variance 1 over its features, with a learnt gain and shift:

        x' = W_in x                                     x itself where there are as many inputs as outputs
        a = x' + cell(N(x'))
        y = a + W_2 gelu(W_1 N(a) + b_1) + b_2

    Parameters besides the cell's own, for n outputs: n * (2 * width * n + width + 5), and n * inputs for W_in.
    Reference: Orvieto et al. 2023, arXiv:2303.06349; Feng et al. 2024, arXiv:2410.01201, whose norms and ways differ a little.

    The cell has as many outputs as inputs, n; the layer is `width` times as wide. `inputs` is n unless it is given.
    """

    def __init__(self, cell: Cell, inputs: int | None = None, width: int = 4) -> None:
        super().__init__(cell)
        size = cell.output_size
        if cell.input_size != size:
            raise UsageError(
                f"the cell in a block adds to its input, and this {type(cell).__name__} has {cell.input_size} inputs and {size} "
                f"outputs; make them equal, and give the block inputs={cell.input_size}"
            )
        self.input_size = size if inputs is None else inputs
        self.weight_in = (
            None if self.input_size == size else nn.Parameter(uniform_(self.input_size, size, self.input_size))
        )
        self.norm_below, self.norm_above = nn.LayerNorm(size), nn.LayerNorm(size)
        self.widen, self.narrow = nn.Linear(size, width * size), nn.Linear(width * size, size)

    def project(self, xs: Tensor) -> State:
        past = self._past(xs)
        return self.cell.project(self.norm_below(past)), past

    def step(self, u: State, state: State) -> tuple[Tensor, State]:
        y, state = self.cell.step(u[0], state)
        return self._mixed(u[1] + y), state

    def scan(self, xs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        past = self._past(masked(xs, lengths))
        ys, state = self.cell.unroll(self.norm_below(past), state, lengths)
        return masked(self._mixed(past + ys), lengths), state

    def _past(self, xs: Tensor) -> Tensor:
        return xs if self.weight_in is None else F.linear(xs, self.weight_in)

    def _mixed(self, a: Tensor) -> Tensor:
        return a + self.narrow(F.gelu(self.widen(self.norm_above(a))))


class ConvolvedState(NamedTuple):
    """What a convolved cell knows: the state of the cell, and `inputs` [batch, width - 1, features], the last inputs, oldest first,
    zeros before the first."""

    cell: State
    inputs: Tensor


@final
class Convolved(Wrapper):
    """The cell behind a convolution in time of its last `width` inputs, each feature by itself:

        x'_t = v_0 * x_(t-width+1) + ... + v_(width-1) * x_t + b
        y = cell(x')

    State: the cell's, inputs [batch, width - 1, features]
    Parameters besides the cell's own: inputs * (width + 1).
    Reference: Gu & Dao 2023, arXiv:2312.00752; before a minGRU: Feng et al. 2024, arXiv:2410.01201, which have a width of 4

    A cell whose gates see the present input and not the state, as those of a scan do, sees in this way what has just been. It is
    what `scan` and `step` do before the cell, so `project` leaves the inputs as they are.
    """

    def __init__(self, cell: Cell, width: int = 4) -> None:
        super().__init__(cell)
        if cell.tokens:
            raise UsageError(f"a convolution reads features, and {type(cell).__name__} wants token ids")
        if width < 1:
            raise UsageError(
                f"a convolution was given a width of {width} inputs, wanted 1 or more: the present one is among them"
            )
        self.width = width
        self.weight_window = nn.Parameter(uniform_(width, width, self.input_size))
        self.bias_window = nn.Parameter(uniform_(width, self.input_size))

    def initial_state(self, batch: int) -> ConvolvedState:
        inputs = self.bias_window.new_zeros(batch, self.width - 1, self.input_size)
        return ConvolvedState(self.cell.initial_state(batch), inputs)

    def project(self, xs: Tensor) -> State:
        return xs

    def step(self, u: Tensor, state: ConvolvedState) -> tuple[Tensor, ConvolvedState]:
        seen = torch.cat([state.inputs, u[:, None]], dim=1)
        y, inner = self.cell(self._convolved(seen)[:, 0], state.cell)
        return y, ConvolvedState(inner, seen[:, 1:])

    def scan(self, xs: Tensor, state: ConvolvedState, lengths: Tensor | None) -> tuple[Tensor, ConvolvedState]:
        seen = torch.cat([state.inputs, masked(xs, lengths)], dim=1)
        ys, inner = self.cell.unroll(self._convolved(seen), state.cell, lengths)
        return ys, ConvolvedState(inner, latest(seen, self.width - 1, lengths))

    def _convolved(self, seen: Tensor) -> Tensor:
        """Of `[batch, width - 1 + time, features]` the sums `[batch, time, features]`."""
        steps = seen.shape[1] - self.width + 1
        sums = self.bias_window.expand(seen.shape[0], steps, -1)
        for place, weight in enumerate(self.weight_window):
            sums = torch.addcmul(sums, seen[:, place : place + steps], weight)
        return sums


@final
class Projected(Wrapper):
    """The cell with a linear layer on its output: y = W_yh h + b_y. What recurs stays as it is.

    Parameters besides the cell's own: size * (outputs of the cell + 1).
    """

    def __init__(self, cell: Cell, size: int) -> None:
        super().__init__(cell)
        self.output_size = size
        self.weight_yh = nn.Parameter(uniform_(cell.output_size, size, cell.output_size))
        self.bias_y = nn.Parameter(uniform_(cell.output_size, size))

    def step(self, u: State, state: State) -> tuple[Tensor, State]:
        y, state = self.cell.step(u, state)
        return F.linear(y, self.weight_yh, self.bias_y), state

    def scan(self, xs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        ys, state = self.cell.unroll(xs, state, lengths)
        return masked(F.linear(ys, self.weight_yh, self.bias_y), lengths), state


@final
class Zoneout(Wrapper):
    """The cell with a share of its state held back: each unit of each field keeps its old value with probability `share`,
    drawn anew at every step in training; otherwise with that weight, the mean (Krueger et al. 2017, arXiv:1606.01305).

        s' = m * s + (1 - m) * cell(x, s),    m ~ Bernoulli(share), or m = share outside training

    It is for cells whose output is the first field of their state, and refuses others in words; the output is that field.
    """

    def __init__(self, cell: Cell, share: float) -> None:
        super().__init__(cell)
        self.share = check_share(share, "the share of the state that zoneout keeps")
        with torch.no_grad():
            start = cell.initial_state(1)
            y, after = cell(torch.zeros(1, cell.input_size, dtype=next(leaves(start)).dtype), start)
        if next(leaves(after)) is not y:
            raise UsageError(
                f"the output of {type(cell).__name__} is not the first field of its state, so zoneout would not reach it; "
                "wrap the cell inside, as in Projected(Zoneout(cell, share), size)"
            )
        if any(name.split(".")[-1] == "inputs" for name in named(after)):
            raise UsageError(
                f"the state of {type(cell).__name__} holds inputs of before, which zoneout must not mix; "
                "wrap the cell inside, as in Convolved(Zoneout(cell, share))"
            )

    def project(self, xs: Tensor) -> State:
        return self.cell.project(xs), self._masks(xs)

    def step(self, u: State, state: State) -> tuple[Tensor, State]:
        inner, kept = u
        _, after = self.cell.step(inner, state)
        mixed = tmap(
            lambda m, old, new: m * old + (1 - m) * new if new.is_floating_point() else new, kept, state, after
        )
        return next(leaves(mixed)), mixed

    def scan(self, xs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        return self.loop(xs, state, lengths)  # what is held back goes into the next step: no faster path knows of it

    def _masks(self, xs: Tensor) -> State:
        """For each floating field of the state, what is kept of it at each step; for the others, nothing."""

        def mask(leaf: Tensor) -> Tensor:
            shape = (*xs.shape[:2], *leaf.shape[1:])
            if not leaf.is_floating_point():
                return leaf.new_zeros(xs.shape[:2])
            share = leaf.new_full((), self.share).expand(shape)
            return share.bernoulli() if self.training else share

        return tmap(mask, self.cell.initial_state(0))


@final
class LearntStart(Wrapper):
    """The cell with a start state that is learnt: the floating fields of its state are parameters, one row for all."""

    def __init__(self, cell: Cell) -> None:
        super().__init__(cell)
        floating = {name: leaf for name, leaf in named(cell.initial_state(1)).items() if leaf.is_floating_point()}
        self.start = nn.ParameterDict(
            {_key(name): nn.Parameter(leaf.flatten().clone()) for name, leaf in floating.items()}
        )

    def initial_state(self, batch: int) -> State:
        plain = self.cell.initial_state(batch)
        learnt = [
            self.start[_key(name)].view(1, *leaf.shape[1:]).expand_as(leaf) if leaf.is_floating_point() else leaf
            for name, leaf in named(plain).items()
        ]
        return refill(plain, learnt)


@final
class RandomStart(Wrapper):
    """The cell with a start state that is drawn in training, normal around the cell's own with deviation `std`: the network
    learns to find its way from anywhere (Zimmermann, Tietz & Grothmann 2012). Outside training it is the cell's own."""

    def __init__(self, cell: Cell, std: float = 0.1) -> None:
        super().__init__(cell)
        self.std = std

    def initial_state(self, batch: int) -> State:
        plain = self.cell.initial_state(batch)
        if not self.training:
            return plain
        return tmap(lambda leaf: leaf + self.std * torch.randn_like(leaf) if leaf.is_floating_point() else leaf, plain)


def _key(name: str) -> str:
    return name.replace(".", "_")  # a parameter's name has no dot
