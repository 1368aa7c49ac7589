"""The next-token strip: what a model expected at each place of a text, and how surprised it was."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recurra.cells import Cell
from recurra.errors import UsageError
from recurra.probe.record import at_rest
from recurra.state import State


class Strip(NamedTuple):
    """Of each step of a text: the token that came [time], its surprise in bits [time], the `guesses` [time, best] that were
    likeliest before it, the likeliest first, their probabilities [time, best], and the entropy of the prediction in bits [time]."""

    tokens: np.ndarray
    surprise: np.ndarray
    guesses: np.ndarray
    probabilities: np.ndarray
    entropy: np.ndarray

    @property
    def words(self) -> list[str]:
        """What it comes to."""
        if not len(self.tokens):
            return ["there is no token to be surprised by."]
        right = float((self.guesses[:, 0] == self.tokens).mean())
        worst = int(self.surprise.argmax())
        return [
            f"{self.surprise.mean():.3f} bits a token over {len(self.tokens)} tokens (it expected {self.entropy.mean():.3f}); its "
            f"first guess was right {right:.0%} of the time; token {worst} surprised it most, by {self.surprise[worst]:.1f} bits."
        ]


def strip(cell: Cell, inputs: Tensor, targets: Tensor, *, best: int = 5, state: State | None = None) -> Strip:
    """Read `inputs` int64 `[time]` with a cell from tokens to scores of the next token, and hold it against `targets` `[time]`.

    surprise_t = -log2 p(target_t | inputs up to t). Starts from `state` of one row, or the cell's own. Raises UsageError where
    the cell reads no tokens, and where the two are not of one length.
    """
    if not cell.tokens or inputs.dim() != 1 or inputs.shape != targets.shape:
        raise UsageError(
            f"the strip was given inputs {list(inputs.shape)} and targets {list(targets.shape)} for {type(cell).__name__}; wanted "
            "tokens [time] and the tokens that came after them [time], for a cell that reads tokens"
        )
    with at_rest(cell), torch.no_grad():
        state = cell.initial_state(1) if state is None else state
        scores = cell.unroll(inputs[None], state)[0][0].double()
    logs = scores.log_softmax(1)
    likeliest = logs.topk(min(best, logs.shape[1]), dim=1)
    surprise = -logs.gather(1, targets[:, None])[:, 0] / math.log(2)
    entropy = -(logs.exp() * logs.clamp(min=-1e4)).sum(1) / math.log(2)
    guesses, chances = likeliest.indices.numpy(), likeliest.values.exp().numpy()
    return Strip(targets.numpy(), surprise.numpy(), guesses, chances, entropy.numpy())
