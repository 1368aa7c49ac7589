"""The unrolled network as a drawing: each cell step by step, with the shapes of what goes in, along and is learnt."""

from html import escape

from recurra.probe.shapes import Layer, Shapes

WIDE, HIGH, LEFT = 150, 46, 190  # pixels: from one step to the next; a box; what is written beside the cells
GAP, LINE = 62, 15  # below a box, for its input; a line of writing
COLOUR, BACK = "#0072B2", "#D55E00"  # of what goes forwards and backwards (Okabe & Ito 2008)


def unrolled_svg(found: Shapes) -> str:
    """A drawing (SVG) of the first steps and the last one of every cell, those above on top; arrows along the sequence carry the
    state, arrows from below the input, and beside each cell stand its parameters, which are the same in every step."""
    rows, top = [], 24
    for layer in reversed(found.layers):
        rows.append(_row(layer, top))
        top += max(HIGH + GAP, LINE * (len(layer.parameters) + 3))
    width = LEFT + 5 * WIDE
    marks = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{colour}"/></marker>'
        for name, colour in (("forwards", COLOUR), ("backwards", BACK), ("up", "#555"))
    )
    return (
        f'<div class="wide"><svg role="img" aria-label="the unrolled network" width="{width}" height="{top}" '
        f'viewBox="0 0 {width} {top}" font-family="monospace" font-size="11"><defs>{marks}</defs>{"".join(rows)}</svg></div>'
    )


def _row(layer: Layer, top: int) -> str:
    """A cell in its steps: the first three, dots, and the last."""
    steps = [str(k) for k in range(1, layer.steps + 1)] if layer.steps <= 4 else ["1", "2", "3", "", str(layer.steps)]
    parts = [_beside(layer, top)]
    parts += [_step(layer, step, LEFT + at * WIDE, top) for at, step in enumerate(steps)]
    parts += [_along(layer, LEFT + at * WIDE, top, at == 0) for at in range(len(steps) - 1)]
    return "".join(parts)


def _beside(layer: Layer, top: int) -> str:
    lines = [
        f'<tspan font-weight="bold">{escape(layer.name)}</tspan>',
        escape(layer.kind) + (", from the end" if layer.backwards else ""),
    ]
    lines += [escape(f"{name} {list(shape)}") for name, shape in layer.parameters.items()]
    spans = "".join(f'<text x="0" y="{top + 6 + LINE * at}">{line}</text>' for at, line in enumerate(lines))
    return spans


def _step(layer: Layer, step: str, x: int, top: int) -> str:
    middle = x + 45
    if not step:
        return f'<text x="{middle}" y="{top + HIGH / 2 + 4}" text-anchor="middle">...</text>'
    colour = BACK if layer.backwards else COLOUR
    shape = escape(f"x_{step} {list(layer.x)}")
    return (
        f'<rect x="{x}" y="{top}" width="90" height="{HIGH}" rx="6" fill="{colour}" fill-opacity=".12" stroke="{colour}"/>'
        f'<text x="{middle}" y="{top + HIGH / 2 + 4}" text-anchor="middle">{escape(layer.kind[:12])}</text>'
        f'<line x1="{middle}" y1="{top + HIGH + 26}" x2="{middle}" y2="{top + HIGH + 2}" stroke="#555" marker-end="url(#up)"/>'
        f'<text x="{middle}" y="{top + HIGH + 38}" text-anchor="middle">{shape}</text>'
    )


def _along(layer: Layer, x: int, top: int, named: bool) -> str:
    """The arrow to the next step, with the state on the first one."""
    begin, end, y = x + 92, x + WIDE - 2, top + HIGH / 2
    ends = (end, begin) if layer.backwards else (begin, end)
    name, colour = ("backwards", BACK) if layer.backwards else ("forwards", COLOUR)
    told = "".join(
        f'<text x="{(begin + end) / 2}" y="{y - 6 - 12 * at}" text-anchor="middle" font-size="9">{escape(field)}</text>'
        for at, field in enumerate(f"{part} {list(shape)}" for part, shape in reversed(layer.state.items()))
    )
    arrow = f'<line x1="{ends[0]}" y1="{y}" x2="{ends[1]}" y2="{y}" stroke="{colour}" marker-end="url(#{name})"/>'
    return arrow + (told if named else "")
