"""Writing with a cell: one step after another, each input chosen from the output before."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

import torch
from torch import Tensor

from recurra.constraints import Phrases, Progress, in_turn, padded
from recurra.errors import RecurraError, UsageError
from recurra.state import State, leaves, take, tmap, within

SMALLEST_TEMPERATURE = 1e-8  # below it, division would leave the numbers of 32 bits: the best token is taken, as at 0
BLOCK = 64  # scores of a vocabulary that are looked through by their greatest one
SHRINK = 0.75  # share of rows still searched, at which the batch is narrowed to them: narrowing a memory takes time too
Step = Callable[[Tensor, State], tuple[Tensor, State]]  # a cell, or the `step` of a `Snapshot`
Feed = Callable[[Tensor, int], tuple[Tensor, Tensor]]


def generate(cell: Step, first: Tensor, state: State, feed: Feed, steps: int) -> Iterator[tuple[Tensor, State]]:
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
        device, scores = scores.device, self._penalised(scores.detach().float().cpu())
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
        return tokens.to(device)

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
    `ended`), the score that it was ranked by, and how many of the phrases that were asked for do not occur in it."""

    tokens: list[int]
    log_probability: float
    score: float
    ended: bool
    unmet: int = 0


@torch.no_grad()
def sample(cell: Step, first: Tensor, state: State, sampler: Feed, steps: int, end: int) -> list[Hypothesis]:
    """One continuation of each row, which reads `first` int64 [batch] from `state`, as `sampler` chooses: until the token `end`,
    or of `steps` tokens. Log-probabilities are the model's own, whatever the sampler's temperature and cuts.
    Raises UsageError for less than one step.
    """
    if steps < 1:
        raise UsageError(f"sampling of {steps} steps; wanted at least 1")
    logs: list[Tensor] = []
    written: list[Tensor] = []

    def feed(scores: Tensor, t: int) -> tuple[Tensor, Tensor]:
        chosen, following = sampler(scores, t)
        logs.append(_log_probabilities(scores).gather(1, chosen[:, None])[:, 0])
        return chosen, following

    going = torch.ones_like(first, dtype=torch.bool)
    for chosen, _ in generate(cell, first, state, feed, steps):
        written.append(torch.where(going, chosen, end))
        logs[-1] = torch.where(going, logs[-1], 0.0)
        going &= chosen != end
        if not going.any():
            break
    sums, tokens = torch.stack(logs, 1).sum(1).tolist(), torch.stack(written, 1).tolist()
    return [
        Hypothesis([token for token in row if token != end], value, value, end in row)
        for row, value in zip(tokens, sums, strict=True)
    ]


class Expansion(NamedTuple):
    """What one step of a beam chose among, the preferred first: a level of its tree.

    step     its number, from 0
    rows     int64 [rows], which rows of the batch these are
    parents  int64 [rows, choices], the rank in the step before of the hypothesis that a choice goes on from
    tokens   int64 [rows, choices]
    sums     [rows, choices], log-probabilities of the hypotheses; -inf where there is no choice
    ended    bool [rows, choices], which were taken as hypotheses that end here
    kept     int64 [rows, width], the choices that are followed: the k-th has rank k in the next step; -1 where there is none
    state    after this step, `width` rows for each row: row * width + parent holds what a choice was made by, its attention too

    What is neither ended nor kept was cut off.
    """

    step: int
    rows: Tensor
    parents: Tensor
    tokens: Tensor
    sums: Tensor
    ended: Tensor
    kept: Tensor
    state: State


class _Front(NamedTuple):
    """The rows that are still searched, and how far they are. A state: rows are taken from it as from any."""

    rows: Tensor  # int64 [rows]: which of the batch
    sums: Tensor  # [rows, width]: log-probabilities of the hypotheses that are followed, -inf where there is none
    tokens: Tensor  # int64 [rows, width, steps so far]
    scores: Tensor  # [rows, width]: of the hypotheses that have ended, the best first, -inf where there is none yet
    prefix: Tensor  # int64 [rows, longest], -1 past the end
    places: Tensor | tuple[()]  # int64 [rows]
    phrases: Phrases | tuple[()]
    progress: Progress | tuple[()]  # [rows, width, ...]

    @property
    def free(self) -> Tensor:
        """How many hypotheses each row still has room for, int64 [rows, 1]."""
        return (self.scores == -torch.inf).sum(1, keepdim=True)


