"""Writing with a cell: one step after another, each input chosen from the output before."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
from torch import Tensor

from recurra.cells import Cell
from recurra.errors import RecurraError, UsageError
from recurra.state import State, take

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


class Hypothesis(NamedTuple):
    """One continuation: its tokens without the end mark, their summed log-probability in nats (the end mark's with them where it
    `ended`), and the score that it was ranked by."""

    tokens: list[int]
    log_probability: float
    score: float
    ended: bool


@final
@dataclass(frozen=True)
class Beam:
    """How the likeliest continuations are searched for, over any cell that reads tokens.

    width            hypotheses that are followed side by side; 1 takes the best token every time
    steps            the most tokens of one, the end mark among them
    end              the token that ends one
    length_penalty   alpha of score = log-probability / ((5 + tokens) / 6) ** alpha (Wu et al. 2016, arXiv:1609.08144); 0: none
    no_repeat        no n-gram of this many tokens occurs twice in one (Paulus et al. 2018, arXiv:1705.04304); 0: they may
    never            tokens that are never chosen
    """

    width: int
    steps: int
    end: int
    length_penalty: float = 0.0
    no_repeat: int = 0
    never: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.width < 1 or self.steps < 1 or self.no_repeat < 0:
            raise UsageError(
                f"a beam of width {self.width}, {self.steps} steps and no_repeat {self.no_repeat}; wanted at least 1, 1 and 0"
            )

    @torch.no_grad()
    def search(
        self, cell: Callable[[Tensor, State], tuple[Tensor, State]], first: Tensor, state: State
    ) -> list[list[Hypothesis]]:
        """For each row, which reads `first` int64 [batch] from `state`, at most `width` continuations, the best first. `cell` makes
        scores [rows, vocabulary] and the next state of tokens [rows] and a state: a cell, or the `step` of a `Snapshot`.

        A row's search is over when it has `width` ended hypotheses, or at the last step, where those that have not ended count too.
        """
        batch, width = len(first), self.width
        rows = torch.arange(batch, device=first.device).repeat_interleave(width)
        state, inputs, tokens = take(state, rows), first[rows], first.new_zeros(batch * width, 0)
        sums = torch.full((batch, width), -torch.inf, device=first.device)
        sums[:, 0] = 0.0  # all are the same yet
        done: list[list[Hypothesis]] = [[] for _ in range(batch)]
        for t in range(self.steps):
            scores, state = cell(inputs, state)
            logs = self._allowed(_log_probabilities(scores), tokens)
            best = (sums[:, :, None] + logs.view(batch, width, -1)).flatten(1)
            values, places = best.topk(min(2 * width, best.shape[1]), dim=1)
            parents, chosen = places // logs.shape[1], places % logs.shape[1]
            ended = chosen == self.end
            self._keep(done, values, parents, ended, tokens, t)
            values = values.masked_fill(ended, -torch.inf)
            order = values.argsort(dim=1, descending=True, stable=True)[:, :width]
            sums, parents, chosen = (part.gather(1, order) for part in (values, parents, chosen))
            rows = (parents + width * torch.arange(batch, device=first.device)[:, None]).flatten()
            state, inputs = take(state, rows), chosen.flatten()
            tokens = torch.cat([tokens[rows], inputs[:, None]], dim=1)
            if all(len(one) >= width for one in done) or not sums.isfinite().any():
                break
        self._keep_rest(done, sums, tokens)
        return [sorted(one, key=lambda hypothesis: -hypothesis.score)[:width] for one in done]

    def score(self, log_probability: float, tokens: int) -> float:
        """What hypotheses of so many tokens, the end mark among them, are ranked by."""
        return log_probability / ((5 + tokens) / 6) ** self.length_penalty

    def _allowed(self, logs: Tensor, tokens: Tensor) -> Tensor:
        if self.never:
            logs = logs.clone()
            logs[:, list(self.never)] = -torch.inf
        size = self.no_repeat
        if not size or tokens.shape[1] < size:
            return logs
        grams = tokens.unfold(1, size, 1)  # [rows, places, size]
        repeated = (grams[:, :, :-1] == tokens[:, None, tokens.shape[1] - size + 1 :]).all(2)
        row, place = repeated.nonzero(as_tuple=True)
        logs = logs.clone()
        logs[row, grams[row, place, -1]] = -torch.inf
        return logs

    def _keep(
        self, done: list[list[Hypothesis]], values: Tensor, parents: Tensor, ended: Tensor, tokens: Tensor, t: int
    ) -> None:
        """Take the hypotheses that end here, of those among the `width` best of their row."""
        for row, rank in (ended & values.isfinite())[:, : self.width].nonzero().tolist():
            if len(done[row]) < self.width:
                value = float(values[row, rank])
                own = tokens[row * self.width + int(parents[row, rank])].tolist()
                done[row].append(Hypothesis(own, value, self.score(value, t + 1), True))

    def _keep_rest(self, done: list[list[Hypothesis]], sums: Tensor, tokens: Tensor) -> None:
        for row, one in enumerate(done):
            for rank in range(self.width):
                value = float(sums[row, rank])
                if len(one) < self.width and value > -torch.inf:
                    own = tokens[row * self.width + rank].tolist()
                    one.append(Hypothesis(own, value, self.score(value, len(own)), False))


def _log_probabilities(scores: Tensor) -> Tensor:
    logs = scores.float().log_softmax(1)
    if not bool(logs.isfinite().any(1).all()) or bool(logs.isnan().any()):
        raise RecurraError(
            "the scores of the model are not finite: its training has diverged; "
            "train it anew with a lower --set optimizer.rate"
        )
    return logs
