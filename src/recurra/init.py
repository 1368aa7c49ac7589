"""Where parameters start."""

import math

import torch
from torch import Tensor


def uniform_(units: int, *shape: int) -> Tensor:
    """A new tensor of this shape, uniform in [-1/sqrt(units), 1/sqrt(units)], as torch.nn starts its recurrent layers."""
    bound = 1 / math.sqrt(units) if units > 0 else 0.0
    return torch.empty(shape).uniform_(-bound, bound)
