"""The nearest neighbours as a readout: what followed states like this one."""

from itertools import islice
from typing import Any, final

import torch
from torch import Tensor, nn

from recurra.errors import UsageError
from recurra.learn.base import restarted

AT_ONCE = 2**24  # distances


@final
class Neighbours(nn.Module):
    """A readout that also remembers: what it says is mixed with what followed the nearest of the features kept.

        p(y | x) = (1 - mix) p_readout(y | x) + mix sum_i w_i [y_i = y],   w_i ~ exp(-|x - x_i|^2 / (temperature v))

    over the k kept features x_i nearest to x, where v is their total variance. Scores come in and log-probabilities go out; of
    numbers, what is said is the same mean of values (Nadaraya 1964). `keys` `[n, features]`; `values` `[n]` int64 tokens, or
    `[n, outputs]` numbers. Each row of features costs n distances.

    Reference: Khandelwal et al. 2020, arXiv:1911.00172 (kNN-LM)
    """

    keys: Tensor
    values: Tensor

    def __init__(
        self,
        readout: nn.Linear,
        keys: Tensor,
        values: Tensor,
        *,
        k: int = 32,
        temperature: float = 0.02,
        mix: float = 0.3,
    ) -> None:
        super().__init__()
        if k < 1 or temperature <= 0 or not 0 <= mix <= 1:
            raise UsageError(
                f"k was {k}, temperature {temperature} and mix {mix}; wanted at least 1, above 0, and between 0 and 1"
            )
        if not len(keys) or len(keys) != len(values):
            raise UsageError(
                f"{len(keys)} keys were given with {len(values)} values; wanted a value for each, and one at least"
            )
        self.readout, self.k, self.mix = readout, min(k, len(keys)), mix
        self.register_buffer("keys", keys)
        self.register_buffer("values", values)
        self.temperature = temperature * float(keys.var(0, correction=0).sum().clamp(min=1e-30))

    @property
    def weight(self) -> Tensor:
        """That of the readout, whose dtype says what features come as."""
        return self.readout.weight

    def forward(self, features: Tensor) -> Tensor:
        own = self.readout(features)
        rows = features.flatten(0, -2).split(max(1, AT_ONCE // len(self.keys)))
        kept = torch.cat([self._followed(part, own.shape[-1]) for part in rows]).view(own.shape)
        if self.values.is_floating_point():
            return torch.lerp(own, kept, self.mix)
        return torch.lerp(own.softmax(-1), kept, self.mix).clamp(min=torch.finfo(own.dtype).tiny).log()

    def _followed(self, features: Tensor, outputs: int) -> Tensor:
        """What followed the neighbours of each row, `[rows, outputs]`."""
        near, which = torch.cdist(features, self.keys).square().topk(self.k, largest=False)
        shares = (-near / self.temperature).softmax(1)
        if self.values.is_floating_point():
            return torch.einsum("rk,rko->ro", shares, self.values[which])
        return shares.new_zeros(len(features), outputs).scatter_add(1, self.values[which], shares)


@torch.no_grad()
def remember(task: Any, **how: Any) -> Neighbours:
    """Keep what the readout of a trained task sees of its training data, in one pass, and put `Neighbours` in its place, which
    is returned. `how` are its options.

    For the tasks that the learner `ridge` can train, with scores of one label each or numbers. It is for use at once: a bundle
    has no place for what was kept. Raises UsageError for another task.
    """
    if not hasattr(task, "regression") or not isinstance(task.model.readout, nn.Linear):
        raise UsageError(
            "what is kept is what a linear readout sees, and this task has none, or remembers already; take language, classify, "
            "regress or forecast, just trained"
        )
    model, kept, state = task.model.eval(), [], None
    for batch in islice(task.batches(), task.steps_per_epoch()):
        state = restarted(task, batch, model.initial_state(batch.rows) if state is None else state)
        kept.append(task.regression(batch, state))
        state = kept[-1].state
    one = kept[0]
    if one.link == "logistic" or len(one.weights) > 1:
        raise UsageError(
            "wanted one readout of numbers, or of scores of one label; of forecasts give task.linear=false"
        )
    targets = torch.cat([part.targets for part in kept])
    values = targets.argmax(1) if one.link == "softmax" else targets.to(one.features.dtype)
    model.readout = Neighbours(model.readout, torch.cat([part.features for part in kept]), values, **how)
    return model.readout
