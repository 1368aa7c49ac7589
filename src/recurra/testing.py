"""The laws, as public functions: what every member of a concept obeys, for ours and for yours.

    check_cell(MyCell(8, 16))        raises AssertionError that says, in words, which laws are broken and by how much

A law is a function whose name is the sentence it tests. There is no list of exceptions: a law that not all obey is none.
Laws hold in `eval()`; noise belongs to training.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from recurra import bundle, kernels
from recurra.cells import Cell
from recurra.data.batch import Batch
from recurra.errors import UsageError
from recurra.recurrent import Layer
from recurra.state import State, choose, detach, leaves, masked, named, take, tmap, unname, within
from recurra.tasks import Task

# float32: matrix products differ in their last bits with the batch size; float64 is compared far more closely.
TOLERANCE = {torch.float32: dict(rtol=1e-4, atol=1e-5), torch.float64: dict(rtol=1e-9, atol=1e-10)}
BATCH, TIME = 3, 7
MANY = 2_000  # numbers: of more of them gradients are not checked one by one


def check_cell(cell: Cell) -> list[str]:
    """Hold a cell against every law of `CELL_LAWS`; return their names, or raise AssertionError with all that are broken."""
    if not isinstance(cell, Cell):
        raise UsageError(
            f"check_cell was given {type(cell).__name__}, wanted an instance of a Cell. A layer that needs the whole sequence "
            "(bidirectional, for one) cannot step, and is none"
        )
    return _check(cell, CELL_LAWS)


def _check(member: Any, laws: Sequence[Callable[[Any], None]]) -> list[str]:
    was_training, broken = member.training, []
    member.eval()
    try:
        for law in laws:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                try:
                    law(member)
                except (AssertionError, RuntimeError, TypeError, ValueError, NotImplementedError, IndexError) as error:
                    broken.append(f"{law.__name__.replace('_', ' ')}: {str(error).strip() or type(error).__name__}")
    finally:
        member.train(was_training)
    if broken:
        raise AssertionError(f"{type(member).__name__} breaks {len(broken)} of {len(laws)} laws:\n" + "\n".join(broken))
    return [law.__name__ for law in laws]


def example(cell: Cell, batch: int = BATCH, time: int = TIME) -> Tensor:
    """Random inputs for a cell: tokens for one with an embedding, else numbers of its own dtype."""
    if cell.tokens:
        return torch.randint(cell.input_size, (batch, time))
    return torch.randn(batch, time, cell.input_size, dtype=dtype_of(cell))


def dtype_of(cell: Cell) -> torch.dtype:
    """The floating dtype of a cell's parameters and buffers."""
    return next((t.dtype for t in (*cell.parameters(), *cell.buffers()) if t.is_floating_point()), torch.float32)


def same(actual: State, expected: State, what: str) -> None:
    """Two states or tensors agree within the tolerance of their dtype. Raises AssertionError that names the first leaf."""
    for (name, a), b in zip(named(actual).items(), leaves(expected), strict=True):
        tolerance: dict[str, Any] = TOLERANCE.get(b.dtype, dict(rtol=0.0, atol=0.0))
        torch.testing.assert_close(a, b, **tolerance, msg=partial("{} ({}): {}".format, what, name))


def random_state(cell: Cell, batch: int) -> State:
    """A start state unlike zero, so that nothing hides behind zeros."""
    return tmap(
        lambda leaf: leaf + torch.rand_like(leaf) * 0.5 if leaf.is_floating_point() else leaf, cell.initial_state(batch)
    )


# --- State -----------------------------------------------------------------------------------------------------------


def a_state_keeps_its_structure_through_every_function(state: State) -> None:
    rows = next(leaves(state)).shape[0] if list(leaves(state)) else 0
    for after in (tmap(torch.clone, state), detach(state), unname(state, named(state))):
        same(after, state, "a copy")
        assert type(after) is type(state), f"{type(after).__name__} came out, {type(state).__name__} went in"
    if rows:
        same(
            choose(torch.ones(rows, dtype=torch.bool), state, tmap(torch.zeros_like, state)), state, "choosing all rows"
        )
        same(take(state, torch.arange(rows)), state, "taking all rows")


STATE_LAWS: list[Callable[[State], None]] = [a_state_keeps_its_structure_through_every_function]


