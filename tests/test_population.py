"""Learners without gradients: what ES estimates, CMA-ES beside the library of its author, swarms, and what they carry."""

import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

import recurra
from recurra import storage
from recurra.cells import CELLS, LearntStart
from recurra.data.batch import Batch
from recurra.errors import UsageError
from recurra.learn import CMA, ES, LEARNERS, PSO, cmaes, pso
from recurra.learn.es import centred_ranks
from recurra.learn.population import Draws, losses, put, vector
from recurra.models import SequenceModel, language_model
from recurra.state import named, unname

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it says that there is no matplotlib
    import cma as library


class Point(torch.nn.Module):
    """A model that is no more than a vector, for losses whose minimum is known."""

    def __init__(self, start) -> None:
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def initial_state(self, batch: int) -> tuple[()]:
        return ()


class Landscape:
    """A task whose loss is a function of the vector."""

    def __init__(self, function, start) -> None:
        self.model, self.function = Point(start), function

    def loss(self, batch, state):
        return self.function(self.model.x), state


NOTHING = Batch(torch.zeros(1, 1), torch.zeros(1, 1), None, 1.0, torch.ones(1, dtype=torch.bool))
LEARNERS_HERE = [ES(pairs=3, sigma=0.3), CMA(members=6), PSO(particles=4)]


def estimates(function, start, times: int, seed: int = 0, **options) -> np.ndarray:
    """So many estimates of the gradient at `start`, [times, P]."""
    torch.manual_seed(seed)
    task, learner = Landscape(function, start), ES(**options)
    carry, found = learner.start(task, NOTHING), []
    for _ in range(times):
        task.model.zero_grad()
        _, carry = learner(task, NOTHING, carry)
        found.append(task.model.x.grad.clone().numpy())
    return np.array(found)


# ES


@pytest.mark.parametrize("pairs", [1, 8, 32])
def test_the_error_of_es_on_a_quadratic_falls_as_the_square_root_of_the_pairs(pairs: int) -> None:
    """Mirrored pairs give eps eps^T g on a quadratic, so E |error|^2 = (P + 1) |g|^2 / pairs, whatever sigma is."""
    draw, times = np.random.default_rng(0), 1500 // pairs + 100
    root, b, x = draw.normal(size=(5, 5)), draw.normal(size=5), draw.normal(size=5)
    matrix = root @ root.T
    gradient, a, c = matrix @ x + b, torch.tensor(matrix), torch.tensor(b)
    found = estimates(lambda v: v @ a @ v / 2 + c @ v + 3, x, times, pairs=pairs, sigma=0.7, ranks=False)
    expected = 6 * (gradient @ gradient) / pairs
    assert np.square(found - gradient).sum(1).mean() == pytest.approx(expected, rel=0.25)
    assert np.linalg.norm(found.mean(0) - gradient) < 3 * math.sqrt(expected / times)


def test_es_estimates_the_gradient_of_the_smoothed_loss_and_not_of_the_loss() -> None:
    """E cos(x + sigma eps) = cos(x) exp(-sigma^2 / 2)."""
    x = np.array([0.3, 1.2, -2.0])
    found = estimates(lambda v: torch.cos(v).sum(), x, 200, pairs=100, sigma=1.0, ranks=False)
    smoothed = -np.sin(x) * math.exp(-0.5)
    error = np.linalg.norm(found.mean(0) - smoothed)
    assert error < 0.03 < np.linalg.norm(found.mean(0) + np.sin(x)) / 5
    assert np.linalg.norm(found.std(0)) > 5 * error  # it is the mean that is right


def test_of_a_linear_loss_neither_place_nor_height_nor_sigma_matters() -> None:
    slope = torch.tensor([1.0, -2.0, 0.5, 4.0], dtype=torch.float64)
    near = estimates(lambda v: slope @ v, [0.0] * 4, 3, pairs=2, sigma=0.1, ranks=False)
    far = estimates(lambda v: slope @ v + 1e3, [9.0] * 4, 3, pairs=2, sigma=5.0, ranks=False)
    np.testing.assert_allclose(near, far, atol=1e-9)
    assert (near @ slope.numpy() > 0).all()  # (eps g)^2: never uphill


