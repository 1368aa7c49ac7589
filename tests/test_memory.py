"""Associative memories against loops over all units, against what is known of them, and against attention."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Shell
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import recurra
from recurra import recall
from recurra.attention import attend, scaled
from recurra.data.arrays import rows
from recurra.memory import (
    RULES,
    Associative,
    ContinuousHopfield,
    Dense,
    Hopfield,
    Lookup,
    Modern,
    Named,
    Pooling,
    named,
    signs,
    storkey,
)
from recurra.testing import check_cell

BINARY = {
    "hebb": lambda patterns: Hopfield.store(patterns, "hebb"),
    "storkey": lambda patterns: Hopfield.store(patterns, "storkey"),
    "pseudo-inverse": lambda patterns: Hopfield.store(patterns, "pseudo-inverse"),
    "dense 2": lambda patterns: Dense.store(patterns, 2),
    "dense 3": lambda patterns: Dense.store(patterns, 3),
    "dense exp": lambda patterns: Dense.store(patterns, "exp"),
}


def random_signs(*shape: int, seed: int = 0) -> Tensor:
    return signs(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


def turned(patterns: Tensor, share: float, seed: int = 1) -> Tensor:
    draw = torch.rand(patterns.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(draw < share, -patterns, patterns)


# --- the binary network ---


@pytest.mark.parametrize("kind", BINARY)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(units=st.integers(2, 60), count=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_no_step_goes_uphill_and_every_row_comes_to_rest(kind: str, units: int, count: int, seed: int) -> None:
    memory: Associative = BINARY[kind](random_signs(count, units, seed=seed))
    probe = random_signs(units, seed=seed + 1)
    trace = memory.trace(probe, seed)
    steps = trace.energies.diff()
    assert (steps < 1e-4 * trace.energies.abs().max()).all()
    assert (trace.frames.diff(dim=0).abs().sum(1) == 2).all(), "one unit at a time"
    assert torch.equal(memory.recall(trace.frames[-1], seed + 1), trace.frames[-1]), "at rest in any order"


def by_a_loop(memory: Hopfield, probe: Tensor, seed: int) -> Tensor:
    """Hopfield's rule, word by word."""
    generator, state, changed = torch.Generator().manual_seed(seed), probe.clone(), True
    while changed:
        changed = False
        for unit in torch.randperm(memory.units, generator=generator).tolist():
            field = float(memory.weights[unit].double() @ state.double() + memory.bias[unit])
            if abs(field) > 1e-6 and (field > 0) != (state[unit] > 0):
                state[unit], changed = -state[unit], True
    return state


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_native_sweep_comes_to_the_same_states(rule: str, threads: int) -> None:
    memory = Hopfield.store(random_signs(30, 200), rule)
    probes = random_signs(120, 200, seed=3)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        native = memory.recall(probes, 4)
    finally:
        torch.set_num_threads(before)
    *_, frames = memory.frames(probes, 4)
    assert torch.equal(native, frames)
    assert torch.equal(memory.recall(probes[7], 4), native[7]), "a row does not see the others"


def test_probes_may_lie_as_they_like_and_a_field_that_is_no_number_turns_nothing() -> None:
    memory, probes = Hopfield.store(random_signs(3, 40)), random_signs(40, 9).T
    assert torch.equal(memory.recall(probes), memory.recall(probes.contiguous()))
    lost = Hopfield(memory.weights, bias=torch.full((40,), float("nan")))
    assert torch.equal(lost.recall(probes), probes)


@pytest.mark.parametrize("rule", RULES)
def test_going_to_the_next_unit_at_once_is_the_loop_over_all_units(rule: str) -> None:
    for seed in range(5):
        memory = Hopfield.store(random_signs(6, 30, seed=seed), rule)
        memory.bias = torch.randn(30, generator=torch.Generator().manual_seed(seed)) / 10
        probes = random_signs(7, 30, seed=seed + 100)
        recalled = memory.recall(probes, seed)
        for probe, state in zip(probes, recalled, strict=True):
            assert torch.equal(by_a_loop(memory, probe, seed), state)


def test_storkeys_rule_is_its_formula_entry_by_entry() -> None:
    patterns = random_signs(4, 7)
    want = np.zeros((7, 7))
    for x in patterns.double().numpy():
        field = np.array(
            [[sum(want[i, k] * x[k] for k in range(7) if k not in (i, j)) for j in range(7)] for i in range(7)]
        )
        want = want + (np.outer(x, x) - x[:, None] * field.T - field * x[None]) / 7
        np.fill_diagonal(want, 0)
    np.testing.assert_allclose(storkey(patterns).numpy(), want, atol=1e-6)


