"""The promise of resuming: whatever stops a training, it goes on to the very bits of one that was never stopped."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import recurra
import recurra.errors
from recurra import storage
from recurra.cells import CELLS
from recurra.errors import DamagedError, RecurraError, UsageError
from recurra.fit import OPTIMIZERS

SOURCES = str(Path(recurra.errors.__file__).parents[1])
BITS = ["model.safetensors", "optimizer.safetensors", "carry.safetensors"]
SETTINGS = [
    *("model.dropout=0.2", "model.recurrent_dropout=0.2", "model.input_dropout=0.1", "train.patience=1000"),
    *("train.rows=4", "train.chunk=8", "train.checkpoint_seconds=0.05", "train.validations=12"),
]


def write_text(path: Path, size: int = 4_000, seed: int = 0) -> Path:
    some = random.Random(seed)
    path.write_text("".join(some.choice(["the ", "a ", "cat ", "dog\n", "sat ", "é "]) for _ in range(size // 4)))
    return path


def command(text: Path, out: Path, *budget: str) -> list[str]:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    budget = budget or ("--steps", "300")
    shape = ["--hidden", "8", "--layers", "2", "--threads", "1"]
    return ["train", "language", str(text), "--out", str(out), *budget, *shape, *settings]


class Child:
    """A training in a process of its own, whose standard error is read line by line."""

    def __init__(self, arguments: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "recurra", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": SOURCES, "OMP_NUM_THREADS": "1"},
        )
        self.said = ""

    def wait_for(self, words: str) -> None:
        """Until a line that holds `words` was said; asserts that it is said at all."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line
            if words in line:
                return
        self.end()
        raise AssertionError(f"never said {words!r}: {self.said}")

    def end(self, number: int | None = None) -> int:
        """Send a signal, if any, and wait for the end."""
        if number is not None:
            self.process.send_signal(number)
        self.out, rest = self.process.communicate(timeout=120)
        self.said += rest
        return self.process.returncode


def run(arguments: list[str]) -> Child:
    child = Child(arguments)
    child.end()
    return child


