"""Scores."""

import math


def bits(nats: float) -> float:
    """Natural units of information as bits."""
    return nats / math.log(2)


def perplexity(nats: float, count: int) -> float:
    """exp of the mean surprise: over how many equally likely choices the model hesitates, for each of `count` units."""
    return math.exp(min(nats / count, 700.0)) if count else math.nan
