"""The classic problems against what defines them: recognisers, recurrences and integrators of their own, and brute force."""

import re
from collections import Counter, defaultdict
from itertools import product
from math import log
from typing import Any

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.interpolate import CubicSpline

from recurra.data import chaos, grammars
from recurra.data.examples import Examples
from recurra.data.problems import PROBLEMS, nearer_than
from recurra.data.synthetic import SYNTHETIC, synthetic
from recurra.errors import UsageError


def pairs_of(examples: Examples) -> list[tuple[Any, Any]]:
    return list(zip(examples.inputs, examples.targets or [], strict=True))


# --- the three adding problems, and others that are series ---


@pytest.mark.parametrize("length", [8, 50, 104])
def test_the_first_adding_problem_is_that_of_the_paper(length: int) -> None:
    lengths, first, either = set(), Counter[int](), 0
    for series, target in pairs_of(synthetic(f"adding-hochreiter:{length}", "train", 3000)):
        numbers, marks = series.astype(float).T
        one, *rest = np.flatnonzero(marks == 1)
        assert len(rest) == 1 and rest[0] < length // 2 and one < 10 and set(marks) <= {-1, 0, 1}
        assert marks[-1] == -1 and (marks[0] == -1 or (one == 0 and numbers[0] == 0))
        assert (marks == -1).sum() == (1 if one == 0 else 2) and abs(numbers).max() <= 1
        assert target[0] == pytest.approx(0.5 + (numbers[one] + numbers[rest[0]]) / 4, abs=1e-6)
        lengths.add(len(series))
        either += one == 0
        first[int(rest[0])] += 1
    assert lengths == set(range(length, length + length // 10 + 1))
    assert set(range(1, length // 2)) == set(first), "the second mark is anywhere in the first half"
    early = min(10, length // 2)
    assert either / 3000 == pytest.approx(1 / early + (1 - 1 / early) / (length // 2 - 1), abs=0.04)


@pytest.mark.parametrize("length", [10, 50])
def test_the_adding_problem_of_means_has_its_marks_early(length: int) -> None:
    some = pairs_of(synthetic(f"adding-pascanu:{length}", "train", 3000))
    places = []
    for series, target in some:
        one, other = np.flatnonzero(series[:, 1])
        assert length <= len(series) < length + max(1, length // 10)
        assert target[0] == pytest.approx((series[one, 0] + series[other, 0]) / 2, abs=1e-6)
        places.append((one, other))
    ones, others = map(set, zip(*places, strict=True))
    assert ones == set(range(length // 10)) and others == set(range(length // 10, length // 2))
    always = [nearer_than(0.2)(target, [0.5]) for _, target in some]
    assert np.mean(always) == pytest.approx(0.64, abs=0.04), "the published bar is a wide one: (1 - (1 - 2 * 0.2)^2)"


def test_a_flip_flop_keeps_the_last_pulse_of_each_channel() -> None:
    pulses = []
    for series, target in pairs_of(synthetic("flip-flop:30", "train", 300)):
        held = [0.0, 0.0, 0.0]
        for seen, wanted in zip(series.tolist(), target.tolist(), strict=True):
            held = [new if new else old for new, old in zip(seen, held, strict=True)]
            assert held == wanted and set(seen) <= {-1, 0, 1}
        assert (series[0] != 0).all()
        pulses.append(series[1:])
    kinds, counts = np.unique(np.concatenate(pulses), return_counts=True)
    assert kinds.tolist() == [-1, 0, 1]
    np.testing.assert_allclose(counts / counts.sum(), [0.05, 0.9, 0.05], atol=0.005)


# --- symbols ---


@pytest.mark.parametrize("length", [2, 30])
def test_the_copy_problem_wants_back_what_it_showed(length: int) -> None:
    seen = Counter[str]()
    for symbols, wanted in pairs_of(synthetic(f"copy:{length}", "train", 500)):
        assert len(symbols) == len(wanted) == length + 20
        assert re.fullmatch(rf"[A-H]{{10}}_{{{length - 1}}}>_{{10}}", "".join(symbols))
        assert "".join(wanted) == "_" * (length + 10) + "".join(symbols[:10])
        seen.update(symbols[:10])
    assert len(seen) == 8 and min(seen.values()) > 500


@pytest.mark.parametrize(
    ("name", "places"), [("temporal-order", [(1, 2), (5, 6)]), ("temporal-order-3", [(1, 2), (3, 4), (6, 7)])]
)
@pytest.mark.parametrize("length", [10, 47, 100])
def test_the_label_is_the_order_of_the_relevant_signs(name: str, places: list[tuple[int, int]], length: int) -> None:
    labels, distractors = Counter[str](), Counter[str]()
    for text, (label,) in pairs_of(synthetic(f"{name}:{length}", "valid", 800)):
        assert len(text) == length and re.sub("[abcd]", "", text) == label
        for match, (begin, end) in zip(re.finditer("[XY]", text), places, strict=True):
            assert begin * length // 10 <= match.start() < end * length // 10
        labels[label] += 1
        distractors.update(re.sub("[XY]", "", text))
    assert len(labels) == 2 ** len(places) and len(distractors) == 4
    assert min(labels.values()) > 800 / len(labels) / 1.6
    assert min(distractors.values()) > 0.2 * sum(distractors.values())


def test_of_a_permutation_only_the_first_number_matters() -> None:
    rest = Counter[int]()
    for text, (label,) in pairs_of(synthetic("permutation:20", "train", 1000)):
        first, *others = map(int, text.split())
        assert str(first) == label and first in (0, 1) and len(others) == 19
        rest.update(others)
    assert set(rest) == set(range(2, 100))


def test_each_third_bit_is_the_exclusive_or_of_the_two_before_it() -> None:
    for length in (3, 4, 5, 60):
        for bits, following in pairs_of(synthetic(f"xor:{length}", "train", 200)):
            assert len(bits) == len(following) == length and bits[1:] == following[:-1]
            stream = [int(bit) for bit in [*bits, following[-1]]]
            assert all(stream[at] == (stream[at - 2] + stream[at - 1]) % 2 for at in range(2, len(stream), 3))
            knowable = [at for at in range(length) if at % 3 == 1]
            wrong = ["01"[bit == "0"] if at in knowable[-1:] else bit for at, bit in enumerate(following)]
            free = ["01"[bit == "0"] if at not in knowable else bit for at, bit in enumerate(following)]
            assert PROBLEMS["xor"].right(following, free) and not PROBLEMS["xor"].right(following, wrong)
    bits = np.array([row for row, _ in pairs_of(synthetic("xor", "train", 500))]).astype(int)
    assert abs(bits.mean(0) - 0.5).max() < 0.12


# --- grammars: recognisers that know nothing of the generators ---

INNER = "B(TS*X(XT*VP)*(S|XT*VV)|PT*V(V|P(XT*VP)*(S|XT*VV)))E"
EMBEDDED = re.compile(rf"B([TP]){INNER}\1E")


@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_reber_strings_belong_to_the_grammar_and_their_targets_are_what_may_follow(part: Any) -> None:
    after: dict[str, Counter[str]] = defaultdict(Counter)
    targets = {}
    strings = pairs_of(synthetic("reber", part, 4000))
    for symbols, follows in strings:
        text = "".join(symbols)
        assert EMBEDDED.fullmatch(text) and len(follows) == len(text)
        for at, legal in enumerate(follows):
            targets.setdefault(text[: at + 1], legal)
            assert targets[text[: at + 1]] == legal
            after[text[: at + 1]][text[at + 1] if at + 1 < len(text) else "$"] += 1
    for prefix, seen in after.items():
        assert set(seen) <= set(targets[prefix])
        if seen.total() > 40 and len(prefix) < 4:
            assert set(seen) == set(targets[prefix]), prefix
    assert {len(legal) for legal in targets.values()} == {1, 2} and targets["B"] == "PT"
    lengths = Counter(len(symbols) for symbols, _ in strings)
    assert min(lengths) == 9 and max(lengths) > 20


def test_reber_takes_both_arcs_of_a_node_alike() -> None:
    texts = ["".join(one) for part in ("train", "valid", "test") for one in synthetic("reber", part, 2000).inputs]
    assert np.mean([text[1] == "T" for text in texts]) == pytest.approx(0.5, abs=0.04)
    inner = [text[2:-2] for text in texts]
    loops = [len(re.match("BTS*", text).group()) - 2 for text in inner if text.startswith("BT")]  # type: ignore[union-attr]
    assert np.mean(loops) == pytest.approx(1.0, abs=0.1), "a loop that is taken with probability 1/2, once on average"


def test_long_reber_strings_stand_in_one_part_only() -> None:
    train, test = ({"".join(one) for one in synthetic("reber", part, 3000).inputs} for part in ("train", "test"))
    assert {len(text) for text in train & test} == {9, 10, 11, 12} and max(map(len, train)) > 20


def reduced(text: str) -> str:
    """What is left of brackets when all pairs that stand side by side are taken away, over and over."""
    while (shorter := re.sub(r"\(\)|\[\]", "", text)) != text:
        text = shorter
    return text


@pytest.mark.parametrize(("name", "openers"), [("dyck-1", "("), ("dyck-2", "([")])
def test_brackets_are_well_nested_and_targets_are_what_may_follow(name: str, openers: str) -> None:
    closing = dict(zip("([", ")]", strict=True))
    for part, shortest, longest in (("train", 2, 20), ("test", 22, 40)):
        lengths, kinds = Counter[int](), Counter[str]()
        for symbols, follows in pairs_of(synthetic(f"{name}:20", part, 400)):
            text = "".join(symbols)
            assert reduced(text) == "" and not set(text) - set(openers + "".join(closing[one] for one in openers))
            for at, legal in enumerate(follows):
                left = reduced(text[: at + 1])
                assert legal == openers + (closing[left[-1]] if left else "$")
            lengths[len(text)] += 1
            kinds.update(one for one in text if one in openers)
        assert set(lengths) == set(range(shortest, longest + 1, 2))
        assert set(kinds) == set(openers) and max(kinds.values()) < 1.15 * min(kinds.values())


def test_all_nestings_are_equally_likely() -> None:
    draw = np.random.default_rng(0)
    seen = Counter("".join("()"[not up] for up in grammars.nesting(draw, 4)) for _ in range(7000))
    assert len(seen) == 14 and all(reduced(text) == "" for text in seen), "the fourth number of Catalan"
    assert sum((count - 500) ** 2 / 500 for count in seen.values()) < 34.5, "chi squared of 13 degrees, p 0.001"


@pytest.mark.parametrize(("name", "letters"), [("anbn", "ab"), ("anbncn", "abc")])
def test_counted_strings_are_in_the_language_and_targets_are_what_may_follow(name: str, letters: str) -> None:
    language = ["".join(letter * n for letter in letters) + "$" for n in range(1, 26)]
    for part, times in (("train", range(1, 13)), ("valid", range(1, 13)), ("test", range(13, 25))):
        counts = Counter[int]()
        for symbols, follows in pairs_of(synthetic(f"{name}:12", part, 300)):
            text = "".join(symbols)
            assert text + "$" in language
            for at, legal in enumerate(follows):
                begun = [one for one in language if one.startswith(text[: at + 1])]
                assert "".join(sorted({one[at + 1] for one in begun})) == legal
            counts[text.count("a")] += 1
        assert set(counts) == set(times)


# --- chaos: other integrators, and what is known of the attractors ---


def test_mackey_glass_is_the_solution_by_steps_of_the_delay() -> None:
    past: Any = lambda t: 0.7 + 0 * t  # noqa: E731
    solutions: list[Any] = []
    for stretch in range(4):
        late = solutions[-1] if solutions else past
        at = 17.0 * stretch

        def slope(t: float, x: Any, late: Any = late) -> Any:
            old = late(t - 17)
            return 0.2 * old / (1 + old**10) - 0.1 * x

        start = 0.7 if not solutions else float(solutions[-1](at)[0])
        found = solve_ivp(slope, (at, at + 17), [start], rtol=1e-10, atol=1e-12, dense_output=True)
        solutions.append(found.sol)
    wanted = [solutions[min(t // 17, 3)](t)[0] for t in range(69)]
    np.testing.assert_allclose(chaos.delayed(np.array([0.7]), 0, 69, parts=40)[0], wanted, atol=2e-6)
    np.testing.assert_allclose(chaos.delayed(np.array([0.7]), 0, 69)[0], wanted, atol=1e-4)
    np.testing.assert_allclose(chaos.delayed(np.array([0.7]), 30, 9)[0], wanted[30:39], atol=1e-4)
    assert np.array_equal(chaos.delayed(np.array([1.0]), 0, 50)[0], np.ones(50)), "the fixed point that is not stable"


def test_the_set_mackey_glass_obeys_its_equation() -> None:
    some = synthetic("mackey-glass", "train", 300)
    t = np.arange(200)
    for (series, target), row in zip(pairs_of(some), range(20), strict=False):
        x = CubicSpline(t, series[:, 0].astype(float))
        late = np.arange(25, 190)
        slope = 0.2 * x(late - 17) / (1 + x(late - 17) ** 10) - 0.1 * x(late)
        np.testing.assert_allclose(x(late, 1), slope, atol=5e-3, err_msg=str(row))
        np.testing.assert_array_equal(series[1:], target[:-1])
    values = np.stack(some.inputs)
    assert values.mean() == pytest.approx(0.930, abs=0.005), "of 400 runs of 6,000 units"
    assert 0.2 < values.min() < 0.45 and 1.3 < values.max() < 1.4


def test_mackey_glass_is_as_chaotic_as_is_known() -> None:
    past = np.linspace(0.5, 1.2, 60)
    some = chaos.delayed(np.stack([past, past + 1e-9]), 500, 1001)
    apart = abs(some[1] - some[0])
    grown = np.log(apart[:, -1] / apart[:, 0]).mean() / 1000
    assert grown == pytest.approx(1 / 197, rel=0.3), "a Lyapunov time of 197 (NeuroBench's series of delay 17)"


def test_lorenz_is_the_flow_that_another_integrator_finds() -> None:
    start = np.array([1.0, -2.0, 20.0])
    field = lambda t, s: [10 * (s[1] - s[0]), s[0] * (28 - s[2]) - s[1], s[0] * s[1] - 8 / 3 * s[2]]  # noqa: E731
    found = solve_ivp(field, (0, 2), start, t_eval=np.arange(40) * 0.05, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(chaos.sampled(chaos.flow, start, 0, 40, 0.05, 5), found.y.T, atol=2e-3)
    np.testing.assert_allclose(chaos.sampled(chaos.flow, start, 10, 5, 0.05, 5), found.y.T[10:15], atol=2e-3)
    rest = np.sqrt(8 / 3 * 27)
    for sign in (1, -1):
        np.testing.assert_allclose(chaos.flow(np.array([sign * rest, sign * rest, 27.0])), 0, atol=1e-12)


def test_lorenz_is_as_chaotic_as_is_known() -> None:
    draw, logs = np.random.default_rng(0), []
    states = chaos.sampled(chaos.flow, draw.normal([[0], [0], [25]], 5, (3, 300)), 400, 1, 0.05, 5)[0]
    apart = 1e-7 * draw.normal(size=states.shape)
    for _ in range(300):
        both = chaos.sampled(chaos.flow, np.stack([states, states + apart], 1), 1, 1, 0.05, 5)[0]
        states, grown = both[:, 0], both[:, 1] - both[:, 0]
        logs.append(np.log(np.linalg.norm(grown, axis=0) / np.linalg.norm(apart, axis=0)))
        apart = grown / np.linalg.norm(grown, axis=0) * 1e-7
    assert np.mean(logs[60:]) / 0.05 == pytest.approx(0.906, abs=0.02)


def test_the_set_lorenz_is_the_first_variable_on_the_attractor() -> None:
    values = np.stack(synthetic("lorenz", "train", 1500).inputs)[..., 0]
    assert values.var() == pytest.approx(62.8, rel=0.02) and 17 < values.max() < 20.5
    assert abs(values.mean()) < 0.4, "the two wings are alike"
    field = lambda t, s: [10 * (s[1] - s[0]), s[0] * (28 - s[2]) - s[1], s[0] * s[1] - 8 / 3 * s[2]]  # noqa: E731
    run = solve_ivp(field, (0, 300), [3.0, 3.0, 20.0], t_eval=np.arange(400, 6000) * 0.05, rtol=1e-6).y[0]
    for lag in (1, 4, 10):
        ours = (values[:, lag:] * values[:, :-lag]).mean() / values.var()
        assert ours == pytest.approx((run[lag:] * run[:-lag]).mean() / run.var(), abs=0.05)


def test_henon_obeys_its_map_shrinks_areas_and_stretches_as_is_known() -> None:
    some = pairs_of(synthetic("henon", "train", 400))
    x = np.stack([np.append(series[:, 0], target[-1, 0]) for series, target in some]).astype(float)
    np.testing.assert_allclose(x[:, 2:], 1 - 1.4 * x[:, 1:-1] ** 2 + 0.3 * x[:, :-2], atol=2e-6)
    tangent, logs = np.tile([1.0, 0.0], (400, 1)), []
    for column in x.T[:-1]:
        tangent = np.stack([-2.8 * column * tangent[:, 0] + tangent[:, 1], 0.3 * tangent[:, 0]], 1)
        logs.append(np.log(np.linalg.norm(tangent, axis=1)))
        tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    assert np.mean(logs[10:]) == pytest.approx(0.419, abs=0.01)
    assert x.var() == pytest.approx(0.52, abs=0.01) and abs(x).max() < 1.3


# --- baselines by brute force: what the best function of the present input alone reaches ---


def of_one_number(examples: Examples) -> float:
    """The mean squared error of the best constant."""
    return float(np.var(np.concatenate([np.reshape(one, -1) for one in examples.targets or []]).astype(float)))


def of_the_present_numbers(examples: Examples) -> float:
    """The mean squared error of the best function of each channel."""
    seen, wanted = (np.concatenate(some).reshape(-1) for some in (examples.inputs, examples.targets or []))
    return float(
        np.mean(np.concatenate([(wanted[seen == one] - wanted[seen == one].mean()) ** 2 for one in set(seen)]))
    )


def of_the_present_step(examples: Examples) -> float:
    """Nats a step of the best guess from the step's number and its symbol."""
    steps = list(zip(*examples.inputs, strict=True)), list(zip(*examples.targets or [], strict=True))
    total = 0.0
    for symbols, wanted in zip(*steps, strict=True):
        both, one = Counter(zip(symbols, wanted, strict=True)), Counter(symbols)
        total -= sum(count * log(count / one[symbol]) for (symbol, _), count in both.items()) / len(examples)
    return total / len(steps[0])


def of_the_best_policy(name: str, examples: Examples) -> float:
    """The share of right answers of the best of all functions from a symbol to a label."""
    whole = isinstance((examples.targets or [])[0], tuple)
    told: dict[str, set[str]] = defaultdict(set)
    for symbols, follows in pairs_of(examples):
        split = symbols.split() if " " in symbols else list(symbols)
        for symbol, label in [(split[-1], follows[0])] if whole else zip(symbols, follows, strict=True):
            told[symbol].add(label)
    if whole:  # each symbol for itself
        last = Counter((one.split()[-1] if " " in one else one[-1], label) for one, (label,) in pairs_of(examples))
        return sum(max(last[symbol, label] for label in told[symbol]) for symbol in told) / len(examples)
    policies = [dict(zip(told, labels, strict=True)) for labels in product(*told.values())]
    right = PROBLEMS[name].right
    some = pairs_of(examples)
    return max(np.mean([right(ys, [policy[x] for x in xs]) for xs, ys in some]) for policy in policies)


BASELINES = [
    *[(f"{name}:{length}", 6000) for name in ("adding", "adding-hochreiter", "adding-pascanu") for length in (10, 50)],
    *[("copy:5", 4000), ("copy:30", 2000), ("flip-flop:5", 3000), ("flip-flop", 1000)],
    *[("mackey-glass", 600), ("lorenz", 1500), ("henon", 500)],
    *[("parity:4", 8000), ("parity-steps:2", 3000), ("temporal-order:10", 8000), ("temporal-order-3:10", 8000)],
    *[("permutation:10", 30_000), ("xor:3", 4000), ("xor:8", 4000), ("reber", 300)],
    *[("dyck-1:4", 3000), ("dyck-2:4", 3000), ("dyck-2:6", 1500), ("anbn:4", 200), ("anbncn:3", 100)],
]


@pytest.mark.parametrize(("name", "count"), BASELINES)
def test_baselines_are_what_brute_force_finds(name: str, count: int) -> None:
    kind, _, length = name.partition(":")
    problem, some = PROBLEMS[kind], synthetic(name, "test", count)
    told = problem.baseline(int(length) if length else len(some.inputs[0]))
    if problem.unit == "right":
        assert of_the_best_policy(kind, some) == pytest.approx(told, abs=0.03)
    elif problem.unit == "nats a step":
        assert of_the_present_step(some) == pytest.approx(told, rel=0.02)
    elif kind == "flip-flop":
        assert of_the_present_numbers(some) == pytest.approx(told, rel=0.05)
    else:
        assert of_one_number(some) == pytest.approx(told, rel=0.06)


def test_the_published_baselines_are_the_published_numbers() -> None:
    assert PROBLEMS["adding"].baseline(600) == pytest.approx(0.167, abs=5e-4)
    assert PROBLEMS["copy"].baseline(1000) == pytest.approx(0.0204, abs=5e-5), "Bai, Kolter & Koltun 2018, table"
    assert PROBLEMS["adding-hochreiter"].baseline(10**6) == pytest.approx((1 / 24) * 0.95, rel=1e-3)


# --- criteria ---


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_truth_is_right_and_what_differs_from_it_is_not(name: str) -> None:
    assert name in SYNTHETIC
    problem = PROBLEMS[name]
    for target in synthetic(name, "test", 20).targets or []:
        if isinstance(target, tuple):
            assert problem.right(target, target[0]) and not problem.right(target, target[0][::-1] + "?")
        elif isinstance(target, list):
            assert problem.right(target, target)
            last = len(target) - 1 if name != "xor" else 58
            assert not problem.right(target, [*target[:last], "?", *target[last + 1 :]])
        else:
            assert problem.right(target, target.tolist())
            wrong = target.copy()
            wrong[-1] += 2.0 if len(target) == 64 or len(target) == 1 else 20.0
            assert not problem.right(target, wrong.tolist()), "one step that is far off is enough"


def test_bars_are_where_they_were_published() -> None:
    assert PROBLEMS["adding"].right([1.0], [1.0399]) and not PROBLEMS["adding"].right([1.0], [0.9599])
    assert PROBLEMS["adding-pascanu"].right([0.5], [0.699]) and not PROBLEMS["adding-pascanu"].right([0.5], [0.701])
    assert PROBLEMS["copy"].right(list("x" * 7 + "ABCDEFGHAB"), list("y" * 7 + "ABCDEFGHAB")), "blanks are not judged"
    assert not PROBLEMS["copy"].right(list("__" + "ABCDEFGHAB"), list("__" + "BBCDEFGHAB"))
    wave = np.sin(np.arange(200.0))[:, None]
    started = np.where(np.arange(200)[:, None] < 50, 9.0, wave)
    assert PROBLEMS["henon"].right(wave, started), "the first steps are not judged"
    assert not PROBLEMS["henon"].right(wave, started + 0.073) and PROBLEMS["henon"].right(wave, started + 0.072)


@pytest.mark.parametrize("name", ["xor", "reber", "dyck-1", "dyck-2", "anbn", "anbncn"])
def test_sets_that_two_directions_give_away_say_so(name: str) -> None:
    """Of a^n b^n, whoever sees the end of the string knows the last b."""
    (note,) = synthetic(name, "train", 2).notes
    assert "task.bidirectional=false" in note and PROBLEMS[name].task == "tag"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adding-hochreiter:3", "was given a length of 3, wanted at least 4"),
        ("adding-pascanu:9", "wanted at least 10"),
        ("temporal-order:9", "wanted at least 10: temporal-order:20"),
        ("temporal-order-3:2", "the set 'temporal-order-3' was given a length of 2"),
        ("xor:2", "wanted at least 3"),
        ("reber:30", "has no length to be chosen"),
    ],
)
def test_sets_too_short_for_what_they_are_about_are_refused(name: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        synthetic(name, "train", 1)
