"""The two memories of xLSTM: gates that are exponentials, and what keeps them within the range of numbers."""

import math
from typing import Literal, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.cells.base import Cell, add_weights
from recurra.cells.scan import may_scan
from recurra.errors import UsageError
from recurra.init import uniform_
from recurra.state import masked, within

Forgetting = Literal["sigmoid", "exp"]
PIECE = 64  # steps of a sequence whose matrix memories are never built
LOG_FORGET = {"sigmoid": lambda a: -F.softplus(-a), "exp": lambda a: a}  # of the sum that leads into the gate


class ScalarState(NamedTuple):
    """What a scalar memory knows, all [batch, units]: `h`, what it says, `c`, what it remembers, `n`, how much was written, and
    `m`, the logarithm of the scale: c and n are exp(-m) times what the equations without a scale have."""

    h: Tensor
    c: Tensor
    n: Tensor
    m: Tensor


class ScalarGates(NamedTuple):
    """Of one step, each [batch, units]: the logarithm of the input gate and of the forget gate, the candidate in (-1, 1), and the
    output gate in (0, 1)."""

    log_input: Tensor
    log_forget: Tensor
    candidate: Tensor
    output: Tensor


@final
class SLSTM(Cell):
    """The sLSTM of xLSTM: an LSTM whose input gate has no ceiling, and which says the mean of what was written.

        i = exp(W_i x + R_i h + b_i)                    input gate
        f = sigmoid(W_f x + R_f h + b_f)                forget gate
        z = tanh(W_z x + R_z h + b_z)                   candidate
        o = sigmoid(W_o x + R_o h + b_o)                output gate
        c' = f * c + i * z
        n' = f * n + i
        h' = o * c' / n'

    Output: h'
    State: h, c, n, m [batch, units]
    Parameters: 4 * units * (inputs + units + 1)
    Reference: Beck et al. 2024, "xLSTM: extended long short-term memory", arXiv:2405.04517

    c and n are kept divided by exp(m), m' = max(log f + m, log i), which changes no h and keeps every exponential at or below
    1; where nothing was written yet (n = 0), m' = log i. With `forget="exp"` the forget gate is an exponential too. One head:
    R is whole. What it sees hangs on h, so a sequence has to be followed step by step. The convolution before it, and the
    norm and projections after it, are of the paper's block and not of its cell.
    """

    blocks = ("input", "forget", "candidate", "output")

    def __init__(self, input_size: int, hidden_size: int, *, forget: Forgetting = "sigmoid") -> None:
        super().__init__()
        self.input_size, self.output_size, self.forget = input_size, hidden_size, forget
        add_weights(self, hidden_size, input_size, hidden_size, "bias_ih")

    def initial_state(self, batch: int) -> ScalarState:
        zeros = self.bias_ih.new_zeros
        return ScalarState(*(zeros(batch, self.output_size) for _ in ScalarState._fields))

    def project(self, xs: Tensor) -> Tensor:
        return F.linear(xs, self.weight_ih, self.bias_ih)

    def gates(self, u: Tensor, state: ScalarState) -> ScalarGates:
        i, f, z, o = (u + F.linear(state.h, self.weight_hh)).chunk(4, dim=1)
        return ScalarGates(i, LOG_FORGET[self.forget](f), z.tanh(), o.sigmoid())

    def step(self, u: Tensor, state: ScalarState) -> tuple[Tensor, ScalarState]:
        gate = self.gates(u, state)
        kept = gate.log_forget + state.m
        m = torch.where(state.n == 0, gate.log_input, torch.maximum(kept, gate.log_input))
        # Within the where: exp of what is not taken may be infinite, and its gradient then is no number.
        forget = torch.where(state.n == 0, kept - kept, kept - m).exp()
        input = (gate.log_input - m).exp()
        c = forget * state.c + input * gate.candidate
        n = forget * state.n.abs() + input  # a start that is learnt may lie below zero, where h would have no bounds
        h = gate.output * c / n
        return h, ScalarState(h, c, n, m)


