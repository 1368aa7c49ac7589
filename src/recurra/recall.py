"""Patterns stored in an associative memory and recalled from damaged copies: what `recurra recall` does, its report and page."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recurra.data.arrays import Rows, rows
from recurra.errors import DataError, UsageError
from recurra.memory import RULES, Associative, Dense, Hopfield, Modern, Trace, named, signs

KINDS = (*RULES, "dense", "modern")
SHOWN = 6  # probes on the page
STAGES = 6  # frames of each
SHADES = " ░▒▓█"
TITLES = ["probe", *[""] * (STAGES - 2), "recalled", "stored", "energy"]


class Damage(NamedTuple):
    """What is done to a stored pattern to make a probe of it."""

    noise: float = 0.2  # share of the units whose sign is turned
    mask: float = 0.0  # share of the rows of the picture, from below, that are hidden


SOME = Damage()


class Recalled(NamedTuple):
    """All that came of it. Patterns, probes and results [patterns, units]."""

    memory: Associative
    patterns: Tensor
    probes: Tensor
    results: Tensor
    traces: list[Trace]  # of the first probes
    shape: tuple[int, int]  # of a picture
    report: dict[str, Any]


def recall(
    files: Sequence[Path | str],
    kind: str = "hebb",
    patterns: int | None = None,
    damage: Damage = SOME,
    *,
    label: str | None = None,
    shape: tuple[int, int] | None = None,
    threshold: float | None = None,
    beta: float = 1.0,
    power: str = "3",
    seed: int = 0,
) -> Recalled:
    """Store the first `patterns` rows of the files (all of them unless given), damage each and recall it.

    Units are +1 where a number is above `threshold` (the mean of all unless given) and -1 elsewhere; `modern` stores the
    numbers themselves, from -1 for the least to 1 for the greatest. A pattern counts as right where the result is nearer to
    it than to any other, and as exact where no unit differs. Raises UsageError and DataError.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no memory called {kind!r}; there are {', '.join(KINDS)}")
    for name, share in damage._asdict().items():
        if not 0 <= share <= 1:
            raise UsageError(f"{name} was {share:g}, wanted a share from 0 to 1")
    read = rows(files, label)
    stored = _patterns(read, kind, patterns, threshold)
    began = time.perf_counter()
    memory = _memory(stored, kind, beta, power)
    storing = time.perf_counter() - began
    picture = _picture_shape(read, shape)
    probes = _damaged(stored, damage, picture, 0.0 if kind == "modern" else -1.0, seed)
    began = time.perf_counter()
    results = memory.recall(probes, seed)
    recalling = time.perf_counter() - began
    report = {
        "memory": kind,
        "patterns": len(stored),
        "units": memory.units,
        **damage._asdict(),
        **_scores(kind, stored, probes, results),
        "seconds": {"store": storing, "recall": recalling},
    }
    traces = [memory.trace(probe, seed) for probe in probes[:SHOWN]]
    return Recalled(memory, stored, probes, results, traces, picture, report)


def _patterns(read: Rows, kind: str, count: int | None, threshold: float | None) -> Tensor:
    values = torch.from_numpy(read.values)
    if count is not None:
        if count > len(values):
            raise DataError(f"the files hold {len(values)} rows, and {count} patterns were asked for")
        values = values[:count]
    if kind == "modern":
        low, high = values.min(), values.max()
        return (values - low) / (high - low).clamp(min=1e-12) * 2 - 1
    found = signs(values, float(values.mean()) if threshold is None else threshold)
    alike = len(found) - len(found.unique(dim=0))
    if alike:
        raise DataError(
            f"{alike} of {len(found)} patterns are the same as another once they are cut at the threshold; "
            "set another with --threshold, or take fewer with --patterns"
        )
    return found


def _memory(stored: Tensor, kind: str, beta: float, power: str) -> Associative:
    if kind == "modern":
        return Modern.store(stored, beta)
    if kind == "dense":
        if power != "exp" and not power.isdigit():
            raise UsageError(f"power was {power!r}, wanted a whole number of at least 2, or exp")
        return Dense.store(stored, "exp" if power == "exp" else int(power))
    return Hopfield.store(stored, kind)


def _picture_shape(read: Rows, given: tuple[int, int] | None) -> tuple[int, int]:
    units = read.values.shape[1]
    side = math.isqrt(units)
    found = given or (read.shape if len(read.shape) == 2 else (side, side) if side * side == units else (1, units))
    if found[0] * found[1] != units:
        raise UsageError(
            f"rows of {units} numbers are no picture of {found[0]} x {found[1]}; give --shape HEIGHTxWIDTH"
        )
    return found


