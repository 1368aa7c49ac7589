"""Cell: the one abstract class of the library. `output, state = step(input, state)`; everything follows from it."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from recurra.errors import UsageError
from recurra.state import State, choose, leaves, masked, tmap


class Cell(nn.Module, ABC):
    """One step of a recurrent network, and many.

    A cell is built as `Cell(input_size, hidden_size, **options)` and says two things: the state it starts from, and how
    one step turns an input and a state into an output and the next state. What has no time in it (the product with the
    input weights, masks of noise) may be moved to `project`, which is computed for all steps at once.

    Axes are batch first: inputs `[batch, time, features]`, outputs `[batch, time, output_size]`, `lengths` int64
    `[batch]` (rows need no sorting; a zero length is legal).
    """

    input_size: int
    output_size: int

    @abstractmethod
    def initial_state(self, batch: int) -> State:
        """The state before the first step, for `batch` rows."""

    @abstractmethod
    def step(self, u: State, state: State) -> tuple[Tensor, State]:
        """One step: `u` is one time slice of what `project` gave. Returns the output `[batch, output_size]` and the
        next state, of the structure, shapes and dtypes of `state`."""

    def project(self, xs: Tensor) -> State:
        """What has no time in it, for inputs `[batch, time, features]`: a tensor or tree of tensors `[batch, time, ...]`.
        Noise of training is drawn here, once a call, never in `step`."""
        return xs

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step from an input `[batch, features]`."""
        us = self.project(x[:, None])
        return self.step(tmap(lambda u: u[:, 0], us), state)

    def unroll(self, xs: Tensor, state: State, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """Many steps: outputs `[batch, time, output_size]`, zero past a row's length, and each row's own last state.

        A sequence may be cut anywhere and goes on from the state returned. Padding of any finite content changes
        neither outputs nor gradients. Raises UsageError for shapes, dtypes or lengths that do not fit.
        """
        check_call(self, xs, state, lengths)
        with parametrize.cached():  # a weight that is drawn anew (weight drop) is drawn once a call
            ys, last = self.scan(masked(xs, lengths), state, lengths)
        return masked(ys, lengths), last

    def scan(self, xs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        """How `unroll` runs through time. A cell with a faster path overrides this one, and falls back to `loop`."""
        return self.loop(xs, state, lengths)

    def loop(self, xs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        """The readable loop: the definition of the cell and the oracle of every faster path."""
        us, ys = self.project(xs), []
        for t in range(xs.shape[1]):
            y, after = self.step(tmap(lambda u, t=t: u[:, t], us), state)
            state = after if lengths is None else choose(lengths > t, after, state)
            ys.append(y)
        return (torch.stack(ys, dim=1), state) if ys else (self._nothing(xs, state), state)

    def _nothing(self, xs: Tensor, state: State) -> Tensor:
        like = next((leaf for leaf in leaves(state) if leaf.is_floating_point()), xs)
        return like.new_zeros(xs.shape[0], 0, self.output_size)


def check_call(cell: Cell, xs: Tensor, state: State, lengths: Tensor | None) -> None:
    """Raise UsageError, in words, where the arguments of `unroll` do not fit the cell or each other."""
    name, batch = type(cell).__name__, xs.shape[0]
    if xs.is_floating_point() and (xs.dim() != 3 or xs.shape[2] != cell.input_size):
        raise UsageError(
            f"{name} was given inputs of shape {tuple(xs.shape)}, wanted [batch, time, {cell.input_size}]; "
            f"the last axis is the features, build the cell with input_size={xs.shape[-1]} if that is what you have"
        )
    if not xs.is_floating_point() and xs.dim() != 2:
        raise UsageError(f"{name} was given token inputs of shape {tuple(xs.shape)}, wanted [batch, time]")
    for leaf in leaves(state):
        if leaf.dim() == 0 or leaf.shape[0] != batch or leaf.device != xs.device:
            raise UsageError(
                f"{name} was given {batch} rows on {xs.device} and a state of shape {tuple(leaf.shape)} on {leaf.device}; "
                f"wanted [{batch}, ...] on {xs.device}: start from initial_state({batch})"
            )
    if lengths is not None:
        check_lengths(name, xs, lengths)


def check_lengths(name: str, xs: Tensor, lengths: Tensor) -> None:
    batch, steps = xs.shape[:2]
    if lengths.dtype != torch.int64 or lengths.shape != (batch,) or lengths.device != xs.device:
        raise UsageError(
            f"{name} was given lengths of dtype {lengths.dtype}, shape {tuple(lengths.shape)} on {lengths.device}; "
            f"wanted int64 of shape [{batch}] on {xs.device}: torch.as_tensor(lengths, dtype=torch.int64)"
        )
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or batch == 0:
        return  # values are looked at only where they can be
    if int(lengths.min()) < 0 or int(lengths.max()) > steps:
        raise UsageError(
            f"{name} was given lengths from {int(lengths.min())} to {int(lengths.max())} for inputs of {steps} steps; "
            f"wanted each between 0 and {steps}"
        )
