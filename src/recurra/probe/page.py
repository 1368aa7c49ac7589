"""One page that holds sections: it opens without a network, and reads on a phone. And results as numbers for JSON."""

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from recurra.data.tokens import visible
from recurra.probe.figures import Section


def page(title: str, sections: Sequence[Section]) -> str:
    """One self-contained page of HTML, which asks nothing of a network."""
    from plotly.offline import get_plotlyjs

    parts = [_section(one) for one in sections]
    return PAGE.format(
        policy=POLICY, style=STYLE, title=escape(title), plotly=get_plotlyjs(), sections="\n".join(parts)
    )


def plain(
    result: Any, without: frozenset[str] = frozenset({"values", "matrices", "parts", "axes", "weights", "picture"})
) -> Any:
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
    config = {"responsive": True, "displayModeBar": False}
    return figure.to_html(full_html=False, include_plotlyjs=False, config=config)


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
dt { margin-top: .5rem; white-space: nowrap }
dd { margin-left: 1rem; white-space: nowrap }
pre { font-size: .85rem; line-height: 1.35 }
td, th { text-align: start; padding: .1rem .6rem .1rem 0 }
.strip { display: flex; flex-wrap: wrap; gap: 2px; line-height: 1.15 }
.token { display: flex; flex-direction: column; align-items: center; min-width: 1.3rem; font-family: monospace }
.token b { font-weight: normal; white-space: pre; width: 100%; text-align: center;
  background: rgb(213 94 0 / calc(var(--s) * .75)) }
.token u { font-size: .6rem; text-decoration: none; color: #444 }
.token i { font-size: .75rem; font-style: normal; white-space: pre }
"""
