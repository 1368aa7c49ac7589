"""Chaotic series: what comes next follows from the past, and a small error grows.

Each example is a run of its own from a random start, long after which it begins. One variable is seen, the rest has to be
gathered from its past: series [length, 1] and the value at the next step as the target [length, 1] (`recurra train regress`).
To answer the mean always costs the variance of the series, and is the baseline that normalised errors (NMSE) are measured by.
"""

from collections import deque
from collections.abc import Callable

import numpy as np

from recurra.data.examples import Examples
from recurra.data.made import Part, made

TAU, BETA, GAMMA = 17.0, 0.2, 0.1  # of Mackey and Glass; the power is 10
SIGMA, RHO, B = 10.0, 28.0, 8 / 3  # of Lorenz
HENON = (1.4, 0.3)
STEP_OF_LORENZ = 0.05  # units of time from one value to the next
Field = Callable[[np.ndarray], np.ndarray]


def mackey_glass(draw: np.random.Generator, part: Part, count: int, length: int = 200) -> Examples:
    """The equation of Mackey and Glass for the density of blood cells, whose supply comes late:

        dx/dt = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x

    one value each unit of time. It begins 500 units after a constant past between 0.5 and 1.2. The largest Lyapunov exponent is
    about 0.005 a unit of time.

    Reference: Mackey & Glass 1977, "Oscillation and chaos in physiological control systems", Science 197; delay 17 as in Farmer
    1982, Physica D 4
    """
    past = 0.5 + 0.7 * draw.random(count)
    return _ahead("mackey-glass", part, delayed(past, 500, length + 1)[..., None], "the equation of Mackey and Glass")


def lorenz(draw: np.random.Generator, part: Part, count: int, length: int = 200) -> Examples:
    """The first variable of the equations of Lorenz, one value each 0.05 units of time:

        dx/dt = 10 (y - x)        dy/dt = x (28 - z) - y        dz/dt = x y - 8/3 z

    It begins 20 units after a start between -10 and 10 (z between 15 and 35). The largest Lyapunov exponent is about 0.906 a
    unit of time.

    Reference: Lorenz 1963, "Deterministic nonperiodic flow", Journal of the Atmospheric Sciences 20
    """
    start = np.array([-10.0, -10.0, 15.0]) + 20 * draw.random((count, 3))
    run = sampled(flow, start.T, round(20 / STEP_OF_LORENZ), length + 1, STEP_OF_LORENZ, parts=5)
    return _ahead("lorenz", part, run[:, 0].T[..., None], "the first variable of the equations of Lorenz")


def henon(draw: np.random.Generator, part: Part, count: int, length: int = 100) -> Examples:
    """The first variable of the map of Henon:

        x' = 1 - 1.4 x^2 + y        y' = 0.3 x

    so that the next value follows from the last two. It begins 100 steps after a start within 0.1 of 0. Each step shrinks areas
    to 0.3 of their size; the largest Lyapunov exponent is about 0.419 a step.

    Reference: Henon 1976, "A two-dimensional mapping with a strange attractor", Communications in Mathematical Physics 50
    """
    x, y = (0.2 * draw.random((count, 2)) - 0.1).T
    values = []
    for step in range(100 + length + 1):
        x, y = 1 - HENON[0] * x * x + y, HENON[1] * x
        if step >= 100:
            values.append(x)
    return _ahead("henon", part, np.stack(values, 1)[..., None], "the first variable of the map of Henon")


def delayed(past: np.ndarray, before: int, count: int, parts: int = 4) -> np.ndarray:
    """`count` values [..., count] of the equation of Mackey and Glass, one each unit of time, from time `before` on, after the
    constant pasts [...]: the classic Runge-Kutta method with `parts` steps a unit of time. Half way through a step the late
    value is that of Hermite's cubic through its neighbours.
    """
    step, late = 1 / parts, round(TAU * parts)
    values = deque([past] * (late + 1), late + 1)
    slopes = deque([np.zeros_like(past)] * late, late)  # of all values but the last
    kept = [past] if before == 0 else []
    for at in range(1, (before + count - 1) * parts + 1):
        x, old, new = values[-1], values[0], values[1]
        middle = _supply((old + new) / 2 + step / 8 * (slopes[0] - slopes[1]))
        one = _supply(old) - GAMMA * x
        two = middle - GAMMA * (x + step / 2 * one)
        three = middle - GAMMA * (x + step / 2 * two)
        four = _supply(new) - GAMMA * (x + step * three)
        values.append(x + step / 6 * (one + 2 * two + 2 * three + four))
        slopes.append(one)
        if at % parts == 0 and at >= before * parts:
            kept.append(values[-1])
    return np.stack(kept, -1)


def flow(state: np.ndarray) -> np.ndarray:
    """The right side of the equations of Lorenz, for states [3, ...]."""
    x, y, z = state
    return np.stack([SIGMA * (y - x), x * (RHO - z) - y, x * y - B * z])


def sampled(field: Field, state: np.ndarray, before: int, count: int, step: float, parts: int) -> np.ndarray:
    """`count` states [count, ...] of dx/dt = field(x), one each `step` units of time, the first `before` steps after `state`: the
    classic Runge-Kutta method with `parts` steps for each."""
    states, small = [], step / parts
    for at in range(before + count):
        if at >= before:
            states.append(state)
        for _ in range(parts):
            one = field(state)
            two = field(state + small / 2 * one)
            three = field(state + small / 2 * two)
            four = field(state + small * three)
            state = state + small / 6 * (one + 2 * two + 2 * three + four)
    return np.stack(states)


def _supply(x: np.ndarray) -> np.ndarray:
    """0.2 x / (1 + x^10). By products, which give the same bits whatever stands beside them; a power does not have to."""
    square = x * x
    fourth = square * square
    return BETA * x / (1 + fourth * fourth * square)


def _ahead(name: str, part: Part, runs: np.ndarray, note: str) -> Examples:
    """Runs [count, length + 1, 1] as series and what comes next at each of their steps."""
    runs = runs.astype(np.float32)
    note = f"{note}; the target is the next value"
    return made(name, "series", part, list(runs[:, :-1]), list(runs[:, 1:]), note, ["x"])
