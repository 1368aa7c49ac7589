"""Models with a hidden state that is never seen: their step is the filter, and expectation maximisation trains them."""

from abc import ABC, abstractmethod
from typing import NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.cells.base import Cell
from recurra.state import State, choose, within

RAREST = 1e-30  # a probability has a logarithm


class Latent(Cell, ABC):
    """A cell that is a probabilistic model of what it reads: z_t hidden, y_t seen, and y_t hangs on z_t alone.

    Its state is what is known of z_t from y_1 to y_(t-1), a step takes y_t into account, and its output is what is to be
    expected of y_(t+1). So it is a whole model: it needs neither embedding nor readout. All of it is differentiable, so that
    gradients train it as well; expectation maximisation (Dempster, Laird & Rubin 1977, JRSS B 39) is `learn.EM`.
    """

    @abstractmethod
    def expected(self, ys: Tensor, state: State, lengths: Tensor, fresh: Tensor) -> State:
        """The E-step: the sums that the M-step needs, expected of z given all of each row, float64.

        `ys` `[batch, time + 1, ...]` are inputs and the last target behind them, `state` what is known before, and a row has
        `lengths` transitions, after which its padding may hold anything. Of a row that is not `fresh` the first y was counted
        before, as the target of another batch.
        """

    @abstractmethod
    def maximise(self, sums: State, smoothing: float) -> None:
        """The M-step, in place: the parameters that make what was expected likeliest."""


class HMMState(NamedTuple):
    """What is known of the hidden state before the next token: `belief` [batch, units], logarithms of probabilities."""

    belief: Tensor


class HMMSums(NamedTuple):
    """How often a hidden state is expected to begin, to follow another, and to have put out each token."""

    start: Tensor
    transition: Tensor
    emission: Tensor


@final
class HMM(Latent):
    """The hidden Markov model over tokens; `units` is the number of hidden states:

        p(z_1) = pi        p(z_(t+1) | z_t) = A        p(y_t | z_t) = B         softmax of start, transition, emission
        a_t    ~ p(z_t | y_1..y_(t-1)) * B[:, y_t]                              filtered, sums to 1
        p(z_(t+1) | y_1..y_t) = a_t A                                           the next state
        p(y_(t+1) | y_1..y_t) = a_t A B                                         output, as logarithms

    Output: log p(y_(t+1) | y_1..y_t) [batch, inputs]
    State: belief [batch, units]
    Parameters: units * (units + inputs + 1)
    Reference: Rabiner 1989, "A tutorial on hidden Markov models", doi:10.1109/5.18626
    """

    tokens = True

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size = self.output_size = input_size
        self.start = nn.Parameter(torch.randn(hidden_size))
        self.transition = nn.Parameter(torch.randn(hidden_size, hidden_size))
        self.emission = nn.Parameter(torch.randn(hidden_size, input_size))

    def initial_state(self, batch: int) -> HMMState:
        return HMMState(self.start.log_softmax(0).expand(batch, -1))

    def project(self, xs: Tensor) -> Tensor:
        """How likely each hidden state makes each token, `[batch, time, units]`, as logarithms."""
        return F.embedding(xs, self.emission.log_softmax(1).T)

    def step(self, u: Tensor, state: HMMState) -> tuple[Tensor, HMMState]:
        belief = _carried(torch.log_softmax(state.belief + u, 1), self.transition)
        return _carried(belief, self.emission), HMMState(belief)

    @torch.no_grad()
    def expected(self, ys: Tensor, state: HMMState, lengths: Tensor, fresh: Tensor) -> HMMSums:
        transition, emission = (part.double().softmax(1) for part in (self.transition, self.emission))
        steps = ys.shape[1]
        tokens = torch.where(within(lengths + 1, steps), ys, 0)
        likely = F.embedding(tokens, emission.T)
        before, filtered = [state.belief.double().softmax(1)], []
        for t in range(steps):
            here = before[-1] * likely[:, t]
            filtered.append(here / here.sum(1, keepdim=True))
            before.append(filtered[-1] @ transition)
        smoothed, ratios = filtered[-1], []
        marginals = [smoothed]
        for t in reversed(range(steps - 1)):
            going = (lengths > t)[:, None]  # where the row ends, what is filtered is smoothed
            ratio = torch.where(going, smoothed / before[t + 1].clamp(min=RAREST), 0.0)
            smoothed = torch.where(going, filtered[t] * (ratio @ transition.T), filtered[t])
            ratios.append(ratio)
            marginals.append(smoothed)
        return self._counted(tokens, filtered, ratios[::-1], marginals[::-1], transition, lengths, fresh)

    def _counted(
        self,
        tokens: Tensor,
        filtered: list[Tensor],
        ratios: list[Tensor],
        marginals: list[Tensor],
        transition: Tensor,
        lengths: Tensor,
        fresh: Tensor,
    ) -> HMMSums:
        """Sums of p(z_t), p(z_t, y_t) and p(z_t, z_(t+1)) = filtered_t A smoothed_(t+1) / p(z_(t+1) | y_1..y_t)."""
        counts = _counts(lengths, fresh, tokens.shape[1])
        pairs = torch.einsum("tbi,tbj->ij", torch.stack(filtered[:-1]), torch.stack(ratios)) * transition
        weighed = torch.stack(marginals, 1) * counts[..., None]
        emitted = torch.zeros_like(self.emission.T, dtype=torch.float64)
        emitted.index_add_(0, tokens.flatten(), weighed.flatten(0, 1))
        begun = marginals[0] * (fresh & (lengths > 0))[:, None]
        return HMMSums(begun.sum(0), pairs, emitted.T)

    @torch.no_grad()
    def maximise(self, sums: HMMSums, smoothing: float) -> None:
        for parameter, counts in zip((self.start, self.transition, self.emission), sums, strict=True):
            parameter.copy_((counts + smoothing).clamp(min=RAREST).log().log_softmax(-1))