def test_the_pseudo_inverse_keeps_as_many_patterns_as_are_independent() -> None:
    patterns = random_signs(50, 100)
    memory = Hopfield.store(patterns, "pseudo-inverse")
    assert torch.equal(memory.recall(patterns), patterns)
    assert not torch.equal(Hopfield.store(patterns, "hebb").recall(patterns), patterns)


@pytest.mark.parametrize(("load", "least", "most"), [(0.05, 0.99, 1.0), (0.12, 0.95, 1.0), (0.25, 0.0, 0.6)])
def test_hebbs_rule_breaks_down_near_its_capacity(load: float, least: float, most: float) -> None:
    patterns = random_signs(round(load * 500), 500)
    recalled = Hopfield.store(patterns).recall(patterns)
    overlap = float((recalled * patterns).mean())
    assert least <= overlap <= most


def test_all_units_at_once_may_go_round_in_a_circle() -> None:
    pair = Hopfield(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), updates="synchronous")
    trace = pair.trace(torch.tensor([1.0, -1.0]))
    assert trace.cycle == 2 and trace.frames.tolist() == [[1, -1], [-1, 1], [1, -1]]
    assert pair.trace(torch.tensor([1.0, 1.0])).cycle == 1
    patterns = random_signs(3, 80)
    assert torch.equal(Hopfield.store(patterns, updates="synchronous").recall(turned(patterns, 0.1)), patterns)


def test_what_is_not_stored_is_named() -> None:
    patterns = random_signs(5, 301)
    mixture = signs(patterns[0] - patterns[2] + patterns[4])
    states = torch.stack([patterns[1], -patterns[3], mixture, random_signs(301, seed=9)])
    want = [Named("stored", (1,)), Named("negative", (3,)), Named("mixture", (0, 2, 4)), Named("unknown", ())]
    assert named(states, patterns) == want
    almost = patterns[1].clone()
    almost[7] *= -1
    assert named(almost[None], patterns) == [Named("unknown", ())]
    ends = named(Hopfield.store(patterns).recall(random_signs(200, 301, seed=3)), patterns)
    assert {"stored", "negative"} <= {one.kind for one in ends}


# --- dense and modern ---


def test_a_dense_memory_of_power_two_is_hebbs() -> None:
    patterns, probes = random_signs(8, 60), random_signs(10, 60, seed=1)
    assert torch.equal(Dense.store(patterns, 2).recall(probes, 5), Hopfield.store(patterns).recall(probes, 5))


@pytest.mark.parametrize("power", [3, 4, "exp"])
def test_a_dense_memory_holds_more_than_the_classical_one(power: int | str) -> None:
    patterns = random_signs(120, 100)
    probes = turned(patterns, 0.1)
    dense, classical = Dense.store(patterns, power), Hopfield.store(patterns)
    assert float((dense.recall(probes) == patterns).all(1).float().mean()) > 0.95
    assert float((classical.recall(probes) == patterns).all(1).float().mean()) < 0.05


def test_one_update_of_the_modern_network_is_attention() -> None:
    patterns, states = torch.randn(20, 12), torch.randn(5, 12)
    memory = Modern.store(patterns, beta=0.7)
    weights = torch.softmax(0.7 * states @ patterns.T, dim=1)
    torch.testing.assert_close(memory.update(states), weights @ patterns)
    want = torch.nn.functional.scaled_dot_product_attention(states, patterns, patterns, scale=0.7)
    torch.testing.assert_close(memory.update(states), want)
    torch.testing.assert_close(attend(states, patterns, patterns, score=scaled(0.7))[1], weights)


def test_the_modern_network_goes_downhill_and_finds_real_patterns() -> None:
    patterns = torch.randn(200, 64)
    memory = Modern.store(patterns, beta=1.0)
    for probe in torch.randn(10, 64):
        energies = memory.trace(probe).energies
        assert (energies.diff() < 1e-4).all()
    probes = patterns + 0.3 * torch.randn(200, 64)
    torch.testing.assert_close(memory.recall(probes), patterns, atol=1e-2, rtol=0)
    mean = Modern.store(patterns, beta=1e-4).recall(probes)
    torch.testing.assert_close(mean, patterns.mean(0).expand(200, 64), atol=0.05, rtol=0)


