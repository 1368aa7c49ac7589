"""How surprised a model is by a text: the sum of -ln p(token | all before it)."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recurra.cells import Cell
from recurra.data.feed import Corpus
from recurra.models import resting
from recurra.state import State, take

MOST_ROWS = 64
MOST_SCORES = 2**24  # numbers held at once for the scores of one window


def surprise(model: Cell, corpus: Corpus, readers: int, warmup: int) -> tuple[float, int]:
    """(nats, tokens) over a corpus, with the state carried through each text.

    A text is shared out to as many readers as make `readers` in all, each with `warmup` tokens before its share that it
    reads and that are not counted. The model is left as it was, and no random number is drawn.
    """
    with resting(model):
        parts = [_read(model, corpus, group) for group in _groups(_shares(corpus, readers, warmup))]
    return sum(nats for nats, _ in parts), sum(count for _, count in parts)


def _shares(corpus: Corpus, readers: int, warmup: int) -> list[tuple[int, int, int]]:
    """(begin, counted from, end) positions of transitions, for each reader."""
    length = max(1, -(-corpus.transitions // readers))
    return [
        (max(begin, at - warmup), at, min(at + length, end))
        for begin, end in corpus.segments()
        for at in range(begin, end, length)
    ]


def _groups(shares: list[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    longest_first = sorted(shares, key=lambda share: share[0] - share[2])
    for at in range(0, len(longest_first), MOST_ROWS):
        yield longest_first[at : at + MOST_ROWS]


def _read(model: Cell, corpus: Corpus, group: list[tuple[int, int, int]]) -> tuple[float, int]:
    """Read a group side by side, longest first; a row that has ended leaves, so that no step is padding."""
    begins, counted, ends = (np.array(column) for column in zip(*group, strict=True))
    device = next(model.parameters()).device
    state: State = model.initial_state(len(group))
    window = max(1, min(512, MOST_SCORES // (len(group) * model.output_size)))
    nats, count, at, rows = 0.0, 0, 0, len(group)
    while rows:
        steps = min(window, int((ends - begins)[:rows].min()) - at)
        places = (begins[:rows] + at)[:, None] + np.arange(steps + 1)
        tokens = torch.from_numpy(corpus.ids[places].astype(np.int64)).to(device)
        scores, state = model.unroll(tokens[:, :-1], state)
        counts = torch.from_numpy(places[:, :-1] >= counted[:rows, None]).to(device)
        nats += float((_nats(scores, tokens[:, 1:]) * counts).sum(dtype=torch.float64))
        count += int(counts.sum())
        at += steps
        left = int(((ends - begins)[:rows] > at).sum())
        if left < rows:
            state, rows = take(state, torch.arange(left, device=device)), left
    return nats, count


def _nats(scores: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
