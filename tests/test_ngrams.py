"""n-grams: the fast model is the formula."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recurra.embed.ngrams import NGrams
from recurra.errors import UsageError

SIZE = 5
corpora = st.lists(st.integers(0, SIZE - 2), max_size=40)  # the last token is never seen
contexts = st.lists(st.integers(0, SIZE - 1), max_size=6)
orders = st.integers(1, 5)
quick = settings(max_examples=50, deadline=None)


class ByTheFormula:
    """Interpolated Kneser-Ney from the text of its definition, with dictionaries."""

    def __init__(self, ids: Sequence[int], order: int) -> None:
        text = tuple(ids)
        grams = [[text[t : t + k] for t in range(len(text) - k + 1)] for k in range(order + 1)]
        self.order = order
        self.counts = [Counter(gram[1:] for gram in set(grams[k + 1])) for k in range(order)]
        self.counts.append(Counter(grams[order]))

    def probability(self, token: int, context: Sequence[int]) -> float:
        return self._probability(token, tuple(context)[len(context) - min(len(context), self.order - 1) :])

    def _probability(self, token: int, context: tuple[int, ...]) -> float:
        counts = self.counts[len(context) + 1]
        lower = self._probability(token, context[1:]) if context else 1 / SIZE
        after = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == context}
        if not after:
            return lower
        once, twice = (sum(count == n for count in counts.values()) for n in (1, 2))
        discount = once / (once + 2 * twice) if once else 0.5
        total = sum(after.values())
        return max(after.get(token, 0) - discount, 0) / total + discount * len(after) / total * lower


@quick
@given(train=corpora, test=st.lists(st.integers(0, SIZE - 1), max_size=30), order=orders)
def test_the_model_is_the_formula(train: list[int], test: list[int], order: int) -> None:
    slow = ByTheFormula(train, order)
    wanted = [slow.probability(token, test[:place]) for place, token in enumerate(test)]
    given_bits = NGrams(np.array(train), order, SIZE).log2_probabilities(np.array(test))
    assert np.exp2(given_bits) == pytest.approx(wanted, rel=1e-12)


@quick
@given(train=corpora, context=contexts, order=orders)
def test_a_distribution_is_the_formula_and_sums_to_one(train: list[int], context: list[int], order: int) -> None:
    chances = NGrams(np.array(train), order, SIZE).distribution(context)
    slow = ByTheFormula(train, order)
    assert chances == pytest.approx([slow.probability(token, context) for token in range(SIZE)], rel=1e-12)
    assert chances.sum() == pytest.approx(1, abs=1e-12)
    assert (chances > 0).all()


def test_a_hand_counted_bigram() -> None:
    # The text "abab". Unigrams: one token stands before a, one before b: D_1 = 1 and p_1 = 0/2 + 1 * 2/2 * 1/4 = 1/4.
    # Bigrams: ab twice, ba once, so D_2 = 1 / (1 + 2 * 1) = 1/3 and p_2(b | a) = (2 - 1/3) / 2 + 1/3 * 1/2 * 1/4.
    model = NGrams(np.array([0, 1, 0, 1]), 2, 4)
    assert model.distribution([]) == pytest.approx([1 / 4] * 4)
    assert model.distribution([0]) == pytest.approx([1 / 24, 5 / 6 + 1 / 24, 1 / 24, 1 / 24])


def test_an_unseen_context_backs_off_to_a_shorter_one() -> None:
    model = NGrams(np.array([0, 1, 2, 0, 1, 3, 2, 2, 1]), 3, SIZE)
    assert (model.distribution([4, 1]) == model.distribution([1])).all()
    assert (model.distribution([4, 4]) == model.distribution([])).all()


def test_seldom_tokens_stay_possible_in_a_large_vocabulary() -> None:
    size = 2_000_000
    ids = np.random.default_rng(0).integers(size - 50, size, 5000).astype(np.uint32)
    bits = NGrams(ids, 5, size).log2_probabilities(np.array([0, size - 1, 7, 7, size - 50], np.uint32))
    assert np.isfinite(bits).all()
    assert (bits < 0).all()


def test_what_is_learnt_is_cheaper_than_what_is_not() -> None:
    ids = np.array([0, 1, 2, 3] * 50)
    model = NGrams(ids, 3, SIZE)
    assert -model.log2_probabilities(ids).sum() < 30 < -model.log2_probabilities(ids[::-1]).sum()


def test_other_ids_and_orders_are_refused() -> None:
    with pytest.raises(UsageError, match="token 5, wanted ids from 0 to 4"):
        NGrams(np.array([1, 5]), 2, SIZE)
    with pytest.raises(UsageError, match="order was 0"):
        NGrams(np.array([1]), 0, SIZE)
    with pytest.raises(UsageError, match="token -1"):
        NGrams(np.array([1]), 2, SIZE).log2_probabilities(np.array([-1]))
