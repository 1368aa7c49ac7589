"""Attention: what a query takes from values, by how well it fits their keys."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, NamedTuple, final

import torch
from torch import Tensor, nn

from recurra.errors import UsageError

Score = Callable[[Tensor, Tensor], Tensor]  # query [..., queries, q], keys [..., places, k] -> [..., queries, places]


def dot(query: Tensor, keys: Tensor) -> Tensor:
    """score = query . key (Luong, Pham & Manning 2015, arXiv:1508.04025)"""
    return query @ keys.transpose(-1, -2)


def scaled(factor: float) -> Score:
    """score = factor * query . key (Vaswani et al. 2017, arXiv:1706.03762, with 1 / sqrt(size))"""
    return lambda query, keys: factor * query @ keys.transpose(-1, -2)


def attend(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None, score: Score = dot
) -> tuple[Tensor, Tensor]:
    """The weighted mean of `values`, and its weights:

        weights = softmax over places of score(query, key),    summary = sum over places of weight * value

    query [..., queries, features], keys [..., places, features], values [..., places, any]; `mask` is boolean and broadcasts
    to [..., queries, places]: places where it does not hold have no weight. Returns the summary [..., queries, any] and the
    weights [..., queries, places], which sum to one over the places; both are zero for a query that may look at none.
    """
    scores = score(query, keys)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = torch.softmax(scores, dim=-1)
    if mask is not None:
        weights = torch.where(mask.any(-1, keepdim=True), weights, 0.0)  # of no places: zeros, where softmax says NaN
    return weights @ values, weights


class Kept(NamedTuple):
    """What is computed of values once, for all queries to come: keys [batch, places, any] and values [batch, places, any]."""

    keys: Tensor
    values: Tensor


class Attention(nn.Module, ABC):
    """A way to look at values `[batch, places, value_size]` with queries `[batch, queries, query_size]`.

    `remember` computes once what does not hang on the query; `forward` gives the summary `[batch, queries, output_size]` and the
    weights `[batch, queries, places]`. `mask` `[batch, 1, places]` says which places there are. Those with `looks_back` take one
    query at a time and want to know, as `before` `[batch, places]`, the weights of the step before, or how much all steps before
    have covered: the sum of their weights.
    """

    output_size: int
    looks_back: Literal["weights", "covered"] | None = None

    def remember(self, values: Tensor) -> Kept:
        return Kept(values, values)

    @abstractmethod
    def forward(
        self, query: Tensor, kept: Kept, mask: Tensor | None = None, before: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...


@final
class Dot(Attention):
    """score = query . value (Luong et al. 2015); both of one size."""

    def __init__(self, query_size: int, value_size: int) -> None:
        super().__init__()
        if query_size != value_size:
            raise UsageError(
                f"dot attention compares like with like, and the query has {query_size} features and the values {value_size}; "
                "take general, or sizes that are the same"
            )
        self.output_size = value_size

    def forward(
        self, query: Tensor, kept: Kept, mask: Tensor | None = None, before: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return attend(query, kept.keys, kept.values, mask)


@final
class General(Attention):
    """score = query . (W value): bilinear (Luong et al. 2015, general). Parameters: query_size * value_size"""

    def __init__(self, query_size: int, value_size: int) -> None:
        super().__init__()
        self.W = nn.Linear(value_size, query_size, bias=False)
        self.output_size = value_size

    def remember(self, values: Tensor) -> Kept:
        return Kept(self.W(values), values)

    def forward(
        self, query: Tensor, kept: Kept, mask: Tensor | None = None, before: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return attend(query, kept.keys, kept.values, mask)


@final
class Additive(Attention):
    """score = v . tanh(W query + U value + b) (Bahdanau, Cho & Bengio 2015, arXiv:1409.0473).
    Parameters: units * (query_size + value_size + 2)"""

    def __init__(self, query_size: int, value_size: int, units: int | None = None) -> None:
        super().__init__()
        units = query_size if units is None else units
        self.W, self.U = nn.Linear(query_size, units, bias=False), nn.Linear(value_size, units)
        self.v = nn.Parameter(torch.empty(units).uniform_(-1, 1) * units**-0.5)
        self.output_size = value_size

    def remember(self, values: Tensor) -> Kept:
        return Kept(self.U(values), values)

    def forward(
        self, query: Tensor, kept: Kept, mask: Tensor | None = None, before: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return attend(self.W(query), kept.keys, kept.values, mask, self._score)

    def _score(self, query: Tensor, keys: Tensor) -> Tensor:
        return torch.tanh(query[..., :, None, :] + keys[..., None, :, :]) @ self.v


@final
class Uniform(Attention):
    """The mean of all places, whatever is asked: what there is to be seen is seen at every step, as a whole (the m-RNN of Mao et
    al. 2015, arXiv:1412.6632). No parameters."""

    def __init__(self, query_size: int, value_size: int) -> None:
        super().__init__()
        self.output_size = value_size

    def forward(
        self, query: Tensor, kept: Kept, mask: Tensor | None = None, before: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return attend(
            query, kept.keys, kept.values, mask, lambda query, keys: query.new_zeros(*query.shape[:2], keys.shape[1])
        )


@final
class LocationAware(Attention):
    """score = v . tanh(W query + U value + V f + b), where f = F * weights of the step before, a convolution over the places
    (Chorowski et al. 2015, arXiv:1506.07503). Parameters: units * (query_size + value_size + filters + 2) + filters * width"""

    looks_back = "weights"

    def __init__(
        self, query_size: int, value_size: int, units: int | None = None, filters: int = 10, width: int = 11
    ) -> None:
        super().__init__()
        self.additive = Additive(query_size, value_size, units)
        self.F = nn.Conv1d(1, filters, width, padding="same", bias=False)
        self.V = nn.Linear(filters, len(self.additive.v), bias=False)
        self.output_size = value_size

    def remember(self, values: Tensor) -> Kept:
        return self.additive.remember(values)

    def forward(
        self, query: Tensor, kept: Kept, mask: Tensor | None = None, before: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        keys = kept.keys + self.V(self.F(_looked_back(query, before)[:, None]).transpose(1, 2))
        return self.additive(query, Kept(keys, kept.values), mask)


@final
class Covering(Attention):
    """score = v . tanh(W query + U value + V covered + b), where covered is the sum of the weights of all steps before: what has
    been said already is known (Tu et al. 2016, arXiv:1601.04811; in this form See, Liu & Manning 2017, arXiv:1704.04368).
    Parameters: units * (query_size + value_size + 3)"""

    looks_back = "covered"

    def __init__(self, query_size: int, value_size: int, units: int | None = None) -> None:
        super().__init__()
        self.additive = Additive(query_size, value_size, units)
        self.V = nn.Linear(1, len(self.additive.v), bias=False)
        self.output_size = value_size

    def remember(self, values: Tensor) -> Kept:
        return self.additive.remember(values)

    def forward(
        self, query: Tensor, kept: Kept, mask: Tensor | None = None, before: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        keys = kept.keys + self.V(_looked_back(query, before)[:, :, None])
        return self.additive(query, Kept(keys, kept.values), mask)


def _looked_back(query: Tensor, before: Tensor | None) -> Tensor:
    if before is None or query.shape[1] != 1:
        raise UsageError("this attention looks back: it takes one query at a time and what was looked at before")
    return before


@final
class MultiHead(Attention):
    """Heads side by side, each scaled dot attention on its own part of projected queries, keys and values; the summary is a
    projection of all of theirs, and the weights are their mean (Vaswani et al. 2017).
    Parameters: query_size * (query_size + 1) + 2 * query_size * (value_size + 1) + query_size * (query_size + 1)"""

    def __init__(self, query_size: int, value_size: int, heads: int = 4) -> None:
        super().__init__()
        if query_size % heads:
            raise UsageError(
                f"{query_size} features of the query cannot be shared out to {heads} heads; wanted a multiple"
            )
        self.heads, self.output_size = heads, query_size
        self.query, self.key = nn.Linear(query_size, query_size), nn.Linear(value_size, query_size)
        self.value, self.out = nn.Linear(value_size, query_size), nn.Linear(query_size, query_size)

    def remember(self, values: Tensor) -> Kept:
        return Kept(self.key(values), self.value(values))

    def forward(
        self, query: Tensor, kept: Kept, mask: Tensor | None = None, before: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        queries, keys, values = (self._split(part) for part in (self.query(query), kept.keys, kept.values))
        mask = None if mask is None else mask[:, None]
        summary, weights = attend(queries, keys, values, mask, scaled(queries.shape[-1] ** -0.5))
        return self.out(summary.transpose(1, 2).flatten(2)), weights.mean(1)

    def _split(self, part: Tensor) -> Tensor:
        return part.view(*part.shape[:2], self.heads, -1).transpose(1, 2)


ATTENTIONS: dict[str, type[Attention]] = {
    "dot": Dot,
    "general": General,
    "additive": Additive,
    "location": LocationAware,
    "coverage": Covering,
    "uniform": Uniform,
    "multi-head": MultiHead,
}
