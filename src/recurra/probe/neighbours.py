"""Where else a network was in a state like this one."""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from recurra.errors import UsageError

AT_ONCE = 2**24  # distances


class Neighbours(NamedTuple):
    """For each query [q] the nearest states of a corpus, the nearest first: `steps` [q, k], their places in it, and `nearness`
    [q, k], the cosine of the angle or the Euclidean distance."""

    steps: np.ndarray
    nearness: np.ndarray
    measure: str


@torch.no_grad()
def neighbours(
    queries: Tensor, corpus: Tensor, k: int = 5, *, measure: Literal["cosine", "euclidean"] = "cosine",
    own: Tensor | None = None, apart: int = 1,
) -> Neighbours:  # fmt: skip
    """The `k` states of a corpus `[n, units]` that are nearest to each of the `queries` `[q, units]`, by exact search, as LSTMVis
    matches them (Strobelt et al. 2018, arXiv:1606.07461).

    Where the queries are steps of the corpus themselves, `own` int64 `[q]` says which, and steps less than `apart` from it do
    not count. Raises UsageError for shapes that do not fit, and where the corpus has fewer than k states to offer.
    """
    if queries.dim() != 2 or corpus.dim() != 2 or queries.shape[1] != corpus.shape[1]:
        raise UsageError(
            f"the queries are {list(queries.shape)} and the corpus {list(corpus.shape)}; wanted [q, units] and [n, units]"
        )
    left = len(corpus) - (0 if own is None else 2 * apart - 1)
    if measure not in ("cosine", "euclidean") or not 1 <= k <= left:
        raise UsageError(
            f"{k} neighbours by {measure!r} were asked for of {len(corpus)} states; wanted 1 to {max(left, 0)}, by cosine or by "
            "euclidean"
        )
    norm = lambda rows: rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-30)  # noqa: E731
    steps, nearness = [], []
    chunk = max(1, AT_ONCE // len(corpus))
    for begin in range(0, len(queries), chunk):
        some = queries[begin : begin + chunk]
        near = norm(some) @ norm(corpus).T if measure == "cosine" else -torch.cdist(some, corpus)
        if own is not None:
            gap = (torch.arange(len(corpus)) - own[begin : begin + chunk, None]).abs()
            near = near.masked_fill(gap < apart, -torch.inf)
        best = near.topk(k, dim=1)
        steps.append(best.indices)
        nearness.append(best.values if measure == "cosine" else -best.values)
    return Neighbours(torch.cat(steps).numpy(), torch.cat(nearness).double().numpy(), measure)
