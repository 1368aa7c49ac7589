"""Floors: what a method without a network reaches on the same data. A network below its floor is said to be so."""

import lzma
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

import numpy as np

from recurra.data.feed import Ragged
from recurra.embed.bags import Bag
from recurra.embed.ngrams import NGrams
from recurra.errors import UsageError
from recurra.spans import span_scores
from recurra.tasks.scores import micro_f1

MOST_TOKENS = 8_000_000  # of the training text, from its end
MOST_BYTES = 16 << 20
RIDGE_STEPS = 32
MOST_PAIRS = 100_000_000  # of series that are compared


def unigram_bits(train_ids: np.ndarray, test_ids: np.ndarray, size: int) -> float:
    """Bits of the test tokens under their frequencies in training, one added to each of the `size` counts (Laplace)."""
    counts = np.bincount(train_ids, minlength=size) + 1
    return float(-np.log2(counts[test_ids] / counts.sum()).sum())


def ngram_bits(train_ids: np.ndarray, test_ids: np.ndarray, size: int, order: int = 5) -> float:
    """Bits of the test tokens under an interpolated Kneser-Ney model of the training tokens."""
    return float(-NGrams(train_ids, order, size).log2_probabilities(test_ids).sum())


def xz_bits(train: bytes, test: bytes) -> float:
    """Bits by which `xz -9` of the training bytes grows when the test bytes follow them."""
    return 8.0 * (_xz_length(train + test) - _xz_length(train))


def language_floors(
    train_ids: np.ndarray, test_ids: np.ndarray, size: int, train_bytes: bytes, test_bytes: bytes, characters: int
) -> dict[str, float]:
    """Bits per character of a test text of `characters` characters, given as ids below `size` and as bytes.

    To bound the work, at most the last 8,000,000 tokens and the last 16 MiB of the training text are used.
    Raises UsageError if there are no characters.
    """
    if characters < 1:
        raise UsageError(f"the test text has {characters} characters, wanted at least 1: give a test text with content")
    train_ids, train_bytes = train_ids[-MOST_TOKENS:], train_bytes[-MOST_BYTES:]
    bits = {
        "unigram": unigram_bits(train_ids, test_ids, size),
        "5-gram Kneser-Ney": ngram_bits(train_ids, test_ids, size),
        "xz -9": xz_bits(train_bytes, test_bytes),
    }
    return {name: value / characters for name, value in bits.items()}


def _xz_length(content: bytes) -> int:
    return len(lzma.compress(content, format=lzma.FORMAT_XZ, preset=9))


def label_floors(
    train: tuple[list[Any], np.ndarray], test: tuple[list[Any], np.ndarray], vectors: Mapping[str, np.ndarray] | None
) -> dict[str, float]:
    """Accuracy (micro-F1 where there may be several labels) of methods without a network, on inputs that are words or series:
    the most frequent label; logistic regression of weighted bags of words and pairs of words, and of the mean of pretrained
    vectors; the label of the nearest series. Those that want scikit-learn are left out where it is not installed."""
    (inputs, targets), (others, truth) = train, test
    floors = {"most frequent label": _score(truth, np.repeat(_most_frequent(targets), len(truth), axis=0))}
    if len(inputs) and isinstance(inputs[0], np.ndarray):
        if targets.ndim == 1 and len(inputs) * len(others) <= MOST_PAIRS:
            floors["nearest series"] = _score(truth, targets[_nearest(inputs, others)])
        return floors
    if find_spec("sklearn") is None:
        return floors
    lower = [[word.lower() for word in text] for text in inputs]
    asked = [[word.lower() for word in text] for text in others]
    if targets.ndim == 1 and len(np.unique(targets)) < 2:
        return floors
    bag = Bag(lower, order=2, weighted=True)
    floors["words and pairs, logistic"] = _score(truth, _logistic(bag.matrix, targets, bag.rows(asked), 10.0))
    if vectors is not None:
        means = [_means(texts, vectors) for texts in (lower, asked)]
        floors["mean of vectors, logistic"] = _score(truth, _logistic(means[0], targets, means[1], 1.0))
    return floors


def _score(truth: np.ndarray, guesses: np.ndarray) -> float:
    return float((truth == guesses).mean()) if truth.ndim == 1 else micro_f1(truth, guesses)


def _most_frequent(targets: np.ndarray) -> np.ndarray:
    if targets.ndim == 1:
        return np.array([np.bincount(targets).argmax()])
    often = targets.mean(0)
    return (often >= min(0.5, often.max())).astype(np.float32)[None]


def _logistic(xs: Any, targets: np.ndarray, others: Any, strength: float) -> np.ndarray:
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=strength, max_iter=300, tol=1e-3)
    if targets.ndim == 1:
        return model.fit(xs, targets).predict(others)
    guesses = np.repeat(targets[:1], others.shape[0], axis=0)  # right for a label that all have, or none
    for label in np.flatnonzero(targets.min(0) != targets.max(0)):
        guesses[:, label] = model.fit(xs, targets[:, label]).predict(others)
    return guesses


