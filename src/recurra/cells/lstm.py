"""Long short-term memory: a cell state that is kept by addition, and gates that say what goes in, stays and comes out."""

from typing import Any, Literal, NamedTuple, final

import torch.nn.functional as F
from torch import Tensor, nn

from recurra.cells.base import ENOUGH_TO_NORM, Cell, add_weights, with_one_bias
from recurra.init import uniform_
from recurra.regularize import check_share, step_mask

CANDIDATES = {"tanh": lambda a: a.tanh(), "sigmoid": lambda a: a.sigmoid()}


class LSTMState(NamedTuple):
    """What an LSTM knows: `h`, what it says, and `c`, what it remembers, both [batch, units]."""

    h: Tensor
    c: Tensor


class LSTMGates(NamedTuple):
    """The gates of one step, each [batch, units]: three in (0, 1), and the candidate."""

    input: Tensor
    forget: Tensor
    candidate: Tensor
    output: Tensor


@final
class LSTM(Cell):
    """The LSTM with a forget gate, as in torch and cuDNN:

        i = sigmoid(W_ii x + b_ii + W_hi h + b_hi)      input gate
        f = sigmoid(W_if x + b_if + W_hf h + b_hf)      forget gate
        g = tanh(W_ig x + b_ig + W_hg h + b_hg)         candidate
        o = sigmoid(W_io x + b_io + W_ho h + b_ho)      output gate
        c' = f * c + i * g
        h' = o * tanh(c')

    Output: h'
    State: h, c [batch, units]
    Parameters: 4 * units * (inputs + units + 2)
    Reference: Hochreiter & Schmidhuber 1997, Neural Computation 9; Gers, Schmidhuber & Cummins 2000, Neural Computation 12

    Names and gate order as in torch.nn.LSTMCell. `candidate="sigmoid"` squashes g into (0, 1). In training,
    `candidate_dropout` drops a share of g, drawn anew at every step: what is remembered is not harmed (Semeniuta, Severyn &
    Barth 2016, arXiv:1603.05118).
    """

    blocks = LSTMGates._fields

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        candidate: Literal["tanh", "sigmoid"] = "tanh",
        candidate_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.candidate, self.candidate_dropout = candidate, check_share(candidate_dropout, "candidate_dropout")
        add_weights(self, hidden_size, input_size, hidden_size, "bias_ih", "bias_hh")

    def initial_state(self, batch: int) -> LSTMState:
        zeros = self.bias_hh.new_zeros(batch, self.output_size)
        return LSTMState(zeros, zeros.clone())

    def project(self, xs: Tensor) -> Any:
        """The sums of the input, [batch, time, 4 * units], and the mask of the candidate, [batch, time, units] or ()."""
        sums = F.linear(xs, self.weight_ih, self.bias_ih + self.bias_hh)
        return sums, step_mask(sums[..., : self.output_size], self.candidate_dropout) if self._is_noisy() else ()

    def gates(self, u: Any, state: LSTMState) -> LSTMGates:
        sums, mask = u
        i, f, g, o = (sums + F.linear(state.h, self.weight_hh)).chunk(4, dim=1)
        candidate = CANDIDATES[self.candidate](g)
        return LSTMGates(i.sigmoid(), f.sigmoid(), candidate * mask if self._is_noisy() else candidate, o.sigmoid())

    def step(self, u: Any, state: LSTMState) -> tuple[Tensor, LSTMState]:
        gate = self.gates(u, state)
        c = gate.forget * state.c + gate.input * gate.candidate
        h = gate.output * c.tanh()
        return h, LSTMState(h, c)

    def recurrence(self) -> tuple[str, tuple[Tensor, ...]] | None:
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        return None if self._is_noisy() else ("lstm" if self.candidate == "tanh" else "lstm-sigmoid", weights)

    def _is_noisy(self) -> bool:
        return self.training and self.candidate_dropout > 0


