"""The cells that other libraries have no layer for, beside the same cell as a scan in JAX and as a loop in torch: one process each,
taking turns, float32 on one thread.

    OMP_NUM_THREADS=1 python benchmarks/others.py > others.md            all of it, some minutes; needs jax beside recurra
    OMP_NUM_THREADS=1 python benchmarks/others.py --only mgu,lru --rounds 9

A peer runs `--calls` calls in its turn, and counts the quickest; what is reported is the median over the rounds, and the ratio of
each peer the median of its ratios within a round. Training is outputs and the gradients of weights and inputs.

The matrix cells have 100 steps of 32 rows and 128 inputs and units; for them the last column has one large product of torch's with
as many multiplications as all products of the cell, the time below which none of the peers gets. Scans have 1000 steps of 8 rows
and 256 units, and only what recurs is timed, from what was projected: the product before it is the same for all. JAX has
`lax.associative_scan` there, torch its own operations as recurra uses them without the kernels.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np

Work = Callable[[], Any]
MATRIX = ("lstm-peephole", "lstm-coupled", "lstm-projected", "lstm-normed", "gru-before", "mgu", "leaky", "gru-normed")
SCANS = ("linear", "mingru", "minlstm", "qrnn", "sru", "lru", "indrnn")
BATCH, STEPS, UNITS = 32, 100, 128
ROWS, LONG, WIDE = 8, 1000, 256
LARGE = 512  # the sides of the product that the cells are held against


def draw(*shape: int, scale: float = 1.0) -> Any:
    return np.random.default_rng(sum(shape)).uniform(-scale, scale, shape).astype(np.float32)


# --- recurra, and torch's own operations ---


def layer(name: str, mode: str, natively: bool) -> Work:
    import torch

    from recurra import cells, kernels

    kinds = {
        "lstm-normed": cells.LayerNormLSTM, "gru-before": partial(cells.GRU, reset="before"),
        "gru-normed": cells.LayerNormGRU, **{key: cells.CELLS[key] for key in MATRIX if key in cells.CELLS},
    }  # fmt: skip
    cell = kinds[name](UNITS, UNITS)
    xs, weight = torch.randn(BATCH, STEPS, UNITS, requires_grad=mode == "train"), torch.randn(())
    wanted, start = [xs, *cell.parameters()], cell.initial_state(BATCH)

    def work() -> None:
        ys = cell.unroll(xs, start)[0]
        torch.autograd.grad((ys * weight).sum(), wanted)

    return _switched(work if mode == "train" else lambda: cell.unroll(xs, start), mode, natively, kernels)


def scan(name: str, mode: str, natively: bool) -> Work:
    """What recurs, from what was projected; without the kernels as the cells compute it in torch."""
    import torch

    from recurra import kernels
    from recurra.cells import scan as scans
    from recurra.kernels import again, following

    blocks = {"linear": 2, "mingru": 2, "minlstm": 3, "qrnn": 3, "sru": 4, "lru": 2, "indrnn": 1}[name]
    kernel = {"mingru": "mingru-identity", "minlstm": "minlstm-identity", "qrnn": "qrnn-fo", "sru": "sru-tanh",
              "indrnn": "indrnn-relu"}.get(name, name)  # fmt: skip
    learns = mode == "train"
    us = [torch.rand(ROWS, LONG, WIDE, requires_grad=learns) for _ in range(blocks)]
    state = tuple(torch.zeros(ROWS, WIDE) for _ in range(2 if name == "lru" else 1))
    params = tuple(0.5 * torch.rand(WIDE) for _ in range({"lru": 3, "indrnn": 1}.get(name, 0)))
    params = tuple(part.requires_grad_(learns) for part in params)

    def in_torch() -> Any:  # noqa: PLR0911
        if name == "linear":
            return scans.followed(us[0], us[1], state[0])[0]
        if name == "mingru":
            z = us[0].sigmoid()
            return scans.followed(1 - z, z * us[1], state[0])[0]
        if name == "minlstm":
            apart = torch.nn.functional.softplus(-us[1]) - torch.nn.functional.softplus(-us[0])
            return scans.followed(apart.sigmoid(), (-apart).sigmoid() * us[2], state[0])[0]
        if name == "qrnn":
            f = us[1].sigmoid()
            return us[2].sigmoid() * scans.followed(f, (1 - f) * us[0].tanh(), state[0])[0]
        if name == "sru":
            f, r = us[0].sigmoid(), us[1].sigmoid()
            return r * scans.followed(f, (1 - f) * us[2], state[0])[0].tanh() + (1 - r) * us[3]
        if name == "lru":
            factor = torch.complex(params[0], params[1]).expand(ROWS, LONG, -1)
            return scans.followed(factor, params[2] * torch.complex(us[0], us[1]), torch.complex(*state))[0].real
        return again.follow(kernel, tuple(us), None, state, params)[0]

    def outputs() -> Any:
        return following.run(kernel, tuple(us), None, state, params)[0] if natively else in_torch()

    def work() -> None:
        torch.autograd.grad(outputs().sum(), [*us, *params])

    return _switched(work if learns else outputs, mode, natively, kernels)


def _switched(work: Work, mode: str, natively: bool, kernels: Any) -> Work:
    import torch

    def run() -> None:
        with torch.set_grad_enabled(mode == "train"):
            if natively:
                work()
            else:
                with kernels.reference():
                    work()

    return run


def sizes(name: str) -> tuple[int, int]:
    """Of a matrix cell the blocks of its sums, and its outputs."""
    blocks = {"gru-before": 3, "gru-normed": 3, "mgu": 2, "leaky": 1, "lstm-coupled": 3}.get(name, 4)
    return blocks, UNITS // 2 if name == "lstm-projected" else UNITS


def product(name: str, mode: str) -> Work:
    """One product with as many multiplications as the cell has: in training three times those of inference."""
    import torch

    blocks, out = sizes(name)
    once = blocks * UNITS * (UNITS + out) + (UNITS * out if name == "lstm-projected" else 0)
    rows = BATCH * STEPS * once * (3 if mode == "train" else 1) // LARGE**2
    a, b, into = torch.randn(rows, LARGE), torch.randn(LARGE, LARGE), torch.empty(rows, LARGE)
    return lambda: torch.mm(a, b, out=into)


# --- JAX ---


def jax_layer(name: str, mode: str) -> Work:
    """One product for the inputs of all steps, then `lax.scan`, all of it under `jit`."""
    import jax
    import jax.numpy as jnp

    h, bound = UNITS, UNITS**-0.5
    blocks, out = sizes(name)
    weights = {"x": draw(h, blocks * h, scale=bound), "b": draw(blocks * h, scale=bound), "h": draw(out, blocks * h, scale=bound),
               "own": draw(3, h), "out": draw(h, out, scale=bound), "gx": draw(blocks * h), "gh": draw(blocks * h)}  # fmt: skip
    sigmoid, tanh = jax.nn.sigmoid, jnp.tanh

    def norm(a: Any) -> Any:
        apart = a - a.mean(-1, keepdims=True)
        return apart * jax.lax.rsqrt((apart * apart).mean(-1, keepdims=True) + 1e-5)

    def step(w: Any, state: Any, x: Any) -> Any:
        before, c = state
        if name in ("gru-before", "mgu"):
            gates = sigmoid(x[:, :-h] + before @ w["h"][:, :-h])
            reset, keep = (gates[:, :h], gates[:, h:]) if name == "gru-before" else (gates, 1 - gates)
            n = tanh(x[:, -h:] + (reset * before) @ w["h"][:, -h:])
            y = keep * before + (1 - keep) * n
            return (y, c), y
        a = before @ w["h"]
        if name == "leaky":
            y = w["own"][0] * before + (1 - w["own"][0]) * tanh(x + a)
            return (y, c), y
        if name == "gru-normed":
            rz, n = norm(a[:, : 2 * h]) * w["gh"][: 2 * h], norm(a[:, 2 * h :]) * w["gh"][2 * h :]
            r, z = jnp.split(sigmoid(x[:, : 2 * h] + rz), 2, 1)
            y = z * before + (1 - z) * tanh(x[:, 2 * h :] + r * (n + w["own"][0]))
            return (y, c), y
        if name == "lstm-coupled":
            f, g, o = jnp.split(x + a, 3, 1)
            c = sigmoid(f) * c + (1 - sigmoid(f)) * tanh(g)
            y = sigmoid(o) * tanh(c)
            return (y, c), y
        i, f, g, o = jnp.split(x + (norm(a) * w["gh"] if name == "lstm-normed" else a), 4, 1)
        if name == "lstm-peephole":
            i, f = i + w["own"][0] * c, f + w["own"][1] * c
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        if name == "lstm-peephole":
            o = o + w["own"][2] * c
        y = sigmoid(o) * tanh(norm(c) * w["own"][0] + w["own"][1] if name == "lstm-normed" else c)
        y = y @ w["out"] if name == "lstm-projected" else y
        return (y, c), y

    def run(w: Any, xs: Any) -> Any:
        sums = xs @ w["x"]
        sums = norm(sums) * w["gx"] + w["b"] if "normed" in name else sums + w["b"]
        return jax.lax.scan(partial(step, w), (jnp.zeros((BATCH, out)), jnp.zeros((BATCH, h))), sums)[1]

    return _jitted(run, mode, weights, draw(STEPS, BATCH, h))


def jax_scan(name: str, mode: str) -> Work:
    import jax
    import jax.numpy as jnp

    shape, sigmoid = (LONG, ROWS, WIDE), jax.nn.sigmoid
    own = {"own": np.abs(draw(3, WIDE, scale=0.5))}

    def followed(a: Any, b: Any) -> Any:
        join = lambda one, two: (two[0] * one[0], two[0] * one[1] + two[1])  # noqa: E731
        return jax.lax.associative_scan(join, (a, b))[1]

    def run(w: Any, us: Any) -> Any:  # noqa: PLR0911
        if name == "linear":
            return followed(us[0], us[1])
        if name == "mingru":
            z = sigmoid(us[0])
            return followed(1 - z, z * us[1])
        if name == "minlstm":
            apart = jax.nn.softplus(-us[1]) - jax.nn.softplus(-us[0])
            return followed(sigmoid(apart), sigmoid(-apart) * us[2])
        if name == "qrnn":
            f = sigmoid(us[1])
            return sigmoid(us[2]) * followed(f, (1 - f) * jnp.tanh(us[0]))
        if name == "sru":
            f, r = sigmoid(us[0]), sigmoid(us[1])
            return r * jnp.tanh(followed(f, (1 - f) * us[2])) + (1 - r) * us[3]
        if name == "lru":
            factor = jnp.broadcast_to(w["own"][0] + 1j * w["own"][1], shape)
            return followed(factor, w["own"][2] * (us[0] + 1j * us[1])).real

        def step(h: Any, u: Any) -> Any:
            h = jax.nn.relu(u + w["own"][0] * h)
            return h, h

        return jax.lax.scan(step, jnp.zeros((ROWS, WIDE)), us[0])[1]  # not linear: no associative scan

    blocks = {"minlstm": 3, "qrnn": 3, "sru": 4, "indrnn": 1}.get(name, 2)
    return _jitted(run, mode, own, [np.abs(draw(*shape)) for _ in range(blocks)])


def _jitted(run: Callable[..., Any], mode: str, weights: Any, given: Any) -> Work:
    import jax

    weights, given = jax.tree.map(jax.numpy.asarray, (weights, given))
    total = lambda w, x: run(w, x).sum()  # noqa: E731
    compiled = jax.jit(run if mode == "infer" else jax.grad(total, argnums=(0, 1)))
    return lambda: jax.block_until_ready(compiled(weights, given))


# --- taking turns ---


def build(peer: str, name: str, mode: str) -> Work:
    if peer == "jax":
        return (jax_layer if name in MATRIX else jax_scan)(name, mode)
    if peer == "product":
        return product(name, mode)
    from recurra.fit import keep_freed_memory

    keep_freed_memory()  # as `recurra train` has it, for torch's own operations too; JAX has a pool of its own
    return (layer if name in MATRIX else scan)(name, mode, peer == "recurra")


def serve(peer: str, name: str, mode: str, calls: int) -> None:
    work = build(peer, name, mode)
    for _ in range(calls):  # the first compile, and take memory that is fresh
        work()
    print("ready", flush=True)
    for _ in sys.stdin:
        times = []
        for _ in range(calls):
            begun = time.process_time()
            work()
            times.append(time.process_time() - begun)
        print(min(times), flush=True)


def compared(name: str, mode: str, rounds: int, calls: int) -> dict[str, list[float]]:
    peers = ("recurra", "jax", "torch", *(["product"] if name in MATRIX else []))
    env = {**os.environ, "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "NPROC": "1"}
    run = [sys.executable, __file__, "work", name, mode, str(calls)]
    core = [] if not hasattr(os, "sched_getaffinity") else ["taskset", "-c", str(max(os.sched_getaffinity(0)))]
    workers = {
        peer: subprocess.Popen([*core, *run, peer], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        for peer in peers
    }
    for worker in workers.values():
        worker.stdout.readline()  # type: ignore[union-attr]
    times: dict[str, list[float]] = {peer: [] for peer in peers}
    for _ in range(rounds):
        for peer, worker in workers.items():
            worker.stdin.write("go\n")  # type: ignore[union-attr]
            worker.stdin.flush()  # type: ignore[union-attr]
            times[peer].append(float(worker.stdout.readline()))  # type: ignore[union-attr]
    for worker in workers.values():
        worker.communicate()
    return times


def main() -> None:
    if sys.argv[1:2] == ["work"]:
        name, mode, calls, peer = sys.argv[2:]
        serve(peer, name, mode, int(calls))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=[*MATRIX, *SCANS])
    parser.add_argument("--modes", type=lambda text: text.split(","), default=["train", "infer"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=10)
    options = parser.parse_args()
    print("| cell | mode | recurra | jax | ratio | torch | ratio | products alone |\n" + "| --- " * 8 + "|")
    for name in options.only:
        for mode in options.modes:
            times = compared(name, mode, options.rounds, options.calls)
            row = [name, mode, f"{median(times['recurra']) * 1e3:.2f} ms"]
            for peer in ("jax", "torch"):
                ratio = median(b / a for a, b in zip(times["recurra"], times[peer], strict=True))
                row += [f"{median(times[peer]) * 1e3:.2f} ms", f"**{ratio:.2f}**"]
            row.append(f"{median(times['product']) * 1e3:.2f} ms" if "product" in times else "")
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