def test_ranks_are_those_of_scipy_and_a_flat_loss_has_no_slope() -> None:
    values = torch.tensor([3.0, 1.0, 1.0, math.inf, -2.0, 3.0, 3.0])
    wanted = (rankdata(values.numpy()) - 1) / 6 - 0.5
    np.testing.assert_allclose(centred_ranks(values).numpy(), wanted, atol=1e-7)
    assert not estimates(lambda v: 0 * v.sum() + 2.0, [1.0, 2.0], 2).any()


def test_ranks_see_the_order_of_losses_only_and_take_no_number_for_the_worst() -> None:
    x = [0.5, -1.0, 2.0]
    plain = estimates(lambda v: v.square().sum(), x, 3)
    np.testing.assert_array_equal(plain, estimates(lambda v: torch.exp(v.square().sum()), x, 3))
    holes = estimates(lambda v: torch.where(v[2] > 2, torch.nan, v.square().sum()), x, 20)
    assert np.isfinite(holes).all() and (holes[:, 2] > 0).all()


# Populations


class Toy:
    """A language model with all the noise of training, in float64."""

    def __init__(self, **options) -> None:
        torch.manual_seed(0)
        options = {"hidden": 4, "embedding": 3, **options}
        self.model = language_model(7, **options).double()

    def loss(self, batch, state):
        scores, state = self.model.unroll(batch.inputs, state, batch.lengths)
        found = torch.nn.functional.cross_entropy(scores.flatten(0, 1), batch.targets.flatten(), reduction="none")
        found = found.view(batch.targets.shape)
        if batch.lengths is not None:
            found = found * (torch.arange(batch.time) < batch.lengths[:, None])
        return found.sum() / batch.weight, state


NOISY = {"input_dropout": 0.3, "dropout": 0.3, "recurrent_dropout": 0.3}


def tokens(lengths=None, fresh=(True, True, True), step: int = 0) -> Batch:
    ids = torch.randint(7, (3, 9), generator=torch.Generator().manual_seed(1 + step))
    given = None if lengths is None else torch.tensor(lengths)
    weight = 24.0 if lengths is None else float(sum(lengths))
    return Batch(ids[:, :-1], ids[:, 1:], given, weight, torch.tensor(fresh), step)


@pytest.mark.parametrize("cell", ["elman", "lstm", "gru"])
@pytest.mark.parametrize("options", [{}, {"tied": True, "layers": 2}, NOISY])
def test_members_side_by_side_lose_what_each_loses_by_itself(cell: str, options: dict) -> None:
    task, batch = Toy(cell=cell, **options), tokens(lengths=[8, 0, 5])
    state, draws = task.model.initial_state(3), Draws.begin(batch)
    before = vector(task)
    members = before + 0.5 * torch.randn(5, len(before), dtype=torch.float64)
    together = losses(task, batch, state, members, draws, 5)
    for width in (1, 2):
        torch.testing.assert_close(losses(task, batch, state, members, draws, width), together)
    torch.testing.assert_close(vector(task), before, rtol=0, atol=0)
    assert together.std() > 0.01
    if options is not NOISY:
        for member, loss in zip(members, together, strict=True):
            put(task, member)
            torch.testing.assert_close(task.loss(batch, state)[0].detach(), loss)
    else:  # the same member twice meets the same masks, and others in the next step
        twice = before.expand(2, -1)
        first, second = losses(task, batch, state, twice, draws, 1)
        assert first == second != losses(task, batch, state, twice, draws.next(), 1)[0]


@pytest.mark.parametrize("learner", LEARNERS_HERE, ids=lambda one: type(one).__name__)
def test_numbers_follow_from_the_seed_and_the_global_generator_stays(learner) -> None:
    def run(seed: int, moved: bool) -> torch.Tensor:
        task = Toy(**NOISY)
        torch.manual_seed(seed)
        if moved:
            torch.rand(3)
        before = torch.get_rng_state()
        carry = learner.start(task, tokens())
        for step in range(3):
            _, carry = learner(task, tokens(step=step), carry)
        assert torch.equal(torch.get_rng_state(), before)
        grads = [p.grad.flatten() for p in task.model.parameters() if p.grad is not None]
        return torch.cat([vector(task), *grads])

    first = run(5, False)
    assert torch.equal(first, run(5, True))
    assert not torch.equal(first, run(6, False))


