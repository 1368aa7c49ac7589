"""EM: filters and smoothers against enumeration and dense conditioning; the likelihood never falls."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from recurra.cells import HMM, Kalman
from recurra.cells.latent import HMMState, KalmanState
from recurra.data.batch import Batch
from recurra.data.windows import Inputs
from recurra.distributions import Point
from recurra.errors import UsageError
from recurra.forecasting import FedBack, Sizes
from recurra.learn import EM, Observed
from recurra.state import leaves, named, unname

Array = np.ndarray


def tokens(rows: int, time: int, kinds: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(kinds, (rows, time), generator=torch.Generator().manual_seed(seed))


def hmm(kinds: int = 4, states: int = 3, seed: int = 0) -> HMM:
    torch.manual_seed(seed)
    return HMM(kinds, states).double()


def kalman(inputs: int = 2, units: int = 3, seed: int = 0) -> Kalman:
    torch.manual_seed(seed)
    cell = Kalman(inputs, units).double()
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return cell


def close(ours: Any, wanted: Any, tolerance: float = 1e-8) -> None:
    np.testing.assert_allclose(np.asarray(ours.detach()), wanted, rtol=tolerance, atol=tolerance)


# --- the hidden Markov model, by all paths ---------------------------------------------------------------------------


def chances(cell: HMM, start: Array | None = None) -> tuple[Array, Array, Array]:
    pi, a, b = (part.detach().softmax(-1).numpy() for part in (cell.start, cell.transition, cell.emission))
    return (pi if start is None else start), a, b


def all_paths(ys: list[int], pi: Array, a: Array, b: Array) -> dict[tuple[int, ...], float]:
    """p(path, ys) of every path of hidden states."""
    found = {}
    for path in itertools.product(range(len(pi)), repeat=len(ys)):
        p = pi[path[0]]
        for here, after in itertools.pairwise(path):
            p *= a[here, after]
        for state, y in zip(path, ys, strict=True):
            p *= b[state, y]
        found[path] = p
    return found


def evidence(ys: list[int], pi: Array, a: Array, b: Array) -> float:
    return sum(all_paths(ys, pi, a, b).values())


def test_the_outputs_of_an_hmm_are_the_next_token_given_all_before_it() -> None:
    cell, xs = hmm(), tokens(2, 5, 4)
    scores, _ = cell.unroll(xs, cell.initial_state(2))
    for row, t in itertools.product(range(2), range(5)):
        past = xs[row, : t + 1].tolist()
        wanted = [evidence([*past, y], *chances(cell)) / evidence(past, *chances(cell)) for y in range(4)]
        close(scores[row, t].exp(), wanted)


def counted_by_paths(ys: list[int], first: int, pi: Array, a: Array, b: Array) -> tuple[Array, Array, Array]:
    """Expected counts of starts, transitions and emissions from place `first` on."""
    paths = all_paths(ys, pi, a, b)
    start, moves, put = np.zeros(len(pi)), np.zeros_like(a), np.zeros_like(b)
    for path, p in paths.items():
        share = p / sum(paths.values())
        start[path[0]] += share
        for here, after in itertools.pairwise(path):
            moves[here, after] += share
        for at in range(first, len(ys)):
            put[path[at], ys[at]] += share
    return start, moves, put


def test_expected_counts_are_those_over_all_paths_whatever_the_lengths() -> None:
    cell, ys = hmm(), tokens(4, 5, 4, seed=1)
    lengths, fresh = torch.tensor([4, 2, 0, 3]), torch.tensor([True, True, True, False])
    known = torch.tensor([[0.2, 0.5, 0.3]], dtype=torch.float64)
    state = HMMState(torch.cat([cell.initial_state(3).belief, known.log()]))
    ys[1, 3:] = 99  # past the end of a row there may be anything
    sums = cell.expected(ys, state, lengths, fresh)
    whole = [
        counted_by_paths(ys[0].tolist(), 0, *chances(cell)),
        counted_by_paths(ys[1, :3].tolist(), 0, *chances(cell)),
    ]
    going_on = counted_by_paths(ys[3, :4].tolist(), 1, *chances(cell, known[0].numpy()))
    close(sums.start, whole[0][0] + whole[1][0])
    close(sums.transition, whole[0][1] + whole[1][1] + going_on[1])
    close(sums.emission, whole[0][2] + whole[1][2] + going_on[2])


def test_gradients_of_the_likelihood_are_expected_counts_by_fishers_identity() -> None:
    cell, ys = hmm(states=5), tokens(3, 9, 4, seed=2)
    likelihood_of(cell, ys).backward()
    sums = cell.expected(ys, cell.initial_state(3), torch.full((3,), 8), torch.ones(3, dtype=torch.bool))
    for parameter, counts in zip((cell.start, cell.transition, cell.emission), sums, strict=True):
        close(parameter.grad, counts - counts.sum(-1, keepdim=True) * parameter.detach().softmax(-1))


def likelihood_of(cell: HMM, ys: torch.Tensor) -> torch.Tensor:
    """log p of whole rows, the first token among them."""
    scores, _ = cell.unroll(ys[:, :-1], cell.initial_state(len(ys)))
    first = torch.logsumexp(cell.start.log_softmax(0)[:, None] + cell.emission.log_softmax(1), 0)
    return first[ys[:, 0]].sum() - functional.cross_entropy(scores.flatten(0, 1), ys[:, 1:].flatten(), reduction="sum")


class Whole:
    """A task on whole rows, cut into batches of some rows."""

    def __init__(self, cell: Any, rows: torch.Tensor, at_once: int) -> None:
        self.model, self.rows, self.at_once = cell, rows, at_once

    def steps_per_epoch(self) -> int:
        return -(-len(self.rows) // self.at_once)

    def batches(self, passes: int) -> list[Batch]:
        parts = self.rows.split(self.at_once) * passes
        fresh = [torch.ones(len(part), dtype=torch.bool) for part in parts]
        return [Batch(part[:, :-1], part[:, 1:], None, 1.0, new) for part, new in zip(parts, fresh, strict=True)]

    def observed(self, batch: Batch) -> Observed:
        return Observed(self.model, batch.inputs, batch.targets)

    def loss(self, batch: Batch, state: Any) -> tuple[torch.Tensor, Any]:
        ys, state = self.model.unroll(batch.inputs, state)
        if self.model.tokens:
            return functional.cross_entropy(ys.flatten(0, 1), batch.targets.flatten()), state
        return (ys - batch.targets).square().mean(), state


def trained(task: Whole, learner: EM, passes: int, after_pass: Callable[[], None] = lambda: None) -> Any:
    batches = task.batches(passes)
    carry = learner.start(task, batches[0])
    for number, batch in enumerate(batches, 1):
        loss, carry = learner(task, batch, carry)
        assert loss.isfinite() and not loss.requires_grad
        if number % task.steps_per_epoch() == 0:
            after_pass()
    return carry


@pytest.mark.parametrize("seed", range(4))
def test_the_likelihood_of_an_hmm_never_falls_and_at_the_end_stands_still(seed: int) -> None:
    task, found = Whole(hmm(seed=seed), tokens(6, 20, 4, seed), at_once=3), []
    trained(task, EM(smoothing=0.0), 40, lambda: found.append(float(likelihood_of(task.model, task.rows).detach())))
    assert (np.diff(found) > -1e-8).all()
    assert found[-1] - found[0] > 5 * (found[-1] - found[-5])
    assert all(parameter.grad is None for parameter in task.model.parameters())


def test_the_m_step_waits_for_the_end_of_the_pass_and_batches_do_not_matter() -> None:
    together, apart = (Whole(hmm(), tokens(6, 9, 4), at_once) for at_once in (6, 2))
    first = apart.batches(1)
    learner, start = EM(), hmm().state_dict()
    carry = learner.start(apart, first[0])
    for batch in first[:2]:
        _, carry = learner(apart, batch, carry)
        for name, value in apart.model.state_dict().items():
            assert torch.equal(value, start[name])
    carry = unname(carry, named(carry))  # what a checkpoint does
    _, carry = learner(apart, first[2], carry)
    assert not any(leaf.any() for leaf in leaves(carry.shared.sums))
    trained(together, EM(), 1)
    for one, other in zip(together.model.parameters(), apart.model.parameters(), strict=True):
        close(one, other.detach())


def test_em_finds_the_hmm_that_made_the_data() -> None:
    rng = np.random.default_rng(0)
    a, b = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]])
    rows = []
    for _ in range(40):
        state, row = 0, []
        for _ in range(100):
            row.append(rng.choice(3, p=b[state]))
            state = rng.choice(2, p=a[state])
        rows.append(row)
    tasks = [Whole(hmm(3, 2, seed), torch.tensor(rows), at_once=40) for seed in range(4)]
    for task in tasks:
        trained(task, EM(), 60)
    likelihood = lambda model: float(likelihood_of(model, torch.tensor(rows)).detach())  # noqa: E731
    best = max((task.model for task in tasks), key=likelihood)  # others end in lesser maxima
    truth = hmm(3, 2)
    with torch.no_grad():
        for parameter, chance in zip(truth.parameters(), ([0.999, 0.001], a, b), strict=True):
            parameter.copy_(torch.as_tensor(np.log(chance)))
    assert likelihood(truth) < likelihood(best) < likelihood(truth) + 15  # a fit of six free numbers gains a few nats
    pi, found_a, found_b = chances(best)
    order = np.argsort(-found_b[:, 0])
    np.testing.assert_allclose(found_b[order], b, atol=0.08)
    np.testing.assert_allclose(found_a[order][:, order], a, atol=0.08)
    assert pi[order[0]] > 0.9


def test_smoothing_leaves_nothing_impossible() -> None:
    task = Whole(hmm(), torch.zeros(2, 6, dtype=torch.int64), at_once=2)
    trained(task, EM(smoothing=0.5), 1)
    _, _, b = chances(task.model)
    expected = task.model.expected(task.rows, hmm().initial_state(2), torch.tensor([5, 5]), torch.tensor([True, True]))
    assert b.min() > 0.5 / (12 + 4 * 0.5) * 0.99 and float(expected.emission.sum()) == pytest.approx(12)


# --- the state-space model, as one large Gaussian --------------------------------------------------------------------


def dense(cell: Kalman, steps: int) -> tuple[Array, Array, Array, Array]:
    """Mean and covariance of (z_1, ..., z_n), and how (y_1, ..., y_n) hangs on it: y = H z + d + noise of covariance N."""
    p = {name: value.detach().numpy() for name, value in cell.named_parameters()}
    a, n, inputs = p["transition"], len(p["start"]), len(p["offset"])
    q, v = p["process"] @ p["process"].T, p["start_factor"] @ p["start_factor"].T
    mean = np.concatenate([np.linalg.matrix_power(a, t) @ p["start"] for t in range(steps)])
    # z = L e with e = (z_1 - mu, w_1, w_2, ...)
    spread = np.zeros((steps * n, steps * n))
    for t, s in itertools.product(range(steps), repeat=2):
        if s <= t:
            spread[t * n : (t + 1) * n, s * n : (s + 1) * n] = np.linalg.matrix_power(a, t - s)
    noises = np.zeros((steps * n, steps * n))
    for t in range(steps):
        noises[t * n : (t + 1) * n, t * n : (t + 1) * n] = v if t == 0 else q
    h = np.kron(np.eye(steps), p["emission"])
    seen = np.kron(np.eye(steps), np.diag(np.exp(p["noise"])))
    assert h.shape == (steps * inputs, steps * n)
    return mean, spread @ noises @ spread.T, h, seen


def conditioned(cell: Kalman, ys: Array, steps: int) -> tuple[Array, Array]:
    """Mean and covariance of z_1..z_steps given the first y."""
    mean, covariance, h, seen = dense(cell, steps)
    many = ys.size
    h, seen = h[:many], seen[:many, :many]
    gain = covariance @ h.T @ np.linalg.inv(h @ covariance @ h.T + seen)
    offset = np.tile(cell.offset.detach().numpy(), len(ys))
    return mean + gain @ (ys.ravel() - h @ mean - offset), covariance - gain @ h @ covariance


def dense_likelihood(cell: Kalman, rows: torch.Tensor) -> float:
    mean, covariance, h, seen = dense(cell, rows.shape[1])
    spread = h @ covariance @ h.T + seen
    offset = np.tile(cell.offset.detach().numpy(), rows.shape[1])
    apart = rows.double().numpy().reshape(len(rows), -1) - h @ mean - offset
    _, size = np.linalg.slogdet(spread)
    return float(-0.5 * (len(rows) * size + (apart * np.linalg.solve(spread, apart.T).T).sum()))


def test_the_filter_is_the_conditional_of_one_large_gaussian() -> None:
    cell, ys = kalman(), torch.randn(1, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    outputs, last = cell.unroll(ys, cell.initial_state(1))
    for t in range(5):
        mean, covariance = conditioned(cell, ys[0, : t + 1].numpy(), t + 2)
        close(outputs[0, t], cell.emission.detach().numpy() @ mean[-3:] + cell.offset.detach().numpy())
    close(last.mean[0], mean[-3:])
    close(last.covariance[0], covariance[-3:, -3:])


def test_the_smoother_is_the_conditional_of_one_large_gaussian_whatever_the_lengths() -> None:
    cell, ys = kalman(), torch.randn(3, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ys[1, 3:] = float("nan")
    smooth, crossed = cell.smoothed(ys, cell.initial_state(3), torch.tensor([4, 2, 4]))
    for row, steps in ((0, 5), (1, 3), (2, 5)):
        mean, covariance = conditioned(cell, ys[row, :steps].numpy(), steps)
        for t in range(steps):
            here = slice(3 * t, 3 * t + 3)
            close(smooth[t].mean[row], mean[here])
            close(smooth[t].covariance[row], covariance[here, here])
            if t + 1 < steps:
                close(crossed[t][row], covariance[3 * t + 3 : 3 * t + 6, here])


def test_expected_sums_count_what_is_new_in_a_row_that_goes_on() -> None:
    cell, ys = kalman(), torch.randn(1, 6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    one, yes = torch.tensor([True]), torch.tensor([5])
    whole = cell.expected(ys, cell.initial_state(1), yes, one)
    _, state = cell.unroll(ys[:, :3], cell.initial_state(1))
    state = KalmanState(*(part.detach() for part in state))
    head = cell.expected(ys[:, :4], cell.initial_state(1), torch.tensor([3]), one)
    tail = cell.expected(ys[:, 3:], state, torch.tensor([2]), ~one)
    for name in ("starts", "transitions", "seen", "squares"):
        close(getattr(head, name) + getattr(tail, name), getattr(whole, name).numpy())
    nothing = cell.expected(ys, cell.initial_state(1), torch.tensor([0]), one)
    assert not any(leaf.any() for leaf in leaves(nothing))


@pytest.mark.parametrize("seed", range(3))
def test_the_likelihood_of_a_state_space_model_never_falls(seed: int) -> None:
    rows = torch.randn(4, 12, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).cumsum(1)
    task, found = Whole(kalman(seed=seed), rows, at_once=2), []
    trained(task, EM(smoothing=0.0), 25, lambda: found.append(dense_likelihood(task.model, rows)))
    assert (np.diff(found) > -1e-6).all(), np.diff(found).min()
    assert found[-1] > found[0] + 1


def test_the_start_of_the_next_model_has_the_moments_of_the_starts_expected() -> None:
    rows = torch.randn(3, 6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    task, before = Whole(kalman(), rows, at_once=3), kalman()
    trained(task, EM(smoothing=0.0), 1)
    known = [conditioned(before, row.numpy(), 6) for row in rows]
    means = np.stack([mean[:3] for mean, _ in known])
    spread = np.mean([covariance[:3, :3] for _, covariance in known], axis=0) + np.cov(means.T, bias=True)
    close(task.model.start, means.mean(0))
    close(task.model.start_factor @ task.model.start_factor.T, spread)


def test_em_finds_how_fast_a_noisy_rotation_turns() -> None:
    rng = np.random.default_rng(0)
    turn = 0.98 * np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    rows = np.zeros((20, 60, 1))
    for row in rows:
        z = rng.normal(size=2)
        for t in range(60):
            row[t] = z[0] + 2.0 + 0.3 * rng.normal()
            z = turn @ z + 0.1 * rng.normal(size=2)
    torch.manual_seed(0)
    task = Whole(Kalman(1, 2).double(), torch.from_numpy(rows), at_once=20)
    trained(task, EM(), 80)
    values = np.linalg.eigvals(task.model.transition.detach().numpy())
    np.testing.assert_allclose(np.abs(np.angle(values)), 0.5, atol=0.02)
    np.testing.assert_allclose(np.abs(values), 0.98, atol=0.02)
    assert float(task.model.offset.detach()) == pytest.approx(2.0, abs=0.15)
    assert float(task.model.noise.detach().exp().sqrt()) == pytest.approx(0.3, abs=0.05)


def test_a_forecast_that_is_fed_back_is_the_conditional_mean_of_the_future() -> None:
    cell = kalman(inputs=1)
    network = FedBack(Sizes(4, 3, 1, 0, 0, 1), Point(True), cell)
    past = torch.randn(1, 4, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    inputs = Inputs(past, past.new_zeros(1, 7, 0), past.new_zeros(1, 0), torch.zeros(1, dtype=torch.int64))
    mean, _ = conditioned(cell, past[0].numpy(), 7)
    wanted = mean.reshape(7, 3)[4:] @ cell.emission.detach().numpy().T + cell.offset.detach().numpy()
    close(network.forecast(inputs).mean[0], wanted)


def test_a_state_space_model_says_what_it_cannot_forecast() -> None:
    with pytest.raises(UsageError, match="values alone"):
        FedBack(Sizes(4, 3, 1, 2, 0, 1), Point(True), kalman(inputs=3))


# --- from the command line -------------------------------------------------------------------------------------------


def test_an_hmm_is_trained_evaluated_and_writes(shell, tmp_path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("abcabcabcabcabc\n" * 60, encoding="utf-8")
    how = ["--cell", "hmm", "--learner", "em", "--hidden", 12, "--epochs", 25, "--seed", 1, "--out", "run", "--quiet"]
    answer = shell("train", "language", text, *how, "--set", "train.rows=4")
    assert answer.code == 0, answer.err
    import recurra

    task = recurra.load(tmp_path / "run")
    report = task.evaluate()
    assert report["scores"]["bits_per_character"] < 0.7 * report["floors"]["unigram"], report
    assert set(task.generate("ab", length=30)) <= set("abc\n")
    with torch.no_grad():
        state = task.stream().initial_state(1)
        scores, _ = task.stream().step(torch.tensor([0]), state)
    assert float(scores.exp().sum()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("language", ["--cell", "gru"], "take --cell hmm"),
        ("language", ["--cell", "hmm", "--layers", 2], "whole model"),
        ("language", ["--cell", "hmm", "--set", "regularize.ar=1"], "leave out"),
        ("forecast", ["--cell", "kalman"], "task.head=recurrent"),
        ("forecast", ["--cell", "kalman", "--layers", 2], "whole model"),
        ("classify", ["--cell", "hmm"], "whole model"),
        ("classify", ["--cell", "kalman"], "whole model"),
    ],
)
def test_what_em_cannot_train_is_refused_in_words(shell, tmp_path, task: str, options: list[Any], words: str) -> None:
    name = "data.txt" if task == "language" else "data.csv"
    lines = {
        "language": "some words of a text\n" * 20,
        "forecast": "t,y\n" + "".join(f"{t},{t % 7}\n" for t in range(90)),
        "classify": "text,label\n" + "some words,a\nother things,b\n" * 20,
    }
    (tmp_path / name).write_text(lines[task], encoding="utf-8")
    answer = shell("train", task, tmp_path / name, "--learner", "em", "--steps", 1, "--out", "run", *options)
    assert answer.code == 2 and words in answer.said
