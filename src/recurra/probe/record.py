"""One pass through a model with its eyes open: what each cell was given and what became of its state, step by step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from recurra.cells import Cell, Zoneout
from recurra.errors import UsageError
from recurra.recurrent import Bidirectional
from recurra.stability import in_place
from recurra.state import State, flipped, leaves, named, tmap

Losses = Callable[[], Tensor]  # runs the model once: the loss of each step [rows, steps], or of each row [rows, 1]


class Track(NamedTuple):
    """What one cell did in one pass over a sequence. Tensors are batch first, and in the order in which the cell went, which is
    from the end to the start where it reads `backwards`; `in_order` turns them.

    xs        its inputs [rows, time, features]; us: what `project` made of them, a tree of [rows, time, ...]
    start     the state before the first step
    before    the states before each step, a tree of [rows, time, ...]
    after     for each step the floating fields of the state after it by name, [rows, ...], with their past, for gradients
    gates     every gate and candidate that the cell has by its name, [rows, time, units]
    lengths   int64 [rows], or None where every row is full
    """

    name: str
    cell: Cell
    backwards: bool
    xs: Tensor
    us: State
    start: State
    before: State
    after: list[dict[str, Tensor]]
    gates: dict[str, Tensor]
    lengths: Tensor | None

    @property
    def steps(self) -> int:
        return len(self.after)

    def states(self) -> dict[str, Tensor]:
        """The fields of the state after each step, [rows, time, ...], without their past."""
        return {name: torch.stack([one[name].detach() for one in self.after], 1) for name in self.after[0]}

    def in_order(self, values: Tensor) -> Tensor:
        """`values` `[rows, time, ...]` in the order of the sequence."""
        return flipped(values, self.lengths) if self.backwards else values


class Record(NamedTuple):
    """One pass: the tracks of its cells in the order in which they began, and the losses [rows, steps or 1], with their past."""

    tracks: list[Track]
    losses: Tensor


@dataclass
class _Run:
    """What is gathered of a cell while it runs."""

    cell: Cell
    lengths: Tensor | None = None
    xs: list[Tensor] = field(default_factory=list)
    us: list[State] = field(default_factory=list)
    before: list[State] = field(default_factory=list)
    after: list[dict[str, Tensor]] = field(default_factory=list)
    gates: list[dict[str, Tensor]] = field(default_factory=list)


def cores(model: nn.Module) -> dict[str, Cell]:
    """The cells of a model whose step says what recurs, by name: those that are made of no others, and `Zoneout`, which mixes the
    old state into the new one."""
    found: dict[str, Cell] = {}
    inside: set[int] = set()
    for name, one in model.named_modules():
        parts = [part for part in one.modules() if part is not one and isinstance(part, Cell)]
        if isinstance(one, Cell) and id(one) not in inside and (not parts or isinstance(one, Zoneout)):
            found[name or type(one).__name__] = one
            inside |= {id(part) for part in parts}
    return found


def record(model: nn.Module, losses: Losses) -> Record:
    """Run `losses` once, without the noise of training, and note what every cell in `model` did.

    The model is left as it was, bits, modes, gradients and random numbers. Raises UsageError where no cell took a step, and where
    the losses do not hang on what the cells did.
    """
    of = cores(model)
    runs: list[_Run] = []
    methods: list[tuple[Cell, str, Callable[..., Any]]] = []
    for cell in of.values():
        methods += _noting(cell, runs)
    with at_rest(model), in_place(methods), torch.enable_grad(), _Sweepable():
        found = losses()
    runs = [run for run in runs if run.after]
    if not runs or found.dim() != 2 or not found.requires_grad:
        raise UsageError(
            f"a probe looks at the steps of recurrent cells, and saw {len(runs)} cells at work and losses of shape "
            f"{list(found.shape)}{'' if found.requires_grad else ' that have no gradient'}; wanted a function that runs the model "
            "and returns losses [rows, steps], or [rows, 1] where there is one of the whole, without torch.no_grad"
        )
    names = {id(cell): name for name, cell in of.items()}
    reversed_ = _backwards(model)
    return Record([_track(names[id(run.cell)], run, id(run.cell) in reversed_) for run in runs], found)


class _Tanh(torch.autograd.Function):
    """tanh, whose gradient takes many cotangents at once: torch's own takes them one by one, a third of a sweep's time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.tanh(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return gradient * (1 - y * y)


class _Sweepable(TorchFunctionMode):
    """Within this context tanh is one that `autograd.grad(..., is_grads_batched=True)` goes back through at once."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.tanh, Tensor.tanh) and not kwargs:
            return _Tanh.apply(*args)
        return func(*args, **(kwargs or {}))


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Within this context the model is in `eval()` and what is random is drawn apart; each part's mode is put back, and the random
    numbers go on from where they were."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for part, training in modes:
            part.training = training


def losses_of(cell: Cell, xs: Tensor, targets: Tensor | None = None, lengths: Tensor | None = None) -> Losses:
    """The losses of a cell that runs over `xs` from its start state: with `targets` int64 `[rows, time]` the surprise of each under
    the outputs as scores, in nats; without, half the squared length of each output."""

    def losses() -> Tensor:
        ys, _ = cell.unroll(xs, cell.initial_state(len(xs)), lengths)
        if targets is None:
            return ys.square().sum(2) / 2
        return F.cross_entropy(ys.transpose(1, 2), targets, reduction="none")

    return losses


def _noting(cell: Cell, runs: list[_Run]) -> list[tuple[Cell, str, Callable[..., Any]]]:
    """The methods that note what a cell does. A call of its loop begins a run; one that is stepped from outside has one run."""
    own: list[_Run] = []
    gated: Any = next((part for part in cell.modules() if isinstance(part, Cell) and hasattr(part, "gates")), None)
    plain_loop, plain_project, plain_step = cell.loop, cell.project, cell.step
    seen: list[Any] = []

    def run() -> _Run:
        if not own:
            begin(None)
        return own[-1]

    def begin(lengths: Tensor | None) -> None:
        own.append(_Run(cell, lengths))
        runs.append(own[-1])

    def loop(xs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        begin(lengths)
        return plain_loop(xs, state, lengths)

    def project(xs: Tensor) -> State:
        run().xs.append(xs.detach())
        return plain_project(xs)

    def step(u: State, state: State) -> tuple[Tensor, State]:
        if not any(leaf.requires_grad for leaf in leaves(state)):  # a network of fixed weights has gradients too
            state = tmap(lambda leaf: leaf.detach().requires_grad_(leaf.is_floating_point()), state)
        seen.clear()
        y, after = plain_step(u, state)
        here = run()
        here.us.append(
            u
        )  # with its past, which is cut where steps are put together: 14,000 calls less for 1,000 steps of 2 LSTMs
        here.before.append(state)
        here.after.append({name: leaf for name, leaf in named(after).items() if leaf.is_floating_point()})
        here.gates.append({name: gate for one in seen for name, gate in one._asdict().items() if gate is not None})
        return y, after

    def note_gates(u: State, state: State) -> Any:
        seen.append(plain_gates(u, state))
        return seen[-1]

    methods: list[tuple[Cell, str, Callable[..., Any]]] = [
        (cell, "loop", loop),
        (cell, "project", project),
        (cell, "step", step),
    ]
    if gated is not None:
        plain_gates = gated.gates
        methods.append((gated, "gates", note_gates))
    return methods


@torch.no_grad()
def _track(name: str, run: _Run, backwards: bool) -> Track:
    over_time = lambda parts: tmap(lambda *steps: torch.stack(steps, 1), *parts)  # noqa: E731
    xs, us, before = torch.cat(run.xs, 1), over_time(run.us), over_time(run.before)
    wide = (len(xs), -1)  # a gate that is the same for all rows is spread over them
    gates = {gate: torch.stack([one[gate].expand(*wide) for one in run.gates], 1) for gate in run.gates[0]}
    return Track(
        name,
        run.cell,
        backwards,
        xs,
        us,
        tmap(torch.Tensor.detach, run.before[0]),
        before,
        run.after,
        gates,
        run.lengths,
    )


def _backwards(model: nn.Module) -> set[int]:
    """The cells that read from the end to the start."""
    layers = (one for one in model.modules() if isinstance(one, Bidirectional))
    return {id(part) for layer in layers for part in cast(nn.Module, layer.backwards).modules()}
