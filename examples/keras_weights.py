"""The recurrent layers of a model that Keras saved, with the same numbers; Keras need not be installed, h5py must be.

Run it with: python examples/keras_weights.py [model.keras]
"""

import sys
from pathlib import Path

import torch

import recurra

TINY = Path(__file__).parent.parent / "tests" / "data" / "keras" / "stacked.keras"  # written by Keras 3.15
path = Path(sys.argv[1]) if sys.argv[1:] and sys.argv[1].endswith((".keras", ".h5")) else TINY

found = recurra.from_keras(path)
print(found)

# Layers run over whole sequences, [batch, time, features] ...
name, layer = next(iter(found.layers.items()))
xs = torch.randn(2, 6, layer.input_size)
ys, summary = layer(xs)
print(name, "puts out", list(ys.shape), "and at the end", list(summary.shape))

# ... and the cell within can be asked step by step, which a layer of Keras cannot.
if isinstance(layer, recurra.Recurrent):
    y, state = layer.cell(xs[:, 0], layer.cell.initial_state(2))
    print("the first step alone differs by", f"{(y - ys[:, 0]).abs().max().item():.0e}")
