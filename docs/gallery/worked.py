"""The lectures' worked numbers, and the gradient of one of them term by term.

Run it with: python docs/gallery/worked.py
"""

import torch
from torch import Tensor

from recurra import probe
from recurra.cells import Elman
from recurra.cells.elman import Activation
from recurra.probe.figures import Section, terms_section, text_section


def elman(inputs: int, u: float, w: float, b: float, activation: Activation = "tanh") -> Elman:
    """One block of all weights alike, in float64."""
    cell = Elman(inputs, inputs, activation=activation).double()
    with torch.no_grad():
        for name, value in (("weight_ih", u), ("weight_hh", w), ("bias_ih", b), ("bias_hh", 0.0)):
            getattr(cell, name).fill_(value)
    return cell


def run(cell: Elman, xs: list[list[float]]) -> Tensor:
    """The outputs [time, units] over the inputs."""
    given = torch.tensor(xs, dtype=torch.float64)[None]
    with torch.no_grad():
        return cell.unroll(given, cell.initial_state(1))[0][0]


def sections() -> list[Section]:
    """Forward, and the sum of the gradient."""
    cell, xs = elman(1, 0.2, 0.3, -0.1), [[0.7], [0.9], [1.1]]
    hs = run(cell, xs)[:, 0].tolist()
    lines = ["h_t = tanh(U x_t + W h_(t-1) + b),   U = 0.2, W = 0.3, b = -0.1,   h_0 = 0", ""]
    before = 0.0
    for (x,), h in zip(xs, hs, strict=True):
        lines.append(f"tanh(0.2 x {x} + 0.3 x {before:.5f} - 0.1) = {h:.5f}")
        before = h
    lines += [
        "",
        "(The lectures cut them to 0.0399, 0.0917 and 0.1464.)",
        "",
        "E_3 = (h_3)^2 / 2,   dE_3/dW = sum over k of dE_3/dh_3 (product over j = k+1..3 of dh_j/dh_(j-1)) d+h_k/dW",
        "",
    ]
    found = probe.terms(cell, torch.tensor(xs, dtype=torch.float64)[None], lambda y: y.square().sum() / 2)
    for name, symbol in (("weight_hh", "W"), ("weight_ih", "U"), ("bias_ih", "b")):
        parts = found.parts[name].reshape(-1).tolist()
        lines.append(f"dE_3/d{symbol} = {' + '.join(f'{one:.6f}' for one in parts)} = {sum(parts):.6f}")
    linear = run(elman(2, 1.0, 1.0, 0.0, "identity"), [[1, 1], [1, 1], [2, 2]])
    lines += ["", "A linear network with all weights 1, U, W and V, on (1,1), (1,1), (2,2):", ""]
    lines += [f"h = ({h[0]:g}, {h[1]:g})    y = V h = ({h.sum():g}, {h.sum():g})" for h in linear]
    return [text_section("The worked numbers", lines), terms_section(found)]


if __name__ == "__main__":
    for one in sections():
        print("\n".join([*one.words, *(shown for shown in one.shown if isinstance(shown, str))]))
