"""Reservoirs, and readouts in closed form, against NumPy."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import recurra
from recurra.cells import Projected, Reservoir
from recurra.data.batch import Batch
from recurra.data.feed import Corpus, Stream
from recurra.data.windows import Inputs
from recurra.distributions import Point
from recurra.forecasting import Direct, FedBack, Segments, Sizes
from recurra.learn import Regression, Ridge
from recurra.learn.ridge import RIDGES, SHARPNESS
from recurra.state import State, named, unname, within

Array = np.ndarray


def reservoir(inputs: int = 3, units: int = 8, **options: Any) -> Reservoir:
    torch.manual_seed(0)
    return Reservoir(inputs, units, **{"density": 0.5, **options})


def test_a_reservoir_computes_its_equations() -> None:
    cell = reservoir(leak=0.3).double()
    xs = torch.randn(1, 6, 3, dtype=torch.float64)
    ys, _ = cell.unroll(xs, cell.initial_state(1))
    w_in, w, b = (getattr(cell, name).numpy() for name in ("weight_ih", "weight_hh", "bias_ih"))
    h = np.zeros(8)
    for t in range(6):
        h = 0.7 * h + 0.3 * np.tanh(w_in @ xs[0, t].numpy() + w @ h + b)
        np.testing.assert_allclose(ys[0, t].numpy(), h, rtol=1e-12)


@pytest.mark.parametrize("radius", [0.4, 1.3])
def test_a_reservoir_has_the_radius_density_and_scale_asked_for_and_learns_nothing(radius: float) -> None:
    cell = reservoir(2, 300, radius=radius, density=0.1, scale=0.25)
    weights = cell.weight_hh.numpy()
    assert np.abs(np.linalg.eigvals(weights)).max() == pytest.approx(radius, rel=1e-3)
    assert (weights != 0).mean() == pytest.approx(0.1, abs=0.005)
    for part in (cell.weight_ih, cell.bias_ih):
        assert 0.2 < part.abs().max() <= 0.25
    assert not list(cell.parameters()) and set(cell.state_dict()) == {"weight_ih", "weight_hh", "bias_ih"}


def test_the_echo_of_a_start_fades_below_radius_one_and_not_far_above_it() -> None:
    apart = {}
    for radius in (0.8, 3.0):
        cell = reservoir(1, 100, radius=radius, density=1.0)
        xs = 0.1 * torch.randn(1, 200, 1)
        _, one = cell.unroll(xs, cell.initial_state(1))
        _, other = cell.unroll(xs, type(one)(torch.ones(1, 100)))
        apart[radius] = float((one.h - other.h).norm())
    assert apart[0.8] < 1e-5 and apart[3.0] > 0.1


@pytest.mark.parametrize("options", [{"leak": 0.0}, {"density": 1.1}, {"radius": -1.0}, {"scale": -0.1}])
def test_a_reservoir_refuses_numbers_that_cannot_be(options: dict[str, float]) -> None:
    with pytest.raises(recurra.UsageError, match="wanted"):
        reservoir(**options)


# --- the readout -----------------------------------------------------------------------------------------------------


class Echo:
    """Numbers, or scores, of a stream of numbers, from a reservoir whose state is carried on."""

    def __init__(
        self, values: Array, targets: Array, link: Any = "identity", rows: int = 3, lengths: Any = None
    ) -> None:
        torch.manual_seed(0)
        self.link, self.values, self.targets = link, torch.from_numpy(values), torch.from_numpy(targets)
        self.model = Projected(Reservoir(values.shape[2], 20, density=0.5), targets.shape[2]).double()
        self.lengths, self.validated = lengths, []

    def steps_per_epoch(self) -> int:
        return -(-self.values.shape[1] // 16)

    def batches(self, passes: int = 1) -> list[Batch]:
        """Each pass in windows of 16 steps."""
        fresh = torch.ones(len(self.values), dtype=torch.bool)
        whole = Batch(self.values, self.targets, self.lengths, float(self.targets.numel()), fresh)
        return list(whole.windows(16)) * passes

    def regression(self, batch: Batch, state: State) -> Regression:
        xs, state = self.model.cell.unroll(batch.inputs, state, batch.lengths)
        kept = within(torch.full((batch.rows,), batch.time) if batch.lengths is None else batch.lengths, batch.time)
        return Regression(xs[kept], batch.targets[kept], (self.model.weight_yh,), self.model.bias_y, self.link, state)

    def loss(self, batch: Batch, state: State) -> tuple[torch.Tensor, State]:
        ys, state = self.model.unroll(batch.inputs, state, batch.lengths)
        return (ys - batch.targets).square().mean(), state

    def validate(self) -> Any:
        """Best where the weights are of a size that lies between those of the ridges."""
        self.validated.append(float(self.model.weight_yh.detach().norm()))
        return type("Told", (), {"error": abs(math.log(self.validated[-1]) - math.log(self.wanted))})

    wanted = 1.0


def numbers(rows: int = 3, steps: int = 50, outputs: int = 2) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, steps, 3)), 5 + rng.normal(size=(rows, steps, outputs))


def trained(task: Any, learner: Ridge, passes: int = 1) -> Any:
    task.model.train()
    batches = task.batches(passes)
    assert learner.supports(task, batches[0]) is None
    carry = learner.start(task, batches[0])
    for batch in batches:
        loss, carry = learner(task, batch, carry)
        assert not loss.requires_grad
    return carry


def whole_features(task: Echo) -> Array:
    with torch.no_grad():
        ys, _ = task.model.cell.unroll(task.values, task.model.cell.initial_state(len(task.values)))
    return ys.numpy()


def by_hand(x: Array, y: Array, ridge: float) -> tuple[Array, Array]:
    """The normal equations with a column of ones that is not shrunk."""
    shrinking = ridge * ((x - x.mean(0)) ** 2).sum(0).mean()
    ones = np.concatenate([x, np.ones((len(x), 1))], 1)
    shrunk = np.diag([*[shrinking] * x.shape[1], 0.0])
    solution = np.linalg.solve(ones.T @ ones + shrunk, ones.T @ y)
    return solution[:-1].T, solution[-1]


@pytest.mark.parametrize("ridge", [1e-6, 0.3])
def test_the_readout_is_the_ridge_solution_over_the_whole_stream(ridge: float) -> None:
    task = Echo(*numbers())
    trained(task, Ridge(ridge=ridge))
    weights, bias = by_hand(whole_features(task).reshape(-1, 20), task.targets.numpy().reshape(-1, 2), ridge)
    np.testing.assert_allclose(task.model.weight_yh.detach().numpy(), weights, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(task.model.bias_y.detach().numpy(), bias, rtol=1e-6, atol=1e-8)
    assert all(parameter.grad is None for parameter in task.model.parameters())


def test_what_lies_past_the_end_of_a_row_is_not_learnt() -> None:
    task = Echo(*numbers(), lengths=torch.tensor([50, 21, 0]))
    task.targets[1, 21:] = 1e6
    trained(task, Ridge(ridge=0.1))
    kept = np.arange(50) < np.array([50, 21, 0])[:, None]
    weights, _ = by_hand(whole_features(task)[kept], task.targets.numpy()[kept], 0.1)
    np.testing.assert_allclose(task.model.weight_yh.detach().numpy(), weights, rtol=1e-6, atol=1e-8)


def test_more_passes_change_no_bit_and_a_checkpoint_in_the_middle_none_either() -> None:
    once, thrice, stopped = Echo(*numbers()), Echo(*numbers()), Echo(*numbers())
    trained(once, Ridge())
    trained(thrice, Ridge(), passes=3)
    learner, carry = Ridge(), None
    for batch in stopped.batches():
        carry = carry or learner.start(stopped, batch)
        _, carry = learner(stopped, batch, unname(carry, named(carry)))
    for other in (thrice, stopped):
        assert torch.equal(once.model.weight_yh, other.model.weight_yh)
        assert torch.equal(once.model.bias_y, other.model.bias_y)


def test_auto_takes_the_ridge_that_does_best_on_the_validation_data() -> None:
    sizes = {}
    for ridge in RIDGES:
        task = Echo(*numbers())
        trained(task, Ridge(ridge=ridge))
        sizes[ridge] = float(task.model.weight_yh.detach().norm())
    for ridge in (1e-4, 1e-2, 1.0):
        task = Echo(*numbers())
        task.wanted = sizes[ridge]
        trained(task, Ridge())
        assert len(task.validated) == len(RIDGES)  # at the end of the pass, and never before
        assert float(task.model.weight_yh.detach().norm()) == pytest.approx(sizes[ridge])


@pytest.mark.parametrize("link", ["softmax", "logistic"])
def test_scores_are_frequencies_moved_by_least_squares_with_the_sharpness_that_suits_best(link: str) -> None:
    values, _ = numbers(rows=4, steps=16)
    kinds = (values.sum(2).cumsum(1) > 0) + 2 * (values[..., 0] > 1)
    targets = np.eye(4)[kinds] if link == "softmax" else np.stack([kinds % 2, kinds // 2], 2).astype(float)
    task = Echo(values, targets, link)
    trained(task, Ridge(ridge=1e-3))
    x, y = whole_features(task).reshape(-1, 20), targets.reshape(-1, targets.shape[2])
    weights, bias = by_hand(x, y, 1e-3)
    p = y.mean(0)
    moved = x @ weights.T + bias - p

    def scores(s: float) -> Array:
        return (
            np.log(p) + s * moved / np.sqrt(p)
            if link == "softmax"
            else np.log(p / (1 - p)) + s * moved / np.sqrt(p - p * p)
        )

    def surprise(z: Array) -> float:
        if link == "softmax":
            return float((np.log(np.exp(z).sum(1)) - (z * y).sum(1)).mean())
        return float((np.log1p(np.exp(z)) - z * y).mean())

    best = min(SHARPNESS, key=lambda s: surprise(scores(s)))
    assert SHARPNESS[0] < best < SHARPNESS[-1]
    with torch.no_grad():
        ours = x @ task.model.weight_yh.numpy().T + task.model.bias_y.numpy()
    np.testing.assert_allclose(ours, scores(best), rtol=1e-6, atol=1e-6)


def test_a_feature_that_never_changes_is_harmless_and_one_that_is_no_number_is_named() -> None:
    values, targets = numbers()
    task = Echo(values, targets)
    with torch.no_grad():
        task.model.cell.weight_ih[4] = task.model.cell.weight_hh[4] = 0
    trained(task, Ridge())
    assert task.model.weight_yh.isfinite().all()
    for bias in (0.7, 0.0):
        still = Echo(values, targets)
        with torch.no_grad():
            still.model.cell.weight_ih.zero_()
            still.model.cell.weight_hh.zero_()
            still.model.cell.bias_ih.fill_(bias)
        trained(still, Ridge(ridge=1e-8))
        assert still.model.weight_yh.abs().max() < 1e-2
        said, _ = still.model(torch.zeros(1, 3, dtype=torch.float64), still.model.initial_state(1))
        np.testing.assert_allclose(said[0].detach(), targets.reshape(-1, 2).mean(0), rtol=1e-9)
    values[0, 3] = np.inf
    values[0, 4] = np.nan
    with pytest.raises(recurra.RecurraError, match="not a finite number"):
        trained(Echo(values, targets), Ridge())


# --- what tasks say of themselves as regressions ---------------------------------------------------------------------


def windows(rows: int = 6, context: int = 5, horizon: int = 2, features: int = 1) -> tuple[Inputs, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    past = torch.randn(rows, context, features, generator=generator)
    inputs = Inputs(past, torch.zeros(rows, context + horizon, 0), torch.zeros(rows, 0), torch.zeros(rows).long())
    return inputs, torch.randn(rows, horizon, features, generator=generator)


@pytest.mark.parametrize("head", ["direct", "direct, linear", "recurrent"])
def test_a_forecaster_says_of_its_features_what_it_says_of_its_windows(head: str) -> None:
    torch.manual_seed(0)
    sizes, core = Sizes(5, 2, 1, 0, 0, 1), Reservoir(1, 7)
    network: Any = (
        FedBack(sizes, Point(True), core) if head == "recurrent" else Direct(sizes, Point(True), core, "," in head)
    )
    if head == "direct, linear":
        nn.init.normal_(network.linear.weight)
    inputs, values = windows()
    one = network.regression(inputs, values)
    weights = torch.cat(one.weights, 1)
    said = one.features @ weights.T + one.bias
    torch.testing.assert_close(said.reshape(values.shape), network.taught(inputs, values)[..., 0])
    torch.testing.assert_close(one.targets.reshape(values.shape), values)


def test_heads_that_are_not_linear_say_so() -> None:
    inputs, values = windows(features=2)
    sizes = Sizes(5, 2, 2, 0, 0, 1)
    with pytest.raises(recurra.UsageError, match=r"task\.head=direct"):
        Segments(sizes, Point(True), Reservoir(4, 4), False, 1, 0.0).regression(inputs, values)
    with pytest.raises(recurra.UsageError, match=r"task\.linear=false"):
        Direct(sizes, Point(True), Reservoir(2, 4), True).regression(inputs, values)


# --- from the command line -------------------------------------------------------------------------------------------


def test_a_reservoir_forecasts_a_series_that_follows_itself(shell, tmp_path) -> None:
    rng, y = np.random.default_rng(0), [0.5]
    for _ in range(400):
        y.append(3.8 * y[-1] * (1 - y[-1]))  # the logistic map: chaos, which no line follows
    (tmp_path / "map.csv").write_text(
        "t,y\n" + "".join(f"{t},{v + 1e-9 * rng.normal():.9f}\n" for t, v in enumerate(y))
    )
    how = ["--cell", "reservoir", "--learner", "ridge", "--hidden", 60, "--epochs", 1, "--quiet", "--out", "run"]
    how += [
        "--set",
        "task.head=recurrent",
        "--set",
        "task.horizon=1",
        "--set",
        "task.context=10",
        "--set",
        "task.scale=series",
    ]
    answer = shell("train", "forecast", "map.csv", *how)
    assert answer.code == 0, answer.err
    report = recurra.load(tmp_path / "run").evaluate()
    assert report["scores"]["mase"] < 0.1 * min(report["floors"].values())


def test_a_reservoir_tells_which_key_comes_next(shell, tmp_path) -> None:
    rows = [f"{s},{t},{','.join(str(int((t + s) % 3 == k)) for k in range(3))}\n" for s in range(12) for t in range(60)]
    (tmp_path / "keys.csv").write_text("unique_id,ds,a,b,c\n" + "".join(rows))
    how = ["--cell", "reservoir", "--learner", "ridge", "--hidden", 40, "--epochs", 1, "--quiet", "--out", "run"]
    answer = shell("train", "forecast", "keys.csv", *how, "--set", "task.output=binary")
    assert answer.code == 0, answer.err
    assert recurra.load(tmp_path / "run").evaluate()["scores"]["nats_per_step"] < 0.1  # each key after itself: 1.4


def test_ridge_trains_language_classify_and_regress(shell, tmp_path) -> None:
    (tmp_path / "text.txt").write_text("abcabdabcabd\n" * 80)
    rows = ["hot,1\n", "warm,0.8\n", "cool,0.2\n", "cold,0\n"] * 15
    (tmp_path / "numbers.csv").write_text("text,value\n" + "".join(rows))
    (tmp_path / "labels.csv").write_text(
        "text,label\n" + "good film,yes\nbad film,no\ngood play,yes\nbad play,no\n" * 15
    )
    wanted = [
        ("language", "text.txt", [], lambda s, floors: s["bits_per_character"] < 0.5 * floors["unigram"]),
        ("classify", "labels.csv", [], lambda s, floors: s["accuracy"] == 1),
        ("regress", "numbers.csv", ["--label", "value"], lambda s, floors: s["mse"] < 0.01),
    ]
    for task, data, options, good in wanted:
        how = ["--cell", "reservoir", "--learner", "ridge", "--hidden", 60, "--epochs", 1, "--quiet", "--out", task]
        answer = shell("train", task, data, *how, *options)
        assert answer.code == 0, answer.err
        report = recurra.load(tmp_path / task).evaluate()
        assert good(report["scores"], report["floors"]), report


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("language", ["--set", "embed.tied=true"], "leave out embed.tied"),
        ("language", ["--set", "learner.ridge=0"], "above 0"),
        ("forecast", [], "task.head=direct or recurrent"),
        ("forecast", ["--set", "task.head=direct", "--set", "task.output=gaussian"], "leave out task.output"),
        ("tag", [], "take language, classify, regress or forecast"),
    ],
)
def test_what_ridge_cannot_train_is_refused_in_words(
    shell, tmp_path, task: str, options: list[Any], words: str
) -> None:
    lines = {
        "language": ("data.txt", "some words of a text\n" * 20),
        "forecast": ("data.csv", "t,y\n" + "".join(f"{t},{t % 7}\n" for t in range(90))),
        "tag": ("data.conll", "a X\nb Y\n\n" * 30),
    }
    (tmp_path / lines[task][0]).write_text(lines[task][1])
    answer = shell("train", task, lines[task][0], "--learner", "ridge", "--steps", 1, "--out", "run", *options)
    assert answer.code == 2 and words in answer.said


def test_a_stream_is_read_once_in_the_steps_that_are_counted() -> None:
    stream = Stream(Corpus(np.arange(200), np.array([0, 90, 200])), rows=3, chunk=7, seed=1)
    seen: list[int] = []
    for batch in stream.batches():
        if batch.step >= stream.epoch_steps():
            break
        kept = within(torch.full((3,), batch.time) if batch.lengths is None else batch.lengths, batch.time)
        seen += batch.inputs[kept].tolist()
    assert sorted(seen) == [*range(89), *range(90, 199)]
