"""What gates and units do over a sequence: how open, how saturated, how long they hold, and what they follow."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from recurra.init import FORGETTING
from recurra.probe.record import Record, Track
from recurra.state import within

SHUT, OPEN = 0.1, 0.9  # below the one and above the other a gate is saturated (Karpathy, Johnson & Fei-Fei 2015)
KEEPING = (*FORGETTING, "keep")  # gates that say how much of the old state stays
STILL = 0.01  # a unit whose output moves by less over all steps is dead
QUOTES = '"“”«»„'


class Gate(NamedTuple):
    """A gate, candidate or field of the state of a cell.

    values     [rows, time, units] in the order of the sequence, NaN past a row's end
    low, high  [units]: the share of steps below .1 and above .9; of what goes below 0, below -.9 and above .9
    mean       [units]
    half_life  [units]: of a gate that keeps the state, the steps after which half of it is left if the gate stays at its mean f,
               -ln 2 / ln f; None for others
    """

    name: str
    kind: str  # gate, candidate or state
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    half_life: np.ndarray | None


class Gates(NamedTuple):
    """Of one cell: its gates, candidates and state; the units of its output, the first field, that hardly move; and in words."""

    layer: str
    parts: list[Gate]
    dead: np.ndarray
    words: list[str]

    def part(self, name: str) -> Gate:
        """The one of this name."""
        return next(one for one in self.parts if one.name == name)


class Followed(NamedTuple):
    """A unit that follows something: the score of the claim, on steps that had no part in choosing it. Of what holds or does not,
    `auc`, the probability that the unit is higher where it holds (sign -1: lower); of numbers, `r`, the correlation."""

    layer: str
    part: str
    unit: int
    feature: str
    measure: str
    sign: int
    score: float


def gates(seen: Record) -> list[Gates]:
    """What the gates, candidates and states of every cell were over the sequence, and how saturated."""
    return [_of_track(track) for track in seen.tracks]


def _of_track(track: Track) -> Gates:
    keeps = float(getattr(track.cell, "open_gate_keeps", 1.0))
    parts = []
    for name, values in track.gates.items():
        arranged = _arranged(track, values)
        kind = "candidate" if name == "candidate" else "gate"
        half_life = _half_life(_mean(arranged), keeps) if name in KEEPING else None
        parts.append(_gate(name, kind, arranged, half_life))
    states = {name: _arranged(track, values) for name, values in track.states().items()}
    parts += [_gate(name, "state", values, None) for name, values in states.items()]
    first = next(iter(states.values()))
    moved = np.nanmax(first, (0, 1)) - np.nanmin(first, (0, 1)) if np.isfinite(first).any() else np.ones(first.shape[2])
    dead = np.flatnonzero(moved < STILL)
    return Gates(track.name, parts, dead, _words(track.name, parts, dead, first.shape[2]))


def _arranged(track: Track, values: Tensor) -> np.ndarray:
    """[rows, time, units] in the order of the sequence, NaN past a row's end."""
    turned = track.in_order(values.flatten(2)).double()
    if track.lengths is not None:
        turned = turned.masked_fill(~within(track.lengths, track.steps)[..., None], math.nan)
    return turned.numpy()


def _mean(values: np.ndarray) -> np.ndarray:
    return np.nanmean(values, (0, 1)) if np.isfinite(values).any() else np.full(values.shape[2], np.nan)


def _gate(name: str, kind: str, values: np.ndarray, half_life: np.ndarray | None) -> Gate:
    real = np.isfinite(values).sum((0, 1)).clip(min=1)
    low = -OPEN if np.nanmin(values, initial=0.0) < 0 else SHUT
    below, above = (values < low).sum((0, 1)) / real, (values > OPEN).sum((0, 1)) / real
    return Gate(name, kind, values, below, above, _mean(values), half_life)


def _half_life(mean: np.ndarray, keeps: float) -> np.ndarray:
    kept = mean if keeps > 0 else 1 - mean
    with np.errstate(divide="ignore"):
        return np.where(kept <= 0, 0.0, -math.log(2) / np.log(np.clip(kept, 1e-300, 1.0)).clip(max=-1e-300))


def _words(layer: str, parts: Sequence[Gate], dead: np.ndarray, units: int) -> list[str]:
    words = []
    for one in parts:
        if one.kind == "gate":
            words.append(
                f"{layer}: the {one.name} gate is shut (below .1) {one.low.mean():.0%} and open (above .9) {one.high.mean():.0%} "
                "of the time"
            )
        if one.half_life is not None:
            quarter, half, most = np.quantile(one.half_life, [0.25, 0.5, 1.0])
            words[-1:] = [
                f"{words[-1]}; at its mean it halves the state in {half:.1f} steps (median of the units; a quarter below "
                f"{quarter:.1f}, longest {most:.1f})"
            ]
    if len(dead):
        named = ", ".join(map(str, dead[:10].tolist()))
        words.append(f"{layer}: {len(dead)} of {units} units hardly move (less than {STILL}): {named}")
    return [f"{one}." for one in words]


