"""Where the state goes: its path on few axes, and the points where it would stay."""

from collections.abc import Callable
from copy import deepcopy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.func import jacrev, vmap

from recurra import kernels
from recurra.cells import Cell
from recurra.errors import UsageError
from recurra.probe.record import Track
from recurra.state import State, flat, named, tmap, unflat, within

MOST_SIZE = 1024  # numbers of a state whose fixed points are looked for: each step solves systems of that size
APART = (
    1e-2  # of the norm of the states at the start or, where that is longer, at the end: points closer than that are one
)
STILL = 1e-4  # as a share of it too: a state that moves by less is a fixed point
DAMPING = (1e-3, 10.0, 1e8)  # of the first step; its change where a step fails or helps; and when to give up
TINY, LEAST = 1e-13, 1e-6  # of a damping and a rest; of the norm of states
AT_ONCE = 2**24  # numbers of Jacobians

Map = Callable[[Tensor], Tensor]


class Trajectory(NamedTuple):
    """A field of the state on its principal components.

    points    [rows, time, axes], NaN past a row's end
    share     [axes]: of the variance
    axes      [axes, units], orthonormal; mean: [units]
    """

    layer: str
    field: str
    points: np.ndarray
    share: np.ndarray
    axes: np.ndarray
    mean: np.ndarray
    words: list[str]

    def on(self, states: np.ndarray) -> np.ndarray:
        """Where other states `[..., units]` of the same field lie, `[..., axes]`."""
        return (states - self.mean) @ self.axes.T


def trajectory(track: Track, field: str | None = None, axes: int = 3) -> Trajectory:
    """The path of a field of a cell's state, its first unless it is said, on the axes on which it varies most: the principal
    components of all steps of all rows (Pearson 1901). Raises UsageError for a field that it has not."""
    states = track.states()
    field = next(iter(states)) if field is None else field
    if field not in states:
        raise UsageError(f"{track.name} has no state called {field!r}; it has {', '.join(states)}")
    values = track.in_order(states[field].flatten(2)).double()
    real = torch.ones(values.shape[:2], dtype=torch.bool)
    if track.lengths is not None:
        real = within(track.lengths, track.steps)
    seen = values[real]
    mean = seen.mean(0)
    _, spread, directions = torch.linalg.svd(seen - mean, full_matrices=False)
    axes = min(axes, len(directions))
    # An axis points where its largest entry is positive: the sign of a singular vector is nobody's choice.
    largest = directions[:axes].abs().argmax(1, keepdim=True)
    turned = directions[:axes] * directions[:axes].gather(1, largest).sign()
    share = (spread.square() / spread.square().sum().clamp(min=1e-30)).numpy()
    points = ((values - mean) @ turned.T).masked_fill(~real[..., None], torch.nan)
    many = int(np.searchsorted(np.cumsum(share), 0.9) + 1)
    words = [f"{track.name}: {many} of {len(mean)} directions hold 90 % of the variance of {field}."]
    return Trajectory(track.name, field, points.numpy(), share[:axes], turned.numpy(), mean.numpy(), words)


class FixedPoints(NamedTuple):
    """States at which a cell would stay while its input stays the same.

    states         [n, S]: all floating fields side by side, `names` says which; the most visited first
    speed          [n]: |F(s) - s|
    eigenvalues    [n, S] complex: of dF/ds there, the largest first
    stable         bool [n]: all eigenvalues lie inside the unit circle
    started        [n]: how many of the starts came to it
    """

    names: list[str]
    states: np.ndarray
    speed: np.ndarray
    eigenvalues: np.ndarray
    stable: np.ndarray
    started: np.ndarray
    words: list[str]


