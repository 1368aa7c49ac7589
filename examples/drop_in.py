"""A model written for torch.nn, and the same model after one call: same weights, same numbers, more that can be asked of it.

Run it with: python examples/drop_in.py
"""

import torch
from torch import nn

import recurra


class Tagger(nn.Module):
    """Scores of 5 tags for each step of a sequence."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(8, 16, num_layers=2, bidirectional=True, batch_first=True)
        self.readout = nn.Linear(32, 5)

    def forward(self, xs):
        return self.readout(self.rnn(xs)[0])


torch.manual_seed(0)
model, xs = Tagger().eval(), torch.randn(3, 20, 8)
before = model(xs)
print(recurra.replace(model))
print("largest difference:", f"{(model(xs) - before).abs().max().item():.1e}")

# What torch.nn.LSTM cannot do on a CPU: a derivative in one direction, in forward mode.
_, tangent = torch.func.jvp(model, (xs,), (torch.ones_like(xs),))
print("along a direction:", tuple(tangent.shape))

print(recurra.restore(model))
