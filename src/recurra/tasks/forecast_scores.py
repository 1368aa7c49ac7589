"""How good forecasts are: sums over windows, and what they come to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FLAT = 0.1  # of the deviation within the horizon
COPIED = 0.2  # of the way from the last value to what came


@dataclass
class Tally:
    """The errors of one way to forecast, summed over windows, steps and variables. What was filled counts nothing.

    `add` takes some windows: truth, forecast and what was seen `[windows, horizon, variables]`; `spread` `[windows, variables]`,
    the deviation of the series in training; `usual`, of the same shape, the mean error of seasonal naive in the steps before
    (the denominator of MASE). Where one is 0, what would be divided by it is left out.
    """

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    steps: np.ndarray | None = None  # [2, horizon]: mse_scaled of each step, and of how many

    def add(
        self, truth: np.ndarray, guess: np.ndarray, seen: np.ndarray, spread: np.ndarray, usual: np.ndarray
    ) -> None:
        truth, guess, usual, spread = (
            truth.astype(np.float64),
            guess.astype(np.float64),
            usual[:, None],
            spread[:, None],
        )
        error, moves = np.abs(guess - truth), seen & (spread > 0)
        scaled, size = error / np.where(spread > 0, spread, 1), np.abs(truth) + np.abs(guess)
        self._put("mae", error, seen)
        self._put("mse", error**2, seen)
        self._put("mae_scaled", scaled, moves)
        self._put("mse_scaled", scaled**2, moves)
        self._put("smape", np.where(size > 0, 200 * error / np.where(size > 0, size, 1), 0), seen)
        self._put("mase", error / np.where(usual > 0, usual, 1), seen & (usual > 0))
        here = np.stack([(scaled**2 * moves).sum((0, 2)), moves.sum((0, 2))])
        self.steps = here if self.steps is None else self.steps + here

    def add_quantiles(
        self, truth: np.ndarray, quantiles: np.ndarray, seen: np.ndarray, levels: Sequence[float]
    ) -> None:
        """`quantiles` `[windows, horizon, variables, levels]`: the pinball loss averaged over levels, and how often the truth lies
        between the outermost two that are as far from the middle."""
        level, error = np.array(levels), truth[..., None] - quantiles
        self._put("pinball", np.maximum(level * error, (level - 1) * error).mean(-1), seen)
        pair = outermost(levels)
        if pair is not None:
            inside = (quantiles[..., pair[0]] <= truth) & (truth <= quantiles[..., pair[1]])
            self._put(f"coverage_{100 * (levels[pair[1]] - levels[pair[0]]):.4g}", inside, seen)

    def _put(self, name: str, values: np.ndarray, seen: np.ndarray) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + float((values * seen).sum())
        self.counts[name] = self.counts.get(name, 0.0) + float(np.broadcast_to(seen, values.shape).sum())

    def scores(self) -> dict[str, float]:
        """The mean of each; those that nothing was counted of are left out."""
        return {name: self.sums[name] / count for name, count in self.counts.items() if count}

    def by_step(self) -> list[float]:
        """`mse_scaled` of each step of the horizon."""
        return [] if self.steps is None else (self.steps[0] / np.maximum(self.steps[1], 1)).tolist()


@dataclass
class Suspicions:
    """Sums by which a forecast that says nothing is told: of window after window, in deviations of the series."""

    moves: float = 0.0  # of the forecast within the horizon, squared
    moved: float = 0.0  # of what came
    far: float = 0.0  # from the last value to the forecast of the next step
    came: float = 0.0  # from the last value to what came

    def add(self, last: np.ndarray, truth: np.ndarray, guess: np.ndarray, spread: np.ndarray) -> None:
        """Some windows: the last values and `spread` `[windows, variables]`, truth and forecast `[windows, horizon, variables]`. A
        spread of 0 counts nothing."""
        spread = np.where(spread > 0, spread, np.inf)
        self.moves += float(((guess.std(1) / spread) ** 2).sum())
        self.moved += float(((truth.std(1) / spread) ** 2).sum())
        self.far += float((np.abs(guess[:, 0] - last) / spread).sum())
        self.came += float((np.abs(truth[:, 0] - last) / spread).sum())

    def words(self) -> list[str]:
        said = []
        if self.moved > 0 and self.moves < FLAT**2 * self.moved:
            said.append(
                f"the forecast is flat: within the horizon it moves {(self.moves / self.moved) ** 0.5:.0%} as much as what came; "
                "the network found nothing to go by (train longer, or give a longer task.context)"
            )
        if self.came > 0 and self.far < COPIED * self.came:
            said.append(
                f"the forecast is a lagged copy: for the next step it stays {self.far / self.came:.0%} as far from the last value "
                "as what came; compare it with the floor of the last value before you trust its looks"
            )
        return said


def table(report: dict[str, Any]) -> list[str]:
    """The scores of a report and its floors as lines for people."""
    names = list(report["scores"])
    rows = {"this network": report["scores"]} | {f"floor: {name}": one for name, one in report["floor_scores"].items()}
    lines = [f"  {'':<22}" + "".join(f"{name:>13}" for name in names)]
    for name, scores in rows.items():
        cells = (f"{scores[one]:>13.4g}" if one in scores else f"{'-':>13}" for one in names)
        lines.append(f"  {name:<22}" + "".join(cells))
    return lines


def outermost(levels: Sequence[float]) -> tuple[int, int] | None:
    """The places of the lowest and the highest level that are as far from the middle, if there are such."""
    pairs = [
        (a, b)
        for a, low in enumerate(levels)
        for b, high in enumerate(levels)
        if low < 0.5 and abs(low + high - 1) < 1e-9
    ]
    return min(pairs, key=lambda pair: levels[pair[0]]) if pairs else None


def unusual(residuals: np.ndarray) -> np.ndarray:
    """How many usual errors each residual `[steps, variables]` is large: its size over 1.4826 times the median size of its
    variable, which for Gaussian errors is their deviation. NaN is none."""
    size = np.abs(residuals)
    known = [column[~np.isnan(column)] for column in size.T]
    middle = np.array([1.4826 * np.median(column) if column.size else 0.0 for column in known])
    return np.nan_to_num(size / np.where(middle > 0, middle, np.inf))