# --- Cell ------------------------------------------------------------------------------------------------------------


def a_step_keeps_the_structure_shapes_and_dtypes_of_the_state(cell: Cell) -> None:
    state = random_state(cell, BATCH)
    y, after = cell(example(cell)[:, 0], state)
    assert tuple(y.shape) == (BATCH, cell.output_size), f"output {tuple(y.shape)}, wanted {(BATCH, cell.output_size)}"
    assert list(named(after)) == list(named(state)), (
        f"fields {list(named(after))} came out, {list(named(state))} went in"
    )
    for name, leaf in named(state).items():
        out = named(after)[name]
        assert (out.shape, out.dtype) == (leaf.shape, leaf.dtype), (
            f"{name}: {out.shape} {out.dtype}, was {leaf.shape} {leaf.dtype}"
        )


def calling_twice_gives_the_same(cell: Cell) -> None:
    xs, state = example(cell), random_state(cell, BATCH)
    kept = tmap(torch.clone, state)
    first, second = cell.unroll(xs, state), cell.unroll(xs, state)
    assert all(torch.equal(a, b) for a, b in zip(leaves(first), leaves(second), strict=True)), "the second call differs"
    assert all(torch.equal(a, b) for a, b in zip(leaves(state), leaves(kept), strict=True)), (
        "the state given was changed"
    )


def unroll_is_a_loop_of_steps(cell: Cell) -> None:
    xs, start = example(cell), random_state(cell, BATCH)
    ys, last = cell.unroll(xs, start)
    state = start
    for t in range(TIME):
        y, state = cell(xs[:, t], state)
        same(y, ys[:, t], f"output of step {t}")
    same(state, last, "last state")


def a_sequence_may_be_cut_anywhere(cell: Cell) -> None:
    xs, start = example(cell), random_state(cell, BATCH)
    whole, last = cell.unroll(xs, start)
    for cut in range(TIME + 1):
        head, middle = cell.unroll(xs[:, :cut], start)
        tail, end = cell.unroll(xs[:, cut:], middle)
        same(torch.cat([head, tail], dim=1), whole, f"outputs, cut at {cut}")
        same(end, last, f"last state, cut at {cut}")


def rows_do_not_see_each_other(cell: Cell) -> None:
    xs, start = example(cell), random_state(cell, BATCH)
    ys, last = cell.unroll(xs, start)
    for row in range(BATCH):
        alone, end = cell.unroll(xs[row : row + 1], take(start, torch.tensor([row])))
        same(alone[0], ys[row], f"outputs of row {row} alone")
        same(end, take(last, torch.tensor([row])), f"state of row {row} alone")


