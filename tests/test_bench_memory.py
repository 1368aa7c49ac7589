"""The bench of memory: what it trains, when it calls a problem solved, and what it says of what it cannot do."""

import json
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch

import recurra
from recurra import probe
from recurra.bench import memory
from recurra.data.problems import PROBLEMS
from recurra.data.synthetic import COUNTS, synthetic
from recurra.errors import UsageError
from recurra.tasks import TASKS

SMALL: dict[str, dict[str, Any]] = {"model": {"hidden": 12}, "optimizer": {"rate": 0.02}}


@pytest.fixture(autouse=True)
def _few_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    for part, count in {"train": 1000, "valid": 300, "test": 400}.items():
        monkeypatch.setitem(COUNTS, part, count)


def rows(**changes: Any) -> list[memory.Setting]:
    given = dict(
        tasks=["xor"], lengths=[9], cells=["gru"], learners=["bptt"], inits=["torch"], clips=[1.0], omegas=[0.0]
    )
    return memory.grid(**{**given, **changes})  # type: ignore[arg-type]


def test_all_settings_are_tried_together_and_unknown_problems_are_refused() -> None:
    some = rows(tasks=["xor", "copy"], lengths=[5, 9], cells=["gru", "lstm"], clips=[0.0, 1.0, 2.0])
    assert len(some) == len(set(some)) == 24
    assert some[0] == memory.Setting("xor", 5, "gru", "bptt", "torch", 0.0, 0.0)
    with pytest.raises(UsageError, match="no problem of memory called 'sine'; there are parity"):
        rows(tasks=["sine"])


def test_what_is_solved_is_right_on_the_test_data_and_the_same_again() -> None:
    seen = torch.random.get_rng_state()
    record, again = (memory.compare(rows(), 2, 1500, 1.0, SMALL)[0] for _ in range(2))
    assert torch.equal(seen, torch.random.get_rng_state())
    assert record["solved"] == record["seeds"] == 2 and record["right"] == 1.0 and record["skipped"] is None
    assert 100 <= record["steps"] < 1500 and record["steps"] % 50 == 0, "it stops when it is solved"
    assert record["baseline"] == 0.5**3 and record["unit"] == "right" and record["length"] == 9
    assert {**record, "seconds": 0} == {**again, "seconds": 0}


def test_what_is_not_solved_has_used_its_steps_and_is_no_better_than_without_memory() -> None:
    record = memory.compare(rows(lengths=[12]), 1, 5, 1.0, SMALL)[0]
    assert (record["solved"], record["seeds"], record["steps"]) == (0, 1, 5)
    assert record["right"] == pytest.approx(0.5**4, abs=0.06)


def test_a_run_ends_when_its_minutes_are_up() -> None:
    record = memory.compare(rows(tasks=["copy"], lengths=[30]), 1, 10**6, 0.02, SMALL)[0]
    assert record["solved"] == 0 and 1 < record["seconds"] < 6 and 0 < record["steps"] < 10_000


def test_a_training_that_leaves_the_numbers_is_not_solved_and_ends() -> None:
    wild = {"optimizer": {"name": "sgd", "rate": 1e38}}
    said: list[str] = []
    record = memory.compare(rows(cells=["elman"], clips=[0.0]), 1, 500, 1.0, wild, tell=said.append)[0]
    assert record["solved"] == 0 and record["steps"] < 500 and "not solved" in said[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learners": ["nothing"]}, "no learner called 'nothing'"),
        ({"inits": ["nothing"]}, "no start called 'nothing'"),
        ({"cells": ["nothing"]}, "nothing"),
        ({"tasks": ["temporal-order"], "lengths": [3]}, "wanted at least 10"),
    ],
)
def test_what_cannot_be_done_is_skipped_with_the_reason(changes: dict[str, Any], words: str) -> None:
    record, other = memory.compare([*rows(**changes), *rows()], 1, 1, 1.0, SMALL)
    assert words in record["skipped"] and record["seeds"] == 0
    assert other["skipped"] is None and other["seeds"] == 1
    lines = memory.table([record, other]).splitlines()
    assert "skipped: " in lines[1] and words in lines[1] and "0 of 1" in lines[2]


def test_the_first_seed_can_be_chosen_and_each_has_its_own_data_and_weights() -> None:
    said: list[str] = []
    memory.compare(rows(), 2, 3, 1.0, SMALL, first=4, tell=said.append)
    assert "seed 4" in said[0] and "seed 5" in said[1]
    one, other = (memory.values(rows()[0], seed, 10)["train"]["seed"] for seed in (4, 5))
    assert (one, other) == (4, 5)


def test_the_config_says_what_the_setting_says() -> None:
    setting = rows(clips=[0.5], inits=["orthogonal"])[0]
    given = memory.values(setting, 3, 1000)
    assert given["optimizer"]["clip"] == 0.5 and given["model"]["init"] == "orthogonal"
    assert given["regularize"] == {} and given["task"]["bidirectional"] is False
    assert memory.values(setting._replace(omega=2.0), 3, 1000)["regularize"] == {"omega": 2.0}