def test_layers_of_memory_learn() -> None:
    torch.manual_seed(0)
    lookup, pooling = Lookup(6, patterns=10, output_size=3), Pooling(6)
    queries = torch.randn(4, 5, 6, requires_grad=True)
    assert lookup(queries).shape == (4, 5, 3)
    lengths = torch.tensor([5, 2, 0, 1])
    padded = torch.where((torch.arange(5) < lengths[:, None])[..., None], queries, float("nan"))
    pooled = pooling(padded, lengths)
    torch.testing.assert_close(pooled[3], queries[3, 0]), "of one step: that step"
    assert not pooled[2].any()
    grads = torch.autograd.grad(
        lookup(queries).sum() + pooled.square().sum(), [queries, *lookup.parameters(), pooling.query]
    )
    assert all(grad.isfinite().all() and grad.any() for grad in grads)


def test_attention_by_hand() -> None:
    """Scores 1 and 0: weights e / (e + 1) and 1 / (e + 1)."""
    query, keys = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 5.0], [0.0, 7.0]])
    values = torch.tensor([[10.0], [20.0]])
    summary, weights = attend(query, keys, values)
    e = math.e
    torch.testing.assert_close(weights, torch.tensor([[e / (e + 1), 1 / (e + 1)]]))
    torch.testing.assert_close(summary, torch.tensor([[(10 * e + 20) / (e + 1)]]))
    one, _ = attend(query, keys, values, torch.tensor([[False, True]]))
    none, nothing = attend(query, keys, values, torch.tensor([[False, False]]))
    assert one.item() == 20 and none.item() == 0 and not nothing.any()


# --- continuous time ---


def test_the_continuous_network_is_a_cell() -> None:
    assert check_cell(ContinuousHopfield(6, 6))
    with pytest.raises(recurra.UsageError, match="field on its units"):
        ContinuousHopfield(3, 6)


def test_the_continuous_network_goes_downhill_and_remembers() -> None:
    patterns = random_signs(3, 60)
    cell = ContinuousHopfield.store(patterns, dt=0.02).double()
    field = 0.1 * turned(patterns, 0.2).double()
    with torch.no_grad():
        vs, _ = cell.unroll(field[:, None].expand(-1, 600, -1), cell.initial_state(3))
        energies = cell.energy(vs, field[:, None])
    assert (energies.diff(dim=1) < 1e-9).all()
    assert torch.equal(vs[:, -1].sign(), patterns.double())
    drawn = ContinuousHopfield(20, 20, dt=0.02).double()  # whose weights are neither symmetric nor without a diagonal
    with torch.no_grad():
        field = torch.randn(4, 1, 20, dtype=torch.float64)
        vs, _ = drawn.unroll(field.expand(-1, 300, -1), drawn.initial_state(4))
        assert (drawn.energy(vs, field).diff(dim=1) < 1e-9).all()


# --- wrong input ---


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Hopfield.store(torch.zeros(2, 3)), "value 0; make it one with recurra.memory.signs"),
        (lambda: Hopfield.store(random_signs(3)), r"wanted \[patterns, units\]"),
        (lambda: Hopfield.store(random_signs(2, 3), "hebbian"), "the rules are hebb, storkey, pseudo-inverse"),
        (lambda: Hopfield(torch.randn(3, 3)), "not symmetric"),
        (lambda: Hopfield(torch.eye(3)), "from a unit to itself"),
        (lambda: Hopfield.store(random_signs(2, 3)).recall(random_signs(2, 4)), r"shape \(2, 4\), wanted \[any, 3\]"),
        (lambda: Hopfield.store(random_signs(2, 3)).recall(torch.rand(3)), "make it one with"),
        (lambda: Hopfield.store(random_signs(2, 3)).trace(random_signs(2, 3)), "wanted one"),
        (lambda: Dense.store(random_signs(2, 3), 1), "at least 2"),
        (lambda: Modern.store(torch.randn(2, 3), beta=-1), "a positive number"),
    ],
)
def test_what_does_not_fit_is_said(call: object, words: str) -> None:
    with pytest.raises(recurra.UsageError, match=words):
        call()  # type: ignore[operator]


# --- files, and the command ---


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """Ten random pictures of 9 x 8 and a column with their number."""
    table = np.random.default_rng(0).integers(0, 17, (10, 72))
    lines = [",".join([*(f"p{i}" for i in range(72)), "name"])]
    lines += [",".join(map(str, [*row, number])) for number, row in enumerate(table)]
    (tmp_path / "letters.csv").write_text("\n".join(lines))
    np.save(tmp_path / "letters.npy", table.reshape(10, 9, 8).astype(np.uint8))
    return tmp_path