class _Choices(NamedTuple):
    sums: Tensor  # [rows, choices]
    parents: Tensor
    tokens: Tensor
    progress: Progress | tuple[()]


@final
@dataclass(frozen=True)
class Beam:
    """How the likeliest continuations are searched for, over any cell that reads tokens.

    width             hypotheses that are followed side by side; 1 takes the best token every time
    steps             the most tokens of one, the end mark among them
    end               the token that ends one
    length_penalty    alpha of score = log-probability / ((5 + tokens) / 6) ** alpha (Wu et al. 2016, arXiv:1609.08144); 0: none
    coverage_penalty  beta of what is added to the score of a whole hypothesis: beta * sum over source places of
                      log(min(sum over steps of the attention weight, 1)) (the same paper); 0: none
    no_repeat         no n-gram of this many tokens occurs twice in one (Paulus et al. 2018, arXiv:1705.04304); 0: they may
    never             tokens that are never chosen
    n_best            how many of the hypotheses are wanted: a search is over as soon as no other can be among them; 0: width
    """

    width: int
    steps: int
    end: int
    length_penalty: float = 0.0
    no_repeat: int = 0
    never: tuple[int, ...] = ()
    coverage_penalty: float = 0.0
    n_best: int = 0

    def __post_init__(self) -> None:
        if self.width < 1 or self.steps < 1 or self.no_repeat < 0:
            raise UsageError(
                f"a beam of width {self.width}, {self.steps} steps and no_repeat {self.no_repeat}; wanted at least 1, 1 and 0"
            )
        if not 0 <= self.n_best <= self.width:
            raise UsageError(
                f"n_best was {self.n_best}, wanted at most the width of the beam, {self.width}, or 0 for all"
            )
        if not 0 <= self.coverage_penalty < float("inf"):
            raise UsageError(f"coverage_penalty was {self.coverage_penalty}, wanted a number of at least 0; 0 is none")

    @torch.no_grad()
    def search(
        self,
        cell: Step,
        first: Tensor,
        state: State,
        *,
        prefix: Sequence[Sequence[int]] | None = None,
        phrases: Sequence[Sequence[Sequence[int]]] | None = None,
        covered: Callable[[State], Tensor] | None = None,
        places: Tensor | None = None,
        narrow: Callable[[Tensor], Step] | None = None,
        watch: Callable[[Expansion], None] | None = None,
    ) -> list[list[Hypothesis]]:
        """For each row, which reads `first` int64 [batch] from `state`, at most `n_best` continuations, the best first. `cell`
        makes scores [rows, vocabulary] and the next state of tokens [rows] and a state; it is given batch * width rows.

        prefix   for each row the tokens with which every continuation begins; `no_repeat` and `never` do not hold for them
        phrases  for each row the sequences of tokens that occur in every continuation: it may end only when all have. The beam is
                 shared out evenly among hypotheses with more and with fewer of their tokens (`constraints.in_turn`), so that
                 those on the way are not crowded out; `width` should be more than there are tokens. What has not met them by the
                 last step says so (`ended` and `unmet`), and comes after all that has
        covered  from a state the sums of attention weights so far, [rows, places]
        places   how many places each row has, int64 [batch]; None: all of them
        narrow   from some rows, int64, of the batch * width rows the cell for these rows alone: rows whose search is over are then
                 left out as it goes on
        watch    is called with what each step chose among

        A row's search is over when it has `width` ended hypotheses, or its `n_best` best ones cannot be beaten, or at the last
        step, where those that have not ended count too. Raises UsageError for what does not fit the batch, the vocabulary or
        the beam.
        """
        if self.coverage_penalty and covered is None:
            raise UsageError(
                f"coverage_penalty was {self.coverage_penalty}, and nothing says what has been looked at; give `covered`, or 0"
            )
        front = self._begin(first, prefix, phrases, places)
        rows = torch.arange(len(first), device=first.device).repeat_interleave(self.width)
        state, inputs = take(state, rows), first[rows]
        done: list[list[Hypothesis]] = [[] for _ in range(len(first))]
        for t in range(self.steps):
            scores, state = cell(inputs, state)
            if t == 0:
                _check_vocabulary(front, scores.shape[1])
            found = self._choices(_log_probabilities(scores), front)
            ends = found.tokens == self.end
            ended, front = self._keep(done, front, found, ends, self._coverage(covered, state, front))
            kept = ends.int().argsort(dim=1, stable=True)[:, : self.width]
            after = _pick(found._replace(sums=found.sums.masked_fill(ends, -torch.inf)), kept)
            over = self._over(front.scores, after.sums, t + 1)
            sums = after.sums.masked_fill(over[:, None], -torch.inf)
            if watch is not None:
                kept = kept.masked_fill(sums == -torch.inf, -1)
                watch(Expansion(t, front.rows, found.parents, found.tokens, found.sums, ended, kept, state))
            tokens = torch.cat([_pick(front.tokens, after.parents), after.tokens[:, :, None]], 2)
            front = front._replace(sums=sums, tokens=tokens, progress=after.progress)
            if over.all():
                break
            parents = after.parents + self.width * torch.arange(len(sums), device=first.device)[:, None]
            if narrow is not None and len(sums) - int(over.sum()) <= SHRINK * len(sums):
                front, parents = take((front, parents), (~over).nonzero()[:, 0])
                cell = narrow(
                    (front.rows[:, None] * self.width + torch.arange(self.width, device=first.device)).flatten()
                )
            state, inputs = _reordered(state, parents.flatten()), front.tokens[:, :, -1].flatten()
        self._keep_rest(done, front, self._coverage(covered, state, front))
        ranked = (sorted(one, key=lambda hypothesis: (hypothesis.unmet, -hypothesis.score)) for one in done)
        return [one[: self.n_best or self.width] for one in ranked]

    def score(self, log_probability: Tensor, tokens: int, coverage: Tensor | float = 0.0) -> Tensor:
        """What hypotheses of so many tokens, the end mark among them, are ranked by. `coverage`: the sum over source places of
        log(min(weights, 1))."""
        return log_probability / ((5 + tokens) / 6) ** self.length_penalty + self.coverage_penalty * coverage

    def _begin(
        self,
        first: Tensor,
        prefix: Sequence[Sequence[int]] | None,
        phrases: Sequence[Sequence[Sequence[int]]] | None,
        places: Tensor | None,
    ) -> _Front:
        batch, device = len(first), first.device
        for name, rows in (("prefix", prefix), ("phrases", phrases), ("places", places)):
            if rows is not None and len(rows) != batch:
                raise UsageError(f"{name} was given for {len(rows)} rows, wanted one for each of {batch}")
        begun = padded([()] * batch if prefix is None else prefix, device)
        asked = Phrases.of(phrases, device) if phrases is not None and any(phrases) else ()
        if begun.shape[1] > self.steps:
            raise UsageError(f"a prefix of {begun.shape[1]} tokens, and the beam has {self.steps} steps; give it more")
        if bool((begun == self.end).any()) or (asked and bool((asked.tokens == self.end).any())):
            raise UsageError(f"a prefix or a phrase holds the token {self.end}, which ends a text; leave it out")
        nothing = torch.full((batch, self.width), -torch.inf, device=device)
        sums = nothing.clone()
        sums[:, 0] = 0.0  # all are the same yet
        return _Front(
            torch.arange(batch, device=device),
            sums,
            first.new_zeros(batch, self.width, 0),
            nothing,
            begun,
            () if places is None else places,
            asked,
            asked.begin(self.width) if asked else (),
        )

    def _choices(self, logs: Tensor, front: _Front) -> _Choices:
        """What hypotheses may go on with, the preferred first: enough to hold the `width` preferred with and without an end.

        Of one hypothesis no more than `width` are followed, and it ends once.
        """
        (rows, width, t), allowed = front.tokens.shape, self._allowed(logs, front.tokens.flatten(0, 1))
        values, tokens = (part.view(rows, width, -1) for part in _best(allowed, width + 1))
        if front.phrases and front.progress:
            wanted = front.phrases.wanted(front.progress)
            more = allowed.view(rows, width, -1).gather(2, wanted.clamp(min=0)).masked_fill(wanted < 0, -torch.inf)
            values, tokens = torch.cat([values, more], 2), torch.cat([tokens, wanted], 2)
            twice = (tokens[..., None] == tokens[..., None, :]).tril(-1).any(-1)
            values = values.masked_fill(twice, -torch.inf)
            tokens = tokens.clamp(min=0)  # a cell reads those of no chance too
        if t < front.prefix.shape[1]:
            values, tokens = _forced(values, tokens, logs, front.prefix[:, t])
        sums, progress = front.sums[:, :, None] + values, front.progress
        if front.phrases and progress:
            progress = front.phrases.read(progress, tokens)
            sums = sums.masked_fill((tokens == self.end) & ~progress.met.all(-1), -torch.inf)
            order = in_turn(sums.flatten(1), front.phrases.reached(progress).flatten(1))[:, : 2 * width]
        else:
            order = sums.flatten(1).topk(min(2 * width, sums.shape[1] * sums.shape[2]), dim=1).indices
        parents = torch.arange(width, device=tokens.device)[:, None].expand_as(tokens)
        return _pick(tmap(lambda part: part.flatten(1, 2), _Choices(sums, parents, tokens, progress)), order)

    def _allowed(self, logs: Tensor, tokens: Tensor) -> Tensor:
        if self.never:
            logs = logs.index_fill(1, torch.tensor(self.never, device=logs.device), -torch.inf)
        size = self.no_repeat
        if not size or tokens.shape[1] < size:
            return logs
        grams = tokens.unfold(1, size, 1)  # [rows, places, size]
        repeated = (grams[:, :, :-1] == tokens[:, None, tokens.shape[1] - size + 1 :]).all(2)
        row, place = repeated.nonzero(as_tuple=True)
        logs = logs.clone()
        logs[row, grams[row, place, -1]] = -torch.inf
        return logs

    def _coverage(self, covered: Callable[[State], Tensor] | None, state: State, front: _Front) -> Tensor:
        """The sum over source places of log(min(weights, 1)) `[rows, width]`; a place that was never looked at counts as the
        smallest number, whose logarithm can still be added."""
        if covered is None or not self.coverage_penalty:
            return torch.zeros_like(front.sums)
        weights = covered(state).view(*front.sums.shape, -1).float()
        logs = weights.clamp(torch.finfo(torch.float32).tiny, 1.0).log()
        if isinstance(front.places, Tensor):
            logs = torch.where(within(front.places, logs.shape[2])[:, None], logs, 0.0)
        return logs.sum(2)

    def _keep(
        self, done: list[list[Hypothesis]], front: _Front, found: _Choices, ends: Tensor, coverage: Tensor
    ) -> tuple[Tensor, _Front]:
        """Take the hypotheses that end here, of those among the `width` preferred of their row, and the front with their scores."""
        ended = ends & found.sums.isfinite()
        ended[:, self.width :] = False
        ended &= ended.cumsum(1) <= front.free
        row, place = ended.nonzero(as_tuple=True)
        if not len(row):
            return ended, front
        scores = self.score(found.sums, front.tokens.shape[2] + 1, _pick(coverage, found.parents))
        parents = found.parents[row, place]
        _write(done, front.rows[row], front.tokens[row, parents], found.sums[row, place], scores[row, place], None)
        scores = torch.cat([front.scores, scores.masked_fill(~ended, -torch.inf)], 1)
        return ended, front._replace(scores=scores.topk(self.width, dim=1).values)

    def _over(self, scores: Tensor, sums: Tensor, said: int) -> Tensor:
        """Which rows can find nothing better `[rows]`, after so many tokens. A hypothesis only loses probability as it goes on, and
        its coverage adds nothing above 0; how much its length makes of that is greatest at the shortest or at the longest."""
        full, best = scores[:, -1] > -torch.inf, sums.amax(1)
        bound = torch.maximum(*(self.score(best, length) for length in (min(said + 1, self.steps), self.steps)))
        return full | (scores[:, (self.n_best or self.width) - 1] >= bound)

    def _keep_rest(self, done: list[list[Hypothesis]], front: _Front, coverage: Tensor) -> None:
        rest = front.sums > -torch.inf
        row, rank = (rest & (rest.cumsum(1) <= front.free)).nonzero(as_tuple=True)
        scores = self.score(front.sums, front.tokens.shape[2], coverage)
        unmet = (~front.progress.met).sum(2) if front.progress else torch.zeros_like(front.tokens[:, :, 0])
        _write(
            done, front.rows[row], front.tokens[row, rank], front.sums[row, rank], scores[row, rank], unmet[row, rank]
        )


