"""Sets that are made, not read: problems whose answer is known, to see what a network can learn.

    synthetic("parity", "train")        5,000 strings and whether they hold an even number of ones
    synthetic("adding:100", "test")     the same of length 100 instead of 50

A set is a function `(draw, part, count)`, with `length` as a last argument that has a default, and a line in SYNTHETIC. It
draws its examples one after the other, so that the first of them are the same however many are asked for.
"""

from collections.abc import Callable
from datetime import date
from functools import partial

import numpy as np

from recurra.data import chaos, classic, grammars
from recurra.data.examples import Examples
from recurra.data.made import Part, made, part_of
from recurra.data.shapes import shapes
from recurra.errors import UsageError

OF_THEIR_OWN_LENGTH = ("dates", "shapes", "reber")
COUNTS: dict[Part, int] = {"train": 5_000, "valid": 1_000, "test": 1_000}
OF_THEIR_OWN_COUNT: dict[tuple[str, Part], int] = {("shapes", "train"): 4_000}
STEPS = 1 << 27  # of all examples of a part together, at most: about 1 GiB of the widest series
SHARED = 9  # signs of the longest strings of zeros and ones that every part may hold: of these there are too few
NOISE = 0.3  # standard deviation around a wave of amplitude 1


def synthetic(name: str, part: Part, count: int | None = None, seed: int = 0) -> Examples:
    """`count` examples of a part (5,000, 1,000 and 1,000 unless given, 4,000 to train on shapes) of the set of this name, or
    `name:length`.

    A function of its arguments: the same bits each time, and no part depends on how many examples another has. Raises
    UsageError, naming what there is, where there is no such set or part, or where a number makes no sense.
    """
    kind, colon, number = name.partition(":")
    if kind not in SYNTHETIC:
        raise UsageError(f"there is no synthetic set called {kind!r}; there are {', '.join(SYNTHETIC)}")
    if part not in COUNTS:
        raise UsageError(f"a synthetic set has no part {part!r}; it has {', '.join(COUNTS)}")
    if colon and kind in OF_THEIR_OWN_LENGTH:
        raise UsageError(
            f"the set {kind!r} has no length to be chosen, and {name!r} was asked for; leave out :{number}"
        )
    count = OF_THEIR_OWN_COUNT.get((kind, part), COUNTS[part]) if count is None else count
    options = {"length": _length(name, number)} if colon else {}
    if count < 1 or seed < 0:
        raise UsageError(f"{count} examples of seed {seed} were asked for, wanted at least one and no negative seed")
    if count * options.get("length", 1) > STEPS:
        raise UsageError(f"{count} examples of {name} are more than {STEPS} steps; ask for fewer or for shorter ones")
    draw = np.random.default_rng([seed, list(COUNTS).index(part)])
    return SYNTHETIC[kind](draw, part, count, **options)


def parity(draw: np.random.Generator, part: Part, count: int, length: int = 20) -> Examples:
    """Strings of zeros and ones of 1 to `length` signs, in the test part to twice as many; YES where the number of ones is
    even (1000010101), NO where it is odd (100011)."""
    strings, note = _bits(draw, part, count, length)
    targets = [("NO" if text.count("1") % 2 else "YES",) for text in strings]
    return made("parity", "text", part, strings, targets, f"{note}; YES where the number of ones is even")


def parity_steps(draw: np.random.Generator, part: Part, count: int, length: int = 20) -> Examples:
    """The strings of `parity` sign by sign, and after each whether the number of ones up to it is EVEN or ODD."""
    strings, note = _bits(draw, part, count, length)
    ones = [np.cumsum([sign == "1" for sign in text]) % 2 for text in strings]
    targets = [[("EVEN", "ODD")[odd] for odd in row] for row in ones]
    note = f"{note}; after each sign whether the number of ones so far is even"
    return made("parity-steps", "words", part, [list(text) for text in strings], targets, note)


def sine(draw: np.random.Generator, part: Part, count: int, length: int = 100) -> Examples:
    """Waves sin(2 pi f t + p) in noise of standard deviation 0.3: series [length, 1] with, at every step, the wave itself as
    target [length, 1]. f is uniform in 0.01 to 0.1 waves a step and p in 0 to 2 pi. To answer what came in costs a mean
    squared error of 0.09."""
    inputs, targets = [], []
    for _ in range(count):
        frequency, phase = draw.uniform(0.01, 0.1), draw.uniform(0, 2 * np.pi)
        wave = np.sin(2 * np.pi * frequency * np.arange(length) + phase)[:, None]
        inputs.append((wave + NOISE * draw.standard_normal((length, 1))).astype(np.float32))
        targets.append(wave.astype(np.float32))
    note = f"{length} steps of a sine wave in noise of standard deviation {NOISE}; the target is the wave without it"
    return made("sine", "series", part, inputs, targets, note, ["signal"])


