"""Nearest neighbours beside a readout, against NumPy, and on tasks."""

import numpy as np
import pytest
import torch
from torch import nn

import recurra
from recurra.learn import neighbours
from recurra.learn.neighbours import Neighbours, remember


def made(numbers: bool, **options) -> tuple[Neighbours, torch.Tensor, np.ndarray]:
    torch.manual_seed(0)
    readout, keys, xs = nn.Linear(4, 3).double(), torch.randn(30, 4).double(), torch.randn(2, 5, 4).double()
    values = torch.randn(30, 3).double() if numbers else torch.randint(3, (30,))
    apart = ((xs.numpy()[:, :, None] - keys.numpy()) ** 2).sum(-1)
    return Neighbours(readout, keys, values, **options), xs, apart


def by_hand(memory: Neighbours, apart: np.ndarray, k: int, temperature: float) -> np.ndarray:
    """What followed the neighbours, `[2, 5, 3]`."""
    values, keys = memory.values.numpy(), memory.keys.numpy()
    told = values if values.ndim == 2 else np.eye(3)[values]
    out = np.zeros((2, 5, 3))
    for place in np.ndindex(2, 5):
        near = np.argsort(apart[place])[:k]
        share = np.exp(-apart[place][near] / (temperature * keys.var(0).sum()))
        out[place] = share @ told[near] / share.sum()
    return out


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize("at_once", [1, 2**24])
def test_what_is_said_is_a_mixture_of_readout_and_neighbours(numbers: bool, at_once: int, monkeypatch) -> None:
    monkeypatch.setattr(neighbours, "AT_ONCE", at_once)
    memory, xs, apart = made(numbers, k=5, temperature=0.3, mix=0.4)
    with torch.no_grad():
        own, said = memory.readout(xs), memory(xs)
    kept = by_hand(memory, apart, 5, 0.3)
    if numbers:
        np.testing.assert_allclose(said, 0.6 * own.numpy() + 0.4 * kept, rtol=1e-9)
    else:
        np.testing.assert_allclose(said.exp(), 0.6 * own.softmax(-1).numpy() + 0.4 * kept, rtol=1e-9)


def test_without_a_share_the_readout_stays_and_with_all_of_it_nothing_is_infinite() -> None:
    memory, xs, _ = made(False, mix=0.0)
    torch.testing.assert_close(memory(xs), memory.readout(xs).log_softmax(-1))
    memory, xs, _ = made(False, k=1, mix=1.0)
    assert memory(xs).isfinite().all()
    assert (memory(memory.keys[:, None])[:, 0].argmax(-1) == memory.values).all()  # each key is its own neighbour


@pytest.mark.parametrize("options", [{"k": 0}, {"mix": 1.5}, {"temperature": 0.0}])
def test_options_that_cannot_be_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(recurra.UsageError, match="wanted at least 1"):
        made(False, **options)


def test_a_task_remembers_each_transition_of_its_training_once_and_does_better_for_it(tmp_path) -> None:
    text = "".join(f"{(k * 7919) % 997:03d} {(k * 104729) % 991:03d}\n" for k in range(60))
    (tmp_path / "text.txt").write_text(text * 3, encoding="utf-8")
    task = recurra.train("language", tmp_path / "text.txt", out=tmp_path / "run", hidden=24, steps=30)
    before = task.evaluate()["scores"]["bits_per_character"]
    memory = remember(task, mix=0.5)
    assert len(memory.keys) == task.corpora["train"].transitions
    assert sorted(memory.values.tolist()) == sorted(np.asarray(task.corpora["train"].ids)[1:].tolist())
    assert task.evaluate()["scores"]["bits_per_character"] < before - 0.1
    assert len(task.generate("1", length=9)) > 0


def test_forecasts_and_what_has_no_such_readout(tmp_path) -> None:
    (tmp_path / "s.csv").write_text("t,y\n" + "".join(f"{t},{np.sin(t / 2):.5f}\n" for t in range(150)))
    given = {"learner": "ridge", "cell": "reservoir", "epochs": 1, "hidden": 20}
    how = {"head": "direct", "linear": False, "context": 12, "horizon": 3}
    task = recurra.train("forecast", tmp_path / "s.csv", out=tmp_path / "run", settings={"task": how}, **given)
    inputs = next(task.batches()).inputs
    before = task.model.forecast(type(inputs)(*inputs)).mean
    memory = remember(task, mix=1.0, k=1, temperature=0.01)
    assert len(memory.keys) == len(task.way._training(task.data))
    torch.testing.assert_close(task.model.forecast(inputs).mean, next(task.batches()).targets.values)
    memory.mix = 0.0
    torch.testing.assert_close(task.model.forecast(inputs).mean, before)
    with pytest.raises(recurra.UsageError, match="remembers already"):
        remember(task)
    how["linear"] = True
    summed = recurra.train("forecast", tmp_path / "s.csv", out=tmp_path / "summed", settings={"task": how}, **given)
    with pytest.raises(recurra.UsageError, match=r"task\.linear=false"):
        remember(summed)
