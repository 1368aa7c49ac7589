"""Where a network looked while it wrote and how it searched for its text, as a page of HTML and as lines of a terminal.

    look = Look("the cat", ["the", "␣cat"], ["die", "␣Katze", "<end>"], weights)    # weights [3, 2]
    page([by_words(look)])      # of a text: the text itself and a heat map; of a picture: the picture word by word
    text_lines(look)

Tokens are given as `Tokens.text` shows them, with a mark for a blank.
"""

import base64
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise
from typing import Literal, NamedTuple, cast

import numpy as np
from rich.cells import cell_len, set_cell_size

from recurra.data.tokens import BLANK, END, WORD, visible
from recurra.decode import Expansion, Hypothesis
from recurra.errors import UsageError

MOST = 3  # places that a line of a terminal names
VEIL = 200  # opacity, of 255, of the veil over what was not looked at
BOX, STEP, LINE = (92, 32), 116, 40  # pixels: a node of a tree; from one step to the next; from one node to the next


class Pixels(NamedTuple):
    """A picture, uint8 [height, width, 3], and the rows and columns of places that it was looked at in."""

    values: np.ndarray
    grid: tuple[int, int]


class Node(NamedTuple):
    """A hypothesis in the tree of a search: the one that it goes on from, as a place in the list of nodes (-1: the
    beginning), its last token, its summed log-probability in nats, and what became of it. `best`: it is the one
    that was chosen, or on the way to it."""

    step: int
    parent: int
    token: str
    log_probability: float
    fate: Literal["kept", "ended", "cut"]
    best: bool


class Look(NamedTuple):
    """What was looked at, as tokens or as a picture, what was written, the end mark too, and the weights [written,
    places] of each look. Places of a picture go row by row. `beam` is the tree of the search, where there was
    one."""

    about: str
    source: list[str] | Pixels
    written: list[str]
    weights: np.ndarray
    beam: Sequence[Node] = ()


# --- words -----------------------------------------------------------------------------------------------------------

_OF_ITSELF = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana, Han: scripts without blanks
_UNIT = re.compile(  # what a readable token consists of
    "|".join(
        [
            rf"(?P<end>\A{END}\Z)",
            rf"(?P<blank>{BLANK}|<0x20>)",
            r"(?P<byte><0x[0-9A-F]{1,2}_?>)",
            r"(?P<escape>\\(?:[nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8}))",
            rf"(?P<itself>[{_OF_ITSELF}])",
            rf"(?P<letter>{WORD})",
            r"(?P<mark>.)",
        ]
    ),
    re.DOTALL,
)
_BYTES = re.compile("(?:<0x[0-9A-F]{2}>)+|(?:<0x[0-9A-F]_>)+")


def by_words(look: Look) -> Look:
    """The same with tokens joined to words, so that a row of weights sums to what it did: the weights of a source
    word are the sum over its tokens, those of a written word the mean over its own. A picture keeps its places.
    Raises UsageError.

    A word begins at a blank, which stays with it, where letters and marks meet, and at each character of a script
    without blanks; a byte belongs to what stands before it, and bytes that write characters are shown as these. For
    texts that are written by characters as a matter of course, such as dates, the tokens themselves say more.
    """
    _check(look)
    begins = _begins(look.written)
    counts = np.diff([*begins, len(look.written)])[:, None]
    weights = np.add.reduceat(look.weights, begins, axis=0) / counts if begins else look.weights
    look = look._replace(written=_joined(look.written, begins), weights=weights)
    if isinstance(look.source, Pixels) or not look.source:
        return look
    begins = _begins(look.source)
    return look._replace(source=_joined(look.source, begins), weights=np.add.reduceat(weights, begins, axis=1))


def _joined(tokens: list[str], begins: list[int]) -> list[str]:
    return [_BYTES.sub(_read, "".join(tokens[begin:end])) for begin, end in pairwise([*begins, len(tokens)])]


def _read(spelled: re.Match[str]) -> str:
    """The characters that bytes write; the bytes as they are where they write none."""
    try:
        text = bytes.fromhex(re.sub("<0x|_?>", "", spelled[0])).decode()
    except ValueError:
        return spelled[0]
    return visible(text.replace(" ", BLANK))


def _begins(tokens: list[str]) -> list[int]:
    """Which tokens begin a word."""
    kinds = [[unit.lastgroup for unit in _UNIT.finditer(token)] or ["byte"] for token in tokens]
    met = ((before[-1], own[0]) for before, own in pairwise(kinds))
    return [0, *(at for at, (left, right) in enumerate(met, 1) if _part(left, right))] if tokens else []


def _part(left: str | None, right: str | None) -> bool:
    """Whether a word begins between two kinds of what a token consists of."""
    if right in ("blank", "itself", "end") or left == "end":
        return True
    return left != right and "byte" not in (left, right) and left != "blank"


