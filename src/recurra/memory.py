"""Associative memory: patterns are stored, and recalled from a part or from a noisy copy of them.

A memory is not a recurrent network that is trained: its weights are written down from the patterns at once. `Hopfield` and
`Dense` remember patterns of +1 and -1 and change one unit at a time, `Modern` remembers real vectors and is attention; all
three go downhill on an energy. They are no cells, since nothing comes in between the steps; `ContinuousHopfield` is one: an
external field is its input.

    memory = Hopfield.store(patterns, rule="storkey")  # patterns [patterns, units] of +1 and -1
    recalled = memory.recall(probes)                    # probes [probes, units]; memory.trace(probe) has frames and energies
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, Self, final

import torch
from torch import Tensor, nn

from recurra.attention import attend, scaled
from recurra.cells.base import Cell
from recurra.errors import UsageError
from recurra.kernels import native
from recurra.state import within

Updates = Literal["asynchronous", "synchronous"]
STEPS = 100  # at most, of updates of all units at once
TINY = 1e-6  # a field of less than this is one of zero that was rounded; the fields of stored patterns are about one


class Trace(NamedTuple):
    """How a memory went from a probe to where it came to rest."""

    frames: Tensor  # [frames, units] the probe first
    energies: Tensor  # [frames]
    cycle: int  # 1 where the last frame stays as it is; 2 where it and the one before follow each other without end


class Associative(ABC):
    """What falls from a probe into a stored pattern."""

    units: int

    @abstractmethod
    def energy(self, states: Tensor) -> Tensor:
        """The energy [...] of states [..., units]; `recall` ends where no change makes it smaller."""

    @abstractmethod
    def frames(self, probes: Tensor, seed: int = 0) -> Iterator[Tensor]:
        """The states [probes, units] on the way from the probes on, until they rest; each may be changed in place by the next.
        Raises UsageError for probes that do not fit."""

    def recall(self, probes: Tensor, seed: int = 0) -> Tensor:
        """Where the probes [units] or [probes, units] come to rest, in their shape. `seed` settles the order of the units."""
        states = probes if probes.dim() > 1 else probes[None]
        for frame in self.frames(states, seed):
            states = frame
        return states.clone().view(probes.shape)

    def trace(self, probe: Tensor, seed: int = 0) -> Trace:
        """Every state from one probe [units] on, and its energy."""
        if probe.dim() != 1:
            raise UsageError(f"trace was given a probe of shape {tuple(probe.shape)}, wanted one: [{self.units}]")
        frames = torch.cat([frame.clone() for frame in self.frames(probe[None], seed)])
        cycle = (
            2
            if len(frames) > 2 and torch.equal(frames[-1], frames[-3]) and not torch.equal(frames[-1], frames[-2])
            else 1
        )
        return Trace(frames, self.energy(frames), cycle)

    def _fitting(self, states: Tensor) -> Tensor:
        if states.dim() != 2 or states.shape[1] != self.units:
            raise UsageError(
                f"a memory of {self.units} units was given states of shape {tuple(states.shape)}, wanted [any, {self.units}]"
            )
        return states


# --- patterns of +1 and -1 ---------------------------------------------------------------------------------------------


def signs(xs: Tensor, threshold: float = 0.0) -> Tensor:
    """+1 where `xs` is above the threshold and -1 elsewhere, float32: how images and bits become patterns."""
    return torch.where(xs > threshold, 1.0, -1.0)


def hebb(patterns: Tensor) -> Tensor:
    """w_ij = 1/N sum over patterns of x_i x_j, w_ii = 0 (Hopfield 1982). Recalls up to about 0.138 N random patterns, with
    1.6 % of the bits wrong at the end (Amit, Gutfreund & Sompolinsky 1985)."""
    return _without_diagonal(patterns.T @ (patterns / patterns.shape[1]))


def storkey(patterns: Tensor) -> Tensor:
    """Storkey's rule, one pattern after the other, w_ii = 0:

        w'_ij = w_ij + 1/N (x_i x_j - x_i h_ji - h_ij x_j),    h_ij = sum over k other than i and j of w_ik x_k

    It takes what is stored already into account and holds about N / sqrt(2 ln N) random patterns (Storkey 1997).
    """
    units = patterns.shape[1]
    weights = patterns.new_zeros(units, units)
    for x in patterns:
        field = (weights @ x)[:, None] - weights * x  # h_ij; w_ii is zero
        weights += (torch.outer(x, x) - x[:, None] * field.T - field * x) / units
        weights.fill_diagonal_(0)
    return weights


def pseudo_inverse(patterns: Tensor) -> Tensor:
    """The projection onto the patterns, W = X^+ X, w_ii = 0: every pattern is at rest while they are linearly independent,
    up to N of them, from ever smaller surroundings (Personnaz, Guyon & Dreyfus 1985)."""
    return _without_diagonal(torch.linalg.pinv(patterns.double()) @ patterns.double()).float()


def _without_diagonal(weights: Tensor) -> Tensor:
    return weights.fill_diagonal_(0)


RULES: dict[str, Callable[[Tensor], Tensor]] = {"hebb": hebb, "storkey": storkey, "pseudo-inverse": pseudo_inverse}


class _Binary(Associative):
    """States of +1 and -1."""

    def _fitting(self, states: Tensor) -> Tensor:
        states = super()._fitting(states)
        wrong = states[(states != 1) & (states != -1)]
        if wrong.numel():
            raise UsageError(
                f"a memory of +1 and -1 was given a state with the value {wrong[0].item():g}; make it one with "
                "recurra.memory.signs(states, threshold)"
            )
        return states.float()


@final
class Hopfield(_Binary):
    """The binary network with symmetric weights and no weight from a unit to itself:

        s_i = sign(sum over j of w_ij s_j + b_i), and as it was where the sum is zero
        E = - 1/2 s W s - b s

    One unit at a time (`asynchronous`, in an order drawn anew for each sweep) it never goes uphill and comes to rest; all at
    once (`synchronous`) it may end in two states that follow each other without end.

    Reference: Hopfield 1982, "Neural networks and physical systems with emergent collective computational abilities", PNAS 79
    """

    def __init__(self, weights: Tensor, bias: Tensor | None = None, updates: Updates = "asynchronous") -> None:
        if weights.dim() != 2 or weights.shape[0] != weights.shape[1]:
            raise UsageError(f"Hopfield was given weights of shape {tuple(weights.shape)}, wanted [units, units]")
        if not torch.allclose(weights, weights.T, atol=TINY):
            raise UsageError("Hopfield was given weights that are not symmetric; without that there is no energy")
        if weights.diagonal().any():
            raise UsageError(
                "Hopfield was given a weight from a unit to itself; weights.fill_diagonal_(0) takes them away"
            )
        self._take(weights.float(), bias, updates)

    @classmethod
    def store(cls, patterns: Tensor, rule: str = "hebb", updates: Updates = "asynchronous") -> Self:
        """A memory of `patterns` [patterns, units] of +1 and -1, by `hebb`, `storkey` or `pseudo-inverse`."""
        if rule not in RULES:
            raise UsageError(f"there is no rule called {rule!r}; the rules are {', '.join(RULES)}")
        memory = cls.__new__(
            cls
        )  # what a rule makes needs no look at every weight, which would take longer than the rule
        memory._take(RULES[rule](_patterns(patterns)), None, updates)
        return memory

    def _take(self, weights: Tensor, bias: Tensor | None, updates: Updates) -> None:
        self.units, self.updates = weights.shape[0], updates
        self.weights = weights.detach().cpu().contiguous()
        self.bias = self.weights.new_zeros(self.units) if bias is None else bias.detach().float().cpu()

    def energy(self, states: Tensor) -> Tensor:
        return -(states @ self.weights * states).sum(-1) / 2 - states @ self.bias

    def frames(self, probes: Tensor, seed: int = 0) -> Iterator[Tensor]:
        states = self._fitting(probes)
        return self._together(states) if self.updates == "synchronous" else self._one_by_one(states.clone(), seed)

    def recall(self, probes: Tensor, seed: int = 0) -> Tensor:
        """As of every memory; by the native sweep where there is one, to the same states."""
        if self.updates == "synchronous" or not native.available():
            return super().recall(probes, seed)
        states = self._fitting(probes if probes.dim() > 1 else probes[None])
        states = states.clone(memory_format=torch.contiguous_format)
        fields = states @ self.weights + self.bias
        generator = torch.Generator().manual_seed(seed)
        while native.sweep(self.weights, torch.randperm(self.units, generator=generator), states, fields, TINY):
            pass
        return states.view(probes.shape)

    def _together(self, states: Tensor) -> Iterator[Tensor]:
        before = states
        yield states
        for _ in range(STEPS):
            field = states @ self.weights + self.bias
            after = torch.where(field.abs() < TINY, states, signs(field))
            if torch.equal(after, states):
                return
            yield after
            if torch.equal(after, before):
                return
            before, states = states, after

    def _one_by_one(self, states: Tensor, seed: int) -> Iterator[Tensor]:
        """Sweeps over the units. Between two units that turn over nothing happens, so each row goes at once to its next one:
        the states are those of a loop over all units."""
        generator = torch.Generator().manual_seed(seed)
        fields = states @ self.weights + self.bias
        yield states
        turned = True
        while turned:
            turned = False
            place = torch.randperm(self.units, generator=generator).argsort()  # of each unit in this sweep
            came_to = torch.full((len(states), 1), -1)
            while True:
                due = (states * fields < -TINY) & (place > came_to)
                first, unit = torch.where(due, place, self.units).min(dim=1)
                rows = (first < self.units).nonzero()[:, 0]
                if not len(rows):
                    break
                turned, units = True, unit[rows]
                fields[rows] -= 2 * states[rows, units, None] * self.weights[units]
                states[rows, units] *= -1
                came_to[rows, 0] = first[rows]
                yield states


@final
class Dense(_Binary):
    """The dense associative memory, whose energy is steeper than quadratic in the overlaps m with the patterns x:

        E = - sum over patterns of F(m / N),    m = x s,    F(m) = m^power, or E = - log sum exp(m) with power "exp"
        s_i = the sign whose energy is lower, all other units as they are; as it was where both are equal

    Power 2 is `Hopfield` with Hebb's rule; power n holds of the order of N^(n-1) patterns, the exponential 2^(N/2).

    Reference: Krotov & Hopfield 2016, arXiv:1606.01164; Demircigil et al. 2017, arXiv:1702.01929
    """

    def __init__(self, patterns: Tensor, power: int | Literal["exp"] = 3) -> None:
        if power != "exp" and (not isinstance(power, int) or power < 2):
            raise UsageError(f'power was {power!r}, wanted a whole number of at least 2, or "exp"')
        self.patterns, self.power, self.units = _patterns(patterns), power, patterns.shape[1]

    @classmethod
    def store(cls, patterns: Tensor, power: int | Literal["exp"] = 3) -> Self:
        """A memory of `patterns` [patterns, units] of +1 and -1."""
        return cls(patterns, power)

    def energy(self, states: Tensor) -> Tensor:
        return -self._depth(states @ self.patterns.T)

    def frames(self, probes: Tensor, seed: int = 0) -> Iterator[Tensor]:
        states = self._fitting(probes).clone()
        generator = torch.Generator().manual_seed(seed)
        overlaps = states @ self.patterns.T
        yield states
        turned = True
        while turned:
            turned = False
            for unit in torch.randperm(self.units, generator=generator).tolist():
                x, s = self.patterns[:, unit], states[:, unit]
                other = overlaps - 2 * s[:, None] * x  # with this unit turned over
                rows = (self._depth(other) > self._depth(overlaps) + TINY).nonzero()[:, 0]
                if len(rows):
                    turned = True
                    overlaps[rows] = other[rows]
                    states[rows, unit] *= -1
                    yield states

    def _depth(self, overlaps: Tensor) -> Tensor:
        """Minus the energy."""
        if self.power == "exp":
            return torch.logsumexp(overlaps, dim=-1)
        return (overlaps / self.units).pow(self.power).sum(-1) * self.units


def _patterns(patterns: Tensor) -> Tensor:
    if patterns.dim() != 2 or 0 in patterns.shape:
        raise UsageError(f"a memory was given patterns of shape {tuple(patterns.shape)}, wanted [patterns, units]")
    wrong = patterns[(patterns != 1) & (patterns != -1)]
    if wrong.numel():
        raise UsageError(
            f"a memory of +1 and -1 was given a pattern with the value {wrong[0].item():g}; make it one with "
            "recurra.memory.signs(patterns, threshold), or store it in Modern"
        )
    return patterns.float()


class Named(NamedTuple):
    """What a state of a binary memory is: `stored`, `negative` (all signs of a pattern turned), `mixture` (the sign of a sum of
    three patterns or their negatives) or `unknown`; of which patterns."""

    kind: str
    patterns: tuple[int, ...]


def named(states: Tensor, patterns: Tensor) -> list[Named]:
    """Each of the states [states, units] by what it has to do with `patterns` [patterns, units], all of +1 and -1. States at rest
    that are not stored are the spurious ones."""
    units = patterns.shape[1]
    overlaps = states @ patterns.T
    largest, nearest = overlaps.abs().topk(min(3, len(patterns)), dim=1)
    mixed = signs(torch.einsum("rk,rku->ru", overlaps.gather(1, nearest).sign(), patterns[nearest]))
    found = []
    for row, state in enumerate(states):
        first = int(nearest[row, 0])
        if largest[row, 0] == units:
            found.append(Named("stored" if overlaps[row, first] > 0 else "negative", (first,)))
        elif nearest.shape[1] == 3 and torch.equal(mixed[row], state):
            found.append(Named("mixture", tuple(sorted(nearest[row].tolist()))))
        else:
            found.append(Named("unknown", ()))
    return found


# --- real vectors -------------------------------------------------------------------------------------------------------


@final
class Modern(Associative):
    """The continuous network whose update is attention of the state to the patterns X:

        s' = softmax(beta s X^T) X
        E = - 1/beta log sum over patterns of exp(beta x s) + 1/2 s s

    One update finds a pattern that is well apart from the others; with a small beta it stays at a mean of those that are near.

    Reference: Ramsauer et al. 2020, "Hopfield networks is all you need", arXiv:2008.02217
    """

    def __init__(self, patterns: Tensor, beta: float | None = None) -> None:
        if patterns.dim() != 2 or 0 in patterns.shape:
            raise UsageError(f"a memory was given patterns of shape {tuple(patterns.shape)}, wanted [patterns, units]")
        if beta is not None and not 0 < beta < float("inf"):
            raise UsageError(f"beta was {beta}, wanted a positive number")
        self.patterns, self.units = patterns, patterns.shape[1]
        self.beta = self.units**-0.5 if beta is None else beta

    @classmethod
    def store(cls, patterns: Tensor, beta: float | None = None) -> Self:
        """A memory of real `patterns` [patterns, units]; `beta`, the inverse temperature, is 1 / sqrt(units) unless given."""
        return cls(patterns, beta)

    def energy(self, states: Tensor) -> Tensor:
        overlaps = self.beta * states @ self.patterns.T
        return -torch.logsumexp(overlaps, dim=-1) / self.beta + states.square().sum(-1) / 2

    def frames(self, probes: Tensor, seed: int = 0) -> Iterator[Tensor]:
        states = self._fitting(probes)
        yield states
        for _ in range(STEPS):
            after = self.update(states)
            yield after
            if torch.allclose(after, states, rtol=1e-5, atol=1e-6):
                return
            states = after

    def update(self, states: Tensor) -> Tensor:
        """One update of states [..., units]."""
        return attend(states, self.patterns, self.patterns, score=scaled(self.beta))[0]


@final
class Lookup(nn.Module):
    """A layer that answers queries [..., size] from patterns that are learnt: attention to `patterns` keys with a value each,
    answers [..., output_size]. `beta` is 1 / sqrt(size) unless given."""

    def __init__(self, size: int, patterns: int, output_size: int | None = None, beta: float | None = None) -> None:
        super().__init__()
        self.beta = size**-0.5 if beta is None else beta
        self.keys = nn.Parameter(torch.randn(patterns, size))
        self.values = nn.Parameter(torch.randn(patterns, output_size or size) / patterns**0.5)

    def forward(self, queries: Tensor) -> Tensor:
        return attend(queries, self.keys, self.values, score=scaled(self.beta))[0]


@final
class Pooling(nn.Module):
    """A layer that makes one vector of a sequence: attention of a query that is learnt to what comes in [batch, time, size];
    answers [batch, size], zeros for a row of no length. `beta` is 1 / sqrt(size) unless given."""

    def __init__(self, size: int, beta: float | None = None) -> None:
        super().__init__()
        self.beta = size**-0.5 if beta is None else beta
        self.query = nn.Parameter(torch.randn(1, size))

    def forward(self, xs: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.look(xs, lengths)[0]

    def look(self, xs: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The answers, and how much of each is from each step, [batch, time]."""
        mask = None if lengths is None else within(lengths, xs.shape[1])[:, None]
        if mask is not None:
            xs = torch.where(mask.transpose(1, 2), xs, 0.0)
        answers, weights = attend(self.query, xs, xs, mask, scaled(self.beta))
        return answers[:, 0], weights[:, 0]