class MatrixState(NamedTuple):
    """What matrix memories know: `c` [batch, heads, size, size], each a matrix from keys to values, `n` [batch, heads, size],
    the keys that were written, added up, and `m` [batch, heads], the logarithm of the scale of both."""

    c: Tensor
    n: Tensor
    m: Tensor


class MatrixGates(NamedTuple):
    """Of one step: the logarithms of the input and forget gate [batch, heads], and the output gate [batch, units] in (0, 1)."""

    log_input: Tensor
    log_forget: Tensor
    output: Tensor


@final
class MatrixLSTM(Cell):
    """The mLSTM of xLSTM: each head keeps a matrix, to which a value is added under a key and which is read with a query. The
    gates see the input alone; i and f are one number for each head, of d units.

        q = W_q x + b_q                                 query
        k = (W_k x + b_k) / sqrt(d)                     key
        v = W_v x + b_v                                 value
        i = exp(w_i x + b_i)                            input gate
        f = sigmoid(w_f x + b_f)                        forget gate
        o = sigmoid(W_o x + b_o)                        output gate
        C' = f C + i v k^T
        n' = f n + i k
        h = o * (C' q) / max(|n'^T q|, 1)

    Output: h [batch, units], heads side by side
    State: c [batch, heads, d, d], n [batch, heads, d], m [batch, heads]
    Parameters: (4 * units + 2 * heads) * (inputs + 1)
    Reference: Beck et al. 2024, "xLSTM: extended long short-term memory", arXiv:2405.04517

    C and n are kept divided by exp(m), m' = max(log f + m, log i), and 1 in the last equation becomes exp(-m'); that changes no h.
    `heads` is 1 unless it is given and divides the units. With `forget="exp"` the forget gate is an exponential too. In the
    paper b_k is not divided by sqrt(d), in its authors' code it is. Sequences are followed in pieces: within one, each step
    looks back at keys and values as attention does, and matrices are kept from piece to piece only. The multiplicative LSTM
    of 2016 is `lstm-multiplicative`.
    """

    blocks = ("query", "key", "value", "output")

    def __init__(self, input_size: int, hidden_size: int, *, heads: int = 1, forget: Forgetting = "sigmoid") -> None:
        super().__init__()
        if heads < 1 or hidden_size % heads:
            raise UsageError(
                f"{hidden_size} units cannot be shared out among {heads} heads; take a number of heads that divides them"
            )
        self.input_size, self.output_size = input_size, hidden_size
        self.heads, self.forget = heads, forget
        self.weight_ih = nn.Parameter(uniform_(input_size, 4 * hidden_size, input_size))
        self.bias_ih = nn.Parameter(uniform_(input_size, 4 * hidden_size))
        self.weight_gates = nn.Parameter(uniform_(input_size, 2 * heads, input_size))
        self.bias_gates = nn.Parameter(uniform_(input_size, 2 * heads))

    def initial_state(self, batch: int) -> MatrixState:
        zeros, size = self.bias_ih.new_zeros, self.output_size // self.heads
        return MatrixState(
            zeros(batch, self.heads, size, size), zeros(batch, self.heads, size), zeros(batch, self.heads)
        )

    def project(self, xs: Tensor) -> tuple[Tensor, Tensor]:
        """Query, key, value and output gate [batch, time, 4 * units], and the gates of the heads [batch, time, 2 * heads]."""
        return F.linear(xs, self.weight_ih, self.bias_ih), F.linear(xs, self.weight_gates, self.bias_gates)

    def gates(self, u: tuple[Tensor, Tensor], state: MatrixState) -> MatrixGates:
        log_input, f = u[1].chunk(2, dim=1)
        return MatrixGates(log_input, LOG_FORGET[self.forget](f), u[0].chunk(4, dim=1)[3].sigmoid())

    def step(self, u: tuple[Tensor, Tensor], state: MatrixState) -> tuple[Tensor, MatrixState]:
        gate = self.gates(u, state)
        q, k, v = (part.unflatten(1, (self.heads, -1)) for part in u[0].chunk(4, dim=1)[:3])
        k = k / math.sqrt(k.shape[2])
        kept = gate.log_forget + state.m
        m = torch.maximum(kept, gate.log_input)
        forget, input = (kept - m).exp()[..., None], (gate.log_input - m).exp()[..., None]
        c = forget[..., None] * state.c + (input * v)[..., None] * k[..., None, :]
        n = forget * state.n + input * k
        least = torch.maximum((n * q).sum(2).abs(), (-m).exp())
        h = gate.output * ((c * q[..., None, :]).sum(3) / least[..., None]).flatten(1)
        return h, MatrixState(c, n, m)

    def scan(self, xs: Tensor, state: MatrixState, lengths: Tensor | None) -> tuple[Tensor, MatrixState]:
        if not may_scan(self, xs, state):
            return self.loop(xs, state, lengths)
        sums, gates = (u.split(PIECE, dim=1) for u in self.project(masked(xs, lengths)))
        inside = None if lengths is None else within(lengths, xs.shape[1]).split(PIECE, dim=1)
        ys = []
        for at, u in enumerate(zip(sums, gates, strict=True)):
            y, state = self._piece(u, state, None if inside is None else inside[at])
            ys.append(y)
        return masked(torch.cat(ys, dim=1), lengths), state

    def _piece(self, u: tuple[Tensor, Tensor], state: MatrixState, inside: Tensor | None) -> tuple[Tensor, MatrixState]:
        """Some steps at once. What was written at step s and is read at step t has the weight i_s f_(s+1) ... f_t, and what the
        state held f_1 ... f_t; the scale m_t is the largest of them, as it is step by step."""
        *qkv, o = u[0].chunk(4, dim=2)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in qkv)  # [batch, heads, time, size]
        k = k / math.sqrt(k.shape[3])
        carried, written = self._logarithms(u[1], state.m, inside)
        m = torch.maximum(carried, written.amax(3))
        kept, weight = (carried - m).exp(), (written - m[..., None]).exp()
        scores = weight * (q @ k.mT)
        said = scores @ v + kept[..., None] * (q @ state.c.mT)
        least = torch.maximum((scores.sum(3) + kept * (q @ state.n[..., None])[..., 0]).abs(), (-m).exp())
        h = o.sigmoid() * (said / least[..., None]).transpose(1, 2).flatten(2)
        left, last = kept[..., -1, None], weight[..., -1, :, None]
        c = left[..., None] * state.c + (last * v).mT @ k
        n = left * state.n + (last * k).sum(2)
        return h, MatrixState(c, n, m[..., -1])

    def _logarithms(self, sums: Tensor, m: Tensor, inside: Tensor | None) -> tuple[Tensor, Tensor]:
        """Of the weights of what the state held, [batch, heads, time], and of what was written, [batch, heads, time t, time s].
        Past a row's end nothing is written and nothing forgotten."""
        log_input, f = sums.transpose(1, 2).chunk(2, dim=1)
        log_forget = LOG_FORGET[self.forget](f)
        if inside is not None:
            log_input = torch.where(inside[:, None], log_input, -torch.inf)
            log_forget = torch.where(inside[:, None], log_forget, 0.0)
        not_later = torch.ones(f.shape[2], f.shape[2], dtype=torch.bool, device=f.device).tril()
        # Summed from each s on: the difference of two sums from the start would lose the digits that count.
        forgotten = torch.where(not_later.tril(-1), log_forget[..., None], 0.0).cumsum(2)
        written = torch.where(not_later, forgotten + log_input[:, :, None], -torch.inf)
        return m[..., None] + log_forget.cumsum(2), written
