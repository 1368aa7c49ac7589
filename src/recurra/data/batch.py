"""Batch: the plain record that travels from the data to the loss."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from recurra.state import tmap


@dataclass(frozen=True)
class Batch:
    """Some rows of data, some steps long.

    inputs    `[batch, time, ...]`, or a tuple of such tensors
    targets   `[batch, time, ...]` for one target a step, or `[batch, ...]` for one a row
    lengths   int64 `[batch]`: where each row ends; None where every row is full
    weight    the number of targets (or their summed weights): a loss is a sum divided by it
    fresh     bool `[batch]`: the rows that begin a new sequence; the others go on where they stopped
    step      the training step, counted from 0: what schedules hang on
    """

    inputs: Any
    targets: Any
    lengths: Tensor | None
    weight: float
    fresh: Tensor
    step: int = 0

    @property
    def time(self) -> int:
        """The number of steps of the longest row."""
        return first(self.inputs).shape[1]

    @property
    def rows(self) -> int:
        """The number of rows."""
        return first(self.inputs).shape[0]

    def windows(self, steps: int | None) -> Iterator["Batch"]:
        """The batch cut in time into parts of at most `steps`; joined they are the whole. Only the first is fresh.

        Needs targets with a time axis. The weight is shared out by the number of real steps in each part.
        """
        if steps is None or steps >= self.time:
            yield self
            return
        total = self._real_steps(0, self.time)
        for begin in range(0, self.time, steps):
            yield self._window(begin, min(begin + steps, self.time), total)

    def _window(self, begin: int, end: int, total: int) -> "Batch":
        return replace(
            self,
            inputs=tmap(lambda x: x[:, begin:end], self.inputs),
            targets=tmap(lambda x: x[:, begin:end], self.targets),
            lengths=None if self.lengths is None else (self.lengths - begin).clamp(0, end - begin),
            weight=self.weight * self._real_steps(begin, end) / total if total else 0.0,
            fresh=self.fresh if begin == 0 else torch.zeros_like(self.fresh),
        )

    def _real_steps(self, begin: int, end: int) -> int:
        if self.lengths is None:
            return self.rows * (end - begin)
        return int((self.lengths - begin).clamp(0, end - begin).sum())

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        move = lambda x: x.to(device)  # noqa: E731
        lengths = None if self.lengths is None else self.lengths.to(device)
        return replace(
            self,
            inputs=tmap(move, self.inputs),
            targets=tmap(move, self.targets),
            lengths=lengths,
            fresh=self.fresh.to(device),
        )


def first(tree: Any) -> Tensor:
    """The first tensor of a tensor or a tuple of tensors."""
    return first(tree[0]) if isinstance(tree, tuple) else tree
