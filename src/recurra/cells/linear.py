"""Cells whose recurrence is linear in their state: each unit goes its own way, and time can be followed in other orders."""

import math
from typing import Any, Literal, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra import kernels
from recurra.cells.base import Cell
from recurra.cells.elman import ACTIVATIONS, Activation
from recurra.cells.scan import followed, may_scan
from recurra.cells.window import latest, windows
from recurra.errors import UsageError
from recurra.init import uniform_
from recurra.state import masked


class MinimalState(NamedTuple):
    """What a minimal unit knows: its last output. `h` [batch, units]."""

    h: Tensor


class MinGRUGates(NamedTuple):
    """The gates of one step, [batch, units]: one in (0, 1), and the candidate."""

    update: Tensor
    candidate: Tensor


def _positive(a: Tensor) -> Tensor:
    """a + 1/2 above zero, sigmoid(a) below."""
    return torch.where(a >= 0, a + 0.5, a.sigmoid())


CANDIDATES = {"identity": lambda a: a, "positive": _positive}


@final
class MinGRU(Cell):
    """A GRU whose gate and candidate see the input alone:

        z = sigmoid(W_z x + b_z)                        update gate: how much of the old state is renewed
        n = W_n x + b_n                                 candidate
        h' = (1 - z) * h + z * n

    Output: h'
    State: h [batch, units]
    Parameters: 2 * units * (inputs + 1)
    Reference: Feng, Tung, Ahmed, Bengio & Hajimirsadeghi 2024, "Were RNNs all we needed?", arXiv:2410.01201

    With `candidate="positive"`, as in the form of the paper that computes with logarithms, n = a + 1/2 where a = W_n x + b_n is not
    negative, else sigmoid(a). Sequences run through a scan in linear space (`cells.scan`).
    """

    blocks = MinGRUGates._fields
    open_gate_keeps = -1.0

    def __init__(
        self, input_size: int, hidden_size: int, *, candidate: Literal["identity", "positive"] = "identity"
    ) -> None:
        super().__init__()
        self.input_size, self.output_size, self.candidate = input_size, hidden_size, candidate
        add_input_weights(self, hidden_size, input_size)

    def initial_state(self, batch: int) -> MinimalState:
        return MinimalState(self.bias_ih.new_zeros(batch, self.output_size))

    def project(self, xs: Tensor) -> Tensor:
        return F.linear(xs, self.weight_ih, self.bias_ih)

    def gates(self, u: Tensor, state: MinimalState) -> MinGRUGates:
        z, n = u.chunk(2, dim=-1)
        return MinGRUGates(z.sigmoid(), CANDIDATES[self.candidate](n))

    def step(self, u: Tensor, state: MinimalState) -> tuple[Tensor, MinimalState]:
        gate = self.gates(u, state)
        h = (1 - gate.update) * state.h + gate.update * gate.candidate
        return h, MinimalState(h)

    def what_recurs(self) -> tuple[str, tuple[Tensor, ...]]:
        return f"mingru-{self.candidate}", ()

    def scan(self, xs: Tensor, state: MinimalState, lengths: Tensor | None) -> tuple[Tensor, MinimalState]:
        fast = self.follow(xs, state, lengths)
        if fast is not None or not may_scan(self, xs, state):
            return fast or self.loop(xs, state, lengths)
        gate = self.gates(self.project(masked(xs, lengths)), state)
        hs, last = followed(1 - gate.update, gate.update * gate.candidate, state.h, lengths)
        return masked(hs, lengths), MinimalState(last)


class MinLSTMGates(NamedTuple):
    """The gates of one step, [batch, units]: two in (0, 1) that add up to 1, and the candidate."""

    forget: Tensor
    input: Tensor
    candidate: Tensor


