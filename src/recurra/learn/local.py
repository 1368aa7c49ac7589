"""Traces that stay with a unit: what each weight does to the state of the one unit that it leads into.

In most cells all that mixes units is products with weight matrices; given the sums that lead into it, each unit goes its own way.
Then the derivatives of all units' states by all their sums come from one backward pass for each field of the state, and the
influence of the weight from x_k into the sum a_r of unit j on that unit's state s is a trace, of as many numbers as the state has
fields:

    e_rk(t) = J_j(t) e_rk(t-1) + (ds_j/da_r) x_k,       dL_t/dw_rk = d+L_t/dw_rk + (dL_t/ds_j(t-1)) e_rk(t-1)

J_j is a matrix of fields by fields. What it holds is what the learners differ in: the unit's own way alone (`eprop`, `rflo`), or
what it does to itself through its own recurrent weight too (`snap1`); where units have no other weights, that is exact
(`rtrl-diagonal`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from recurra.cells import Cell
from recurra.data.batch import Batch
from recurra.learn.base import (
    Carry,
    Cost,
    Learnable,
    add_gradients,
    forgotten,
    learnt,
    over_budget,
    restarted,
    steps,
    why_no_start,
    why_not_stepwise,
)
from recurra.learn.influence import Pure
from recurra.stability import in_place
from recurra.state import State, detach, leaves, tmap


class Product(NamedTuple):
    """A product with a weight matrix `[rows, columns]`: what went in `[batch, columns]`, with ones at the end where there is a
    bias; zeros that were added to what came out; and in a step the field of the state that went in."""

    weight: Tensor
    bias: Tensor | None
    x: Tensor
    tap: Tensor
    source: Tensor | None


@dataclass
class Seen:
    """What a cell did in a step: its state before and after, the products that led into it, and its other weights, a copy for
    each row."""

    before: tuple[Tensor, ...] = ()
    after: tuple[Tensor, ...] = ()
    products: list[Product] = field(default_factory=list)
    vectors: dict[str, Tensor] = field(default_factory=dict)


class Traces(NamedTuple):
    """Of one cell: for each product `[batch, fields, rows, columns]`, for each vector of weights `[batch, fields, weights]`."""

    products: tuple[Tensor, ...]
    vectors: tuple[Tensor, ...]


class Look(NamedTuple):
    """A step that was looked at: its loss and the state after it, both with their past, and what each cell did."""

    loss: Tensor
    after: State
    cells: tuple[Seen, ...]


def cores(model: nn.Module) -> dict[str, Cell]:
    """The cells of a model with weights of their own and no cells inside, by name."""
    return {
        name: one
        for name, one in model.named_modules()
        if isinstance(one, Cell)
        and any(True for _ in one.parameters(recurse=False))
        and not any(isinstance(part, Cell) for part in one.modules() if part is not one)
    }


class _Watch(TorchFunctionMode):
    """Sees the products with the weights of cells, and cuts what goes into them from the state; hands errors back through other
    matrices, `feedback`, where products with such weights are asked for."""

    def __init__(self, seen: dict[int, Seen], feedback: dict[int, Tensor]) -> None:
        super().__init__()
        self.seen, self.feedback, self.stepping = seen, feedback, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.linear:
            return func(*args, **(kwargs or {}))
        x, weight, bias = (*args, *(kwargs or {}).values(), None)[:3]
        if id(weight) in self.feedback:
            back = F.linear(x, self.feedback[id(weight)])
            return F.linear(x.detach(), weight, bias) + (back - back.detach())
        if id(weight) not in self.seen:
            return F.linear(x, weight, bias)
        given = x.detach() if self.stepping else x
        out = F.linear(given, weight, bias)
        tap = torch.zeros_like(out).requires_grad_()
        flat = given.detach().flatten(0, -2)
        flat = flat if bias is None else torch.cat([flat, flat.new_ones(len(flat), 1)], 1)
        self.seen[id(weight)].products.append(Product(weight, bias, flat, tap, x if self.stepping else None))
        return out + tap


def _recorded(cell: Cell, seen: Seen, watch: _Watch) -> Callable[..., Any]:
    """The cell's step, which leaves what it did in `seen`."""
    step = cell.step

    def recorded(u: State, state: State) -> tuple[Tensor, State]:
        watch.stepping = True
        y, after = step(u, state)
        watch.stepping = False
        seen.before, seen.after = tuple(leaves(state)), tuple(leaves(after))
        return y, after

    return recorded


