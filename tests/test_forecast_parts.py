"""The parts of a forecast: windows, distributions, forecasters, floors and scores, each against a slow and plain version."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recurra.cells import GRU
from recurra.data.panel import Panel
from recurra.data.times import Frequency
from recurra.data.windows import Inputs, Scales, Windows, drawing, scales_of
from recurra.distributions import Gaussian, Output, Point, Quantiles, StudentT, pinball, student_quantile
from recurra.forecasting import Direct, FedBack, Forecaster, Segments, Sizes
from recurra.tasks.forecast_floors import frame_floors, naive, seasonal_error
from recurra.tasks.forecast_scores import Suspicions, Tally, unusual

sizes_of_series = st.lists(st.integers(1, 30), min_size=1, max_size=4)


def panel_of(series: list[np.ndarray], seen: np.ndarray | None = None) -> Panel:
    values = np.concatenate(series)
    there = np.ones_like(values, bool) if seen is None else seen
    bounds, names = np.cumsum([0, *map(len, series)]), [f"s{k}" for k in range(len(series))]
    nothing = np.zeros((len(series), 0), np.float32)
    variables = [f"v{at}" for at in range(values.shape[1])]
    starts = np.zeros(len(series), np.int64)
    return Panel(
        names,
        variables,
        values,
        there,
        bounds,
        starts,
        Frequency("step", 1),
        values[:, :0],
        [],
        nothing,
        [],
        starts == 0,
    )


def windows_of(panel: Panel, spans: list[tuple[int, int]], context: int, horizon: int, **options: object) -> Windows:
    chosen = {
        "stride": 1,
        "scored": horizon,
        "anchored": False,
        "split": True,
        "known": panel.known,
        "static": panel.static,
    }
    chosen["scales"] = scales_of(panel, np.array([end for _, end in spans]))
    return Windows(panel, np.array(spans), context, horizon, **{**chosen, **options})


@settings(max_examples=80, deadline=None)
@given(
    sizes_of_series,
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
    st.integers(0, 8),
)
def test_windows_are_every_horizon_of_a_part_with_its_context_before(
    sizes: list[int], context: int, horizon: int, stride: int, split: bool, anchored: bool, begin: int
) -> None:
    rng = np.random.default_rng(sum(sizes))
    series = [rng.normal(k, 3, (size, 2)) for k, size in enumerate(sizes)]
    panel = panel_of(series)
    spans = [(min(begin, size), size) for size in sizes]
    windows = windows_of(panel, spans, context, horizon, stride=stride, split=split, anchored=anchored)
    wanted = []
    for k, (low, high) in enumerate(spans):
        first = max(low, min(context, high - horizon))
        wanted += [(k, at) for at in range(first, high - horizon + 1, stride)] if first > 0 else []
    assert len(windows) == len(wanted)
    if not wanted:
        return
    found, origins = windows.origins(np.arange(len(windows)))
    assert list(zip(found.tolist(), origins.tolist(), strict=True)) == wanted
    batch = windows.take(np.arange(len(windows)))
    targets = batch.targets
    past = windows.together(batch.inputs.past * targets.scale + targets.shift).numpy()
    future = windows.together(targets.values * targets.scale + targets.shift).numpy()
    for at, (k, origin) in enumerate(wanted):
        steps = np.maximum(np.arange(origin - context, origin), 0)
        np.testing.assert_allclose(past[at], panel.values[panel.bounds[k] + steps], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(future[at], series[k][origin : origin + horizon], rtol=1e-4, atol=1e-4)
    if anchored:
        assert batch.inputs.past[:, -1].abs().max() < 1e-5


def test_an_epoch_has_each_window_once_and_a_batch_depends_on_its_step_alone() -> None:
    panel = panel_of([np.arange(40.0)[:, None], 100 + np.arange(9.0)[:, None]])
    windows = windows_of(panel, [(0, 40), (0, 9)], 3, 2)
    seen: list[int] = []
    batches = [batch for _, batch in zip(range(2 * windows.epoch_steps(5)), windows.batches(5, seed=1), strict=False)]
    for number, batch in enumerate(batches):
        assert batch.step == number
        again = next(windows.batches(5, seed=1, start=number))
        assert torch.equal(again.inputs.past, batch.inputs.past)
        if number < windows.epoch_steps(5):
            seen += (batch.targets.values * batch.targets.scale + batch.targets.shift)[:, 0, 0].round().int().tolist()
    assert sorted(seen) == [*range(3, 39), *range(103, 108)]
    assert not torch.equal(batches[0].inputs.past, batches[windows.epoch_steps(5)].inputs.past), "epochs differ"


def test_scales_are_those_of_what_was_seen_in_training_and_constant_series_are_shifted_only() -> None:
    seen = np.ones((8, 2), bool)
    seen[1, 0] = False
    values = np.array([[1, 5], [999, 5], [3, 5], [5, 5], [70, 5], [80, 9], [9, 9], [1, 1]], float)
    scales = scales_of(panel_of([values], seen), np.array([4]))
    np.testing.assert_allclose(scales.mean[0], [3, 5])
    np.testing.assert_allclose(scales.deviation[0], [np.std([1, 3, 5]), 1])


def test_what_was_filled_is_not_a_target() -> None:
    seen = np.array([1, 1, 1, 0, 1], bool)[:, None]
    windows = windows_of(panel_of([np.arange(5.0)[:, None]], seen), [(0, 5)], 2, 2, scored=3)
    batch = windows.take(np.arange(len(windows)))
    assert batch.targets.seen[:, :, 0].tolist() == [[1, 1, 0], [1, 0, 1]] and batch.weight == 4


def test_what_is_repeated_before_a_series_begins_is_not_a_target() -> None:
    windows = windows_of(panel_of([np.arange(4.0)[:, None]]), [(0, 4)], 5, 1, scored=5)
    batch = windows.take(np.arange(len(windows)))
    assert batch.targets.seen[:, :, 0].tolist() == [[0, 1, 1, 1, 1]] and batch.weight == 4


def test_the_drawing_shows_context_horizon_and_stride() -> None:
    lines = drawing(40, 10, 5)
    assert [line.strip().split("   ")[0].count("#") for line in lines] == [10] * 3
    assert [line.strip().split("   ")[0].count("-") for line in lines] == [40] * 3
    assert [len(line) - len(line.lstrip()) for line in lines] == [0, 5, 10]


# --- distributions ---------------------------------------------------------------------------------------------------


def test_likelihoods_are_those_of_torch() -> None:
    raw, y = torch.randn(50, 3, dtype=torch.float64), torch.randn(50, dtype=torch.float64) * 4
    scale = torch.nn.functional.softplus(raw[:, 1]) + 1e-4
    freedom = 2 + torch.nn.functional.softplus(raw[:, 2]) + 1e-4
    normal = torch.distributions.Normal(raw[:, 0], scale)
    student = torch.distributions.StudentT(freedom, raw[:, 0], scale)
    torch.testing.assert_close(Gaussian().loss(raw[:, :2], y), -normal.log_prob(y))
    torch.testing.assert_close(StudentT().loss(raw, y), -student.log_prob(y))
    torch.testing.assert_close(
        Gaussian().quantiles(raw[:, :2], (0.9,))[:, 0], normal.icdf(torch.tensor(0.9, dtype=torch.float64))
    )


@pytest.mark.parametrize("level", [0.01, 0.1, 0.25, 0.4, 0.5, 0.75, 0.9, 0.995])
def test_quantiles_of_students_t_are_right_to_a_fifth_of_a_percent(level: float) -> None:
    freedom = torch.tensor([2.001, 2.3, 3, 4.9, 5, 8, 30, 1e4], dtype=torch.float64)
    wanted = stats.t.ppf(level, freedom.numpy())
    np.testing.assert_allclose(student_quantile(level, freedom).numpy(), wanted, rtol=2e-3, atol=1e-9)


def test_draws_have_the_quantiles_that_are_said() -> None:
    torch.manual_seed(0)
    for output, raw in [(Gaussian(), torch.tensor([1.0, 2.0])), (StudentT(), torch.tensor([1.0, 2.0, 3.0]))]:
        drawn = output.sample(raw.expand(200_000, -1), 1 - torch.rand(2, 200_000))
        said = output.quantiles(raw, (0.1, 0.5, 0.9))
        torch.testing.assert_close(
            torch.quantile(drawn[:100_000], torch.tensor([0.1, 0.5, 0.9])), said, atol=0.05, rtol=0.02
        )


def test_learnt_quantiles_are_put_in_order_and_linear_between() -> None:
    output = Quantiles((0.1, 0.5, 0.9))
    raw = torch.tensor([[5.0, 1.0, 3.0]])
    torch.testing.assert_close(output.quantiles(raw, (0.1, 0.3, 0.5, 0.9)), torch.tensor([[1.0, 2.0, 3.0, 5.0]]))
    assert float(output.mean(raw)) == 3 and float(Quantiles((0.5,)).mean(torch.tensor([[7.0]]))) == 7


def test_the_pinball_loss_is_least_at_the_quantile() -> None:
    values = torch.tensor(np.random.default_rng(0).normal(size=20_001))
    tried = torch.linspace(-2, 2, 401, dtype=torch.float64)
    losses = torch.stack([pinball(t.expand(len(values), 1), values, (0.8,)).mean() for t in tried])
    assert abs(float(tried[losses.argmin()]) - float(values.quantile(0.8))) < 0.02


# --- forecasters -----------------------------------------------------------------------------------------------------

SIZES = Sizes(context=7, horizon=5, features=1, known=2, static=1, variables=3)


def forecaster(head: str, output: Output, sizes: Sizes = SIZES) -> Forecaster:
    torch.manual_seed(0)
    if head == "direct":
        direct = Direct(sizes, output, GRU(Direct.inputs(sizes), 6), True).eval()
        torch.nn.init.normal_(direct.ahead.weight)
        return direct
    if head == "recurrent":
        return FedBack(sizes, output, GRU(FedBack.inputs(sizes), 6)).eval()
    made = Segments(sizes, output, GRU(8, 6), True, 3, 0.5).eval()
    return made


def inputs(rows: int = 4, sizes: Sizes = SIZES) -> Inputs:
    steps = sizes.context + sizes.horizon
    return Inputs(
        torch.randn(rows, sizes.context, sizes.features), torch.randn(rows, steps, sizes.known),
        torch.randn(rows, sizes.static), torch.arange(rows) % sizes.variables,
    )  # fmt: skip


HEADS = ["direct", "recurrent", "segments"]
SCORED = {"direct": SIZES.horizon, "recurrent": SIZES.context + SIZES.horizon - 1, "segments": SIZES.horizon}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "output", [Point(True), Gaussian(), StudentT(), Quantiles((0.2, 0.5, 0.8))], ids=lambda o: type(o).__name__
)
def test_every_head_says_every_output(head: str, output: Output) -> None:
    if head == "recurrent" and isinstance(output, Quantiles):
        pytest.skip("quantiles cannot be fed back; the task refuses them")
    network, given = forecaster(head, output), inputs()
    raw = network.taught(given, torch.randn(4, SCORED[head], 1))
    assert raw.shape == (4, SCORED[head], 1, output.parameters)
    said = network.forecast(given, () if output.certain else (0.2, 0.8))
    assert said.mean.shape == (4, 5, 1)
    if said.quantiles is not None:
        assert said.quantiles.shape == (4, 5, 1, 2) and (said.quantiles[..., 0] <= said.quantiles[..., 1]).all()


@pytest.mark.parametrize("head", HEADS)
def test_rows_do_not_see_each_other_and_gradients_reach_every_weight(head: str) -> None:
    network, given = forecaster(head, Gaussian()), inputs()
    alone = Inputs(*(x[2:3] for x in given))
    values = torch.randn(4, SCORED[head], 1)
    whole = network.taught(given, values)
    torch.testing.assert_close(network.taught(alone, values[2:3]), whole[2:3])
    network.output.loss(whole, values).sum().backward()
    assert not [
        name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.abs().sum()
    ]


def test_a_head_that_is_fed_back_is_the_loop_by_hand() -> None:
    network, given = forecaster("recurrent", Point(False)), inputs()
    assert isinstance(network, FedBack)
    state, told, said = network.core.initial_state(4), network.told(given), []
    for t in range(SIZES.context + SIZES.horizon - 1):
        value = given.past[:, t] if t < SIZES.context else said[-1]
        y, state = network.core(torch.cat([value, given.known[:, t + 1], told], 1), state)
        if t >= SIZES.context - 1:
            said.append(network.readout(y))
    torch.testing.assert_close(network.forecast(given).mean, torch.stack(said, 1))
    truth = torch.cat([given.past[:, 1:], network.forecast(given).mean], 1)
    torch.testing.assert_close(network.taught(given, truth)[:, -SIZES.horizon :, :, 0], torch.stack(said, 1))


@pytest.mark.parametrize("head", ["direct", "recurrent"])
def test_what_is_known_of_a_step_ahead_changes_nothing_before_it(head: str) -> None:
    network, given = forecaster(head, Point(False)), inputs()
    before = network.forecast(given).mean
    known = given.known.clone()
    known[:, SIZES.context + 3] += 1
    after = network.forecast(given._replace(known=known)).mean
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert (after[:, 3] - before[:, 3]).abs().min() > 1e-4


def test_segments_are_the_published_steps_one_after_another() -> None:
    network, given = forecaster("segments", Point(False)), inputs()
    assert isinstance(network, Segments) and network.linear is not None
    torch.nn.init.normal_(network.linear.weight)
    read = torch.cat([given.past, given.known[:, :7]], 2)
    read = torch.cat([read[:, :1], read[:, :1], read], 1)  # 7 steps are made 9
    state = network.core.initial_state(4)
    for at in range(0, 9, 3):
        _, state = network.core(network.embed(read[:, at : at + 3].flatten(1)).relu(), state)
    said = []
    for segment in range(2):
        told = torch.cat([network.variable[given.variable], network.place[segment].expand(4, -1)], 1)
        known = torch.cat([given.known[:, 7:], torch.zeros(4, 1, 2)], 1)[:, 3 * segment : 3 * segment + 3]
        told = told + network.ahead(known.flatten(1)) + network.static(given.static)
        y, _ = network.core(told, state)
        said.append(network.readout(y))
    wanted = torch.cat(said, 1)[:, :5] + given.past[..., 0] @ network.linear.weight.T
    torch.testing.assert_close(network.forecast(given).mean[..., 0], wanted)


# --- floors and scores -----------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 25), st.integers(1, 9), st.integers(1, 12), st.integers(0, 5))
def test_floors_are_those_of_the_textbook(length: int, horizon: int, season: int, before: int) -> None:
    rng = np.random.default_rng(length)
    values = rng.normal(size=(before + length + horizon, 2))
    history = values[before : before + length]
    found = naive(values, np.array([before]), np.array([length]), horizon, season)
    for h in range(1, horizon + 1):
        slope = (history[-1] - history[0]) / max(1, length - 1)
        k = (h - 1) // season
        seasonal = history[length + h - season * (k + 1) - 1] if length >= season else history[-1]
        np.testing.assert_allclose(found["last value"][0, h - 1], history[-1])
        np.testing.assert_allclose(found["drift"][0, h - 1], history[-1] + h * slope)
        np.testing.assert_allclose(found["seasonal naive"][0, h - 1], seasonal)


def test_scores_are_those_of_the_formulas_and_what_was_filled_counts_nothing() -> None:
    truth, guess = np.array([[[1.0], [2.0], [400.0]]]), np.array([[[2.0], [4.0], [0.0]]])
    seen = np.array([[[True], [True], [False]]])
    history = np.array([[1.0], [3.0], [2.0], [7.0]])
    tally = Tally()
    tally.add(truth, guess, seen, np.array([[2.0]]), seasonal_error(history, 2)[None])
    scores = tally.scores()
    assert (
        scores["mae"] == 1.5 and scores["mse"] == 2.5 and scores["mae_scaled"] == 0.75 and scores["mse_scaled"] == 0.625
    )
    assert math.isclose(scores["smape"], (200 / 3 + 200 * 2 / 6) / 2)
    assert math.isclose(scores["mase"], 1.5 / np.mean([1, 4]))
    assert tally.by_step() == [0.25, 1.0, 0.0]
    tally.add_quantiles(truth, np.stack([guess - 1, guess, guess + 1], -1), seen, (0.1, 0.5, 0.9))
    assert tally.scores()["coverage_80"] == 0.5


def test_a_series_that_never_changes_has_no_mase_and_no_smape_of_zero_by_zero() -> None:
    tally = Tally()
    flat = np.zeros((1, 3, 1))
    tally.add(flat, flat, flat == 0, np.ones((1, 1)), seasonal_error(flat[0], 1)[None])
    assert tally.scores() == {"mae": 0, "mse": 0, "mae_scaled": 0, "mse_scaled": 0, "smape": 0}


def test_a_flat_forecast_and_a_lagged_copy_are_said_and_a_good_one_is_not() -> None:
    rng = np.random.default_rng(0)
    truth, last, spread = rng.normal(size=(50, 8, 1)), rng.normal(size=(50, 1)), np.ones((50, 1))
    for guess, words in [
        (np.zeros_like(truth), ["is flat"]),
        (last[:, None] + 0.05 * truth, ["is flat", "lagged copy"]),
        (truth + 0.2 * rng.normal(size=truth.shape), []),
    ]:
        suspicions = Suspicions()
        suspicions.add(last, truth, guess, spread)
        said = suspicions.words()
        assert len(said) == len(words) and all(word in text for word, text in zip(words, said, strict=True))


def test_usual_errors_of_gaussian_residuals_are_deviations() -> None:
    residuals = np.random.default_rng(0).normal(0, 3, (20_000, 1))
    np.testing.assert_allclose(unusual(residuals)[:, 0], np.abs(residuals[:, 0]) / 3, rtol=0.03)
    assert unusual(np.array([[0.0], [0.0], [5.0], [np.nan]])).max() == 0, "no usual error, nothing unusual"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert unusual(np.full((3, 1), np.nan)).tolist() == [[0], [0], [0]]


def test_counted_keys_reach_what_can_be_counted() -> None:
    train = [np.array([[0, 1], [0, 0], [1, 1], [1, 0]])]
    often, after = frame_floors(train, [np.array([[0, 1], [1, 0]])]).values()
    assert math.isclose(often, -math.log(3 / 5) - math.log(3 / 5))
    assert math.isclose(after, -math.log(2 / 4) - math.log(3 / 4))


def test_what_would_be_divided_by_zero_is_left_out() -> None:
    truth = np.array([[[1.0], [2.0]], [[5.0], [9.0]]])
    tally = Tally()
    tally.add(truth, truth + 1, np.ones_like(truth, bool), np.array([[0.0], [2.0]]), np.array([[1.0], [0.0]]))
    scores = tally.scores()
    assert scores["mae_scaled"] == 0.5 and scores["mse_scaled"] == 0.25 and scores["mase"] == 1 and scores["mae"] == 1
    assert tally.by_step() == [0.25, 0.25]
    assert (seasonal_error(np.arange(6.0)[:, None], 6) == 0).all(), "a history of one season has no seasonal error"


def test_identity_scales_leave_numbers_as_they_are() -> None:
    panel = panel_of([np.arange(6.0)[:, None]])
    scales = Scales(np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32))
    batch = windows_of(panel, [(0, 6)], 2, 1, scales=scales).take(np.array([0]))
    assert batch.inputs.past[0, :, 0].tolist() == [0, 1] and batch.targets.values[0, 0].tolist() == [2]
