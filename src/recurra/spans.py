"""Spans of steps written as tags, one a step, and their scores.

`B-X` begins a span of kind X, `I-X` goes on, `O` is outside (Ramshaw and Marcus 1995); in the longer alphabet `E-X` ends
one and `S-X` is one of a single step. Read as the script `conlleval` of the CoNLL-2000 task reads them, which takes every
sequence of tags, well-formed or not.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from recurra.errors import UsageError

OUTSIDE = "O"
PREFIXES = ("B", "I", "E", "S")


class Span(NamedTuple):
    kind: str
    begin: int  # its first step
    end: int  # the step after its last


def spans(tags: Sequence[str]) -> list[Span]:
    """The spans of a sequence, in order.

    A span begins at B-X and S-X, and at I-X and E-X wherever no open span of kind X lies before it; it ends after E-X and
    S-X, and where another begins or a step is outside. A tag without prefix is the kind itself, and a run of it is one
    span; a prefix alone has the kind `_`.
    """
    found: list[Span] = []
    before, open_kind = OUTSIDE, ""
    for place, tag in enumerate(tags):
        prefix, kind = _parts(tag)
        if prefix != OUTSIDE:
            begins = prefix in "BS" or before in "OES" or kind != open_kind
            begin = place if begins else found.pop().begin
            found.append(Span(kind, begin, place + 1))
        before, open_kind = prefix, kind
    return found


def bio_problems(tags: Sequence[str]) -> list[int]:
    """The steps at which a span goes on that was not begun: I-X (or E-X) that follows neither B-X nor I-X."""
    return [
        place
        for place, (before, tag) in enumerate(pairwise([OUTSIDE, *tags]))
        if _has_prefix(tag) and tag[0] in "IE" and before not in ("B" + tag[1:], "I" + tag[1:])
    ]


def span_scores(gold: Sequence[Sequence[str]], guess: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Precision, recall and F1 of the guessed spans; a span is right if its kind and both ends are.

    Over all spans together (micro), and under "kinds" for each kind, beside the counts they come from: `right`, `gold`,
    `guess`. A share of nothing is 0. Raises UsageError unless there are as many guessed tags as true ones.
    """
    if [len(tags) for tags in gold] != [len(tags) for tags in guess]:
        raise UsageError(
            f"{_size(gold)} were to be compared with {_size(guess)}: give one guessed tag for each true one"
        )
    true, guessed, right = Counter[str](), Counter[str](), Counter[str]()
    for true_tags, guessed_tags in zip(gold, guess, strict=True):
        some, others = spans(true_tags), spans(guessed_tags)
        true.update(span.kind for span in some)
        guessed.update(span.kind for span in others)
        right.update(span.kind for span in set(some) & set(others))
    kinds = {kind: _scores(right[kind], true[kind], guessed[kind]) for kind in sorted(true | guessed)}
    return {**_scores(right.total(), true.total(), guessed.total()), "kinds": kinds}


def _parts(tag: str) -> tuple[str, str]:
    """Prefix and kind; a tag without prefix counts as an I, since only a change of kind parts two of them."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    if not _has_prefix(tag):
        return "I", tag
    return tag[0], tag[2:] or "_"


def _has_prefix(tag: str) -> bool:
    return tag.split("-", 1)[0] in PREFIXES


def _scores(right: int, gold: int, guess: int) -> dict[str, Any]:
    return {
        "precision": right / guess if guess else 0.0,
        "recall": right / gold if gold else 0.0,
        "f1": 2 * right / (gold + guess) if gold + guess else 0.0,
        "right": right,
        "gold": gold,
        "guess": guess,
    }


def _size(sequences: Sequence[Sequence[str]]) -> str:
    return f"{sum(map(len, sequences))} tags in {len(sequences)} sequences"