def _write(
    done: list[list[Hypothesis]], rows: Tensor, tokens: Tensor, sums: Tensor, scores: Tensor, unmet: Tensor | None
) -> None:
    """Hypotheses that have ended (`unmet` is None: they have met all) or have not, to the lists of their rows."""
    ended = unmet is None
    missing = [0] * len(rows) if unmet is None else unmet.tolist()
    parts = (part.tolist() for part in (rows, tokens, sums, scores))
    for row, own, value, score, lacks in zip(*parts, missing, strict=True):
        done[row].append(Hypothesis(own, value, score, ended, lacks))


def _forced(values: Tensor, tokens: Tensor, logs: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """The choices `[rows, width, choices]` with nothing but the token `wanted` `[rows]` of the first hypothesis where there is one
    (-1: none); a row that has known one choice at a time has one hypothesis."""
    forced = wanted >= 0
    own = logs.view(len(values), -1, logs.shape[1])[:, 0].gather(1, wanted.clamp(min=0)[:, None])[:, 0]
    values, tokens = values.masked_fill(forced[:, None, None], -torch.inf), tokens.clone()
    values[:, 0, 0] = torch.where(forced, own, values[:, 0, 0])
    tokens[:, 0, 0] = torch.where(forced, wanted, tokens[:, 0, 0])
    return values, tokens


def _best(logs: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` greatest of each row and their places, as `topk`, in less than half the time on a processor: none of them lies
    outside the `count` blocks with the greatest maxima."""
    rows, size = logs.shape
    blocks = size // BLOCK
    if blocks <= 2 * count:
        return logs.topk(min(count, size), dim=1)
    whole = blocks * BLOCK
    held = logs[:, :whole].unflatten(1, (blocks, BLOCK)).amax(2).topk(count, dim=1).indices
    places = (held[:, :, None] * BLOCK + torch.arange(BLOCK, device=logs.device)).flatten(1)
    places = torch.cat([places, torch.arange(whole, size, device=logs.device).expand(rows, -1)], 1)
    values, among = logs.gather(1, places).topk(count, dim=1)
    return values, places.gather(1, among)


def _pick(choices: State, order: Tensor) -> State:
    """From leaves `[rows, choices, ...]` those at `order` `[rows, any]`."""
    rows = torch.arange(len(order), device=order.device)[:, None]
    return tmap(lambda part: part[rows, order], choices)


def _reordered(state: State, rows: Tensor) -> State:
    same = next((len(leaf) for leaf in leaves(state)), 0) == len(rows)
    return state if same and torch.equal(rows, torch.arange(len(rows), device=rows.device)) else take(state, rows)


def _check_vocabulary(front: _Front, size: int) -> None:
    asked = [front.prefix, *([front.phrases.tokens] if front.phrases else [])]
    greatest = max((int(part.max()) for part in asked if part.numel()), default=-1)
    if greatest >= size:
        raise UsageError(f"a prefix or a phrase holds the token {greatest}, and there are {size}: from 0 to {size - 1}")


def _log_probabilities(scores: Tensor) -> Tensor:
    logs = scores.float().log_softmax(1)
    if not bool(logs.amax(1).isfinite().all()):  # the greatest is NaN where one of them is
        raise RecurraError(
            "the scores of the model are not finite: its training has diverged; "
            "train it anew with a lower --set optimizer.rate"
        )
    return logs
