"""Which rows train and which are held back: by a seed, every label in its share."""

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from recurra.errors import DataError

_ALONE = object()


def folds(labels: Sequence[Hashable], count: int, seed: int) -> list[np.ndarray]:
    """The rows in `count` parts of about the same size, each label spread over them as evenly as it can be; rows in order.

    Raises DataError where there are fewer rows than parts.
    """
    if len(labels) < count:
        raise DataError(f"{len(labels)} examples cannot be shared out to {count} parts; give more data or fewer parts")
    rng = np.random.default_rng([seed, count])
    order = rng.permutation(len(labels))
    rank = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    dealt = sorted(order, key=lambda row: rank[labels[row]])  # stable: rows of a label stay shuffled
    return [np.sort(np.array(dealt[part::count], np.int64)) for part in range(count)]


def held_back(labels: Sequence[Hashable], share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The rows that train, and a `share` of each label's rows that are held back, at least one row in all.

    Raises DataError where one of the two would have no row.
    """
    rng = np.random.default_rng([seed, 0])
    order = rng.permutation(len(labels))
    rows_of: dict[Hashable, list[int]] = {}
    often = Counter(labels)
    for row in order:  # those that nothing else is like are spread as one
        rows_of.setdefault(labels[row] if often[labels[row]] > 1 else _ALONE, []).append(int(row))
    held: list[int] = []
    owed = 0.0
    for rows in rows_of.values():  # what is rounded away at one label is made up for at the next
        owed += share * len(rows)
        some = min(len(rows) - 1, round(owed)) if len(rows) > 1 else 0
        held, owed = held + rows[:some], owed - some
    if not held:
        held = [int(order[0])] if len(labels) > 1 else []
    kept = np.setdiff1d(np.arange(len(labels)), held)
    if not len(kept) or not held:
        raise DataError(f"{len(labels)} examples are too few to keep some for validation; give more, or --valid a file")
    return kept, np.sort(np.array(held, np.int64))
