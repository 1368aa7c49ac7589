"""The classic problems of long memory, and of little: what has to be kept, for how long, and what is only in the way.

Three different problems go by the name of the adding problem; each has its own name here. When a problem counts as solved,
and what the best guess without memory reaches, stands in `data.problems`.
"""

import numpy as np

from recurra.data.examples import Examples
from recurra.data.made import ONE_WAY, Part, at_least, made

REMEMBERED, SYMBOLS = 10, "ABCDEFGH"  # of the copy problem: how many symbols, and of which
BLANK, CUE = "_", ">"
PULSES = 0.1  # the probability that a channel of the flip-flop is set or reset at a step
PERMUTED = 100  # symbols of the permutation problem; the first two are those to be remembered
DISTRACTORS = "abcd"
ORDERS = {2: ((1, 2), (5, 6)), 3: ((1, 2), (3, 4), (6, 7))}  # where relevant symbols stand, in tenths of the string


def adding(draw: np.random.Generator, part: Part, count: int, length: int = 50) -> Examples:
    """The adding problem: series [length, 2] of numbers uniform in [0, 1) and of marks, 1 at one step of each half and 0
    elsewhere; the target [1] is the sum of the two marked numbers. To answer 1 always costs a mean squared error of 1/6.

    Reference: Hochreiter & Schmidhuber 1997, "Long short-term memory", section 5.4, with the range of numbers and the halves
    as in Arjovsky, Shah & Bengio 2016, arXiv:1511.06464
    """
    inputs, targets = [], []
    for _ in range(count):
        series = np.zeros((length, 2), np.float32)
        series[:, 0] = draw.random(length, np.float32)
        marked = [draw.integers(0, length // 2), draw.integers(length // 2, length)]
        series[marked, 1] = 1
        inputs.append(series)
        targets.append(series[marked, 0].sum(keepdims=True))
    note = f"{length} numbers between 0 and 1, of which two are marked; the target is their sum"
    return made("adding", "series", part, inputs, targets, note, ["number", "mark"])


def adding_hochreiter(draw: np.random.Generator, part: Part, count: int, length: int = 50) -> Examples:
    """The adding problem as it was first published: numbers uniform in [-1, 1) over T to T + T/10 steps, T = `length`, and marks:
    -1 at the first and the last step, 1 at one of the first ten and at another of the first T/2, 0 elsewhere. The target [1]
    is 1/2 + (X1 + X2) / 4 of the marked numbers; a first number that is marked is 0, and so is its mark of the beginning.

    Solved: an absolute error below 0.04. To answer 1/2 always costs a mean squared error of a little below 1/24.
    Reference: Hochreiter & Schmidhuber 1997, "Long short-term memory", Neural Computation 9, section 5.4
    """
    at_least("adding-hochreiter", length, 4)
    inputs, targets = [], []
    for _ in range(count):
        steps = length + int(draw.integers(0, length // 10 + 1))
        series = np.zeros((steps, 2), np.float32)
        series[:, 0] = 2 * draw.random(steps, np.float32) - 1
        series[[0, -1], 1] = -1
        one = int(draw.integers(0, first_marks(length)))
        other = int(draw.choice([at for at in range(length // 2) if at != one]))
        series[[one, other], 1] = 1
        if 0 in (one, other):
            series[0, 0] = 0
        inputs.append(series)
        targets.append(np.array([0.5 + series[[one, other], 0].sum() / 4], np.float32))
    note = f"{length} or more numbers between -1 and 1, of which two are marked; the target is 1/2 and a quarter of their sum"
    return made("adding-hochreiter", "series", part, inputs, targets, note, ["number", "mark"])


def first_marks(length: int) -> int:
    """At how many steps the first mark of `adding_hochreiter` may stand: ten, or fewer in short series."""
    return min(10, length // 2)


def adding_pascanu(draw: np.random.Generator, part: Part, count: int, length: int = 50) -> Examples:
    """The adding problem with a mean for a target: numbers uniform in [0, 1) over L to 1.1 L steps, L = `length`, and marks, 1 at
    one step in [0, 0.1 L) and at one in [0.1 L, 0.5 L), 0 elsewhere. The target [1] is the mean of the two marked numbers.

    Solved: a squared error of at most 0.04 in more than 99 % of 10,000. That is an error of 0.2: to answer 1/2 always is right
    64 times of 100, at a mean squared error of 1/24.
    Reference: Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063, as their published code has it
    """
    at_least("adding-pascanu", length, 10)
    inputs, targets = [], []
    for _ in range(count):
        steps = length + int(draw.integers(0, length // 10))
        series = np.zeros((steps, 2), np.float32)
        series[:, 0] = draw.random(steps, np.float32)
        marked = [draw.integers(0, length // 10), draw.integers(length // 10, length // 2)]
        series[marked, 1] = 1
        inputs.append(series)
        targets.append(series[marked, 0].mean(keepdims=True))
    note = f"{length} or more numbers between 0 and 1, of which two are marked; the target is their mean"
    return made("adding-pascanu", "series", part, inputs, targets, note, ["number", "mark"])


def copy(draw: np.random.Generator, part: Part, count: int, length: int = 50) -> Examples:
    """The copy problem: ten symbols of eight kinds (A to H), T - 1 blanks (_), a cue (>) and ten blanks, T = `length`: T + 20
    steps. What is to be said at each step is a blank, and at the last ten the ten symbols in their order.

    Solved: all ten right. Without memory the best is 10 ln 8 / (T + 20) nats a step.
    Reference: Hochreiter & Schmidhuber 1997 had the idea; numbers as in Arjovsky, Shah & Bengio 2016, arXiv:1511.06464
    """
    inputs, targets = [], []
    for _ in range(count):
        symbols = [SYMBOLS[at] for at in draw.integers(0, len(SYMBOLS), REMEMBERED)]
        inputs.append([*symbols, *[BLANK] * (length - 1), CUE, *[BLANK] * REMEMBERED])
        targets.append([*[BLANK] * (length + REMEMBERED), *symbols])
    note = f"{REMEMBERED} symbols, {length} steps of waiting, and the symbols again"
    return made("copy", "words", part, inputs, targets, note)


def temporal_order(draw: np.random.Generator, part: Part, count: int, length: int = 50, symbols: int = 2) -> Examples:
    """The temporal order problem: strings of L = `length` signs, all distractors (a to d) but two, each X or Y, the first in
    [0.1 L, 0.2 L), the second in [0.5 L, 0.6 L). The label is which came first and which second: XX, XY, YX or YY. With three
    relevant symbols they stand in [0.1 L, 0.2 L), [0.3 L, 0.4 L) and [0.6 L, 0.7 L), and there are eight labels.

    Solved: more than 99 % of 10,000. Without memory 1/4 (1/8 of three) are right, since the last sign tells nothing.
    Reference: Hochreiter & Schmidhuber 1997, section 5.6; places as in the code of Pascanu, Mikolov & Bengio 2013,
    arXiv:1211.5063
    """
    name = "temporal-order" if symbols == 2 else f"temporal-order-{symbols}"
    at_least(name, length, 10)
    inputs, targets = [], []
    for _ in range(count):
        signs = [DISTRACTORS[at] for at in draw.integers(0, len(DISTRACTORS), length)]
        label = ""
        for begin, end in ORDERS[symbols]:
            label += "XY"[draw.integers(0, 2)]
            signs[draw.integers(begin * length // 10, end * length // 10)] = label[-1]
        inputs.append("".join(signs))
        targets.append((label,))
    note = f"{length} signs of which {symbols} are X or Y; the label is these in their order"
    return made(name, "text", part, inputs, targets, note)


def permutation(draw: np.random.Generator, part: Part, count: int, length: int = 50) -> Examples:
    """The random permutation problem: of `length` numbers the first is 0 or 1 and the others any of 2 to 99; the label is the first
    one. Whatever comes after it is noise.

    Solved: more than 99 % of 10,000. Without memory half are right.
    Reference: Martens & Sutskever 2011, "Learning recurrent neural networks with Hessian-free optimization", after Hochreiter &
    Schmidhuber 1997; the code of Pascanu, Mikolov & Bengio 2013, arXiv:1211.5063
    """
    inputs, targets = [], []
    for _ in range(count):
        numbers = [int(draw.integers(0, 2)), *draw.integers(2, PERMUTED, length - 1).tolist()]
        inputs.append(" ".join(map(str, numbers)))
        targets.append((str(numbers[0]),))
    note = f"{length} numbers; the label is the first one, which is 0 or 1"
    return made("permutation", "text", part, inputs, targets, note)


def xor(draw: np.random.Generator, part: Part, count: int, length: int = 60) -> Examples:
    """Temporal exclusive or: a stream of bits in which each third is the exclusive or of the two before it; at each of `length`
    steps the next bit is to be said. Two of three cannot be known.

    Solved: every bit right that can be known, which are the targets of the second, fifth, eighth step and so on. Without memory
    half of them are right. (The exclusive or of all bits so far is the set parity-steps.)
    Reference: Elman 1990, "Finding structure in time", Cognitive Science 14
    """
    at_least("xor", length, 3)
    inputs, targets = [], []
    for _ in range(count):
        pairs = draw.integers(0, 2, (length // 3 + 1, 2))
        bits = [str(bit) for a, b in pairs for bit in (a, b, a ^ b)]
        inputs.append(bits[:length])
        targets.append(bits[1 : length + 1])
    note = f"{length} bits of which each third is the exclusive or of the two before it; the target is the next one{ONE_WAY}"
    return made("xor", "words", part, inputs, targets, note)


def flip_flop(draw: np.random.Generator, part: Part, count: int, length: int = 64) -> Examples:
    """Three bits that are set and reset: series [length, 3] of pulses, 1 or -1 with probability 0.05 each and else 0, and at the
    first step one on each channel; the target [length, 3] is the last pulse of each channel.

    Counted as solved where no step of a channel is off by 1/2 or more; the papers have no bar of their own, and look for the
    2^3 stable fixed points. Without memory the mean squared error is 0.9 (length - 1) / length.
    Reference: Sussillo & Barak 2013, "Opening the black box", Neural Computation 25; Golub & Sussillo 2018, "FixedPointFinder"
    """
    inputs, targets = [], []
    for _ in range(count):
        pulses = np.where(draw.random((length, 3)) < PULSES, 2.0 * draw.integers(0, 2, (length, 3)) - 1, 0.0)
        pulses[0] = 2.0 * draw.integers(0, 2, 3) - 1
        last = np.maximum.accumulate(np.where(pulses != 0, np.arange(length)[:, None], 0), axis=0)
        inputs.append(pulses.astype(np.float32))
        targets.append(np.take_along_axis(pulses, last, 0).astype(np.float32))
    note = f"{length} steps of pulses on three channels; the target is the last pulse of each"
    return made("flip-flop", "series", part, inputs, targets, note, ["one", "two", "three"])