def each_row_ends_at_its_own_length(cell: Cell) -> None:
    xs, start = example(cell), random_state(cell, BATCH)
    lengths = torch.tensor([TIME, 0, TIME // 2])
    ys, last = cell.unroll(xs, start, lengths)
    assert not ys[~within(lengths, TIME)].any(), "outputs past a row's end are not zero"
    for row, length in enumerate(lengths.tolist()):
        alone, end = cell.unroll(xs[row : row + 1, :length], take(start, torch.tensor([row])))
        same(ys[row, :length], alone[0], f"outputs of row {row} of length {length}")
        same(take(last, torch.tensor([row])), end, f"state of row {row} of length {length}")


def padding_changes_neither_outputs_nor_gradients(cell: Cell) -> None:
    xs, start, lengths = example(cell), random_state(cell, BATCH), torch.tensor([TIME, 2, TIME // 2])
    other = masked(xs, lengths)
    other = torch.where(
        within(lengths, TIME).view(BATCH, TIME, *[1] * (xs.dim() - 2)),
        xs,
        other + (float("nan") if xs.is_floating_point() else 1),
    )
    same(_with_gradients(cell, xs, start, lengths), _with_gradients(cell, other, start, lengths), "with other padding")


def the_fast_path_is_the_plain_path(cell: Cell) -> None:
    xs, start = example(cell), random_state(cell, BATCH)
    fast = _with_gradients(cell, xs, start, None)
    with kernels.reference():
        plain = _with_gradients(cell, xs, start, None)
    same(fast, plain, "outputs, last state and gradients")


def gradients_are_right_to_the_second_order(cell: Cell) -> None:
    double, inputs = _differentiable(cell)
    many = sum(part.numel() for part in inputs) > MANY  # then along directions drawn at random
    assert torch.autograd.gradcheck(double, inputs, fast_mode=many), "gradcheck"
    assert torch.autograd.gradgradcheck(double, inputs, fast_mode=many), "gradgradcheck"


def forward_mode_agrees_with_reverse_mode(cell: Cell) -> None:
    fn, inputs = _differentiable(cell, dtype=dtype_of(cell))
    values = tuple(part.detach() for part in inputs)
    tangents = tuple(torch.randn_like(part) for part in values)
    _, forward = torch.func.jvp(fn, values, tangents)  # type: ignore[misc]
    learning = [
        part for part in fn(*inputs) if part.requires_grad
    ]  # what does not hang on the inputs has no reverse mode
    ones = [torch.ones_like(part) for part in learning]
    grads = torch.autograd.grad(learning, inputs, ones, allow_unused=True, materialize_grads=True)
    reverse = torch.stack([(grad * tangent).sum() for grad, tangent in zip(grads, tangents, strict=True)]).sum()
    total = torch.stack([part.sum() for part in forward]).sum()
    torch.testing.assert_close(total, reverse, rtol=1e-3, atol=1e-4)


def gradients_of_each_sample_come_out_of_vmap(cell: Cell) -> None:
    xs, start = example(cell), random_state(cell, BATCH)
    weights = {name: parameter.detach() for name, parameter in cell.named_parameters() if parameter.requires_grad}

    def total(given: dict[str, Tensor], x: Tensor, row: State) -> Tensor:
        one = tmap(lambda leaf: leaf[None], row)
        ys, _ = torch.func.functional_call(
            _Unroll(cell), {f"cell.{name}": weight for name, weight in given.items()}, (x[None], one)
        )
        return ys.sum()

    each = torch.func.vmap(torch.func.grad(total), in_dims=(None, 0, 0))(weights, xs, start)
    for row in range(BATCH):
        alone = torch.func.grad(total)(weights, xs[row], tmap(lambda leaf, row=row: leaf[row], start))
        same(tuple(each[name][row] for name in weights), tuple(alone.values()), f"gradients of row {row}")


def an_exported_cell_takes_any_length(cell: Cell) -> None:
    lengths, sizes = torch.tensor([TIME, 1, TIME // 2]), (torch.export.Dim.AUTO, torch.export.Dim.AUTO)
    given = (example(cell), detach(random_state(cell, BATCH)), lengths)
    rows = tmap(lambda leaf: {0: sizes[0]}, given[1])
    shapes = {"xs": dict(enumerate(sizes)), "state": rows, "lengths": {0: sizes[0]}}
    torch.compiler.reset()  # the operator looks at guards of cells that were exported before, whose parts this one may not have
    with torch.no_grad():
        program = torch.export.export(_Unroll(cell), given, dynamic_shapes=shapes).module()
        for batch, time in ((BATCH, TIME), (2, TIME + 4)):
            xs, state = example(cell, batch, time), random_state(cell, batch)
            ends = torch.tensor([time, 0, time // 2])[:batch]
            same(
                program(xs, state, ends),
                cell.unroll(xs, state, ends),
                f"outputs and state, {batch} rows of {time} steps",
            )


def weights_make_the_round_trip(cell: Cell) -> None:
    xs, start = example(cell), cell.initial_state(BATCH)
    before = cell.unroll(xs, start)
    saved = {name: tensor.clone() for name, tensor in cell.state_dict().items()}
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(1.0)
    cell.load_state_dict(saved)
    after = cell.unroll(xs, start)
    assert all(torch.equal(a, b) for a, b in zip(leaves(before), leaves(after), strict=True)), (
        "other numbers after loading"
    )


CELL_LAWS: list[Callable[[Cell], None]] = [
    a_step_keeps_the_structure_shapes_and_dtypes_of_the_state,
    calling_twice_gives_the_same,
    unroll_is_a_loop_of_steps,
    a_sequence_may_be_cut_anywhere,
    rows_do_not_see_each_other,
    each_row_ends_at_its_own_length,
    padding_changes_neither_outputs_nor_gradients,
    the_fast_path_is_the_plain_path,
    gradients_are_right_to_the_second_order,
    forward_mode_agrees_with_reverse_mode,
    gradients_of_each_sample_come_out_of_vmap,
    an_exported_cell_takes_any_length,
    weights_make_the_round_trip,
]


def _with_gradients(cell: Cell, xs: Tensor, start: State, lengths: Tensor | None) -> State:
    """(outputs, last state, all gradients of a random projection of both)."""
    floating = xs.is_floating_point()
    xs = xs.detach().clone().requires_grad_(floating)
    start = tmap(lambda leaf: leaf.detach().clone().requires_grad_(leaf.is_floating_point()), start)
    ys, last = cell.unroll(xs, start, lengths)
    generator = torch.Generator().manual_seed(1)
    outs = [leaf for leaf in leaves((ys, last)) if leaf.requires_grad]
    weights = [torch.rand(leaf.shape, generator=generator, dtype=leaf.dtype) for leaf in outs]
    wanted = [leaf for leaf in (xs, *leaves(start), *cell.parameters()) if leaf.requires_grad]
    grads = torch.autograd.grad(outs, wanted, weights, materialize_grads=True, allow_unused=True)
    kept = masked(grads[0], lengths) if floating else grads[0]
    return ys.detach(), detach(last), (kept, *grads[1:])


def _differentiable(cell: Cell, dtype: torch.dtype = torch.float64) -> tuple[Callable[..., Any], tuple[Tensor, ...]]:
    """The cell, in another dtype, as a function of its floating inputs, start state and weights."""
    parameters = {name: p.detach().to(dtype).requires_grad_() for name, p in cell.named_parameters() if p.requires_grad}
    start = random_state(cell, 2)
    xs = example(cell, 2, 3)
    state = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves(start) if leaf.is_floating_point()]
    inputs = [xs.to(dtype).requires_grad_()] if xs.is_floating_point() else []
    fixed = {name: b.to(dtype) for name, b in cell.named_buffers() if b.is_floating_point()}

    def run(*parts: Tensor) -> tuple[Tensor, ...]:
        given = list(parts)
        x = given.pop(0) if inputs else xs
        begin = tmap(lambda leaf: given.pop(0) if leaf.is_floating_point() else leaf, start)
        weights = {**dict(zip(parameters, given, strict=True)), **fixed}
        ys, last = torch.func.functional_call(_Unroll(cell), {f"cell.{k}": v for k, v in weights.items()}, (x, begin))
        return tuple(leaf for leaf in leaves((ys, last)) if leaf.is_floating_point())

    return run, (*inputs, *state, *parameters.values())


class _Unroll(torch.nn.Module):
    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, xs: Tensor, state: State, lengths: Tensor | None = None) -> tuple[Tensor, State]:
        return self.cell.unroll(xs, state, lengths)


# --- Layer -----------------------------------------------------------------------------------------------------------


def check_layer(layer: Layer) -> list[str]:
    """Hold a layer against every law of `LAYER_LAWS`; return their names, or raise AssertionError with all that are broken."""
    if not isinstance(layer, Layer):
        raise UsageError(f"check_layer was given {type(layer).__name__}, wanted an instance of recurra.recurrent.Layer")
    return _check(layer, LAYER_LAWS)


def a_layer_keeps_its_shapes(layer: Layer) -> None:
    ys, summary = layer(_layer_example(layer))
    assert tuple(ys.shape) == (BATCH, TIME, layer.output_size), f"outputs {tuple(ys.shape)}"
    assert tuple(summary.shape) == (BATCH, layer.output_size), f"summary {tuple(summary.shape)}"


def rows_of_a_layer_do_not_see_each_other(layer: Layer) -> None:
    xs, lengths = _layer_example(layer), torch.tensor([TIME, 0, TIME // 2])
    ys, summary = layer(xs, lengths)
    assert not ys[~within(lengths, TIME)].any(), "outputs past a row's end are not zero"
    for row, length in enumerate(lengths.tolist()):
        alone, end = layer(xs[row : row + 1, :length])
        same(alone[0], ys[row, :length], f"outputs of row {row} of length {length}")
        same(end[0], summary[row], f"summary of row {row} of length {length}")


def padding_changes_no_output_or_gradient_of_a_layer(layer: Layer) -> None:
    xs, lengths = _layer_example(layer), torch.tensor([TIME, 2, TIME // 2])
    other = torch.where(within(lengths, TIME)[..., None], xs, float("nan"))
    same(_layer_gradients(layer, other, lengths), _layer_gradients(layer, xs, lengths), "with other padding")


LAYER_LAWS: list[Callable[[Layer], None]] = [
    a_layer_keeps_its_shapes,
    rows_of_a_layer_do_not_see_each_other,
    padding_changes_no_output_or_gradient_of_a_layer,
]


def _layer_example(layer: Layer) -> Tensor:
    dtype = next((p.dtype for p in layer.parameters()), torch.float32)
    return torch.randn(BATCH, TIME, layer.input_size, dtype=dtype)


def _layer_gradients(layer: Layer, xs: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    xs = xs.detach().clone().requires_grad_()
    ys, summary = layer(xs, lengths)
    wanted = [xs, *(p for p in layer.parameters() if p.requires_grad)]
    loss = (ys * torch.linspace(0.5, 1.5, ys.shape[2], dtype=ys.dtype)).sum() + summary.square().sum()
    grads = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    return ys.detach(), summary.detach(), masked(grads[0], lengths), *grads[1:]


# --- Batch -----------------------------------------------------------------------------------------------------------


def windows_join_to_the_whole(batch: Batch) -> None:
    for steps in (1, 2, batch.time, batch.time + 1, None):
        parts = list(batch.windows(steps))
        assert torch.equal(torch.cat([part.inputs for part in parts], dim=1), batch.inputs), f"inputs, windows({steps})"
        assert torch.equal(torch.cat([part.targets for part in parts], dim=1), batch.targets), (
            f"targets, windows({steps})"
        )
        assert abs(sum(part.weight for part in parts) - batch.weight) < 1e-6 * max(1, batch.weight), (
            f"weight, windows({steps})"
        )
        assert torch.equal(parts[0].fresh, batch.fresh), "the first window is as fresh as the whole"
        assert not any(part.fresh.any() for part in parts[1:]), "a later window begins nothing"
        if batch.lengths is not None:
            total = torch.stack([part.lengths for part in parts if part.lengths is not None]).sum(0)
            assert torch.equal(total, batch.lengths), f"lengths, windows({steps})"


BATCH_LAWS: list[Callable[[Batch], None]] = [windows_join_to_the_whole]


# --- Task and Bundle -------------------------------------------------------------------------------------------------


def a_task_predicts_on_a_training_example(task: Task, question: Any, folder: Path) -> None:
    assert task.predict(question), "no answer"


def the_loss_of_a_batch_is_a_weighted_mean_of_its_windows(task: Task, question: Any, folder: Path) -> None:
    batch = next(task.batches())
    state = cast(Any, task.model).initial_state(batch.rows)
    if not any(True for _ in leaves(state)):
        return  # it reads whole sequences, which are not cut
    with torch.no_grad():
        whole, last = task.loss(batch, state)
        total = torch.zeros(())
        for part in batch.windows(2):
            loss, state = task.loss(part, state)
            total += loss * part.weight / batch.weight
    same(total, whole, "the loss")
    same(state, last, "the state")


def batches_are_a_function_of_the_step(task: Task, question: Any, folder: Path) -> None:
    one = task.batches()
    first = [next(one) for _ in range(6)]
    for start in range(6):
        again = next(task.batches(start=start))
        assert again.step == start, f"batch {start} says it is {again.step}"
        for here, there in zip(leaves(again.inputs), leaves(first[start].inputs), strict=True):
            assert torch.equal(here, there), f"batch {start} differs on resume"


def a_bundle_predicts_the_same_bits(task: Task, question: Any, folder: Path) -> None:
    bundle.save(folder / "bundle", task, {})
    loaded = bundle.load(folder / "bundle")
    assert loaded.predict(question) == task.predict(question), "another answer after save and load"
    for (name, a), b in zip(bundle.weights(task.model).items(), bundle.weights(loaded.model).values(), strict=True):
        assert torch.equal(a, b), f"{name} differs after save and load"


TASK_LAWS: list[Callable[[Task, Any, Path], None]] = [
    a_task_predicts_on_a_training_example,
    the_loss_of_a_batch_is_a_weighted_mean_of_its_windows,
    batches_are_a_function_of_the_step,
    a_bundle_predicts_the_same_bits,
]
