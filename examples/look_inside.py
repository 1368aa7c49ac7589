"""Look inside any cell: gradients through time, the sum term by term, and where its state would stay. No training, no files.

Run it with: python examples/look_inside.py
"""

import torch

from recurra import probe
from recurra.cells import GRU, Elman
from recurra.probe import figures
from recurra.probe.page import page

torch.manual_seed(0)
xs = torch.randn(1, 100, 3)
flows = {}
for cell in (Elman(3, 16), GRU(3, 16)):
    seen = probe.record(cell, probe.losses_of(cell, xs))  # one pass with its eyes open; the cell is left as it was
    flows[type(cell).__name__] = probe.flow(seen)
    print(flows[type(cell).__name__].words[0])

terms = probe.terms(cell, xs, lambda y: y.square().sum())  # dE_t/dtheta = sum over k
print("the last three terms of dE/dW have the norms", [f"{one:.3f}" for one in terms.norms("weight_hh")[-3:]])

start = probe.record(cell, probe.losses_of(cell, xs)).tracks[0]
points = probe.fixed_points(cell, torch.zeros(3), cell.initial_state(8))
print(points.words[0])

sections = [
    figures.beside_section(flows),
    figures.terms_section(terms),
    figures.trajectory_section(probe.trajectory(start), points),
]
print(
    f"a page of {len(page('Elman and GRU', sections)) / 1e6:.0f} MB holds the figures; in a notebook they show by themselves"
)
