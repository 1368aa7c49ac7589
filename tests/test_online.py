"""Learning from a stream: forecast first, learn then, keep nothing; and a run that goes on where it stopped."""

import gc
import io
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Answer, Shell
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import recurra
import recurra.errors
from recurra import online, storage
from recurra.cells import CELLS
from recurra.data.batch import Batch
from recurra.errors import DataError, RecurraError, UsageError
from recurra.forecasting import Frames
from recurra.learn import BPTT, DNI, KFRTRL, RTRL, UORO, EProp, ForwardGradient, Learner, SnAp1
from recurra.models import language_model
from recurra.online import FIRST, Online, Row, Rows
from recurra.run import Asked
from recurra.state import State

SOURCES = str(Path(recurra.errors.__file__).parents[1])
BITS = ["model.safetensors", "optimizer.safetensors", "carry.safetensors"]


class Next:
    """The least task: the next of some numbers, by squared error."""

    def __init__(
        self, cell: str = "elman", units: int = 3, features: int = 2, dtype: torch.dtype = torch.float64
    ) -> None:
        torch.manual_seed(0)
        self.model: Any = Frames(CELLS[cell](features, units), features).to(dtype)

    def loss(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        said, state = self.model.unroll(batch.inputs, state, batch.lengths)
        return (said - batch.targets).square().mean(2).sum() / batch.weight, state


def numbers(steps: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """`[steps, 1, 2]`."""
    t = torch.arange(steps, dtype=dtype)
    return torch.stack([torch.sin(t), torch.cos(0.7 * t)], 1)[:, None]


def by_hand(task: Next, xs: np.ndarray, rate: float) -> tuple[list[float], list[np.ndarray], dict[str, np.ndarray]]:
    """Online rtrl of a tanh network by the equations of Williams & Zipser, weights changed at each step: losses, outputs and
    what the weights become."""
    w = {name: one.detach().numpy().copy() for name, one in task.model.named_parameters()}
    of = lambda name: w[f"core.{name}"]  # noqa: E731
    units, features = of("weight_ih").shape
    h, losses, said = np.zeros(units), [], []
    influence = {name: np.zeros((units, *w[name].shape)) for name in w if name.startswith("core.")}
    for x, y in pairwise(xs):
        before = h
        h = np.tanh(of("weight_ih") @ x + of("bias_ih") + of("weight_hh") @ h + of("bias_hh"))
        slope = np.diag(1 - h**2)
        inputs = {"weight_ih": x, "weight_hh": before}
        for name, m in influence.items():
            kind = name.removeprefix("core.")
            now = slope if kind.startswith("bias") else np.einsum("su,k->suk", slope, inputs[kind])
            influence[name] = np.tensordot(slope @ of("weight_hh"), m, 1) + now
        o = w["readout.weight"] @ h + w["readout.bias"]
        error = 2 * (o - y) / features
        back = w["readout.weight"].T @ error
        changes = {name: np.tensordot(back, m, 1) for name, m in influence.items()}
        changes |= {"readout.weight": np.outer(error, h), "readout.bias": error}
        losses.append(float(((o - y) ** 2).mean()))
        said.append(o)
        w = {name: one - rate * changes[name] for name, one in w.items()}
    return losses, said, w


def test_online_rtrl_is_that_of_the_equations_step_by_step() -> None:
    task, xs, rate = Next(), numbers(41), 0.05
    losses, said, weights = by_hand(task, xs[:, 0].numpy(), rate)
    learning = Online(task, RTRL(), torch.optim.SGD(task.model.parameters(), lr=rate), clip=0)
    for t in range(40):
        loss, output = learning(xs[t], xs[t + 1])
        assert loss == pytest.approx(losses[t], rel=1e-9)
        np.testing.assert_allclose(output[0].numpy(), said[t], rtol=1e-9)
    for name, one in task.model.named_parameters():
        np.testing.assert_allclose(one.detach().numpy(), weights[name], rtol=1e-9, atol=1e-12)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "learner", [RTRL(), SnAp1(), UORO(), KFRTRL(), EProp(), DNI()], ids=lambda one: type(one).__name__
)
def test_what_is_said_does_not_know_the_truth_and_the_loss_is_of_what_was_said(learner: Learner) -> None:
    xs, outputs = numbers(8), []
    for end in (1.0, 99.0):
        task = Next()
        learning = Online(task, learner, torch.optim.Adam(task.model.parameters(), lr=0.1))
        for t in range(6):
            loss, output = learning(xs[t], end * xs[t + 1] if t == 5 else xs[t + 1])
        assert loss == pytest.approx(float((output - end * xs[6]).square().mean()))
        before = [one.detach().clone() for one in task.model.parameters()]
        ahead = learning.forecast(xs[6])
        assert all(torch.equal(a, b) for a, b in zip(before, task.model.parameters(), strict=True))
        torch.testing.assert_close(learning(xs[6], xs[7])[1], ahead)
        outputs.append((output, ahead))
    assert torch.equal(outputs[0][0], outputs[1][0]) and not torch.equal(outputs[0][1], outputs[1][1])


def test_tokens_are_learnt_as_numbers_are() -> None:
    class Tokens:
        def __init__(self) -> None:
            torch.manual_seed(0)
            self.model: Any = language_model(3, cell="gru", hidden=6, embedding=4)

        def loss(self, batch: Batch, state: State) -> tuple[Tensor, State]:
            scores, state = self.model.unroll(batch.inputs, state, batch.lengths)
            nats = torch.nn.functional.cross_entropy(scores.flatten(0, 1), batch.targets.flatten(), reduction="sum")
            return nats / batch.weight, state

    task = Tokens()
    learning = Online(task, SnAp1(), torch.optim.Adam(task.model.parameters(), lr=0.03))
    ids = [torch.tensor([t % 3, (t + 1) % 3]) for t in range(61)]
    losses = [learning(x, y)[0] for x, y in pairwise(ids)]
    assert losses[0] == pytest.approx(math.log(3), abs=0.3) and losses[-1] < 0.2


@pytest.mark.parametrize(
    ("learner", "words"),
    [(BPTT(), "nothing but"), (BPTT(window=5, every=1), "nothing but"), (ForwardGradient(), "nothing but")],
)
def test_a_learner_that_needs_sequences_is_refused_in_words(learner: Learner, words: str) -> None:
    task, xs = Next(), numbers(2)
    learning = Online(task, learner, torch.optim.SGD(task.model.parameters()))
    with pytest.raises(UsageError, match=words):
        learning(xs[0], xs[1])


def test_what_the_learner_does_not_take_is_refused_in_its_words() -> None:
    task, xs = Next("gru"), numbers(2)
    with pytest.raises(UsageError, match="cannot learn from a stream: it is for one layer of elman"):
        Online(task, KFRTRL(), torch.optim.SGD(task.model.parameters()))(xs[0], xs[1])


def test_a_step_that_is_not_finite_is_left_out_and_too_many_of_them_are_too_many() -> None:
    task, xs = Next(), numbers(20)
    learning = Online(task, SnAp1(), torch.optim.SGD(task.model.parameters(), lr=0.1))
    for t in range(3):
        learning(xs[t], xs[t + 1])
    before = [one.detach().clone() for one in task.model.parameters()]
    loss, _ = learning(xs[3], torch.full_like(xs[4], math.inf))
    assert not math.isfinite(loss)
    assert all(torch.equal(a, b) for a, b in zip(before, task.model.parameters(), strict=True))
    fresh, _ = task.model(xs[4], task.model.initial_state(1))
    torch.testing.assert_close(learning(xs[4], xs[5])[1], fresh.detach())
    with pytest.raises(RecurraError, match="10 times in a row, at step 15"):
        for _ in range(10):
            learning(xs[4], torch.full_like(xs[4], math.nan))


# --- memory ---


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def held() -> int:
    gc.collect()
    return sum(issubclass(type(one), Tensor) for one in gc.get_objects())


def went_on(learner: Learner, steps: int, look: Callable[[], int], after: int) -> tuple[int, int]:
    """What is held after some steps, and after all."""
    task = Next(units=8, dtype=torch.float32)
    learning = Online(task, learner, torch.optim.Adam(task.model.parameters()))
    xs, early = numbers(50, torch.float32), 0
    for t in range(steps):
        learning(xs[t % 49], xs[t % 49 + 1])
        if t == after:
            early = look()
    return early, look()


@pytest.mark.parametrize("learner", [RTRL(), SnAp1(), UORO()], ids=lambda one: type(one).__name__)
def test_no_step_is_kept(learner: Learner) -> None:
    early, late = went_on(learner, 120, held, after=60)
    assert late <= early  # less where another test left something behind


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not say what is resident")
@pytest.mark.parametrize("learner", [RTRL(), SnAp1(), UORO()], ids=lambda one: type(one).__name__)
def test_memory_does_not_grow_with_the_steps(learner: Learner) -> None:
    early, late = went_on(learner, 100_000, resident, after=1_000)
    assert late - early < 4 * 2**20, f"{(late - early) / 2**20:.1f} MiB more after 99,000 steps"


# --- rows ---


def rows_of(lines: Sequence[str], names: Sequence[str] = (), some: bool = False) -> tuple[list[Row], list[str], Rows]:
    said: list[str] = []
    rows = Rows(lines, Asked(), lambda kind, text: said.append(text), names, some)
    return list(rows), said, rows


BAD = [
    ("nonsense", "is no JSON"),
    ('{"a": 1, "b": 2', "is no JSON"),
    ("[" * 100_000, "is no JSON"),
    ("3", "is no object and no list"),
    ("{}", "is no object and no list"),
    ('{"a": 1}', "has a, wanted a, b"),
    ('{"a": 1, "c": 2}', "has a, c, wanted a, b"),
    ('{"a": 1, "b": 2, "c": 3}', "has a, b, c, wanted a, b"),
    ("[1, 2]", "has 1, 2, wanted a, b"),
    ('{"a": 1, "b": NaN}', "has NaN as 'b', wanted a number"),
    ('{"a": 1, "b": -Infinity}', "has -Infinity as 'b'"),
    ('{"a": 1, "b": "2"}', "has \"2\" as 'b'"),
    ('{"a": null, "b": 2}', "has null as 'a'"),
    ('{"a": true, "b": 2}', "has true as 'a'"),
    ('{"a": [1], "b": 2}', "has [1] as 'a'"),
    (f'{{"a": 1{"0" * 50}, "b": 2}}', "as 'a', wanted a number"),
]


@pytest.mark.parametrize(("line", "words"), BAD, ids=range(len(BAD)))
def test_a_bad_row_is_told_with_its_line_and_passed_over(line: str, words: str) -> None:
    found, said, rows = rows_of(['{"a": 1, "b": 2}', "", line, '{"b": 4, "a": 3}'])
    assert [(row.line, row.values.tolist()) for row in found] == [(1, [1, 2]), (4, [3, 4])]
    assert len(said) == rows.bad == 1 and said[0].startswith("line 3 ") and words in said[0], said


@given(st.lists(st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=2), min_size=1, max_size=5), st.booleans())
def test_rows_are_what_was_written(values: list[list[float]], listed: bool) -> None:
    lines = [json.dumps(row if listed else {"x": row[0], "y": row[1]}) for row in values]
    found, said, rows = rows_of(lines)
    assert [row.values.tolist() for row in found] == values and not said
    assert [json.dumps(row.named(rows.names, row.values)) for row in found] == lines


