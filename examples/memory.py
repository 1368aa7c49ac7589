"""Letters stored in a Hopfield network, damaged, and recalled; what it does with what it never saw; and attention as memory."""

import torch

from recurra.memory import Hopfield, Modern, named

LETTERS = {
    "R": ["#####..", "#....#.", "#....#.", "#####..", "#..#...", "#...#..", "#....#."],
    "N": ["#.....#", "##....#", "#.#...#", "#..#..#", "#...#.#", "#....##", "#.....#"],
    "O": [".#####.", "#.....#", "#.....#", "#.....#", "#.....#", "#.....#", ".#####."],
}
patterns = torch.tensor([[1.0 if mark == "#" else -1.0 for row in rows for mark in row] for rows in LETTERS.values()])


def drawn(*states: torch.Tensor) -> str:
    rows = zip(*(state.view(7, 7).tolist() for state in states), strict=True)
    return "\n".join("   ".join("".join("#" if unit > 0 else "." for unit in row) for row in line) for line in rows)


memory = Hopfield.store(patterns, rule="pseudo-inverse")
generator = torch.Generator().manual_seed(3)
turned = torch.rand(49, generator=generator) < 0.15
probe = torch.where(turned, -patterns[0], patterns[0])
trace = memory.trace(probe)
print("stored    damaged   recalled")
print(drawn(patterns[0], probe, trace.frames[-1]))
print(
    f"{len(trace.frames) - 1} units turned over one by one; energy from {trace.energies[0]:.2f} to {trace.energies[-1]:.2f}"
)

# From anywhere it comes to rest somewhere: not always in what was stored.
ends = named(memory.recall(torch.randn(1000, 49, generator=generator).sign()), patterns)
for kind in ("stored", "negative", "mixture", "unknown"):
    print(f"{sum(end.kind == kind for end in ends):5} of 1000 random states end in a state that is {kind}")

# One update of the modern network is attention of a query to keys that are their own values.
half = patterns[1].clone()
half[28:] = 0
answer = Modern.store(patterns, beta=1.0).update(half)
print("half of N, and what attention makes of it:")
print(drawn(half, answer))
