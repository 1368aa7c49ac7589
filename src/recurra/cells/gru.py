"""Gated recurrent units: a state that is kept or renewed, unit by unit."""

from typing import Literal, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.cells.base import ENOUGH_TO_NORM, Cell, add_weights, with_one_bias


class GRUState(NamedTuple):
    """What a GRU knows: its last output. `h` [batch, units]."""

    h: Tensor


class GRUGates(NamedTuple):
    """The gates of one step, each [batch, units]: two in (0, 1), the candidate in (-1, 1)."""

    reset: Tensor
    update: Tensor
    candidate: Tensor


@final
class GRU(Cell):
    """The gated recurrent unit. With `reset="after"`, as cuDNN and torch have it:

        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)      reset gate
        z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)      update gate: how much of the old state stays
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))   candidate
        h' = (1 - z) * n + z * h

    and with `reset="before"`, as it was published:

        n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)

    Output: h'
    State: h [batch, units]
    Parameters: 3 * units * (inputs + units + 2)
    Reference: Cho et al. 2014, arXiv:1406.1078 (its third version resets before the product, its first after)

    Names and gate order as in torch.nn.GRUCell. Texts that let z say how much is renewed, h' = (1 - z) h + z n, have the
    same network with the weights of z negated: `cells.layouts.with_update_gate_swapped`.
    """

    blocks = GRUGates._fields

    def __init__(self, input_size: int, hidden_size: int, *, reset: Literal["after", "before"] = "after") -> None:
        super().__init__()
        self.input_size, self.output_size, self.reset = input_size, hidden_size, reset
        add_weights(self, hidden_size, input_size, hidden_size, "bias_ih", "bias_hh")

    def initial_state(self, batch: int) -> GRUState:
        return GRUState(self.bias_hh.new_zeros(batch, self.output_size))

    def project(self, xs: Tensor) -> Tensor:
        """The sums of the input, [batch, time, 3 * units]: with the second bias too where nothing stands between them."""
        bias = self.bias_ih if self.reset == "after" else self.bias_ih + self.bias_hh
        return F.linear(xs, self.weight_ih, bias)

    def gates(self, u: Tensor, state: GRUState) -> GRUGates:
        return self._reset_after(u, state.h) if self.reset == "after" else self._reset_before(u, state.h)

    def step(self, u: Tensor, state: GRUState) -> tuple[Tensor, GRUState]:
        gate = self.gates(u, state)
        h = (1 - gate.update) * gate.candidate + gate.update * state.h
        return h, GRUState(h)

    def recurrence(self) -> tuple[str, tuple[Tensor, ...]] | None:
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        return ("gru", weights) if self.reset == "after" else None

    def what_recurs(self) -> tuple[str, tuple[Tensor, ...]] | None:
        return ("gru-before", (self.weight_hh,)) if self.reset == "before" else None

    def _reset_after(self, u: Tensor, h: Tensor) -> GRUGates:
        ur, uz, un = u.chunk(3, dim=1)
        hr, hz, hn = F.linear(h, self.weight_hh, self.bias_hh).chunk(3, dim=1)
        reset = (ur + hr).sigmoid()
        return GRUGates(reset, (uz + hz).sigmoid(), (un + reset * hn).tanh())

    def _reset_before(self, u: Tensor, h: Tensor) -> GRUGates:
        units = self.output_size
        gates, candidate = self.weight_hh.split([2 * units, units])
        ug, un = u.split([2 * units, units], dim=1)
        reset, update = (ug + F.linear(h, gates)).sigmoid().chunk(2, dim=1)
        return GRUGates(reset, update, (un + F.linear(reset * h, candidate)).tanh())


@final
class LayerNormGRU(Cell):
    """A GRU whose sums are normalised over the units, those of the input apart from those of the state. LN(a) is a, shifted
    and scaled to mean 0 and variance 1 over the row; each LN has its own gain; shifts that meet are one bias:

        (r, z) = sigmoid(LN(W_i(r,z) x) + LN(W_h(r,z) h) + b_i(r,z))    reset and update gates
        n = tanh(LN(W_in x) + b_in + r * (LN(W_hn h) + b_hn))           candidate
        h' = (1 - z) * n + z * h

    Output: h'
    State: h [batch, units]
    Parameters: 3 * units * (inputs + units + 3) + units
    Reference: Ba, Kiros & Hinton 2016, arXiv:1607.06450, supplement
    """

    blocks = GRUGates._fields

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        add_weights(self, hidden_size, input_size, hidden_size, "bias_ih")
        self.gain_ih = nn.Parameter(self.bias_ih.new_ones(3 * hidden_size))
        self.gain_hh = nn.Parameter(self.bias_ih.new_ones(3 * hidden_size))
        self.bias_hn = nn.Parameter(self.bias_ih.new_zeros(hidden_size))

    def initial_state(self, batch: int) -> GRUState:
        return GRUState(self.bias_ih.new_zeros(batch, self.output_size))

    def project(self, xs: Tensor) -> Tensor:
        return self._normed(F.linear(xs, self.weight_ih), self.gain_ih) + self.bias_ih

    def gates(self, u: Tensor, state: GRUState) -> GRUGates:
        ur, uz, un = u.chunk(3, dim=1)
        hr, hz, hn = self._normed(F.linear(state.h, self.weight_hh), self.gain_hh).chunk(3, dim=1)
        reset = (ur + hr).sigmoid()
        return GRUGates(reset, (uz + hz).sigmoid(), (un + reset * (hn + self.bias_hn)).tanh())

    def step(self, u: Tensor, state: GRUState) -> tuple[Tensor, GRUState]:
        gate = self.gates(u, state)
        h = (1 - gate.update) * gate.candidate + gate.update * state.h
        return h, GRUState(h)

    def what_recurs(self) -> tuple[str, tuple[Tensor, ...]] | None:
        enough = self.output_size >= ENOUGH_TO_NORM
        return ("gru-normed", (self.weight_hh, self.gain_hh, self.bias_hn)) if enough else None

    def _normed(self, sums: Tensor, gain: Tensor) -> Tensor:
        """The two gates are normalised together, the candidate by itself."""
        units = self.output_size
        gates, candidate = sums.split([2 * units, units], dim=-1)
        normed = F.layer_norm(gates, (2 * units,)), F.layer_norm(candidate, (units,))
        return gain * torch.cat(normed, dim=-1)