def _means(texts: list[list[str]], vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    size = len(next(iter(vectors.values()))) if vectors else 1
    out = np.zeros((len(texts), size), np.float32)
    for row, text in enumerate(texts):
        found = [vectors[word] for word in text if word in vectors]
        if found:
            out[row] = np.mean(found, axis=0)
    return out


def _nearest(inputs: list[np.ndarray], others: list[np.ndarray]) -> np.ndarray:
    """For each series the place of the nearest one (Euclid) among `inputs`, all stretched to the same length."""
    length = int(np.median([len(one) for one in inputs]))
    known, asked = (np.stack([_stretched(one, length) for one in some]) for some in (inputs, others))
    squares = (known**2).sum(1)
    return np.concatenate(
        [(squares - 2 * part @ known.T).argmin(1) for part in np.array_split(asked, -(-len(asked) // 256))]
    )


def _stretched(series: np.ndarray, length: int) -> np.ndarray:
    places = np.linspace(0, len(series) - 1, length)
    return np.concatenate([np.interp(places, np.arange(len(series)), channel) for channel in series.T]).astype(
        np.float32
    )


def tag_floors(
    train: list[list[str]] | None, tags: list[list[str]], test: list[list[str]] | None, truth: list[list[str]]
) -> dict[str, float]:
    """F1 of spans (accuracy, where tags are not in BIO) of methods without a network: of every word the tag that it has most often
    in training, of a word that is new the most frequent of all; for steps that are no words, that one always."""
    often = Counter(tag for one in tags for tag in one).most_common(1)[0][0]
    score = _tag_score(any(tag.startswith("B-") for one in tags for tag in one))
    floors = {"most frequent tag": score(truth, [[often] * len(one) for one in truth])}
    if train is not None and test is not None:
        counts: dict[str, Counter[str]] = {}
        for words, own in zip(train, tags, strict=True):
            for word, tag in zip(words[: len(own)], own, strict=True):
                counts.setdefault(word, Counter())[tag] += 1
        best = {word: count.most_common(1)[0][0] for word, count in counts.items()}
        guesses = [
            [best.get(word, often) for word in words[: len(one)]] for words, one in zip(test, truth, strict=True)
        ]
        floors["tag of the word"] = score(truth, guesses)
    return floors


def _tag_score(bio: bool) -> Callable[[list[list[str]], list[list[str]]], float]:
    if bio:
        return lambda truth, guesses: span_scores(truth, guesses)["f1"]
    flat = lambda some: np.array([tag for one in some for tag in one])  # noqa: E731
    return lambda truth, guesses: float((flat(truth) == flat(guesses)).mean())


def number_floors(
    train: tuple[Ragged | None, Ragged], test: tuple[Ragged | None, Ragged], std: np.ndarray, *, ahead: bool
) -> dict[str, float]:
    """Mean square error of methods without a network: the mean of the training; ridge regression of the last steps, or, for numbers
    at every step, of the steps before each one (and, `ahead`, of those after it). Inputs and targets are scaled."""
    score = lambda guesses: float((((guesses - test[1].values) * std) ** 2).mean())  # noqa: E731
    floors = {"mean": score(np.zeros_like(test[1].values))}
    if train[0] is not None and test[0] is not None:
        each = bool((train[1].lengths != 1).any()) or bool((train[0].lengths == 1).all())
        steps = int(min(RIDGE_STEPS, train[0].lengths.max()))
        gram: Any = 0.0
        towards: Any = 0.0
        for xs, (begin, end) in zip(_windows(train[0], steps, each, ahead), _spans_of(train[1]), strict=True):
            gram, towards = gram + xs.T @ xs, towards + xs.T @ train[1].values[begin:end]
        weights = np.linalg.solve(gram + np.eye(len(gram)), towards)
        guesses = [xs @ weights for xs in _windows(test[0], steps, each, ahead)]
        floors[f"ridge on {steps} steps"] = score(np.concatenate(guesses))
    return floors


def _spans_of(ragged: Ragged) -> Iterator[tuple[int, int]]:
    return zip(ragged.bounds[:-1], ragged.bounds[1:], strict=True)


def _windows(series: Ragged, steps: int, each: bool, ahead: bool) -> Iterator[np.ndarray]:
    """Of each series a row of the last `steps` steps (of each step, where `each`), zeros before the first one, and a one."""
    for begin, end in _spans_of(series):
        one = series.values[begin:end].astype(np.float64)
        before, after = np.zeros((steps - 1, one.shape[1])), np.zeros((steps - 1 if ahead else 0, one.shape[1]))
        padded = np.concatenate([before, one, after])
        seen = np.lib.stride_tricks.sliding_window_view(padded, 2 * steps - 1 if ahead else steps, axis=0)
        rows = seen if each else seen[-1:]
        yield np.concatenate([rows.reshape(len(rows), -1), np.ones((len(rows), 1))], axis=1)
