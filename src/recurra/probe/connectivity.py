"""How much each earlier input moved what a model said."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from recurra import kernels
from recurra.errors import UsageError
from recurra.probe.record import Losses, at_rest

Way = Literal["gradient", "gradient times input", "occlusion"]
MOST = 64  # losses that are followed


class Connectivity(NamedTuple):
    """`times` [t]: the losses looked at; `moved` [t, s]: how much input s moved loss t, by the `way` that it was measured in; and
    in words."""

    way: str
    times: np.ndarray
    moved: np.ndarray
    words: list[str]


def connectivity(
    model: nn.Module, losses: Losses, *, way: Way = "gradient times input", embedding: nn.Module | None = None,
    times: Sequence[int] | None = None,
) -> Connectivity:  # fmt: skip
    """How much each input x_s, the features that the embedding puts out, moved each loss L_t of the first row (L is minus the
    logarithm of the probability of what came):

        gradient                |dL_t/dx_s|                          how sensitive it is (Madsen 2019, "Visualizing memorization in
                                                                     RNNs", doi:10.23915/distill.00016)
        gradient times input    -<dL_t/dx_s, x_s>                    how far x_s lowers it, to first order; signed
        occlusion               L_t with x_s = 0, less L_t           how far it rises without x_s; signed, and exact

    `embedding` is the module whose output counts as the input, the first one called `embedding` in the model unless it is said.
    `times` are steps, at most 64 evenly spread unless they are said. Occlusion runs the model once for each input. The model is
    left as it was. Raises UsageError where there is no such module, and for another way.
    """
    first = _embedding(model) if embedding is None else embedding
    if way not in ("gradient", "gradient times input", "occlusion"):
        raise UsageError(f"there is no way called {way!r}; they are gradient, gradient times input and occlusion")
    with at_rest(model):
        if way == "occlusion":
            moved, at = _occluded(first, losses, times)
        else:
            moved, at = _by_gradient(first, losses, times, way)
    return Connectivity(way, at, moved, _words(way, at, moved))


def _embedding(model: nn.Module) -> nn.Module:
    for name, part in model.named_modules():
        if name.rpartition(".")[2] == "embedding":
            return part
    raise UsageError(
        f"{type(model).__name__} has no module called embedding, so it is not known what its inputs are; give embedding=..., the "
        "module whose output the network reads"
    )


def _by_gradient(first: nn.Module, losses: Losses, times: Sequence[int] | None, way: str) -> tuple[np.ndarray, Any]:
    kept: list[Tensor] = []

    def keep(features: Tensor) -> Tensor:
        if kept:
            return features
        floating = features.detach().to(features.dtype if features.is_floating_point() else torch.get_default_dtype())
        kept.append(floating.requires_grad_())
        return kept[0]

    with torch.enable_grad(), kernels.reference(), _replaced(first, keep):
        found = losses()
        at = _chosen(times, found.shape[1])
        _check(kept)
        (slopes,) = torch.autograd.grad(
            found[0, torch.from_numpy(at)], kept, torch.eye(len(at), dtype=found.dtype), is_grads_batched=True
        )
    slopes, features = slopes[:, 0].double().flatten(2), kept[0].detach()[0].double().flatten(1)
    if way == "gradient":
        return slopes.norm(dim=2).numpy(), at
    return -(slopes * features).sum(2).numpy(), at


@torch.no_grad()
def _occluded(first: nn.Module, losses: Losses, times: Sequence[int] | None) -> tuple[np.ndarray, Any]:
    kept: list[Tensor] = []
    with _replaced(first, lambda features: kept.append(features) or features):  # type: ignore[func-returns-value]
        plain = losses()[0]
    _check(kept)
    at = _chosen(times, len(plain))
    moved = np.zeros((len(at), kept[0].shape[1]))
    for s in range(kept[0].shape[1]):
        with _replaced(first, _without(s)):
            moved[:, s] = (losses()[0] - plain)[torch.from_numpy(at)].double().numpy()
    return moved, at


def _without(s: int) -> Callable[[Tensor], Tensor]:
    seen: list[bool] = []

    def hide(features: Tensor) -> Tensor:
        if seen:
            return features
        seen.append(True)
        return features.index_fill(1, torch.tensor([s]), 0)

    return hide


@contextmanager
def _replaced(module: nn.Module, by: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within this context the module puts out what `by` makes of its output."""
    hook = module.register_forward_hook(lambda _module, _given, out: by(out))
    try:
        yield
    finally:
        hook.remove()


def _check(kept: list[Tensor]) -> None:
    if not kept or kept[0].dim() < 3:
        shape = list(kept[0].shape) if kept else "none"
        raise UsageError(
            f"connectivity wants the features [rows, time, features] of a sequence, and the embedding put out {shape}; give "
            "embedding=..., a module that is called once with the whole sequence"
        )


def _chosen(times: Sequence[int] | None, count: int) -> np.ndarray:
    if times is None:
        return np.unique(np.linspace(count - 1, 0, min(MOST, count)).round().astype(int))
    bad = [t for t in times if not 0 <= t < count]
    if bad:
        raise UsageError(f"the losses have {count} steps, and step {bad[0]} was asked for; wanted 0 to {count - 1}")
    return np.array(times)


def _words(way: str, at: np.ndarray, moved: np.ndarray) -> list[str]:
    """How far back inputs are that matter, where losses and inputs have one axis."""
    weights = np.abs(moved)
    if not weights.any():
        return [f"By {way}, no input moved anything."]
    last, total = weights[-1], weights[-1].sum()
    strongest = np.argsort(-last, kind="stable")[:3].tolist()
    named = ", ".join(f"{s} ({last[s] / max(total, 1e-300):.0%})" for s in strongest)
    return [f"By {way}: what was said at step {int(at[-1])} was moved most by the inputs at {named}."]
