"""How long it takes to look inside: gradient flow, gates and strip of a language model of 2 x 256 LSTM units over 1,000 characters.

Run it with: python benchmarks/inside.py [THREADS]
"""

import sys
import time
from itertools import pairwise

import torch

from recurra import probe
from recurra.models import language_model

ROUNDS = 7

if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    torch.manual_seed(0)
    model, tokens = language_model(64, hidden=256, layers=2), torch.randint(64, (1, 1001))
    losses = probe.losses_of(model, tokens[:, :-1], tokens[:, 1:])
    rows: list[list[float]] = []
    for _ in range(ROUNDS):
        marks = [time.perf_counter()]
        seen = probe.record(model, losses)
        marks.append(time.perf_counter())
        probe.flow(seen)
        marks.append(time.perf_counter())
        probe.gates(seen)
        marks.append(time.perf_counter())
        probe.strip(model, tokens[0, :-1], tokens[0, 1:])
        marks.append(time.perf_counter())
        rows.append([after - before for before, after in pairwise(marks)] + [marks[-1] - marks[0]])
    print(f"{torch.get_num_threads()} threads, {ROUNDS} rounds, seconds")
    for name, times in zip(("record", "flow", "gates", "strip", "all"), zip(*rows, strict=True), strict=True):
        print(f"{name:8}{sorted(times)[ROUNDS // 2]:6.2f} (median)  {min(times):6.2f} (least)")
