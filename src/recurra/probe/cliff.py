"""The loss over a plane of parameters: cliffs, and where a step of descent lands with and without clipping."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from recurra.errors import UsageError
from recurra.probe.record import at_rest

STEEP = 10.0  # how many times the median a gradient is at its steepest, for the plane to have a cliff

Direction = str | Mapping[str, Tensor]


class Cliff(NamedTuple):
    """The loss around where a model stands, at theta + a A + b B for the two directions A and B.

    names       of the directions
    a, b        [n], [m]: how far along each, 0 where the model stands; of a single parameter its value itself
    loss        [n, m], inf where it is not finite
    here        (a, b) of the model
    gradient    the slope of the loss along A and B, here
    norm        of the whole gradient, of all parameters, here
    plain       (a, b) where a step of descent lands, as far as it lies in the plane
    clipped     the same of a step whose gradient was clipped to the norm `most`
    """

    names: tuple[str, str]
    a: np.ndarray
    b: np.ndarray
    loss: np.ndarray
    here: tuple[float, float]
    gradient: tuple[float, float]
    norm: float
    most: float
    plain: tuple[float, float]
    clipped: tuple[float, float]
    words: list[str]


def cliff(
    model: nn.Module,
    loss: Callable[[], Tensor],
    along: tuple[Direction, Direction] | None = None,
    *,
    spans: tuple[tuple[float, float], tuple[float, float]] | None = None,
    points: int = 41,
    rate: float = 0.1,
    most: float = 1.0,
) -> Cliff:
    """The loss, a scalar that `loss` makes by running the model, over a plane of its parameters theta.

        L(theta + a A + b B);    a step of descent: theta - rate g,    clipped: theta - rate g min(1, most / |g|),   g = dL/dtheta

    as in figure 6 of Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063. `along` holds A and B: one parameter by name and place,
    `"weight_hh[0, 0]"`, or a mapping from names to tensors of their shapes. Without it A is the direction of descent -g / |g| and
    B a random one that is orthogonal to it, of norm 1. `spans` are the ends of a and b: of one parameter its values; without
    them 10 % of the norm of the parameters to either side (of one parameter 1). `points` are computed along each, so that the
    loss is asked for points**2 times.

    The model is left as it was. Raises UsageError for directions that the model has not, and for a loss that hangs on no parameter.
    """
    parameters = {name: one for name, one in model.named_parameters() if one.requires_grad}
    with at_rest(model):
        slope = _slope(loss, parameters)
        norm = float(_norm(slope))
        labels = ("descent", "a random direction") if along is None else ("A", "B")
        if along is None:
            descent = {name: -one / max(norm, 1e-30) for name, one in slope.items()}
            along = (descent, _beside(descent))
        first, second = (_direction(one, parameters) for one in along)
        names = tuple(one if isinstance(one, str) else label for one, label in zip(along, labels, strict=True))
        starts = [_value(one, parameters) for one in along]
        reach = 0.1 * float(_norm({name: one.detach() for name, one in parameters.items()}))
        sides = [1.0 if isinstance(one, str) else reach for one in along]
        spans = spans or tuple((start - side, start + side) for start, side in zip(starts, sides, strict=True))  # type: ignore[assignment]
        a, b = (np.linspace(low, high, points) for low, high in spans)  # type: ignore[union-attr]
        with _altered(parameters) as put, torch.no_grad():
            table = np.array([[put(first, x - starts[0], second, y - starts[1], loss) for y in b] for x in a])
    table = np.where(np.isfinite(table), table, np.inf)
    gradient = (_inner(slope, first), _inner(slope, second))
    lands = [
        (starts[0] - s * gradient[0], starts[1] - s * gradient[1])
        for s in (rate, rate * min(1, most / norm if norm else 1))
    ]
    here = (starts[0], starts[1])
    words = _words(table, a, b, gradient, norm, rate, most)
    return Cliff(names, a, b, table, here, gradient, norm, most, lands[0], lands[1], words)  # type: ignore[arg-type]


def _slope(loss: Callable[[], Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    with torch.enable_grad():
        value = loss()
        if value.dim() or not value.requires_grad:
            raise UsageError(
                f"the cliff wants a loss of one number with a gradient by the model's parameters, and got shape "
                f"{list(value.shape)}{'' if value.requires_grad else ' without a gradient'}; take its mean, and no torch.no_grad"
            )
        found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parameters, found, strict=True))


def _norm(tree: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([one.double().square().sum() for one in tree.values()]).sum().sqrt()


def _inner(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return float(sum((part.double() * other[name].double()).sum() for name, part in one.items() if name in other))


def _beside(direction: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A random direction of norm 1, orthogonal to this one of norm 1."""
    draw = torch.Generator().manual_seed(0)
    drawn = {name: torch.randn(one.shape, generator=draw, dtype=one.dtype) for name, one in direction.items()}
    share = _inner(drawn, direction)
    apart = {name: one - share * direction[name] for name, one in drawn.items()}
    norm = float(_norm(apart))
    return {name: one / norm for name, one in apart.items()}


