"""How gradients flow back through time: their norms by step and by distance, and the lectures' sum, term by term."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from recurra.cells import Cell
from recurra.errors import UsageError
from recurra.probe.record import Record, Track, at_rest
from recurra.state import State

MOST = 32  # losses whose gradients are followed: the rows of one backward sweep
LEFT = 0.01  # the share of a gradient below which nothing is learnt from it
ROUNDING = 1e-12  # the share below which a norm is rounding and no decay is fitted to it
GROWTH = 10.0  # how many times as large a gradient is somewhere on its way, to be called exploding
LONG = 50  # steps that a memory should reach, where the sequence is long enough to tell
MOST_BYTES = 2**30  # that the terms of the sum may take


class LayerFlow(NamedTuple):
    """Gradients at one field of the state of one cell.

    map        [t, k]: the norm of dL_t/ds_k, s_k the field after step k, NaN where s_k does not reach L_t; over several rows the
               root of the mean square
    distance   [d]: steps between s_k and L_t; or to the cell's own end, where losses stand elsewhere than its steps
    profile    [d]: the norm at that distance, root of the mean square over all pairs
    decay      the factor by which the profile changes each step, fitted to its logarithm; NaN where there is nothing to fit
    memory     the first distance at which the profile is below 1 % of what it was at distance 0; None where it never is
    verdict    healthy, vanishing, exploding or silent
    """

    name: str
    field: str
    map: np.ndarray
    distance: np.ndarray
    profile: np.ndarray
    decay: float
    memory: int | None
    verdict: str


class Flow(NamedTuple):
    """Of which losses (`times` [t], steps counted from 0), the gradients at each field of each cell, and what they mean."""

    times: np.ndarray
    layers: list[LayerFlow]
    words: list[str]


def flow(seen: Record, *, most: int = MOST, needed: int | None = None, elsewhere: Sequence[str] = ()) -> Flow:
    """The norms of dL_t/ds_k for at most `most` losses, evenly spread, the last among them.

        dL_t/ds_k = dL_t/ds_t  prod_(j=k+1..t) ds_j/ds_(j-1)        (Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063, eq. 5)

    s_k is one field of the state as the step put it out, and the derivative is total: what a change of c_k does through the h_k of
    the same step counts, and so do ways through the layers above. All losses go back in one sweep of autograd, as its rows.

    A network vanishes where less than 1 % is left after fewer than `needed` steps (half of the distances there are, at most 50,
    unless it is said), and explodes where a gradient grows to more than ten times what it was. Raises UsageError for `most`
    below 1.

    Cells that do not go along with the losses are those with other numbers of steps, and those whose names begin with one of
    `elsewhere`: the encoder of an encoder-decoder may by chance have as many. Their distances count from their own end. Of cells
    that go along, a gradient may come from the other direction through a bidirectional layer above: the map shows it, the
    profile, which is along the cell's own way, leaves it out.
    """
    if most < 1:
        raise UsageError(f"the gradients of {most} losses were asked for, wanted at least 1")
    count = seen.losses.shape[1]
    times = np.unique(np.linspace(count - 1, 0, min(most, count)).round().astype(int))
    fields = [(track, name) for track in seen.tracks for name in track.after[0]]
    places = [step[name] for track, name in fields for step in track.after]
    found = torch.autograd.grad(
        seen.losses.sum(0)[torch.from_numpy(times)],  # rows do not see each other
        places,
        torch.eye(len(times), dtype=seen.losses.dtype),
        is_grads_batched=True,
        retain_graph=True,
        allow_unused=True,
    )
    waiting = iter(found)
    layers = []
    for track, name in fields:
        norms = _norms([next(waiting) for _ in track.after], track.after[0][name], len(times))
        layers.append(_layer(track, name, norms, times, _go_along(track, count, elsewhere), needed))
    return Flow(times, layers, _words(layers, all(track.gates for track in seen.tracks)))


def _norms(gradients: list[Tensor | None], like: Tensor, count: int) -> Tensor:
    """[t, rows, steps], in float64: squares of small gradients are nothing in float32."""
    nothing = like.new_zeros(count, *like.shape)
    by_step = torch.stack([nothing if one is None else one for one in gradients], 2).flatten(3)
    return torch.linalg.vector_norm(by_step, dim=3, dtype=torch.float64)


def _go_along(track: Track, count: int, elsewhere: Sequence[str]) -> bool:
    """Whether the steps of a cell are those of the losses."""
    return count == track.steps and count > 1 and not track.name.startswith(tuple(elsewhere))


def _layer(track: Track, field: str, norms: Tensor, times: np.ndarray, along: bool, needed: int | None) -> LayerFlow:
    """`norms` [t, rows, steps], as the cell went."""
    if track.backwards:
        norms = torch.stack([track.in_order(one) for one in norms])
    squares, (apart, inside) = norms.square().numpy(), _distances(track, times, along)
    real = apart >= 0
    pairs = np.where((inside & (real | (squares > 0))).any(1), inside.sum(1), 0)
    map_ = np.sqrt(np.divide((squares * inside).sum(1), pairs, out=np.full(pairs.shape, np.nan), where=pairs > 0))
    numbers = np.bincount(apart[real])
    sums = np.bincount(apart[real], weights=squares[real])
    distance = np.flatnonzero(numbers)
    profile = np.sqrt(sums[distance] / numbers[distance])
    decay, memory = _decay(distance, profile), _memory(distance, profile)
    wanted = min(LONG, int(distance.max(initial=0)) // 2) if needed is None else needed
    verdict = _verdict(profile, memory, wanted)
    return LayerFlow(track.name, field, map_, distance, profile, decay, memory, verdict)


def _distances(track: Track, times: np.ndarray, along: bool) -> tuple[np.ndarray, np.ndarray]:
    """Steps from each step of the cell to each loss, [t, rows, steps] in the order of the sequence, -1 where there is no way along
    the cell; and which of these pairs are before the row's end, bool."""
    rows = len(next(iter(track.after[0].values())))
    lengths = np.full(rows, track.steps) if track.lengths is None else track.lengths.numpy()
    at = np.arange(track.steps)
    shape = (len(times), rows, track.steps)
    inside = np.broadcast_to(at < lengths[:, None], shape)
    if along:
        apart = (times[:, None] - at) * (-1 if track.backwards else 1)
        apart = np.broadcast_to(apart[:, None], shape)
        inside = inside & (times[:, None] < lengths)[:, :, None]
    else:
        own = np.broadcast_to(at, shape[1:]) if track.backwards else lengths[:, None] - 1 - at
        apart = np.broadcast_to(own, shape)
    return np.where(inside, np.maximum(apart, -1), -1), inside


