"""Vanishing gradients in Elman's network against LSTM and GRU, on the same task, data and seed, before training and after.

Run it with: python docs/gallery/vanishing.py
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra import init, probe
from recurra.cells import GRU, LSTM, Cell, Elman
from recurra.probe.figures import Section, beside_section, jacobians_section, text_section

STEPS, UNITS, UPDATES = 40, 32, 600
FORMULA = """\
dL/dh_k = dL/dh_T  product over j = k+1..T of  dh_j/dh_(j-1)

Elman   dh_j/dh_(j-1) = diag(1 - h_j^2) W          a product of T - k matrices: it vanishes where their singular values are below 1
LSTM    dc_j/dc_(j-1) = diag(f_j) + ...            the forget gate: near 1 the gradient passes
GRU     dh_j/dh_(j-1) = diag(z_j) + ...            the update gate, which keeps the old state"""


def examples(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """The first number of a row, -1 or 1, is to be said after `STEPS` steps of noise: inputs [rows, time, 1], and it [rows]."""
    draw = torch.Generator().manual_seed(seed)
    xs = 0.2 * torch.randn(rows, STEPS, 1, generator=draw)
    xs[:, 0, 0] = (torch.rand(rows, generator=draw) > 0.5).float() * 2 - 1
    return xs, xs[:, 0, 0]


def losses_of(cell: Cell, readout: nn.Linear, xs: Tensor, targets: Tensor) -> Tensor:
    """The error at the last step, [rows, 1]."""
    ys, _ = cell.unroll(xs, cell.initial_state(len(xs)))
    return F.soft_margin_loss(readout(ys[:, -1])[:, 0], targets, reduction="none")[:, None]


def trained(cell: Cell) -> tuple[probe.Flow, probe.Flow, list[probe.Jacobians], float]:
    """Gradients before and after training, the Jacobians after it, and the share of new rows that it answers rightly."""
    readout = nn.Linear(UNITS, 1)
    shown = examples(16, seed=1)
    look = lambda: probe.record(cell, lambda: losses_of(cell, readout, *shown))  # noqa: E731
    before = probe.flow(look())
    parameters = [*cell.parameters(), *readout.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    for update in range(UPDATES):
        losses_of(cell, readout, *examples(32, seed=100 + update)).mean().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        wrong = losses_of(cell, readout, *examples(500, seed=2)) > torch.log(torch.tensor(2.0))
    seen = look()
    return before, probe.flow(seen), [probe.jacobians(seen.tracks[0])], 1 - float(wrong.float().mean())


def sections() -> list[Section]:
    """What the three say, side by side."""
    flows: dict[str, probe.Flow] = {}
    found, jacobians = [], []
    for name, kind in (("Elman", Elman), ("LSTM", LSTM), ("GRU", GRU)):
        torch.manual_seed(0)
        cell = kind(1, UNITS)
        if cell.blocks != ("hidden",):
            init.forget_bias_(cell, 2.0)  # gates start by remembering
        flows[f"{name} before"], flows[f"{name} after"], some, right = trained(cell)
        jacobians += [one._replace(layer=name) for one in some]
        found.append(f"{name}: {right:.1%} of new rows answered rightly after {UPDATES} updates")
    task = (
        f"To remember: the first of {STEPS} inputs is to be said after the last. Gates start with a bias of 2 to keep."
    )
    return [
        text_section("Vanishing gradients: Elman against LSTM and GRU", [FORMULA, "", task, *found]),
        beside_section(flows),
        jacobians_section(jacobians),
    ]


if __name__ == "__main__":
    print("\n".join(word for one in sections() for word in one.words))
