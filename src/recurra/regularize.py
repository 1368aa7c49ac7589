"""Noise that keeps a network from learning its text by heart. It acts in training only."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize


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
    """Take `weight_drop` off again, in place: each weight is its parameter. Returns the module."""
    for owner in [child for child in module.modules() if parametrize.is_parametrized(child)]:
        # Not `remove_parametrizations`: that alters the class of the module, which a deep copy shares with its original.
        chains = cast(nn.ModuleDict, owner.parametrizations)
        parameters = {name: cast(nn.Parameter, chain.original) for name, chain in chains.items()}
        del owner.parametrizations
        owner.__class__ = type(owner).__bases__[0]
        for name, parameter in parameters.items():
            owner.register_parameter(name, parameter)
    return module
