"""A cell of ten lines gets every law: the light GRU (Ravanelli, Brakel, Omologo & Bengio 2018, arXiv:1803.10225).

Run it with: python examples/own_cell.py
"""

import torch
from torch import nn

from recurra import Cell, check_cell


class LightGRU(Cell):
    """z = sigmoid(W_z [x, h]);  n = relu(W_n [x, h]);  h' = z * h + (1 - z) * n"""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.update = nn.Linear(input_size + hidden_size, hidden_size)
        self.candidate = nn.Linear(input_size + hidden_size, hidden_size)

    def initial_state(self, batch):
        return self.update.weight.new_zeros(batch, self.output_size)

    def step(self, u, h):
        both = torch.cat([u, h], dim=1)
        z, n = self.update(both).sigmoid(), self.candidate(both).relu()
        h = z * h + (1 - z) * n
        return h, h


for law in check_cell(LightGRU(5, 4)):
    print("kept:", law.replace("_", " "))
