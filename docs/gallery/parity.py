"""The two states of a network that knows whether the ones so far are even: a map of where its state is, and where it stays.

Run it with: python docs/gallery/parity.py
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra import probe
from recurra.cells import Elman
from recurra.probe.figures import COLOURS, Section, text_section, trajectory_section

UNITS, UPDATES, RATE = 8, 3000, 5e-3
FORMULA = """\
parity_t = parity_(t-1) xor x_t            two states are enough: even and odd; a one goes to the other, a zero stays

h_t = tanh(U x_t + W h_(t-1) + b)          fixed points under the input 0: h = tanh(W h + b)"""


def examples(rows: int, steps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Bits [rows, time, 1], and whether the ones so far are odd [rows, time]."""
    bits = torch.randint(2, (rows, steps), generator=torch.Generator().manual_seed(seed))
    return bits[..., None].float(), (bits.cumsum(1) % 2).float()


def trained() -> tuple[Elman, nn.Linear]:
    torch.manual_seed(1)
    cell, readout = Elman(1, UNITS), nn.Linear(UNITS, 1)
    nn.init.orthogonal_(cell.weight_hh)
    parameters = [*cell.parameters(), *readout.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    for update in range(UPDATES):
        xs, odd = examples(32, 3 + min(17, update // 50), seed=update)  # short rows first
        ys, _ = cell.unroll(xs, cell.initial_state(len(xs)))
        F.binary_cross_entropy_with_logits(readout(ys)[..., 0], odd).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.param_groups[0]["lr"] = RATE * (1 - update / UPDATES)
        optimizer.step()
        optimizer.zero_grad()
    return cell, readout


def sections() -> list[Section]:
    """The map of the states, by parity, and the fixed points of each input."""
    import plotly.graph_objects as go

    cell, readout = trained()
    xs, odd = examples(40, 50, seed=10_000)
    seen = probe.record(cell, probe.losses_of(cell, xs))
    with torch.no_grad():
        ys, last = cell.unroll(xs, cell.initial_state(len(xs)))
        right = float(((readout(ys)[..., 0] > 0) == (odd > 0.5)).float().mean())
    path, at_zero = probe.trajectory(seen.tracks[0]), probe.fixed_points(cell, torch.zeros(1), last)
    states = go.Figure()
    for name, some, symbol, colour in (("even", odd < 0.5, "circle", COLOURS[0]), ("odd", odd > 0.5, "x", COLOURS[1])):
        points = path.points[some.numpy()]
        style = {"symbol": symbol, "color": colour, "size": 6}
        states.add_scatter(x=points[:, 0].tolist(), y=points[:, 1].tolist(), mode="markers", marker=style, name=name)
    states.update_layout(template="plotly_white", height=380, margin={"l": 50, "r": 10, "t": 20, "b": 50})
    states.update_xaxes(title="component 1")
    states.update_yaxes(title="component 2")
    sides = readout(torch.tensor(at_zero.states[at_zero.stable][:, :UNITS]).float()).detach()[:, 0].numpy()
    words = [
        f"{right:.1%} of the steps of rows of 50 are right; it was trained on rows of at most 20.",
        f"Under zeros it stays at {int(at_zero.stable.sum())} points: {int(np.sum(sides > 0))} read as odd, "
        f"{int(np.sum(sides <= 0))} as even.",
    ]
    return [
        text_section("Parity: the map of two states", [FORMULA]),
        Section("States, by what they stand for", words, [states]),
        trajectory_section(path, at_zero),
    ]


if __name__ == "__main__":
    print("\n".join(word for one in sections() for word in one.words))