def test_a_table_and_an_array_hold_the_same_rows(letters: Path) -> None:
    table, array = rows([letters / "letters.csv"], label="name"), rows([letters / "letters.npy"])
    assert np.array_equal(table.values, array.values) and array.shape == (9, 8) and table.shape == (72,)
    for name in ("-1", "73"):
        assert np.array_equal(rows([letters / "letters.csv"], label=name).values, array.values)
    assert len(rows([letters / "letters.npy", letters / "letters.npy"]).values) == 20


def test_recall_says_and_draws_what_came_of_it(letters: Path, shell: Shell) -> None:
    page = letters / "recall.html"
    options = ["--memory", "storkey", "--noise", 0.1, "--patterns", 4, "--out", page, "--json"]
    report = json.loads(shell("recall", letters / "letters.npy", *options).out)
    assert report["patterns"] == 4 and report["units"] == 72 and report["right"] == 1.0
    assert report["overlap"]["after"] > report["overlap"]["before"]
    text = page.read_text()
    assert text.count("<html") == 1 and 'src="http' not in text, "one page that opens without a network"
    told = [
        shell("recall", letters / "letters.csv", "--label", "name", "--shape", "9x8", "--patterns", 3) for _ in range(2)
    ]
    assert "3 patterns of 72 units" in told[0].out and "stored" in told[0].out and "█" in told[0].out
    pictures = [answer.out.split("to recall")[1] for answer in told]
    assert pictures[0] == pictures[1]


def test_pictures_are_read_by_pillow_or_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    for number in range(2):
        image.fromarray(grey + number).save(tmp_path / f"{number}.png")
    found = rows([tmp_path])
    assert found.shape == (3, 4) and np.allclose(found.values[1] * 255, grey.ravel() + 1)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(recurra.UsageError, match="pip install"):
        rows([tmp_path])


@pytest.mark.parametrize("kind", recall.KINDS)
def test_every_memory_recalls_a_few_pictures(letters: Path, kind: str) -> None:
    done = recall.recall([letters / "letters.npy"], kind, 3, recall.Damage(0.05, 0.0))
    assert done.report["right"] == 1.0
    assert len(done.traces) == 3 and "right" in "\n".join(recall.lines(done))


def test_a_probe_is_damaged_as_it_was_asked_for(letters: Path) -> None:
    hidden = recall.recall([letters / "letters.npy"], "storkey", 3, recall.Damage(0.0, 1 / 3))
    assert torch.equal(hidden.probes[:, :48], hidden.patterns[:, :48]) and (hidden.probes[:, 48:] == -1).all()
    noisy = recall.recall([letters / "letters.npy"], "storkey", 10, recall.Damage(0.25, 0.0))
    assert 0.15 < float((noisy.probes != noisy.patterns).float().mean()) < 0.35
    assert not recall.recall([letters / "letters.npy"], "modern", 3, recall.Damage(0.0, 1.0)).probes.any()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["letters.csv"], 0, ""),
        (["nowhere.npy"], 3, "does not exist"),
        (["letters.npy", "--memory", "hebbian"], 2, "there are hebb, storkey"),
        (["letters.npy", "--patterns", "11"], 3, "hold 10 rows"),
        (["letters.npy", "--noise", "1.5"], 2, "a share from 0 to 1"),
        (["letters.npy", "--shape", "7x7"], 2, "no picture of 7 x 7"),
        (["letters.npy", "--shape", "seven"], 2, "such as 28x28"),
        (["letters.npy", "--threshold", "99"], 3, "the same as another"),
        (["letters.npy", "--memory", "dense", "--power", "x"], 2, "or exp"),
        (["letters.csv", "--label", "colour"], 2, "has no column 'colour'"),
        (["words.csv"], 3, "line 3: 'x' is no number"),
        (["short.csv"], 3, "line 2 has 1 columns"),
        (["broken.npy"], 3, "no array of NumPy"),
        (["text.md"], 3, "of no kind that holds rows"),
        (["letters.npy", "short.tsv"], 3, "give files of one shape"),
        (["letters.npy", "--device", "cuda"], 2, "runs on the cpu"),
    ],
)
def test_wrong_calls_are_answered_in_one_line(
    letters: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, words: str
) -> None:
    contents = {
        "words.csv": "a,b\n1,2\nx,3\n", "short.csv": "1,2\n3\n", "short.tsv": "1\t2\n3\t4\n", "broken.npy": "no array",
        "text.md": "some text",
    }  # fmt: skip
    for name, content in contents.items():
        (letters / name).write_text(content)
    monkeypatch.chdir(letters)
    answer = shell("recall", *arguments)
    assert answer.code == code
    assert code == 0 or words in answer.said