def _carried(belief: Tensor, scores: Tensor) -> Tensor:
    """log sum_i exp(belief_i) softmax(scores)_ij, `[batch, j]`."""
    return (belief.exp() @ scores.softmax(1)).clamp(min=RAREST).log()


def _counts(lengths: Tensor, fresh: Tensor, steps: int) -> Tensor:
    """Which y of `[batch, steps]` are counted: those of a row's transitions, and the first where it begins."""
    counts = within(torch.where(lengths > 0, lengths + 1, 0), steps).double()
    counts[:, 0] *= fresh
    return counts


class KalmanState(NamedTuple):
    """What is known of the hidden state before the next input: `mean` [batch, units] and `covariance` [batch, units, units]."""

    mean: Tensor
    covariance: Tensor


class KalmanSums(NamedTuple):
    """Expected sums over time, with z~ = (z, 1): of starts, their number, z and z z^T; of transitions, their number, z_t z_t^T,
    z_(t+1) z_t^T and z_(t+1) z_(t+1)^T; of what was seen, its number, z~ z~^T, y z~^T and the squares of y."""

    starts: Tensor
    start: Tensor
    start_squared: Tensor
    transitions: Tensor
    left: Tensor
    crossed: Tensor
    right: Tensor
    seen: Tensor
    hidden: Tensor
    both: Tensor
    squares: Tensor


