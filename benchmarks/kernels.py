"""Our recurrent layers beside those of other libraries on the CPU in float32, interleaved, every peer in its own process.

    python benchmarks/kernels.py run --out results.jsonl      all of it; a second call goes on where the first ended
    python benchmarks/kernels.py run --out results.jsonl --parts grid --kinds GRU --modes train --batches 8,32
    python benchmarks/kernels.py report results.jsonl benchmarks/others.md benchmarks/inference.md > benchmarks/RESULTS.md

Peers: pip install jax flax keras onnx onnxruntime openvino, beside torch and recurra; those that are absent are named and
left out. `compile` (torch.compile) takes a minute a case and runs only where --peers names it.

Parts: grid (100 steps), long (1000 steps), ragged (rows of 5 to 60 steps), stream (one step, one row, state carried on).
Modes: infer is the forward pass without gradients; train adds the gradients of weights, inputs and start state.

Libraries whose idle threads spin disturb each other, and any other program disturbs them all: a block of calls begins
when nothing else runs, or after --patience seconds, and is measured again where it was preempted. Only ratios within a
round of one run mean anything; what is reported is the median of them. Build nothing meanwhile: a library that is
replaced under a running process ends it.
"""

import argparse
import gc
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from itertools import groupby, product
from math import exp, log
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from recurra.bench.kernels import GATES, LOST, MODES, PAUSE, Work, flops, layer_pass, passes

PARTS = ("grid", "long", "ragged", "stream")
ALWAYS = ("recurra", "torch")  # peers whose names begin so take part in all rounds
SMALL = 4096  # rows x units up to which one thread may be faster than several


class Case(NamedTuple):
    """What is timed; there are as many inputs as hidden units."""

    part: str
    kind: str
    mode: str
    batch: int
    hidden: int
    steps: int

    @property
    def flops(self) -> float:
        """Floating-point operations of a call; what is computed of padding does not count."""
        valid = sum(lengths(self.batch)) if self.part == "ragged" else self.batch * self.steps
        return flops(self.kind, self.mode, valid, self.hidden)


def lengths(batch: int) -> list[int]:
    """The steps of each row of the ragged part: uniform in 5..60, always the same draw."""
    return random.Random(0).choices(range(5, 61), k=batch)


def cases(
    parts: Sequence[str], kinds: Sequence[str], modes: Sequence[str], of: tuple[list[int], list[int]]
) -> list[Case]:
    """The chosen part of the grid; `of` are the batch sizes and hidden sizes, empty for those of each part."""
    sizes = {
        "grid": ((1, 8, 32, 128), (32, 128, 256, 512), 100),
        "long": ((1, 8), (128,), 1000),
        "ragged": ((32,), (64, 128, 256), max(lengths(32))),
        "stream": ((1,), (32, 128, 256, 512), 1),
    }
    found = []
    for part in parts:
        batches, hiddens, steps = sizes[part]
        chosen = [b for b in batches if b in (of[0] or batches)], [h for h in hiddens if h in (of[1] or hiddens)]
        found += [Case(part, *rest, steps) for rest in product(kinds, modes, *chosen)]
    return [
        case
        for case in found
        if not (case.part == "stream" and case.mode == "train") and not (case.part == "ragged" and case.kind == "RNN")
    ]


# Peers: each function makes the work of a case, or returns None where the peer has none


def ours(case: Case) -> Work:
    """`recurra.RNN`, `GRU`, `LSTM` batch first; a `PackedSequence` where rows are ragged; a `Snapshot` where one streams."""
    import recurra

    if case.part == "stream":
        return _snapshot(case)
    return _ragged(recurra, case, True) if case.part == "ragged" else _layer(recurra, case, True)


def ours_of_lengths(case: Case) -> Work | None:
    """`recurra.cells` unrolled over padded rows and their lengths, without packing."""
    if case.part != "ragged":
        return None
    import torch

    from recurra import cells

    cell, xs, weight = getattr(cells, case.kind)(case.hidden, case.hidden), *_inputs(case, True)
    ends, start = torch.tensor(lengths(case.batch)), cell.initial_state(case.batch)
    return passes(lambda: cell.unroll(xs, start, ends)[0], [*cell.parameters(), xs], weight)


