"""Pages that show where a network looked, read back by a parser of HTML and compared with what was given."""

import base64
import io
import math
import re
from html.parser import HTMLParser
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recurra.data.tokens import END, TOKENS, Tokens
from recurra.decode import Beam, Expansion, Hypothesis
from recurra.errors import UsageError
from recurra.state import State
from recurra.tasks.looks import VEIL, Look, Node, Pixels, by_words, page, png, text_lines, tree

BAD = [
    *(
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "</svg></style>",
        "<!--",
        "&lt;",
        "'",
        "\0",
        "\x1b[2J",
    ),
    *(
        "\n",
        "\u202egnp.exe",
        "שלום",
        "مرحبا",
        "\ud800",
        "👩\u200d👩\u200d👧",
        "{policy}",
        "${x}",
        "`",
        "",
        END,
        "␣cat",
        "␣",
        "␣␣",
    ),
]
TOKEN = st.sampled_from(BAD) | st.text(min_size=1, max_size=6)


@st.composite
def looks(draw: st.DrawFn, token: st.SearchStrategy[str] = TOKEN) -> Look:
    source, written = (draw(st.lists(token, min_size=1, max_size=6)) for _ in range(2))
    weights = random_weights(draw(st.integers(0, 99)), len(written), len(source))
    return Look(draw(token), source, written, weights)


def random_weights(seed: int, written: int, places: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(places, 0.3), written).reshape(written, places)


class Element(NamedTuple):
    name: str
    attributes: dict[str, str | None]
    text: list[str]  # of it and of what is inside

    def said(self) -> str:
        return "".join(self.text)


