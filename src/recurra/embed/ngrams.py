"""n-gram language models: what counting reaches without a network."""

from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np

from recurra.errors import UsageError


class _Order(NamedTuple):
    """The k-grams of the training text and what was counted of them. A k-gram is known by its rank among them."""

    keys: np.ndarray  # [k-grams] ascending: rank of the first k - 1 tokens * size + last token
    counts: np.ndarray  # [k-grams]
    totals: np.ndarray  # [(k-1)-grams] the counts of all k-grams that begin with it
    followers: np.ndarray  # [(k-1)-grams] how many of them have a count
    discount: float

    def ranks(self, prefixes: np.ndarray, last: np.ndarray, size: int) -> np.ndarray:
        """The ranks of k-grams given as ranks of their prefixes and last tokens; -1 for one never seen."""
        keys = prefixes * size + last
        places = np.searchsorted(self.keys, keys)
        known = (prefixes >= 0) & (places < len(self.keys))
        known[known] = self.keys[places[known]] == keys[known]
        return np.where(known, places, -1)


@final
class NGrams:
    """Interpolated Kneser-Ney model of `order` (Kneser & Ney 1995; Chen & Goodman 1999, equation for one discount).

    With h the k - 1 tokens before w, h' the same without its first, and c the counts of order k,

        p_k(w | h) = max(c(hw) - D_k, 0) / c(h.) + D_k * followers(h) / c(h.) * p_{k-1}(w | h'),  p_0(w) = 1 / size,

    and p_k = p_{k-1} where h was never counted. c counts occurrences at the highest order, and the distinct tokens seen
    before the k-gram at the others. D_k = n1 / (n1 + 2 n2) from the k-grams counted once and twice; 1/2 where no k-gram
    was counted once, so that nothing is impossible.

    `ids` `[tokens]` is the training text, ids 0 to `size` - 1. Raises UsageError for other ids or an order below 1.
    """

    def __init__(self, ids: np.ndarray, order: int, size: int) -> None:
        if order < 1 or size < 1:
            raise UsageError(f"order was {order} and size {size}, wanted at least 1 of each")
        self.order, self.size = order, size
        self._orders = self._counted(self._checked(ids))

    def log2_probabilities(self, ids: np.ndarray) -> np.ndarray:
        """The log2 of the probability of each token of a text given the `order` - 1 before it, fewer at its start.

        float64 `[tokens]`, bits, at most 0; the negative sum is the length of the text in bits.
        """
        ids = self._checked(ids)
        chances = np.full(len(ids), 1 / self.size)
        contexts = np.zeros(len(ids), np.int64)  # ranks of the k - 1 tokens from each place on
        for k, order in enumerate(self._orders[: len(ids)], 1):
            contexts = contexts[: len(ids) - k + 1]
            grams = order.ranks(contexts, ids[k - 1 :], self.size)
            counts, totals, followers = (  # where the rank is -1, the zero at the end
                np.append(table, 0)[ranks]
                for table, ranks in ((order.counts, grams), (order.totals, contexts), (order.followers, contexts))
            )
            lower = chances[k - 1 :]
            kept = np.maximum(counts - order.discount, 0) + order.discount * followers * lower
            chances[k - 1 :] = np.divide(kept, totals, out=lower.copy(), where=totals > 0)
            contexts = grams
        return np.log2(chances)

    def distribution(self, context: Sequence[int]) -> np.ndarray:
        """The probability of each token after `context`, of which the last `order` - 1 count: `[size]`, sum 1."""
        before = self._checked(np.asarray(context))
        chances = np.full(self.size, 1 / self.size)
        for k, order in enumerate(self._orders[: len(before) + 1], 1):
            rank = self._rank(before[len(before) - k + 1 :])
            if rank < 0 or order.totals[rank] == 0:
                continue
            low, high = np.searchsorted(order.keys, [rank * self.size, (rank + 1) * self.size])
            chances *= order.discount * order.followers[rank]
            chances[order.keys[low:high] % self.size] += np.maximum(order.counts[low:high] - order.discount, 0)
            chances /= order.totals[rank]
        return chances

    def _rank(self, tokens: np.ndarray) -> int:
        rank = np.zeros(1, np.int64)
        for order, token in zip(self._orders, tokens, strict=False):
            rank = order.ranks(rank, token[None], self.size)
        return int(rank[0])

    def _counted(self, ids: np.ndarray) -> list[_Order]:
        grams, prefixes, orders = _grams(np.zeros(len(ids), np.int64), ids, self.size), 1, []
        for k in range(1, self.order):
            longer = _grams(grams.ranks[:-1], ids[k:], self.size)
            continuations = np.bincount(grams.ranks[longer.place + 1], minlength=len(grams.keys))
            orders.append(_order(grams.keys, continuations, prefixes, self.size))
            grams, prefixes = longer, len(grams.keys)
        return [*orders, _order(grams.keys, grams.counts, prefixes, self.size)]

    def _checked(self, ids: np.ndarray) -> np.ndarray:
        ids = np.asarray(ids).astype(np.int64)
        wrong = ids[(ids < 0) | (ids >= self.size)]
        if wrong.size:
            raise UsageError(f"there was a token {wrong[0]}, wanted ids from 0 to {self.size - 1}")
        return ids


class _Grams(NamedTuple):
    """The distinct k-grams of a text."""

    keys: np.ndarray  # [k-grams] ascending
    counts: np.ndarray  # [k-grams] how often each occurs
    place: np.ndarray  # [k-grams] where one of its occurrences begins
    ranks: np.ndarray  # [tokens - k + 1] of the k-gram that begins at each token


def _grams(prefixes: np.ndarray, last: np.ndarray, size: int) -> _Grams:
    keys, ranks, counts = np.unique(prefixes * size + last, return_inverse=True, return_counts=True)
    place = np.empty(len(keys), np.int64)
    place[ranks] = np.arange(len(ranks))
    return _Grams(keys, counts, place, ranks)


def _order(keys: np.ndarray, counts: np.ndarray, prefixes: int, size: int) -> _Order:
    """The sums of the formula; `prefixes` is the number of (k-1)-grams."""
    begins = keys // size
    totals = np.bincount(begins, weights=counts, minlength=prefixes)
    followers = np.bincount(begins[counts > 0], minlength=prefixes)
    once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    return _Order(keys, counts, totals, followers, once / (once + 2 * twice) if once else 0.5)
