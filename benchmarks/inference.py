"""Inference in bfloat16 beside our own float32 and torch's bfloat16, and layers side by side beside one after the other.

    python benchmarks/inference.py > benchmarks/inference.md      about four minutes on two cores

Everything runs in one process with all threads; what is compared takes turns in rounds of some calls, of which the quickest counts,
and a ratio is the median of the ratios within the rounds.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from recurra.cells import CELLS, Cell, Stacked, with_packed_weights
from recurra.kernels import native

STEPS = 100
PEERS = {"lstm": nn.LSTM, "gru": nn.GRU, "elman": nn.RNN}
Work = Callable[[], object]


def in_bfloat16(work: Work) -> Work:
    def within() -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return work()

    return within


def compared(works: dict[str, Work], rounds: int, seconds: float = 0.03) -> list[dict[str, float]]:
    """Milliseconds of each in each round."""
    for work in works.values():
        for _ in range(3):
            work()
    found = []
    for _ in range(rounds):
        times = {}
        for name, work in works.items():
            best, until = float("inf"), time.perf_counter() + seconds
            while time.perf_counter() < until:
                start = time.perf_counter()
                work()
                best = min(best, time.perf_counter() - start)
            times[name] = best * 1e3
        found.append(times)
    return found


def ratio(rounds: list[dict[str, float]], slow: str, fast: str) -> float:
    return median(one[slow] / one[fast] for one in rounds)


def sequence(cell: Cell, batch: int) -> tuple[Work, Tensor]:
    xs, start = torch.randn(batch, STEPS, cell.input_size), cell.initial_state(batch)
    return (lambda: cell.unroll(xs, start)[0]), xs


def halves(rounds: int) -> None:
    print("| layer | batch | units | float32 | bfloat16 | ratio | torch, bfloat16 | ratio | largest error |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in ("lstm", "gru", "elman"):
        for units in (128, 256, 512):
            for batch in (1, 8, 32, 128):
                torch.manual_seed(0)
                cell = CELLS[name](units, units)
                work, xs = sequence(cell, batch)
                peer = PEERS[name](units, units, batch_first=True)
                works = {"whole": work, "half": in_bfloat16(work), "peer": in_bfloat16(lambda p=peer, xs=xs: p(xs))}
                found = compared(works, rounds)
                error = float((in_bfloat16(work)() - work()).abs().max())  # type: ignore[operator]
                ms = {key: median(one[key] for one in found) for key in works}
                print(
                    f"| {name} | {batch} | {units} | {ms['whole']:.2f} ms | {ms['half']:.2f} ms | "
                    f"**{ratio(found, 'whole', 'half'):.2f}** | {ms['peer']:.2f} ms | "
                    f"{ratio(found, 'peer', 'half'):.2f} | {error:.0e} |"
                )


def streams(rounds: int) -> None:
    print("\n| one step of a stream | units | float32 | bfloat16 | ratio |\n| --- | --- | --- | --- | --- |")
    for name in ("lstm", "gru", "elman"):
        for units in (128, 512):
            cell = CELLS[name](units, units)
            x, state = torch.randn(1, units), cell.initial_state(1)
            whole = with_packed_weights(cell)
            with torch.autocast("cpu", torch.bfloat16):
                half = with_packed_weights(cell)
            works = {"whole": lambda c=whole, x=x, s=state: c(x, s), "half": lambda c=half, x=x, s=state: c(x, s)}
            found = compared(works, rounds)
            us = {key: median(one[key] for one in found) * 1e3 for key in works}
            print(
                f"| {name} | {units} | {us['whole']:.1f} µs | {us['half']:.1f} µs | **{ratio(found, 'whole', 'half'):.2f}** |"
            )


def stacks(rounds: int) -> None:
    print("\n| stack | layers | batch | units | one after the other | side by side | ratio |\n" + "| --- " * 7 + "|")
    for name in ("lstm", "gru"):
        for layers in (2, 3):
            for batch in (1, 4):
                for units in (32, 64, 128, 256, 512):
                    cells = [CELLS[name](units, units) for _ in range(layers)]
                    xs, start = torch.randn(batch, STEPS, units), Stacked(cells).initial_state(batch)
                    layers_of = tuple(zip(start, [cell.recurrence()[1] for cell in cells], strict=True))

                    def apart(cells: list[Cell] = cells, xs: Tensor = xs, start: tuple = start) -> object:
                        for cell, state in zip(cells, start, strict=True):
                            xs, _ = cell.unroll(xs, state)
                        return xs

                    works = {
                        "apart": apart,
                        "together": lambda n=name, xs=xs, those=layers_of: native.forward_stack(n, xs, None, those),
                    }
                    found = compared(works, rounds)
                    ms = {key: median(one[key] for one in found) for key in works}
                    print(
                        f"| {name} | {layers} | {batch} | {units} | {ms['apart']:.3f} ms | {ms['together']:.3f} ms | "
                        f"**{ratio(found, 'apart', 'together'):.2f}** |"
                    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=("halves", "streams", "stacks"))
    options = parser.parse_args()
    halved = f"with{'out' * (not native._native.multiplies_halves())} products of bfloat16"
    tiled = " in tiles" if native._native.multiplies_tiles() else ""
    setting = f"{torch.get_num_threads()} threads, {native.described()} {halved}{tiled}, torch {torch.__version__}"
    print("# Inference in bfloat16, and in stacks\n\n    python benchmarks/inference.py\n")
    print(f"{setting}; {STEPS} steps, as many inputs as units.\n")
    with torch.no_grad():
        for name, part in {"halves": halves, "streams": streams, "stacks": stacks}.items():
            if options.only in (None, name):
                part(options.rounds)


if __name__ == "__main__":
    main()