@final
class MinLSTM(Cell):
    """An LSTM without a cell state whose gates and candidate see the input alone, and share out the state between them:

        f = sigmoid(W_f x + b_f)                        forget gate
        i = sigmoid(W_i x + b_i)                        input gate
        n = W_n x + b_n                                 candidate
        h' = f / (f + i) * h + i / (f + i) * n

    Output: h'
    State: h [batch, units]
    Parameters: 3 * units * (inputs + 1)
    Reference: Feng, Tung, Ahmed, Bengio & Hajimirsadeghi 2024, "Were RNNs all we needed?", arXiv:2410.01201

    `candidate` as in MinGRU. The shares come from the difference of the logarithms of f and i, for both may be next to nothing.
    """

    blocks = MinLSTMGates._fields

    def __init__(
        self, input_size: int, hidden_size: int, *, candidate: Literal["identity", "positive"] = "identity"
    ) -> None:
        super().__init__()
        self.input_size, self.output_size, self.candidate = input_size, hidden_size, candidate
        add_input_weights(self, hidden_size, input_size)

    def initial_state(self, batch: int) -> MinimalState:
        return MinimalState(self.bias_ih.new_zeros(batch, self.output_size))

    def project(self, xs: Tensor) -> Tensor:
        return F.linear(xs, self.weight_ih, self.bias_ih)

    def gates(self, u: Tensor, state: MinimalState) -> MinLSTMGates:
        f, i, n = u.chunk(3, dim=-1)
        apart = F.softplus(-i) - F.softplus(-f)  # log f - log i
        return MinLSTMGates(apart.sigmoid(), (-apart).sigmoid(), CANDIDATES[self.candidate](n))

    def step(self, u: Tensor, state: MinimalState) -> tuple[Tensor, MinimalState]:
        gate = self.gates(u, state)
        h = gate.forget * state.h + gate.input * gate.candidate
        return h, MinimalState(h)

    def what_recurs(self) -> tuple[str, tuple[Tensor, ...]]:
        return f"minlstm-{self.candidate}", ()

    def scan(self, xs: Tensor, state: MinimalState, lengths: Tensor | None) -> tuple[Tensor, MinimalState]:
        fast = self.follow(xs, state, lengths)
        if fast is not None or not may_scan(self, xs, state):
            return fast or self.loop(xs, state, lengths)
        gate = self.gates(self.project(masked(xs, lengths)), state)
        hs, last = followed(gate.forget, gate.input * gate.candidate, state.h, lengths)
        return masked(hs, lengths), MinimalState(last)


class LRUState(NamedTuple):
    """What a linear recurrent unit knows: a complex number for each unit, `re` and `im` [batch, units]."""

    re: Tensor
    im: Tensor


