"""hell -> ello: the smallest language model, over the alphabet h, e, l, o, one-hot (the lecture's example).

Run it with: python examples/hello.py
"""

import torch

from recurra import BPTT, Batch, SequenceModel
from recurra.cells import Elman
from recurra.models import OneHot

ALPHABET = "helo"
torch.manual_seed(0)
ids = torch.tensor([[ALPHABET.index(letter) for letter in "hello"]])
batch = Batch(
    inputs=ids[:, :-1], targets=ids[:, 1:], lengths=None, weight=4.0, fresh=torch.tensor([True])
)  # hell -> ello


class Hello:
    """The least a learner needs of a task: a model and a loss."""

    model = SequenceModel(OneHot(4), Elman(4, 3), torch.nn.Linear(3, 4))

    def loss(self, batch, state):
        scores, state = self.model.unroll(batch.inputs, state)
        losses = torch.nn.functional.cross_entropy(scores.flatten(0, 1), batch.targets.flatten(), reduction="sum")
        return losses / batch.weight, state


task, learner = Hello(), BPTT()
optimizer = torch.optim.Adam(task.model.parameters(), lr=0.1)
carry = learner.start(task, batch)
for _ in range(100):
    loss, carry = learner(task, batch, carry)
    optimizer.step()
    optimizer.zero_grad()

outputs, _ = task.model.unroll(batch.inputs, task.model.initial_state(1))
print(f"loss {loss:.4f} nats a letter; the four output vectors over {', '.join(ALPHABET)}:")
for letter, vector in zip("hell", outputs[0].softmax(dim=1).tolist(), strict=True):
    best = ALPHABET[max(range(4), key=vector.__getitem__)]
    print(f"  after {letter}: [{', '.join(f'{p:.3f}' for p in vector)}]  ->  {best}")