def torch_layers(case: Case) -> Work:
    """`torch.nn.RNN`, `GRU`, `LSTM` time first, on padded rows; `torch.nn.LSTMCell` and its like where one streams."""
    from torch import nn

    if case.part == "stream":
        return _torch_cell(case)
    return _ragged(nn, case, False, packed=False) if case.part == "ragged" else _layer(nn, case, False)


def torch_packed(case: Case) -> Work | None:
    """The same on a `PackedSequence`."""
    from torch import nn

    return _ragged(nn, case, False) if case.part == "ragged" else None


def torch_compiled(case: Case) -> Work | None:
    """`torch.compile` of the layer, its recurrence unrolled."""
    import torch
    import torch._dynamo

    if case.part not in ("grid", "long"):
        return None
    torch._dynamo.reset()
    torch._dynamo.config.allow_rnn = True
    library = type("Compiled", (), {case.kind: lambda *a, **k: torch.compile(getattr(torch.nn, case.kind)(*a, **k))})
    return _layer(library, case, False)


def _layer(library: Any, case: Case, batch_first: bool) -> Work:
    return layer_pass(library, case.kind, case.mode, case.batch, case.hidden, case.steps, batch_first)


def _inputs(case: Case, batch_first: bool) -> Any:
    """Padded inputs, which want a gradient in training, and the gradient of the outputs."""
    import torch

    shape = (case.batch, case.steps) if batch_first else (case.steps, case.batch)
    return torch.randn(*shape, case.hidden, requires_grad=case.mode == "train"), torch.randn(*shape, case.hidden)


def _ragged(library: Any, case: Case, batch_first: bool, packed: bool = True) -> Work:
    """From padded rows to padded outputs, through a PackedSequence or by computing the padding too."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    layer = getattr(library, case.kind)(case.hidden, case.hidden, batch_first=batch_first)
    (xs, weight), ends = _inputs(case, batch_first), torch.tensor(lengths(case.batch))

    def outputs() -> Any:
        if not packed:
            return layer(xs)[0]
        rows = pack_padded_sequence(xs, ends, batch_first=batch_first, enforce_sorted=False)
        return pad_packed_sequence(layer(rows)[0], batch_first=batch_first)[0]

    return passes(outputs, [*layer.parameters(), xs], weight)


def _snapshot(case: Case) -> Work:
    import torch

    from recurra import cells
    from recurra.models import Snapshot

    kind = getattr(cells, "Elman" if case.kind == "RNN" else case.kind)
    stream, x = Snapshot(kind(case.hidden, case.hidden)), torch.randn(case.batch, case.hidden)
    state = stream.initial_state(case.batch)

    def work() -> None:
        nonlocal state
        _, state = stream.step(x, state)

    return work


def _torch_cell(case: Case) -> Work:
    import torch

    cell, x = getattr(torch.nn, case.kind + "Cell")(case.hidden, case.hidden), torch.randn(case.batch, case.hidden)
    state: Any = None

    def work() -> None:
        nonlocal state
        with torch.inference_mode():
            state = cell(x, state)

    return work


def _draw(*shapes: tuple[int, ...], scale: float = 1.0) -> list[Any]:
    """float32 numbers in -scale..scale."""
    generator = np.random.default_rng(0)
    return [(generator.uniform(-scale, scale, shape)).astype(np.float32) for shape in shapes]


def jax_scan(case: Case, unroll: int) -> Work | None:
    """What a careful user of JAX writes: one product for the inputs of all steps, then `lax.scan`, all of it under `jit`."""
    import jax
    import jax.numpy as jnp

    if case.part not in ("grid", "long"):
        return None
    b, h, g = case.batch, case.hidden, GATES[case.kind]
    weights = _draw((h, g * h), (h, g * h), (g * h,), (g * h,), scale=h**-0.5)
    state = tuple(_draw((b, h), (b, h))[: 2 if case.kind == "LSTM" else 1])

    def step(weights: Any, state: Any, x: Any) -> Any:
        a = state[0] @ weights[1]
        if case.kind == "RNN":
            h = jnp.tanh(x + a)
            return (h,), h
        if case.kind == "GRU":
            (xr, xz, xn), (r, z, n) = jnp.split(x, 3, 1), jnp.split(a + weights[3], 3, 1)
            r, z = jax.nn.sigmoid(xr + r), jax.nn.sigmoid(xz + z)
            n = jnp.tanh(xn + r * n)
            h = n + z * (state[0] - n)
            return (h,), h
        i, f, g, o = jnp.split(x + a, 4, 1)
        c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def layer(weights: Any, xs: Any, state: Any) -> Any:
        projected = xs @ weights[0] + weights[2]
        return jax.lax.scan(partial(step, weights), state, projected, unroll=unroll)[::-1]

    return _jitted(layer, case.mode, weights, _draw((case.steps, b, h))[0], state)


def flax_layers(case: Case) -> Work | None:
    """`flax.linen.RNN` over flax's own cells, under `jit`."""
    import flax.linen as nn
    import jax

    if case.part not in ("grid", "long"):
        return None
    kinds = {"RNN": nn.SimpleCell, "GRU": nn.GRUCell, "LSTM": nn.OptimizedLSTMCell}
    model = nn.RNN(kinds[case.kind](case.hidden), time_major=True)
    xs, *state = _draw((case.steps, case.batch, case.hidden), *[(case.batch, case.hidden)] * 2)
    start = tuple(state) if case.kind == "LSTM" else state[0]
    weights = model.init(jax.random.PRNGKey(0), xs, initial_carry=start)

    def layer(weights: Any, xs: Any, start: Any) -> Any:
        last, ys = model.apply(weights, xs, initial_carry=start, return_carry=True)
        return ys, last

    return _jitted(layer, case.mode, weights, xs, start)


