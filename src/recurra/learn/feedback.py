"""Feedback alignment: errors that come back through matrices of their own."""

import torch
from torch import Tensor, nn

from recurra.learn.base import Learnable


def random_feedback(task: Learnable, seed: int) -> tuple[Tensor, ...]:
    """For each readout a matrix of its shape, uniform as its weights started (Lillicrap et al. 2016, doi:10.1038/ncomms13276)."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [one.weight for one in _readouts(task)]
    return tuple(((torch.rand(one.shape, generator=draw) * 2 - 1) * one.shape[1] ** -0.5).to(one) for one in shapes)


def feedback_of(task: Learnable, matrices: tuple[Tensor, ...]) -> dict[int, Tensor]:
    """By the identity of a readout's weights the matrix that errors come back through; none where there are no matrices."""
    return {id(one.weight): back for one, back in zip(_readouts(task), matrices, strict=True)} if matrices else {}


def _readouts(task: Learnable) -> list[nn.Linear]:
    return [one for one in task.model.modules() if isinstance(one, nn.Linear)]