def test_a_bad_first_row_gives_no_names_and_some_names_leave_others_alone() -> None:
    found, _, rows = rows_of(['{"t": "now"}', "[1]", "[2, 3]", "[4]"])
    assert [row.line for row in found] == [2, 4] and rows.names == ["1"]
    found, said, _ = rows_of(['{"t": "now", "y": 1}', '{"y": 2}', '{"t": 3}'], ["y"], some=True)
    assert [row.values.tolist() for row in found] == [[1], [2]] and "line 3 has t, wanted y" in said[0]


def test_no_row_among_the_first_is_fatal_and_a_late_one_is_not() -> None:
    with pytest.raises(DataError, match="the first 100 are bad: line 100 is no JSON"):
        rows_of(["x"] * 500)
    with pytest.raises(DataError, match="all of them are bad: line 2 is no JSON"):
        rows_of(["x"] * 2)
    assert len(rows_of(["x"] * 99 + ["[1]"] + ["x"] * 500)[0]) == 1


# --- the run ---


def lines_of(count: int, begin: int = 0) -> list[str]:
    """Two numbers that say each other's next: known exactly from the row before, where the last value is far off."""
    return [json.dumps({"a": 10 + 3 * (-1) ** t, "b": -5 + (-1) ** (t + 1)}) for t in range(begin, begin + count)]


