"""Writing with a cell: one step after another, each input chosen from the output before."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recurra.cells import Cell
from recurra.errors import RecurraError, UsageError
from recurra.state import State

SMALLEST_TEMPERATURE = 1e-8  # below it, division would leave the numbers of 32 bits: the best token is taken, as at 0
Feed = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def generate(cell: Cell, first: Tensor, state: State, feed: Feed, steps: int) -> Iterator[tuple[Tensor, State]]:
    """Run `cell` for `steps` steps from the input `first` and `state`; yield what is emitted and the state after it.

    `feed(output, t) -> emitted, next input` decides: sampling, a forced prefix and a known future are all feeds.
    """
    x = first
    for t in range(steps):
        output, state = cell(x, state)
        emitted, x = feed(output, t)
        yield emitted, state


@dataclass
class Sampler:
    """Choose tokens `[batch]` from scores `[batch, vocabulary]`.

    temperature         scores are divided by it; 0 takes the best token every time
    top_k               only the k best tokens (0: all)
    top_p               only the best tokens that together hold this probability (Holtzman et al. 2020, arXiv:1904.09751)
    min_p               only tokens with at least this share of the best one's probability (arXiv:2407.01082)
    repetition_penalty  scores of tokens written before are divided (if positive) or multiplied by it
                        (Keskar et al. 2019, arXiv:1909.05858); 1: off
    never               tokens that are never chosen
    seed                the same seed writes the same text
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    never: tuple[int, ...] = ()
    seed: int = 0
    _seen: Tensor | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, low, high in [
            ("temperature", 0.0, float("inf")),
            ("top_k", 0, float("inf")),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
        ]:
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name} was {value}, wanted a number from {low:g} to {high:g}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise UsageError(
                f"repetition_penalty was {self.repetition_penalty}, wanted a number above 0; 1 switches it off"
            )
        if not -(2**63) <= self.seed < 2**63:
            raise UsageError(f"seed was {self.seed}, wanted a number of at most 64 bits")
        self._random = torch.Generator().manual_seed(self.seed)

    def __call__(self, scores: Tensor, t: int) -> tuple[Tensor, Tensor]:
        tokens = self.pick(scores)
        return tokens, tokens

    def pick(self, scores: Tensor) -> Tensor:
        """The next token of each row."""
        scores = self._penalised(scores.detach().float().cpu())
        if not bool(scores.amax(dim=1).isfinite().all()):
            raise RecurraError(
                "the scores of the model are not finite: its training has diverged; "
                "train it anew with a lower --set optimizer.rate"
            )
        if self.temperature < SMALLEST_TEMPERATURE:
            tokens = scores.argmax(dim=1)
        else:
            chances = self.probabilities(scores)
            tokens = torch.multinomial(chances, 1, generator=self._random)[:, 0]
        if self._seen is not None:
            self._seen[torch.arange(len(tokens)), tokens] = True
        return tokens

    def probabilities(self, scores: Tensor) -> Tensor:
        """What is drawn from, `[batch, vocabulary]`: the softmax at this temperature, cut and made to sum to 1 again."""
        chances = (scores / self.temperature).softmax(dim=1)
        keep = torch.ones_like(chances, dtype=torch.bool)
        if 0 < self.top_k < chances.shape[1]:
            keep &= chances >= chances.topk(self.top_k, dim=1).values[:, -1:]
        if self.min_p > 0:
            keep &= chances >= self.min_p * chances.amax(dim=1, keepdim=True)
        if self.top_p < 1:
            ranked, order = chances.sort(dim=1, descending=True, stable=True)
            before = ranked.cumsum(dim=1) - ranked  # the probability of all better tokens; the best is always kept
            keep &= torch.zeros_like(keep).scatter(1, order, (before < self.top_p) | (before == 0))
        chances = torch.where(keep, chances, torch.zeros(()))
        return chances / chances.sum(dim=1, keepdim=True)

    def _penalised(self, scores: Tensor) -> Tensor:
        if self.never:
            scores = scores.clone()
            scores[:, list(self.never)] = -torch.inf
        if self.repetition_penalty == 1:
            return scores
        if self._seen is None:
            self._seen = torch.zeros_like(scores, dtype=torch.bool)
        weaker = torch.where(scores > 0, scores / self.repetition_penalty, scores * self.repetition_penalty)
        return torch.where(self._seen, weaker, scores)
