"""What forecasts without a network reach: the last value, a straight line, the last season; for music, counted keys."""

from collections.abc import Callable

import numpy as np

FLOORS = ("last value", "drift", "seasonal naive")


def naive(
    values: np.ndarray, begins: np.ndarray, origins: np.ndarray, horizon: int, season: int
) -> dict[str, np.ndarray]:
    """Each floor's forecasts `[windows, horizon, variables]`: window i stands `origins[i]` steps after row `begins[i]` of `values`
    `[total, variables]`, where its series begins.

    The last value; the straight line through the first and the last one; and the values of the last season, over and over
    (Hyndman & Athanasopoulos 2021, Forecasting: principles and practice, 5.2), where the series is as long as that.
    """
    ahead, last = np.arange(horizon), begins + origins - 1
    level = np.repeat(values[last][:, None], horizon, 1)
    slope = (values[last] - values[begins]) / np.maximum(1, origins - 1)[:, None]
    back = np.where(origins >= season, season - 1, 0)[:, None]
    repeated = values[last[:, None] - back + ahead % season * (back > 0)]
    lines = (level, level + slope[:, None] * (ahead + 1)[:, None], repeated)
    return dict(zip(FLOORS, lines, strict=True))


def seasonal_error(history: np.ndarray, season: int) -> np.ndarray:
    """The mean absolute error of seasonal naive, one step at a time, within `history` `[steps, variables]`: the denominator of
    MASE (Hyndman & Koehler 2006), `[variables]`; 0 for a history not longer than a season, which has none."""
    if len(history) <= season:
        return np.zeros(history.shape[1])
    return np.abs(history[season:] - history[:-season]).mean(0)


def frame_floors(train: list[np.ndarray], test: list[np.ndarray]) -> dict[str, float]:
    """Nats a step of the second and later frames of `test`, sequences of zeros and ones `[steps, keys]`: each key by its
    frequency in `train`, and each key by its frequency after its own last value, one added to every count (Laplace)."""
    pairs = [(one[:-1], one[1:]) for one in train if len(one) > 1]
    before, after = (np.concatenate([pair[side] for pair in pairs]).astype(bool) for side in (0, 1))
    often = (after.sum(0) + 1) / (len(after) + 2)
    still = ((before & after).sum(0) + 1) / (before.sum(0) + 2)
    begun = ((~before & after).sum(0) + 1) / ((~before).sum(0) + 2)
    return {
        "independent keys": _nats(test, lambda past: np.broadcast_to(often, past.shape)),
        "each key after itself": _nats(test, lambda past: np.where(past, still, begun)),
    }


def _nats(test: list[np.ndarray], chance: Callable[[np.ndarray], np.ndarray]) -> float:
    total = steps = 0.0
    for one in test:
        past, truth = one[:-1].astype(bool), one[1:].astype(bool)
        on = chance(past)
        total -= float(np.log(np.where(truth, on, 1 - on)).sum())
        steps += len(truth)
    return total / max(1.0, steps)
