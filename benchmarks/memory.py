"""What the associative memories hold, on random patterns and on real pictures, and how long it takes beside hopfieldnetwork.

    python benchmarks/memory.py DATA [--peer PYTHON] > benchmarks/memory.md

DATA is a folder with digits-8x8/digits.csv.gz, mnist/train-images.npy.xz and omniglot/images_background_small1.zip; what is
absent is left out. PYTHON runs an interpreter with `pip install hopfieldnetwork matplotlib` in it. Pictures of letters need
Pillow (`pip install 'recurra[vision]'`).
"""

import argparse
import io
import json
import subprocess
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recurra.data.arrays import rows
from recurra.memory import RULES, Associative, Dense, Hopfield, Modern, signs

MEMORIES: dict[str, Callable[[Tensor], Associative]] = {
    **{name: lambda patterns, name=name: Hopfield.store(patterns, name) for name in RULES},
    "dense, power 3": lambda patterns: Dense.store(patterns, 3),
    "dense, exp": lambda patterns: Dense.store(patterns, "exp"),
}
LOADS = (0.02, 0.05, 0.08, 0.1, 0.12, 0.138, 0.16, 0.2, 0.3, 0.5, 0.8)
COUNTS = (2, 5, 10, 20, 50, 100, 200)
PEER = """
import json, sys, time
import numpy as np
from hopfieldnetwork import HopfieldNetwork
given = np.load(sys.argv[1])
patterns, wanted, probes = given["patterns"], given["wanted"], given["probes"]
began = time.perf_counter()
network = HopfieldNetwork(N=patterns.shape[1])
for pattern in patterns:
    network.train_pattern(pattern)
stored = time.perf_counter()
right = 0
for pattern, probe in zip(wanted, probes):
    network.set_initial_neurons_state(np.copy(probe))
    network.update_neurons(iterations=1, mode="async", run_max=True)
    right += np.array_equal(network.S, pattern)
print(json.dumps([stored - began, time.perf_counter() - stored, right / len(wanted)]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--peer", type=Path)
    given = parser.parse_args()
    print(
        "# What the associative memories hold\n\nMade by `benchmarks/memory.py`; one tenth of the units of each probe are turned."
    )
    random_patterns()
    pictures(given.data)
    modern(given.data / "mnist" / "train-images.npy.xz")
    if given.peer:
        speed(given.peer)


def damaged(patterns: Tensor, share: float, seed: int) -> Tensor:
    draw = torch.rand(patterns.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(draw < share, -patterns, patterns)


def exact(memory: Associative, patterns: Tensor, seed: int) -> float:
    """The share of patterns that come back to the last unit."""
    return float((memory.recall(damaged(patterns, 0.1, seed), seed) == patterns).all(1).float().mean())


def random_patterns(units: int = 400, seeds: int = 3) -> None:
    print(
        f"\n## Random patterns, {units} units\n\nShare recalled exactly, mean of {seeds} draws; Hebb's rule breaks near 0.138.\n"
    )
    head(["load", "patterns", *MEMORIES, "overlap, hebb"])
    for load in LOADS:
        count, cells = round(load * units), []
        draws = [
            signs(torch.randn(count, units, generator=torch.Generator().manual_seed(seed))) for seed in range(seeds)
        ]
        for store in MEMORIES.values():
            shares = [exact(store(patterns), patterns, seed) for seed, patterns in enumerate(draws)]
            cells.append(f"{np.mean(shares):.2f}")
        overlaps = [
            float((Hopfield.store(x).recall(damaged(x, 0.1, seed), seed) * x).mean()) for seed, x in enumerate(draws)
        ]
        line([f"{load:g}", str(count), *cells, f"{np.mean(overlaps):.3f}"])


def pictures(data: Path) -> None:
    for name, patterns in sets(data):
        print(f"\n## {name}, {patterns.shape[1]} units\n\nShare recalled exactly of the first so many.\n")
        head(["patterns", "load", *MEMORIES])
        for count in COUNTS:
            some = patterns[:count]
            if len(some) == count:
                shares = [exact(store(some), some, 0) for store in MEMORIES.values()]
                line([str(count), f"{count / some.shape[1]:.3f}", *(f"{share:.2f}" for share in shares)])


def sets(data: Path) -> Iterator[tuple[str, Tensor]]:
    digits, mnist = data / "digits-8x8" / "digits.csv.gz", data / "mnist" / "train-images.npy.xz"
    letters = data / "omniglot" / "images_background_small1.zip"
    if digits.exists():
        yield "Digits of 8 x 8", different(signs(torch.from_numpy(rows([digits], "-1").values), 7))
    if mnist.exists():
        yield "MNIST", different(signs(torch.from_numpy(rows([mnist]).values), 127))
    if letters.exists():
        yield "Letters of Omniglot, one drawer, 35 x 35", different(signs(omniglot(letters)))


def omniglot(path: Path) -> Tensor:
    """One drawing of each letter [letters, 1225], ink above zero."""
    from PIL import Image

    with zipfile.ZipFile(path) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith("_01.png"))
        drawn = [np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("L"), np.float32) for name in names]
    return torch.from_numpy(np.stack([(255 - one).reshape(35, 3, 35, 3).max((1, 3)) - 127 for one in drawn])).flatten(1)


def different(patterns: Tensor) -> Tensor:
    """Without those that are the same as one before, in their order."""
    seen: dict[bytes, Tensor] = {}
    for one in patterns[:2000]:
        seen.setdefault(one.numpy().tobytes(), one)
    return torch.stack(list(seen.values()))


def modern(path: Path) -> None:
    if not path.exists():
        return
    patterns = torch.from_numpy(rows([path]).values[:1000]) / 127.5 - 1
    probes = patterns.clone()
    probes[:, 392:] = 0
    print("\n## The modern network on the first 1,000 digits of MNIST, the lower half of each hidden\n")
    head(["beta", "right", "exact to 0.01", "seconds"])
    for beta in (0.1, 0.3, 1.0, 4.0):
        began = time.perf_counter()
        results = Modern.store(patterns, beta).recall(probes)
        seconds = time.perf_counter() - began
        right = (torch.cdist(results, patterns).argmin(1) == torch.arange(1000)).float().mean()
        close = ((results - patterns).abs().amax(1) < 1e-2).float().mean()
        line([f"{beta:g}", f"{right:.1%}", f"{close:.1%}", f"{seconds:.2f}"])


def speed(peer: Path, units: int = 784, count: int = 50) -> None:
    print(
        f"\n## Beside hopfieldnetwork 1.0.1: {count} random patterns of {units} units, one unit at a time until at rest\n"
    )
    head(
        [
            "probes",
            "recurra store",
            "recall",
            "exact",
            "hopfieldnetwork store",
            "recall",
            "exact",
            "ratio store",
            "recall",
        ]
    )
    patterns = signs(torch.randn(count, units, generator=torch.Generator().manual_seed(0)))
    Hopfield.store(patterns[:2]).recall(patterns[:2])
    for times in (1, 20, 100):
        wanted = patterns.repeat(times, 1)
        probes = damaged(wanted, 0.1, 1)
        began = time.perf_counter()
        memory = Hopfield.store(patterns)
        stored = time.perf_counter()
        recalled = memory.recall(probes)
        ended = time.perf_counter()
        theirs = beside(peer, patterns, wanted, probes)
        ours = [stored - began, ended - stored, float((recalled == wanted).all(1).float().mean())]
        cells = [
            f"{seconds * 1e3:.1f} ms" if place % 3 < 2 else f"{seconds:.2f}"
            for place, seconds in enumerate([*ours, *theirs])
        ]
        line([str(len(probes)), *cells, f"{theirs[0] / ours[0]:.0f}", f"{theirs[1] / ours[1]:.0f}"])


def beside(peer: Path, patterns: Tensor, wanted: Tensor, probes: Tensor) -> list[float]:
    """Seconds to store and to recall, and the share recalled exactly, of the other library."""
    file = Path("hopfield-patterns.npz")
    arrays = {"patterns": patterns, "wanted": wanted, "probes": probes}
    np.savez(file, **{name: part.numpy().astype("int8") for name, part in arrays.items()})
    try:
        return json.loads(subprocess.run([peer, "-c", PEER, file], capture_output=True, text=True, check=True).stdout)
    finally:
        file.unlink()


def head(names: list[str]) -> None:
    line(names)
    line(["---"] * len(names))


def line(cells: list[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
