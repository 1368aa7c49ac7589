"""Languages with a grammar: after each symbol it is to be said which may come next.

A target is the set of legal next symbols, as one label: `PT` where P or T may follow; `$` is the end. The tag task learns them;
it reads from both ends unless told otherwise, and then sees the end coming: `--set task.bidirectional=false`.
"""

from collections.abc import Callable

import numpy as np

from recurra.data.examples import Examples
from recurra.data.made import ONE_WAY, Part, made, part_of

END = "$"
BRACKETS = ("()", "[]", "{}", "<>")
REBER: dict[int, dict[str, int]] = {  # of each node its arcs: the symbol, and where it leads; node 7 is the end
    0: {"B": 1},
    1: {"T": 2, "P": 3},
    2: {"S": 2, "X": 4},
    3: {"T": 3, "V": 5},
    4: {"X": 3, "S": 6},
    5: {"P": 4, "V": 6},
    6: {"E": 7},
}
SHARED = 12  # symbols of the longest strings of `reber` that every part may hold: of these there are too few


def reber(draw: np.random.Generator, part: Part, count: int) -> Examples:
    """Strings of the embedded Reber grammar: B, T or P, a string of the Reber grammar, the same T or P again, E. At each symbol the
    target is the set of those that may come next. Both arcs that leave a node are equally likely. A string of more than
    12 symbols stands in one part only.

    Solved: in every string at every step the legal symbols and no others. Without memory no string is right, since after the
    second T or P comes E and after the first one never.
    Reference: Fahlman 1991, "The recurrent cascade-correlation architecture"; Cleeremans, Servan-Schreiber & McClelland 1989;
    Hochreiter & Schmidhuber 1997, section 5.1
    """
    inputs, targets = [], []
    for _ in range(count):
        symbols, follows = _embedded(draw)
        if len(symbols) > SHARED:  # another long one, or there would be too many short ones
            while len(symbols) <= SHARED or part_of("".join(symbols)) != part:
                symbols, follows = _embedded(draw)
        inputs.append(symbols)
        targets.append(follows)
    note = f"strings of the embedded Reber grammar, and what may come next{ONE_WAY}"
    return made("reber", "words", part, inputs, targets, note)


def _embedded(draw: np.random.Generator) -> tuple[list[str], list[str]]:
    """A string, and after each of its symbols the set of the next ones."""
    outer = "TP"[draw.integers(0, 2)]
    symbols, follows, node = [], [], 0
    while node != 7:
        arcs = list(REBER[node])
        symbols.append(arcs[draw.integers(0, len(arcs))])
        node = REBER[node][symbols[-1]]
        follows.append("".join(sorted(REBER[node])) if node != 7 else outer)
    return ["B", outer, *symbols, outer, "E"], ["PT", "B", *follows, "E", END]


def dyck(draw: np.random.Generator, part: Part, count: int, length: int = 50, kinds: int = 2) -> Examples:
    """Dyck-k: well-nested brackets of k = `kinds` kinds, 2 to `length` of them, in the test part more than that to twice as
    many. All even lengths are equally likely, and so are all nestings of one length and the kinds of all pairs. The target is
    what may come next: every opening bracket and the closing one of the innermost that is open, or the end where none is.

    Solved: whole strings right, at lengths that were not trained on. Without memory a string is right only where no bracket
    stands in another, one of Catalan(m) with m pairs.
    Reference: Suzgun, Gehrmann, Belinkov & Shieber 2019, arXiv:1911.03329; uniform nestings by the cycle lemma, Dvoretzky &
    Motzkin 1947
    """
    inputs, targets = [], []
    openers = "".join(pair[0] for pair in BRACKETS[:kinds])
    for _ in range(count):
        symbols: list[str] = []
        follows: list[str] = []
        open_ones: list[str] = []
        for up in nesting(draw, _size(draw, part, length // 2)):
            if up:
                pair = BRACKETS[draw.integers(0, kinds)]
                open_ones.append(pair[1])
                symbols.append(pair[0])
            else:
                symbols.append(open_ones.pop())
            follows.append(openers + (open_ones[-1] if open_ones else END))
        inputs.append(symbols)
        targets.append(follows)
    note = f"well-nested brackets of {kinds} kinds, and what may come next{ONE_WAY}"
    return made(f"dyck-{kinds}", "words", part, inputs, targets, note)


def nesting(draw: np.random.Generator, pairs: int) -> np.ndarray:
    """Well-nested brackets of so many pairs, as booleans that say which open. All nestings are equally likely: of the rotations
    of a random row of pairs + 1 steps up and `pairs` down, exactly one stays above where it began, and without its first step
    it is a nesting."""
    steps = draw.permutation(np.repeat([1, -1], [pairs + 1, pairs]))
    heights = np.cumsum(steps)
    lowest = len(heights) - 1 - int(heights[::-1].argmin())  # the last place of the least height
    return np.roll(steps, -(lowest + 1))[1:] > 0


def anbn(draw: np.random.Generator, part: Part, count: int, length: int = 50) -> Examples:
    """Strings a^n b^n with n from 1 to N = `length`, all equally likely, in the test part from N + 1 to 2 N. After an a may come
    a or b, after a b another b until there are as many, and then the end. It takes one counter.

    Solved: whole strings right for every n, at n that were not trained on. Without memory no string of n above 1 is right.
    Reference: Gers & Schmidhuber 2001, "LSTM recurrent networks learn simple context-free and context-sensitive languages";
    Weiss, Goldberg & Yahav 2018, arXiv:1805.04908
    """
    follows = lambda n: ["ab"] * n + ["b"] * (n - 1) + [END]  # noqa: E731
    return _counted("anbn", "ab", follows, draw, part, count, length)


def anbncn(draw: np.random.Generator, part: Part, count: int, length: int = 50) -> Examples:
    """Strings a^n b^n c^n with n from 1 to N = `length`, all equally likely, in the test part from N + 1 to 2 N, and what may
    come next. No context-free grammar has them; it takes two counters.

    Solved: whole strings right for every n, at n that were not trained on. Without memory no string of n above 1 is right.
    Reference: as for `anbn`
    """
    follows = lambda n: ["ab"] * n + ["b"] * (n - 1) + ["c"] * n + [END]  # noqa: E731
    return _counted("anbncn", "abc", follows, draw, part, count, length)


def _counted(
    name: str,
    letters: str,
    follows: Callable[[int], list[str]],
    draw: np.random.Generator,
    part: Part,
    count: int,
    length: int,
) -> Examples:
    times = [_size(draw, part, length) for _ in range(count)]
    inputs = [[letter for letter in letters for _ in range(n)] for n in times]
    note = f"{' '.join(f'{letter}^n' for letter in letters)} for n up to {max(times)}, and what may come next{ONE_WAY}"
    return made(name, "words", part, inputs, [follows(n) for n in times], note)


def _size(draw: np.random.Generator, part: Part, most: int) -> int:
    """From 1 to `most`; in the test part what lies beyond, to twice as much."""
    return int(draw.integers(1, most + 1)) + (most if part == "test" else 0)
