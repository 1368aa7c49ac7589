"""Cell: the one abstract class of the library. `output, state = step(input, state)`; everything follows from it."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from recurra import kernels
from recurra.errors import UsageError
from recurra.init import uniform_
from recurra.state import State, choose, leaves, masked, named, refill, tmap

ENOUGH_TO_NORM = 16
"""Units from which on a cell that normalises its sums runs natively. The norm of a few numbers that lie close together makes their
rounding grow a hundredfold, so that two orders of adding, each as near to the truth as the other, are further apart than the laws
allow."""


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
    blocks: tuple[str, ...] = ()  # the blocks of rows of weight_ih and weight_hh, in order, by the names of the gates

    tokens: bool = False  # whether inputs are ids [batch, time] and not features [batch, time, input_size]

    weight_ih: nn.Parameter  # what `add_weights` gives a cell, under torch's names
    weight_hh: nn.Parameter
    bias_ih: nn.Parameter
    bias_hh: nn.Parameter

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
        """One step from an input `[batch, features]`. Raises UsageError for sizes that do not fit."""
        check_step(self, x, state)
        us = self.project(x[:, None])
        return self._typed(*self.step(tmap(lambda u: u[:, 0], us), state), state)

    def unroll(self, xs: Tensor, state: State, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        """Many steps: outputs `[batch, time, output_size]`, zero past a row's length, and each row's own last state.

        A sequence may be cut anywhere and goes on from the state returned. Padding changes neither outputs nor gradients,
        whatever it holds. Raises UsageError for shapes, dtypes or lengths that do not fit.
        """
        check_call(self, xs, state, lengths)
        with parametrize.cached():  # a weight that is drawn anew (weight drop) is drawn once a call
            return self._typed(*self.scan(xs, state, lengths), state)

    def _typed(self, ys: Tensor, after: State, state: State) -> tuple[Tensor, State]:
        """Outputs and a state in the types of the state before: autocast gives what comes of a product a type of its own."""
        if not torch.is_autocast_enabled("cpu") and not torch.is_autocast_enabled("cuda"):
            return ys, after
        like = next((leaf.dtype for leaf in leaves(state) if leaf.is_floating_point()), ys.dtype)
        return ys.to(like), tmap(lambda new, old: new.to(old.dtype), after, state)

    def scan(self, xs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        """How `unroll` runs through time: by the kernel that the cell names, or else by `loop`. It does not look past a row's
        end, where there may be anything, and puts out zeros there."""
        follows = self.follow(xs, state, lengths)
        if follows is not None:
            return follows
        known = self.recurrence()
        fast = None if known is None else kernels.run(known[0], xs, lengths, state, known[1])
        return self.loop(xs, state, lengths) if fast is None else (fast[0], refill(state, fast[1]))

    def recurrence(self) -> tuple[str, tuple[Tensor, ...]] | None:
        """The name in `kernels.KERNELS` of what the cell computes as it is set now, and the weights that the kernel wants; None
        where the cell has only its loop."""
        return None

    def what_recurs(self) -> tuple[str, tuple[Tensor, ...]] | None:
        """Of a cell that no kernel computes from its inputs on: the name of the kernel in csrc/ that goes on from what `project`
        gave, and the parameters that it wants; None where there is no such kernel."""
        return None

    def follow(self, xs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State] | None:
        """`scan` by the kernel of `what_recurs`, or None where there is none for this call."""
        known = self.what_recurs()
        fast = None if known is None else kernels.follow(known[0], self.project, xs, lengths, state, known[1])
        return None if fast is None else (fast[0], refill(state, fast[1]))

    def loop(self, xs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        """The readable loop: the definition of the cell and the oracle of every faster path."""
        xs = masked(xs, lengths)
        if torch.compiler.is_exporting():
            return self._traced(xs, state, lengths)
        us, ys = self.project(xs), []
        # Taken apart at once: the gradient of each u[:, t] would be as large as the whole, and their sum quadratic in time.
        slices = zip(*(u.unbind(1) for u in leaves(us)), strict=True)
        for t, u in enumerate(slices):
            y, after = self._typed(*self.step(refill(us, u), state), state)
            state = after if lengths is None else choose(lengths > t, after, state)
            ys.append(y)
        return (masked(torch.stack(ys, dim=1), lengths), state) if ys else (self._nothing(xs, state), state)

    def _traced(self, xs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        """The loop as torch's scan operator: a Python loop would write the length of the example into the exported graph."""
        from torch._higher_order_ops.scan import scan

        us = self.project(xs)
        steps = torch.arange(xs.shape[1], device=xs.device)

        def one(carry: tuple[Tensor, ...], at: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
            before = refill(state, carry)
            y, after = self._typed(*self.step(refill(us, at[1:]), before), before)
            after = after if lengths is None else choose(lengths > at[0], after, before)
            return tuple(
                leaf.clone() for leaf in leaves(after)
            ), y.clone()  # the operator forbids results that share memory

        slices = (steps, *(u.transpose(0, 1) for u in leaves(us)))
        last, ys = scan(one, tuple(leaf.clone() for leaf in leaves(state)), slices, dim=0)
        return masked(ys.transpose(0, 1), lengths), refill(state, last)

    def _nothing(self, xs: Tensor, state: State) -> Tensor:
        like = next((leaf for leaf in leaves(state) if leaf.is_floating_point()), xs)
        return like.new_zeros(xs.shape[0], 0, self.output_size)


def add_weights(cell: Cell, units: int, inputs: int, recurrent: int, *biases: str) -> None:
    """Give a cell `weight_ih` [blocks * units, inputs], `weight_hh` [blocks * units, recurrent] and `biases` [blocks * units],
    one block of rows for each name in `cell.blocks`, started as torch.nn starts its own, in torch's order."""
    rows = len(cell.blocks) * units
    cell.weight_ih = nn.Parameter(uniform_(units, rows, inputs))
    cell.weight_hh = nn.Parameter(uniform_(units, rows, recurrent))
    for name in biases:
        cell.register_parameter(name, nn.Parameter(uniform_(units, rows)))


def with_one_bias(cell: Cell) -> tuple[Tensor, ...]:
    """The weights of a cell as kernels want them, zeros for the second bias that it does not have."""
    return cell.weight_ih, cell.weight_hh, cell.bias_ih, torch.zeros_like(cell.bias_ih)


def check_call(cell: Cell, xs: Tensor, state: State, lengths: Tensor | None) -> None:
    """Raise UsageError, in words, where the arguments of `unroll` do not fit the cell or each other."""
    name = type(cell).__name__
    if xs.is_floating_point() == cell.tokens:
        raise UsageError(
            f"{name} was given inputs of {xs.dtype}, wanted "
            + ("token ids, such as int64" if cell.tokens else "floating-point features: xs.float(), or one-hot vectors")
        )
    if not cell.tokens and (xs.dim() != 3 or xs.shape[2] != cell.input_size):
        raise UsageError(
            f"{name} was given inputs of shape {tuple(xs.shape)}, wanted [batch, time, {cell.input_size}]; "
            f"the last axis is the features, build the cell with input_size={xs.shape[-1]} if that is what you have"
        )
    if cell.tokens and xs.dim() != 2:
        raise UsageError(f"{name} was given token inputs of shape {tuple(xs.shape)}, wanted [batch, time]")
    check_state(cell, xs, state)
    if lengths is not None:
        check_lengths(name, xs, lengths)


def check_step(cell: Cell, x: Tensor, state: State) -> None:
    """Raise UsageError where the arguments of one step do not fit. It is quick: a stream calls it at every step."""
    wanted = (x.shape[0],) if cell.tokens else (x.shape[0], cell.input_size)
    if tuple(x.shape) != wanted:
        raise UsageError(f"{type(cell).__name__} was given one input of shape {tuple(x.shape)}, wanted {wanted}")
    for leaf in leaves(state):
        if not isinstance(leaf, Tensor) or leaf.dim() == 0 or leaf.shape[0] != x.shape[0]:
            shape = tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf
            raise UsageError(
                f"{type(cell).__name__} was given {x.shape[0]} rows and a state with a field {shape}; "
                f"wanted [{x.shape[0]}, ...]: start from initial_state({x.shape[0]})"
            )


def check_state(cell: Cell, xs: Tensor, state: State) -> None:
    """Raise UsageError where a state has not the structure, shapes, dtypes or device that the cell and `xs` ask for."""
    name, batch, start = type(cell).__name__, xs.shape[0], named(cell.initial_state(0))
    given = named(state)
    if list(given) != list(start):
        raise UsageError(
            f"{name} was given a state with the fields {', '.join(given) or 'none'}, wanted {', '.join(start) or 'none'}: "
            f"start from initial_state({batch})"
        )
    for field, leaf in given.items():
        if not isinstance(leaf, Tensor):
            raise UsageError(
                f"{name} was given a state whose {field} is {leaf!r}, wanted a tensor: start from initial_state({batch})"
            )
        wanted = (batch, *start[field].shape[1:])
        if tuple(leaf.shape) != wanted or leaf.dtype != start[field].dtype or leaf.device != xs.device:
            raise UsageError(
                f"{name} was given {batch} rows on {xs.device} and a state whose {field} is {leaf.dtype} of shape "
                f"{tuple(leaf.shape)} on {leaf.device}; wanted {start[field].dtype} of shape {wanted} on {xs.device}: "
                f"start from initial_state({batch})"
            )
        if leaf.is_floating_point() and xs.is_floating_point() and leaf.dtype != xs.dtype and not _autocasting(xs):
            raise UsageError(
                f"{name} is {leaf.dtype} and was given inputs of {xs.dtype}; convert one of them: xs.to({leaf.dtype})"
            )


def _autocasting(xs: Tensor) -> bool:
    return torch.is_autocast_enabled(xs.device.type)


def check_lengths(name: str, xs: Tensor, lengths: Tensor) -> None:
    batch, steps = xs.shape[:2]
    if not isinstance(lengths, Tensor):
        raise UsageError(
            f"{name} was given lengths as {type(lengths).__name__}, wanted a tensor: torch.tensor(lengths)"
        )
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
