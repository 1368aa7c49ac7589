"""Figures of results: what a result says in words, and plotly figures of its numbers.

section = flow_section(flow(seen))
section.words, section.shown       in a notebook `section` as the last line of a cell shows both
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from recurra.data.tokens import visible
from recurra.probe.cliff import Cliff
from recurra.probe.connectivity import Connectivity
from recurra.probe.drawing import unrolled_svg
from recurra.probe.flow import Flow, Terms, longest
from recurra.probe.gates import Followed, Gates
from recurra.probe.jacobians import Jacobians
from recurra.probe.looks import Attention
from recurra.probe.neighbours import Neighbours
from recurra.probe.shapes import Shapes
from recurra.probe.strip import Strip
from recurra.probe.training import Training
from recurra.probe.trajectory import FixedPoints, Trajectory

MOST_COLUMNS, MOST_UNITS, MOST_POINTS = 250, 64, 2000  # of a heat map and a line, which are looked at
MOST_LABELS = 60  # of an axis
MOST_MAPPED = 768  # units of all heat maps of gates together: the page stays small
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe & Ito 2008
DASHES = ["solid", "dash", "dot", "dashdot"]
SCALE = "Cividis"  # made for eyes that do not tell red from green (Nunez, Anderton & Renslow 2018)


class Section(NamedTuple):
    """A part of the page: its title, what it says in words, and what is shown: figures of plotly, or HTML."""

    title: str
    words: Sequence[str]
    shown: Sequence[Any]

    def _ipython_display_(self) -> None:
        """What a notebook shows."""
        from IPython.display import HTML, display

        words = "".join(f"<li>{escape(visible(word))}</li>" for word in self.words)
        display(HTML(f"<h3>{escape(self.title)}</h3><ul>{words}</ul>"))
        for part in self.shown:
            display(HTML(part) if isinstance(part, str) else part)


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
    if len(inputs) == found.moved.shape[1] <= MOST_LABELS:
        figure.update_xaxes(tickvals=list(range(len(inputs))), ticktext=[_label(one) for one in inputs], tickangle=0)
    if len(outputs) > int(found.times.max(initial=0)) and len(found.times) <= MOST_LABELS:
        named = [_label(outputs[t]) for t in found.times.tolist()]
        figure.update_yaxes(tickvals=list(range(len(named))), ticktext=named)
    return Section("What it looked back at", found.words, [figure])


def beside_section(found: Mapping[str, Flow]) -> Section:
    """The profiles of several networks on the same data: a line for each cell, of its field that holds longest."""
    import plotly.graph_objects as go

    lines, words = go.Figure(), []
    for at, (name, one) in enumerate(found.items()):
        for place, best in enumerate(longest(one.layers)):
            keep = _thinned(len(best.distance), MOST_POINTS)
            profile = np.where(best.profile > 0, best.profile, np.nan)
            style = {"color": COLOURS[at % len(COLOURS)], "dash": DASHES[place % len(DASHES)]}
            share = (profile / np.nanmax(profile[:1], initial=1e-300))[keep]
            label = f"{name}: {best.name} {best.field}"
            lines.add_scatter(
                x=best.distance[keep].tolist(), y=_numbers(share), mode="lines", line=style, name=escape(label)
            )
        words += [f"{name}: {word}" for word in one.words if not word.startswith("What to try")]
    lines.update_xaxes(title="distance t - k in steps")
    lines.update_yaxes(type="log", title="|dL_t/ds_k| / |dL_t/ds_t|", exponentformat="power")
    return Section("Gradients beside each other", words, [_laid_out(lines)])


def terms_section(found: Terms) -> Section:
    """How much each step adds to the gradient of each parameter, on a logarithmic axis."""
    import plotly.graph_objects as go

    bars = go.Figure()
    for at, name in enumerate(found.parts):
        norms = np.where(found.norms(name) > 0, found.norms(name), np.nan)
        style = {"color": COLOURS[at % len(COLOURS)], "dash": DASHES[at // len(COLOURS) % len(DASHES)]}
        marks = {"symbol": at % 8, "size": 5}
        x = list(range(found.t + 1))
        bars.add_scatter(x=x, y=_numbers(norms), mode="lines+markers", line=style, marker=marks, name=escape(name))
    bars.update_xaxes(title="k")
    bars.update_yaxes(type="log", title="norm of term k", exponentformat="power")
    formula = "dE_t/dtheta = sum over k = 0..t of dE_t/dh_t (product over j = k+1..t of dh_j/dh_(j-1)) d+h_k/dtheta"
    title = "The gradient as a sum over steps, term by term"
    return Section(title, found.words, [f"<pre>{formula},   t = {found.t}</pre>", _laid_out(bars)])


def cliff_section(found: Cliff) -> Section:
    """The loss as heights of a map, and the two steps on it."""
    import plotly.graph_objects as go

    with np.errstate(divide="ignore"):
        heights = np.log10(found.loss.T)
    rows = [_numbers(np.where(np.isfinite(row), row, np.nan)) for row in heights]
    figure = go.Figure(
        go.Heatmap(z=rows, x=found.a.tolist(), y=found.b.tolist(), colorscale=SCALE, colorbar={"title": "log10 L"})
    )
    steps = (
        ("unclipped", found.plain, COLOURS[1], "x", "dot"),
        (f"clipped to {found.most:g}", found.clipped, "#fff", "circle", "solid"),
    )
    for name, end, colour, symbol, dash in steps:
        marks = {"color": colour, "symbol": symbol, "size": 9, "line": {"color": "#000", "width": 1}}
        figure.add_scatter(
            x=[found.here[0], end[0]], y=[found.here[1], end[1]], mode="lines+markers", name=name,
            line={"color": colour, "dash": dash}, marker=marks,
        )  # fmt: skip
    figure.update_xaxes(title=escape(found.names[0]), range=[found.a[0], found.a[-1]])
    figure.update_yaxes(title=escape(found.names[1]), range=[found.b[0], found.b[-1]])
    return Section("The loss around it: cliffs, and a step with and without clipping", found.words, [_laid_out(figure)])


def attention_section(found: Attention, places: Sequence[str], written: Sequence[str]) -> Section:
    """The weights as a map, the entropy of each look and what each place got in all."""
    import plotly.graph_objects as go

    weights = _heat(found.weights, "weights of each look", "place", "written")
    entropy, coverage = go.Figure(), go.Figure()
    entropy.add_bar(x=list(range(len(found.entropy))), y=_numbers(found.entropy), marker_color=COLOURS[0])
    entropy.update_yaxes(title="entropy in bits")
    coverage.add_bar(x=list(range(len(found.coverage))), y=_numbers(found.coverage), marker_color=COLOURS[2])
    coverage.update_yaxes(title="coverage in looks")
    if len(places) == found.weights.shape[1] <= MOST_LABELS:
        for figure in (weights, coverage):
            figure.update_xaxes(tickvals=list(range(len(places))), ticktext=[_label(one) for one in places])
    if len(written) == len(found.weights) <= MOST_LABELS:
        named = {"tickvals": list(range(len(written))), "ticktext": [_label(one) for one in written]}
        weights.update_yaxes(**named)
        entropy.update_xaxes(**named)
    return Section("Where it looked", found.words, [weights, _laid_out(entropy), _laid_out(coverage)])


def trajectory_section(found: Trajectory, fixed: FixedPoints | None = None, names: Sequence[str] = ()) -> Section:
    """The path of the first row on the first two axes, and the fixed points, where the field's name is among theirs."""
    import plotly.graph_objects as go

    figure, path = go.Figure(), found.points[0]
    path = path[np.isfinite(path[:, 0])]
    keep = _thinned(len(path), MOST_POINTS)
    second = path[:, 1] if path.shape[1] > 1 else np.zeros(len(path))
    told = [_label(names[at]) if len(names) == len(path) else str(at) for at in keep.tolist()]
    figure.add_scatter(
        x=_numbers(path[keep, 0]), y=_numbers(second[keep]), mode="lines+markers", name="path", text=told, hoverinfo="text",
        line={"color": "rgba(120,120,120,.3)", "width": 1}, marker={"color": keep.tolist(), "colorscale": SCALE, "size": 6},
    )  # fmt: skip
    words = list(found.words)
    if fixed is not None:
        words += fixed.words
        size = len(found.mean)
        at = found.on(fixed.states[:, :size])
        second = at[:, 1] if at.shape[1] > 1 else np.zeros(len(at))
        for kind, some, symbol in (("stable", fixed.stable, "circle"), ("not stable", ~fixed.stable, "x")):
            style = {"symbol": symbol, "size": 12, "color": COLOURS[1], "line": {"color": "#000", "width": 1}}
            figure.add_scatter(
                x=_numbers(at[some, 0]),
                y=_numbers(second[some]),
                mode="markers",
                marker=style,
                name=f"fixed point, {kind}",
            )
    figure.update_xaxes(title=f"component 1 ({found.share[0]:.0%} of the variance)")
    figure.update_yaxes(title=f"component 2 ({found.share[1]:.0%})" if len(found.share) > 1 else "")
    return Section(f"The path of its state: {found.layer} {found.field}", words, [_laid_out(figure)])