def keras_layers(case: Case) -> Work | None:
    """Keras on JAX, under `jit`."""
    import keras

    if case.part not in ("grid", "long"):
        return None
    kind = getattr(keras.layers, "SimpleRNN" if case.kind == "RNN" else case.kind)
    model = kind(case.hidden, return_sequences=True, return_state=True)
    xs, *state = _draw((case.batch, case.steps, case.hidden), *[(case.batch, case.hidden)] * 2)
    start = state[: 2 if case.kind == "LSTM" else 1]
    model(xs, initial_state=start)
    weights, others = ([v.value for v in vs] for vs in (model.trainable_variables, model.non_trainable_variables))

    def layer(weights: Any, xs: Any, start: Any) -> Any:
        ys, *last = model.stateless_call(weights, others, xs, initial_state=start)[0]
        return ys, last

    return _jitted(layer, case.mode, weights, xs, start)


def _jitted(layer: Callable[..., Any], mode: str, *given: Any) -> Work:
    """`layer(weights, xs, start) -> ys, last` compiled: forward, or with the gradients of everything given."""
    import jax

    given = jax.tree.map(jax.numpy.asarray, given)  # outputs are shaped as xs, given[1]
    if mode == "infer":
        run = jax.jit(layer)
        return lambda: jax.block_until_ready(run(*given))
    weight = jax.numpy.asarray(_draw(given[1].shape)[0])
    gradients = jax.jit(jax.value_and_grad(lambda *all_: (layer(*all_[:3])[0] * all_[3]).sum(), argnums=(0, 1, 2)))
    return lambda: jax.block_until_ready(gradients(*given, weight))


