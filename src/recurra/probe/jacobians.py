"""The Jacobians of a cell along a sequence: singular values, of their products too, eigenvalues of the weights, exponents."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from recurra.cells import Cell
from recurra.errors import UsageError
from recurra.probe.flow import LayerFlow
from recurra.probe.record import Track, at_rest
from recurra.stability import lyapunov
from recurra.state import flat, floating, tmap

MOST_SIZE = 2048  # numbers of a state whose Jacobians are made
MOST_NUMBERS = 2**25  # of all Jacobians that are held at once
AT_ONCE = 2**22  # numbers that the states of one backward pass may have


class Jacobians(NamedTuple):
    """Of one cell, along the first row, with s the whole state (h and c of an LSTM), S numbers:

    times        [n]: the steps t that were looked at, one after another, counted as the cell goes
    matrices     [n, S, S]: J_t = ds_t/ds_(t-1), rows after, columns before
    singular     [n, S]: singular values of each, the largest first
    products     [n, S]: those of J_t ... J_(t-j) for t the last of the times and j = 0..n-1; those below 1e-15 times the largest
                 are rounding
    eigenvalues  by block of the recurrent weights (the gate's name), complex [units]; of a block that is not square there are none
    exponents    [m]: the largest Lyapunov exponents in nats a step, over the whole sequence
    """

    layer: str
    times: np.ndarray
    matrices: np.ndarray
    singular: np.ndarray
    products: np.ndarray
    eigenvalues: dict[str, np.ndarray]
    exponents: np.ndarray
    words: list[str]


def jacobians(
    track: Track, *, steps: int = 16, last: int | None = None, exponents: int = 4, flow: LayerFlow | None = None
) -> Jacobians:
    """The Jacobians of the cell of a track over `steps` steps up to `last` (the end, unless it is said), and what they say of
    gradients: going back through j steps, a gradient is multiplied by J_t ... J_(t-j+1), transposed; its norm changes by a factor
    between the least and the largest singular value of the product, and in the long run by exp(lambda_1) a step at most
    (lambda_1 the largest exponent). With `flow`, the decay that was measured stands beside it.

    Takes fewer steps where the matrices would be too large. Raises UsageError for steps or a last one that are not there, and for a
    state of more than 2,048 numbers (`stability.lyapunov` has the exponents without the matrices).
    """
    length = track.steps if track.lengths is None else int(track.lengths[0])
    end = length if last is None else last + 1
    if steps < 1 or not 1 <= end <= length:
        raise UsageError(
            f"{steps} steps up to step {end - 1} were asked for, of a row of {length} steps; wanted some of them"
        )
    size = flat(track.start).shape[1]
    if size > MOST_SIZE:
        raise UsageError(
            f"the state of {track.name} has {size:,} numbers, and Jacobians are made of {MOST_SIZE:,} at most; "
            "stability.lyapunov says its exponents"
        )
    steps = max(1, min(steps, end, MOST_NUMBERS // size**2))
    times = np.arange(end - steps, end)
    with at_rest(track.cell), parametrize.cached():
        matrices = torch.stack([_jacobian(track, int(t)) for t in times]).double()
        rates = _exponents(track, min(exponents, size), length)
    singular = torch.linalg.svdvals(matrices).numpy()
    products = _products(matrices)
    values = eigenvalues(track.cell)
    words = _words(track.name, singular, products, values, rates, flow)
    return Jacobians(track.name, times, matrices.numpy(), singular, products, values, rates, words)


def eigenvalues(cell: Cell) -> dict[str, np.ndarray]:
    """Those of each square block of a cell's `weight_hh`, by the name of its gate. For tanh units, gradients vanish where the
    largest is below 1 in modulus and the matrix normal; they can explode only where the largest singular value is above 1
    (Pascanu et al. 2013, section 2.2)."""
    with at_rest(cell):  # a weight that is drawn anew is not the one that is meant
        inner = next((part for part in cell.modules() if isinstance(part, Cell) and hasattr(part, "weight_hh")), None)
        if inner is None or not inner.blocks:
            return {}
        blocks = inner.weight_hh.detach().double().chunk(len(inner.blocks))
    named = zip(inner.blocks, blocks, strict=True)
    return {name: torch.linalg.eigvals(block).numpy() for name, block in named if block.shape[0] == block.shape[1]}


def _jacobian(track: Track, t: int) -> Tensor:
    """ds_t/ds_(t-1) [S, S] of the first row. Rows do not see each other, so that S copies of the row have one backward pass."""
    at = lambda tree, rows: tmap(lambda leaf: leaf[:1, t].expand(rows, *leaf.shape[2:]), tree)  # noqa: E731
    size = flat(track.start).shape[1]
    chunk = max(1, AT_ONCE // (8 * size))
    parts = []
    for begin in range(0, size, chunk):
        rows = min(chunk, size - begin)
        before = tmap(lambda leaf: leaf.clone().requires_grad_(leaf.is_floating_point()), at(track.before, rows))
        with torch.enable_grad():
            after = flat(track.cell.step(at(track.us, rows), before)[1])
        ones = torch.zeros_like(after)
        ones[torch.arange(rows), begin + torch.arange(rows)] = 1
        found = torch.autograd.grad(after, list(floating(before)), ones, allow_unused=True, materialize_grads=True)
        parts.append(torch.cat([one.flatten(1) for one in found], 1))
    return torch.cat(parts)


def _products(matrices: Tensor) -> np.ndarray:
    """Singular values [n, S] of the last, of the last two, and so on."""
    product, found = matrices[-1], []
    for back in range(1, len(matrices) + 1):
        found.append(torch.linalg.svdvals(product))
        if back < len(matrices):
            product = product @ matrices[-1 - back]
    return torch.stack(found).numpy()


@torch.no_grad()
def _exponents(track: Track, count: int, length: int) -> np.ndarray:
    if count < 1 or track.xs.shape[1] < length or not length:
        return np.zeros(0)
    start = tmap(lambda leaf: leaf[:1], track.start)
    warmup = min(length // 4, 50)
    return lyapunov(track.cell, track.xs[:1, :length], start, count, warmup=warmup)[0].double().numpy()


def _words(
    layer: str, singular: np.ndarray, products: np.ndarray, values: dict[str, np.ndarray], rates: np.ndarray,
    flow: LayerFlow | None,
) -> list[str]:  # fmt: skip
    steps = len(products)
    words = [
        f"{layer}: the largest singular value of a step is {singular[:, 0].mean():.3f} in the mean; through {steps} steps a "
        f"gradient grows at most by a factor of {products[-1, 0]:.3g}, {products[-1, 0] ** (1 / steps):.3f} a step."
    ]
    for name, block in values.items():
        words.append(
            f"{layer}: the largest eigenvalue of the recurrent weights of {name} has modulus {np.abs(block).max():.3f}."
        )
    if len(rates):
        factor = math.exp(min(rates[0], 700.0))
        kind = "states part: chaos" if rates[0] > 0 else "states come together: it forgets where it began"
        beside = f", and {flow.decay:.3f} was measured" if flow is not None and not math.isnan(flow.decay) else ""
        words.append(
            f"{layer}: the largest Lyapunov exponent is {rates[0]:.4f} nats a step ({kind}); gradients change in the long run by a "
            f"factor of {factor:.3f} a step at most{beside}."
        )
    return words
