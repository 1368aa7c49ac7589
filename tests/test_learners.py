"""Learners that go with the data: exact, or right in the mean, where they say so, and else what their equations say."""

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recurra import kernels
from recurra.cells import CELLS, Cell, LearntStart
from recurra.data.batch import Batch
from recurra.errors import UsageError
from recurra.learn import (
    BPTT,
    DNI,
    KFRTRL,
    LEARNERS,
    RFLO,
    RTRL,
    UORO,
    Carry,
    EProp,
    ForwardGradient,
    Learner,
    RTRLDiagonal,
    SnAp1,
    SnApN,
    local,
)
from recurra.learn.base import Learnable
from recurra.learn.influence import Rows, flat, gradients, recurrent
from recurra.models import language_model
from recurra.regularize import weight_drop
from recurra.state import State, detach, leaves, tmap, within

WORDS = 5
SMOOTH = [
    name for name in CELLS if name not in ("window", "hmm", "reservoir")
]  # hmm: a whole model; reservoir: learns nothing
APART = ["indrnn", "mingru", "minlstm", "lru", "sru"]  # cells whose units do not see each other
UNITWISE = ["elman", "leaky", "lstm", "lstm-peephole", "lstm-coupled", "gru"]
ONLINE = ["rtrl", "snap1", "snapn", "uoro", "kf-rtrl", "rflo", "eprop", "dni"]


class Toy:
    """The least task that a learner knows: the next of a few tokens."""

    def __init__(self, cell: str = "elman", units: int = 4, embedding: int | None = 3, layers: int = 1) -> None:
        torch.manual_seed(0)
        self.model: Any = language_model(WORDS, cell=cell, hidden=units, embedding=embedding, layers=layers).double()

    def loss(self, batch: Batch, state: State) -> tuple[Tensor, State]:
        scores, state = self.model.unroll(batch.inputs, state, batch.lengths)
        nats = F.cross_entropy(scores.flatten(0, 1), batch.targets.flatten(), reduction="none").view(
            batch.targets.shape
        )
        if batch.lengths is not None:
            nats = nats * within(batch.lengths, nats.shape[1])
        return nats.sum() / batch.weight, state


def tokens(rows: int = 3, time: int = 7, lengths: list[int] | None = None, seed: int = 1) -> Batch:
    ids = torch.randint(WORDS, (rows, time + 1), generator=torch.Generator().manual_seed(seed))
    weight = float(rows * time if lengths is None else sum(lengths))
    given = None if lengths is None else torch.tensor(lengths)
    return Batch(ids[:, :-1], ids[:, 1:], given, weight, torch.ones(rows, dtype=torch.bool))


def learnt(
    task: Learnable, batch: Batch, learner: Learner, carry: Carry | None = None
) -> tuple[dict[str, Tensor], Carry]:
    """The gradients of a batch, and the carry after it. Where the oracle is meant, they have to be alive."""
    task.model.zero_grad()
    loss, carry = learner(task, batch, learner.start(task, batch) if carry is None else carry)
    direct, _ = task.loss(batch, task.model.initial_state(batch.rows))
    if bool(batch.fresh.all()):
        torch.testing.assert_close(loss, direct.detach())
    return {name: one.grad.clone() for name, one in task.model.named_parameters()}, carry


def apart(one: dict[str, Tensor], other: dict[str, Tensor], *without: str) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one if not name.startswith(without or "-"))


