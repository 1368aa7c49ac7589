"""Words as sparse rows of numbers: one-hot, bags of words and of n-grams. The matrices are scikit-learn's (extra `floors`)."""

from collections.abc import Sequence
from functools import partial
from typing import Any, final

from recurra.errors import UsageError

WITHOUT = "scikit-learn is not installed; pip install 'recurra[floors]'"


def one_hot(words: Sequence[str], vocabulary: Sequence[str]) -> Any:
    """Word k becomes a row of a sparse matrix `[words, vocabulary]`, one at its place in the vocabulary and zero elsewhere; a word
    that is not in the vocabulary is all zeros. Any two words are as far from each other as any other two."""
    counter = _text().CountVectorizer(analyzer=lambda word: [word], vocabulary=list(vocabulary))
    return counter.transform(words)


@final
class Bag:
    """How often each n-gram occurs in a text, whatever the order: a sparse row for each text `[texts, n-grams]`.

    n-grams of 1 to `order` words of the texts it is learnt from, given in words. With `weighted`, each count c counts as
    1 + ln c, times 1 + ln ((1 + texts) / (1 + texts that have it)), and rows have the length one (Salton & Buckley 1988).
    """

    def __init__(self, texts: Sequence[Sequence[str]], order: int = 1, *, weighted: bool = False) -> None:
        as_they_are: dict[str, Any] = dict(tokenizer=list, preprocessor=list, token_pattern=None, lowercase=False)
        make = partial(_text().TfidfVectorizer, sublinear_tf=True) if weighted else _text().CountVectorizer
        self._vectoriser = make(ngram_range=(1, order), **as_they_are)
        self.matrix = self._vectoriser.fit_transform(texts)

    @property
    def names(self) -> list[str]:
        """The n-grams, in the order of the columns."""
        return list(self._vectoriser.get_feature_names_out())

    def rows(self, texts: Sequence[Sequence[str]]) -> Any:
        """The rows of other texts; n-grams that were not learnt do not count."""
        return self._vectoriser.transform(texts)


def _text() -> Any:
    try:
        from sklearn.feature_extraction import text
    except ImportError:
        raise UsageError(WITHOUT) from None
    return text