# --- the tree of a search --------------------------------------------------------------------------------------------


def tree(levels: Sequence[Expansion], row: int, best: Hypothesis, text: Callable[[int], str]) -> list[Node]:
    """The nodes of a row's search, step by step and the preferred first. `levels` is what `Beam.search` gave to its
    `watch` (the states in it are not needed), `best` the hypothesis that was chosen; `text` makes a token readable."""
    nodes: list[Node] = []
    ranks, way = {0: -1}, -1  # the node of each hypothesis that is followed; and the last one on the way to `best`
    for level in levels:
        at = (level.rows == row).nonzero().flatten().tolist()
        if not at:  # its search was over before
            break
        numbers = (part[at[0]].tolist() for part in (level.parents, level.tokens, level.sums, level.ended, level.kept))
        parents, tokens, sums, ended, kept = numbers
        found: dict[int, int] = {}  # of each choice its node
        for choice, (parent, token, value, ends) in enumerate(zip(parents, tokens, sums, ended, strict=True)):
            if value == -np.inf:
                continue
            fate: Literal["kept", "ended", "cut"] = "ended" if ends else "kept" if choice in kept else "cut"
            chosen = ranks[parent] == way and _goes_on(best, level.step, token, ends)
            found[choice] = len(nodes)
            nodes.append(Node(level.step, ranks[parent], text(token), value, fate, chosen))
        way = next((node for node in found.values() if nodes[node].best), -2)
        ranks = {rank: found[choice] for rank, choice in enumerate(kept) if choice >= 0}
    return nodes


def _goes_on(best: Hypothesis, step: int, token: int, ends: bool) -> bool:
    if step < len(best.tokens):
        return token == best.tokens[step]
    return ends and best.ended and step == len(best.tokens)


# --- for a terminal --------------------------------------------------------------------------------------------------


def text_lines(look: Look) -> list[str]:
    """A line for each written word: the places that it looked at most, with their weights. Raises UsageError."""
    _check(look)
    words = [visible(_parted(word)[1]) for word in look.written]
    places = _places(look.source)
    width = max(map(cell_len, words), default=0)
    lines = []
    for word, weights in zip(words, look.weights, strict=True):
        most = [place for place in np.argsort(-weights, kind="stable")[:MOST].tolist() if weights[place] >= 0.005]
        said = "   ".join(f"{places[place]} {weights[place]:.2f}" for place in most)
        lines.append(f"{set_cell_size(word, width)}   {said}".rstrip())
    return lines


def _places(source: list[str] | Pixels) -> list[str]:
    if isinstance(source, Pixels):
        rows, columns = source.grid
        return [f"row {row + 1} column {column + 1}" for row in range(rows) for column in range(columns)]
    return [visible(_parted(word)[1]) for word in source]


# --- the page --------------------------------------------------------------------------------------------------------


def page(looks: Sequence[Look]) -> str:
    """One self-contained page of HTML, which asks nothing of a network. Raises UsageError where weights do not fit
    what was written and looked at.

    Of a text: the text, where pointing at a written word colours what it looked at, and a heat map, rows written
    and columns source. Of a picture: the picture for each word, with a veil over what was not looked at (as figure
    3 of Xu et al. 2015, arXiv:1502.03044, shows it). Where there was a search, its tree.
    """
    sections = "\n".join(map(_section, looks))
    return PAGE.format(policy=POLICY, style=STYLE + FRAMES, sections=sections, script=SCRIPT)


def _section(look: Look) -> str:
    _check(look)
    source, about = look.source, _shown(" ".join(look.about.split()))
    seen = _frames(look, source) if isinstance(source, Pixels) else _aligned(look, source)
    return f'<section>\n<h2 dir="auto">{about}</h2>\n{seen}\n{_drawn(look.beam)}</section>'


def _aligned(look: Look, source: list[str]) -> str:
    """A text, and the heat map. Each weight stands there once, as the property --w of its cell; without it, it is 0."""
    most = max(float(look.weights.max(initial=0)), 0.001)
    head = "".join(f"<th>{_label(token)}</th>" for token in source)
    rows = [
        f"<tr><th>{_label(token)}</th>{''.join(map(_cell, weights.tolist()))}</tr>"
        for token, weights in zip(look.written, look.weights, strict=True)
    ]
    return "\n".join(
        [
            f'<div class="texts" style="--most:{most:.3f}">',
            f'<p class="source" dir="auto">{_text(source)}</p>',
            f'<p class="written" dir="auto">{_text(look.written, " tabindex=0")}</p>',
            f"<details open><summary>Weights, at most {most:.3f}: <output>point at a cell</output></summary>",
            f'<div class="wide"><table><thead><tr><td></td>{head}</tr></thead>',
            *["<tbody>", *rows, "</tbody></table></div></details></div>"],
        ]
    )