def _damaged(stored: Tensor, damage: Damage, picture: tuple[int, int], hidden: float, seed: int) -> Tensor:
    draw = torch.rand(stored.shape, generator=torch.Generator().manual_seed(seed))
    probes = torch.where(draw < damage.noise, -stored, stored)
    kept = round(picture[0] * (1 - damage.mask)) * picture[1]
    probes[:, kept:] = hidden
    return probes


def _scores(kind: str, stored: Tensor, probes: Tensor, results: Tensor) -> dict[str, Any]:
    distances = torch.cdist(results, stored)
    right = distances.argmin(1) == torch.arange(len(stored))
    exact = (results - stored).abs().amax(1) < (1e-2 if kind == "modern" else 1e-6)
    overlap = [float(torch.cosine_similarity(part, stored).mean()) for part in (probes, results)]
    scores: dict[str, Any] = {
        "right": float(right.float().mean()),
        "exact": float(exact.float().mean()),
        "overlap": {"before": overlap[0], "after": overlap[1]},
    }
    if kind != "modern":
        scores["states"] = dict(Counter(one.kind for one in named(results, stored)))
    return scores


# --- for people ---------------------------------------------------------------------------------------------------------


def lines(done: Recalled) -> list[str]:
    """The report, and the first pattern as it was stored, damaged and recalled."""
    report = done.report
    said = [
        f"{report['memory']}: {report['patterns']} patterns of {report['units']} units, noise {report['noise']:g}, "
        f"hidden {report['mask']:g}",
        f"  right  {report['right']:7.1%}   the result is nearest to what was stored",
        f"  exact  {report['exact']:7.1%}   no unit differs",
        f"  overlap with what was stored: {report['overlap']['before']:.3f} before, {report['overlap']['after']:.3f} after",
    ]
    if "states" in report:
        said.append("  at rest in: " + ", ".join(f"{count} {kind}" for kind, count in report["states"].items()))
    said.append(f"  {report['seconds']['store']:.3f} s to store, {report['seconds']['recall']:.3f} s to recall")
    if done.shape[1] * 3 + 8 <= 132:
        said += ["", *_side_by_side(done)]
    return said


def _side_by_side(done: Recalled) -> list[str]:
    width = done.shape[1]
    names = ("stored", "probe", "recalled")
    drawn = [_drawn(part[0], done.shape) for part in (done.patterns, done.probes, done.results)]
    return [
        "    ".join(name[:width].ljust(width) for name in names),
        *("    ".join(row) for row in zip(*drawn, strict=True)),
    ]


def _drawn(units: Tensor, shape: tuple[int, int]) -> list[str]:
    shades = ((units.clamp(-1, 1) + 1) / 2 * (len(SHADES) - 1)).round().long().view(shape)
    return ["".join(SHADES[shade] for shade in row) for row in shades.tolist()]


def page(done: Recalled) -> str:
    """One self-contained page of HTML: the first probes frame by frame, and the energy on the way."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    rows, columns = len(done.traces), STAGES + 2
    figure = make_subplots(rows, columns, subplot_titles=TITLES, horizontal_spacing=0.01, vertical_spacing=0.02)
    for row, trace in enumerate(done.traces, 1):
        stages = torch.linspace(0, len(trace.frames) - 1, STAGES).round().long()
        for column, units in enumerate([*trace.frames[stages], done.patterns[row - 1]], 1):
            picture = go.Heatmap(z=units.view(done.shape).tolist(), zmin=-1, zmax=1, colorscale="gray", showscale=False)
            figure.add_trace(picture, row, column)
            same_scale = f"x{(row - 1) * columns + column}"
            figure.update_xaxes(visible=False, row=row, col=column)
            figure.update_yaxes(visible=False, autorange="reversed", scaleanchor=same_scale, row=row, col=column)
        energy = go.Scatter(y=trace.energies.tolist(), mode="lines", line_color="#333", showlegend=False)
        figure.add_trace(energy, row, columns)
    report = done.report
    heading = (
        f"{report['memory']}: {report['patterns']} patterns of {report['units']} units, {report['right']:.1%} right"
    )
    figure.update_layout(title=heading, height=150 * rows + 120, template="plotly_white")
    return figure.to_html(include_plotlyjs=True, full_html=True)
