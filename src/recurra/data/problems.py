"""When a classic problem counts as solved, and what the best guess without memory reaches on it.

    problem = PROBLEMS["adding"]
    problem.right(target, answer)      whether an answer counts as right
    problem.baseline(100)              what the best guess without memory reaches at length 100, in `problem.unit`

Baselines are those of the test part; the tests work them out by brute force.
"""

from collections.abc import Callable, Sequence
from math import comb, log
from typing import Any, NamedTuple

import numpy as np

from recurra.data.classic import PULSES, REMEMBERED, SYMBOLS, first_marks

SETTLED = 50  # steps of a chaotic series that are not judged: what is not seen has to be gathered first


class Problem(NamedTuple):
    """What to hold an answer against.

    task       the task that learns it
    right      whether the answer to one example is right: (target, answer), both labels, labels of steps, or numbers
    share      the share of right answers from which on the problem counts as solved
    criterion  the same in words, and where it is from
    baseline   of a length: what the best guess without memory reaches, in `unit`
    unit       mse, nats a step, or right, which is the share of right answers
    """

    task: str
    right: Callable[[Any, Any], bool]
    share: float
    criterion: str
    baseline: Callable[[int], float]
    unit: str


def labelled_right(target: Sequence[str], answer: str) -> bool:
    """Whether the label is the one of the target."""
    return tuple(target) == (answer,)


def every_step_right(target: Sequence[str], answer: Sequence[str]) -> bool:
    """Whether the labels of all steps are those of the target."""
    return list(target) == list(answer)


def recalled(target: Sequence[str], answer: Sequence[str]) -> bool:
    """Whether the last ten symbols are those of the target."""
    return every_step_right(target[-REMEMBERED:], answer[-REMEMBERED:])


def knowable_right(target: Sequence[str], answer: Sequence[str]) -> bool:
    """Whether every third bit is right, from the second step on: the exclusive or of the two before it."""
    return every_step_right(target[1::3], answer[1::3])


def nearer_than(most: float) -> Callable[[Any, Any], bool]:
    """Whether every number is off by less than `most`."""
    return lambda target, answer: bool(np.abs(np.asarray(target) - np.asarray(answer)).max() < most)


def followed(variance: float) -> Callable[[Any, Any], bool]:
    """Whether the mean squared error, from step 50 on, is below a hundredth of this variance."""

    def right(target: Any, answer: Any) -> bool:
        apart = (np.asarray(target) - np.asarray(answer))[SETTLED:]
        return bool((apart**2).mean() < 0.01 * variance)

    return right


def marked_mse(length: int) -> float:
    """Of `adding_hochreiter`: the variance of a quarter of the sum of two numbers of variance 1/3, less where the first number
    is marked and so 0."""
    first = 1 / first_marks(length)
    either = first + (1 - first) / (length // 2 - 1)
    return (2 - either) / 3 / 16


def flat_nestings(length: int) -> float:
    """The share of the test strings of `dyck` in which no bracket stands in another: one of Catalan(m) with m pairs."""
    most = length // 2
    return sum((m + 1) / comb(2 * m, m) for m in range(most + 1, 2 * most + 1)) / most


PROBLEMS = {
    "parity": Problem(
        "classify", labelled_right, 1.0, "every string right, at up to twice the length",
        lambda length: 0.5 + 0.25 / length, "right",  # a string of one sign is its own parity
    ),
    "parity-steps": Problem(
        "tag", every_step_right, 1.0, "every step of every string right, at up to twice the length",
        lambda length: (1 - 0.25**length) / length, "right",
    ),
    "adding": Problem(
        "regress", nearer_than(0.04), 0.99, "an error below 0.04 in 99 % (Hochreiter & Schmidhuber 1997)",
        lambda length: 1 / 6, "mse",
    ),
    "adding-hochreiter": Problem(
        "regress", nearer_than(0.04), 0.99, "an error below 0.04 in 99 % (Hochreiter & Schmidhuber 1997)", marked_mse, "mse"
    ),
    "adding-pascanu": Problem(
        "regress", nearer_than(0.2), 0.99, "a squared error below 0.04 in 99 % (Pascanu, Mikolov & Bengio 2013)",
        lambda length: 1 / 24, "mse",
    ),
    "copy": Problem(
        "tag", recalled, 0.99, "all ten symbols in 99 %; published is a loss far below the baseline",
        lambda length: REMEMBERED * log(len(SYMBOLS)) / (length + 2 * REMEMBERED), "nats a step",
    ),
    "temporal-order": Problem(
        "classify", labelled_right, 0.99, "99 % right (Pascanu, Mikolov & Bengio 2013)", lambda length: 1 / 4, "right"
    ),
    "temporal-order-3": Problem(
        "classify", labelled_right, 0.99, "99 % right (Pascanu, Mikolov & Bengio 2013)", lambda length: 1 / 8, "right"
    ),
    "permutation": Problem(
        "classify", labelled_right, 0.99, "99 % right (Pascanu, Mikolov & Bengio 2013)", lambda length: 1 / 2, "right"
    ),
    "xor": Problem(
        "tag", knowable_right, 1.0, "every bit that can be known", lambda length: 0.5 ** ((length + 1) // 3), "right"
    ),
    "flip-flop": Problem(
        "regress", nearer_than(0.5), 0.99, "no step off by 1/2 in 99 %, a bar of ours",
        lambda length: (1 - PULSES) * (length - 1) / length, "mse",
    ),
    "reber": Problem(
        "tag", every_step_right, 1.0, "the legal symbols and no others at every step (Hochreiter & Schmidhuber 1997)",
        lambda length: 0.0, "right",
    ),
    "dyck-1": Problem("tag", every_step_right, 0.99, "99 % of longer strings, a bar of ours", flat_nestings, "right"),
    "dyck-2": Problem("tag", every_step_right, 0.99, "99 % of longer strings, a bar of ours", flat_nestings, "right"),
    "anbn": Problem(
        "tag", every_step_right, 1.0, "every n up to twice the largest trained on (Gers & Schmidhuber 2001)",
        lambda length: 0.0, "right",
    ),
    "anbncn": Problem(
        "tag", every_step_right, 1.0, "every n up to twice the largest trained on (Gers & Schmidhuber 2001)",
        lambda length: 0.0, "right",
    ),
    "mackey-glass": Problem(
        "regress", followed(0.0511), 0.99, "an NMSE below 0.01 in 99 %, a bar of ours", lambda length: 0.0511, "mse"
    ),
    "lorenz": Problem("regress", followed(62.8), 0.99, "an NMSE below 0.01 in 99 %, a bar of ours", lambda length: 62.8, "mse"),
    "henon": Problem("regress", followed(0.52), 0.99, "an NMSE below 0.01 in 99 %, a bar of ours", lambda length: 0.52, "mse"),
}  # fmt: skip
