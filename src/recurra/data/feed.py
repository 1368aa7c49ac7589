"""From a long row of ids to batches whose rows go on where they stopped."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import cast

import numpy as np
import torch
from torch import Tensor

from recurra.data.batch import Batch


@dataclass(frozen=True)
class Corpus:
    """Texts one after another. `ids` `[total]` integers (may be a memory map); text k is `ids[bounds[k]:bounds[k+1]]`. Series stand
    in it in the same way, `[total, ...]` integers or numbers."""

    ids: np.ndarray
    bounds: np.ndarray

    @property
    def transitions(self) -> int:
        """How many times a token follows another in the same text."""
        return int(np.maximum(np.diff(self.bounds) - 1, 0).sum())

    def segments(self) -> list[tuple[int, int]]:
        """For each text the half-open range of positions p such that token p + 1 follows token p in it."""
        pairs = zip(self.bounds[:-1], self.bounds[1:], strict=True)
        return [(int(begin), int(end) - 1) for begin, end in pairs if end - begin > 1]


@dataclass(frozen=True)
class Stream:
    """A corpus read by `rows` readers side by side, `chunk` steps at a time, over and over.

    Each reader has an equal share of the corpus. Within an epoch a row goes on where its last window stopped, and is
    `fresh` only where a text (or the epoch) begins; a text that ends inside a window ends the row there. The first
    window of each epoch has a random length, so that the cuts do not fall on the same places twice. Every transition is
    read exactly once an epoch.

    What comes at training step s is a function of the corpus, the seed and s alone, so that a run resumes from its step.
    """

    corpus: Corpus
    rows: int
    chunk: int
    seed: int = 0

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """The batches of training step `start`, `start + 1` and so on, without end."""
        step = 0
        for epoch in count():
            windows = self.windows(epoch)
            steps = max(len(row) for row in windows)
            for at in range(max(start - step, 0), steps):
                yield self._batch(windows, at, step + at)
            step += steps

    def epoch_steps(self) -> int:
        """The number of steps of the first epoch; later ones differ by one at most for each text."""
        return max(len(row) for row in self.windows(0))

    def windows(self, epoch: int) -> list[np.ndarray]:
        """For each row its windows in order: int64 `[windows, 3]` of first position, length, fresh."""
        head = int(np.random.default_rng([self.seed, epoch]).integers(1, self.chunk + 1))
        return [_cut(spans, self.chunk, head) for spans in self._shares()]

    def _shares(self) -> list[list[tuple[int, int]]]:
        """The segments of the corpus dealt out to the rows in equal numbers of transitions, in order."""
        segments, total = self.corpus.segments(), self.corpus.transitions
        edges = [total * row // self.rows for row in range(self.rows + 1)]
        shares: list[list[tuple[int, int]]] = [[] for _ in range(self.rows)]
        row, done = 0, 0
        for begin, end in segments:
            at = begin
            while at < end:
                while edges[row + 1] <= done:
                    row += 1
                step = min(end - at, edges[row + 1] - done)
                shares[row].append((at, at + step))
                at, done = at + step, done + step
        return shares

    def _batch(self, windows: list[np.ndarray], at: int, step: int) -> Batch:
        here = np.stack([row[at] if at < len(row) else np.zeros(3, np.int64) for row in windows])
        begins, lengths, fresh = here.T
        time = int(lengths.max())
        places = np.minimum(begins[:, None] + np.arange(time + 1), len(self.corpus.ids) - 1)
        found = self.corpus.ids[places]
        tokens = torch.from_numpy(found.astype(np.float32 if found.dtype.kind == "f" else np.int64))
        return Batch(
            inputs=tokens[:, :-1],
            targets=tokens[:, 1:],
            lengths=None if (lengths == time).all() else torch.from_numpy(lengths.copy()),
            weight=float(lengths.sum()),
            fresh=torch.from_numpy(fresh.astype(bool)),
            step=step,
        )


def _cut(spans: list[tuple[int, int]], chunk: int, head: int) -> np.ndarray:
    """Windows of `chunk` over spans of positions; the very first has length `head`."""
    parts = []
    for number, (begin, end) in enumerate(spans):
        starts = np.arange(begin, end, chunk)
        if number == 0:
            starts = np.concatenate([[begin], np.arange(begin + head, end, chunk)])
        ends = np.append(starts[1:], end)
        fresh = np.zeros(len(starts), np.int64)
        fresh[0] = 1
        parts.append(np.stack([starts, ends - starts, fresh], axis=1))
    return np.concatenate(parts) if parts else np.zeros((0, 3), np.int64)


@dataclass(frozen=True)
class Ragged:
    """Sequences of different lengths, one after another: sequence k is `values[bounds[k]:bounds[k+1]]`."""

    values: np.ndarray
    bounds: np.ndarray

    @classmethod
    def of(cls, parts: Sequence[np.ndarray], empty: np.ndarray) -> "Ragged":
        """Joined; `empty` is what no parts are: it has their dtype and the shape of a step."""
        bounds = np.cumsum([0, *(len(part) for part in parts)])
        return cls(np.concatenate([empty[:0], *parts]), bounds)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.bounds)

    def padded(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Those rows side by side, `[rows, time, ...]` with zeros past their ends, and their lengths, int64 `[rows]`."""
        lengths = self.lengths[rows]
        out = np.zeros((len(rows), int(lengths.max(initial=0)), *self.values.shape[1:]), self.values.dtype)
        for at, row in enumerate(rows):
            out[at, : lengths[at]] = self.values[self.bounds[row] : self.bounds[row + 1]]
        return torch.from_numpy(out), torch.from_numpy(lengths.astype(np.int64))


