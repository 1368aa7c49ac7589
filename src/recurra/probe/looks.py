"""What attention weights come to: how spread they are, and how much each place was looked at."""

from typing import NamedTuple

import numpy as np

from recurra.errors import UsageError

PASSED_OVER, AGAIN = 0.1, 2.0  # looks that a place got in all, below and above which it is told of


class Attention(NamedTuple):
    """Of looks `weights` [written, places], each row summing to 1:

    entropy     [written]: of each look in bits, from 0 (one place) to log2 places (all alike)
    places      [written]: how many places that is as if all were alike: 2 to the entropy
    coverage    [places]: the sum of what each place got, over all looks
    peak        [written]: the place looked at most
    """

    weights: np.ndarray
    entropy: np.ndarray
    places: np.ndarray
    coverage: np.ndarray
    peak: np.ndarray
    words: list[str]


def attention(weights: np.ndarray) -> Attention:
    """The entropy and coverage (Tu et al. 2016, arXiv:1601.04811) of attention. Raises UsageError where rows do not sum to 1."""
    weights = np.asarray(weights, np.float64)
    if weights.ndim != 2 or not weights.size or not np.allclose(weights.sum(1), 1, atol=1e-3) or (weights < 0).any():
        raise UsageError(
            f"attention of shape {list(weights.shape)} was given; wanted [written, places], each row summing to 1"
        )
    entropy = -(weights * np.log2(weights, where=weights > 0, out=np.zeros_like(weights))).sum(1)
    coverage, peak = weights.sum(0), weights.argmax(1)
    forward = float((np.diff(peak) >= 0).mean()) if len(peak) > 1 else 1.0
    passed, again = int((coverage < PASSED_OVER).sum()), int((coverage > AGAIN).sum())
    words = [
        f"A look takes in {np.median(2**entropy):.1f} of {weights.shape[1]} places (the median; {entropy.mean():.2f} bits on "
        f"average), and goes on or stays {forward:.0%} of the time; {passed} places were passed over (less than {PASSED_OVER:g} "
        f"looks in all), {again} looked at more than {AGAIN:g} times."
    ]
    return Attention(weights, entropy, 2**entropy, coverage, peak, words)
