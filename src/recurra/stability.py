"""What keeps gradients from vanishing and exploding on their way back through time, for any cell.

`watched` looks at the steps of a model while it learns; `omega` and `flossing` are penalties on what it saw; `lyapunov`
measures how fast neighbouring states part; `clip_units` and `add_noise` alter gradients before an update.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from recurra import kernels
from recurra.cells import Cell
from recurra.errors import UsageError
from recurra.regularize import seeded
from recurra.state import State, detach, flat, floating, leaves, masked, tmap, unflat

LEAST = 1e-20  # squared norm of a gradient below which nothing is said of its direction
ROWS = 8  # rows of a batch that flossing looks at: exponents differ little from row to row


class Step(NamedTuple):
    """One step of a cell as it was taken: its input and the state before it, without their past; whether that state has a past, to
    which gradients go on; and, once a backward pass has run, dE/ds for each floating field of the state after the step (None
    where no gradient came)."""

    cell: Cell
    u: State
    before: State
    goes_on: bool
    gradients: list[Tensor | None]


class Run(NamedTuple):
    """What a cell was run over: inputs `[batch, time, ...]`, the state before them, and lengths."""

    cell: Cell
    xs: Tensor
    state: State
    lengths: Tensor | None


class Watched(NamedTuple):
    """What `watched` saw, in the order in which it happened; `cuts` says of each gradient that could be clipped whether it was."""

    steps: list[Step]
    runs: list[Run]
    cuts: list[Tensor]


@contextmanager
def watched(model: nn.Module, most: float | None = None) -> Iterator[Watched]:
    """Within this context the cells in `model` run their plain loop, and each step through which gradients will flow is noted,
    of the innermost cells, which are made of no others.

    With `most`, the gradient of the state is clipped at each step within the backward pass: for each row and each field of the
    state, its norm is at most `most`, and what is clipped is what flows on into the past (Graves 2013, arXiv:1308.0850, clips
    each entry).
    """
    cells = [module for module in model.modules() if isinstance(module, Cell)]
    cores = [cell for cell in cells if not any(isinstance(part, Cell) for part in list(cell.modules())[1:])]
    seen = Watched([], [], [])
    runs = [(cell, "loop", _noting_runs(cell, seen)) for cell in cells]
    with in_place([*runs, *((cell, "step", _noting_steps(cell, seen, most)) for cell in cores)]):
        yield seen


@contextmanager
def in_place(methods: Sequence[tuple[Cell, str, Callable[..., Any]]]) -> Iterator[None]:
    """Within this context cells run their plain loop, and have these methods in place of their own of the same name."""
    for cell, name, method in methods:
        vars(cell)[name] = method
    try:
        with kernels.reference():
            yield
    finally:
        for cell, name, _ in methods:
            vars(cell).pop(name, None)


def _noting_runs(cell: Cell, seen: Watched) -> Callable[..., tuple[Tensor, State]]:
    plain = cell.loop

    def loop(xs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        if torch.is_grad_enabled() and xs.shape[1]:
            seen.runs.append(Run(cell, xs.detach(), detach(state), lengths))
        return plain(xs, state, lengths)

    return loop


def _noting_steps(cell: Cell, seen: Watched, most: float | None) -> Callable[..., tuple[Tensor, State]]:
    plain = cell.step

    def step(u: State, state: State) -> tuple[Tensor, State]:
        y, after = plain(u, state)
        if torch._C._are_functorch_transforms_active() or not any(leaf.requires_grad for leaf in leaves(after)):
            return y, after
        fields = list(floating(after))
        goes_on = any(leaf.requires_grad for leaf in leaves(state))
        noted = Step(cell, detach(u), detach(state), goes_on, [None] * len(fields))
        for place, field in enumerate(fields):
            if field.requires_grad:
                field.register_hook(_note(noted.gradients, place, seen.cuts, most))
        seen.steps.append(noted)
        return y, after

    return step


def _note(gradients: list[Tensor | None], place: int, cuts: list[Tensor], most: float | None) -> Callable[..., Any]:
    def hook(gradient: Tensor) -> Tensor | None:
        gradients[place] = gradient
        if most is None:
            return None
        norms = gradient.flatten(1).norm(dim=1)
        cuts.append((norms > most).any())
        return gradient * (most / norms).clamp(max=1.0).view(-1, *[1] * (gradient.dim() - 1))

    return hook


# --- Omega --------------------------------------------------------------------------------------------------------------


def omega(steps: Sequence[Step]) -> Tensor:
    """The penalty on gradients that change their norm from step to step (Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063):

        Omega = mean over k of ( |g_(k+1) ds_(k+1)/ds_k|^2 / |g_(k+1)|^2 - 1 )^2,    g_k = dE/ds_k

    over all steps and rows to which a gradient came (|g|^2 at least 1e-20) and from which it goes on (not to a state that was
    given), with s the whole state (h and c of an LSTM); a scalar, the sum over the cells. The norms are squared so that it is
    smooth where a gradient has vanished; the paper's own formula takes their ratio.

    As in the paper, g_k, s_k and the input of each step are held constant: only the weights inside `step` are differentiated.
    All times of a cell are one batch for one product with its Jacobians. Weights are those without weight drop. Raises
    UsageError where no gradient came to any step, or through no weights.
    """
    reached = [step for step in steps if any(gradient is not None for gradient in step.gradients)]
    by_cell: dict[Cell, list[Step]] = {}
    for step in reached:
        if step.goes_on:
            by_cell.setdefault(step.cell, []).append(step)
    none = next(floating(reached[0].before)).new_zeros(()) if reached else torch.zeros(())
    total = sum((_omega_of(cell, its) for cell, its in by_cell.items()), none)
    if not reached or (by_cell and not total.requires_grad):
        raise UsageError(
            "regularize.omega wants gradients that flow back through the states of a cell, by weights, and none did; take a cell "
            "with recurrent weights and --learner bptt, or leave regularize.omega out"
        )
    return total


def _omega_of(cell: Cell, steps: Sequence[Step]) -> Tensor:
    u = tmap(lambda *parts: torch.cat(parts), *(step.u for step in steps))
    before = tmap(lambda *parts: torch.cat(parts), *(step.before for step in steps))
    befores = [leaf.requires_grad_() for leaf in floating(before)]
    with _without_noise(cell), torch.enable_grad():
        afters = list(floating(cell.step(u, before)[1]))
        directions, counted = _directions(steps)
        known = [(after, one) for after, one in zip(afters, directions, strict=True) if after.requires_grad]
        ends, cotangents = zip(*known, strict=True) if known else ((), ())
        back = torch.autograd.grad(ends, befores, cotangents, create_graph=True, allow_unused=True) if known else ()
        found = [one.flatten(1).square().sum(1) for one in back if one is not None]
        if not found:  # what it remembers does not hang on what it remembered
            return counted.new_zeros((), dtype=directions[0].dtype)
        squares = torch.stack(found).sum(0)
        return torch.where(counted, (squares - 1).square(), 0.0).sum() / counted.sum().clamp(min=1)


def _directions(steps: Sequence[Step]) -> tuple[list[Tensor], Tensor]:
    """The gradients of all the steps, field by field `[steps * batch, ...]`, each row of all fields together of norm 1; and which
    rows had one, bool."""
    fields = []
    for place, like in enumerate(floating(steps[0].before)):
        parts = (step.gradients[place] for step in steps)
        rows = (next(leaves(step.before)).shape[0] for step in steps)
        filled = [
            like.new_zeros(row, *like.shape[1:]) if one is None else one for one, row in zip(parts, rows, strict=True)
        ]
        fields.append(torch.cat(filled))
    squares = torch.stack([field.flatten(1).square().sum(1) for field in fields]).sum(0)
    counted = (squares >= LEAST) & squares.isfinite()
    shares = torch.where(counted, squares, 1.0).rsqrt() * counted
    units = [torch.where(_beside(counted, field), field, 0.0) * _beside(shares, field) for field in fields]
    return units, counted


def add_omega_gradient(steps: Sequence[Step], weight: float) -> float:
    """Add the gradient of `weight` times `omega` to the `.grad` of the recurrent matrices: those that the cells' steps use. Returns
    Omega. Raises UsageError where no gradient came to any step."""
    total = omega(steps)
    cells = {step.cell for step in steps}
    matrices = [one for one in _once(cells) if one.dim() > 1]
    _add_gradient(weight * total, matrices)
    return float(total.detach())


# --- Lyapunov exponents -------------------------------------------------------------------------------------------------


def lyapunov(
    cell: Cell, xs: Tensor, state: State, k: int | None = None, *, lengths: Tensor | None = None, warmup: int = 0
) -> Tensor:
    """The `k` largest Lyapunov exponents of a cell driven by `xs`, `[batch, k]`, in nats a step, largest first as far as they have
    settled: how fast states close together part (above 0) or meet (below 0).

        Q_t R_t = J_t Q_(t-1),    J_t = ds_t/ds_(t-1),    lambda_i = mean over t of log |R_t,ii|

    with s all floating fields of the state, h and c of an LSTM; `k` None takes as many as there are. It wants one product
    with the Jacobian for each exponent and step, and no Jacobian itself (Benettin et al. 1980; Engelken, Wolf & Abbott 2023,
    arXiv:2006.02427, for recurrent networks). Q_0 is the same random one in each call. The first `warmup` steps are not
    counted, nor those past a row's length; a row of no steps has zeros. Differentiable in the weights, the state and `xs`.

    Raises UsageError for a `k` that is not between 1 and the size of the state, and where no step is left to count.
    """
    size = sum(leaf[0].numel() for leaf in floating(cell.initial_state(1)))
    k = size if k is None else k
    if not 1 <= k <= size:
        raise UsageError(f"{k} Lyapunov exponents of a state of {size} numbers were asked for, wanted 1 to {size}")
    if not 0 <= warmup < xs.shape[1]:
        raise UsageError(f"warmup was {warmup} of {xs.shape[1]} steps, wanted at least 0 and a step after it")
    floor = torch.finfo(next(floating(state)).dtype).tiny
    q, logs = _frame(state, size, k), []
    with parametrize.cached():
        us = cell.project(masked(xs, lengths))
        for t in range(xs.shape[1]):
            state, turned = _pushed(cell, tmap(lambda u, t=t: u[:, t], us), state, q)
            q, r = torch.linalg.qr(turned)
            logs.append(r.diagonal(dim1=1, dim2=2).abs().clamp(min=floor).log())
    rates = torch.stack(logs[warmup:], 1)
    if lengths is None:
        return rates.mean(1)
    real = torch.arange(warmup, xs.shape[1], device=xs.device) < lengths[:, None]
    return torch.where(real[..., None], rates, 0.0).sum(1) / real.sum(1, keepdim=True).clamp(min=1)


def _frame(state: State, size: int, k: int) -> Tensor:
    """Orthonormal columns `[batch, size, k]`, the same for each row."""
    like = next(floating(state))
    drawn = torch.randn(size, k, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(drawn)[0].to(like).expand(like.shape[0], -1, -1)


def _pushed(cell: Cell, u: State, state: State, q: Tensor) -> tuple[State, Tensor]:
    """The next state, and the Jacobian of its floating fields times the columns of `q`."""

    def moved(values: Tensor) -> Tensor:
        return flat(cell.step(u, unflat(state, values))[1])

    def along(column: Tensor) -> Tensor:
        return cast(Tensor, torch.func.jvp(moved, (flat(state),), (column,))[1])

    return cell.step(u, state)[1], torch.func.vmap(along, in_dims=2, out_dims=2)(q)


def flossing(runs: Sequence[Run], k: int) -> Tensor:
    """The mean square of the `k` largest Lyapunov exponents of each cell over what it was run over (gradient flossing: Engelken
    2023, arXiv:2312.17306): with exponents at 0, gradients neither vanish nor explode along these directions. A scalar, the
    mean over runs and at most 8 rows of each."""
    if not runs:
        raise UsageError(
            "regularize.flossing wants cells that are run over whole sequences, and this model steps them one by one; "
            "leave regularize.flossing out"
        )
    return torch.stack([_flossed(run, k) for run in runs]).mean()


def _flossed(run: Run, k: int) -> Tensor:
    state = tmap(lambda leaf: leaf[:ROWS], run.state)
    lengths = None if run.lengths is None else run.lengths[:ROWS]
    with _without_noise(run.cell):
        return lyapunov(run.cell, run.xs[:ROWS], state, k, lengths=lengths).square().mean()


def add_flossing_gradient(runs: Sequence[Run], k: int, weight: float) -> float:
    """Add the gradient of `weight` times `flossing` to the `.grad` of the cells' parameters. Returns the penalty."""
    total = flossing(runs, k)
    _add_gradient(weight * total, _once(run.cell for run in runs))
    return float(total.detach())