def alive(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """A dead model makes every comparison pass."""
    assert min(float(one.norm()) for one in found.values()) > 1e-4
    return found


# --- exact ---


@pytest.mark.parametrize(
    ("cell", "layers"), [(cell, layers) for cell in SMOOTH for layers in (1, 2) if (cell, layers) != ("kalman", 2)]
)
def test_rtrl_adds_up_to_bptt(cell: str, layers: int) -> None:
    task, batch = Toy(cell, layers=layers), tokens(lengths=[7, 5, 0])
    with torch.no_grad():
        for one in task.model.core.parameters():
            one.mul_(3)  # where factors of small numbers meet, hardly anything comes through at the start
    whole = alive(learnt(task, batch, BPTT())[0])
    assert apart(learnt(task, batch, RTRL())[0], whole) < 1e-10


class Begins(Toy):
    """With a state to begin from that is learnt."""

    def __init__(self, cell: str = "lstm", units: int = 3) -> None:
        super().__init__(cell, units, embedding=None)
        self.model.core = LearntStart(self.model.core).double()
        for one in self.model.core.parameters():
            nn.init.normal_(one)


@pytest.mark.parametrize("name", ["rtrl", "dni", "bptt"])
def test_a_start_that_is_learnt_learns(name: str) -> None:
    task, batch = Begins(), tokens(lengths=[7, 5, 0])
    task.model.zero_grad()
    task.loss(batch, task.model.initial_state(3))[0].backward()
    whole = alive({n: cast(Tensor, one.grad).clone() for n, one in task.model.named_parameters()})
    learner = DNI(rate=0.0) if name == "dni" else LEARNERS[name]()
    assert learner.supports(task, batch) is None
    assert apart(learnt(task, batch, learner)[0], whole) < 1e-10


def test_a_start_that_is_learnt_is_refused_by_those_who_would_not_learn_it() -> None:
    for name in ("snap1", "snapn", "eprop", "kf-rtrl", "rtrl-diagonal"):
        assert "the state that it begins from is learnt" in str(LEARNERS[name]().supports(Begins("elman"), tokens()))


@pytest.mark.parametrize("cell", ["elman", "lstm", "gru"])
def test_rtrl_in_parts_is_bptt_of_the_whole_where_windows_of_bptt_are_not(cell: str) -> None:
    task, batch = Toy(cell), tokens()
    whole = alive(learnt(task, batch, BPTT())[0])
    sums, carry = {name: torch.zeros_like(one) for name, one in whole.items()}, None
    for part in batch.windows(3):
        task.model.zero_grad()
        carry = RTRL().start(task, part) if carry is None else carry
        _, carry = RTRL()(task, part, carry)
        sums = {name: sums[name] + p.grad * part.weight / batch.weight for name, p in task.model.named_parameters()}
    assert apart(sums, whole) < 1e-10
    assert apart(learnt(task, batch, BPTT(window=3))[0], whole) > 1e-3


def test_the_influences_are_the_sensitivities_of_williams_and_zipser() -> None:
    """p_ij^k(t+1) = f'(s_k(t)) [sum_l w_kl p_ij^l(t) + delta_ik z_j(t)], p(0) = 0, written out."""
    task, batch = Toy("elman", units=3, embedding=None), tokens(rows=1, time=5)
    _, carry = learnt(task, batch, RTRL())
    weights = {name: one.detach().numpy() for name, one in task.model.core.named_parameters()}
    w, v = weights["weight_hh"], weights["weight_ih"]
    h, p = np.zeros(3), np.zeros((3, 3, 3 + WORDS))  # p[k, i, j]
    for token in batch.inputs[0].tolist():
        z = np.concatenate([h, np.eye(WORDS)[token]])
        s = w @ h + v @ z[3:] + weights["bias_ih"] + weights["bias_hh"]
        after = np.zeros_like(p)
        for k, i, j in itertools.product(range(3), range(3), range(3 + WORDS)):
            after[k, i, j] = (1 - np.tanh(s[k]) ** 2) * (sum(w[k, n] * p[n, i, j] for n in range(3)) + (i == k) * z[j])
        h, p = np.tanh(s), after
    kept = dict(zip(recurrent(task, batch), carry.traces, strict=True))
    np.testing.assert_allclose(kept["core.weight_hh"][0].view(3, 3, 3).numpy(), p[:, :, :3], atol=1e-12)
    np.testing.assert_allclose(kept["core.weight_ih"][0].view(3, 3, WORDS).numpy(), p[:, :, 3:], atol=1e-12)
    assert np.abs(p[:, :, :3]).max() > 1e-2


class Own(NamedTuple):
    h: Tensor


class Elementwise(Cell):
    """IndRNN: h' = tanh(W x + b + w * h), each unit with a weight onto itself alone (Li et al. 2018, arXiv:1803.04831)."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, hidden_size
        self.weight_ih = nn.Parameter(torch.randn(hidden_size, input_size) / 2)
        self.bias_ih = nn.Parameter(torch.randn(hidden_size) / 2)
        self.weight_own = nn.Parameter(torch.rand(hidden_size) * 2 - 1)

    def initial_state(self, batch: int) -> Own:
        return Own(self.bias_ih.new_zeros(batch, self.output_size))

    def project(self, xs: Tensor) -> Tensor:
        return F.linear(xs, self.weight_ih, self.bias_ih)

    def step(self, u: Tensor, state: Own) -> tuple[Tensor, Own]:
        h = torch.tanh(u + self.weight_own * state.h)
        return h, Own(h)


def elementwise(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Toy:
    monkeypatch.setitem(CELLS, "elementwise", Elementwise)
    return Toy("elementwise", **options)


def test_diagonal_rtrl_is_bptt_where_no_unit_sees_another(monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch = elementwise(monkeypatch, embedding=None), tokens(lengths=[7, 5, 0])
    assert RTRLDiagonal().supports(task, batch) is None
    whole = alive(learnt(task, batch, BPTT())[0])
    assert apart(learnt(task, batch, RTRLDiagonal())[0], whole) < 1e-10
    exact, carry = learnt(task, batch, RTRL())
    assert apart(exact, whole) < 1e-10 and all(
        isinstance(one, local.Traces) for one in carry.traces
    )  # chosen by itself
    assert RTRL().cost(task, batch) == RTRLDiagonal().cost(task, batch)
    assert apart(learnt(task, batch, BPTT(window=1))[0], whole) > 1e-3


@pytest.mark.parametrize("cell", APART)
def test_diagonal_rtrl_is_bptt_for_every_cell_whose_units_are_apart(cell: str) -> None:
    task, batch = Toy(cell, embedding=None), tokens(lengths=[7, 5, 0])
    assert RTRLDiagonal().supports(task, batch) is None
    whole = alive(learnt(task, batch, BPTT())[0])
    assert apart(learnt(task, batch, RTRLDiagonal())[0], whole) < 1e-10
    assert apart(learnt(task, batch, BPTT(window=1))[0], whole) > 1e-3


def test_diagonal_rtrl_refuses_what_it_is_not_exact_for(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = tokens()
    assert "the units of Elman see each other" in str(RTRLDiagonal().supports(Toy(embedding=None), batch))
    assert "belong to no single unit" in str(RTRLDiagonal().supports(Toy("qrnn", embedding=None), batch))
    assert "embed.kind=onehot" in str(RTRLDiagonal().supports(elementwise(monkeypatch), batch))
    deep = elementwise(monkeypatch, embedding=None, layers=2)
    assert "there are 2 layers" in str(RTRLDiagonal().supports(deep, batch))


# --- approximate, as the equations say ---


def kept_by_unit(task: Toy, batch: Batch) -> dict[str, Tensor]:
    """SnAp-1 by its definition: the whole influence matrix, of which only what is a weight's own unit's is kept. What the loss says
    of the state after a step, c, comes from what it says of the state before, c A."""
    parameters = dict(task.model.named_parameters())
    state = task.model.initial_state(batch.rows)
    kept = recurrent(task, batch)
    units, size = task.model.core.output_size, flat(state).shape[1]
    masks, influences = {}, {}
    for name, one in kept.items():
        rows = torch.arange(one.numel()) // (one.numel() // len(one)) % units
        masks[name] = (torch.arange(size)[:, None] % units == rows) & name.startswith("core")
        influences[name] = one.new_zeros(batch.rows, size, one.numel())
    sums = {name: torch.zeros_like(one) for name, one in parameters.items()}
    for step in batch.windows(1):
        rows = Rows(task, step, state)
        now, a = rows.jacobians({name: one.detach() for name, one in kept.items()})
        _, state, back, direct = gradients(task, step, state, parameters)
        ahead = (
            torch.linalg.solve(a.mT, back) if len(list(leaves(state))) == 1 else torch.linalg.lstsq(a.mT, back).solution
        )
        for name in kept:
            before = (a @ influences[name]) * masks[name]
            direct[name] = direct[name] + torch.einsum("bs,bsp->p", ahead, before).view(direct[name].shape)
            influences[name] = before + now[name].flatten(2)
        sums = {name: sums[name] + direct[name] * step.weight / batch.weight for name in sums}
    return sums


@pytest.mark.parametrize("cell", UNITWISE)
def test_snap1_keeps_what_a_weight_does_to_its_own_unit(cell: str) -> None:
    task, batch = Toy(cell), tokens(rows=2)
    found = alive(learnt(task, batch, SnAp1())[0])
    assert apart(found, kept_by_unit(task, batch)) < 1e-8
    assert apart(found, learnt(task, batch, BPTT())[0], "embedding") > 1e-4


@pytest.mark.parametrize("cell", ["elman", "gru", "mgu", "lstm-layernorm"])
def test_snapn_goes_from_the_own_unit_to_all(cell: str) -> None:
    task, batch = Toy(cell), tokens(lengths=[7, 5, 0])
    exact, one = alive(learnt(task, batch, RTRL())[0]), learnt(task, batch, SnApN(n=1))[0]
    assert apart(learnt(task, batch, SnApN(n=2))[0], exact) < 1e-10
    assert apart(one, exact) > 1e-3
    if cell in UNITWISE:
        assert apart(one, learnt(task, batch, SnAp1())[0], "embedding") < 1e-10


@pytest.mark.parametrize("cell", UNITWISE)
def test_eprop_is_bptt_cut_at_the_recurrent_weights(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch, real = Toy(cell), tokens(), F.linear
    weight = task.model.core.weight_hh
    found = learnt(task, batch, EProp())[0]
    monkeypatch.setattr(F, "linear", lambda x, w, b=None: real(x.detach() if w is weight else x, w, b))
    task.model.zero_grad()
    with kernels.reference():
        task.loss(batch, task.model.initial_state(3))[0].backward()
    cut = alive({name: one.grad for name, one in task.model.named_parameters()})
    assert apart(found, cut, "embedding") < 1e-10


def murray(task: Toy, batch: Batch, back: np.ndarray) -> dict[str, np.ndarray]:
    """RFLO in NumPy of leaky units h' = k h + (1 - k) tanh(a) over one-hot inputs; errors come by `back` `[words, units]`."""
    weights = {name: one.detach().numpy() for name, one in task.model.named_parameters()}
    w, v, b = (weights[f"core.{name}"] for name in ("weight_hh", "weight_ih", "bias_ih"))
    keep = np.exp(-1 / np.exp(weights["core.log_tau"]))
    units, found = (
        len(w),
        {name: np.zeros_like(weights[f"core.{name}"]) for name in ("weight_hh", "weight_ih", "bias_ih")},
    )
    for row in range(batch.rows):
        h, p_h, p_x, p_b = np.zeros(units), np.zeros_like(w), np.zeros_like(v), np.zeros(units)
        for t in range(batch.time):
            x = np.eye(WORDS)[int(batch.inputs[row, t])]
            s = np.tanh(v @ x + w @ h + b)
            slope = (1 - keep) * (1 - s**2)
            p_h = keep[:, None] * p_h + np.outer(slope, h)
            p_x = keep[:, None] * p_x + np.outer(slope, x)
            p_b = keep * p_b + slope
            h = keep * h + (1 - keep) * s
            scores = weights["readout.weight"] @ h + weights["readout.bias"]
            chances = np.exp(scores - scores.max())
            error = chances / chances.sum() - np.eye(WORDS)[int(batch.targets[row, t])]
            signal = (back.T @ error) / batch.weight
            found["weight_hh"] += signal[:, None] * p_h
            found["weight_ih"] += signal[:, None] * p_x
            found["bias_ih"] += signal * p_b
    return found


def test_rflo_is_murrays_rule() -> None:
    task, batch = Toy("leaky", embedding=None), tokens()
    learner = RFLO(seed=3)
    carry = learner.start(task, batch)
    (back,) = carry.shared
    found = learnt(task, batch, learner, carry)[0]
    for name, wanted in murray(task, batch, back.numpy()).items():
        np.testing.assert_allclose(found[f"core.{name}"].numpy(), wanted, atol=1e-12)
    true = learnt(task, batch, EProp())[0]
    assert apart(found, true) > 1e-3 and torch.allclose(found["readout.weight"], true["readout.weight"])
    same = learnt(task, batch, EProp(feedback="random", seed=3))[0]
    assert apart(found, same) < 1e-12


@pytest.mark.parametrize(("every", "window"), [(1, 1), (2, 5), (3, 6), (1, 3), (3, 7), (4, 4), (2, 20)])
@pytest.mark.parametrize("cell", ["elman", "lstm"])
def test_errors_of_every_few_steps_flow_back_through_the_window(cell: str, every: int, window: int) -> None:
    task, batch = Toy(cell), tokens()
    states = [detach(task.model.initial_state(3))]
    for part in batch.windows(1):
        states.append(detach(task.loss(part, states[-1])[1]))
    wanted: dict[str, Tensor] = {}
    for begin in range(0, batch.time, every):
        first = max(0, begin + every - window)
        state, total = states[first], torch.zeros(())
        for at, part in enumerate(batch.windows(1)):
            if first <= at < min(begin + every, batch.time):
                loss, state = task.loss(part, state)
                total = total + (loss * part.weight / batch.weight if at >= begin else 0)
        task.model.zero_grad()
        total.backward()
        wanted = {n: one.grad + wanted.get(n, 0) for n, one in task.model.named_parameters()}
    assert apart(learnt(task, batch, BPTT(window=window, every=every))[0], alive(wanted)) < 1e-12


# --- right in the mean ---


def all_signs(monkeypatch: pytest.MonkeyPatch, count: int) -> Iterator[None]:
    """Every sequence of so many signs in turn, in place of those that are drawn."""
    for signs in itertools.product((0, 1), repeat=count):
        left = iter(signs)

        def given(low: int, high: int, shape: Any, **_: Any) -> Tensor:
            size = torch.Size(shape)
            return torch.tensor([next(left) for _ in range(size.numel())]).view(size)  # noqa: B023

        with monkeypatch.context() as patch:
            patch.setattr(torch, "randint", given)
            yield


@pytest.mark.parametrize(("learner", "units", "drawn"), [(UORO(), 2, 2), (KFRTRL(), 3, 2)])
def test_over_all_signs_the_mean_is_bptt(
    learner: Learner, units: int, drawn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, batch = Toy("elman", units=units, embedding=None), tokens(rows=1, time=4)
    whole = alive(learnt(task, batch, BPTT())[0])
    each = [learnt(task, batch, learner)[0] for _ in all_signs(monkeypatch, 4 * drawn)]
    mean = {name: torch.stack([one[name] for one in each]).mean(0) for name in whole}
    assert apart(mean, whole) < 1e-10
    assert apart(each[0], each[1]) + apart(each[0], each[5]) > 1e-4


def test_over_all_signs_uoro_learns_the_start_too(monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch = Begins("elman", units=2), tokens(rows=1, time=3)
    whole = alive(learnt(task, batch, BPTT())[0])
    each = [learnt(task, batch, UORO())[0] for _ in all_signs(monkeypatch, 8)]
    assert apart({name: torch.stack([one[name] for one in each]).mean(0) for name in whole}, whole) < 1e-10


@pytest.mark.parametrize(
    ("make", "cell"),
    [(lambda seed: UORO(seed=seed), "lstm"), (lambda seed: KFRTRL(seed=seed), "elman"),
     (lambda seed: ForwardGradient(seed=seed), "gru")],
)  # fmt: skip
def test_means_over_seeds_come_closer_with_the_square_root(make: Callable[[int], Learner], cell: str) -> None:
    task, batch = Toy(cell, units=2, embedding=None), tokens(rows=1, time=3)
    whole = torch.cat([one.flatten() for one in alive(learnt(task, batch, BPTT())[0]).values()])
    drawn = torch.stack(
        [torch.cat([one.flatten() for one in learnt(task, batch, make(seed))[0].values()]) for seed in range(256)]
    )
    sizes = (4, 16, 64)
    errors = [
        float(torch.stack([(some.mean(0) - whole).norm() for some in drawn.split(size)]).square().mean().sqrt())
        for size in sizes
    ]
    slope = np.polyfit(np.log(sizes), np.log(errors), 1)[0]
    assert -0.65 < slope < -0.35


def test_forward_gradients_along_the_axes_are_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch = Toy("gru", units=2), tokens(rows=2, time=4)
    whole = alive(learnt(task, batch, BPTT())[0])
    count = sum(one.numel() for one in whole.values())
    axes = iter(
        (torch.eye(count, dtype=torch.float64) * count**0.5)
        .flatten()
        .split([one.numel() for one in whole.values()] * count)
    )
    monkeypatch.setattr(torch, "randn", lambda shape, **_: next(axes).view(shape))
    assert apart(learnt(task, batch, ForwardGradient(directions=count))[0], whole) < 1e-10


def test_synthetic_gradients_that_are_not_learnt_are_truncation_and_that_are_learnt_come_closer() -> None:
    task, batch = Toy("elman"), tokens(rows=16, time=12)
    whole, cut = (alive(learnt(task, batch, BPTT(window=window))[0]) for window in (None, 3))
    assert apart(learnt(task, batch, DNI(window=3, rate=0.0))[0], cut) < 1e-12
    learner, carry = DNI(window=3, rate=0.5), None
    for _ in range(200):
        found, carry = learnt(task, batch, learner, carry)
    far = (float((one["core.weight_hh"] - whole["core.weight_hh"]).norm()) for one in (found, cut))
    assert next(far) < 0.8 * next(far)


# --- all of them ---


def made(name: str) -> tuple[Toy, Learner]:
    return Toy("leaky" if name == "rflo" else "elman"), LEARNERS[name]()


@pytest.mark.parametrize("name", ONLINE)
def test_fresh_rows_know_nothing_of_what_was(name: str) -> None:
    task, learner = made(name)
    carry = learner.start(task, tokens())
    first, after = learnt(task, tokens(), learner, carry)
    if name != "dni":  # what it has learnt of gradients stays
        assert apart(learnt(task, tokens(), learner, after._replace(shared=carry.shared))[0], first) < 1e-12
    on = tokens(seed=2)
    going = learnt(
        task, Batch(on.inputs, on.targets, None, on.weight, torch.zeros(3, dtype=torch.bool)), learner, after
    )[0]
    assert apart(going, learnt(task, on, learner, carry)[0]) > 1e-5


@pytest.mark.parametrize("name", [*ONLINE, "forward-gradient"])
def test_what_lies_past_a_rows_end_counts_for_nothing(name: str) -> None:
    task, learner = made(name)
    batch = tokens(lengths=[7, 5, 0])
    other = torch.where(within(cast(Tensor, batch.lengths), 7), batch.inputs, 0)
    found = [
        learnt(task, Batch(xs, batch.targets, batch.lengths, batch.weight, batch.fresh), learner)[0]
        for xs in (batch.inputs, other)
    ]
    assert apart(*found) < 1e-12
    alive(found[0])


@pytest.mark.parametrize("name", [*ONLINE, "forward-gradient"])
def test_the_carry_does_not_grow_with_the_length(name: str) -> None:
    task, learner = made(name)
    sizes = [
        sum(one.numel() for one in leaves(cast(State, learnt(task, tokens(time=time), learner)[1]))) for time in (2, 20)
    ]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("name", ["rtrl", "snap1", "uoro", "kf-rtrl", "rflo", "eprop", "dni", "snapn"])
def test_the_cost_is_what_the_carry_takes_or_more(name: str) -> None:
    task, learner = made(name)
    batch = tokens()
    cost, carry = learner.cost(task, batch), learner.start(task, batch)
    held = sum(4 * one.numel() for one in leaves((carry.traces, carry.shared)) if one.is_floating_point())
    assert cost is not None and held <= cost.bytes <= 20 * held + 1000 and cost.operations > 0


def dropped() -> Toy:
    task = Toy("lstm")
    weight_drop(task.model.core, 0.5)
    return task


@pytest.mark.parametrize(
    ("learner", "task", "words"),
    [
        (
            RTRL(memory=1e-6),
            Toy(),
            r"it takes 0\.0 MiB and .* multiplications a step .*learner.memory is 1e-06 GiB; take fewer units .*snap1",
        ),
        (SnAp1(memory=1e-7), Toy(), "bptt with learner.window"),
        (SnAp1(), Toy("mgu"), "the units of MGU see each other within a step"),
        (SnAp1(), Toy("lstm-projected"), "belong to no single unit"),
        (EProp(), Toy("lstm-layernorm"), "see each other within a step"),
        (SnAp1(), dropped(), "leave out model.recurrent_dropout"),
        (RFLO(), Toy("lstm"), "take --cell leaky, or eprop"),
        (KFRTRL(), Toy("gru"), "take --cell elman --layers 1"),
        (KFRTRL(), Toy("leaky"), "one layer of elman units"),
        (KFRTRL(), Toy(layers=2), "one layer of elman units"),
        (SnApN(), Toy("window"), "puts out something else"),
    ],
)
def test_what_cannot_be_learnt_is_said(learner: Learner, task: Toy, words: str) -> None:
    found = learner.supports(task, tokens())
    assert found is not None and re.search(words, found)


@pytest.mark.parametrize("name", ONLINE)
def test_what_can_be_learnt_is_not_refused(name: str) -> None:
    task, learner = made(name)
    assert learner.supports(task, tokens()) is None


def test_looking_at_a_step_leaves_the_cells_as_they_were() -> None:
    task, batch = Toy("lstm"), tokens()
    before = {name: one.clone() for name, one in task.model.state_dict().items()}
    with pytest.raises(UsageError):
        local.Eye(task, {})(next(iter(batch.windows(1))), tmap(lambda leaf: leaf[:, :1], task.model.initial_state(3)))
    local.Eye(task, {})(next(iter(batch.windows(1))), task.model.initial_state(3))
    assert "step" not in vars(task.model.core)
    assert all(torch.equal(one, before[name]) for name, one in task.model.state_dict().items())