def dates(draw: np.random.Generator, part: Part, count: int) -> Examples:
    """Dates as people write them in English, Spanish and Portuguese, in a dozen ways, and in the target the same as YYYY-MM-DD,
    from 1900 to 2099. A day of the calendar stands in one part only, by its hash."""
    first = date(1900, 1, 1).toordinal()
    inputs, targets = [], []
    for _ in range(count):
        day = date.fromordinal(first + int(draw.integers(0, 73_049)))
        while part_of(day.isoformat()) != part:
            day = date.fromordinal(first + int(draw.integers(0, 73_049)))
        language = list(MONTHS)[int(draw.integers(0, len(MONTHS)))]
        form = FORMS[language][int(draw.integers(0, len(FORMS[language])))]
        month = MONTHS[language][day.month - 1]
        text = form.format(d=day.day, m=day.month, y=day.year, month=month, short=month[:3])
        inputs.append(text.title() if draw.random() < 0.1 else text)
        targets.append((day.isoformat(),))
    return made("dates", "text", part, inputs, targets, "dates in three languages, and the same as YYYY-MM-DD")


MONTHS = {
    "en": "January February March April May June July August September October November December".split(),
    "es": "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre".split(),
    "pt": "janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro".split(),
}
FORMS = {
    "en": "{month} {d}, {y}|{d} {month} {y}|{short} {d}, {y}|the {d} of {month} {y}|{y} {month} {d}|{d} {short} {y}".split(
        "|"
    ),
    "es": "{d} de {month} de {y}|el {d} de {month} de {y}|{d}/{m}/{y}|{d} {short} {y}|{month} {d} de {y}".split("|"),
    "pt": "{d} de {month} de {y}|{d}º de {month} de {y}|{d}-{m}-{y}|{d} {short}. {y}|dia {d} de {month} de {y}".split(
        "|"
    ),
}

SYNTHETIC: dict[str, Callable[..., Examples]] = {
    "parity": parity,
    "parity-steps": parity_steps,
    "adding": classic.adding,
    "sine": sine,
    "dates": dates,
    "shapes": shapes,
    "adding-hochreiter": classic.adding_hochreiter,
    "adding-pascanu": classic.adding_pascanu,
    "copy": classic.copy,
    "temporal-order": classic.temporal_order,
    "temporal-order-3": partial(classic.temporal_order, symbols=3),
    "permutation": classic.permutation,
    "xor": classic.xor,
    "flip-flop": classic.flip_flop,
    "reber": grammars.reber,
    "dyck-1": partial(grammars.dyck, kinds=1),
    "dyck-2": grammars.dyck,
    "anbn": grammars.anbn,
    "anbncn": grammars.anbncn,
    "mackey-glass": chaos.mackey_glass,
    "lorenz": chaos.lorenz,
    "henon": chaos.henon,
}


def _length(name: str, number: str) -> int:
    if not (number.isascii() and number.isdigit() and len(number) < 10 and int(number) > 1):
        raise UsageError(
            f"the set {name!r} has a length of {number!r}, wanted a whole number of at least 2: adding:100"
        )
    return int(number)


def _bits(draw: np.random.Generator, part: Part, count: int, length: int) -> tuple[list[str], str]:
    """Strings of zeros and ones of 1 to `length` signs, all lengths equally often, and what to know of them; in the test part
    to twice as many. One of more than 9 signs stands in one part only, by its hash, whatever the seed."""
    longest = 2 * length if part == "test" else length
    strings = []
    for _ in range(count):
        size = int(draw.integers(1, longest + 1))
        text = _string(draw, size)
        while size > SHARED and part_of(text) != part:
            text = _string(draw, size)
        strings.append(text)
    note = f"strings of zeros and ones of 1 to {longest} signs, those of more than {SHARED} in no other part"
    return strings, note


def _string(draw: np.random.Generator, size: int) -> str:
    return (draw.integers(0, 2, size, np.uint8) + ord("0")).tobytes().decode()