def _cell(weight: float) -> str:
    shown = f"{weight:.3f}"
    return "<td>" if shown == "0.000" else f"<td style=--w:{shown}>"  # most are 0; HTML lets </td> be left out


def _text(tokens: list[str], attribute: str = "") -> str:
    parted = map(_parted, tokens)
    return "".join(f"{' ' if blank else ''}<span{attribute}>{_shown(word)}</span>" for blank, word in parted)


def over_the_picture(look: Look) -> str:
    """The picture of a look word by word, as a piece of HTML for any page."""
    _check(look)
    return f"<style>{FRAMES}</style>{_frames(look, cast(Pixels, look.source))}"


def _frames(look: Look, source: Pixels) -> str:
    """The picture word by word. It stands in the page once; what changes from word to word is the veil, a picture
    with a pixel for each place, which a browser makes smooth as it stretches it. A place is the clearer, the nearer
    its weight comes to the greatest of the word."""
    height, width, _ = source.values.shape
    frames = ["<figure><div></div><figcaption>the picture</figcaption></figure>"]
    for word, weights in zip(look.written, look.weights, strict=True):
        most, place = float(weights.max(initial=0)), int(weights.argmax())
        shadow = np.rint(VEIL * (1 - weights / (most or 1.0))).reshape(source.grid)
        veil = _inlined(np.stack([np.zeros_like(shadow), shadow], axis=2).astype(np.uint8))
        told = f"{_places(source)[place]}: {most:.3f}"
        image = f'<img alt="{told}" src="{veil}">'
        frames.append(f'<figure title="{told}"><div>{image}</div><figcaption>{_label(word)}</figcaption></figure>')
    given = f"--picture:url({_inlined(source.values)});--shape:{width}/{height}"
    return f'<div class="frames" style="{given}">\n' + "\n".join(frames) + "\n</div>"


