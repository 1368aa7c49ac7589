"""Attention: what a query takes from values, by how near it is to their keys."""

import torch
from torch import Tensor


def attend(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The weighted mean of `values`, and its weights:

        weights = softmax over places of (scale * query . key),    summary = sum over places of weight * value

    query [..., queries, features], keys [..., places, features], values [..., places, any]; `mask` is boolean and broadcasts
    to [..., queries, places]: places where it does not hold have no weight. Returns the summary [..., queries, any] and the
    weights [..., queries, places], which sum to one over the places; both are zero for a query that may look at none.

    Reference: Luong, Pham & Manning 2015, arXiv:1508.04025 (dot); Vaswani et al. 2017, arXiv:1706.03762 (scaled)
    """
    scores = scale * query @ keys.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = torch.softmax(scores, dim=-1)
    if mask is not None:
        weights = torch.where(mask.any(-1, keepdim=True), weights, 0.0)  # of no places: zeros, where softmax says NaN
    return weights @ values, weights