class MGUGates(NamedTuple):
    """The gates of one step, each [batch, units]: one in (0, 1), the candidate in (-1, 1)."""

    forget: Tensor
    candidate: Tensor


@final
class MGU(Cell):
    """The minimal gated unit: one gate that both resets and renews.

        f = sigmoid(W_if x + b_if + W_hf h)             forget gate: how much of the old state is renewed
        n = tanh(W_in x + b_in + W_hn (f * h))          candidate
        h' = (1 - f) * h + f * n

    Output: h'
    State: h [batch, units]
    Parameters: 2 * units * (inputs + units + 1)
    Reference: Zhou, Wu, Zhang & Zhou 2016, "Minimal gated unit for recurrent neural networks", arXiv:1603.09420
    """

    blocks = MGUGates._fields
    open_gate_keeps = -1.0  # its forget gate says how much is renewed

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        add_weights(self, hidden_size, input_size, hidden_size, "bias_ih")

    def initial_state(self, batch: int) -> GRUState:
        return GRUState(self.bias_ih.new_zeros(batch, self.output_size))

    def project(self, xs: Tensor) -> Tensor:
        return F.linear(xs, self.weight_ih, self.bias_ih)

    def gates(self, u: Tensor, state: GRUState) -> MGUGates:
        uf, un = u.chunk(2, dim=1)
        wf, wn = self.weight_hh.chunk(2)
        forget = (uf + F.linear(state.h, wf)).sigmoid()
        return MGUGates(forget, (un + F.linear(forget * state.h, wn)).tanh())

    def step(self, u: Tensor, state: GRUState) -> tuple[Tensor, GRUState]:
        gate = self.gates(u, state)
        h = (1 - gate.forget) * state.h + gate.forget * gate.candidate
        return h, GRUState(h)

    def what_recurs(self) -> tuple[str, tuple[Tensor, ...]]:
        return "mgu", (self.weight_hh,)


class LiGRUGates(NamedTuple):
    """The gates of one step, [batch, units]: one in (0, 1), and the candidate, not negative."""

    update: Tensor
    candidate: Tensor


@final
class LiGRU(Cell):
    """The light GRU: no reset gate, and a candidate without a ceiling. N(a) is a, shifted and scaled to mean 0 and variance 1:

        z = sigmoid(N(W_z x) + U_z h)                   update gate: how much of the old state stays
        n = relu(N(W_h x) + U_h h)                      candidate
        h' = z * h + (1 - z) * n

    Output: h'
    State: h [batch, units]
    Parameters: 2 * units * (inputs + units + 2)
    Reference: Ravanelli, Brakel, Omologo & Bengio 2018, "Light gated recurrent units for speech recognition", arXiv:1803.10225

    The paper normalises each unit over the batch. Here N is over the units of each block, with a learnt gain and shift: rows do
    not see each other, and a step is the same in a stream. With `norm="none"`, N(W x) is W x + b and the parameters are fewer by
    2 * units.
    """

    blocks = LiGRUGates._fields

    def __init__(self, input_size: int, hidden_size: int, *, norm: Literal["layer", "none"] = "layer") -> None:
        super().__init__()
        self.input_size, self.output_size, self.norm = input_size, hidden_size, norm
        add_weights(self, hidden_size, input_size, hidden_size, "bias_ih")
        self.gain_ih = nn.Parameter(self.bias_ih.new_ones(2 * hidden_size)) if norm == "layer" else None

    def initial_state(self, batch: int) -> GRUState:
        return GRUState(self.bias_ih.new_zeros(batch, self.output_size))

    def project(self, xs: Tensor) -> Tensor:
        if self.gain_ih is None:
            return F.linear(xs, self.weight_ih, self.bias_ih)
        by_block = F.linear(xs, self.weight_ih).unflatten(-1, (2, self.output_size))
        return self.gain_ih * F.layer_norm(by_block, (self.output_size,)).flatten(-2) + self.bias_ih

    def gates(self, u: Tensor, state: GRUState) -> LiGRUGates:
        z, n = (u + F.linear(state.h, self.weight_hh)).chunk(2, dim=1)
        return LiGRUGates(z.sigmoid(), n.relu())

    def step(self, u: Tensor, state: GRUState) -> tuple[Tensor, GRUState]:
        gate = self.gates(u, state)
        h = gate.update * state.h + (1 - gate.update) * gate.candidate
        return h, GRUState(h)

    def recurrence(self) -> tuple[str, tuple[Tensor, ...]] | None:
        return ("ligru", with_one_bias(self)) if self.gain_ih is None else None
