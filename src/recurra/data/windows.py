"""From series to windows: a context that is read, and a horizon that is forecast."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recurra.data.batch import Batch
from recurra.data.panel import Panel

SMALLEST_DEVIATION = 1e-8  # of the level: below it a series is constant


class Scales(NamedTuple):
    """What the series are shifted and divided by, float64 `[series, variables]` each."""

    mean: np.ndarray
    deviation: np.ndarray


class Inputs(NamedTuple):
    """What a forecaster reads, in its own scale. Each row is one window, or one variable of it where variables are split.

    past      float32 `[rows, context, features]`
    known     float32 `[rows, context + horizon, covariates]`: calendar and what is known ahead
    static    float32 `[rows, covariates]`
    variable  int64 `[rows]`: which variable of its series a row is; 0 where they are together
    """

    past: Tensor
    known: Tensor
    static: Tensor
    variable: Tensor


class Targets(NamedTuple):
    """What is to be forecast.

    values  float32 `[rows, scored, features]`, the end of each window, in the scale of the forecaster
    seen    float32, the same shape: 1 where the value was there, 0 where it was filled
    shift   float64 `[rows, 1, features]`, and
    scale   the same shape: values * scale + shift is in units, to all their digits
    """

    values: Tensor
    seen: Tensor
    shift: Tensor
    scale: Tensor


@dataclass(frozen=True)
class Windows:
    """The windows over a part of each series.

    spans      int64 `[series, 2]`: the first step that may be forecast, and the first that may not; the context may reach
               back before, and where the series itself begins later its first value is repeated
    context    steps that are read
    horizon    steps that are forecast
    stride     steps between the starts of two windows
    scored     steps at the end of each window that are targets: the horizon, or more of the window in training
    scales     of each series
    anchored   whether the last value of the context is taken from each window (SegRNN, arXiv:2308.11200)
    split      whether each variable is a row of its own
    known      `[total, covariates]`, beside the values of the panel; static `[series, covariates]`
    """

    panel: Panel
    spans: np.ndarray
    context: int
    horizon: int
    stride: int
    scored: int
    scales: Scales
    anchored: bool
    split: bool
    known: np.ndarray
    static: np.ndarray

    @cached_property
    def first(self) -> np.ndarray:
        """The first origin of each series."""
        begin, end = self.spans.T
        return np.maximum(begin, np.minimum(self.context, end - self.horizon))

    @cached_property
    def _ends(self) -> np.ndarray:
        """How many windows there are up to the end of each series."""
        last = self.spans[:, 1] - self.horizon
        counts = np.where((last >= self.first) & (self.first > 0), (last - self.first) // self.stride + 1, 0)
        return np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def origins(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The series and the first step of the horizon of these windows, int64 each."""
        series = np.searchsorted(self._ends, windows, side="right")
        before = np.where(series > 0, self._ends[series - 1], 0)
        return series, self.first[series] + (windows - before) * self.stride

    def take(self, windows: np.ndarray, step: int = 0) -> Batch:
        """These windows as a batch, whose inputs are `Inputs` and whose targets are `Targets`."""
        series, origins = self.origins(windows)
        begin, end = self.panel.bounds[series], self.panel.bounds[series + 1]
        places = (begin + origins)[:, None] + np.arange(-self.context, self.horizon)
        inside = np.clip(places, begin[:, None], end[:, None] - 1)
        mean, deviation = self.scales.mean[series][:, None], self.scales.deviation[series][:, None]
        values = (self.panel.values[inside] - mean) / deviation
        level = values[:, self.context - 1 : self.context] if self.anchored else np.zeros_like(mean)
        values = values - level
        there = self.panel.seen[inside[:, -self.scored :]] & (inside == places)[:, -self.scored :, None]
        parts = [values[:, : self.context], values[:, -self.scored :], there, mean + level * deviation, deviation]
        past, wanted, seen = (_tensor(self._rows(part)) for part in parts[:3])
        shift, scale = (torch.from_numpy(np.ascontiguousarray(self._rows(part))) for part in parts[3:])
        copies = self.panel.values.shape[1] if self.split else 1
        inputs = Inputs(
            past,
            _tensor(self.known[inside].repeat(copies, 0)),
            _tensor(self.static[series].repeat(copies, 0)),
            torch.arange(copies).repeat(len(windows)),
        )
        fresh = torch.ones(len(past), dtype=torch.bool)
        return Batch(inputs, Targets(wanted, seen, shift, scale), None, float(seen.sum()), fresh, step)

    def _rows(self, values: np.ndarray) -> np.ndarray:
        """`[windows, steps, variables]`, or `[windows * variables, steps, 1]` where variables are split."""
        if self.split:
            values = values.transpose(0, 2, 1).reshape(-1, values.shape[1], 1)
        return values

    def together(self, rows: Tensor) -> Tensor:
        """`[rows, horizon, features, ...]` as `[windows, horizon, variables, ...]`, the inverse of how variables were split."""
        if not self.split:
            return rows
        return rows[:, :, 0].unflatten(0, (-1, self.panel.values.shape[1])).movedim(1, 2)

    def batches(self, rows: int, seed: int, start: int = 0) -> Iterator[Batch]:
        """Batches of `rows` windows in a random order, each once an epoch, from step `start` on, without end. What comes at a
        step is a function of the windows, the seed and the step alone."""
        size = self.epoch_steps(rows)
        for epoch in count(start // size):
            order = np.random.default_rng([seed, epoch]).permutation(len(self))
            for at in range(start - epoch * size if epoch == start // size else 0, size):
                yield self.take(order[at * rows : (at + 1) * rows], epoch * size + at)

    def epoch_steps(self, rows: int) -> int:
        """How many batches hold every window once."""
        return -(-len(self) // rows)

    def in_order(self, rows: int, most: int | None = None) -> Iterator[tuple[np.ndarray, Batch]]:
        """All windows (or `most`, evenly spread) in order, as their numbers and a batch of at most `rows`."""
        chosen = np.arange(len(self))
        if most is not None and most < len(self):
            chosen = np.linspace(0, len(self) - 1, most).astype(np.int64)
        for at in range(0, len(chosen), rows):
            yield chosen[at : at + rows], self.take(chosen[at : at + rows])


def scales_of(panel: Panel, until: np.ndarray, still: float = 1.0) -> Scales:
    """Mean and standard deviation of what was seen of each variable in the first `until` `[series]` steps of each series. A
    deviation that is nothing beside the level is `still`: with 1 a constant series is shifted only."""
    mean = np.zeros((len(panel), panel.values.shape[1]))
    deviation = np.full_like(mean, still)
    for k, (begin, steps) in enumerate(zip(panel.bounds[:-1], until, strict=True)):
        inside = slice(begin, begin + steps)
        mean[k], deviation[k] = scale_of(panel.values[inside], panel.seen[inside], still)
    return Scales(mean, deviation)


def scale_of(values: np.ndarray, seen: np.ndarray, still: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of what was seen of each column `[steps, variables]`, as in `scales_of`."""
    some = np.maximum(seen.sum(0), 1)
    mean = (values * seen).sum(0) / some
    spread = np.sqrt((((values - mean) * seen) ** 2).sum(0) / some)
    return mean, np.where(spread > SMALLEST_DEVIATION * np.maximum(1e-20, np.abs(mean)), spread, still)


def drawing(context: int, horizon: int, stride: int) -> list[str]:
    """The first windows of a series as lines of text: `-` is read, `#` is forecast."""
    total = context + horizon + 2 * stride
    wide = lambda steps: max(1, round(steps * 60 / total))  # noqa: E731
    bars = [" " * (wide(k * stride) if k else 0) + "-" * wide(context) + "#" * wide(horizon) for k in range(3)]
    return [
        f"{bars[0]}   - context: {context} steps are read",
        f"{bars[1]}   # horizon: {horizon} steps are forecast",
        f"{bars[2]}   stride: the next window begins {stride} step{'s' if stride > 1 else ''} later",
    ]


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, np.float32))
