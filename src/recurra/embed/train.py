"""Word vectors learnt from text, by gensim: word2vec and fastText under our names."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recurra.data.read import characters, sources
from recurra.embed.vectors import Vectors
from recurra.errors import DataError, UsageError

LONGEST = 10_000  # words of a line that are read as one sentence


class Sentences:
    """The words of text files, line by line, parted at blanks; it can be read again and again."""

    def __init__(self, paths: Sequence[Path | str], lower: bool = False) -> None:
        self.files, self.lower = sources(paths), lower

    def __iter__(self) -> Iterator[list[str]]:
        for file in self.files:
            rest = ""
            for part in characters(file):
                *lines, rest = (rest + part).split("\n")
                for line in lines:
                    yield from self._cut(line)
            yield from self._cut(rest)

    def _cut(self, line: str) -> Iterator[list[str]]:
        words = (line.lower() if self.lower else line).split()
        for start in range(0, len(words), LONGEST):
            yield words[start : start + LONGEST]


def train(
    paths: Sequence[Path | str],
    *,
    model: str = "skip-gram",
    loss: str = "negative-sampling",
    size: int = 100,
    window: int = 5,
    negative: int = 10,
    epochs: int = 5,
    least: int = 5,
    subwords: bool = False,
    lower: bool = False,
    threads: int | None = None,
    seed: int = 0,
) -> Vectors:
    """Vectors of all words that occur at least `least` times.

    skip-gram: each word foretells those up to `window` places away; cbow: the mean of those foretells the word. The softmax
    over all words is replaced by `negative` words drawn at random (negative sampling) or by a Huffman tree (hierarchical).
    With `subwords` a vector is the mean of those of its parts of 3 to 6 characters. One thread and one seed give the same
    numbers again, several threads do not. Raises DataError for a text without such words, and UsageError where gensim is
    not installed.

    References: Mikolov et al. 2013, arXiv:1301.3781 and arXiv:1310.4546; Bojanowski et al. 2017, arXiv:1607.04606
    """
    try:
        from gensim.models import FastText, Word2Vec
    except ImportError:
        raise UsageError(
            "word vectors are trained by gensim, which is not installed: pip install 'recurra[embed]'"
        ) from None
    if model not in ("skip-gram", "cbow") or loss not in ("negative-sampling", "hierarchical-softmax"):
        raise UsageError(
            f"model was {model!r} and loss {loss!r}; wanted skip-gram or cbow, negative-sampling or hierarchical-softmax"
        )
    options: dict[str, Any] = dict(
        vector_size=size, window=window, epochs=epochs, min_count=least, seed=seed, workers=threads or os.cpu_count() or 1,
        sg=int(model == "skip-gram"), hs=int(loss == "hierarchical-softmax"),
        negative=negative if loss == "negative-sampling" else 0,
    )  # fmt: skip
    sentences = Sentences(paths, lower)
    try:
        learnt = (FastText if subwords else Word2Vec)(sentences, **options).wv
    except RuntimeError as error:  # gensim's word for an empty vocabulary
        raise DataError(f"no word occurs {least} times in the text; take all with --least 1") from error
    return Vectors(learnt.index_to_key, np.asarray(learnt.vectors, np.float32))