def _onnx(case: Case) -> tuple[bytes, dict[str, Any]]:
    """A model of one ONNX operator with state in and out, and inputs for it. Its GRU resets after the product, as torch's."""
    from onnx import TensorProto, helper, numpy_helper

    b, h, g = case.batch, case.hidden, GATES[case.kind]
    states = ["h", "c"] if case.kind == "LSTM" else ["h"]
    shapes = {"X": (case.steps, b, h), **dict.fromkeys(states, (1, b, h))}
    ends = {"Y": (case.steps, 1, b, h), **{f"last_{s}": (1, b, h) for s in states}}
    weights = dict(zip("WRB", _draw((1, g * h, h), (1, g * h, h), (1, 2 * g * h), scale=h**-0.5), strict=True))
    options = {"linear_before_reset": 1} if case.kind == "GRU" else {}
    node = helper.make_node(case.kind, ["X", "W", "R", "B", "", *states], list(ends), hidden_size=h, **options)
    typed = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT)
    graph = helper.make_graph(
        [node],
        "layer",
        *([typed(name, shape=shape) for name, shape in group.items()] for group in (shapes, ends)),
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return model.SerializeToString(), dict(zip(shapes, _draw(*shapes.values()), strict=True))


def onnxruntime_operators(case: Case) -> Work | None:
    """The ONNX operator in ONNX Runtime, whole sequences or step by step with the state carried on."""
    import onnxruntime

    if case.mode == "train" or case.part == "ragged":
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _threads()
    model, given = _onnx(case)
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def step() -> None:
        given.update(zip(list(given)[1:], session.run(None, given)[1:], strict=True))

    return step if case.part == "stream" else lambda: session.run(None, given)


def openvino_operators(case: Case) -> Work | None:
    """The ONNX operator in OpenVINO, in float32."""
    import openvino

    if case.mode == "train" or case.part not in ("grid", "long"):
        return None
    model, given = _onnx(case)
    core = openvino.Core()
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": _threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(model), "CPU", hints)
    request = compiled.create_infer_request()
    for number, port in enumerate(compiled.inputs):
        request.set_input_tensor(number, openvino.Tensor(given[port.any_name]))
    return request.infer


def _threads() -> int:
    return int(os.environ["OMP_NUM_THREADS"])


class Peer(NamedTuple):
    packages: str
    build: Callable[[Case], Work | None]
    single: bool = False
    """Whether it has one thread, and is asked only where that may be faster than several."""


PEERS = {
    "recurra": Peer("recurra torch", ours),
    "recurra-lengths": Peer("recurra torch", ours_of_lengths),
    "torch": Peer("torch", torch_layers),
    "torch-1t": Peer("torch", torch_layers, single=True),
    "torch-packed": Peer("torch", torch_packed),
    "compile": Peer("torch", torch_compiled),
    "jax": Peer("jax", partial(jax_scan, unroll=1)),
    "jax-u4": Peer("jax", partial(jax_scan, unroll=4)),
    "flax": Peer("flax jax", flax_layers),
    "keras": Peer("keras jax", keras_layers),
    "ort": Peer("onnx onnxruntime", onnxruntime_operators),
    "ort-1t": Peer("onnx onnxruntime", onnxruntime_operators, single=True),
    "openvino": Peer("onnx openvino", openvino_operators),
}


# The process of a peer


def work_for(name: str) -> None:
    """Read requests as lines of JSON on standard input and answer each with a line: build a case, or time a block of it."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print
    built: list[Work] = []
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = _timed(built[0], request["seconds"]) if "seconds" in request else _build(name, request, built)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        answers.write(json.dumps(answer) + "\n")


def _build(name: str, request: dict[str, Any], built: list[Work]) -> dict[str, Any]:
    built.clear()
    gc.collect()
    work = PEERS[name].build(Case(**request))
    if work is None:
        return {"has": False}
    for _ in range(2):  # compiles, and allocates
        work()
    built.append(work)
    return {"has": True}


def _timed(work: Work, seconds: float) -> dict[str, Any]:
    """Median and least seconds of a call over samples that last `seconds` in all, and how often a second another process
    took the processor away. A sample is as many calls as take 50 microseconds, so that the clock costs nothing; the first call only
    warms up, unless it is so long that this makes no difference."""
    time.sleep(PAUSE)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw, time.perf_counter()
    first = _sample(work, 1)
    taken, calls = [first] if first > 0.2 else [], max(1, int(50e-6 / first))
    end = time.perf_counter() + seconds
    while not taken or (first <= 0.2 and time.perf_counter() < end):
        taken.append(_sample(work, calls))
    lost = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - before
    return {"median": median(taken), "least": min(taken), "lost": lost / (time.perf_counter() - began)}


def _sample(work: Work, calls: int) -> float:
    """Seconds of a call, the mean of some in a row."""
    began = time.perf_counter()
    for _ in range(calls):
        work()
    return (time.perf_counter() - began) / calls


class Worker:
    """A peer in a process of its own."""

    def __init__(self, name: str, threads: int) -> None:
        self.name, self.peer = name, PEERS[name]
        count = "1" if self.peer.single else str(threads)
        home = str(Path(tempfile.gettempdir()) / "keras")
        environment = {"OMP_NUM_THREADS": count, "JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax", "KERAS_HOME": home}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "work", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **environment},
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request; an "error" where the process has died."""
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        except (OSError, ValueError):
            return {"error": "its process died"}
        return answer

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


# A run


def wait_until_quiet(patience: float) -> bool:
    """Whether no other process wanted a processor for some milliseconds, within `patience` seconds. Linux only."""
    end, calm = time.monotonic() + patience, 0
    while calm < 3:
        if time.monotonic() > end:
            return False
        running = int(Path("/proc/loadavg").read_text().split()[3].split("/")[0])
        calm = calm + 1 if running <= 1 else 0
        time.sleep(0.003)
    return True


def block(worker: Worker, seconds: float, patience: float) -> dict[str, Any]:
    """One block of calls, again where it was preempted; "quiet" tells whether it was left alone."""
    for _ in range(4):
        quiet = wait_until_quiet(patience)
        answer = worker.ask(seconds=seconds)
        answer["quiet"] = quiet and answer.get("lost", 0) <= LOST
        if answer["quiet"] or "error" in answer or answer["median"] > 0.02:
            break
    return answer


def measure(case: Case, workers: Sequence[Worker], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One record a peer. After the first round those go on that took at most `--keep` times as long as the fastest peer, by
    their least times, with ours and torch.nn."""
    blocks: dict[Worker, list[dict[str, Any]]] = {}
    for worker in workers:
        if worker.peer.single and case.batch * case.hidden > SMALL:
            continue
        answer = worker.ask(**case._asdict())
        if "error" in answer:
            yield {**case._asdict(), "peer": worker.name, "error": answer["error"]}
        elif answer["has"]:
            blocks[worker] = []
    going = list(blocks)
    for _ in range(options.rounds):
        random.shuffle(going)  # nobody always follows the same neighbour
        for worker in going:
            blocks[worker].append(block(worker, options.seconds, options.patience))
        going = [worker for worker in going if "error" not in blocks[worker][-1]]
        beside = [blocks[w][0]["least"] for w in going if not w.name.startswith("recurra")]
        bound = options.keep * min(beside, default=0)
        going = [w for w in going if blocks[w][0]["least"] <= bound or w.name.startswith(ALWAYS)]
    for worker, told in blocks.items():
        good = [one for one in told if "error" not in one]
        if good:
            seconds, quiet = [one["median"] for one in good], sum(one["quiet"] for one in good)
            yield {**case._asdict(), "peer": worker.name, "seconds": seconds, "quiet": quiet}


def run(options: argparse.Namespace) -> None:
    """Measure all chosen cases that the file has not yet."""
    done = {_case(record) for record in _records([options.out]) if "seconds" in record}
    chosen = cases(options.parts, options.kinds, options.modes, (options.batches, options.hiddens))
    wanted = [case for case in chosen if case not in done]
    about, names = describe(options)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])  # for peers that would take them all
    with options.out.open("a", buffering=1) as out:
        out.write(json.dumps(about) + "\n")
        print(json.dumps(about), file=sys.stderr)
        workers = [Worker(name, options.threads) for name in names]
        for number, case in enumerate(wanted, 1):
            records = list(measure(case, workers, options))
            out.writelines(json.dumps(record) + "\n" for record in records)
            print(f"{number}/{len(wanted)} {_line(case, records)}", file=sys.stderr, flush=True)
        for worker in workers:
            worker.close()


def describe(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The machine, the versions and what is absent; and the names of the peers that are there."""
    from recurra.kernels import native

    versions, missing = {}, {}
    for name in options.peers:
        try:
            versions.update({package: _version(package) for package in PEERS[name].packages.split()})
        except ImportError as error:
            missing[name] = f"not installed: {error.name}"
    wait_until_quiet(options.patience)
    about = {"machine": machine(), "threads": options.threads, "peak": peak(options.threads), "versions": versions}
    return {**about, "kernels": native.described(), "missing": missing}, [n for n in options.peers if n not in missing]


def _version(package: str) -> str:
    if package == "recurra":
        import recurra

        return recurra.__version__
    return version(package)


def machine() -> str:
    """The processor's name, family and model, and the number of processors that may be used."""
    told = dict(line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in told.items()}
    name, family, model = (facts.get(key, "?") for key in ("model name", "cpu family", "model"))
    return f"{name} (family {family}, model {model}), {len(os.sched_getaffinity(0))} processors"


def peak(threads: int) -> float | None:
    """GFLOP/s of chains of multiply-adds on that many threads (peak.cpp); None without a compiler."""
    with tempfile.TemporaryDirectory() as folder:
        built, source = Path(folder) / "peak", Path(__file__).with_name("peak.cpp")
        try:
            subprocess.run(["g++", "-O3", "-march=native", "-pthread", source, "-o", built], check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        told: dict[str, float] = json.loads(
            subprocess.run([built, str(threads)], check=True, capture_output=True).stdout
        )
        return told[str(threads)]


def _line(case: Case, records: list[dict[str, Any]]) -> str:
    times = sorted((median(r["seconds"]), r["peer"]) for r in records if "seconds" in r)
    failed = [f"{r['peer']}: {r['error']}" for r in records if "error" in r]
    return " ".join([*map(str, case), *(f"{peer} {_time(seconds)}" for seconds, peer in times), *failed])


# The report


class Found(NamedTuple):
    """The seconds of each peer in each round of one case, and in how many rounds all was quiet."""

    case: Case
    times: dict[str, list[float]]
    quiet: dict[str, int]

    def ratio(self, peer: str) -> float:
        """How many times as long as recurra the peer takes: the median over rounds."""
        return median(self.ratios(peer))

    def ratios(self, peer: str) -> list[float]:
        return [theirs / mine for theirs, mine in zip(self.times[peer], self.times["recurra"], strict=False)]

    def fastest(self, among: Callable[[str], bool] = lambda name: True) -> str | None:
        names = [name for name in self.times if not name.startswith("recurra") and among(name)]
        return min(names, key=self.ratio, default=None)

    def torch(self) -> str | None:
        """The faster of torch.nn with one and with all threads."""
        return self.fastest(lambda name: name in ("torch", "torch-1t"))

    @property
    def gflops(self) -> float:
        return self.case.flops / median(self.times["recurra"]) / 1e9


def report(options: argparse.Namespace) -> None:
    """Print Markdown from the files of `run`; a later measurement of a case replaces an earlier one. Pages in Markdown follow as
    they are, their headings one level lower."""
    records = list(_records(file for file in options.files if file.suffix != ".md"))
    about = [record for record in records if "machine" in record]
    limit = options.peak or max((one["peak"] or 0 for one in about), default=0)
    found = sorted(_found(records), key=lambda f: (PARTS.index(f.case.part), list(GATES).index(f.case.kind), f.case))
    for line in [
        *_setting(about, limit),
        *_summary(found),
        *_behind(found),
        *_tables(found, limit),
        *_failures(records),
        *_pages(file for file in options.files if file.suffix == ".md"),
    ]:
        print(line)


def _pages(files: Iterable[Path]) -> Iterator[str]:
    for file in files:
        yield ""
        for line in file.read_text(encoding="utf-8").splitlines():
            yield f"#{line}" if line.startswith("#") else line


def _records(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    for file in filter(Path.exists, files):
        yield from map(json.loads, file.read_text(encoding="utf-8").splitlines())


def _case(record: dict[str, Any]) -> Case:
    return Case(*(record[field] for field in Case._fields))


def _found(records: list[dict[str, Any]]) -> list[Found]:
    runs: dict[Case, tuple[int, Found]] = {}
    run = 0
    for record in records:
        run += "machine" in record
        if "seconds" not in record:
            continue
        case = _case(record)
        if runs.get(case, (0, None))[0] != run:
            runs[case] = run, Found(case, {}, {})
        runs[case][1].times[record["peer"]] = record["seconds"]
        runs[case][1].quiet[record["peer"]] = record["quiet"]
    return [found for _, found in runs.values() if "recurra" in found.times and found.fastest()]


def _setting(about: list[dict[str, Any]], limit: float) -> list[str]:
    first, versions = about[-1], {key: value for one in about for key, value in one["versions"].items()}
    missing = {f"{name} ({why})" for one in about for name, why in one["missing"].items()}
    lines = [
        "# Kernels beside other libraries",
        "",
        "Made by `benchmarks/kernels.py`. float32, one layer, as many inputs as hidden units; `infer` is the forward pass without",
        "gradients, `train` adds the gradients of weights, inputs and start state; outputs of every step and the last state.",
        "",
        f"Machine: {first['machine']}; {first['threads']} threads; kernels: {first['kernels']}.",
        f"Peak: {limit:.0f} GFLOP/s (multiply-adds in registers, `benchmarks/peak.cpp`)."
        if limit
        else "Peak: unknown.",
        f"Versions: {', '.join(f'{name} {value}' for name, value in versions.items())}."
        + (f" Not measured: {', '.join(sorted(missing))}." if missing else ""),
        "",
        "GFLOP/s counts the matrix products: 2 x rows x steps x (inputs + hidden) x gates x hidden forward, three times that for",
        "training. A ratio is time of the peer / time of recurra, the median over rounds in which all take turns: above 1, recurra",
        "is faster. `torch.nn` is the faster of all threads and one thread; recurra has one setting. `-u4` is scan with unroll=4,",
        "`-1t` one thread.",
    ]
    return lines


def _summary(found: list[Found]) -> list[str]:
    lines = ["", "## Geometric means of the ratios", ""]
    lines += [
        "| part | layer | mode | cases | fastest peer / recurra | torch.nn / recurra | first in |",
        "| --- " * 7 + "|",
    ]
    for (part, kind, mode), group in groupby(found, lambda f: f.case[:3]):
        each = list(group)
        beside = [f.ratio(f.fastest() or "") for f in each]
        torch = [f.ratio(name) for f in each if (name := f.torch())]
        first = sum(ratio >= 1 for ratio in beside)
        means = f"{_mean(beside)} | {_mean(torch)}"
        lines.append(f"| {part} | {kind} | {mode} | {len(each)} | {means} | {first} of {len(each)} |")
    return lines


def _mean(ratios: list[float]) -> str:
    return f"{exp(sum(map(log, ratios)) / len(ratios)):.2f}" if ratios else ""


def _behind(found: list[Found]) -> list[str]:
    """Every case in which a peer is faster, with the ratios of the rounds."""
    lines = []
    for f in found:
        peer = f.fastest() or ""
        if f.ratio(peer) < 1:
            rounds = f.ratios(peer)
            note = ", a tie: the rounds disagree" if max(rounds) >= 1 else ""
            lines.append(
                f"- {_words(f.case)}: {peer} {f.ratio(peer):.2f} ({min(rounds):.2f} to {max(rounds):.2f}{note})"
            )
    return ["", "## Where recurra is not first", "", *(lines or ["Nowhere."])]


def _words(case: Case) -> str:
    return f"{case.part} {case.kind} {case.mode}, batch {case.batch}, hidden {case.hidden}"


def _tables(found: list[Found], limit: float) -> list[str]:
    lines = []
    for (part, kind, mode), group in groupby(found, lambda f: f.case[:3]):
        each = list(group)
        lines += ["", f"## {part}: {kind}, {mode}, {each[0].case.steps} steps", ""]
        lines += _wide(each) if part in ("ragged", "stream") else _narrow(each, limit)
        noisy = [f"({f.case.batch}, {f.case.hidden})" for f in each if f.quiet["recurra"] < len(f.times["recurra"])]
        lines += ["", f"Other processes ran beside: {', '.join(noisy)}."] if noisy else []
    return lines


def _narrow(found: list[Found], limit: float) -> list[str]:
    lines = [
        "| batch | hidden | recurra | GFLOP/s | of peak | fastest peer | ratio | torch.nn | ratio |",
        "| --- " * 9 + "|",
    ]
    for f in found:
        share = f"{f.gflops / limit:.0%}" if limit else ""
        row = [f.case.batch, f.case.hidden, _time(median(f.times["recurra"])), f"{f.gflops:.0f}", share]
        peer, torch = f.fastest() or "", f.torch()
        row += [f"{peer} {_time(median(f.times[peer]))}", f"**{f.ratio(peer):.2f}**"]
        row += [_time(median(f.times[torch])), f"{f.ratio(torch):.2f}"] if torch else ["", ""]
        lines.append(f"| {' | '.join(map(str, row))} |")
    return lines


def _wide(found: list[Found]) -> list[str]:
    """Every peer in a column, with its ratio."""
    peers = [name for name in PEERS if name != "recurra" and any(name in f.times for f in found)]
    head = ["batch", "hidden", "recurra", "GFLOP/s", *peers]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for f in found:
        row = [f.case.batch, f.case.hidden, _time(median(f.times["recurra"])), f"{f.gflops:.1f}"]
        row += [f"{_time(median(f.times[p]))} ({f.ratio(p):.2f})" if p in f.times else "" for p in peers]
        lines.append(f"| {' | '.join(map(str, row))} |")
    return lines


def _failures(records: list[dict[str, Any]]) -> list[str]:
    lines = [
        f"- {record['peer']}, {_words(_case(record))}: {record['error']}" for record in records if "error" in record
    ]
    return ["", "## What failed", "", *lines] if lines else []


def _time(seconds: float) -> str:
    """Three figures, in microseconds or milliseconds."""
    return f"{seconds * 1e6:.3g} µs" if seconds < 0.9995e-3 else f"{seconds * 1e3:.{2 if seconds < 0.01 else 1}f} ms"


def main() -> None:
    if sys.argv[1:2] == ["work"]:
        work_for(sys.argv[2])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    timed = commands.add_parser("run", help="measure, and add records to a file")
    timed.set_defaults(command=run)
    for name, values in [("parts", PARTS), ("kinds", GATES), ("modes", MODES), ("peers", PEERS)]:
        default = [value for value in values if value != "compile"]
        timed.add_argument(f"--{name}", type=_one_of(values), default=default, help=f"of {','.join(values)}")
    for name in ("batches", "hiddens"):
        timed.add_argument(f"--{name}", type=lambda text: [int(n) for n in text.split(",")], default=[])
    timed.add_argument("--rounds", type=int, default=3)
    timed.add_argument("--seconds", type=float, default=0.04, help="of a block of calls")
    timed.add_argument("--patience", type=float, default=5.0, help="seconds to wait for a quiet machine")
    timed.add_argument("--keep", type=float, default=2.0, help="peers slower by this factor have one round")
    timed.add_argument("--threads", type=int, default=min(2, len(os.sched_getaffinity(0))))
    timed.add_argument("--out", type=Path, default=Path("results.jsonl"))
    told = commands.add_parser("report", help="print Markdown from such files, and from pages of Markdown as they are")
    told.set_defaults(command=report)
    told.add_argument("files", type=Path, nargs="+")
    told.add_argument("--peak", type=float, help="GFLOP/s; else what the run measured")
    options = parser.parse_args()
    options.command(options)


def _one_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        if unknown := set(text.split(",")) - set(known):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return text.split(",")

    return names


if __name__ == "__main__":
    main()
