"""Where parameters start.

The functions act in place on a cell, or on every cell within a module: on whatever names the blocks of its rows in `blocks` and
has a `weight_hh`, or, for biases of gates, a `bias_ih`. `PRESETS` are whole starts under the names that `--set model.init=NAME`
takes.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

FORGETTING = ("forget", "update")  # a bias on these gates says how long is remembered


def uniform_(units: int, *shape: int) -> Tensor:
    """A new tensor of this shape, uniform in [-1/sqrt(units), 1/sqrt(units)], as torch.nn starts its recurrent layers."""
    bound = 1 / math.sqrt(units) if units > 0 else 0.0
    return torch.empty(shape).uniform_(-bound, bound)


@torch.no_grad()
def orthogonal_(module: nn.Module, gain: float = 1.0) -> None:
    """Each block of the recurrent weights an orthogonal matrix: no singular value shrinks or grows what passes through
    (Saxe, McClelland & Ganguli 2014, arXiv:1312.6120)."""
    for _, block in _recurrent_blocks(module):
        nn.init.orthogonal_(block, gain)


@torch.no_grad()
def identity_(module: nn.Module, scale: float = 1.0) -> None:
    """Each block of the recurrent weights `scale` times the identity, and no bias: with relu, the IRNN (Le, Jaitly & Hinton
    2015, arXiv:1504.00941)."""
    for cell, block in _recurrent_blocks(module):
        nn.init.eye_(block).mul_(scale)
        _zero_biases(cell)


@torch.no_grad()
def glorot_(module: nn.Module) -> None:
    """Each block of the input weights uniform with variance 2 / (inputs + units) (Glorot & Bengio 2010)."""
    for cell in _cells(module):
        for block in cell.weight_ih.chunk(len(cell.blocks)):
            nn.init.xavier_uniform_(block)


@torch.no_grad()
def forget_bias_(module: nn.Module, value: float = 1.0) -> None:
    """No bias, except `value` on the gate that keeps the state: the start is to remember (Jozefowicz, Zaremba & Sutskever
    2015, "An empirical exploration of recurrent network architectures")."""
    for cell in _gated(module):
        _zero_biases(cell)
        for name in set(cell.blocks) & set(FORGETTING):
            _bias_block(cell, name).fill_(_keeps(cell) * value)


@torch.no_grad()
def chrono_(module: nn.Module, longest: float = 100.0) -> None:
    """Biases for memories that last from 1 to `longest` steps: log u on the gate that keeps, u uniform in [1, longest - 1],
    and -log u on the input gate where there is one (Tallec & Ollivier 2018, arXiv:1804.11188)."""
    for cell in _gated(module):
        _zero_biases(cell)
        for name in set(cell.blocks) & set(FORGETTING):
            block = _bias_block(cell, name)
            times = torch.empty_like(block).uniform_(1.0, max(1.0, longest - 1.0)).log()
            block.copy_(_keeps(cell) * times)
            if "input" in cell.blocks:
                _bias_block(cell, "input").copy_(-times)


@torch.no_grad()
def spectral_radius_(module: nn.Module, radius: float = 0.9) -> None:
    """Scale each block of the recurrent weights so that its largest eigenvalue has the modulus `radius` (Jaeger 2001). A block
    that is not square has no eigenvalues; its largest singular value takes their place."""
    for _, block in _recurrent_blocks(module):
        square = block.shape[0] == block.shape[1]
        largest = torch.linalg.eigvals(block).abs().max() if square else torch.linalg.matrix_norm(block, 2)
        block.mul_(torch.where(largest > 0, radius / largest, 1.0))


@torch.no_grad()
def sparse_(module: nn.Module, connections: int = 15) -> None:
    """Each unit hears `connections` units of the state, with weights from a standard normal over their square root
    (Martens & Sutskever 2011)."""
    for _, block in _recurrent_blocks(module):
        heard = min(connections, block.shape[1])
        block.zero_()
        for row in block:
            row[torch.randperm(len(row))[:heard]] = torch.randn(heard, dtype=row.dtype) / math.sqrt(heard)


def _keras(module: nn.Module) -> None:
    glorot_(module)
    orthogonal_(module)
    forget_bias_(module)


def _orthogonal(module: nn.Module) -> None:
    glorot_(module)
    orthogonal_(module)


def _echo(module: nn.Module) -> None:
    sparse_(module)
    spectral_radius_(module)


PRESETS: dict[str, Callable[[nn.Module], None]] = {
    "torch": lambda module: None,  # uniform in 1/sqrt(units): how every cell is built
    "orthogonal": _orthogonal,
    "keras": _keras,  # what Keras starts its LSTM with
    "irnn": identity_,
    "chrono": chrono_,
    "echo": _echo,
}


def _cells(module: nn.Module) -> Iterator[Any]:
    return (child for child in module.modules() if "weight_hh" in child._parameters and hasattr(child, "blocks"))


def _gated(module: nn.Module) -> Iterator[Any]:
    """Cells whose biases can be set by block: gates may see the input alone, and then there is no weight_hh."""
    return (child for child in module.modules() if "bias_ih" in child._parameters and hasattr(child, "blocks"))


def _recurrent_blocks(module: nn.Module) -> Iterator[tuple[Any, Tensor]]:
    return ((cell, block) for cell in _cells(module) for block in cell.weight_hh.chunk(len(cell.blocks)))


def _zero_biases(cell: Any) -> None:
    for name in ("bias_ih", "bias_hh"):
        if name in cell._parameters:
            nn.init.zeros_(cell._parameters[name])


def _bias_block(cell: Any, name: str) -> Tensor:
    return cell.bias_ih.chunk(len(cell.blocks))[cell.blocks.index(name)]


def _keeps(cell: Any) -> float:
    """1 where the open gate keeps the state, -1 where it renews it."""
    return getattr(cell, "open_gate_keeps", 1.0)