# --- Gradients before an update -----------------------------------------------------------------------------------------


@torch.no_grad()
def clip_units(parameters: Iterable[nn.Parameter], most: float, least: float = 1e-3) -> bool:
    """Adaptive gradient clipping (Brock et al. 2021, arXiv:2102.06171), in place: the gradient of the weights into each unit, the
    rows of a matrix (of fused weights those of each gate), is at most `most` times the norm of these weights, or of `least`
    where they are smaller; a vector is one unit. Returns whether any was clipped. The paper leaves the readout alone; this
    clips all."""
    cut = False
    for parameter in parameters:
        if parameter.grad is None:
            continue
        weights, gradients = (one.flatten(1) if one.dim() > 1 else one[None] for one in (parameter, parameter.grad))
        limits = most * weights.norm(dim=1, keepdim=True).clamp(min=least)
        norms = gradients.norm(dim=1, keepdim=True)
        gradients.mul_(torch.where(norms > limits, limits / norms, 1.0))
        cut = cut or bool((norms > limits).any())
    return cut


@torch.no_grad()
def add_noise(parameters: Iterable[nn.Parameter], eta: float, step: int, seed: int) -> None:
    """Add noise from N(0, eta / (1 + step)^0.55) to each entry of each gradient (Neelakantan et al. 2015, arXiv:1511.06807). It is
    a function of the seed and the step, drawn beside torch's own random numbers."""
    generator = seeded(seed, step)
    deviation = (eta / (1 + step) ** 0.55) ** 0.5
    for parameter in parameters:
        if parameter.grad is not None:
            drawn = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.grad.add_(drawn.to(parameter.device), alpha=deviation)


def _add_gradient(penalty: Tensor, parameters: Sequence[nn.Parameter]) -> None:
    if not penalty.requires_grad:
        return
    for parameter, gradient in zip(
        parameters, torch.autograd.grad(penalty, parameters, allow_unused=True), strict=True
    ):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)


def _once(cells: Iterable[Cell]) -> list[nn.Parameter]:
    """The parameters of the cells that learn, each once."""
    found = {id(one): one for cell in cells for one in cell.parameters() if one.requires_grad}
    return list(found.values())


@contextmanager
def _without_noise(cell: Cell) -> Iterator[None]:
    was_training = cell.training
    cell.eval()
    try:
        yield
    finally:
        cell.train(was_training)


def _beside(rows: Tensor, like: Tensor) -> Tensor:
    return rows.view(-1, *[1] * (like.dim() - 1))