class Parser(HTMLParser):
    """All elements in their order, and the text of each."""

    VOID = ("meta", "img", "td")  # td: those that are given have no text, and their end is left out

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {[one.name for one in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs), []))
        if tag not in self.VOID:
            self._open.append(self.elements[-1])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(Element(tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self._open.pop().name == tag

    def handle_data(self, data: str) -> None:
        for one in self._open:
            one.text.append(data)

    def all(self, name: str, kind: str | None = None) -> list[Element]:
        return [
            one for one in self.elements if one.name == name and (kind is None or one.attributes.get("class") == kind)
        ]


def tables(html: str) -> list[tuple[list[str], list[str], list[list[float]]]]:
    """Of each heat map the labels of its columns and rows, and the weights in its cells."""
    found: list[tuple[list[str], list[str], list[list[float]]]] = []
    for one in Parser(html).elements:
        if one.name == "table":
            found.append(([], [], []))
        elif one.name == "tr" and found and found[-1][0] != []:
            found[-1][2].append([])
        elif one.name == "th":
            columns, rows, weights = found[-1]
            (rows if weights else columns).append(one.said())
        elif one.name == "td" and found[-1][2]:
            style = one.attributes.get("style")
            found[-1][2][-1].append(0.0 if style is None else float(str(style).removeprefix("--w:")))
    return found


def as_read(token: str) -> str:
    """What a page says for a token: characters that print stand for themselves."""
    return "".join(char if char.isprintable() or char in "\u200d\ufe0f" else ascii(char)[1:-1] for char in token)


# --- texts -----------------------------------------------------------------------------------------------------------


@given(some=st.lists(looks(), min_size=1, max_size=3))
def test_a_heat_map_holds_the_tokens_and_the_weights_that_were_given(some: list[Look]) -> None:
    found = tables(page(some))
    assert len(found) == len(some)
    for (columns, rows, weights), look in zip(found, some, strict=True):
        assert columns == list(map(as_read, look.source)) and rows == list(map(as_read, look.written))
        assert np.abs(np.array(weights) - look.weights).max() <= 0.0005 + 1e-9


@given(look=looks())
def test_the_text_is_there_word_by_word_and_a_blank_before_a_word_is_a_gap(look: Look) -> None:
    parser = Parser(page([look]))
    spans = iter(parser.all("span"))
    for kind, tokens in (("source", look.source), ("written", look.written)):
        said = ""
        for token in tokens:
            apart = token == END or (token.startswith("␣") and token.strip("␣") != "")
            word = as_read(token[1:] if apart and token != END else token)
            assert next(spans).said() == word
            said += f"{' ' * apart}{word}"
        assert [one.said() for one in parser.all("p", kind)] == [said]
    assert next(spans, None) is None


@given(look=looks())
def test_whatever_a_text_says_the_page_has_the_same_elements(look: Look) -> None:
    nodes = [Node(step, step - 1, token, -1.0, "kept", True) for step, token in enumerate(look.written)]
    plain = Look("a", ["a"] * len(look.source), ["a"] * len(look.written), look.weights)
    plain_nodes = [node._replace(token="a") for node in nodes]

    def elements(one: Look) -> list[tuple[str, list[str]]]:
        found = Parser(page([one])).elements
        return [(element.name, sorted(element.attributes)) for element in found if element.name != "s"]

    assert elements(look._replace(beam=nodes)) == elements(plain._replace(beam=plain_nodes))


@given(look=looks())
def test_a_page_is_utf8_without_control_characters_and_names_nothing_outside(look: Look) -> None:
    picture = Look(
        look.about, Pixels(np.zeros((4, 4, 3), np.uint8), (2, 2)), look.written, np.ones((len(look.written), 4))
    )
    html = page([look, picture, look._replace(beam=[Node(0, -1, look.written[0], -1.0, "cut", False)])])
    html.encode()
    assert all(char.isprintable() or char in "\n\u200d\ufe0f" for char in html)
    parser = Parser(html)
    for one in parser.elements:
        outside = [
            value for name, value in one.attributes.items() if name in ("src", "href", "srcset", "data", "action")
        ]
        assert all(str(value).startswith("data:image/png;base64,") for value in outside)
        assert not any(name.startswith("on") for name in one.attributes)
        assert re.findall(r"url\((.{10})", one.attributes.get("style") or "") in ([], ["data:image"])
    assert "url(" not in parser.all("style")[0].said() and "import" not in parser.all("style")[0].said()
    (policy,) = [one for one in parser.all("meta") if "http-equiv" in one.attributes]
    assert str(policy.attributes["content"]).startswith("default-src 'none';")


def test_a_page_is_small() -> None:
    one = Look("a", ["␣word"] * 60, ["␣word"] * 60, random_weights(0, 60, 60))
    assert len(page([one] * 10)) < 10 * 100_000 + 10_000


def test_nothing_to_look_at_and_nothing_written_is_a_page_too() -> None:
    for written, source in ((0, 3), (3, 0), (0, 0)):
        look = by_words(Look("a", ["b"] * source, ["c"] * written, np.zeros((written, source))))
        assert len(Parser(page([look])).all("section")) == 1 and len(text_lines(look)) == len(look.written)
    assert Parser(page([])).all("section") == []


@pytest.mark.parametrize("what", [page, text_lines, by_words])
def test_weights_that_do_not_fit_are_refused(what: object) -> None:
    for source in (["a", "b"], Pixels(np.zeros((4, 4, 3), np.uint8), (1, 2))):
        look = Look("a", source, ["c"], np.zeros((2, 1)))
        with pytest.raises(UsageError, match=r"shape \[2, 1\], wanted one for each of 1 written tokens and 2 places"):
            what([look] if what is page else look)  # type: ignore[operator]


# --- pictures --------------------------------------------------------------------------------------------------------


def opened(data: str) -> np.ndarray:
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed")
    return np.asarray(image.open(io.BytesIO(base64.b64decode(data.removeprefix("data:image/png;base64,")))))


@given(seed=st.integers(0, 99), height=st.integers(1, 9), width=st.integers(1, 9), channels=st.sampled_from([2, 3]))
def test_a_png_holds_the_pixels_that_were_given(seed: int, height: int, width: int, channels: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)
    assert np.array_equal(opened(base64.b64encode(png(pixels)).decode()), pixels)


@given(seed=st.integers(0, 99), grid=st.tuples(st.integers(1, 5), st.integers(1, 5)))
def test_each_word_has_the_picture_with_a_veil_that_is_clear_where_it_looked(seed: int, grid: tuple[int, int]) -> None:
    values = np.random.default_rng(seed).integers(0, 256, (12, 8, 3), np.uint8)
    weights = random_weights(seed, 3, grid[0] * grid[1])
    html = page([Look("a.png", Pixels(values, grid), ["a", "<b>", END], weights)])
    parser = Parser(html)
    assert [one.said() for one in parser.all("figcaption")] == ["the picture", "a", "<b>", END]
    (frames,) = parser.all("div", "frames")
    style = str(frames.attributes["style"])
    (photo,) = re.findall(r"--picture:url\((.*?)\)", style)
    assert np.array_equal(opened(photo), values) and html.count(photo) == 1 and "--shape:8/12" in style
    figures = parser.all("figure")[1:]
    for image, figure, row in zip(parser.all("img"), figures, weights, strict=True):
        veil = opened(str(image.attributes["src"]))
        assert veil.shape == (*grid, 2) and not veil[:, :, 0].any()
        clear = 1 - veil[:, :, 1].astype(float) / VEIL
        np.testing.assert_allclose(clear * row.max(), row.reshape(grid), atol=0.5 / VEIL)
        at, weight = str(figure.attributes["title"]).split(": ")
        place = row.argmax()
        assert at == f"row {place // grid[1] + 1} column {place % grid[1] + 1}" and weight == f"{row.max():.3f}"


# --- words -----------------------------------------------------------------------------------------------------------

LETTERS = "the cat sat on a mat while another hat stood near the rat and that cat ran unbelievably fast"
SENTENCE = st.lists(
    st.sampled_from([*LETTERS.split(), "unbelievable", "nearest", "zzz", "über"]), min_size=1, max_size=8
)
KINDS: dict[str, Tokens] = {
    name: kind.learn(lambda: iter([LETTERS + "\n", LETTERS]), {"bpe": 280, "words": 10}.get(name))
    for name, kind in TOKENS.items()
}


@pytest.mark.parametrize("kind", KINDS)
@given(source=SENTENCE, written=SENTENCE, seed=st.integers(0, 99))
def test_words_have_the_weights_of_their_tokens(kind: str, source: list[str], written: list[str], seed: int) -> None:
    """Which word a token belongs to is found from the text: by the blanks that were written up to its last byte."""
    tokens = KINDS[kind]

    def spoken(words: list[str]) -> tuple[list[str], np.ndarray]:
        ids, text = tokens.encode(" ".join(words)).tolist(), " ".join(words).encode()
        halves = np.cumsum([1 if id in tokens.digits else 2 * len(tokens.written[id]) for id in ids])
        return [tokens.text(id) for id in ids], np.array([text[: (end + 1) // 2].count(b" ") for end in halves])

    (sources, at), (writtens, to) = spoken(source), spoken(written)
    writtens, to = [*writtens, END], np.array([*to, len(written)])
    weights = random_weights(seed, len(writtens), len(sources))
    found = by_words(Look("", sources, writtens, weights))
    expected = np.array(
        [
            [
                sum(weights[i, at == j].sum() for i in np.flatnonzero(to == k)) / (to == k).sum()
                for j in range(len(source))
            ]
            for k in range(len(written) + 1)
        ]
    )
    np.testing.assert_allclose(found.weights, expected)
    assert isinstance(found.source, list)
    for read, told in ((found.source, source), (found.written, [*written, END])):
        assert all(own in (word, f"␣{word}") for own, word in zip(read, told, strict=True))


@given(look=looks())
def test_joining_tokens_to_words_loses_nothing_and_rows_keep_their_sums(look: Look) -> None:
    found = by_words(look)
    assert "".join(found.source) == "".join(look.source) and "".join(found.written) == "".join(look.written)
    assert found.weights.shape == (len(found.written), len(found.source))
    np.testing.assert_allclose(found.weights.sum(1), 1)
    of_a_picture = by_words(
        look._replace(source=Pixels(np.zeros((1, len(look.source), 3), np.uint8), (1, len(look.source))))
    )
    np.testing.assert_allclose(of_a_picture.weights.sum(1), 1)
    assert of_a_picture.weights.shape == (len(found.written), len(look.source))


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["un", "break", "able", "␣glass"], ["unbreakable", "␣glass"]),
        (["cat", ".", "␣The", "␣end", ".", ".", "."], ["cat", ".", "␣The", "␣end", "..."]),
        (["don", "'t", "␣go", END], ["don", "'t", "␣go", END]),
        (["␣", "h", "i", "␣", "y", "o", "␣"], ["␣hi", "␣yo", "␣"]),
        (["␣caf", "<0xC3>", "<0xA9>", "s", "␣noir"], ["␣cafés", "␣noir"]),
        (["␣na", "<0xC_>", "<0x3_>", "<0xA_>", "<0xF_>", "f"], ["␣naïf"]),
        (["a", "<0x20><0xC3>", "<0xA9>"], ["a", "␣é"]),
        (["a", "<0xC3>", "␣b", "<0x4_>"], ["a<0xC3>", "␣b<0x4_>"]),
        (["a", "<0xE2>", "<0x80>", "<0xAE>"], ["a\\u202e"]),
        (["hello", "\\n", "you"], ["hello", "\\n", "you"]),
        (["东京", "大学", "in", "␣Tokyo"], ["东京", "大学", "in", "␣Tokyo"]),
        (["cafe", "\u0301", "s"], ["cafe\u0301s"]),
        (["a", "b", END, "c"], ["ab", END, "c"]),
        (["Straße", "␣№", "5"], ["Straße", "␣№", "5"]),
        ([], []),
    ],
)
def test_a_word_begins_where_a_reader_would_say(tokens: list[str], words: list[str]) -> None:
    assert by_words(Look("", tokens, ["x"], np.zeros((1, len(tokens))))).source == words
    assert by_words(Look("", ["x"], tokens, np.zeros((len(tokens), 1)))).written == words


# --- the terminal ----------------------------------------------------------------------------------------------------


def test_lines_name_what_was_looked_at_most() -> None:
    weights = np.array([[0.04, 0.9, 0.06, 0.0], [0.3, 0.1, 0.2, 0.4], [0.0, 0.0, 0.0, 1.0]])
    assert text_lines(Look("", ["the", "␣cat", "␣sat", "␣"], ["die", "␣Katze", END], weights)) == [
        "die     cat 0.90   sat 0.06   the 0.04",
        "Katze   ␣ 0.40   the 0.30   sat 0.20",
        "<end>   ␣ 1.00",
    ]
    picture = Pixels(np.zeros((8, 8, 3), np.uint8), (2, 2))
    assert text_lines(Look("", picture, ["one", "two", END], weights))[0] == (
        "one     row 1 column 2 0.90   row 2 column 1 0.06   row 1 column 1 0.04"
    )
    assert text_lines(Look("", ["a"], ["日本", "nez"], np.ones((2, 1)))) == ["日本   a 1.00", "nez    a 1.00"]


@given(look=looks())
def test_lines_hold_no_control_characters_and_weights_that_fall(look: Look) -> None:
    lines = text_lines(look)
    assert len(lines) == len(look.written)
    for line, weights in zip(lines, look.weights, strict=True):
        assert all(char.isprintable() or char in "\u200d\ufe0f" for char in line)
        least = sorted(weights, reverse=True)[:3]
        assert line.endswith("".join(f"{weight:.2f}" for weight in least if weight >= 0.005)[-4:])


# --- the tree of a search --------------------------------------------------------------------------------------------

SIZE, STOP = 6, 0


def searched(ending: float, steps: int, n_best: int = 0) -> tuple[list[Expansion], list[list[Hypothesis]]]:
    """Over a cell whose scores hang on all that it has read; rows whose search is over are left out."""
    table = 3 * torch.randn(97, SIZE, generator=torch.Generator().manual_seed(3))
    table[:, STOP] += ending

    def cell(tokens: Tensor, state: State) -> tuple[Tensor, State]:
        state = (7 * state + tokens + 1) % 97
        return table[state], state

    levels: list[Expansion] = []
    first, start = torch.tensor([1, 2, 3]), torch.zeros(3, dtype=torch.int64)
    beam = Beam(3, steps, STOP, n_best=n_best)
    return levels, beam.search(cell, first, start, narrow=lambda rows: cell, watch=levels.append)


def tokens_to(nodes: list[Node], at: int) -> list[int]:
    return [] if at < 0 else [*tokens_to(nodes, nodes[at].parent), int(nodes[at].token)]


@pytest.mark.parametrize("n_best", [0, 1])
@pytest.mark.parametrize("ending", [-9.0, 0.0, 1.0])
def test_a_tree_holds_every_hypothesis_that_was_found_and_leads_to_each(ending: float, n_best: int) -> None:
    levels, found = searched(ending, 6, n_best)
    for row, hypotheses in enumerate(found):
        for one in hypotheses:
            nodes = tree(levels, row, one, str)
            way = [at for at, node in enumerate(nodes) if node.best]
            assert tokens_to(nodes, way[-1]) == [*one.tokens, *[STOP] * one.ended]
            assert [nodes[at].parent for at in way] == [-1, *way[:-1]]
            assert nodes[way[-1]].log_probability == pytest.approx(one.log_probability)
            assert nodes[way[-1]].fate == ("ended" if one.ended else "kept")
        ended = [tokens_to(nodes, at)[:-1] for at, node in enumerate(nodes) if node.fate == "ended"]
        assert n_best or sorted(ended) == sorted(one.tokens for one in hypotheses if one.ended)
        for node in nodes:
            parent = nodes[node.parent]
            assert math.isfinite(node.log_probability)
            if node.parent < 0:
                assert node.step == 0
            else:
                assert parent.fate == "kept" and parent.step == node.step - 1
                assert parent.log_probability >= node.log_probability
        assert any(node.fate == "cut" for node in nodes)


def test_rows_whose_search_is_over_have_smaller_trees() -> None:
    levels, found = searched(1.0, 12, n_best=1)
    deepest = [max(node.step for node in tree(levels, row, one[0], str)) for row, one in enumerate(found)]
    assert deepest == [max(level.step for level in levels if row in level.rows.tolist()) for row in range(3)]
    assert len(set(deepest)) > 1, "rows were left out"


def test_a_row_is_followed_by_its_number_and_hypotheses_by_their_rank() -> None:
    """Of rows 4 and 2 the first is left out after a step; what is followed is not in the order of preference."""
    nothing, no = -math.inf, [False, False, False]

    def level(step: int, rows: list[int], *parts: list[list[float]]) -> Expansion:
        parents, tokens, sums, ended, kept = map(torch.tensor, parts)
        return Expansion(step, torch.tensor(rows), parents, tokens, sums, ended.bool(), kept, ())

    first = [[[0, 0, 0]] * 2, [[9, 9, 9], [5, 6, 7]], [[-1, -2, -3], [-0.5, -1.5, -2.5]], [no, no], [[0, 1], [2, 0]]]
    second = [[[1, 0, 0]], [[8, 0, 8]], [[-2.0, -3.0, nothing]], [[False, True, False]], [[0, -1]]]
    levels = [level(0, [4, 2], *first), level(1, [2], *second)]
    assert tree(levels, 2, Hypothesis([7], -3.0, -3.0, True), str) == [
        *[
            Node(0, -1, "5", -0.5, "kept", False),
            Node(0, -1, "6", -1.5, "cut", False),
            Node(0, -1, "7", -2.5, "kept", True),
        ],
        *[Node(1, 0, "8", -2.0, "kept", False), Node(1, 2, "0", -3.0, "ended", True)],
    ]
    assert [node.token for node in tree(levels, 4, Hypothesis([9], -1.0, -1.0, False), str)] == ["9"] * 3
    assert tree(levels, 0, Hypothesis([], 0.0, 0.0, False), str) == []


def test_the_drawing_has_a_box_for_each_node_and_a_line_to_each_from_its_parent() -> None:
    levels, found = searched(0.0, 6)
    best = max((one for one in found[0] if one.ended), key=lambda one: len(one.tokens))
    nodes = tree(levels, 0, best, lambda token: f"<{token}>\u202e and so on")
    parser = Parser(page([Look("a", ["b"], ["c"], np.ones((1, 1)), nodes)]))
    kinds = [f"{node.fate}{' best' * node.best}" for node in nodes]
    assert {"kept", "ended", "cut", "kept best", "ended best"} == set(kinds), "of this tree every kind of node is there"
    assert [one.attributes["class"] for one in parser.all("g")] == kinds
    assert [one.attributes["class"] for one in parser.all("path")] == kinds
    texts = [one.said() for one in parser.all("text")]
    assert texts[1::2] == [f"{node.log_probability:.2f}" for node in nodes]
    assert texts[::2] == [f"{node.token[:11]}…".replace("\u202e", "\\u202e") for node in nodes]
    titles = [one.said() for one in parser.all("title")][1:]
    assert all(
        title.startswith(f"{node.token[:3]}\\u202e and so on ") for title, node in zip(titles, nodes, strict=True)
    )
    corners = [tuple(map(int, re.findall(r"-?\d+", str(one.attributes["transform"])))) for one in parser.all("g")]
    assert len(set(corners)) == len(nodes)
    for node, corner, path in zip(nodes, corners, parser.all("path"), strict=True):
        x, y, *_, to_x, to_y = map(int, re.findall(r"-?\d+", str(path.attributes["d"])))
        parent = corners[node.parent] if node.parent >= 0 else (0, 0)
        assert (to_x, to_y - 16) == corner and (x - 92, y - 16) == parent and x < to_x
    (svg,) = parser.all("svg")
    width, height = (int(str(svg.attributes[name])) for name in ("width", "height"))
    assert max(x for x, _ in corners) + 92 < width and max(y for _, y in corners) + 32 < height


def test_a_look_without_a_search_has_no_tree() -> None:
    assert Parser(page([Look("a", ["b"], ["c"], np.ones((1, 1)))])).all("svg") == []