def _decay(distance: np.ndarray, profile: np.ndarray) -> float:
    """The factor a step, by least squares through the logarithms, as far as they are more than rounding."""
    with np.errstate(invalid="ignore"):
        fits = np.isfinite(profile) & (profile > ROUNDING * profile.max(initial=0.0))
    fits = np.logical_and.accumulate(fits)
    if fits.sum() < 2:
        return math.nan
    return float(np.exp(np.polyfit(distance[fits], np.log(profile[fits]), 1)[0]))


def _memory(distance: np.ndarray, profile: np.ndarray) -> int | None:
    below = np.flatnonzero(profile < LEFT * profile[:1])
    return int(distance[below[0]]) if len(below) else None


def _verdict(profile: np.ndarray, memory: int | None, needed: int) -> str:
    if not len(profile) or not np.nan_to_num(profile, nan=1.0).any():
        return "silent"
    if not np.isfinite(profile).all() or profile.max() > GROWTH * profile[0] > 0:
        return "exploding"
    return "vanishing" if memory is not None and memory < needed else "healthy"


def _words(layers: list[LayerFlow], gated: bool) -> list[str]:
    """A sentence for each cell, by the field that holds longest, and what to try."""
    best = longest(layers)
    words = [f"{one.name}: {_sentence(one)}" for one in best]
    verdicts = {one.verdict for one in best}
    if "vanishing" in verdicts:
        other = "" if gated else "a gated cell (--cell lstm or gru), "
        words.append(
            f"What to try against vanishing: {other}one that starts by remembering "
            "(--set model.init=chrono or keras), orthogonal recurrent weights (--set model.init=orthogonal), or a penalty on it "
            "(--set regularize.omega=1)."
        )
    if "exploding" in verdicts:
        words.append(
            "What to try against exploding: clip the gradient (--set optimizer.clip=1), smaller recurrent weights "
            "(--set model.init=orthogonal), or a penalty on it (--set regularize.omega=1)."
        )
    return words


def longest(layers: Sequence[LayerFlow]) -> list[LayerFlow]:
    """Of each cell the field that holds longest."""
    by_cell: dict[str, list[LayerFlow]] = {}
    for one in layers:
        by_cell.setdefault(one.name, []).append(one)
    return [max(fields, key=_reach) for fields in by_cell.values()]


def _reach(one: LayerFlow) -> tuple[bool, float]:
    return one.verdict != "silent", math.inf if one.memory is None else one.memory


