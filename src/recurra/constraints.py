"""What a text that is searched for has to hold: the tokens that it begins with, and phrases that occur in it."""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple, final

import torch
from torch import Tensor

from recurra.errors import UsageError


class Progress(NamedTuple):
    """How far texts are with their phrases: whether the last l tokens are the first l of the phrase, for l = 0, 1, ..., and
    whether the phrase has occurred."""

    heads: Tensor  # bool [rows, ..., phrases, places]
    met: Tensor  # bool [rows, ..., phrases]


@final
class Phrases(NamedTuple):
    """Sequences of tokens that have to occur, any number of them for each row; they may overlap. They are looked for all at once
    and token by token, by the shift-and method (Baeza-Yates & Gonnet 1992, doi:10.1145/135239.135243)."""

    tokens: Tensor  # int64 [rows, phrases, places], -1 past a phrase's end
    lengths: Tensor  # int64 [rows, phrases], 0 where a row has fewer

    @classmethod
    def of(cls, rows: Sequence[Sequence[Sequence[int]]], device: torch.device) -> "Phrases":
        """For each row its phrases. Raises UsageError for one without tokens."""
        if any(len(phrase) == 0 for row in rows for phrase in row):
            raise UsageError("phrases: one of them is empty; wanted at least one token in each, or leave it out")
        most = max(map(len, rows), default=0)
        tokens = padded(list(chain.from_iterable([*row, *[()] * (most - len(row))] for row in rows)), device)
        tokens = tokens.view(len(rows), most, tokens.shape[1])
        return cls(tokens, (tokens >= 0).sum(2))

    def begin(self, width: int) -> Progress:
        """The progress of `width` texts of no tokens in each row."""
        heads = torch.zeros_like(self.tokens, dtype=torch.bool)
        heads[:, :, 0] = True
        return Progress(*(part[:, None].repeat_interleave(width, 1) for part in (heads, self.lengths == 0)))

    def read(self, progress: Progress, tokens: Tensor) -> Progress:
        """The progress of each text `[rows, texts]` with each of `tokens` `[rows, texts, choices]` after it: leaves
        `[rows, texts, choices, phrases, ...]`."""
        hits = progress.heads[:, :, None] & (tokens[..., None, None] == self.tokens[:, None, None])
        last = torch.arange(hits.shape[-1], device=tokens.device) == self.lengths[:, None, None, :, None] - 1
        heads = torch.cat([torch.ones_like(hits[..., :1]), hits[..., :-1]], -1)
        return Progress(heads, progress.met[:, :, None] | (hits & last).any(-1))

    def wanted(self, progress: Progress) -> Tensor:
        """The next token of each phrase `[rows, texts, phrases]`; -1 of one that has occurred."""
        width = progress.met.shape[1]
        following = self.tokens[:, None].expand(-1, width, -1, -1).gather(3, _longest(progress.heads)[..., None])
        return following[..., 0].masked_fill(progress.met, -1)

    def reached(self, progress: Progress) -> Tensor:
        """How many tokens of the phrases are there, int64 `[rows, ...]`: all of one that has occurred, else the longest beginning
        of it that the text ends with."""
        lengths = self.lengths.view(len(self.lengths), *[1] * (progress.met.dim() - 2), -1)
        return torch.where(progress.met, lengths, _longest(progress.heads)).sum(-1)


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """int64 `[rows, longest]` with -1 past each row's end. Raises UsageError for a token below 0."""
    if any(token < 0 for row in rows for token in row):
        raise UsageError("a token of a prefix or a phrase was below 0; wanted the ids of the vocabulary")
    longest = max(map(len, rows), default=0)
    return torch.tensor([[*row, *[-1] * (longest - len(row))] for row in rows], dtype=torch.int64, device=device).view(
        len(rows), longest
    )


def in_turn(values: Tensor, banks: Tensor) -> Tensor:
    """An order `[rows, choices]` in which a beam is shared out evenly: the best choice of each bank, the highest bank first, then
    the second best of each, and so on. A bank with too few leaves its share to the others (Post & Vilar 2018, arXiv:1804.06609).

    `values` and `banks` `[rows, choices]`; a choice of value -inf comes last. Of one bank only, it is the order by value.
    """
    best = values.argsort(dim=1, descending=True, stable=True)
    lower, order = (-banks.gather(1, best)).sort(dim=1, stable=True)
    order = best.gather(1, order)
    places = torch.arange(values.shape[1], device=values.device)
    turns = places - torch.searchsorted(lower, lower)  # of sorted banks, the place of the first of the same
    turns = turns.masked_fill(values.gather(1, order) == -torch.inf, len(places))
    return order.gather(1, turns.argsort(dim=1, stable=True))


def _longest(heads: Tensor) -> Tensor:
    return (heads * torch.arange(heads.shape[-1], device=heads.device)).amax(-1)
