"""A small network that remembers what it read: nearest neighbours beside the readout (Khandelwal et al. 2020, arXiv:1911.00172).

Run it with: python examples/neighbours.py
"""

import random
import tempfile
from pathlib import Path

import recurra
from recurra.learn.neighbours import remember

# Facts that a few weights cannot hold: the numbers of forty people, each said three times.
rng = random.Random(0)
names = [
    "".join(rng.choice(part) for part in (["b", "d", "k", "m", "s", "t"], "aeiou", "lnrst", "aeiou")) for _ in range(40)
]
facts = [f"{name} has the number {rng.randrange(10**4):04d}.\n" for name in names]
folder = Path(tempfile.mkdtemp())
(folder / "train.txt").write_text("".join(rng.sample(facts * 3, 120)), encoding="utf-8")
(folder / "valid.txt").write_text("".join(rng.sample(facts, 40)), encoding="utf-8")

task = recurra.train(
    "language", folder / "train.txt", valid=folder / "valid.txt", out=folder / "run", hidden=48, steps=300
)
print(f"the network alone: {task.evaluate()['scores']['bits_per_character']:.3f} bits per character")
memory = remember(task, k=8, temperature=0.01)
for mix in (0.25, 0.5, 0.75, 1.0):
    memory.mix = mix
    score = task.evaluate()["scores"]["bits_per_character"]
    print(f"{mix:.0%} from {len(memory.keys):,} states: {score:.3f}")