@final
class PeepholeLSTM(Cell):
    """An LSTM whose gates see the cell state, each unit its own:

        i = sigmoid(W_ii x + b_ii + W_hi h + p_i * c)   input gate
        f = sigmoid(W_if x + b_if + W_hf h + p_f * c)   forget gate
        g = tanh(W_ig x + b_ig + W_hg h)                candidate
        c' = f * c + i * g
        o = sigmoid(W_io x + b_io + W_ho h + p_o * c')  output gate: sees the new cell state
        h' = o * tanh(c')

    Output: h'
    State: h, c [batch, units]
    Parameters: units * (4 * (inputs + units + 1) + 3)
    Reference: Gers, Schraudolph & Schmidhuber 2002, "Learning precise timing with LSTM recurrent networks", JMLR 3
    """

    blocks = LSTMGates._fields

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        add_weights(self, hidden_size, input_size, hidden_size, "bias_ih")
        self.peephole_input = nn.Parameter(uniform_(hidden_size, hidden_size))
        self.peephole_forget = nn.Parameter(uniform_(hidden_size, hidden_size))
        self.peephole_output = nn.Parameter(uniform_(hidden_size, hidden_size))

    def initial_state(self, batch: int) -> LSTMState:
        zeros = self.bias_ih.new_zeros(batch, self.output_size)
        return LSTMState(zeros, zeros.clone())

    def project(self, xs: Tensor) -> Tensor:
        return F.linear(xs, self.weight_ih, self.bias_ih)

    def gates(self, u: Tensor, state: LSTMState) -> LSTMGates:
        i, f, g, o = (u + F.linear(state.h, self.weight_hh)).chunk(4, dim=1)
        input = (i + self.peephole_input * state.c).sigmoid()
        forget = (f + self.peephole_forget * state.c).sigmoid()
        candidate = g.tanh()
        c = forget * state.c + input * candidate
        return LSTMGates(input, forget, candidate, (o + self.peephole_output * c).sigmoid())

    def step(self, u: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        gate = self.gates(u, state)
        c = gate.forget * state.c + gate.input * gate.candidate
        h = gate.output * c.tanh()
        return h, LSTMState(h, c)

    def recurrence(self) -> tuple[str, tuple[Tensor, ...]]:
        peepholes = (self.peephole_input, self.peephole_forget, self.peephole_output)
        return "lstm-peephole", (*with_one_bias(self), *peepholes)


class CoupledGates(NamedTuple):
    """The gates of one step, each [batch, units]: two in (0, 1), the candidate in (-1, 1). The input gate is 1 - forget."""

    forget: Tensor
    candidate: Tensor
    output: Tensor


@final
class CoupledLSTM(Cell):
    """An LSTM that forgets exactly what it writes over: its input gate is 1 - f.

        f = sigmoid(W_if x + b_if + W_hf h)             forget gate
        g = tanh(W_ig x + b_ig + W_hg h)                candidate
        o = sigmoid(W_io x + b_io + W_ho h)             output gate
        c' = f * c + (1 - f) * g
        h' = o * tanh(c')

    Output: h'
    State: h, c [batch, units]
    Parameters: 3 * units * (inputs + units + 1)
    Reference: Greff et al. 2017, "LSTM: a search space odyssey", arXiv:1503.04069 (CIFG)
    """

    blocks = CoupledGates._fields

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        add_weights(self, hidden_size, input_size, hidden_size, "bias_ih")

    def initial_state(self, batch: int) -> LSTMState:
        zeros = self.bias_ih.new_zeros(batch, self.output_size)
        return LSTMState(zeros, zeros.clone())

    def project(self, xs: Tensor) -> Tensor:
        return F.linear(xs, self.weight_ih, self.bias_ih)

    def gates(self, u: Tensor, state: LSTMState) -> CoupledGates:
        f, g, o = (u + F.linear(state.h, self.weight_hh)).chunk(3, dim=1)
        return CoupledGates(f.sigmoid(), g.tanh(), o.sigmoid())

    def step(self, u: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        gate = self.gates(u, state)
        c = gate.forget * state.c + (1 - gate.forget) * gate.candidate
        h = gate.output * c.tanh()
        return h, LSTMState(h, c)

    def recurrence(self) -> tuple[str, tuple[Tensor, ...]]:
        return "lstm-coupled", with_one_bias(self)


class ProjectedState(NamedTuple):
    """What a projected LSTM knows: `h` [batch, projection], what it says, and `c` [batch, units], what it remembers."""

    h: Tensor
    c: Tensor


@final
class ProjectedLSTM(Cell):
    """An LSTM that says less than it remembers: h is a linear map of the output to fewer features.

        i, f, o = sigmoid(W_i. x + b_i. + W_h. h + b_h.)    gates
        g = tanh(W_ig x + b_ig + W_hg h + b_hg)             candidate
        c' = f * c + i * g
        h' = W_hr (o * tanh(c'))

    Output: h'
    State: h [batch, projection], c [batch, units]
    Parameters: 4 * units * (inputs + projection + 2) + projection * units
    Reference: Sak, Senior & Beaufays 2014, "Long short-term memory based recurrent neural network architectures", arXiv:1402.1128

    Names and gate order as in torch.nn.LSTM with proj_size. `projection` is half of `hidden_size` unless it is given.
    """

    blocks = LSTMGates._fields

    def __init__(self, input_size: int, hidden_size: int, *, projection: int | None = None) -> None:
        super().__init__()
        self.input_size, self.hidden_size = input_size, hidden_size
        self.output_size = projection or max(1, hidden_size // 2)
        add_weights(self, hidden_size, input_size, self.output_size, "bias_ih", "bias_hh")
        self.weight_hr = nn.Parameter(uniform_(hidden_size, self.output_size, hidden_size))

    def initial_state(self, batch: int) -> ProjectedState:
        zeros = self.bias_hh.new_zeros
        return ProjectedState(zeros(batch, self.output_size), zeros(batch, self.hidden_size))

    def project(self, xs: Tensor) -> Tensor:
        return F.linear(xs, self.weight_ih, self.bias_ih + self.bias_hh)

    def gates(self, u: Tensor, state: ProjectedState) -> LSTMGates:
        i, f, g, o = (u + F.linear(state.h, self.weight_hh)).chunk(4, dim=1)
        return LSTMGates(i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid())

    def step(self, u: Tensor, state: ProjectedState) -> tuple[Tensor, ProjectedState]:
        gate = self.gates(u, state)
        c = gate.forget * state.c + gate.input * gate.candidate
        h = F.linear(gate.output * c.tanh(), self.weight_hr)
        return h, ProjectedState(h, c)

    def recurrence(self) -> tuple[str, tuple[Tensor, ...]] | None:
        return "lstm-projected", (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, self.weight_hr)

    def what_recurs(self) -> tuple[str, tuple[Tensor, ...]]:
        return "lstm-projected", (self.weight_hh, self.weight_hr)


@final
class LayerNormLSTM(Cell):
    """An LSTM whose sums and cell state are normalised over the units, in the two forms that were published. LN(a) is a,
    shifted and scaled to mean 0 and variance 1 over the row, times a learnt gain; shifts are learnt where LN has no bias
    beside it. With `norm="sums"`, input and state are normalised apart, each over all four blocks together:

        i, f, g, o = LN(W_i. x) + LN(W_h. h) + b_i.         before sigmoid, sigmoid, tanh, sigmoid
        c' = f * c + i * g
        h' = o * tanh(LN(c'))

    and with `norm="gates"`, each block of the whole sum by itself, and the cell state is kept in its normalised form:

        i, f, g, o = LN(W_i. x + W_h. h) + b_i.             four norms, one for each block
        c' = LN(f * c + i * g)
        h' = o * tanh(c')

    Output: h'
    State: h, c [batch, units]
    Parameters: 4 * units * (inputs + units + 3) + 2 * units
    Reference: Ba, Kiros & Hinton 2016, arXiv:1607.06450 ("sums"); LayerNormBasicLSTMCell of TensorFlow 1 ("gates")

    With `norm="gates"` the parameters are fewer by 4 * units: one gain for each row and not two.
    """

    blocks = LSTMGates._fields

    def __init__(self, input_size: int, hidden_size: int, *, norm: Literal["sums", "gates"] = "sums") -> None:
        super().__init__()
        self.input_size, self.output_size, self.norm = input_size, hidden_size, norm
        add_weights(self, hidden_size, input_size, hidden_size, "bias_ih")
        ones = self.bias_ih.new_ones
        self.gain_ih = nn.Parameter(ones(4 * hidden_size)) if norm == "sums" else None
        self.gain_hh = nn.Parameter(ones(4 * hidden_size))
        self.gain_c = nn.Parameter(ones(hidden_size))
        self.bias_c = nn.Parameter(self.bias_ih.new_zeros(hidden_size))

    def initial_state(self, batch: int) -> LSTMState:
        zeros = self.bias_ih.new_zeros(batch, self.output_size)
        return LSTMState(zeros, zeros.clone())

    def project(self, xs: Tensor) -> Tensor:
        sums = F.linear(xs, self.weight_ih)
        if self.gain_ih is None:
            return sums
        return F.layer_norm(sums, sums.shape[-1:], self.gain_ih, self.bias_ih)

    def gates(self, u: Tensor, state: LSTMState) -> LSTMGates:
        recurrent = F.linear(state.h, self.weight_hh)
        if self.norm == "sums":
            sums = u + F.layer_norm(recurrent, recurrent.shape[-1:], self.gain_hh)
        else:
            by_block = (u + recurrent).unflatten(1, (4, self.output_size))
            sums = self.gain_hh * F.layer_norm(by_block, (self.output_size,)).flatten(1) + self.bias_ih
        i, f, g, o = sums.chunk(4, dim=1)
        return LSTMGates(i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid())

    def step(self, u: Tensor, state: LSTMState) -> tuple[Tensor, LSTMState]:
        gate = self.gates(u, state)
        c = gate.forget * state.c + gate.input * gate.candidate
        normed = F.layer_norm(c, (self.output_size,), self.gain_c, self.bias_c)
        h = gate.output * normed.tanh()
        return h, LSTMState(h, c if self.norm == "sums" else normed)

    def what_recurs(self) -> tuple[str, tuple[Tensor, ...]] | None:
        if self.output_size < ENOUGH_TO_NORM:
            return None
        shifts = () if self.norm == "sums" else (self.bias_ih,)
        return f"lstm-normed-{self.norm}", (self.weight_hh, self.gain_hh, *shifts, self.gain_c, self.bias_c)