def test_a_length_that_is_not_asked_for_is_the_one_of_the_set() -> None:
    for name, problem in PROBLEMS.items():
        length = memory.own_length(name)
        assert (length == 0) == (name == "reber") and problem.task in TASKS
        if name in ("adding", "flip-flop", "xor", "mackey-glass"):
            assert len(synthetic(name, "test", 1).inputs[0]) == length


@pytest.mark.parametrize("name", ["parity:4", "copy:2", "adding:4", "flip-flop:5"])
def test_the_answers_of_a_trained_network_are_read_for_what_they_are(name: str, tmp_path: Path) -> None:
    problem = PROBLEMS[name.partition(":")[0]]
    task: Any = recurra.train(problem.task, f"synthetic:{name}", steps=2, hidden=4, out=tmp_path / "run")
    part = task.parts["test"]
    found = memory.right(task, problem, part)
    answers = [memory.said(one) for one in task.answer(part.examples, best=1)]
    report = task.evaluate()["scores"]
    if problem.task == "classify":
        assert found == pytest.approx(report["accuracy"])
    if problem.task == "regress":
        apart = [np.square(np.array(a) - t).mean() for a, t in zip(answers, part.examples.targets, strict=True)]
        assert mean(apart) == pytest.approx(report["mse"], rel=1e-4)
    if problem.task == "tag":
        whole = [a[-10:] == t[-10:] for a, t in zip(answers, part.examples.targets, strict=True)]
        assert found == pytest.approx(np.mean(whole))


def test_the_command_prints_one_object_or_a_table(shell: Any) -> None:
    common = ("bench", "memory", "--task", "xor", "--length", 6, "--cell", "gru", "--seeds", 1, "--steps", 2)
    answer = shell(*common, "--learner", "bptt", "--learner", "nothing", "--json", "--seed", 3)
    report = json.loads(answer.out)
    assert answer.code == 0 and [row["learner"] for row in report["rows"]] == ["bptt", "nothing"]
    assert report["rows"][0]["seeds"] == 1 and "nothing" in report["rows"][1]["skipped"]
    answer = shell(*common, "--set", "model.hidden=3")
    assert answer.code == 0 and "0 of 1" in answer.out and "seed 0: not solved" in answer.err
    assert shell("bench", "memory", "--task", "nothing").code == 2
    assert shell(*common, "--set", "model.hiden=3", "--json").code == 0, "said in the row"


# --- what the papers found, in minutes ---


@pytest.fixture
def _all_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    for part, count in {"train": 5000, "valid": 1000, "test": 1000}.items():
        monkeypatch.setitem(COUNTS, part, count)


@pytest.mark.soak
@pytest.mark.usefixtures("_all_examples")
def test_lstm_counts_beyond_what_it_was_trained_on_and_gru_does_not() -> None:
    """Weiss, Goldberg & Yahav 2018, arXiv:1805.04908: a^n b^n for n up to 50, tested on 51 to 100."""
    lstm, gru = memory.compare(rows(tasks=["anbn"], lengths=[50], cells=["lstm", "gru"]), 5, 3000, 10.0)
    assert lstm["solved"] >= 4 and gru["solved"] <= 1 and gru["right"] < 0.2


@pytest.mark.soak
@pytest.mark.usefixtures("_all_examples")
def test_clipping_is_what_lets_elman_learn_temporal_order() -> None:
    """Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063: plain descent, with and without clipping of the gradient's norm."""
    plain = {"optimizer": {"name": "sgd", "rate": 0.1}}
    some = rows(tasks=["temporal-order"], lengths=[50], cells=["elman"], inits=["orthogonal"], clips=[0.0, 1.0])
    without, clipped = memory.compare(some, 5, 2000, 10.0, plain)
    assert clipped["solved"] >= 4 and without["solved"] < clipped["solved"]


@pytest.mark.soak
@pytest.mark.usefixtures("_all_examples")
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_flip_flop_of_three_bits_has_eight_stable_fixed_points(cell: str, tmp_path: Path) -> None:
    """Sussillo & Barak 2013; Golub & Sussillo 2018: 2^3 stable states, one in each corner of what is put out."""
    task: Any = recurra.train(
        "regress", "synthetic:flip-flop", cell=cell, hidden=16, steps=2500, seed=0, out=tmp_path / "run"
    )
    examples = task.parts["test"].examples
    core, readout = task.model.encoder.layers[0].cell, task.model.readout
    mean, deviation = (torch.tensor(np.array(part), dtype=torch.float32) for part in task.inputs.scale)
    xs = (torch.tensor(np.stack(examples.inputs[:256])) - mean) / deviation
    with torch.no_grad():
        _, states = core.unroll(xs, core.initial_state(256))
    found = probe.fixed_points(core, -mean / deviation, states)
    points = torch.tensor(found.states[found.stable, :16], dtype=torch.float32)
    corners = readout(points).detach() * torch.tensor(task.known["std"]) + torch.tensor(task.known["mean"])
    assert len(points) == 8 and len({tuple(one) for one in corners.sign().int().tolist()}) == 8
    assert (corners.abs() - 1).abs().max() < 0.3