@final
class Kalman(Latent):
    """The linear-Gaussian state-space model; `units` is the size of the hidden z:

        z_1 ~ N(mu, V)     z_(t+1) = A z_t + w, w ~ N(0, Q)     y_t = C z_t + d + v, v ~ N(0, R), R diagonal
        S  = C P C^T + R                                  how far y is expected to be from C m + d
        K  = P C^T S^-1                                   gain
        m' = A (m + K (y - C m - d))                      mean of z_(t+1) given y_1..y_t
        P' = A (P - K C P) A^T + Q                        covariance of the same

    Output: C m' + d, the mean of the next input
    State: mean m [batch, units], covariance P [batch, units, units]
    Parameters: 3 * units * units + units * (inputs + 1) + 2 * inputs
    Reference: Kalman 1960, doi:10.1115/1.3662552; Shumway & Stoffer 1982, doi:10.1111/j.1467-9892.1982.tb00349.x

    V and Q are kept as factors, F F^T, and the diagonal of R as logarithms. A starts as 0.95 times a rotation. A step
    costs units^3 for each row: it is a model of few units.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size = self.output_size = input_size
        rotation = nn.init.orthogonal_(torch.empty(hidden_size, hidden_size))
        self.transition = nn.Parameter(0.95 * rotation)
        self.process = nn.Parameter(0.3 * torch.eye(hidden_size))
        self.start = nn.Parameter(torch.zeros(hidden_size))
        self.start_factor = nn.Parameter(torch.eye(hidden_size))
        self.emission = nn.Parameter(torch.randn(input_size, hidden_size) / hidden_size**0.5)
        self.offset = nn.Parameter(torch.zeros(input_size))
        self.noise = nn.Parameter(torch.zeros(input_size))

    def initial_state(self, batch: int) -> KalmanState:
        covariance = self.start_factor @ self.start_factor.T
        return KalmanState(self.start.expand(batch, -1), covariance.expand(batch, -1, -1))

    def step(self, u: Tensor, state: KalmanState) -> tuple[Tensor, KalmanState]:
        after = self._predicted(self._updated(u, state, self.emission, self.offset, self.noise), *self._moved())
        return F.linear(after.mean, self.emission, self.offset), after

    def _moved(self) -> tuple[Tensor, Tensor]:
        return self.transition, F.linear(self.process, self.process)

    @staticmethod
    def _updated(y: Tensor, state: KalmanState, emission: Tensor, offset: Tensor, noise: Tensor) -> KalmanState:
        """What is known of z_t once y_t is."""
        crossed = F.linear(state.covariance, emission)
        spread = emission @ crossed + torch.diag(noise.exp())
        gain = torch.linalg.solve(spread, crossed.mT).mT
        apart = y - F.linear(state.mean, emission, offset)
        mean = state.mean + (gain @ apart[..., None])[..., 0]
        return KalmanState(mean, _symmetric(state.covariance - gain @ crossed.mT))

    @staticmethod
    def _predicted(state: KalmanState, transition: Tensor, process: Tensor) -> KalmanState:
        """What is known of z_(t+1) from what is known of z_t."""
        covariance = F.linear(transition @ state.covariance, transition) + process
        return KalmanState(F.linear(state.mean, transition), covariance)

    @torch.no_grad()
    def smoothed(self, ys: Tensor, state: KalmanState, lengths: Tensor) -> tuple[list[KalmanState], list[Tensor]]:
        """What all of each row says of each z_t, float64 (Rauch, Tung & Striebel 1965), and the covariances of z_(t+1) and z_t.
        Past the end of a row they say nothing."""
        transition, process = (part.double() for part in self._moved())
        how = (self.emission.double(), self.offset.double(), self.noise.double())
        before, filtered = [KalmanState(*(part.double() for part in state))], []
        for t in range(ys.shape[1]):
            y = torch.where((lengths >= t)[:, None], ys[:, t].double(), 0.0)
            filtered.append(self._updated(y, before[-1], *how))
            before.append(self._predicted(filtered[-1], transition, process))
        smooth, crossed = [filtered[-1]], []
        for t in reversed(range(ys.shape[1] - 1)):
            after, here = smooth[-1], filtered[t]
            gain = torch.linalg.solve(before[t + 1].covariance, transition @ here.covariance).mT
            mean = here.mean + (gain @ (after.mean - before[t + 1].mean)[..., None])[..., 0]
            covariance = here.covariance + gain @ (after.covariance - before[t + 1].covariance) @ gain.mT
            crossed.append(after.covariance @ gain.mT)
            smooth.append(choose(lengths > t, KalmanState(mean, _symmetric(covariance)), here))
        return smooth[::-1], crossed[::-1]

    @torch.no_grad()
    def expected(self, ys: Tensor, state: KalmanState, lengths: Tensor, fresh: Tensor) -> KalmanSums:
        smooth, crossed = self.smoothed(ys, state, lengths)
        steps = ys.shape[1]
        means = torch.stack([one.mean for one in smooth], 1)
        squares = torch.stack([one.covariance for one in smooth], 1) + means[..., :, None] * means[..., None, :]
        pairs = torch.stack(crossed, 1) + means[:, 1:, :, None] * means[:, :-1, None, :]
        counts, moves = _counts(lengths, fresh, steps), within(lengths, steps - 1).double()
        begun = (fresh & (lengths > 0)).double()
        seen = torch.where(within(lengths + 1, steps)[..., None], ys.double(), 0.0)
        ones = torch.cat([means, torch.ones_like(means[..., :1])], 2)
        hidden = F.pad(squares, (0, 1, 0, 1))
        hidden[..., -1, :] = hidden[..., :, -1] = ones
        over = lambda weights, terms: torch.einsum("bt,btij->ij", weights, terms)  # noqa: E731
        return KalmanSums(
            begun.sum(), begun @ means[:, 0], torch.einsum("b,bij->ij", begun, squares[:, 0]),
            moves.sum(), over(moves, squares[:, :-1]), over(moves, pairs), over(moves, squares[:, 1:]),
            counts.sum(), over(counts, hidden), over(counts, seen[..., :, None] * ones[..., None, :]),
            torch.einsum("bt,bti->i", counts, seen.square()),
        )  # fmt: skip

    @torch.no_grad()
    def maximise(self, sums: KalmanSums, smoothing: float) -> None:
        little = smoothing * torch.eye(len(self.start)).to(sums.left)
        transition = torch.linalg.solve(sums.left + little, sums.crossed.mT).mT
        self.transition.copy_(transition)
        rest = (
            sums.right
            - transition @ sums.crossed.T
            - sums.crossed @ transition.T
            + transition @ sums.left @ transition.T
        )
        self.process.copy_(_factor((_symmetric(rest) + little) / sums.transitions))
        emission = torch.linalg.solve(sums.hidden, sums.both.mT).mT
        self.emission.copy_(emission[:, :-1])
        self.offset.copy_(emission[:, -1])
        rest = sums.squares - (emission * sums.both).sum(1)
        self.noise.copy_(((rest.clamp(min=0) + smoothing) / sums.seen).log())
        if sums.starts > 0:
            mean = sums.start / sums.starts
            self.start.copy_(mean)
            self.start_factor.copy_(_factor((sums.start_squared + little) / sums.starts - torch.outer(mean, mean)))


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def _factor(covariance: Tensor) -> Tensor:
    """F with F F^T = covariance; what rounding made negative is nothing."""
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt()