@final
class LRU(Cell):
    """The linear recurrent unit: a complex state that turns and shrinks, each unit by a factor of its own.

        lambda = exp(-exp(nu) + i exp(theta))           |lambda| < 1 whatever is learnt
        s' = lambda * s + exp(gamma) * (B x)            B complex, [units, inputs]
        y = Re(C s') + D x                              C complex, [units, units]

    Output: y [batch, units]
    State: re, im [batch, units], the parts of s
    Parameters: units * (3 * inputs + 2 * units + 3)
    Reference: Orvieto et al. 2023, "Resurrecting recurrent neural networks for long sequences", arXiv:2303.06349

    lambda starts uniformly in the ring between the radii `r_min` and `r_max` (the paper has 0 and 1 where it says nothing else),
    with phases up to `max_phase` radians, and exp(gamma) = sqrt(1 - |lambda|^2), so that the state is as large as the input. D is a
    matrix, since there may be more or fewer inputs than units, and starts as a linear layer does. No bias and nothing that is not
    linear: the paper puts it between layers that are not. Sequences run through a scan (`cells.scan`) over complex numbers.
    """

    blocks = ("real", "imaginary")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        r_min: float = 0.5,
        r_max: float = 0.99,
        max_phase: float = 2 * math.pi,
    ) -> None:
        super().__init__()
        if not 0 <= r_min <= r_max <= 1 or not max_phase > 0:
            raise UsageError(
                f"the ring of an LRU was given r_min={r_min}, r_max={r_max}, max_phase={max_phase}; "
                "wanted 0 <= r_min <= r_max <= 1 and a phase above 0"
            )
        self.input_size, self.output_size = input_size, hidden_size
        squares = (r_min**2 + torch.rand(hidden_size) * (r_max**2 - r_min**2)).clamp(
            1e-12, 1 - 1e-6
        )  # of logarithms twice
        self.nu = nn.Parameter((-0.5 * squares.log()).log())
        self.theta = nn.Parameter((max_phase * (1 - torch.rand(hidden_size))).log())
        self.gamma = nn.Parameter(0.5 * (1 - squares).log())
        self.weight_ih = nn.Parameter(torch.randn(2 * hidden_size, input_size) / math.sqrt(2 * max(1, input_size)))
        self.weight_out = nn.Parameter(torch.randn(hidden_size, 2 * hidden_size) / math.sqrt(hidden_size))
        self.weight_skip = nn.Parameter(uniform_(input_size, hidden_size, input_size))

    def initial_state(self, batch: int) -> LRUState:
        zeros = self.nu.new_zeros(batch, self.output_size)
        return LRUState(zeros, zeros.clone())

    def project(self, xs: Tensor) -> tuple[Tensor, Tensor]:
        """B x, its parts side by side [batch, time, 2 * units], and D x [batch, time, units]."""
        return self._drive(xs), F.linear(xs, self.weight_skip)

    def _drive(self, xs: Tensor) -> Tensor:
        return F.linear(xs, self.weight_ih)

    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The parts of lambda, and exp(gamma): [units]."""
        size, angle = (-self.nu.exp()).exp(), self.theta.exp()
        return size * angle.cos(), size * angle.sin(), self.gamma.exp()

    def step(self, u: tuple[Tensor, Tensor], state: LRUState) -> tuple[Tensor, LRUState]:
        drive, direct = u
        b_re, b_im = drive.chunk(2, dim=1)
        a_re, a_im, gain = self._factors()
        re = a_re * state.re - a_im * state.im + gain * b_re
        im = a_re * state.im + a_im * state.re + gain * b_im
        return self._read(re, im) + direct, LRUState(re, im)

    def scan(self, xs: Tensor, state: LRUState, lengths: Tensor | None) -> tuple[Tensor, LRUState]:
        fast = kernels.follow("lru", self._drive, xs, lengths, state, self._factors())
        if fast is not None:
            direct = F.linear(masked(xs, lengths), self.weight_skip)
            return self._read(*fast[0].chunk(2, dim=-1)) + direct, LRUState(*fast[1])
        if not may_scan(self, xs, state):
            return self.loop(xs, state, lengths)
        drive, direct = self.project(masked(xs, lengths))
        factor = torch.polar((-self.nu.exp()).exp(), self.theta.exp()).expand(*drive.shape[:2], -1)
        term = self.gamma.exp() * torch.complex(*drive.chunk(2, dim=-1))
        hs, last = followed(factor, term, torch.complex(state.re, state.im), lengths)
        return masked(self._read(hs.real, hs.imag) + direct, lengths), LRUState(last.real, last.imag)

    def _read(self, re: Tensor, im: Tensor) -> Tensor:
        """Re(C s). A plain product and not F.linear: it reads what comes out of the recurrence and is no part of it, which learners
        that look at a step (`learn.local`) are told by this."""
        return torch.cat([re, -im], dim=-1) @ self.weight_out.mT


class QRNNState(NamedTuple):
    """What a QRNN knows: `c` [batch, units], what it remembers, and `inputs` [batch, width - 1, features], the last inputs, oldest
    first, zeros before the first."""

    c: Tensor
    inputs: Tensor


class QRNNGates(NamedTuple):
    """The gates of one step, [batch, units]: the candidate in (-1, 1), and three in (0, 1), None where the pooling has no such
    gate."""

    candidate: Tensor
    forget: Tensor
    output: Tensor | None = None
    input: Tensor | None = None


@final
class QRNN(Cell):
    """The quasi-recurrent network: gates by a convolution over the last inputs, x~ = [x_(t-k+1); ...; x_t] for a width of k, and a
    pooling that recurs. With `pooling="fo"`:

        z = tanh(W_z x~ + b_z)                          candidate
        f = sigmoid(W_f x~ + b_f)                       forget gate
        o = sigmoid(W_o x~ + b_o)                       output gate
        c' = f * c + (1 - f) * z
        h = o * c'

    and with `pooling="f"` there is no output gate:

        h = c'

    and with `pooling="ifo"` there is one more for what comes in:

        i = sigmoid(W_i x~ + b_i)                       input gate
        c' = f * c + i * z

    Output: h
    State: c [batch, units], inputs [batch, width - 1, features]
    Parameters: 3 * units * (width * inputs + 1)
    Reference: Bradbury, Merity, Xiong & Socher 2017, "Quasi-recurrent neural networks", arXiv:1611.01576

    `width` is 2 unless it is given; two thirds of the parameters with `pooling="f"`, four with `pooling="ifo"`. Sequences run
    through a scan (`cells.scan`).
    """

    blocks: tuple[str, ...] = QRNNGates._fields

    def __init__(
        self, input_size: int, hidden_size: int, *, width: int = 2, pooling: Literal["f", "fo", "ifo"] = "fo"
    ) -> None:
        super().__init__()
        if width < 1:
            raise UsageError(
                f"a QRNN was given a width of {width} inputs, wanted 1 or more: the present one is among them"
            )
        self.input_size, self.output_size = input_size, hidden_size
        self.width, self.pooling = width, pooling
        self.blocks = QRNNGates._fields[: 1 + len(pooling)]
        add_input_weights(self, hidden_size, width * input_size)

    def initial_state(self, batch: int) -> QRNNState:
        zeros = self.bias_ih.new_zeros
        return QRNNState(zeros(batch, self.output_size), zeros(batch, self.width - 1, self.input_size))

    def gates(self, u: Tensor, state: QRNNState) -> QRNNGates:
        return self._gates(torch.cat([state.inputs.flatten(1), u], dim=1))

    def step(self, u: Tensor, state: QRNNState) -> tuple[Tensor, QRNNState]:
        gate = self.gates(u, state)
        c = gate.forget * state.c + self._lets_in(gate) * gate.candidate
        inputs = torch.cat([state.inputs, u[:, None]], dim=1)[:, 1:]
        return c if gate.output is None else gate.output * c, QRNNState(c, inputs)

    def scan(self, xs: Tensor, state: QRNNState, lengths: Tensor | None) -> tuple[Tensor, QRNNState]:
        seen = torch.cat([state.inputs, masked(xs, lengths)], dim=1)
        fast = kernels.follow(
            f"qrnn-{self.pooling}", lambda _: self._sums(windows(seen, self.width)), xs, lengths, state[:1], ()
        )
        if fast is not None:
            return fast[0], QRNNState(fast[1][0], latest(seen, self.width - 1, lengths))
        if not may_scan(self, xs, state):
            return self.loop(xs, state, lengths)
        gate = self._gates(windows(seen, self.width))
        cs, c = followed(gate.forget, self._lets_in(gate) * gate.candidate, state.c, lengths)
        ys = cs if gate.output is None else gate.output * cs
        return masked(ys, lengths), QRNNState(c, latest(seen, self.width - 1, lengths))

    def _sums(self, seen: Tensor) -> Tensor:
        return F.linear(seen, self.weight_ih, self.bias_ih)

    def _gates(self, seen: Tensor) -> QRNNGates:
        z, *gates = self._sums(seen).chunk(len(self.blocks), dim=-1)
        return QRNNGates(z.tanh(), *(gate.sigmoid() for gate in gates))

    def _lets_in(self, gate: QRNNGates) -> Tensor:
        return 1 - gate.forget if gate.input is None else gate.input


class SRUState(NamedTuple):
    """What an SRU remembers. `c` [batch, units]."""

    c: Tensor


class SRUGates(NamedTuple):
    """The gates of one step, [batch, units], each in (0, 1)."""

    forget: Tensor
    reset: Tensor


@final
class SRU(Cell):
    """The simple recurrent unit: a light recurrence under a highway that lets the input pass. As it was published first:

        f = sigmoid(W_f x + b_f)                        forget gate
        r = sigmoid(W_r x + b_r)                        reset gate
        c' = f * c + (1 - f) * (W x)
        h = r * act(c') + (1 - r) * (W_h x)

    and with `peephole=True`, as it was published last, the gates see the state, each unit its own, and the highway is wider:

        f = sigmoid(W_f x + v_f * c + b_f)
        r = sigmoid(W_r x + v_r * c + b_r)
        h = r * act(c') + (1 - r) * (sqrt(3) W_h x)

    Output: h
    State: c [batch, units]
    Parameters: 4 * units * inputs + 2 * units
    Reference: Lei, Zhang, Wang, Dai & Artzi 2018, "Simple recurrent units for highly parallelizable recurrence", arXiv:1709.02755

    W_h is the identity where there are as many inputs as units, and the parameters are fewer by units * inputs; with
    `peephole` more by 2 * units. act is tanh, relu, logistic or identity (the last form has identity). The square root of 3 keeps
    the variance of the input while the gates are near a half. Sequences run through a scan (`cells.scan`), but not with `peephole`,
    whose recurrence is not linear.
    """

    blocks = SRUGates._fields

    def __init__(
        self, input_size: int, hidden_size: int, *, activation: Activation = "tanh", peephole: bool = False
    ) -> None:
        super().__init__()
        self.input_size, self.output_size, self.activation = input_size, hidden_size, activation
        add_input_weights(self, hidden_size, input_size)
        self.weight_c = nn.Parameter(uniform_(input_size, hidden_size, input_size))
        self.weight_skip = (
            None if input_size == hidden_size else nn.Parameter(uniform_(input_size, hidden_size, input_size))
        )
        self.peephole_forget = nn.Parameter(uniform_(hidden_size, hidden_size)) if peephole else None
        self.peephole_reset = nn.Parameter(uniform_(hidden_size, hidden_size)) if peephole else None

    def initial_state(self, batch: int) -> SRUState:
        return SRUState(self.bias_ih.new_zeros(batch, self.output_size))

    def project(self, xs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sums of the gates [batch, time, 2 * units], W x and W_h x [batch, time, units]."""
        skip = xs if self.weight_skip is None else F.linear(xs, self.weight_skip)
        skip = skip if self.peephole_reset is None else math.sqrt(3) * skip
        return F.linear(xs, self.weight_ih, self.bias_ih), F.linear(xs, self.weight_c), skip

    def gates(self, u: tuple[Tensor, Tensor, Tensor], state: SRUState) -> SRUGates:
        f, r = u[0].chunk(2, dim=-1)
        if self.peephole_forget is not None and self.peephole_reset is not None:
            f, r = f + self.peephole_forget * state.c, r + self.peephole_reset * state.c
        return SRUGates(f.sigmoid(), r.sigmoid())

    def step(self, u: tuple[Tensor, Tensor, Tensor], state: SRUState) -> tuple[Tensor, SRUState]:
        gate, (_, candidate, skip) = self.gates(u, state), u
        c = gate.forget * state.c + (1 - gate.forget) * candidate
        return self._passed(gate, c, skip), SRUState(c)

    def what_recurs(self) -> tuple[str, tuple[Tensor, ...]]:
        if self.peephole_forget is not None and self.peephole_reset is not None:
            return f"sru-peephole-{self.activation}", (self.peephole_forget, self.peephole_reset)
        return f"sru-{self.activation}", ()

    def scan(self, xs: Tensor, state: SRUState, lengths: Tensor | None) -> tuple[Tensor, SRUState]:
        fast = self.follow(xs, state, lengths)
        if fast is not None or self.peephole_forget is not None or not may_scan(self, xs, state):
            return fast or self.loop(xs, state, lengths)
        us = self.project(masked(xs, lengths))
        gate, (_, candidate, skip) = self.gates(us, state), us
        cs, last = followed(gate.forget, (1 - gate.forget) * candidate, state.c, lengths)
        return masked(self._passed(gate, cs, skip), lengths), SRUState(last)

    def _passed(self, gate: SRUGates, c: Tensor, skip: Tensor) -> Tensor:
        return gate.reset * ACTIVATIONS[self.activation](c) + (1 - gate.reset) * skip


def add_input_weights(cell: Any, units: int, inputs: int) -> None:
    """Give a cell `weight_ih` [blocks * units, inputs] and `bias_ih`, started as torch.nn starts a linear layer."""
    rows = len(cell.blocks) * units
    cell.weight_ih = nn.Parameter(uniform_(inputs, rows, inputs))
    cell.bias_ih = nn.Parameter(uniform_(inputs, rows))
