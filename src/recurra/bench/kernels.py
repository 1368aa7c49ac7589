"""`recurra.RNN`, `GRU` and `LSTM` beside the layers of torch.nn that they stand in for, in one interleaved run.

Whole sequences of float32 on the CPU. Other libraries, each in a process of its own: benchmarks/kernels.py.
"""

import resource
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from recurra import drop_in
from recurra.kernels import native

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
MODES = ("infer", "train")
STEPS = 100
SIZES = ((1, 32), (1, 256), (8, 128), (32, 128), (32, 256))  # rows, units
LOST = 50.0  # preemptions a second above which times mean little
PAUSE = 0.005  # seconds in which the idle threads of one side stop spinning before the other side is timed

Work = Callable[[], object]


def flops(kind: str, mode: str, row_steps: int, units: int) -> float:
    """Floating-point operations of the matrix products for `row_steps` rows x steps with as many inputs as units; the
    gradients cost twice the forward pass."""
    forward = 2.0 * row_steps * (units + units) * GATES[kind] * units
    return forward * (3 if mode == "train" else 1)


def layer_pass(library: Any, kind: str, mode: str, rows: int, units: int, steps: int, batch_first: bool) -> Work:
    """One call of `library.RNN`, `.GRU` or `.LSTM`: "infer" is the forward pass without autograd, "train" adds the gradients
    of all weights, of the inputs and of the start state."""
    layer = getattr(library, kind)(units, units, batch_first=batch_first)
    train = mode == "train"
    shape = (rows, steps, units) if batch_first else (steps, rows, units)
    xs, weight = torch.randn(shape, requires_grad=train), torch.randn(shape)
    start = [torch.randn(1, rows, units, requires_grad=train) for _ in range(2 if kind == "LSTM" else 1)]
    return passes(
        lambda: layer(xs, tuple(start) if len(start) > 1 else start[0])[0], [*layer.parameters(), xs, *start], weight
    )


def passes(outputs: Callable[[], torch.Tensor], leaves: Sequence[torch.Tensor], weight: torch.Tensor) -> Work:
    """A pass forward, and backward from the sum of outputs * weight where all of `leaves` want gradients."""

    def infer() -> object:
        with torch.no_grad():
            return outputs()

    def train() -> object:
        return torch.autograd.grad(outputs(), leaves, weight)

    return train if all(leaf.requires_grad for leaf in leaves) else infer


def compare(
    seconds: float,
    threads: int | None = None,
    seed: int | None = None,
    sizes: Sequence[tuple[int, int]] = SIZES,
    rounds: int = 5,
    tell: Callable[[str], None] = lambda case: None,
) -> dict[str, Any]:
    """One record a case, about `seconds` in all: milliseconds of a call of each side, GFLOP/s of ours, and how many times as
    long torch.nn takes. Each number is the median over rounds in which the sides take turns."""
    if threads:
        torch.set_num_threads(threads)
    cases = [(kind, mode, rows, units) for kind in GATES for mode in MODES for rows, units in sizes]
    share = seconds / len(cases) / rounds / 2
    records, lost, began = [], _preemptions(), time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed or 0)
        for kind, mode, rows, units in cases:
            tell(f"{kind} {mode}, {rows} rows, {units} units")
            # each side in the layout that costs it no copy
            ours = layer_pass(drop_in, kind, mode, rows, units, STEPS, batch_first=True)
            theirs = layer_pass(nn, kind, mode, rows, units, STEPS, batch_first=False)
            pairs = [(_seconds(ours, share), _seconds(theirs, share)) for _ in range(rounds + 1)][1:]
            mine = _median([a for a, _ in pairs])
            records.append(
                {
                    "layer": kind,
                    "mode": mode,
                    "rows": rows,
                    "units": units,
                    "steps": STEPS,
                    "recurra_ms": mine * 1e3,
                    "torch_ms": _median([b for _, b in pairs]) * 1e3,
                    "gflops": flops(kind, mode, rows * STEPS, units) / mine / 1e9,
                    "ratio": _median([b / a for a, b in pairs]),
                }
            )
    setting = {"threads": torch.get_num_threads(), "torch": torch.__version__, "kernels": native.described()}
    lost, lasted = _preemptions() - lost, time.perf_counter() - began
    return {**setting, "preemptions_per_second": lost / lasted, "cases": records}


def table(report: dict[str, Any]) -> str:
    """The report as lines of a terminal."""
    head = (
        f"{'layer':<6}{'mode':<7}{'rows':>5}{'units':>7}{'recurra ms':>12}{'torch.nn ms':>13}{'GFLOP/s':>9}{'ratio':>8}"
    )
    lines = [
        f"{r['layer']:<6}{r['mode']:<7}{r['rows']:>5}{r['units']:>7}{r['recurra_ms']:>12.3f}{r['torch_ms']:>13.3f}"
        f"{r['gflops']:>9.1f}{r['ratio']:>8.2f}"
        for r in report["cases"]
    ]
    setting = (
        f"{STEPS} steps, float32, {report['threads']} threads, torch {report['torch']}, kernels: {report['kernels']}; "
        "recurra batch first, torch.nn time first;\nGFLOP/s of recurra; ratio: time of torch.nn / time of recurra; "
        "medians over rounds in which both take turns."
    )
    if (lost := report["preemptions_per_second"]) > LOST:
        setting += (
            f"\nOther processes took a processor away {lost:.0f} times a second: run it again on a quiet machine."
        )
    return "\n".join([head, *lines, "", setting])


def _seconds(work: Work, share: float) -> float:
    """Seconds of a call: the median over calls that last about `share` seconds, two at least, after one that warms up."""
    time.sleep(PAUSE)
    work()
    taken: list[float] = []
    while len(taken) < 2 or sum(taken) < share:
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return _median(taken)


def _preemptions() -> int:
    """How often other processes have taken a processor away from this one's threads."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