_ENTRY = re.compile(r"(?P<name>[^\[\]]+)(?:\[(?P<place>[\d,\s]*)\])?")


def _entry(given: str, parameters: Mapping[str, Tensor]) -> tuple[str, tuple[int, ...]]:
    found = _ENTRY.fullmatch(given)
    name = found["name"] if found else given
    place = tuple(int(one) for one in (found["place"] or "").split(",") if one.strip()) if found else ()
    wanted = parameters.get(name)
    if wanted is None or len(place) != wanted.dim() or any(k >= n for k, n in zip(place, wanted.shape, strict=True)):
        known = ", ".join(f"{name}{list(one.shape)}" for name, one in list(parameters.items())[:8])
        raise UsageError(
            f"{given!r} is no single parameter; wanted its name and place, such as weight_hh[0, 0], of {known}"
        )
    return name, place


def _direction(given: Direction, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if isinstance(given, str):
        name, place = _entry(given, parameters)
        unit = torch.zeros_like(parameters[name])
        unit[place] = 1
        return {name: unit}
    for name, one in given.items():
        if name not in parameters or one.shape != parameters[name].shape:
            wanted = (
                f"of shape {list(parameters[name].shape)}" if name in parameters else f"one of {', '.join(parameters)}"
            )
            raise UsageError(f"a direction has {name} of shape {list(one.shape)}; wanted {wanted}")
    return dict(given)


def _value(given: Direction, parameters: Mapping[str, Tensor]) -> float:
    """Where the model stands along it: the parameter itself, or 0."""
    if not isinstance(given, str):
        return 0.0
    name, place = _entry(given, parameters)
    return float(parameters[name].detach()[place])


@contextmanager
def _altered(parameters: Mapping[str, Tensor]) -> Iterator[Callable[..., float]]:
    """A function that says the loss with other parameters; afterwards they are what they were, to the bit."""
    kept = {name: one.detach().clone() for name, one in parameters.items()}

    def put(
        first: Mapping[str, Tensor], x: float, second: Mapping[str, Tensor], y: float, loss: Callable[[], Tensor]
    ) -> float:
        for name in {*first, *second}:
            moved = kept[name].clone()
            for direction, far in ((first, x), (second, y)):
                if name in direction:
                    moved.add_(direction[name], alpha=float(far))
            parameters[name].copy_(moved)
        return float(loss())

    try:
        yield put
    finally:
        with torch.no_grad():
            for name, one in parameters.items():
                one.copy_(kept[name])


def _words(
    table: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    gradient: tuple[float, float],
    norm: float,
    rate: float,
    most: float,
) -> list[str]:
    with np.errstate(invalid="ignore"):
        steep = np.hypot(*np.gradient(table, a, b))
    real = steep[np.isfinite(steep)]
    words = [
        f"Here the gradient has the norm {norm:.3g}: a step at rate {rate:g} goes {rate * norm:.3g} far, and clipped to {most:g} "
        f"{rate * min(norm, most):.3g}."
    ]
    if real.size:
        sharp, middle = float(real.max()), float(np.median(real))
        told = "there is a cliff" if sharp > STEEP * middle > 0 else "there is no cliff"
        words.append(f"In this plane the steepest slope is {sharp:.3g}, the median {middle:.3g}: {told}.")
    return words
