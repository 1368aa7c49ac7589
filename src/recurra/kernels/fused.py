"""torch's own fused recurrences (oneDNN for LSTM on a CPU, cuDNN on a GPU), entered as a first faster path."""

import torch
from torch import Tensor

Result = tuple[Tensor, tuple[Tensor, ...]]
State = tuple[Tensor, ...]
Weights = tuple[Tensor, ...]


def lstm(xs: Tensor, state: State, weights: Weights) -> Result:
    start = [part[None].contiguous() for part in state]
    ys, h, c = torch.lstm(xs, start, list(weights), True, 1, 0.0, torch.is_grad_enabled(), False, True)
    return ys, (h[0], c[0])


def gru(xs: Tensor, state: State, weights: Weights) -> Result:
    return _one_field(torch.gru, xs, state, weights)


def elman_tanh(xs: Tensor, state: State, weights: Weights) -> Result:
    return _one_field(torch.rnn_tanh, xs, state, weights)


def elman_relu(xs: Tensor, state: State, weights: Weights) -> Result:
    return _one_field(torch.rnn_relu, xs, state, weights)


def _one_field(op, xs: Tensor, state: State, weights: Weights) -> Result:  # type: ignore[no-untyped-def]
    start = state[0][None].contiguous()
    ys, h = op(xs, start, list(weights), True, 1, 0.0, torch.is_grad_enabled(), False, True)
    return ys, (h[0],)