def _inlined(pixels: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(png(pixels)).decode()


def png(pixels: np.ndarray) -> bytes:
    """uint8 [height, width, channels] as a PNG file (ISO/IEC 15948); 2 channels: grey, opacity; 3: red, green, blue."""
    height, width, channels = pixels.shape
    lines = pixels.reshape(height, -1)
    rises = np.diff(lines, axis=0, prepend=np.zeros_like(lines[:1]))  # from the line above, modulo 256: filter 2
    data = zlib.compress(np.pad(rises, ((0, 0), (1, 0)), constant_values=2).tobytes(), 9)
    header = struct.pack(">2I5B", width, height, 8, {2: 4, 3: 2}[channels], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _drawn(nodes: Sequence[Node]) -> str:
    """The tree of a search, from left to right."""
    if not nodes:
        return ""
    used: dict[int, int] = {}  # lines of each step
    corners = []
    for node in nodes:
        line = used[node.step] = used.get(node.step, -1) + 1
        corners.append(((node.step + 1) * STEP, line * LINE))
    width, height = (max(used) + 1) * STEP + BOX[0] + 2, (max(used.values()) + 1) * LINE
    edges = [
        _edge(node, corners[node.parent] if node.parent >= 0 else (0, 0), at)
        for node, at in zip(nodes, corners, strict=True)
    ]
    boxes = [_box(node, at) for node, at in zip(nodes, corners, strict=True)]
    return "\n".join(
        [
            "<details open><summary>The search: tokens with the log-probability of the text up to them, the preferred"
            " above; bold what was chosen, round what ended, pale what was cut off</summary>",
            f'<div class="wide"><svg width="{width}" height="{height}" viewBox="-1 -1 {width} {height}">',
            *edges,
            f'<circle cx="{BOX[0] - 6}" cy="{BOX[1] // 2}" r="6"/>',
            *boxes,
            "</svg></div></details>\n",
        ]
    )


def _class(node: Node) -> str:
    return f"{node.fate} best" if node.best else node.fate


def _edge(node: Node, begin: tuple[int, int], end: tuple[int, int]) -> str:
    (x, y), (to_x, to_y) = (begin[0] + BOX[0], begin[1] + BOX[1] // 2), (end[0], end[1] + BOX[1] // 2)
    middle = (x + to_x) // 2
    return f'<path class="{_class(node)}" d="M{x} {y}C{middle} {y} {middle} {to_y} {to_x} {to_y}"/>'


def _box(node: Node, corner: tuple[int, int]) -> str:
    token = node.token if len(node.token) <= 12 else f"{node.token[:11]}…"
    told = f"{_shown(node.token)} {node.log_probability:.4f} {node.fate}"
    radius = BOX[1] // 2 if node.fate == "ended" else 4
    return (
        f'<g class="{_class(node)}" transform="translate({corner[0]} {corner[1]})"><title>{told}</title>'
        f'<rect width="{BOX[0]}" height="{BOX[1]}" rx="{radius}"/>'
        f'<text x="{BOX[0] // 2}" y="14">{_shown(token)}</text>'
        f'<text x="{BOX[0] // 2}" y="27">{node.log_probability:.2f}</text></g>'
    )


# --- texts that anyone may have written ------------------------------------------------------------------------------


def _shown(text: str) -> str:
    return escape(visible(text))


def _parted(token: str) -> tuple[str, str]:
    """The blank before a word, and the word; nothing but blanks is a word too, and the end mark stands apart."""
    if token == END:
        return BLANK, token
    return (BLANK, token[1:]) if token.startswith(BLANK) and token.strip(BLANK) else ("", token)


def _label(token: str) -> str:
    blank, word = _parted(token)
    return f"<s>{blank}</s>{_shown(word)}" if blank and token != END else _shown(word)


def _check(look: Look) -> None:
    source = look.source
    places = source.grid[0] * source.grid[1] if isinstance(source, Pixels) else len(source)
    if look.weights.shape != (len(look.written), places):
        raise UsageError(
            f"the weights were of shape {list(look.weights.shape)}, wanted one for each of "
            f"{len(look.written)} written tokens and {places} places"
        )


# Whatever a text holds, a browser loads nothing for this page.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width">
<title>Where the network looked</title>
<style>{style}</style>
</head>
<body>
<h1>Where the network looked</h1>
{sections}
<script>{script}</script>
</body>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --hue: 255 150 40 }
@media (prefers-color-scheme: dark) { :root { --hue: 190 80 0 } }
body { font: 1rem/1.6 system-ui, sans-serif; max-width: 80rem; margin: 2rem auto; padding: 0 1rem;
  background: Canvas; color: CanvasText }
h1 { font-size: 1.4rem }
h2 { font-size: 1.1rem; overflow-wrap: anywhere }
section { border-top: 1px solid #8888; margin: 2rem 0 }
summary { cursor: pointer; color: GrayText }
output { color: CanvasText; white-space: pre-wrap; unicode-bidi: isolate }
s { text-decoration: none; opacity: .4 }
.wide { overflow: auto; max-height: 80vh }
.texts p { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 1.15rem; margin: .5rem 0 }
.source span, tbody td { background: rgb(var(--hue) / calc(var(--w, 0) / var(--most))) }
.written span { cursor: pointer; border-bottom: 1px dotted }
.written .at { font-weight: bold; border-bottom-style: solid }
table { border-spacing: 1px; font-size: .9rem }
th { font-weight: normal; text-align: end; white-space: pre; unicode-bidi: plaintext }
thead th { writing-mode: vertical-rl; text-align: start; vertical-align: bottom }
tbody th { position: sticky; inset-inline-start: 0; background: Canvas }
td { min-width: 1.5rem; height: 1.5rem }
tbody td { outline: 1px solid #8882 }
svg path { fill: none; stroke: currentcolor }
svg circle { fill: currentcolor }
svg rect { fill: Canvas; stroke: currentcolor }
svg text { fill: currentcolor; font-size: .75rem; text-anchor: middle; white-space: pre }
svg .cut { opacity: .35 }
svg .ended rect { fill: rgb(var(--hue) / .3) }
svg .best { stroke-width: 2.5; font-weight: bold }
"""

FRAMES = """
.frames { display: flex; flex-wrap: wrap; gap: 1rem }
.frames figure { margin: 0; width: 10rem; text-align: center }
.frames figure div { position: relative; aspect-ratio: var(--shape); background: var(--picture) 0 0 / 100% 100% }
.frames figure img { position: absolute; inset: 0; width: 100%; height: 100% }
"""

SCRIPT = """
for (const part of document.querySelectorAll(".texts")) {
  const [source, written, rows] = [".source span", ".written span", "tbody tr"].map(one => part.querySelectorAll(one));
  const weight = cell => cell.style.getPropertyValue("--w") || "0.000";
  const look = at => {
    written.forEach((word, i) => word.classList.toggle("at", i === at));
    source.forEach((word, j) => word.style.setProperty("--w", weight(rows[at].cells[j + 1])));
  };
  written.forEach((word, i) => ["mouseover", "focus"].forEach(event => word.addEventListener(event, () => look(i))));
  part.querySelector("tbody").addEventListener("mouseover", ({target}) => {
    const cell = target.closest("td, th");
    if (!cell) return;
    const i = cell.parentNode.sectionRowIndex, j = cell.cellIndex - 1;
    look(i);
    const pair = j < 0 ? "" : `${written[i].textContent} \\u2190 ${source[j].textContent}  ${weight(cell)}`;
    part.querySelector("output").textContent = pair;
  });
}
"""