def bits_of(out: Path) -> dict[str, bytes]:
    """The bits that a training comes to: the best model, and the last checkpoint's tensors."""
    last, _ = storage.newest(out / "checkpoints", {*BITS, "rng.safetensors", "state.json"})
    assert last is not None
    progress = json.loads((last / "state.json").read_text())["progress"]
    told = {key: progress[key] for key in ("step", "best", "best_step", "best_train", "stale", "ended")}
    found = {"best": (out / "best" / "model.safetensors").read_bytes(), "progress": json.dumps(told).encode()}
    return found | {name: (last / name).read_bytes() for name in [*BITS, "rng.safetensors"]}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, text: Path) -> dict[str, bytes]:
    """The bits of a training that was never stopped."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    child = run(command(text, out))
    assert child.process.returncode == 0, child.said
    return bits_of(out)


def killed_until_done(text: Path, out: Path, kills: int, seed: int, longest: float) -> int:
    """Train with so many kills, then to the end. Gives the kills that met a training under way.

    The first comes while the text is read, the second before there is a checkpoint, all others at random instants.
    """
    delays, met = random.Random(seed), 0
    for number in range(kills):
        child = Child(command(text, out))
        child.wait_for("reading" if number == 0 else "run folder")
        time.sleep(delays.uniform(0, longest) if number > 1 else 0)
        if child.end(signal.SIGKILL) == 0:
            break
        met += 1
    child = run(command(text, out))
    assert child.process.returncode == 0, child.said
    return met


def test_a_training_killed_ten_times_ends_at_the_bits_of_an_unbroken_one(
    text: Path, tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    met = killed_until_done(text, tmp_path / "run", kills=10, seed=1, longest=0.25)
    assert met >= 4
    assert bits_of(tmp_path / "run") == unbroken


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_two_hundred_kills_change_no_bit(text: Path, tmp_path: Path, unbroken: dict[str, bytes]) -> None:
    met = 0
    for number in range(100):
        out = tmp_path / f"run-{number}"
        met += killed_until_done(text, out, kills=25, seed=100 + number, longest=0.25)
        assert bits_of(out) == unbroken
        shutil.rmtree(out)
        if met >= 200:
            return
    raise AssertionError(f"only {met} kills met a training under way")


def test_a_kill_during_the_timing_leaves_a_folder_that_begins_anew(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    child = Child(command(text, out, "--minutes", "1"))
    child.wait_for("timing")
    time.sleep(0.2)
    child.end(signal.SIGKILL)
    assert not (out / "config.toml").exists()
    recurra.train("language", text, out=out, steps=3, hidden=4, threads=1, settings=small())


def refuse_a_second_training(text: Path, out: Path, first: Child) -> None:
    first.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(RecurraError, match=rf"another training writes to .*process {first.process.pid}") as caught:
            recurra.train("language", text, out=out)
        assert caught.value.exit_code == 1
    finally:
        first.process.send_signal(signal.SIGCONT)


def test_an_interrupted_training_that_no_second_one_could_disturb_goes_on_to_the_same_bits(
    text: Path, tmp_path: Path, unbroken: dict[str, bytes]
) -> None:
    out = tmp_path / "run"
    for number, code in [(signal.SIGINT, 130), (signal.SIGTERM, 143)]:
        child = Child(command(text, out))
        child.wait_for("run folder")
        time.sleep(0.15)
        refuse_a_second_training(text, out, child)
        assert child.end(number) == code, child.said
        assert "saved" in child.said.splitlines()[-1]
        assert "Traceback" not in child.said
        recurra.load(out)  # a model can be used after any stop
    child = run(command(text, out))
    assert child.process.returncode == 0, child.said
    assert "going on from step" in child.said
    assert bits_of(out) == unbroken


# In one process


@pytest.fixture
def unflushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for the disk: nothing here cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Stop(Exception):  # noqa: N818 - what a caller's `tell` may raise
    """Raised from `tell`, as a caller may."""


def small(**sections: dict[str, Any]) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "model": {"dropout": 0.2, "recurrent_dropout": 0.2, "input_dropout": 0.1},
        "train": {"rows": 4, "chunk": 8, "checkpoint_seconds": 1e-9, "validations": 6, "patience": 1000},
        "optimizer": {"warmup": 5},
    }
    for section, fields in sections.items():
        settings.setdefault(section, {}).update(fields)
    return settings


def train(text: Path, out: Path, settings: dict[str, Any], stop_at: int = -1, **short: Any) -> list[str]:
    """Train in this process; with `stop_at`, `tell` raises at that step. Gives the complaints."""
    complaints: list[str] = []

    def tell(kind: str, **fields: Any) -> None:
        complaints.extend([fields["text"]] if kind == "complaint" else [])
        if kind == "step" and fields["step"] == stop_at:
            raise Stop

    short = {"steps": 12, "hidden": 6, "layers": 2, "threads": 1, **short}
    try:
        recurra.train("language", text, out=out, settings=settings, tell=tell, **short)
    except Stop:
        assert stop_at >= 0
    return complaints


@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [
        *zip(sorted(OPTIMIZERS), ["cosine", "plateau", "constant"] * 2, strict=True),
        ("adamw", "cosine"),
        ("adamw", "plateau"),
    ],
)
@pytest.mark.usefixtures("unflushed")
def test_every_optimizer_and_schedule_resumes_exactly(
    optimizer: str, schedule: str, text: Path, tmp_path: Path
) -> None:
    momentum = {"momentum": 0.9} if optimizer in ("sgd", "rmsprop") else {}
    chosen = {"name": optimizer, "schedule": schedule, "plateau_patience": 1, **momentum}
    train(text, tmp_path / "straight", small(optimizer=chosen))
    train(text, tmp_path / "broken", small(optimizer=chosen), stop_at=7)
    train(text, tmp_path / "broken", small(optimizer=chosen))
    assert bits_of(tmp_path / "broken") == bits_of(tmp_path / "straight")


@pytest.mark.parametrize(("cell", "kind"), [("elman", "bytes"), ("gru", "words"), ("lstm", "bpe")])
@pytest.mark.usefixtures("unflushed")
def test_every_cell_and_kind_of_tokens_resumes_exactly(cell: str, kind: str, text: Path, tmp_path: Path) -> None:
    settings = small(tokens={"kind": kind, "size": 280 if kind == "bpe" else None}, learner={"window": 5})
    train(text, tmp_path / "straight", settings, cell=cell)
    train(text, tmp_path / "broken", settings, stop_at=7, cell=cell)
    train(text, tmp_path / "broken", settings, cell=cell)
    assert bits_of(tmp_path / "broken") == bits_of(tmp_path / "straight")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("unflushed")
def test_every_cell_trains_resumes_to_the_bit_writes_and_streams(cell: str, text: Path, tmp_path: Path) -> None:
    settings = small(train={"rows": 2, "chunk": 4, "validations": 1})
    short = {"cell": cell, "steps": 4, "hidden": 4, "layers": 1 if cell in ("hmm", "kalman") else 2}
    train(text, tmp_path / "straight", settings, **short)
    train(text, tmp_path / "broken", settings, stop_at=2, **short)
    train(text, tmp_path / "broken", settings, **short)
    assert bits_of(tmp_path / "broken") == bits_of(tmp_path / "straight")

    task = recurra.load(tmp_path / "broken")
    assert task.generate("the ", length=5, seed=1) == task.generate("the ", length=5, seed=1)
    tokens = torch.from_numpy(task.tokens.encode("the cat").astype("int64"))[None]
    with torch.no_grad():
        scores, _ = task.model.unroll(tokens, task.model.initial_state(1))
    stream, state = task.stream(), task.stream().initial_state()
    for at, token in enumerate(tokens[0].tolist()):
        score, state = stream.step(token, state)
        torch.testing.assert_close(score[0], scores[0, at], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("unflushed")
def test_training_leaves_the_random_numbers_and_threads_of_its_caller_alone(text: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    random.seed(5)
    expected = (torch.rand(3).tolist(), random.random())
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    random.seed(5)
    train(text, tmp_path / "run", small(), stop_at=3)
    assert (torch.rand(3).tolist(), random.random()) == expected
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("unflushed")
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_goes_on_to_the_same_bits(
    text: Path, tmp_path: Path
) -> None:
    train(text, tmp_path / "straight", small())
    train(text, tmp_path / "broken", small(), stop_at=9)
    newest = max((tmp_path / "broken" / "checkpoints").glob("step-*"))
    data = bytearray((newest / "carry.safetensors").read_bytes())
    data[-3] ^= 4
    (newest / "carry.safetensors").write_bytes(data)
    complaints = train(text, tmp_path / "broken", small())
    assert len(complaints) == 1
    assert str(newest / "carry.safetensors") in complaints[0]
    assert bits_of(tmp_path / "broken") == bits_of(tmp_path / "straight")


@pytest.mark.usefixtures("unflushed")
def test_where_every_checkpoint_is_damaged_training_does_not_start_over_in_silence(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(text, out, small(), stop_at=6)
    for path in (out / "checkpoints").glob("step-*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError, match=r"model\.safetensors"):
        train(text, out, small())
    assert len(list((out / "checkpoints").glob("step-*"))) == 2


@pytest.mark.usefixtures("unflushed")
def test_the_same_options_resume_and_others_are_refused_by_name(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(text, out, small(), stop_at=6)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for settings, short, named in [
        (small(model={"dropout": 0.3}), {}, ["model.dropout"]),
        (small(), {"hidden": 7}, ["model.hidden"]),
        (small(cell={"reset": "before"}), {}, ["cell.reset"]),
        (small(optimizer={"name": "sgd", "clip": 2.0}), {}, ["optimizer.name", "optimizer.clip"]),
    ]:
        with pytest.raises(UsageError, match="other options cannot be given") as caught:
            train(text, out, settings, **short)
        words = str(caught.value).split("cannot be given: ")[1].split(". Leave")[0]
        assert words == ", ".join(named)
        assert caught.value.exit_code == 2
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {**before, out / ".lock": b""} == {**after, out / ".lock": b""}
    recurra.train("language", text, out=out)  # no options at all: as it was begun
    recurra.train("language", text, out=out, hidden=6, seed=0)  # as it was begun, spelt out


@pytest.mark.usefixtures("unflushed")
def test_a_run_is_not_resumed_on_another_text(text: Path, tmp_path: Path) -> None:
    out, mine = tmp_path / "run", shutil.copy(text, tmp_path / "mine.txt")
    train(mine, out, small(), stop_at=6)
    write_text(mine, seed=1)
    with pytest.raises(UsageError, match=r"was begun on mine\.txt .* given now: mine\.txt") as caught:
        train(mine, out, small())
    assert caught.value.exit_code == 2
    shutil.copy(text, mine)
    train(mine, out, small())


@pytest.mark.usefixtures("unflushed")
def test_a_run_of_another_task_or_with_an_altered_config_is_refused(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(text, out, small(), stop_at=6)
    written = (out / "config.toml").read_text()
    (out / "config.toml").write_text(written.replace('name = "language"', 'name = "classify"'))
    with pytest.raises(UsageError, match="task 'classify', not 'language'"):
        recurra.train("language", text, out=out)
    for altered in (written.replace("hidden", "hiden"), written[: len(written) // 2] + "\n[", "\0"):
        (out / "config.toml").write_text(altered)
        with pytest.raises(DamagedError, match=r"config\.toml"):
            recurra.train("language", text, out=out)
    (out / "config.toml").write_text(written.replace("hidden = 6", "hidden = 7"))
    with pytest.raises(DamagedError, match="tensor"):
        recurra.train("language", text, out=out)
    (out / "config.toml").write_text(written)
    train(text, out, small())


@pytest.mark.usefixtures("unflushed")
def test_a_run_stores_the_rate_it_began_with(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(text, tmp_path / "straight", small())
    train(text, tmp_path / "broken", small(), stop_at=6)
    monkeypatch.setitem(OPTIMIZERS, "adamw", (OPTIMIZERS["adamw"][0], 0.5))  # as a later version may choose
    train(text, tmp_path / "broken", small())
    assert bits_of(tmp_path / "broken") == bits_of(tmp_path / "straight")


@pytest.mark.usefixtures("unflushed")
def test_a_run_that_ended_is_left_as_it_is_when_asked_for_again(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(text, out, small())
    before = bits_of(out)
    train(text, out, small())
    assert bits_of(out) == before
