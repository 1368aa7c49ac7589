"""The same networks as other texts write them: weights in, weights out, equal numbers.

Many lectures keep one matrix for a cell and multiply it by the state and the input, one on top of the other: W [h; x] or
W [x; h], with one bias and the blocks of an LSTM in the order i, f, o, g.
"""

from typing import Literal

import torch
from torch import Tensor

from recurra.errors import UsageError

First = Literal["h", "x"]
LETTERS = "ifgo"  # the order of our blocks


def from_concatenated(
    weight: Tensor, bias: Tensor | None, *, units: int, first: First = "h", rows: str = ""
) -> dict[str, Tensor]:
    """The state_dict of `Elman` or `LSTM` from one matrix over [h; x] (`first="h"`) or [x; h] (`first="x"`).

    weight  [blocks * units, units + inputs]
    bias    [blocks * units], or None for zeros
    rows    "" for an Elman network; the order of the blocks of an LSTM by their letters, such as "ifog"

    Raises UsageError for shapes that do not fit.
    """
    blocks = max(1, len(rows))
    if weight.dim() != 2 or weight.shape[0] != blocks * units or weight.shape[1] <= units:
        raise UsageError(
            f"the weight has the shape {tuple(weight.shape)}; for {units} units and rows {rows!r} wanted "
            f"[{blocks * units}, {units} + inputs]; transpose it if it multiplies from the right"
        )
    if bias is not None and bias.shape != (blocks * units,):
        raise UsageError(
            f"the bias has the shape {tuple(bias.shape)}, wanted [{blocks * units}], as the weight has rows"
        )
    inputs = weight.shape[1] - units
    by_block = weight.unflatten(0, (blocks, units))[_order(rows)].flatten(0, 1)
    sizes = [units, inputs] if first == "h" else [inputs, units]
    parts = dict(zip(("h", "x") if first == "h" else ("x", "h"), by_block.split(sizes, dim=1), strict=True))
    zeros = weight.new_zeros(blocks * units)
    one_bias = zeros if bias is None else bias.unflatten(0, (blocks, units))[_order(rows)].flatten()
    return {
        "weight_ih": parts["x"].clone(),
        "weight_hh": parts["h"].clone(),
        "bias_ih": one_bias.clone(),
        "bias_hh": zeros,
    }


def to_concatenated(weights: dict[str, Tensor], *, first: First = "h", rows: str = "") -> tuple[Tensor, Tensor]:
    """One matrix and one bias from the state_dict of `Elman` or `LSTM`: the inverse of `from_concatenated`. Raises UsageError
    where the rows do not fit the weights."""
    blocks, units = max(1, len(rows)), weights["weight_hh"].shape[1]
    if weights["weight_hh"].shape[0] != blocks * units:
        raise UsageError(
            f"rows={rows!r} stands for {blocks} blocks, and weight_hh has the shape {tuple(weights['weight_hh'].shape)}; "
            'wanted "" for an Elman network, and the letters i, f, g, o in some order for an LSTM'
        )
    parts = [weights["weight_hh"], weights["weight_ih"]]
    back = torch.tensor(_order(rows)).argsort()
    whole = torch.cat(parts if first == "h" else parts[::-1], dim=1).unflatten(0, (blocks, units))[back]
    bias = (weights["bias_ih"] + weights["bias_hh"]).unflatten(0, (blocks, units))[back]
    return whole.flatten(0, 1), bias.flatten()


def with_update_gate_swapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state_dict of a `GRU` for the other sense of its update gate, h' = (1 - z) h + z n, and back: since
    1 - sigmoid(a) = sigmoid(-a), the block of z changes its sign."""
    swapped = {}
    for name, weight in weights.items():
        reset, update, candidate = weight.chunk(3)
        swapped[name] = torch.cat([reset, -update, candidate])
    return swapped


def _order(rows: str) -> list[int]:
    """Where each of our blocks stands among `rows`."""
    if rows and sorted(rows) != sorted(LETTERS):
        raise UsageError(f"the rows of an LSTM were given as {rows!r}, wanted the letters i, f, g, o in some order")
    return [rows.index(letter) for letter in LETTERS] if rows else [0]