def neighbours_section(found: Neighbours, queries: Sequence[str], contexts: Sequence[Sequence[str]]) -> Section:
    """A list: a place of the text, and the places of the corpus where the state was nearest to the one there."""
    rows = "".join(
        f"<dt><code>{escape(visible(query))}</code></dt>"
        + "".join(
            f"<dd>{near:.3f} <code>{escape(visible(context))}</code></dd>"
            for context, near in zip(some, nears, strict=True)
        )
        for query, some, nears in zip(queries, contexts, found.nearness.tolist(), strict=True)
    )
    legend = (
        "<p>What stood before, and below it what stood before in the training text where the state was nearest: "
        f"{found.measure}.</p>"
    )
    return Section("Where else it was in such a state", [], [f'{legend}<dl class="wide">{rows}</dl>'])


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
    shown = [losses, norms, speed]
    if found.ratios:
        shown.insert(2, _ratios(found, keep))
    for figure in shown:
        figure.update_xaxes(title="update")
    return Section("The training", found.words, [_laid_out(one) for one in shown])


def _ratios(found: Training, keep: np.ndarray) -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    for at, (name, values) in enumerate(found.ratios.items()):
        style = {"color": COLOURS[at % len(COLOURS)], "dash": DASHES[at // len(COLOURS) % len(DASHES)]}
        shown = _numbers(np.where(values > 0, values, np.nan)[keep])
        figure.add_scatter(x=found.step[keep].tolist(), y=shown, mode="lines", line=style, name=escape(name))
    figure.update_yaxes(type="log", title="update / weights", exponentformat="power")
    return figure


def shapes_section(found: Shapes) -> Section:
    """The unrolled network as a drawing, and the tables of its shapes."""
    lines = escape("\n".join(found.lines()))
    return Section("Shapes", [], [unrolled_svg(found), f"<pre>{lines}</pre>"])


def text_section(title: str, lines: Sequence[str]) -> Section:
    """Text as it stands."""
    return Section(title, [], [f"<pre>{escape(chr(10).join(lines))}</pre>"])


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
    legend = {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom"}
    named = sum(one.showlegend is not False and bool(one.name) for one in figure.data)
    below = 24 * named if named > 1 else 0  # on a phone each name has a line of its own
    figure.update_layout(
        template="plotly_white",
        colorway=COLOURS,
        height=360 + below,
        margin={"l": 50, "r": 10, "t": 40, "b": 50 + below},
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
