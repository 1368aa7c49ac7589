"""torch's own fused recurrences (oneDNN for LSTM on a CPU, cuDNN on a GPU), entered as a first faster path."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from recurra.state import choose, masked

Result = tuple[Tensor, tuple[Tensor, ...]]
State = tuple[Tensor, ...]
Weights = tuple[Tensor, ...]
Fused = Callable[[Tensor, Tensor | None, State, Weights], Result]


def lstm(xs: Tensor, lengths: Tensor | None, state: State, weights: Weights) -> Result:
    return _run(torch.lstm, xs, lengths, state, weights)


def lstm_projected(xs: Tensor, lengths: Tensor | None, state: State, weights: Weights) -> Result:
    """Always packed: for rows of one length torch would first try oneDNN, which has no projections, and warn of it."""
    whole = torch.full((xs.shape[0],), xs.shape[1], device=xs.device)
    return _packed(torch.lstm, xs, whole if lengths is None else lengths, state, weights)


def gru(xs: Tensor, lengths: Tensor | None, state: State, weights: Weights) -> Result:
    return _run(torch.gru, xs, lengths, state, weights)


def elman_tanh(xs: Tensor, lengths: Tensor | None, state: State, weights: Weights) -> Result:
    return _run(torch.rnn_tanh, xs, lengths, state, weights)


def elman_relu(xs: Tensor, lengths: Tensor | None, state: State, weights: Weights) -> Result:
    return _run(torch.rnn_relu, xs, lengths, state, weights)


def _run(op: Callable[..., Any], xs: Tensor, lengths: Tensor | None, state: State, weights: Weights) -> Result:
    if lengths is not None:
        return _packed(op, xs, lengths, state, weights)
    start = [part[None].contiguous() for part in state]
    given = start if len(start) > 1 else start[0]
    ys, *last = op(xs, given, list(weights), True, 1, 0.0, torch.is_grad_enabled(), False, True)
    return ys, tuple(part[0] for part in last)


def _packed(op: Callable[..., Any], xs: Tensor, lengths: Tensor, state: State, weights: Weights) -> Result:
    """Rows of several lengths, longest first, as torch packs them. A row of no length is run for a step and then set back."""
    order = lengths.argsort(descending=True)
    ordered = lengths[order]
    data, sizes, *_ = pack_padded_sequence(masked(xs[order], ordered), ordered.clamp(min=1).cpu(), True)
    start = [part[order][None] for part in state]
    given = start if len(start) > 1 else start[0]
    packed, *last = op(data, sizes, given, list(weights), True, 1, 0.0, torch.is_grad_enabled(), False)
    ys, _ = pad_packed_sequence(PackedSequence(packed, sizes), True, total_length=xs.shape[1])
    back = order.argsort()
    after = tuple(part[0][back] for part in last)
    return masked(ys[back], lengths), choose(lengths > 0, after, state)
