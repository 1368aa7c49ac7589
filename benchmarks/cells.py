"""What a step of every cell costs, in training and in a stream, and what scans gain over loops on long sequences.

    python benchmarks/cells.py steps [CELL ...] [--seconds 60]
    python benchmarks/cells.py scans [CELL ...] [--seconds 60]

`steps`: forward and backward over 32 rows of 100 steps, divided by 100; and one step of one row with packed weights, no gradients.
`scans`: forward and backward over one row and over 16, through the cell's scan and through its loop. In both all cells take turns,
each once unmeasured before it is measured, and medians over the turns are shown. One thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from recurra import kernels, testing
from recurra.cells import CELLS, Cell
from recurra.fit import keep_freed_memory
from recurra.models import Snapshot
from recurra.state import leaves

INPUTS, UNITS, ROWS, STEPS = 64, 128, 32, 100
SCANS = ("mingru", "minlstm", "lru", "qrnn", "sru", "lstm-matrix")
LENGTHS = (100, 1_000, 10_000)
STREAMED = 200  # steps of a stream that are timed together
LARGEST = 2 << 30  # numbers that a loop may keep for its backward pass: above it the loop is left out

Work = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["steps", "scans"])
    parser.add_argument("cells", nargs="*", metavar="CELL")
    parser.add_argument("--seconds", type=float, default=60.0, help="at least this long")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()  # as `recurra train` does
    if given.table == "steps":
        steps(given.cells or list(CELLS), given.seconds)
    else:
        scans(given.cells or list(SCANS), given.seconds)


def steps(names: list[str], seconds: float) -> None:
    cells = {name: CELLS[name](INPUTS, UNITS) for name in names}
    taken = in_turns(
        {
            **{(name, "training"): training(cell, ROWS, STEPS) for name, cell in cells.items()},
            **{(name, "stream"): streaming(cell) for name, cell in cells.items()},
        },
        seconds,
    )
    print(f"{INPUTS} inputs, {UNITS} units; microseconds a step\n")
    print(f"| cell | training, {ROWS} rows | stream, one row |\n| --- | --- | --- |")
    for name in cells:
        print(f"| `{name}` | {taken[name, 'training'] / STEPS:,.0f} | {taken[name, 'stream'] / STREAMED:,.1f} |")


def scans(names: list[str], seconds: float) -> None:
    print(f"{INPUTS} inputs, {UNITS} units; forward and backward, milliseconds: scan / loop (how many times as fast)\n")
    print("| cell | rows |" + "".join(f" {steps:,} steps |" for steps in LENGTHS))
    print("| --- | --- |" + " --- |" * len(LENGTHS))
    sizes = [(rows, steps) for rows in (1, 16) for steps in LENGTHS]
    for name in names:
        cell = CELLS[name](INPUTS, UNITS)
        work: dict[tuple, Work] = {(*size, "scan"): training(cell, *size) for size in sizes}
        work |= {(*size, "loop"): by_loop(training(cell, *size)) for size in sizes if kept(cell, *size) < LARGEST}
        taken = in_turns(work, seconds / len(names))
        for rows in (1, 16):
            shown = [compared(taken[rows, steps, "scan"], taken.get((rows, steps, "loop"))) for steps in LENGTHS]
            print(f"| `{name}` | {rows} | {' | '.join(shown)} |", flush=True)


def compared(scan: float, loop: float | None) -> str:
    if loop is None:
        return f"{scan / 1e3:,.0f} / too large"
    return f"{scan / 1e3:,.1f} / {loop / 1e3:,.1f} ({loop / scan:.1f})"


def training(cell: Cell, rows: int, steps: int) -> Work:
    """A forward and a backward pass."""
    xs = testing.example(cell, rows, steps)
    if not any(parameter.requires_grad for parameter in cell.parameters()):
        xs.requires_grad_()  # a cell that does not learn passes gradients on

    def once() -> None:
        ys, last = cell.unroll(xs, cell.initial_state(rows))
        (ys.sum() + sum(leaf.sum() for leaf in leaves(last) if leaf.is_floating_point())).backward()

    return once


def by_loop(work: Work) -> Work:
    def once() -> None:
        with kernels.reference():
            work()

    return once


def streaming(cell: Cell) -> Work:
    """Steps of a stream of one row."""
    stream = Snapshot(cell) if any(True for _ in cell.parameters()) else None
    xs: tuple[Tensor, ...] = testing.example(cell, 1, STREAMED).unbind(1)

    def once() -> None:
        state = cell.initial_state(1)
        with torch.inference_mode():
            for x in xs:
                _, state = stream.step(x, state) if stream else cell(x, state)

    return once


def kept(cell: Cell, rows: int, steps: int) -> int:
    """About how many numbers a loop keeps: four states for each step."""
    return 4 * steps * sum(leaf.numel() for leaf in leaves(cell.initial_state(rows)))


def in_turns(work: dict[tuple, Work], seconds: float) -> dict[tuple, float]:
    """The median time of each in microseconds."""
    taken: dict[tuple, list[float]] = {name: [] for name in work}
    began, turns = time.perf_counter(), 0
    while turns < 2 or time.perf_counter() - began < seconds:
        for name, once in work.items():
            once()  # what ran before has left caches and memory as it wanted them
            start = time.perf_counter()
            once()
            taken[name].append((time.perf_counter() - start) * 1e6)
        turns += 1
    return {name: statistics.median(times) for name, times in taken.items()}


if __name__ == "__main__":
    main()