# --- continuous time ----------------------------------------------------------------------------------------------------


class ContinuousState(NamedTuple):
    """What a continuous Hopfield network knows: the potentials `u` [batch, units] of its units."""

    u: Tensor


@final
class ContinuousHopfield(Cell):
    """The network of graded units in continuous time, by steps of length dt, with symmetric weights W and no weight from a
    unit to itself; the input x is the external field:

        v = tanh(gain u)
        du/dt = - u + W v + x
        u' = u + dt du/dt

    Output: v' = tanh(gain u')
    State: u [batch, units]
    Parameters: units * units, of which the symmetric part without the diagonal counts
    Reference: Hopfield 1984, "Neurons with graded response have collective computational properties like those of two-state
    neurons", PNAS 81

    Under a constant field and small steps its energy (`energy`) falls.
    """

    def __init__(self, input_size: int, hidden_size: int, *, gain: float = 1.0, dt: float = 0.1) -> None:
        super().__init__()
        if input_size != hidden_size:
            raise UsageError(
                f"the input of a continuous Hopfield network is a field on its units: {input_size} inputs do not fit "
                f"{hidden_size} units; make them equal"
            )
        self.input_size = self.output_size = hidden_size
        self.gain, self.dt = gain, dt
        self.weight = nn.Parameter(torch.randn(hidden_size, hidden_size) / hidden_size**0.5)

    @classmethod
    def store(cls, patterns: Tensor, rule: str = "hebb", gain: float = 4.0, dt: float = 0.1) -> Self:
        """A network whose weights remember `patterns` [patterns, units] of +1 and -1."""
        memory = Hopfield.store(patterns, rule)
        cell = cls(memory.units, memory.units, gain=gain, dt=dt)
        with torch.no_grad():
            cell.weight.copy_(memory.weights)
        return cell

    def symmetric(self) -> Tensor:
        """The weights W that count."""
        both = (self.weight + torch.transpose(self.weight, 0, 1)) / 2
        return both - torch.diag(both.diagonal())

    def initial_state(self, batch: int) -> ContinuousState:
        return ContinuousState(self.weight.new_zeros(batch, self.output_size))

    def step(self, u: Tensor, state: ContinuousState) -> tuple[Tensor, ContinuousState]:
        v = torch.tanh(self.gain * state.u)
        potentials = state.u + self.dt * (v @ self.symmetric() + u - state.u)
        return torch.tanh(self.gain * potentials), ContinuousState(potentials)

    def energy(self, v: Tensor, field: Tensor) -> Tensor:
        """E = - 1/2 v W v - x v + sum over units of the integral of artanh(v) / gain from 0 to v; outputs v [..., units]."""
        inner = v * torch.atanh(v) + torch.log1p(-v.square()) / 2
        return -(v @ self.symmetric() * v).sum(-1) / 2 - (field * v).sum(-1) + inner.sum(-1) / self.gain
