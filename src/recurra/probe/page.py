"""Figures of results, and the one page that holds them: it opens without a network, and reads on a phone."""

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from recurra.data.tokens import visible
from recurra.probe.connectivity import Connectivity
from recurra.probe.flow import Flow
from recurra.probe.gates import Followed, Gates
from recurra.probe.jacobians import Jacobians
from recurra.probe.strip import Strip
from recurra.probe.training import Training

MOST_COLUMNS, MOST_UNITS, MOST_POINTS = 250, 64, 2000  # of a heat map and a line, which are looked at
MOST_MAPPED = 768  # units of all heat maps of gates together: the page stays small
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe & Ito 2008
DASHES = ["solid", "dash", "dot", "dashdot"]
SCALE = "Cividis"  # made for eyes that do not tell red from green (Nunez, Anderton & Renslow 2018)


class Section(NamedTuple):
    """A part of the page: its title, what it says in words, and what is shown: figures of plotly, or HTML."""

    title: str
    words: Sequence[str]
    shown: Sequence[Any]


def flow_section(found: Flow) -> Section:
    """The profile of every field on a logarithmic axis, and a map for each cell's longest."""
    import plotly.graph_objects as go

    lines = go.Figure()
    for at, one in enumerate(found.layers):
        keep = _thinned(len(one.distance), MOST_POINTS)
        profile = np.where(one.profile > 0, one.profile, np.nan)[keep]
        style = {"color": COLOURS[at % len(COLOURS)], "dash": DASHES[at % len(DASHES)]}
        lines.add_scatter(
            x=one.distance[keep].tolist(), y=_numbers(profile), mode="lines", line=style, name=f"{one.name} {one.field}"
        )
    lines.update_xaxes(title="distance t - k in steps")
    lines.update_yaxes(type="log", title="norm of dL_t/ds_k", exponentformat="power")
    maps = []
    for one in found.layers:
        with np.errstate(divide="ignore"):
            logs = np.log10(one.map)
        maps.append(
            _heat(np.where(np.isfinite(logs), logs, np.nan), f"{one.name} {one.field}: log10 |dL_t/ds_k|", "k", "t")
        )
        maps[-1].update_yaxes(
            tickvals=list(range(len(found.times)))[:: max(1, len(found.times) // 6)],
            ticktext=[str(t) for t in found.times.tolist()][:: max(1, len(found.times) // 6)],
        )
    return Section("How gradients flow back through time", found.words, [_laid_out(lines), *maps])


def gates_section(found: Sequence[Gates], followed: Sequence[Followed]) -> Section:
    """A heat map of each gate, and the units that follow something."""
    shown: list[Any] = []
    maps = sum(len(cell.parts) for cell in found)
    most = max(4, min(MOST_UNITS, MOST_MAPPED // max(1, maps)))
    for cell in found:
        for part in cell.parts:
            units = part.values[0][:, :most].T
            shown.append(_heat(units, f"{cell.layer} {part.name}: the first {len(units)} units", "step", "unit"))
    return Section("Gates and states", [word for cell in found for word in cell.words], [_claims(followed), *shown])


def jacobians_section(found: Sequence[Jacobians]) -> Section:
    """Eigenvalues beside the unit circle, and singular values of the products."""
    import plotly.graph_objects as go

    circle, products = go.Figure(), go.Figure()
    angles = np.linspace(0, 2 * np.pi, 100)
    circle.add_scatter(
        x=np.cos(angles).tolist(), y=np.sin(angles).tolist(), mode="lines", line_color="#888", name="unit circle"
    )
    at = 0
    for one in found:
        for name, values in one.eigenvalues.items():
            style = {"color": COLOURS[at % len(COLOURS)], "symbol": at % 4, "size": 5}
            circle.add_scatter(
                x=values.real.tolist(), y=values.imag.tolist(), mode="markers", marker=style, name=f"{one.layer} {name}"
            )
            at += 1
        back = list(range(1, len(one.products) + 1))
        middle = one.products.shape[1] // 2
        for place, name in ((0, "largest"), (middle, "median")):
            values = np.where(one.products[:, place] > 0, one.products[:, place], np.nan)
            products.add_scatter(x=back, y=_numbers(values), mode="lines+markers", name=f"{one.layer} {name}")
    circle.update_yaxes(scaleanchor="x", title="imaginary")
    circle.update_xaxes(title="real")
    products.update_xaxes(title="steps back")
    products.update_yaxes(type="log", title="singular value of the product", exponentformat="power")
    words = [word for one in found for word in one.words]
    return Section("Jacobians of a step", words, [_laid_out(circle), _laid_out(products)])


def strip_section(found: Strip, texts: Sequence[str], guesses: Sequence[Sequence[str]]) -> Section:
    """Each token on the colour of its surprise, with what was expected in its place below."""
    cells = []
    for at, text in enumerate(texts):
        share = min(1.0, float(found.surprise[at]) / 8)
        chances = found.probabilities[at].tolist()
        told = "\n".join(f"{visible(guess)} {chance:.1%}" for guess, chance in zip(guesses[at], chances, strict=True))
        below = "".join(
            f'<i style="opacity:{0.35 + 0.65 * chance:.2f}">{escape(visible(guess))}</i>'
            for guess, chance in list(zip(guesses[at], chances, strict=True))[:3]
        )
        cells.append(
            f'<span class="token" style="--s:{share:.2f}" title="{escape(told)}"><b>{escape(visible(text))}</b>'
            f"<u>{found.surprise[at]:.1f}</u>{below}</span>"
        )
    legend = (
        "<p>Each token, its surprise in bits, and what was likelier in its place; the darker, the more surprising.</p>"
    )
    return Section(
        "What it expected, token by token", found.words, [legend + f'<div class="strip">{"".join(cells)}</div>']
    )


def connectivity_section(found: Connectivity, inputs: Sequence[str], outputs: Sequence[str]) -> Section:
    """A heat map: rows what was said, columns the inputs."""
    figure = _heat(np.abs(found.moved), f"how much each input moved it: {found.way}", "input", "said")
    if len(inputs) == found.moved.shape[1] <= MOST_COLUMNS:
        figure.update_xaxes(tickvals=list(range(len(inputs))), ticktext=[_label(one) for one in inputs], tickangle=0)
    if len(outputs) > int(found.times.max(initial=0)):
        named = [_label(outputs[t]) for t in found.times.tolist()]
        figure.update_yaxes(tickvals=list(range(len(named))), ticktext=named)
    return Section("What it looked back at", found.words, [figure])


def training_section(found: Training) -> Section:
    """Loss and validation, the norm of the gradient with what was clipped, and the speed."""
    import plotly.graph_objects as go

    keep = _thinned(len(found.step), MOST_POINTS)
    losses, norms, speed = go.Figure(), go.Figure(), go.Figure()
    x = found.step[keep].tolist()
    losses.add_scatter(
        x=x, y=_numbers(found.loss[keep] * found.factor), mode="lines", line_color="#999", name="training"
    )
    losses.add_scatter(
        x=found.valid_step.tolist(), y=_numbers(found.valid * found.factor), mode="lines+markers", line_color=COLOURS[1],
        name="validation",
    )  # fmt: skip
    losses.update_yaxes(title=found.unit)
    norms.add_scatter(x=x, y=_numbers(found.norm[keep]), mode="lines", line_color=COLOURS[0], name="norm")
    cut = found.clipped & np.isin(np.arange(len(found.step)), keep)
    norms.add_scatter(
        x=found.step[cut].tolist(), y=_numbers(found.norm[cut]), mode="markers",
        marker={"color": COLOURS[1], "symbol": "x", "size": 5}, name="clipped",
    )  # fmt: skip
    norms.update_yaxes(type="log", title="norm of the gradient", exponentformat="power")
    speed.add_scatter(x=x, y=_numbers(found.speed[keep]), mode="lines", line_color=COLOURS[2], name=found.counted)
    speed.update_yaxes(title=f"{found.counted} a second", rangemode="tozero")
    for figure in (losses, norms, speed):
        figure.update_xaxes(title="update")
    return Section("The training", found.words, [_laid_out(losses), _laid_out(norms), _laid_out(speed)])


def text_section(title: str, lines: Sequence[str]) -> Section:
    """Text as it stands."""
    return Section(title, [], [f"<pre>{escape(chr(10).join(lines))}</pre>"])


def page(title: str, sections: Sequence[Section]) -> str:
    """One self-contained page of HTML, which asks nothing of a network."""
    from plotly.offline import get_plotlyjs

    parts = [_section(one) for one in sections]
    return PAGE.format(
        policy=POLICY, style=STYLE, title=escape(title), plotly=get_plotlyjs(), sections="\n".join(parts)
    )


def plain(result: Any, without: frozenset[str] = frozenset({"values", "matrices"})) -> Any:
    """A result for JSON: records as objects, arrays as lists, complex numbers as pairs, what is not finite as null; large fields,
    those called as in `without`, left out."""
    if isinstance(result, np.ndarray):
        if np.iscomplexobj(result):
            result = np.stack([result.real, result.imag], -1)
        return plain(result.tolist())
    if isinstance(result, dict):
        return {key: plain(value) for key, value in result.items()}
    if hasattr(result, "_asdict"):
        return {key: plain(value) for key, value in result._asdict().items() if key not in without}
    if isinstance(result, list | tuple):
        return [plain(one) for one in result]
    if isinstance(result, float):
        return result if np.isfinite(result) else None
    return result.item() if isinstance(result, np.generic) else result


def _section(one: Section) -> str:
    words = "".join(f"<li>{escape(visible(word))}</li>" for word in one.words)
    shown = "\n".join(part if isinstance(part, str) else _html(part) for part in one.shown)
    return f"<section><h2>{escape(one.title)}</h2><ul>{words}</ul>\n{shown}</section>"


def _html(figure: Any) -> str:
    config = {"responsive": True, "displaylogo": False}
    return figure.to_html(full_html=False, include_plotlyjs=False, config=config)


def _heat(values: np.ndarray, title: str, x: str, y: str) -> Any:
    """`values` [rows, columns]; of more columns than can be seen each shows the mean of some."""
    import plotly.graph_objects as go

    bins = np.array_split(np.arange(values.shape[1]), min(MOST_COLUMNS, values.shape[1]) or 1)
    real = [np.isfinite(values[:, some]).sum(1) for some in bins]
    means = [
        np.nansum(values[:, some], 1) / np.where(count, count, np.nan) for some, count in zip(bins, real, strict=True)
    ]
    z = [_numbers(row) for row in np.stack(means, 1)]
    figure = go.Figure(go.Heatmap(z=z, x=[int(some[0]) for some in bins if len(some)], colorscale=SCALE))
    figure.update_layout(title={"text": escape(title), "font": {"size": 13}})
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y, autorange="reversed")
    return _laid_out(figure)


def _laid_out(figure: Any) -> Any:
    legend = {"orientation": "h", "y": -0.3}
    figure.update_layout(
        template="plotly_white",
        colorway=COLOURS,
        height=360,
        margin={"l": 50, "r": 10, "t": 40, "b": 50},
        legend=legend,
    )
    return figure


def _numbers(values: np.ndarray) -> list[float | None]:
    """To four digits, for a page."""
    return [float(f"{value:.4g}") if np.isfinite(value) else None for value in values.tolist()]


def _thinned(count: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, max(0, count - 1), min(count, most)).astype(int))


def _label(text: str) -> str:
    return escape(visible(text))[:24]


def _claims(followed: Sequence[Followed]) -> str:
    if not followed:
        return ""
    rows = "".join(
        f"<tr><td>{escape(one.feature)}</td><td>{escape(one.layer)} {one.part} {one.unit}</td>"
        f"<td>{'lower' if one.sign < 0 else 'higher'}</td><td>{one.measure} {one.score:.3f}</td></tr>"
        for one in followed
    )
    return (
        "<p>Units that follow something: chosen on one half of the steps, scored on the other. auc .5 and r 0 are chance.</p>"
        f'<div class="wide"><table><tr><th>follows</th><th>unit</th><th>is</th><th>score</th></tr>{rows}</table></div>'
    )


# Whatever a text holds, a browser loads nothing for this page.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:"

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
<script>{plotly}</script>
</head>
<body>
<h1>{title}</h1>
{sections}
</body>
</html>
"""

STYLE = """
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 1rem auto; padding: 0 .75rem; background: #fff; color: #111 }
h1 { font-size: 1.3rem; overflow-wrap: anywhere }
h2 { font-size: 1.1rem }
section { border-top: 1px solid #8888; margin: 1.5rem 0 }
li { overflow-wrap: anywhere }
pre, .wide { overflow-x: auto }
pre { font-size: .85rem; line-height: 1.35 }
td, th { text-align: start; padding: .1rem .6rem .1rem 0 }
.strip { display: flex; flex-wrap: wrap; gap: 2px; line-height: 1.15 }
.token { display: flex; flex-direction: column; align-items: center; min-width: 1.3rem; font-family: monospace }
.token b { font-weight: normal; white-space: pre; width: 100%; text-align: center;
  background: rgb(213 94 0 / calc(var(--s) * .75)) }
.token u { font-size: .6rem; text-decoration: none; color: #444 }
.token i { font-size: .75rem; font-style: normal; white-space: pre }
"""