# --- what units follow --------------------------------------------------------------------------------------------------


def features(texts: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """What units may follow in texts, given as the tokens of each row: `[rows, time]`, NaN past a row's end; booleans are 0 and 1.

    position (in the text), column (since the last line break), inside quotes, inside brackets, blank, capital, digit, vowel.
    """
    names = ("position", "column", "inside quotes", "inside brackets", "blank", "capital", "digit", "vowel")
    longest = max(map(len, texts), default=0)
    found = {name: np.full((len(texts), longest), np.nan) for name in names}
    for row, tokens in enumerate(texts):
        column = quoted = depth = 0
        for at, token in enumerate(tokens):
            quoted = (quoted + sum(char in QUOTES for char in token)) % 2
            depth = max(0, depth + sum((char in "([{") - (char in ")]}") for char in token))
            column = 0 if "\n" in token else column + 1
            first = token.strip()[:1]
            said = (
                at,
                column,
                quoted,
                depth > 0,
                not token.strip(),
                first.isupper(),
                first.isdigit(),
                first.lower() in set("aeiouyäöü"),
            )
            for name, value in zip(names, said, strict=True):
                found[name][row, at] = value
    return found


def followers(
    looked: Sequence[Gates], told: Mapping[str, np.ndarray], *, best: int = 3, kinds: Sequence[str] = ("state",)
) -> list[Followed]:
    """For each feature `[rows, time]` the `best` units that follow it, of the parts of these kinds, the best first.

    Units are chosen by the first half of the steps (of all rows, one after another) and scored on the second half, so that the
    best of many by chance is not taken for a finding. What takes one value only in a half is left out. Scores near .5 (auc) or 0
    (r) say that nothing follows. Features are aligned with the steps of cells that have as many; others are passed over.
    """
    found = []
    for feature, values in told.items():
        claims = [one for cell in looked for one in _claims(cell, feature, values, best, kinds)]
        found += sorted(claims, key=lambda one: -one.score)[:best]
    return found


def _claims(cell: Gates, feature: str, values: np.ndarray, best: int, kinds: Sequence[str]) -> list[Followed]:
    claims = []
    for part in cell.parts:
        if part.kind not in kinds or part.values.shape[:2] != values.shape:
            continue
        real = np.isfinite(values) & np.isfinite(part.values).all(2)
        told, units = values[real], part.values[real]
        half = len(told) // 2
        if min(np.ptp(told[:half], axis=None) if half else 0, np.ptp(told[half:]) if half else 0) == 0:
            continue
        two = set(np.unique(told).tolist()) == {0.0, 1.0}
        measure = _auc if two else _correlation
        chosen, tested = measure(units[:half], told[:half]), measure(units[half:], told[half:])
        middle = 0.5 if two else 0.0
        for unit in np.argsort(-np.abs(chosen - middle), kind="stable")[:best].tolist():
            sign = 1 if chosen[unit] >= middle else -1
            score = float(tested[unit] if sign > 0 else 2 * middle - tested[unit])
            claims.append(Followed(cell.layer, part.name, unit, feature, "auc" if two else "r", sign, score))
    return claims


def _auc(units: np.ndarray, told: np.ndarray) -> np.ndarray:
    """[units]: the probability that a unit is higher at a step where it holds than at one where it does not, ties halved: the area
    under the curve of Mann & Whitney 1947, by ranks."""
    holds = told > 0.5
    positive, negative = int(holds.sum()), int((~holds).sum())
    sums = np.array([_ranks(column)[holds].sum() for column in units.T])
    return (sums - positive * (positive + 1) / 2) / (positive * negative)


def _ranks(column: np.ndarray) -> np.ndarray:
    """Ranks from 1; those of equal numbers are their mean."""
    _, where, counts = np.unique(column, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[where]


def _correlation(units: np.ndarray, told: np.ndarray) -> np.ndarray:
    """[units]: Pearson's; 0 for a unit that does not move."""
    apart, other = units - units.mean(0), told - told.mean()
    spread = np.sqrt((apart**2).sum(0) * (other**2).sum())
    return np.divide(other @ apart, spread, out=np.zeros(units.shape[1]), where=spread > 0)