@pytest.mark.parametrize("learner", LEARNERS_HERE, ids=lambda one: type(one).__name__)
def test_the_loss_and_state_are_those_of_the_parameters_that_stay(learner) -> None:
    task = Toy(hidden=3)
    carry = learner.start(task, tokens())
    for step, fresh in enumerate([(True, True, True), (False, True, False), (False, False, False)]):
        batch, before = tokens(fresh=fresh, step=step, lengths=[8, 6, 0]), carry.state
        loss, carry = learner(task, batch, carry)
        start = before
        if any(fresh):
            start = unname(before, {n: x.clone() for n, x in named(before).items()})
            for leaf in named(start).values():
                leaf[torch.tensor(fresh)] = 0
        wanted, state = task.loss(batch, start)
        torch.testing.assert_close(loss, wanted.detach())
        torch.testing.assert_close(named(carry.state), {n: x.detach() for n, x in named(state).items()})
    assert loss.grad_fn is None and all(x.grad_fn is None for x in named(carry).values())


def test_the_estimate_does_not_hang_on_how_many_members_are_computed_at_once() -> None:
    def slope(together: int | None) -> dict[str, torch.Tensor]:
        task, learner = Toy(**NOISY), ES(pairs=5, together=together)
        torch.manual_seed(2)
        learner(task, tokens(), learner.start(task, tokens()))
        return {name: p.grad for name, p in task.model.named_parameters()}

    whole = slope(None)
    for together in (1, 3, 4):
        torch.testing.assert_close(slope(together), whole)


def test_a_start_that_is_learnt_is_each_members_own() -> None:
    torch.manual_seed(0)
    task = Toy()
    core = LearntStart(CELLS["elman"](3, 4)).double()
    task.model = SequenceModel(torch.nn.Embedding(7, 3).double(), core, torch.nn.Linear(4, 7).double())
    batch, before = tokens(), vector(task)
    members = before + torch.randn(3, len(before), dtype=torch.float64)
    found = losses(task, batch, task.model.initial_state(3), members, Draws.begin(batch), 3)
    for member, loss in zip(members, found, strict=True):
        put(task, member)
        torch.testing.assert_close(task.loss(batch, task.model.initial_state(3))[0].detach(), loss)


@pytest.mark.parametrize("learner", LEARNERS_HERE, ids=lambda one: type(one).__name__)
def test_parameters_that_are_not_learnt_stay(learner) -> None:
    task = Toy()
    task.model.embedding.weight.requires_grad_(False)
    table, readout = task.model.embedding.weight.clone(), task.model.readout.weight.clone()
    learner(task, tokens(), learner.start(task, tokens()))
    assert torch.equal(task.model.embedding.weight, table) and task.model.embedding.weight.grad is None
    if isinstance(learner, ES):
        assert torch.equal(task.model.readout.weight, readout) and task.model.readout.weight.grad.norm() > 0
    else:
        assert task.model.readout.weight.grad is None


def test_an_update_to_a_loss_that_is_no_number_leaves_the_model_as_it_was() -> None:
    for learner in (CMA(members=6, sigma=1.0), PSO(particles=4)):
        task = Landscape(lambda v: torch.nan * v.sum(), [1.0, 2.0])
        loss, _ = learner(task, NOTHING, learner.start(task, NOTHING))
        assert not math.isfinite(float(loss)) and task.model.x.tolist() == [1.0, 2.0]


def test_what_cannot_be_done_is_said_with_its_remedy() -> None:
    class Branching(Toy):
        def loss(self, batch, state):
            loss, state = super().loss(batch, state)
            return (loss if loss.item() > 0 else -loss), state

    for learner in (ES, CMA, PSO):
        said = learner().supports(Branching(), tokens())
        assert said is not None and "--set learner.together=1" in said
        assert learner(together=1).supports(Branching(), tokens()) is None
        assert learner().supports(Toy(), tokens()) is None
        with pytest.raises(UsageError, match=r"learner.together was 0, wanted at least 1"):
            learner(together=0)
    large = Toy(hidden=40)
    size = len(vector(large))
    said = CMA().supports(large, tokens())
    assert said is not None and f"{16 * size * size:,} bytes" in said and "--learner es" in said
    with pytest.raises(UsageError, match=r"learner.sigma was -1, wanted a number above 0"):
        ES(sigma=-1)


