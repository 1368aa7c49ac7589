"""Every cell, start and penalty does its work in a training run."""

import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import recurra
from recurra import run
from recurra.cells import CELLS, Block, Convolved, Latent
from recurra.init import PRESETS

SMALL = {"train": {"rows": 4, "chunk": 8, "validations": 1}}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("she sells sea shells by the sea shore. " * 40, encoding="utf-8")
    return path


def trained(text: Path, out: Path, steps: int = 3, cell: str = "elman", **sections: dict[str, Any]) -> recurra.Task:
    settings = {**SMALL, **sections}
    return recurra.train("language", text, out=out, steps=steps, cell=cell, hidden=8, threads=1, settings=settings)


def recurrent_weights(task: recurra.Task) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for name, p in task.model.named_parameters() if name.endswith("weight_hh")])


@pytest.mark.parametrize("cell", [name for name, kind in CELLS.items() if not issubclass(kind, Latent)])
def test_every_cell_trains_stacked_is_loaded_and_writes(cell: str, text: Path, tmp_path: Path) -> None:
    trained(text, tmp_path / "run", cell=cell, model={"layers": 2, "recurrent_dropout": 0.1, "dropout": 0.1})
    task = recurra.load(tmp_path / "run")
    assert task.generate("she ", length=5)
    assert task.evaluate()["scores"]["bits_per_character"] < 10


@pytest.mark.parametrize("cell", ["mingru", "lru", "lstm"])
def test_layers_in_blocks_train_and_are_loaded(cell: str, text: Path, tmp_path: Path) -> None:
    blocks = {"layers": 2, "block": True, "convolved": 4, "dropout": 0.1}
    trained(text, tmp_path / "run", cell=cell, model=blocks)
    task = recurra.load(tmp_path / "run")
    for kind in (Block, Convolved):
        assert sum(isinstance(module, kind) for module in task.model.modules()) == 2
    assert task.generate("she ", length=5)


def test_blocks_stand_in_encoders_and_decoders_too(tmp_path: Path) -> None:
    series = tmp_path / "series.csv"
    series.write_text("y\n" + "\n".join(str(at % 7) for at in range(300)))
    for name, data in {"classify": "synthetic:parity:5", "seq2seq": "synthetic:dates", "forecast": series}.items():
        settings = {**SMALL, "model": {"block": True, "convolved": 3}}
        short = {"steps": 1, "cell": "gru", "hidden": 4, "threads": 1}
        task = recurra.train(name, data, out=tmp_path / name, settings=settings, **short)
        for kind in (Block, Convolved):
            found = sum(isinstance(module, kind) for module in task.model.modules())
            assert found == {"classify": 2, "seq2seq": 3, "forecast": 1}[name], name


def test_a_whole_model_does_not_stand_in_a_block(text: Path, tmp_path: Path) -> None:
    for around in ({"block": True}, {"convolved": 4}):
        with pytest.raises(
            recurra.UsageError, match=r"the cell hmm is a whole model.* without --layers, model.block and"
        ):
            trained(text, tmp_path / "run", cell="hmm", model=around)


def test_the_option_of_a_window_is_its_own(text: Path, tmp_path: Path) -> None:
    settings = {"cell": {"name": "window", "window": 5}, "model": {"convolved": 3, "hidden": 8}}
    recurra.train("language", text, out=tmp_path / "run", settings=settings, steps=1, threads=1)
    kinds = {type(module).__name__: module for module in recurra.load(tmp_path / "run").model.modules()}
    assert kinds["Window"].window == 5
    assert kinds["Convolved"].width == 3


@pytest.mark.parametrize("start", PRESETS)
def test_every_start_is_where_training_starts(start: str, text: Path, tmp_path: Path) -> None:
    rate = {"rate": 1e-9}  # so that what is saved is what training started from
    task = trained(text, tmp_path / "run", 1, "lstm", model={"init": start}, optimizer=rate)
    block = recurrent_weights(task).view(4, 8, 8)[0]
    if start in ("orthogonal", "keras"):
        torch.testing.assert_close(block @ block.T, torch.eye(8), atol=1e-4, rtol=0)
    if start == "irnn":
        torch.testing.assert_close(block, torch.eye(8), atol=1e-4, rtol=0)
    if start == "echo":
        assert float(torch.linalg.eigvals(block).abs().max()) == pytest.approx(0.9, abs=1e-3)


def test_an_unknown_start_is_refused_in_words(text: Path, tmp_path: Path) -> None:
    with pytest.raises(recurra.UsageError, match="no start called 'zeros'; they are torch, orthogonal"):
        trained(text, tmp_path / "run", model={"init": "zeros"})


@pytest.mark.parametrize("penalty", [{"l1": 0.05}, {"l2": 0.5}, {"max_norm": 0.1}])
def test_penalties_and_limits_make_weights_smaller(penalty: dict[str, float], text: Path, tmp_path: Path) -> None:
    fast = {"rate": 0.02, "warmup": 0}
    free = recurrent_weights(trained(text, tmp_path / "free", 30, optimizer=fast))
    held = recurrent_weights(trained(text, tmp_path / "held", 30, optimizer=fast, regularize=penalty))
    assert held.norm() < 0.9 * free.norm()
    if "max_norm" in penalty:
        assert float(held.view(8, 8).norm(dim=1).max()) <= 0.1 + 1e-6


@pytest.mark.parametrize("penalty", [{"ar": 5.0}, {"tar": 5.0}])
def test_penalties_on_activity_make_it_low_or_slow(penalty: dict[str, float], text: Path, tmp_path: Path) -> None:
    def activity(task: recurra.Task) -> float:
        model: Any = task.model
        tokens = next(task.batches()).inputs
        with torch.no_grad():
            ys, _ = model.features(tokens, model.initial_state(len(tokens)))
        return float((ys.square() if "ar" in penalty else (ys[:, 1:] - ys[:, :-1]).square()).mean())

    free = trained(text, tmp_path / "free", 40)
    held = trained(text, tmp_path / "held", 40, regularize=penalty)
    assert activity(held) < 0.8 * activity(free)


def test_slow_first_steps_are_not_taken_for_the_speed_of_the_rest(
    text: Path, monkeypatch: pytest.MonkeyPatch, shell: Any
) -> None:
    """As they are where memory is fresh: four of 0.24 s, then 0.03 s each."""
    now, calls, computed = [0.0], [], run.fit.gradients

    def gradients(*given: Any, **options: Any) -> Any:
        calls.append(None)
        now[0] += 0.24 if len(calls) <= 4 else 0.03
        return computed(*given, **options)

    monkeypatch.setattr(run.fit, "gradients", gradients)
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    report = json.loads(shell("check", "language", text, "--json", "--threads", "1").out)
    assert len(calls) == 6
    assert report["seconds_of_a_pass"] == pytest.approx(0.03 * report["steps_of_a_pass"], abs=0.01)


TAKES_AND_GIVES = """
import resource, sys, torch
from recurra.fit import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
torch.ones(1 << 24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(1 << 24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is asked to keep what is freed")
def test_freed_memory_is_kept_for_what_is_asked_for_next() -> None:
    faults = {
        way: int(subprocess.check_output([sys.executable, "-c", TAKES_AND_GIVES, way], text=True))
        for way in ("kept", "given")
    }
    assert faults["kept"] < 0.5 * faults["given"]