POOL = 64  # batches whose rows are sorted by length together


@dataclass(frozen=True)
class Buckets:
    """Rows of different lengths in batches of `rows` rows of about the same length, in a random order, over and over.

    In each epoch the rows are shuffled, taken in pools, and sorted by length within each: so there is little padding, and yet
    no two epochs have the same batches. With `steps`, a batch has as many rows as have no more steps than that together, padding
    among them (one row at least); then all rows are one pool, so that every epoch has as many batches. Which rows make up
    training step s is a function of the lengths, the seed and s alone.
    """

    lengths: np.ndarray
    rows: int
    seed: int = 0
    steps: int | None = None

    def batches(self, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """The step, and the indices of the rows of its batch, from step `start` on, without end."""
        size = self.epoch_steps()
        for epoch in count(start // size):
            batches = self.epoch(epoch)
            for at in range(start - epoch * size if epoch == start // size else 0, size):
                yield epoch * size + at, batches[at]

    def epoch_steps(self) -> int:
        return -(-len(self.lengths) // self.rows) if self.steps is None else len(self._cuts)

    def epoch(self, number: int) -> list[np.ndarray]:
        """The batches of an epoch."""
        rng = np.random.default_rng([self.seed, number])
        order = rng.permutation(len(self.lengths))
        batches = self._by_rows(order) if self.steps is None else self._by_steps(order)
        return [batches[at] for at in rng.permutation(len(batches))]

    def _by_rows(self, order: np.ndarray) -> list[np.ndarray]:
        pool, batches = POOL * self.rows, []
        for at in range(0, len(order), pool):
            some = self._sorted(order[at : at + pool])
            batches += [some[begin : begin + self.rows] for begin in range(0, len(some), self.rows)]
        return batches

    def _by_steps(self, order: np.ndarray) -> list[np.ndarray]:
        return np.split(self._sorted(order), self._cuts[1:])

    @cached_property
    def _cuts(self) -> list[int]:
        """Where batches begin in the rows from the shortest to the longest: the same in every epoch."""
        cuts, begin = [0], 0
        for at, length in enumerate(np.sort(self.lengths).tolist()):
            if at > begin and (at + 1 - begin) * length > cast(int, self.steps):
                cuts.append(at)
                begin = at
        return cuts

    def _sorted(self, rows: np.ndarray) -> np.ndarray:
        return rows[np.argsort(self.lengths[rows], kind="stable")]

    def padding(self) -> float:
        """The share of the steps of the first epoch that are padding."""
        padded = sum(len(batch) * int(self.lengths[batch].max()) for batch in self.epoch(0))
        return 1 - float(self.lengths.sum()) / padded if padded else 0.0
