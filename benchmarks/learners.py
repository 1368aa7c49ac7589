"""Learners side by side: what a step costs, and how well series are learnt from one pass in which every step is learnt from.

    python benchmarks/learners.py cost
    python benchmarks/learners.py chaos --steps 5000 --seeds 5
    python benchmarks/learners.py length

`chaos` is the comparison of learning rules on Mackey-Glass, Lorenz and Henon series in the form of Menick et al. 2021
(arXiv:2006.07232) and its followers: a small tanh network with a linear readout, 8 series side by side, the next value from all
before it, one Adam update each step. The score is the normalised squared error (of the mean: 1) on series of their own, the
weights held still. rflo learns leaky units, which it is made for.
"""

import argparse
import json
import resource
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recurra import kernels
from recurra.cells import CELLS
from recurra.data.batch import Batch
from recurra.data.synthetic import synthetic
from recurra.forecasting import Frames
from recurra.learn import LEARNERS, Learner
from recurra.models import resting
from recurra.state import State, detach, tmap

SERIES = ("henon", "mackey-glass", "lorenz")
WINDOW, ROWS, RATE, TESTED, PAUSE = 5, 8, 1e-3, 1_000, 0.05


class Next:
    """The next value of a series from all before it, by squared errors."""

    def __init__(self, cell: str, units: int) -> None:
        self.model = Frames(CELLS[cell](1, units), 1)

    def loss(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        guesses, state = self.model.unroll(batch.inputs, state, batch.lengths)
        return (guesses - batch.targets).square().sum() / batch.weight, state


def batch_of(xs: Tensor, ys: Tensor, fresh: bool = True) -> Batch:
    return Batch(xs, ys, None, float(ys.numel()), torch.full((len(xs),), fresh))


def series(name: str, steps: int, seed: int) -> tuple[Tensor, ...]:
    """Inputs and targets to learn from and to be judged by, `[rows, steps, 1]`, scaled by what is learnt from."""
    learnt = synthetic(f"{name}:{steps}", "train", ROWS, seed)
    judged = synthetic(f"{name}:{TESTED}", "test", ROWS, seed)
    mean, spread = np.mean(learnt.inputs), np.std(learnt.inputs)
    found = (learnt.inputs, learnt.targets, judged.inputs, judged.targets)
    return tuple(torch.tensor(((np.stack(part) - mean) / spread), dtype=torch.float32) for part in found)  # type: ignore[arg-type]


def nmse(task: Next, xs: Tensor, ys: Tensor) -> float:
    with resting(task.model):
        guesses, _ = task.model.unroll(xs, task.model.initial_state(len(xs)))
    left = slice(100, None)  # until the state has settled
    return float((guesses - ys)[:, left].square().mean() / ys[:, left].var())


def learn(name: str, xs: Tensor, ys: Tensor, units: int, seed: int) -> Next:
    """One pass, an update after each step."""
    torch.manual_seed(seed)
    task = Next("leaky" if name == "rflo" else "elman", units)
    optimizer = torch.optim.Adam(task.model.parameters(), RATE)
    step = windowed(task) if name == "bptt" else online(task, LEARNERS[name]())
    for t in range(xs.shape[1]):
        step(t, xs[:, t : t + 1], ys[:, t : t + 1])
        optimizer.step()
        optimizer.zero_grad()
    return task


def online(task: Next, learner: Learner) -> Callable[[int, Tensor, Tensor], None]:
    kept: dict[str, Any] = {}

    def step(t: int, x: Tensor, y: Tensor) -> None:
        batch = Batch(x, y, None, float(y.numel()), torch.full((len(x),), t == 0), t)
        kept["carry"] = learner(task, batch, kept.get("carry") or learner.start(task, batch))[1]

    return step


def windowed(task: Next) -> Callable[[int, Tensor, Tensor], None]:
    """The error of the latest step through the last WINDOW steps, from the state that was reached when they began."""
    past: deque[tuple[Tensor, State]] = deque(maxlen=WINDOW)
    reached: list[State] = [task.model.initial_state(ROWS)]

    def step(t: int, x: Tensor, y: Tensor) -> None:
        past.append((x, reached[0]))
        xs = torch.cat([one for one, _ in past], 1)
        guesses, _ = task.model.unroll(xs, detach(past[0][1]))
        (guesses[:, -1:] - y).square().mean().backward()
        with torch.no_grad():
            reached[0] = detach(task.model.unroll(x, reached[0])[1])

    return step


def chaos(given: argparse.Namespace) -> None:
    for name in SERIES:
        for learner in given.learners:
            scores, began = [], time.process_time()
            for seed in range(given.seeds):
                xs, ys, other_xs, other_ys = series(name, given.steps, seed)
                scores.append(nmse(learn(learner, xs, ys, given.units, seed), other_xs, other_ys))
            seconds = (time.process_time() - began) / given.seeds
            print(json.dumps({
                "series": name, "learner": learner, "median": round(statistics.median(scores), 5),
                "all": [round(one, 5) for one in scores], "seconds": round(seconds, 1),
            }), flush=True)  # fmt: skip


def cost(given: argparse.Namespace) -> None:
    """Steps a second of processor time, one thread; and how many times a step of learning takes as long as one step forward and
    backward of the same network, in plain operations of torch and by our kernels."""
    rows = [("rtrl", "elman", 64, 1), ("rtrl", "lstm", 32, 1)]
    rows += [("snap1", cell, units, 1) for cell in ("elman", "lstm", "gru") for units in (64, 256)]
    rows += [(name, "leaky" if name == "rflo" else "elman", 64, 1) for name in ("uoro", "kf-rtrl", "rflo", "eprop")]
    for name, cell, units, batch in rows:
        task = Next(cell, units)
        some = batch_of(torch.randn(batch, 32, 1), torch.randn(batch, 32, 1))
        learner = LEARNERS[name]()
        carry = learner.start(task, some)
        own = quickest(lambda learner=learner, task=task, some=some, carry=carry: learner(task, some, carry)) / 32  # type: ignore[misc]
        plain, fast = (
            quickest(lambda task=task, some=some, fast=fast: both_ways(task, some, fast)) / 32 for fast in (False, True)
        )  # type: ignore[misc]
        takes = learner.cost(task, some)
        print(json.dumps({
            "learner": name, "cell": cell, "units": units, "rows": batch, "steps_per_second": round(1 / own),
            "of_a_plain_step": round(own / plain, 2), "of_a_kernel_step": round(own / fast, 2),
            "bytes": None if takes is None else takes.bytes,
        }), flush=True)  # fmt: skip


def both_ways(task: Next, batch: Batch, fast: bool) -> None:
    state = task.model.initial_state(batch.rows)
    for part in batch.windows(1):
        if fast:
            loss, state = task.loss(part, state)
        else:
            with kernels.reference():
                loss, state = task.loss(part, state)
        loss.backward()
        state = tmap(lambda leaf: leaf.detach(), state)


def quickest(work: Callable[[], object], times: int = 7) -> float:
    work()
    found = []
    for _ in range(times):
        time.sleep(PAUSE)
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def length(given: argparse.Namespace) -> None:
    """The most memory that the process has taken, after more and more steps of one sequence."""
    for name in ("rtrl", "snap1", "uoro"):
        task, learner = Next("elman", 16), LEARNERS[name]()
        draw, carry, done = torch.Generator().manual_seed(0), None, 0
        for until in (100, 1_000, 10_000, 100_000):
            while done < until:
                xs = torch.randn(1, 100, 1, generator=draw)
                batch = batch_of(xs, xs, fresh=not done)
                _, carry = learner(task, batch, learner.start(task, batch) if carry is None else carry)
                done += 100
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(json.dumps({"learner": name, "steps": done, "megabytes": round(peak, 1)}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "chaos", "length"])
    parser.add_argument("--steps", type=int, default=5_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--units", type=int, default=32)
    parser.add_argument("--learners", nargs="+", default=["rtrl", "snap1", "kf-rtrl", "uoro", "rflo", "bptt"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    {"cost": cost, "chaos": chaos, "length": length}[given.what](given)


if __name__ == "__main__":
    main()
