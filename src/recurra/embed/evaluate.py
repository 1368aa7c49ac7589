"""Word vectors against people: questions of analogy, and pairs of words whose likeness was judged."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recurra.data.read import characters, shown
from recurra.embed.vectors import Vectors
from recurra.errors import DataError

AT_ONCE = 512  # questions in one product


class Score(NamedTuple):
    """`value` over the `asked` of `given` whose words all have vectors."""

    value: float
    asked: int
    given: int


def evaluate(vectors: Vectors, path: Path | str, *, fold: bool = True) -> dict[str, Any]:
    """What a file of either kind says of the vectors.

    Questions, four words a line under `: section` lines: a is to b as c is to d, or two words a line, of which each pair asks
    for each other one; counted is the share where d is the word
    nearest to b - a + c, the three left out. Judged pairs, two words and a number a line, with tabs or blanks: the rank
    correlation of the cosine with the numbers. With `fold`, words are looked up in small letters where the vectors have them
    so. Raises DataError for a line of another form, with its number.
    """
    lines = list(_lines(path))
    if lines and lines[0][1].startswith(":"):
        return {"kind": "analogies", **_analogies(vectors, path, lines, fold)}
    return {"kind": "similarity", **_similarity(vectors, path, lines, fold)}


def _lines(path: Path | str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate("".join(characters(path)).splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            yield number, line.strip()


def _place(vectors: Vectors, word: str, fold: bool) -> int:
    found = vectors.place.get(word.lower()) if fold else None
    return found if found is not None else vectors.place.get(word, -1)


def _analogies(vectors: Vectors, path: Path | str, lines: list[tuple[int, str]], fold: bool) -> dict[str, Any]:
    sections: dict[str, list[list[int]]] = {}
    name = ""
    for number, line in lines:
        if line.startswith(":"):
            name = line[1:].strip()
            sections[name] = []
            continue
        words = line.split()
        if len(words) not in (2, 4):
            raise DataError(f"{shown(path)}, line {number} has {len(words)} words, wanted four: a is to b as c is to d")
        sections[name].append([_place(vectors, word, fold) for word in words])
    scores = {name: _section(vectors, _questions(rows)) for name, rows in sections.items()}
    right = sum(round(score.value * score.asked) for score in scores.values())
    asked, given = sum(score.asked for score in scores.values()), sum(score.given for score in scores.values())
    return {
        "accuracy": right / max(1, asked),
        "asked": asked,
        "given": given,
        "sections": {name: score._asdict() for name, score in scores.items()},
    }


def _questions(rows: list[list[int]]) -> np.ndarray:
    """[questions, 4]; of a section of pairs, every pair with every other one."""
    if rows and all(len(row) == 2 for row in rows):
        rows = [[*one, *other] for one in rows for other in rows if one is not other]
    return np.array(rows, np.int64).reshape(-1, 4)


def _section(vectors: Vectors, questions: np.ndarray) -> Score:
    known = questions[(questions >= 0).all(1)]
    units, right = vectors.directions, 0
    for begin in range(0, len(known), AT_ONCE):
        a, b, c, d = known[begin : begin + AT_ONCE].T
        nearness = (units[b] - units[a] + units[c]) @ units.T
        for given in (a, b, c):
            nearness[np.arange(len(a)), given] = -np.inf
        right += int((nearness.argmax(1) == d).sum())
    return Score(right / max(1, len(known)), len(known), len(questions))


def _similarity(vectors: Vectors, path: Path | str, lines: list[tuple[int, str]], fold: bool) -> dict[str, Any]:
    judged, cosines, given = [], [], 0
    units = vectors.directions
    for number, line in lines:
        parts = line.split("\t") if "\t" in line else line.split()
        try:
            score = float(parts[2])
        except (ValueError, IndexError):
            if number == lines[0][0]:
                continue  # the names of the columns
            raise DataError(f"{shown(path)}, line {number}: {line[:60]!r}; wanted two words and a number") from None
        given += 1
        one, other = (_place(vectors, word, fold) for word in parts[:2])
        if one >= 0 and other >= 0:
            judged.append(score)
            cosines.append(float(units[one] @ units[other]))
    if not given:
        raise DataError(
            f"{shown(path)} holds neither questions nor judged pairs; wanted lines of four words, or of two and a number"
        )
    return {"spearman": spearman(np.array(judged), np.array(cosines)), "asked": len(judged), "given": given}


def spearman(xs: np.ndarray, ys: np.ndarray) -> float:
    """The correlation of the ranks, equal values sharing their mean rank; nan for fewer than two different values."""
    ranks = [_ranks(part) for part in (xs, ys)]
    if len(xs) < 2 or min(np.ptp(part) for part in ranks) == 0:
        return float("nan")
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return (last - (counts - 1) / 2)[places]
