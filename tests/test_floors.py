"""Floors: numbers that can be had without this package."""

import lzma
from math import log2

import numpy as np
import pytest

from recurra.embed.ngrams import NGrams
from recurra.errors import UsageError
from recurra.tasks import floors

TRAIN, TEST = b"the cat sat on the mat and the dog sat on the cat. " * 40, b"the dog sat on the mat. "
IDS, TEST_IDS = np.frombuffer(TRAIN, np.uint8).astype(np.uint16), np.frombuffer(TEST, np.uint8).astype(np.uint16)


def test_unigrams_by_hand() -> None:
    bits = floors.unigram_bits(np.array([0, 0, 0, 1]), np.array([0, 1, 2]), size=4)
    assert bits == pytest.approx(-log2(4 / 8) - log2(2 / 8) - log2(1 / 8))


def test_n_grams_are_the_model() -> None:
    assert floors.ngram_bits(IDS, TEST_IDS, 256, order=3) == -NGrams(IDS, 3, 256).log2_probabilities(TEST_IDS).sum()


def test_xz_counts_what_the_test_text_adds() -> None:
    noise = np.random.default_rng(0).bytes(5000)
    assert floors.xz_bits(noise, noise) < 0.1 * 8 * 5000 < floors.xz_bits(TRAIN, noise)


def test_xz_is_that_of_the_command_line() -> None:
    words = " ".join(map(str, np.random.default_rng(0).integers(0, 300, 5000))).encode()
    best, fast = (len(lzma.compress(words, preset=preset)) for preset in (9, 0))
    assert floors.xz_bits(b"", words) == 8 * (best - len(lzma.compress(b"", preset=9)))
    assert best < fast


def test_floors_are_bits_per_character() -> None:
    found = floors.language_floors(IDS, TEST_IDS, 257, TRAIN, TEST, characters=len(TEST))
    assert found == {
        "unigram": pytest.approx(floors.unigram_bits(IDS, TEST_IDS, 257) / len(TEST)),
        "5-gram Kneser-Ney": pytest.approx(floors.ngram_bits(IDS, TEST_IDS, 257, 5) / len(TEST)),
        "xz -9": pytest.approx(floors.xz_bits(TRAIN, TEST) / len(TEST)),
    }
    assert found["5-gram Kneser-Ney"] < 1.5 < found["unigram"] < 5
    halved = floors.language_floors(IDS, TEST_IDS, 257, TRAIN, TEST, characters=2 * len(TEST))
    assert halved == {name: pytest.approx(value / 2) for name, value in found.items()}


def test_only_the_end_of_a_long_training_text_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floors, "MOST_TOKENS", 500)
    monkeypatch.setattr(floors, "MOST_BYTES", 600)
    test_ids = np.random.default_rng(0).integers(0, 256, 300).astype(np.uint16)
    test = test_ids.astype(np.uint8).tobytes()
    alone = floors.language_floors(IDS, test_ids, 257, TRAIN, test, len(test))
    longer = np.concatenate([test_ids, IDS])
    assert floors.language_floors(longer, test_ids, 257, test + TRAIN, test, len(test)) == alone


def test_a_test_text_without_characters_is_refused() -> None:
    with pytest.raises(UsageError, match="0 characters"):
        floors.language_floors(IDS, TEST_IDS[:0], 257, TRAIN, b"", 0)
