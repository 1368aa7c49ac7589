"""Synthetic sets against what they say of themselves."""

import re

import numpy as np
import pytest

import recurra
from recurra.data.examples import Examples
from recurra.data.synthetic import COUNTS, MONTHS, SYNTHETIC, Part, synthetic
from recurra.errors import UsageError

PARTS = list(COUNTS)
NAMES = [*SYNTHETIC, "parity:12", "parity-steps:7", "adding:9", "sine:2"]


def same(one: Examples, other: Examples) -> bool:
    """Whether both hold the same bits."""
    return repr(bits(one)) == repr(bits(other))


def bits(examples: Examples) -> list[object]:
    plain = lambda item: (item.dtype, item.shape, item.tobytes()) if isinstance(item, np.ndarray) else item  # noqa: E731
    assert examples.targets is not None
    return [
        (plain(xs), plain(ys), place)
        for xs, ys, place in zip(examples.inputs, examples.targets, examples.places, strict=True)
    ]


# --- laws of all sets ---


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", PARTS)
def test_a_set_is_a_function_of_its_seed(name: str, part: Part) -> None:
    some = synthetic(name, part, 40, seed=3)
    assert same(some, synthetic(name, part, 40, seed=3))
    assert not same(some, synthetic(name, part, 40, seed=4))
    assert same(some.take(range(10)), synthetic(name, part, 10, seed=3)), "the first are the first of more"
    for other in PARTS:
        if other != part:
            assert bits(synthetic(name, other, 40, seed=3))[0][:2] != bits(some)[0][:2]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("part", PARTS)
def test_examples_are_of_the_form_that_readers_give(name: str, part: Part) -> None:
    some = synthetic(name, part, 30)
    assert len(some) == len(some.targets or []) == len(set(some.places)) == 30
    assert some.places[16] == f"synthetic:{name.partition(':')[0]} {part}:17"
    assert some.heads is None and not some.problems and len(some.notes) == 1
    for xs, ys in zip(some.inputs, some.targets or [], strict=True):
        if some.kind == "text":
            assert isinstance(xs, str) and isinstance(ys, tuple) and all(isinstance(label, str) for label in ys)
        elif some.kind == "picture":
            assert xs.dtype == np.uint8 and xs.shape == (64, 64, 3) and isinstance(ys, tuple) and ys
        elif some.kind == "words":
            assert isinstance(xs, list) and isinstance(ys, list) and len(xs) == len(ys)
        else:
            assert xs.dtype == ys.dtype == np.float32 and xs.shape[1] == len(some.channels)
            assert ys.shape in ((1,), (len(xs), 1)) or (name == "flip-flop" and ys.shape == (len(xs), 3))


@pytest.mark.parametrize(("part", "count"), COUNTS.items())
def test_without_a_number_there_are_enough_to_train(part: Part, count: int) -> None:
    assert len(synthetic("parity", part)) == count


# --- parity ---


def test_parity_is_that_of_the_lecture() -> None:
    assert "1000010101".count("1") % 2 == 0 and "100011".count("1") % 2 == 1  # YES, NO
    for part in PARTS:
        some = synthetic("parity", part)
        said = dict(zip(some.inputs, some.targets or [], strict=True))
        assert all((label == ("YES",)) == (sum(map(int, text)) % 2 == 0) for text, label in said.items())
        assert set(said.values()) == {("YES",), ("NO",)} and set("".join(said)) == {"0", "1"}
    everything = dict(
        zip(*[getattr(synthetic("parity:6", "train"), field) for field in ("inputs", "targets")], strict=True)
    )
    assert everything["100011"] == ("NO",) and len(everything) == 126


@pytest.mark.parametrize(("name", "longest"), [("parity", 20), ("parity:30", 30), ("parity-steps", 20)])
def test_all_lengths_are_there_and_longer_ones_in_the_test(name: str, longest: int) -> None:
    for part in PARTS:
        most = 2 * longest if part == "test" else longest
        lengths = [len(text) for text in synthetic(name, part, 3000).inputs]
        counts = np.bincount(lengths, minlength=most + 1)
        assert counts[0] == 0 and len(counts) == most + 1
        assert abs(counts[1:] - 3000 / most).max() < 5 * (3000 / most) ** 0.5


def test_long_strings_stand_in_one_part_only_whatever_the_seed() -> None:
    texts = [
        {text for seed in (0, 1) for text in synthetic("parity", part, 4000, seed).inputs if len(text) >= 10}
        for part in PARTS
    ]
    assert all(len(part) > 1000 for part in texts)
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


def test_the_choice_of_a_part_leaves_even_and_odd_alike() -> None:
    for part in PARTS:
        some = synthetic("parity", part, 8000, seed=5)
        long = [label for text, label in zip(some.inputs, some.targets or [], strict=True) if len(text) >= 10]
        assert abs(long.count(("YES",)) / len(long) - 0.5) < 2.5 / len(long) ** 0.5
        assert {text.count("1") for text in some.inputs if len(text) == 15} >= set(range(3, 13))
        ones = np.mean([text.count("1") / len(text) for text in some.inputs])
        assert abs(ones - 0.5) < 0.01


