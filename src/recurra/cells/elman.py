"""Simple recurrent networks: Elman, whose hidden state comes back, Jordan, whose output does, and one whose units are apart."""

from typing import Literal, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra.cells.base import Cell, add_weights
from recurra.init import uniform_

Activation = Literal["tanh", "relu", "logistic", "identity"]
ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "logistic": torch.sigmoid, "identity": lambda a: a}


class ElmanState(NamedTuple):
    """What an Elman network remembers: its last output. `h` [batch, units]."""

    h: Tensor


@final
class Elman(Cell):
    """The simple recurrent network; act is tanh, relu, logistic or identity.

        h' = act(W_ih x + b_ih + W_hh h + b_hh)

    Output: h'
    State: h [batch, units]
    Parameters: units * (inputs + units + 2)
    Reference: Elman 1990, "Finding structure in time", Cognitive Science 14

    Names and shapes as in torch.nn.RNNCell. With act = relu and the start `irnn` of `recurra.init` it is the IRNN of
    Le, Jaitly & Hinton 2015 (arXiv:1504.00941).
    """

    blocks = ("hidden",)

    def __init__(self, input_size: int, hidden_size: int, *, activation: Activation = "tanh") -> None:
        super().__init__()
        self.input_size, self.output_size, self.activation = input_size, hidden_size, activation
        add_weights(self, hidden_size, input_size, hidden_size, "bias_ih", "bias_hh")

    def initial_state(self, batch: int) -> ElmanState:
        return ElmanState(self.bias_hh.new_zeros(batch, self.output_size))

    def project(self, xs: Tensor) -> Tensor:
        return F.linear(xs, self.weight_ih, self.bias_ih + self.bias_hh)

    def step(self, u: Tensor, state: ElmanState) -> tuple[Tensor, ElmanState]:
        h = ACTIVATIONS[self.activation](u + F.linear(state.h, self.weight_hh))
        return h, ElmanState(h)

    def recurrence(self) -> tuple[str, tuple[Tensor, ...]] | None:
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        return (f"elman-{self.activation}", weights) if self.activation != "identity" else None


@final
class IndRNN(Cell):
    """The independently recurrent network: each unit hears of the state itself alone; act is relu, tanh, logistic or identity.

        h' = act(W x + u * h + b)

    Output: h'
    State: h [batch, units]
    Parameters: units * (inputs + 2)
    Reference: Li, Li, Cook, Zhu & Gao 2018, "Independently recurrent neural network (IndRNN)", arXiv:1803.04831

    u starts uniform in [0, 1]. The paper keeps |u| in training within what lets a gradient through all T steps, 2^(1/T) for
    relu; that is left to the learning rate and to clipping. What mixes the units is a second layer.
    """

    blocks = ("hidden",)

    def __init__(self, input_size: int, hidden_size: int, *, activation: Activation = "relu") -> None:
        super().__init__()
        self.input_size, self.output_size, self.activation = input_size, hidden_size, activation
        self.weight_ih = nn.Parameter(uniform_(input_size, hidden_size, input_size))
        self.bias_ih = nn.Parameter(uniform_(input_size, hidden_size))
        self.weight_u = nn.Parameter(torch.rand(hidden_size))

    def initial_state(self, batch: int) -> ElmanState:
        return ElmanState(self.bias_ih.new_zeros(batch, self.output_size))

    def project(self, xs: Tensor) -> Tensor:
        return F.linear(xs, self.weight_ih, self.bias_ih)

    def step(self, u: Tensor, state: ElmanState) -> tuple[Tensor, ElmanState]:
        h = ACTIVATIONS[self.activation](u + self.weight_u * state.h)
        return h, ElmanState(h)

    def what_recurs(self) -> tuple[str, tuple[Tensor, ...]]:
        return f"indrnn-{self.activation}", (self.weight_u,)


class JordanState(NamedTuple):
    """What a Jordan network remembers: its last output. `y` [batch, outputs]."""

    y: Tensor


@final
class Jordan(Cell):
    """A network whose own output is fed back; act and out are tanh, relu, logistic or identity.

        h = act(W_ih x + W_hh y + b_ih)                 hidden layer: sees the input and the last output
        y' = out(W_ho h + b_ho)                         output

    Output: y'
    State: y [batch, outputs]
    Parameters: units * (inputs + outputs + 1) + outputs * (units + 1)
    Reference: Jordan 1986, "Attractor dynamics and parallelism in a connectionist sequential machine", CogSci

    `outputs` is `hidden_size` unless it is given.
    """

    blocks = ("hidden",)

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        outputs: int | None = None,
        activation: Activation = "tanh",
        output_activation: Activation = "tanh",
    ) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, outputs or hidden_size
        self.activation, self.output_activation = activation, output_activation
        add_weights(self, hidden_size, input_size, self.output_size, "bias_ih")
        self.weight_ho = nn.Parameter(uniform_(hidden_size, self.output_size, hidden_size))
        self.bias_ho = nn.Parameter(uniform_(hidden_size, self.output_size))

    def initial_state(self, batch: int) -> JordanState:
        return JordanState(self.bias_ho.new_zeros(batch, self.output_size))

    def project(self, xs: Tensor) -> Tensor:
        return F.linear(xs, self.weight_ih, self.bias_ih)

    def step(self, u: Tensor, state: JordanState) -> tuple[Tensor, JordanState]:
        h = ACTIVATIONS[self.activation](u + F.linear(state.y, self.weight_hh))
        y = ACTIVATIONS[self.output_activation](F.linear(h, self.weight_ho, self.bias_ho))
        return y, JordanState(y)