def fixed_points(cell: Cell, x: Tensor, states: State, *, steps: int = 100) -> FixedPoints:
    """The states s at which F(s) = s, with F the step of the cell at the constant input `x` `[features]` (an integer, for a cell
    that reads tokens), as far as a search that starts from each row of `states` finds them.

        minimise q(s) = |F(s) - s|^2 / 2    (Sussillo & Barak 2013, doi:10.1162/NECO_a_00409)

    by at most `steps` steps of Levenberg and Marquardt, so that saddles are found as well as what attracts. A point counts where
    the state moves by less than 1e-4 of the norm of the states, and points closer than 1e-2 of it are one. What is there is judged
    by the eigenvalues of dF/ds: stable where all are inside the unit circle, a saddle where some are.

    Raises UsageError for a state of more than 1,024 numbers.
    """
    start = flat(states).detach().double()
    if start.shape[1] > MOST_SIZE:
        raise UsageError(
            f"fixed points of a state of {start.shape[1]} numbers were asked for, and {MOST_SIZE} are looked for at most"
        )
    wide = deepcopy(cell).double().eval()
    like = tmap(lambda leaf: leaf[:1].double() if leaf.is_floating_point() else leaf[:1], states)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), kernels.reference():
        u = tmap(
            lambda leaf: leaf[:, 0], wide.project(x[None, None].double() if x.is_floating_point() else x[None, None])
        )

        def moved(one: Tensor) -> Tensor:
            return flat(wide.step(u, unflat(like, one[None]))[1])[0]

        after, slopes = vmap(moved), vmap(jacrev(moved), chunk_size=max(1, AT_ONCE // start.shape[1] ** 2))
        found = _descended(after, slopes, start, steps)
        speeds = (after(found) - found).norm(dim=1)
        size = max(float(one.norm(dim=1).mean()) for one in (start, found))
        points, started = _gathered(found, speeds, max(size, LEAST))
        by_size = lambda values: values.gather(1, values.abs().argsort(1, descending=True))  # noqa: E731
        eigenvalues = by_size(torch.linalg.eigvals(slopes(points))) if len(points) else points.to(torch.cdouble)
        speed = (after(points) - points).norm(dim=1) if len(points) else points.new_zeros(0)
    stable = (eigenvalues.abs() < 1).all(1).numpy()
    words = _words(stable, eigenvalues.numpy(), started, len(start))
    names = [name for name, leaf in named(states).items() if leaf.is_floating_point()]
    return FixedPoints(names, points.numpy(), speed.numpy(), eigenvalues.numpy(), stable, started, words)


def _descended(after: Map, slopes: Map, states: Tensor, steps: int) -> Tensor:
    """The states `[n, S]` after so many steps towards the least of |F(s) - s|, each with its own damping."""
    first, change, most = DAMPING
    damping = states.new_full((len(states),), first)
    apart = after(states) - states
    eye = torch.eye(states.shape[1], dtype=states.dtype)
    for _ in range(steps):
        going = (apart.norm(dim=1) > TINY) & (damping < most)
        if not going.any():
            break
        slope = slopes(states[going]) - eye
        sides = slope.mT @ slope
        sides.diagonal(dim1=1, dim2=2).add_(damping[going, None])
        tried = states[going] - torch.linalg.solve(sides, (slope.mT @ apart[going, :, None]))[:, :, 0]
        left = after(tried) - tried
        better = left.norm(dim=1) < apart[going].norm(dim=1)
        at = going.nonzero()[:, 0]
        states, apart = states.clone(), apart.clone()
        states[at[better]], apart[at[better]] = tried[better], left[better]
        damping[at] = torch.where(better, (damping[at] / change).clamp(min=TINY), damping[at] * change)
    return states


def _gathered(found: Tensor, speeds: Tensor, scale: float) -> tuple[Tensor, np.ndarray]:
    """The points, each once, those that most starts came to first; and how many came."""
    points: list[Tensor] = []
    counts: list[int] = []
    for at in speeds.argsort().tolist():
        if not speeds[at] < STILL * scale:
            break
        near = [k for k, one in enumerate(points) if (found[at] - one).norm() < APART * scale]
        if near:
            counts[near[0]] += 1
        else:
            points.append(found[at])
            counts.append(1)
    order = sorted(range(len(points)), key=lambda k: -counts[k])
    nothing = found.new_zeros(0, found.shape[1])
    return torch.stack([points[k] for k in order]) if points else nothing, np.array(
        [counts[k] for k in order], np.int64
    )


def _words(stable: np.ndarray, eigenvalues: np.ndarray, started: np.ndarray, starts: int) -> list[str]:
    if not len(stable):
        return [f"No fixed point was found from {starts} states: with its input held, it keeps moving."]
    outside = (np.abs(eigenvalues) >= 1).sum(1)
    saddles = int(((outside > 0) & (outside < eigenvalues.shape[1])).sum())
    slowest = float(np.abs(eigenvalues[stable]).max()) if stable.any() else None
    many = f"{len(stable)} fixed points were" if len(stable) > 1 else "1 fixed point was"
    words = [
        f"With its input held, {many} found from {int(started.sum())} of {starts} states: "
        f"{int(stable.sum())} stable, {saddles} saddles."
    ]
    if slowest is not None and 0 < slowest < 1:
        words.append(f"The slowest way back to a stable one halves in {-np.log(2) / np.log(slowest):.1f} steps.")
    return words
