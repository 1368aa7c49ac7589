"""Floors: what a method without a network reaches on the same data. A network below its floor is said to be so."""

import lzma

import numpy as np

from recurra.embed.ngrams import NGrams
from recurra.errors import UsageError

MOST_TOKENS = 8_000_000  # of the training text, from its end
MOST_BYTES = 16 << 20


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