def listened(shell: Shell, monkeypatch: pytest.MonkeyPatch, lines: Sequence[str], *options: object) -> Answer:
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
    return shell("train", "forecast", "-", "--hidden", 4, "--cell", "elman", *options)


def test_rows_are_forecast_learnt_and_told(shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = lines_of(220)
    lines.insert(150, '{"a": "?", "b": 1}')
    answer = listened(shell, monkeypatch, lines, "--out", "run", "--json", "--set", "optimizer.rate=0.02")
    assert answer.code == 0, answer.err
    told = [json.loads(line) for line in answer.out.splitlines()]
    assert [one["line"] for one in told] == [*range(101, 151), *range(152, 222)]
    for one in told:
        assert one["truth"] == json.loads(lines[one["line"] - 1])
        assert all(one["error"][name] == pytest.approx(one["truth"][name] - one["forecast"][name]) for name in "ab")
    assert max(abs(one["error"]["a"]) for one in told[-10:]) < 0.3  # of steps of 6
    assert "line 151 has" in answer.err and "learner snap1" in answer.err
    report = storage.read_json(tmp_path / "run" / "best" / "assets.json")
    squares = [((one["error"]["a"] / 3) ** 2 + one["error"]["b"] ** 2) / 2 for one in told]
    assert report["scores"]["mse_scaled"] == pytest.approx(np.mean(squares), rel=1e-6)
    assert report["floors"]["last value"] == pytest.approx(4)
    assert (report["rows"], report["n"], report["passed_over"]) == (220, 120, 1)
    again = listened(shell, monkeypatch, lines_of(30), "--out", "run", "--set", "optimizer.rate=0.02")
    assert "going on after 219 rows" in again.err and "250 rows" in again.out and "The run is in run" in again.out


def test_a_forecast_does_not_know_its_row(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    for last in ('{"a": 7, "b": -4}', '{"a": 900, "b": 1}'):
        answer = listened(shell, monkeypatch, [*lines_of(104), last], "--out", f"run{len(told)}", "--json")
        told.append(json.loads(answer.out.splitlines()[-1]))
    assert told[0]["forecast"] == told[1]["forecast"] and told[0]["error"] != told[1]["error"]


def test_the_bundle_says_what_the_stream_would_be_told(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing is learnt, whoever reads all rows at once knows what the stream knows."""
    lines = [json.dumps([math.sin(t), t / 50]) for t in range(130)]
    answer = listened(shell, monkeypatch, lines, "--out", "run", "--json", "--set", "optimizer.rate=1e-20")
    told = json.loads(answer.out.splitlines()[-1])
    task = recurra.load("run")
    rows = np.array([json.loads(line) for line in lines])
    assert [one["mean"] for one in task.predict(rows[:-1])] == pytest.approx(told["forecast"], rel=1e-5)
    scale = task.known["scale"]  # type: ignore[attr-defined]
    np.testing.assert_allclose(scale, [rows[:FIRST].mean(0), rows[:FIRST].std(0)])
    Path("new.csv").write_text(
        "when,1,2\n" + "".join(f"2024-01-{t + 1:02},{a},{b}\n" for t, (a, b) in enumerate(rows[:9]))
    )
    assert [one["mean"] for one in task.predict("new.csv")] == pytest.approx(
        [one["mean"] for one in task.predict(rows[:9])]
    )


class Stop(Exception):  # noqa: N818 - what stops a process is no error of its own
    pass


@pytest.mark.parametrize("learner", ["snap1", "uoro", "rtrl"])
def test_a_stream_that_was_stopped_goes_on_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, learner: str
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    noisy = np.random.default_rng(0).normal(size=(140, 2)).cumsum(0)
    lines = [json.dumps(row) for row in noisy.tolist()]

    def listen(out: str, lines: list[str], every: float, stop: int | None = None) -> list[Any]:
        said: list[Any] = []

        def tell(kind: str, **fields: Any) -> None:
            said.append((fields["forecast"], fields["truth"]) if kind == "row" else None)
            if stop is not None and len(said) > stop:
                raise Stop

        values = {"learner": {"name": learner}, "model": {"hidden": 4}, "cell": {"name": "elman"}}
        online.listen(lines, tmp_path / out, values | {"train": {"checkpoint_seconds": every, "threads": 1}}, tell)
        return [one for one in said if one]

    monkeypatch.setattr(online, "TOLD_EVERY", math.inf)
    whole = listen("a", lines, 1e9)
    parts = listen("b", lines[:118], 1e9)
    parts += listen("b", lines[118:119], 1e9) + listen("b", lines[119:], 1e9)
    assert parts == whole and len(whole) == 40
    folders = [
        storage.newest(tmp_path / one / "checkpoints", {*BITS, "rng.safetensors", "state.json"})[0] for one in "ab"
    ]
    for name in BITS:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name


def test_rows_that_teach_names_and_scales_are_learnt_once_whatever_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(online, "TOLD_EVERY", 0)
    values = {"model": {"hidden": 3}, "cell": {"name": "elman"}, "train": {"checkpoint_seconds": 1e-9}}

    def quiet(kind: str, **fields: Any) -> None:
        pass

    def stopping(kind: str, **fields: Any) -> None:
        if kind == "heard" and fields["words"].startswith("21 rows"):
            raise Stop

    online.listen(lines_of(40), tmp_path / "a", values, quiet)
    with pytest.raises(Stop):
        online.listen(lines_of(40), tmp_path / "b", values, stopping)
    online.listen([], tmp_path / "b", values, quiet)
    weights = [(tmp_path / one / "best" / "model.safetensors").read_bytes() for one in "ab"]
    assert weights[0] == weights[1]


def test_an_interrupted_stream_is_saved_and_goes_on(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "recurra", "train", "forecast", "-", "--out", str(tmp_path / "run"), "--json"]
    arguments += ["--cell", "elman", "--hidden", "3", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write("".join(line + "\n" for line in lines_of(103)))
    child.stdin.flush()
    told = [json.loads(child.stdout.readline()) for _ in range(3)]
    assert [one["line"] for one in told] == [101, 102, 103]
    child.send_signal(signal.SIGINT)  # while it waits for a row that does not come
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130 and "stopped after 103 rows, and saved" in err and "Traceback" not in err
    assert recurra.load(tmp_path / "run").predict(np.ones((3, 2)))


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (
            ["--learner", "bptt"],
            2,
            "the learner bptt cannot learn from a stream: it carries nothing but the network's state",
        ),
        (["--learner", "forward-gradient"], 2, "take --learner snap1, rtrl or uoro"),
        (["--learner", "rtrl-diagonal"], 2, "the units of Elman see each other"),
        (["--learner", "uoro", "--cell", "window"], 2, "no weight has a part in its state"),
        (["--epochs", "3"], 2, "train.epochs was given"),
        (["--set", "train.rows=4"], 2, "train.rows was given"),
        (["--set", "task.output=point"], 2, "task.output was point"),
        (["--set", "task.horizon=3"], 2, "leave out task.horizon"),
        (["--set", "task.id=a"], 2, "task.id was given"),
        (["--set", "task.target=z"], 3, "has a, b, wanted z"),
        (["--valid", "x.csv"], 2, "without --valid"),
    ],
)
def test_what_a_stream_does_not_have_is_refused_in_words(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: list[str], code: int, words: str
) -> None:
    answer = listened(shell, monkeypatch, lines_of(20), *options, "--out", "run")
    assert answer.code == code and words in answer.said, answer.err
    assert not (tmp_path / "run" / "config.toml").exists()


@pytest.mark.parametrize(("lines", "words"), [([], "has no row"), (["x", "[]"], "all of them are bad: line 2")])
def test_a_stream_without_rows_is_bad_data(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, lines: list[str], words: str
) -> None:
    answer = listened(shell, monkeypatch, lines, "--out", "run")
    assert answer.code == 3 and words in answer.said


def test_a_run_of_a_stream_and_one_of_files_are_told_apart(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert listened(shell, monkeypatch, lines_of(12), "--out", "run").code == 0
    assert recurra.load("run").config.train.rows == 1
    (tmp_path / "t.csv").write_text("a,b\n" + "1,2\n3,4\n" * 20)
    answer = shell("train", "forecast", "t.csv", "--out", "run", "--hidden", 4, "--cell", "elman")
    assert answer.code == 2 and "was begun on standard input; given now: t.csv (" in answer.said
    assert shell("train", "language", "-", "--out", "other").said.endswith("give files")


@pytest.mark.parametrize(("cell", "learner"), [("gru", "snap1"), ("lstm-layernorm", "rtrl")])
def test_the_learner_is_the_first_that_takes_the_cell(tmp_path: Path, cell: str, learner: str) -> None:
    values = {"cell": {"name": cell}, "model": {"hidden": 3}}
    done = online.listen(lines_of(3), tmp_path / "run", values, lambda kind, **fields: None)
    assert done.task.config.learner.name == learner and done.report["rows"] == 3