def test_parity_steps_say_the_parity_so_far() -> None:
    some, whole = synthetic("parity-steps", "test", 200), synthetic("parity", "test", 200)
    for signs, labels, text, label in zip(
        some.inputs, some.targets or [], whole.inputs, whole.targets or [], strict=True
    ):
        assert labels == [("ODD" if signs[: t + 1].count("1") % 2 else "EVEN") for t in range(len(signs))]
        assert "".join(signs) == text and (labels[-1] == "EVEN") == (label == ("YES",))


# --- series ---


@pytest.mark.parametrize(("name", "length"), [("adding", 50), ("adding:2", 2), ("adding:101", 101)])
def test_the_sum_of_the_marked_is_the_answer(name: str, length: int) -> None:
    some = synthetic(name, "train", 2000)
    series, sums = np.stack(some.inputs), np.stack(some.targets or [])
    numbers, marks = series[..., 0], series[..., 1]
    assert series.shape == (2000, length, 2) and numbers.min() >= 0 and numbers.max() < 1
    assert set(np.unique(marks)) <= {0, 1}
    half = length // 2
    assert (marks[:, :half].sum(1) == 1).all() and (marks[:, half:].sum(1) == 1).all()
    assert marks.any(0).all(), "every step is marked some time"
    np.testing.assert_allclose((numbers * marks).sum(1), sums[:, 0], rtol=1e-6)
    assert ((sums - 1) ** 2).mean() == pytest.approx(1 / 6, rel=0.1)


def test_a_sine_is_a_wave_in_noise() -> None:
    some = synthetic("sine", "valid", 500)
    signal, wave = np.stack(some.inputs)[..., 0].astype(float), np.stack(some.targets or [])[..., 0].astype(float)
    assert signal.shape == wave.shape == (500, 100) and abs(wave).max() <= 1
    assert (signal - wave).mean() == pytest.approx(0, abs=0.01)
    assert ((signal - wave) ** 2).mean() == pytest.approx(0.09, rel=0.05)
    # w[t-1] + w[t+1] = 2 cos(2 pi f) w[t] holds of every wave of frequency f, and of nothing else
    cosine = ((wave[:, :-2] + wave[:, 2:]) * wave[:, 1:-1]).sum(1) / (2 * wave[:, 1:-1] ** 2).sum(1)
    np.testing.assert_allclose(wave[:, :-2] + wave[:, 2:], 2 * cosine[:, None] * wave[:, 1:-1], atol=1e-5)
    frequencies = np.arccos(cosine) / (2 * np.pi)
    assert 0.0099 < frequencies.min() < 0.015 and 0.095 < frequencies.max() < 0.1001


# --- wrong calls ---


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            ("nothing", "train"),
            "no synthetic set called 'nothing'; there are parity, parity-steps, adding, sine, dates",
        ),
        (("", "train"), "no synthetic set called ''"),
        (("parity", "dev"), "no part 'dev'; it has train, valid, test"),
        (("adding:", "train"), "length of ''"),
        (("adding:1", "train"), "length of '1', wanted a whole number of at least 2"),
        (("adding:-5", "train"), "length of '-5'"),
        (("adding:x", "train"), "length of 'x'"),
        (("adding:²", "train"), "length of '²'"),
        (("adding:" + "9" * 5000, "train"), "whole number"),
        (("adding:100000000", "train"), "more than 134217728 steps"),
        (("parity", "train", 10**12), "more than 134217728 steps"),
        (("parity", "train", 0), "0 examples"),
        (("parity", "train", -1), "-1 examples"),
        (("parity", "train", 1, -1), "seed -1"),
    ],
)
def test_wrong_calls_are_answered_in_words(call, words: str) -> None:
    with pytest.raises(recurra.UsageError, match=words):
        synthetic(*call)


def test_dates_mean_what_their_targets_say() -> None:
    """Every form is read back by rules of its own: the number of the year, of the day, and the month by its name or number."""
    months = {name[:3].lower(): at % 12 + 1 for names in MONTHS.values() for at, name in enumerate(names)}
    for part in ("train", "valid", "test"):
        some = synthetic("dates", part, 400)
        for text, (target,) in zip(some.inputs, some.targets or (), strict=True):
            year, month, day = map(int, target.split("-"))
            numbers = [int(number) for number in re.findall(r"\d+", text)]
            named = [months[word[:3]] for word in re.findall(r"[^\W\d]+", text.lower()) if word[:3] in months]
            assert year in numbers and day in numbers
            assert named == [month] if named else sorted(numbers) == sorted([year, month, day])


def test_a_day_is_in_one_part_only_and_has_no_length_to_be_chosen() -> None:
    days = [
        {target for (target,) in synthetic("dates", part, 1500, seed).targets or ()} for seed, part in enumerate(COUNTS)
    ]
    assert not days[0] & days[1] and not days[0] & days[2] and not days[1] & days[2]
    with pytest.raises(UsageError, match="has no length to be chosen"):
        synthetic("dates:5", "train")
