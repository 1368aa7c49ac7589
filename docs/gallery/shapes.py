"""The lectures' tables of shapes: x, h, W_ih, b_ih, W_hh and b_hh of five Elman networks, drawn step by step.

Run it with: python docs/gallery/shapes.py
"""

from typing import Any

import torch

from recurra import probe
from recurra.cells import Elman, Stacked
from recurra.probe.figures import Section, shapes_section
from recurra.recurrent import Bidirectional

STEPS = 4
CASES: dict[str, tuple[int, Any]] = {  # how many input variables, and the network
    "One input and one unit": (1, lambda: Elman(1, 1)),
    "Several units": (1, lambda: Elman(1, 3)),
    "Several variables": (2, lambda: Elman(2, 3)),
    "Two layers": (2, lambda: Stacked([Elman(2, 3), Elman(3, 4)])),
    "Bidirectional": (2, lambda: Bidirectional(Elman(2, 3), Elman(2, 3))),
}


def shapes_of(inputs: int, model: Any) -> probe.Shapes:
    """Of one row of `STEPS` steps."""
    xs = torch.zeros(1, STEPS, inputs)
    losses = (lambda: model(xs)[0].sum(2)) if isinstance(model, Bidirectional) else probe.losses_of(model, xs)
    return probe.unrolled(model, probe.record(model, losses))


def sections() -> list[Section]:
    """A drawing and the tables for each."""
    return [
        shapes_section(shapes_of(inputs, make()))._replace(title=f"Shapes: {name[0].lower()}{name[1:]}")
        for name, (inputs, make) in CASES.items()
    ]


if __name__ == "__main__":
    for name, (inputs, make) in CASES.items():
        print("\n".join(["", name, *shapes_of(inputs, make()).lines(blank=True)]))