# CMA-ES


def of_library(size: int, members: int | None, sigma: float = 0.5, seed: int = 1):
    given = {"popsize": members, "seed": seed, "verbose": -9, "CMA_diagonal_decoding": 0}
    return library.CMAEvolutionStrategy(np.full(size, 0.7), sigma, given)


@pytest.mark.parametrize(("size", "members"), [(2, 6), (5, 8), (10, 10), (20, 7), (50, 15), (10, 50)])
def test_weights_and_rates_are_those_of_the_library(size: int, members: int) -> None:
    theirs, ours = of_library(size, members).sp, cmaes.constants(size, members)
    np.testing.assert_allclose(ours.weights.numpy(), np.array(theirs.weights), atol=1e-14)
    found = (ours.effective, ours.c_1, ours.c_mu, ours.c_c)
    assert found == pytest.approx((theirs.weights.mueff, theirs.c1, theirs.cmu, theirs.cc), rel=1e-12)
    assert cmaes.usual_members(size) == of_library(size, None).popsize


@pytest.mark.parametrize(("size", "members"), [(4, 16), (5, 20), (12, 11), (8, 10)])
def test_given_the_same_samples_mean_paths_scale_and_covariance_are_those_of_the_library(
    size: int, members: int
) -> None:
    theirs, known = of_library(size, members, sigma=0.05), cmaes.constants(size, members)
    theirs.adapt_sigma.initialize(theirs)  # in these two rates it has left the tutorial
    theirs.adapt_sigma.cs, theirs.adapt_sigma.damps = known.c_sigma, known.d_sigma
    mean = torch.full((size,), 0.7, dtype=torch.float64)
    begun = torch.tensor(theirs.sm.C)  # not quite round: its eigenvalues are kept apart
    axes, scales = cmaes._decomposed(begun)
    search = cmaes.begin(mean, 0.05, Draws.begin(NOTHING))._replace(covariance=begun, axes=axes, scales=scales)
    stalled = 0
    for _ in range(40):
        asked = np.array(theirs.ask())
        values = [library.ff.rosen(x) for x in asked]
        theirs.tell(asked, values)
        steps = (torch.tensor(asked) - mean) / search.sigma
        move, search = cmaes.update(known, search, steps, torch.tensor(values))
        search, mean = search._replace(draws=search.draws.next()), mean + move
        np.testing.assert_allclose(mean, theirs.mean, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(search.path_sigma, theirs.adapt_sigma.ps, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(search.path_c, theirs.pc, rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(search.covariance, theirs.sm.C, rtol=1e-6, atol=1e-8)
        assert float(search.sigma) == pytest.approx(theirs.sigma, rel=1e-7)
        stalled += not theirs.adapt_sigma.hsig(theirs)
    assert stalled or (size, members) == (8, 10)  # the branch in which C waits is met


def sphere(x):
    return (x**2).sum()


def ellipsoid(x):
    return (x**2 * 10.0 ** torch.linspace(0, 6, len(x), dtype=torch.float64)).sum()


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def steps_to(learner, task, goal: float, most: int) -> int:
    """How many steps it takes until the loss of the parameters in the model is below `goal`."""
    carry = learner.start(task, NOTHING)
    for step in range(1, most + 1):
        loss, carry = learner(task, NOTHING, carry)
        assert float(loss) == pytest.approx(float(task.loss(NOTHING, ())[0].detach()))
        if loss < goal:
            return step
    return most + 1


@pytest.mark.parametrize("function", [sphere, ellipsoid, rosenbrock])
def test_cma_needs_as_many_steps_as_the_library(function) -> None:
    size, ours, theirs = 4, [], []
    for seed in range(3):
        torch.manual_seed(seed)
        task = Landscape(function, [0.7] * size)
        ours.append(steps_to(CMA(sigma=0.5), task, 1e-9, 1_000))
        search = of_library(size, cmaes.usual_members(size), seed=seed + 1)
        while function(torch.tensor(search.mean)) > 1e-9 and search.countiter < 1_000:
            asked = search.ask()
            search.tell(asked, [float(function(torch.tensor(x))) for x in asked])
        theirs.append(search.countiter)
    assert np.median(ours) < 500  # not the mean: a run may end in another minimum of Rosenbrock's function
    assert 0.7 < np.median(ours) / np.median(theirs) < 1.4


def test_cma_finds_the_shape_of_a_rotated_ellipsoid() -> None:
    """At the end C is the inverse of the Hessian, but for its scale."""
    torch.manual_seed(0)
    turn, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    hessian = turn @ torch.diag(torch.tensor([1.0, 10.0, 100.0, 1000.0], dtype=torch.float64)) @ turn.T
    task, learner = Landscape(lambda v: v @ hessian @ v, [1.0] * 4), CMA(members=40)
    carry = learner.start(task, NOTHING)
    for _ in range(120):
        _, carry = learner(task, NOTHING, carry)
    values = torch.linalg.eigvals(carry.shared.covariance @ hessian).real
    assert values.max() / values.min() < 3


# Particle swarms


def test_the_numbers_of_the_swarm_are_those_of_the_constriction() -> None:
    """Clerc & Kennedy 2002: chi = 2 / |2 - phi - sqrt(phi^2 - 4 phi)| at phi = 2.05 + 2.05."""
    phi = 4.1
    chi = 2 / abs(2 - phi - math.sqrt(phi**2 - 4 * phi))
    swarm = PSO()
    assert swarm.inertia == pytest.approx(chi, abs=5e-5)
    assert (swarm.cognitive, swarm.social) == (pytest.approx(2.05 * chi, abs=5e-5),) * 2


def test_a_swarm_flies_as_one_written_in_numpy_does() -> None:
    torch.manual_seed(3)
    task, learner = Landscape(rosenbrock, [0.5, -1.0, 0.2]), PSO(particles=5, spread=2.0)
    carry = learner.start(task, NOTHING)
    x = carry.shared.positions.numpy().copy()
    assert x[0].tolist() == [0.5, -1.0, 0.2] and 1 < np.abs(x - x[0]).max() <= 2
    v, p = np.zeros_like(x), x.copy()
    cost = lambda points: np.array([library.ff.rosen(point) for point in points])  # noqa: E731
    for _ in range(25):
        r1, r2 = (pso._uniform(carry.shared.draws, place, torch.tensor(x)).numpy() for place in (2, 3))
        loss, carry = learner(task, NOTHING, carry)
        better = cost(x) < cost(p)
        p[better] = x[better]
        g = p[cost(p).argmin()]
        np.testing.assert_allclose(task.model.x.detach().numpy(), g)
        assert float(loss) == pytest.approx(cost(p).min())
        v = 0.7298 * v + 1.4962 * r1 * (p - x) + 1.4962 * r2 * (g - x)
        x = x + v
        np.testing.assert_allclose(carry.shared.positions.numpy(), x, rtol=1e-9, atol=1e-12)


def test_a_swarm_comes_down_the_sphere_and_to_the_lowest_of_rastrigins_valleys() -> None:
    torch.manual_seed(0)
    assert steps_to(PSO(spread=3.0), Landscape(sphere, [2.0] * 5), 1e-9, 400) < 300

    def rastrigin(x):
        return (x**2 - 10 * torch.cos(2 * math.pi * x) + 10).sum()

    found = 0
    for seed in range(3):
        torch.manual_seed(seed)
        task = Landscape(rastrigin, [3.1, -4.2])  # about 28, in a valley of many
        found += steps_to(PSO(spread=8.0), task, 1e-6, 200) <= 200
    assert found == 3


def test_a_personal_best_is_judged_by_the_batch_at_hand() -> None:
    """Of two batches the first makes all look good; who remembered its losses would never move to the second's minimum."""

    class Moving(Landscape):
        def loss(self, batch, state):
            shift = 1.0 if batch.step else 0.0
            return (self.model.x - 3 * shift).square().sum() + 100 * shift, state

    torch.manual_seed(0)
    task, learner = Moving(None, [1.0, 1.0]), PSO(particles=16)
    carry = learner.start(task, NOTHING)
    for _ in range(3):
        _, carry = learner(task, NOTHING, carry)
    for _ in range(150):
        loss, carry = learner(task, Batch(*[*vars(NOTHING).values()][:-1], step=1), carry)
    assert float(loss) == pytest.approx(100, abs=1e-3)


# Through the run folder


def settings(learner: dict) -> dict:
    return {
        "learner": learner,
        "cell": {"name": "elman"},
        "embed": {"kind": "onehot"},
        "optimizer": {"rate": 0.05},
        "train": {"rows": 8, "chunk": 16, "validations": 5, "patience": 1000, "checkpoint_seconds": 1e-9},
    }


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat and the dog sat on the log. " * 100)
    return path


class Stop(Exception):  # noqa: N818
    """A kill between two steps."""


@pytest.mark.parametrize("learner", [{"name": "es", "pairs": 3}, {"name": "cma"}, {"name": "pso", "particles": 4}])
def test_a_training_that_was_killed_ends_at_the_bits_of_an_unbroken_one(
    learner: dict, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)
    options = settings(learner) | {"model": {"dropout": 0.2, "recurrent_dropout": 0.2}}

    def train(out: Path, stops: tuple[int, ...]) -> dict[str, bytes]:
        def tell(kind: str, **fields) -> None:
            if kind == "step" and fields["step"] in stops[:1]:
                raise Stop

        if stops:
            with pytest.raises(Stop):
                recurra.train("language", text, out=out, steps=10, hidden=4, threads=1, settings=options, tell=tell)
            return train(out, stops[1:])
        recurra.train("language", text, out=out, steps=10, hidden=4, threads=1, settings=options)
        last = max((out / "checkpoints").glob("step-*"))
        names = ("model.safetensors", "optimizer.safetensors", "carry.safetensors", "rng.safetensors")
        return {name: (last / name).read_bytes() for name in names}

    whole = train(tmp_path / "whole", ())
    assert train(tmp_path / "killed", (1, 4, 8)) == whole
    carry = storage.read_tensors(max((tmp_path / "whole" / "checkpoints").glob("step-*")) / "carry.safetensors")
    updates = next(value for name, value in carry.items() if name.endswith("updates"))
    assert int(updates) == 10


def test_a_text_is_learnt_beyond_the_frequencies_of_its_letters(text: Path, tmp_path: Path) -> None:
    """The text says the same again and again, so what the letters alone say, 3.36 bits, is far from what can be known."""
    given = settings({"name": "es"}) | {"optimizer": {"rate": 0.1}}
    task = recurra.train("language", text, out=tmp_path / "run", steps=60, hidden=6, threads=1, settings=given)
    report = task.evaluate()
    assert report["scores"]["bits_per_token"] < 0.9 * report["floors"]["unigram"]


@pytest.mark.parametrize("learner", [{"name": "es"}, {"name": "cma", "sigma": 0.5}, {"name": "pso", "spread": 3.0}])
def test_parity_of_short_strings_is_learnt(learner: dict, tmp_path: Path) -> None:
    """All strings of up to four signs as one batch. No label is more frequent, so 0.693 nats is what can be had unread."""
    strings = [format(number, "b")[1:] for number in range(2, 32)]
    lines = [f"{one},{'odd' if one.count('1') % 2 else 'even'}" for one in strings]
    path = tmp_path / "short.csv"
    path.write_text("\n".join(["text,label", *lines]) + "\n")
    given = settings(learner) | {"task": {"bidirectional": False, "pooling": "last"}, "tokens": {"kind": "characters"}}
    given["optimizer"], given["train"]["rows"], given["train"]["checkpoint_seconds"] = {"rate": 0.1}, 30, 30
    task = recurra.train(
        "classify", path, valid=path, out=tmp_path / "run", steps=120, hidden=4, threads=1, settings=given
    )
    report = task.evaluate()
    assert (
        report["scores"]["nats"] < 0.6 and report["scores"]["accuracy"] > report["floors"]["most frequent label"] + 0.1
    )


def test_every_name_is_a_learner() -> None:
    assert {name: LEARNERS[name] for name in ("es", "cma", "pso")} == {"es": ES, "cma": CMA, "pso": PSO}