def _sentence(one: LayerFlow) -> str:
    if one.verdict == "silent":
        return "silent: no gradient comes to it."
    farthest = int(one.distance.max(initial=0))
    reach = (
        f"1 % of the gradient is left after {one.memory} steps"
        if one.memory is not None
        else f"more than 1 % of the gradient is left after all {farthest} steps"
    )
    each = "" if math.isnan(one.decay) else f"; it changes by a factor of {one.decay:.3f} a step"
    return f"{one.verdict}: {reach} (field {one.field}){each}."


class Terms(NamedTuple):
    """dL_t/dtheta as a sum over steps: for each parameter by name its terms `[k, ...]`, of steps k = 0..t, and the step t."""

    t: int
    parts: dict[str, np.ndarray]

    def total(self, name: str) -> np.ndarray:
        """The gradient itself: the sum of the terms."""
        return self.parts[name].sum(0)

    @property
    def words(self) -> list[str]:
        """How near the steps are that make the gradients."""
        halves = {}
        for name in self.parts:
            norms = self.norms(name)
            if norms.sum() > 0:
                halves[name] = int(np.searchsorted(np.cumsum(norms[::-1]), 0.5 * norms.sum())) + 1
        if not halves:
            return []
        far = max(halves, key=lambda name: halves[name])
        return [
            f"The gradient of step {self.t} as a sum over steps: of {far}, which reaches farthest, half of the terms' norm lies in "
            f"the last {halves[far]} of {self.t + 1} steps."
        ]

    def norms(self, name: str) -> np.ndarray:
        """[k]: how much each step contributes."""
        return np.sqrt(np.square(self.parts[name]).reshape(self.t + 1, -1).sum(1))


def terms(
    cell: Cell, xs: Tensor, loss: Callable[[Tensor], Tensor], t: int | None = None, state: State | None = None
) -> Terms:
    """The gradient of the loss at step `t` (the last, unless it is said), as the lectures write it:

        dE_t/dtheta = sum_(k=0..t)  dE_t/dy_t  dy_t/dh_t  (prod_(j=k+1..t) dh_j/dh_(j-1))  d+h_k/dtheta

    with d+ the immediate derivative: h_(k-1) is held still. `xs` `[rows, time, ...]` are inputs of `cell`, and `loss` makes one
    number of its output `[rows, output_size]` at step t. Each step gets its own copy of the weights, and the gradient of copy k
    is term k; so it is for every parameter of every cell: `weight_hh` (the lectures' W), `weight_ih` (U), biases, and the
    readout (V), whose only term is that of step t. A learnt start counts to the term of step 0.

    On indices: the product runs over j = k+1..t, so that the term k = t has none (the identity); a slide whose product begins at
    j = k applies one Jacobian too many. The sum begins with the first step that has weights, k = 0 here and k = 1 where inputs
    are counted from 1; h_(-1), the start, has no immediate derivative unless it is learnt.

    Raises UsageError for a t that is no step, and where the terms would take more than 1 GiB.
    """
    t = xs.shape[1] - 1 if t is None else t
    if not 0 <= t < xs.shape[1]:
        raise UsageError(
            f"the terms of step {t} of {xs.shape[1]} were asked for, wanted a step from 0 to {xs.shape[1] - 1}"
        )
    parameters = {name: one.detach() for name, one in cell.named_parameters()}
    needed = (t + 1) * sum(one.nbytes for one in parameters.values())
    if needed > MOST_BYTES:
        raise UsageError(
            f"the terms of {t + 1} steps would take {needed / 2**30:.1f} GiB, and 1 are taken at most; ask for an earlier step, of "
            "fewer inputs, or of a smaller network"
        )
    start = _Start(cell)
    copies = [{name: one.clone().requires_grad_() for name, one in parameters.items()} for _ in range(t + 1)]
    with at_rest(cell), torch.enable_grad():
        if state is None:
            state = functional_call(start, {f"cell.{name}": one for name, one in copies[0].items()}, (len(xs),))
        for k, own in enumerate(copies):
            y, state = functional_call(cell, own, (xs[:, k], state))
        found = torch.autograd.grad(
            loss(y), [one for own in copies for one in own.values()], allow_unused=True, materialize_grads=True
        )
    waiting = iter(found)
    by_step = [[next(waiting).numpy() for _ in parameters] for _ in copies]
    return Terms(t, {name: np.stack(parts) for name, parts in zip(parameters, zip(*by_step, strict=True), strict=True)})


class _Start(nn.Module):
    """The start of a cell, as a call with parameters."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, rows: int) -> State:
        return self.cell.initial_state(rows)
