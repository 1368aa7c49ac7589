"""Words -> ids, for texts that are judged and not written: a word is a word, whatever stands before it."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, final

import numpy as np

from recurra.data.tokens import EMOJI, WORD

_NUMBER = r"\d+(?:[.,:]\d+)+"
_CLITIC = r"n['\u2019]t|['\u2019](?:s|re|ve|ll|d|m)"
_WORD = re.compile(
    "|".join(
        [
            EMOJI,
            rf"(?:{_CLITIC})(?!{WORD})",  # of English, as tree banks and pretrained vectors have them
            _NUMBER,
            rf"[@#]?{WORD}+?(?=n['\u2019]t(?!{WORD}))",  # do, of don't
            rf"[@#]?{WORD}+(?:['\u2019](?!(?:s|re|ve|ll|d|m)(?!{WORD})){WORD}+)*",
            r"(\S)\1*",  # a mark, or several of the same
        ]
    ),
    re.IGNORECASE,
)


def words(text: str) -> list[str]:
    """The words, numbers, handles, hashtags, emoji and marks of a text."""
    return [match.group() for match in _WORD.finditer(text)]


@final
class Vocabulary:
    """The words that have an id of their own, from 1; 0 is every other word. With `lower`, words are taken in small letters.
    The ids below `seen` occur in training, or are 0."""

    def __init__(self, known: Sequence[str], lower: bool = False, seen: int | None = None) -> None:
        self.words, self.lower = list(known), lower
        self.seen = len(self.words) + 1 if seen is None else seen
        self._id_of = {word: id for id, word in enumerate(self.words, 1)}

    @classmethod
    def learn(cls, texts: Iterable[Sequence[str]], size: int, lower: bool, also: Iterable[str] = ()) -> "Vocabulary":
        """The words of the texts, which are given in words, that occur twice, at most the `size` most frequent ones of them, or
        that are in `also`; and after them the others of `also`."""
        counts = Counter(word.lower() if lower else word for text in texts for word in text)
        often = sorted((word for word, count in counts.items() if count > 1), key=lambda word: (-counts[word], word))
        beside = dict.fromkeys(also)
        seen = dict.fromkeys([*often[:size], *(word for word in beside if word in counts)])
        return cls([*seen, *(word for word in beside if word not in seen)], lower, len(seen) + 1)

    @property
    def size(self) -> int:
        """The number of ids."""
        return len(self.words) + 1

    def encode(self, text: Sequence[str]) -> np.ndarray:
        """The ids of the words of a text."""
        return np.array([self.id(word) for word in text], np.int64)

    def id(self, word: str) -> int:
        return self._id_of.get(word.lower() if self.lower else word, 0)

    def content(self) -> dict[str, Any]:
        """What a file holds of it; the inverse of `restored`."""
        return {"format": 1, "kind": "vocabulary", "lower": self.lower, "words": self.words, "seen": self.seen}

    @classmethod
    def restored(cls, content: Any) -> "Vocabulary":
        """Raises ValueError saying what is wrong."""
        if not isinstance(content, dict) or set(content) != {"format", "kind", "lower", "words", "seen"}:
            raise ValueError("the keys are not those of a vocabulary")
        known = content["words"]
        if type(known) is not list or not all(type(word) is str for word in known) or len(set(known)) < len(known):
            raise ValueError("the words are not a list of different texts")
        if type(content["seen"]) is not int or not 1 <= content["seen"] <= len(known) + 1:
            raise ValueError("the number of words seen in training is none")
        return cls(known, content["lower"] is True, content["seen"])
