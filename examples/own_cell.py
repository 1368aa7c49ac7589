"""A cell of ten lines gets every law: the minimal gated unit (Zhou et al. 2016, arXiv:1603.09420).

Run it with: python examples/own_cell.py
"""

import torch
from torch import nn

from recurra import Cell, check_cell


class MGU(Cell):
    """f = sigmoid(W_f [x, h]);  n = tanh(W_n [x, f * h]);  h' = (1 - f) * h + f * n"""

    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.forget = nn.Linear(input_size + hidden_size, hidden_size)
        self.candidate = nn.Linear(input_size + hidden_size, hidden_size)

    def initial_state(self, batch):
        return self.forget.weight.new_zeros(batch, self.output_size)

    def step(self, u, h):
        f = self.forget(torch.cat([u, h], dim=1)).sigmoid()
        n = self.candidate(torch.cat([u, f * h], dim=1)).tanh()
        h = (1 - f) * h + f * n
        return h, h


for law in check_cell(MGU(5, 4)):
    print("kept:", law.replace("_", " "))
