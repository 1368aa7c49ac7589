"""What keeps a network from learning its data by heart: noise in training, penalties on weights and activity, limits."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from recurra.errors import UsageError


def check_share(share: float, what: str) -> float:
    """The share itself. Raises UsageError unless it is at least 0 and less than 1."""
    if not 0 <= share < 1:
        raise UsageError(f"{what} was {share}, wanted at least 0 and less than 1: the share that is dropped")
    return share


def seeded(seed: int, step: int) -> torch.Generator:
    """What is drawn in a step of training beside torch's own random numbers: the same for the same seed and step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def step_mask(like: Tensor, share: float) -> Tensor:
    """A mask of the shape of `like`, drawn anew for every entry: zero for a `share` of them, the rest scaled so that the
    mean stays."""
    return F.dropout(torch.ones_like(like), share)


def locked_mask(xs: Tensor, share: float) -> Tensor:
    """A mask `[batch, 1, features]` for `xs` `[batch, time, features]`: zero for a `share` of the features of each row, the
    same ones at every step, the rest scaled so that the mean stays (Gal & Ghahramani 2016, arXiv:1512.05287)."""
    keep = 1.0 - share
    return torch.empty(xs.shape[0], 1, xs.shape[2], dtype=xs.dtype, device=xs.device).bernoulli_(keep) / keep


class _DropConnect(nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, weight: Tensor) -> Tensor:
        return F.dropout(weight, self.share, self.training)


def weight_drop(module: nn.Module, share: float, name: str = "weight_hh") -> nn.Module:
    """Let each forward pass in training drop a `share` of the entries of every parameter called `name` in `module`
    (DropConnect on recurrent weights: Merity, Keskar & Socher 2018, arXiv:1708.02182). Returns the module.

    The mask is drawn once per `unroll`. In `eval()` the weight is the parameter itself.
    """
    owners = [child for child in module.modules() if name in child._parameters]
    for owner in owners:
        parametrize.register_parametrization(owner, name, _DropConnect(share))
    return module


def plain_name(name: str) -> str:
    """A parameter's own name, whatever `weight_drop` has made of it: states are saved under the plain names."""
    if "parametrizations." not in name:
        return name
    return name.replace("parametrizations.", "").removesuffix(".original")


def without_weight_drop(module: nn.Module) -> nn.Module:
    """Take `weight_drop` off again, in place, and what else weights are computed by: each is what it comes to outside training, and
    a parameter. Returns the module."""
    for owner in [child for child in module.modules() if parametrize.is_parametrized(child)]:
        # Not `remove_parametrizations`: that alters the class of the module, which a deep copy shares with its original.
        parameters = {name: _as_parameter(owner, name) for name in cast(nn.ModuleDict, owner.parametrizations)}
        del owner.parametrizations
        owner.__class__ = type(owner).__bases__[0]
        for name, parameter in parameters.items():
            owner.register_parameter(name, parameter)
    return module


def _as_parameter(owner: nn.Module, name: str) -> nn.Parameter:
    chain = cast(Any, owner.parametrizations)[name]
    original: nn.Parameter = chain.original
    if all(isinstance(one, _DropConnect) for one in chain):
        return original
    return nn.Parameter(getattr(owner, name).detach().clone(), requires_grad=original.requires_grad)


def penalised(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that a penalty on weights is for: matrices, and neither biases, gains, time constants nor embeddings.

    A bias or gain has one value a unit and learns nothing by heart; the row of a rare token would only be worn away.
    """
    tables = {id(p) for child in module.modules() if isinstance(child, nn.Embedding) for p in child.parameters()}
    return [p for p in module.parameters() if p.dim() > 1 and p.requires_grad and id(p) not in tables]


def penalty(module: nn.Module, *, l1: float = 0.0, l2: float = 0.0) -> Tensor:
    """l1 * sum |w| + l2 / 2 * sum w^2 over `penalised(module)`: a scalar to add to a loss."""
    total = torch.zeros((), device=next(module.parameters()).device)
    for weight in penalised(module):
        total = total + l1 * weight.abs().sum() + 0.5 * l2 * weight.square().sum()
    return total


def add_penalty_gradient(module: nn.Module, *, l1: float = 0.0, l2: float = 0.0) -> None:
    """Add the gradient of `penalty` to the `.grad` of each parameter that has one: the same for every way of learning."""
    for weight in penalised(module):
        if weight.grad is not None:
            weight.grad.add_(weight.detach().sign(), alpha=l1).add_(weight.detach(), alpha=l2)


def activity(ys: Tensor, *, ar: float = 0.0, tar: float = 0.0) -> Tensor:
    """ar * mean y_t^2 + tar * mean (y_t - y_(t-1))^2 for outputs `[batch, time, units]`: activation regularisation keeps
    activity low, its temporal form keeps it slow (Merity, McCann & Socher 2017, arXiv:1708.01009)."""
    changes = ys[:, 1:] - ys[:, :-1]
    slow = changes.square().mean() if changes.numel() else ys.new_zeros(())
    return ar * ys.square().mean() + tar * slow


@torch.no_grad()
def limit_norms(module: nn.Module, most: float) -> None:
    """Scale down, in place, each row of `penalised(module)` whose Euclidean norm is above `most` (Srivastava et al. 2014,
    JMLR 15): the weights into one unit stay in a ball."""
    for weight in penalised(module):
        norms = weight.norm(dim=-1, keepdim=True)
        weight.mul_((most / norms).clamp(max=1.0))