class Eye:
    """Runs single steps of a task so that every cell's part in them is seen. `feedback`: by the identity of a readout's weights the
    matrix that errors come back through; `vectors`: weights that are no matrices get a copy for each row, which only cells
    take whose units go their own ways."""

    def __init__(self, task: Learnable, feedback: dict[int, Tensor], vectors: bool = True) -> None:
        self.task, self.feedback, self.parameters = task, feedback, learnt(task)
        self.cells = cores(task.model)
        self.matrices: dict[int, str] = {}
        self.vectors: dict[str, tuple[str, Tensor]] = {}
        self._biases: dict[int, list[str]] = {}
        for name, cell in self.cells.items():
            for kind, weight in cell.named_parameters(prefix=name, recurse=False):
                if weight.dim() > 1:
                    self.matrices[id(weight)] = name
                elif vectors and not kind.rpartition(".")[2].startswith("bias"):
                    self.vectors[kind] = (name, weight.detach())

    def __call__(self, step: Batch, state: State) -> Look:
        """What is done in one step; the state before it is cut off from its past."""
        seen = {name: Seen() for name in self.cells}
        for kind, (name, weight) in self.vectors.items():
            seen[name].vectors[kind] = weight.expand(step.rows, -1).clone().requires_grad_()
        watch = _Watch({weight: seen[name] for weight, name in self.matrices.items()}, self.feedback)
        state = tmap(lambda leaf: leaf.detach().requires_grad_(leaf.is_floating_point()), state)
        copies = {kind: copy for own in seen.values() for kind, copy in own.vectors.items()}
        recorded = [(cell, "step", _recorded(cell, seen[name], watch)) for name, cell in self.cells.items()]
        with in_place(recorded), torch.enable_grad(), watch:
            loss, after = Pure(self.task).with_weights(copies, step, state) if copies else self.task.loss(step, state)
        return Look(loss, after, tuple(seen.values()))

    def shared_out(self, product: Product, sums: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The gradient `sums` `[rows, columns]` of a product, to its weight and, the last column, to the biases in it."""
        columns = product.weight.shape[1]
        yield from ((name, sums[:, :columns]) for name, one in self.parameters.items() if one is product.weight)
        if product.bias is not None:
            yield from ((name, sums[:, -1]) for name in self._biases_in(product))

    def _biases_in(self, product: Product) -> list[str]:
        """The parameters whose sum the bias of a product is."""
        bias = cast(Tensor, product.bias)
        if id(product.weight) not in self._biases:
            found: Sequence[Tensor | None] = [None] * len(self.parameters)
            if bias.requires_grad:
                found = torch.autograd.grad(
                    bias.sum(), list(self.parameters.values()), retain_graph=True, allow_unused=True
                )
            names = [name for name, one in zip(self.parameters, found, strict=True) if one is not None]
            self._biases[id(product.weight)] = names
        return self._biases[id(product.weight)]


class Slopes(NamedTuple):
    """Of one cell in one step, the derivatives of each field of the state after it: by the fields before it, unit by unit
    `[batch, fields after, fields before, units]`, by the products `[batch, fields, rows]`, by the vectors `[batch, fields, n]`."""

    fields: Tensor
    products: tuple[Tensor, ...]
    vectors: tuple[Tensor, ...]


def slopes(seen: Seen, through_itself: bool) -> Slopes:
    """The derivatives of each unit by its own past, by one backward pass for each field; `through_itself`: through its recurrent
    weight onto itself too."""
    taps, vectors = [one.tap for one in seen.products], list(seen.vectors.values())
    rows = []
    for after in seen.after:
        found = torch.autograd.grad(
            after.sum(), [*seen.before, *taps, *vectors], retain_graph=True, allow_unused=True, materialize_grads=True
        )
        rows.append([one.flatten(1) for one in found])
    columns = [torch.stack(column, 1) for column in zip(*rows, strict=True)]
    fields = len(seen.before)
    own = torch.stack(columns[:fields], 2)
    by_products = tuple(columns[fields : fields + len(taps)])
    if through_itself:
        for product, slope in zip(seen.products, by_products, strict=True):
            if product.source is not None:
                own[:, :, _source(product, seen)] += _back(product, slope)
    return Slopes(own, by_products, tuple(columns[fields + len(taps) :]))


def _back(product: Product, slope: Tensor) -> Tensor:
    """`slope` `[..., rows]` by the sums, taken back through the weights of each unit onto itself `[..., units]`."""
    weights = product.weight.detach()
    units = weights.shape[1]
    own = weights.view(-1, units, units).diagonal(dim1=1, dim2=2)
    return (slope.unflatten(-1, (-1, units)) * own).sum(-2)


def _source(product: Product, seen: Seen) -> int:
    """Which field of the state went into the product."""
    return next(at for at, one in enumerate(seen.before) if one is product.source)


def rolled(traces: Traces, seen: Seen, by: Slopes) -> Traces:
    """The traces after a step."""
    return Traces(
        tuple(
            _through(by.fields, trace, slope[..., None] * product.x[:, None, None])
            for trace, slope, product in zip(traces.products, by.products, seen.products, strict=True)
        ),
        tuple(
            _through(by.fields, trace[..., None], slope[..., None])[..., 0]
            for trace, slope in zip(traces.vectors, by.vectors, strict=True)
        ),
    )


def _through(fields: Tensor, trace: Tensor, now: Tensor) -> Tensor:
    """`now` and the trace of before, taken through a step, `[batch, fields, rows, columns]`; writes into `now`. Product by product:
    traces are large, and a sum over two fields is no matter for a matrix product."""
    units = fields.shape[-1]
    apart, out = trace.unflatten(2, (-1, units)), now.unflatten(2, (-1, units))
    for after in range(fields.shape[1]):
        for before in range(fields.shape[2]):
            own = fields[:, after, before, None, :, None]
            out[:, after].addcmul_(own, apart[:, before])
    return now


def nothing(seen: Seen) -> Traces:
    """The traces before the first step."""
    fields = len(seen.before)
    return Traces(
        tuple(one.x.new_zeros(len(one.x), fields, len(one.weight), one.x.shape[1]) for one in seen.products),
        tuple(one.new_zeros(len(one), fields, one.shape[1]) for one in seen.vectors.values()),
    )


def gradients(eye: Eye, seen: Look, traces: Sequence[Traces], through_itself: bool) -> dict[str, Tensor]:
    """The gradients of the step's loss by all parameters: in this step, and by the traces of those before it."""
    inner = [part for cell in seen.cells for part in (*cell.before, *(one.tap for one in cell.products))]
    copies = [part for cell in seen.cells for part in cell.vectors.values()]
    found = torch.autograd.grad(
        seen.loss,
        [*eye.parameters.values(), *inner, *copies],
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    sums, waiting = dict(zip(eye.parameters, found, strict=False)), iter(found[len(eye.parameters) :])
    signals = [
        ([next(waiting) for _ in cell.before], [next(waiting).flatten(1) for _ in cell.products]) for cell in seen.cells
    ]
    for name, copy in zip((name for cell in seen.cells for name in cell.vectors), waiting, strict=True):
        if name in sums:
            sums[name] = sums[name] + copy.sum(0)
    for cell, own, (fields, taps) in zip(seen.cells, traces, signals, strict=True):
        back = torch.stack(fields, 1)
        if through_itself:
            for product, tap in zip(cell.products, taps, strict=True):
                if product.source is not None:
                    back[:, _source(product, cell)] += _back(product, tap)
        for name, gradient in _by_traces(eye, cell, own, back):
            sums[name] = sums[name] + gradient
    return sums


def _by_traces(eye: Eye, seen: Seen, traces: Traces, back: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What the traces say of a signal `back` `[batch, fields, units]` on the state before the step."""
    for product, trace in zip(seen.products, traces.products, strict=True):
        yield from eye.shared_out(product, _summed(back, trace))
    for name, trace in zip(seen.vectors, traces.vectors, strict=True):
        if name in eye.parameters:
            yield name, _summed(back, trace[..., None])[:, 0]


def _summed(back: Tensor, trace: Tensor) -> Tensor:
    """Over rows and fields, `[rows of the weight, columns]`."""
    apart = trace.unflatten(2, (-1, back.shape[2]))
    return (back[:, :, None, :, None] * apart).sum((0, 1)).flatten(0, 1)


def start(task: Learnable, batch: Batch) -> Carry:
    """The carry of a learner of this kind before the first batch, its traces nothing."""
    state = restarted(task, batch, task.model.initial_state(batch.rows))
    first = next(iter(steps(batch)))
    return Carry(state, tuple(nothing(cell) for cell in Eye(task, {})(first, state).cells))


def learn(
    task: Learnable, batch: Batch, carry: Carry, through_itself: bool, feedback: dict[int, Tensor]
) -> tuple[Tensor, Carry]:
    """Go with a batch step by step, adding to `.grad`."""
    state, traces = carry.state, carry.traces
    state, traces = restarted(task, batch, state), forgotten(batch, traces)
    eye, total = Eye(task, feedback), torch.zeros(())
    for step in steps(batch):
        seen = eye(step, state)
        if seen.loss.requires_grad:
            add_gradients(eye.parameters, gradients(eye, seen, traces, through_itself))
        traces = tuple(
            rolled(own, cell, slopes(cell, through_itself)) for own, cell in zip(traces, seen.cells, strict=True)
        )
        state, total = detach(seen.after), total + seen.loss.detach()
    return total, Carry(state, traces, carry.shared)


def cost(task: Learnable, batch: Batch) -> Cost:
    """What the traces take."""
    numbers = sum(part.numel() for part in leaves(start(task, batch).traces))
    return Cost(2 * 4 * numbers, 2 * numbers)


def _first_look(task: Learnable, batch: Batch, vectors: bool = True) -> Look:
    """At the first step of the first row, from a random state."""
    first = tmap(lambda part: part[:1], (batch.inputs, batch.targets))
    one = Batch(first[0], first[1], None, 1.0, torch.ones(1, dtype=torch.bool), batch.step)
    state = detach(task.model.initial_state(1))
    state = tmap(lambda leaf: torch.rand_like(leaf) - 0.5 if leaf.is_floating_point() else leaf, state)
    return Eye(task, {}, vectors)(next(iter(steps(one))), state)


def mixes(task: Learnable, batch: Batch) -> bool:
    """Whether any cell takes its state through a product with a matrix."""
    return any(one.source is not None for cell in _first_look(task, batch).cells for one in cell.products)


def refused(task: Learnable, batch: Batch, memory: float) -> str | None:
    """Why a task cannot be learnt by traces in so many GiB, in words; None where it can."""
    instead = "take fewer units or rows, or bptt with learner.window"
    return why_not_stepwise(task, batch) or why_not(task, batch) or over_budget(cost(task, batch), memory, instead)


def why_not(task: Learnable, batch: Batch) -> str | None:
    """Why the cells of a task cannot be learnt by traces that stay with a unit, in words; None where they can."""
    words = why_no_start(task)
    if words:
        return words
    if not cores(task.model):
        return "there is no cell whose weights learn; take ridge, or a cell that learns"
    for cell in task.model.modules():
        if isinstance(cell, Cell) and parametrize.is_parametrized(cell):
            return "weights of a cell are made anew at every call; leave out model.recurrent_dropout, or take bptt"
    for vectors in (False, True):
        seen = _first_look(task, batch, vectors)
        ended = {id(leaf) for leaf in leaves(seen.after)}
        for (name, cell), did in zip(cores(task.model).items(), seen.cells, strict=True):
            words = _why_not(name, type(cell).__name__, did, ended)
            if words:
                return words
    return None


def _why_not(name: str, what: str, did: Seen, ended: set[int]) -> str | None:
    if not did.after or not {id(one) for one in did.after} <= ended:
        return (
            f"something between {name or what} and the next step changes its state; leave it out, or take rtrl or bptt"
        )
    if not _fits(did):
        return f"{what} has weights or fields of its state that belong to no single unit; take rtrl, uoro or bptt"
    if not _is_unitwise(did):
        return f"the units of {what} see each other within a step; take another cell, or rtrl, uoro or bptt"
    return None


def _fits(seen: Seen) -> bool:
    units = seen.before[0].shape[-1]
    whole = all(one.dim() == 2 and one.shape[1] == units and one.is_floating_point() for one in seen.before)
    rows = [len(one.weight) for one in seen.products] + [one.shape[1] for one in seen.vectors.values()]
    sources = [one.source for one in seen.products if one.source is not None]
    return (
        whole
        and all(count % units == 0 for count in rows)
        and all(any(one is field for field in seen.before) for one in sources)
    )


def _is_unitwise(seen: Seen) -> bool:
    """Whether each unit's state hangs on its own sums and its own past alone: then random signs on the states come through to
    them unchanged."""
    inner = [*seen.before, *(one.tap for one in seen.products), *seen.vectors.values()]
    for after in seen.after:
        signs = (torch.rand_like(after) > 0.5).to(after) * 2 - 1
        plain, signed = (
            torch.autograd.grad(after, inner, one, retain_graph=True, allow_unused=True, materialize_grads=True)
            for one in (torch.ones_like(after), signs)
        )
        for one, other in zip(plain, signed, strict=True):
            wanted = (one.flatten(1).unflatten(1, (-1, signs.shape[1])) * signs[:, None]).flatten(1)
            if not torch.allclose(other.flatten(1), wanted, rtol=1e-3, atol=1e-6):
                return False
    return True
