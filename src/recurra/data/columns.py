"""Files -> sequences of words with a tag for each: columns of CoNLL, tables with a sentence a row, JSON lines."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from recurra.data.examples import Examples
from recurra.data.labelled import JSON_LINES, Problem, counted, joined, kind_of, numbered, objects, settle
from recurra.data.read import shown
from recurra.errors import DataError
from recurra.spans import OUTSIDE, Span, bio_problems

TOKEN_NAMES = ("tokens", "words")
TAG_NAMES = ("tags", "labels", "ner_tags", "slots")
HEAD_NAMES = ("intent",)
OTHER_KINDS = {
    ".csv": "write a token and its tag a line, parted by a blank, and a blank line after each sentence, and call it .conll",
    ".parquet": "write one object {tokens, tags} a line and call it .jsonl",
    ".conllu": "write token and tag alone, parted by a blank, and call it .conll",
}
DOCUMENT = "-DOCSTART-"
LETTER = "[^\\W\\d_]"
# What follows a letter and belongs to it: combining marks, vowel signs, joiners.
MARKS = "\u0300-\u036f\u0483-\u0489\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0963\u0e31-\u0e4e\u200c\u200d\u3099\u309a"
TOKEN = re.compile(
    rf"(?:(?<={LETTER})['\u2019](?={LETTER}))?(?:{LETTER}[{MARKS}]*)+"  # a word, or what follows an apostrophe, with it
    r"|\d+(?:[.,:/]\d+)*"  # a number, a time, a date
    r"|\S"
)


class Token(NamedTuple):
    """A token and where it lies in its text, in characters."""

    word: str
    begin: int
    end: int  # one past its last


class Sentence(NamedTuple):
    line: int
    tokens: list[str]
    tags: list[str] | None
    head: str | None


class Part(NamedTuple):
    """What one file holds."""

    sentences: list[Sentence]
    problems: list[Problem]
    notes: list[str]


class Shape(NamedTuple):
    """What the lines of a CoNLL file have in common."""

    tabs: bool
    width: int
    tags: frozenset[str]  # all that are in use


def tagged(paths: Sequence[Path], *, wanted: bool = True, tolerant: bool = False) -> Examples:
    """The sentences of the files as lists of tokens with a tag for each, in the order of the files.

    `.jsonl` and `.ndjson`, an object a line: `tokens` and `tags`, or a `text` with `labels` of the form
    [slot, first character, one past the last]; `intent`, if there is one, goes to `heads`. `.tsv`: tokens and tags, each
    parted by blanks, after an intent or without. Any other kind, and `.tsv` with blank lines inside: columns of CoNLL,
    the token first and the tag last. `.gz` and `.xz` around any of them.

    With `wanted=False` there are no targets and no heads, and tags are passed over. Rows and sentences that cannot be
    read raise DataError with the place of the first; with `tolerant` they are left out and listed in `problems`. How the
    files were understood is said in `notes`.
    """
    parts = [_part(path, wanted) for path in paths]
    headed = wanted and any(sentence.head is not None for part in parts for sentence in part.sentences)
    kept: list[Sentence] = []
    places: list[str] = []
    problems: list[str] = []
    for path, part in zip(paths, parts, strict=True):
        name, found = shown(path), list(part.problems)
        for sentence in part.sentences:
            place, lack = f"{name}:{sentence.line}", _lack(sentence, wanted, headed)
            if lack:
                found.append((sentence.line, f"{place} {lack}"))
            else:
                kept.append(sentence)
                places.append(place)
        problems += [words for _, words in sorted(found)]
    settle(problems, tolerant)
    return Examples(
        "words",
        [sentence.tokens for sentence in kept],
        [sentence.tags for sentence in kept] if wanted else None,
        [str(sentence.head) for sentence in kept] if headed else None,
        places,
        notes=joined([(path, part.notes) for path, part in zip(paths, parts, strict=True)])
        + (_unbegun(kept, places) if wanted else []),
        problems=problems,
    )


def split_with_offsets(text: str, cuts: Iterable[int] = ()) -> list[Token]:
    """The words, numbers and marks of a text, which hold all of it but its white space.

    Words are runs of letters, and what follows an apostrophe in them is a token of its own, so that a name comes off its
    genitive; digits and letters are parted (7:30pm is 7:30 and pm). A token that lies across one of the positions `cuts`
    is cut there.
    """
    borders = sorted(set(cuts))
    found = []
    for match in TOKEN.finditer(text):
        begin, end = match.span()
        inside = borders[bisect_right(borders, begin) : bisect_left(borders, end)]
        found += [Token(text[first:last], first, last) for first, last in pairwise([begin, *inside, end])]
    return found


def _part(path: Path, wanted: bool) -> Part:
    kind = kind_of(path)
    if kind in OTHER_KINDS:
        raise DataError(f"{shown(path)}: files of kind {kind} are not read for tags: {OTHER_KINDS[kind]}")
    if kind in JSON_LINES:
        part = _json_lines(path, wanted)
    else:
        lines = numbered(path)
        filled = [number for number, line in lines if line.strip()]
        gaps = bool(filled) and filled[-1] - filled[0] >= len(filled)
        part = _table(path, lines, wanted) if kind == ".tsv" and not gaps else _conll(path, lines, wanted)
    if not part.sentences and not part.problems:
        raise DataError(f"{shown(path)} holds no sentence: give a file with tokens")
    return part


def _lack(sentence: Sentence, wanted: bool, headed: bool) -> str:
    """What a sentence lacks, in words."""
    if not sentence.tokens or "" in sentence.tokens:
        return "has an empty token" if sentence.tokens else "has no token"
    if not wanted:
        return ""
    if sentence.tags is None:
        return "has no tags"
    if len(sentence.tags) != len(sentence.tokens):
        return f"has {len(sentence.tokens)} tokens and {len(sentence.tags)} tags"
    if "" in sentence.tags:
        return "has an empty tag"
    return "has no intent, and others have" if headed and sentence.head is None else ""


def _unbegun(sentences: list[Sentence], places: list[str]) -> list[str]:
    wrong = [
        (place, step)
        for place, sentence in zip(places, sentences, strict=True)
        for step in bio_problems(sentence.tags or [])
    ]
    if not wrong:
        return []
    place, step = wrong[0]
    return [
        f"{len(wrong)} tags I- go on with a span that was not begun (the first: {place}, token {step + 1}): they begin it"
    ]


# Columns of CoNLL


def _conll(path: Path, lines: list[tuple[int, str]], wanted: bool) -> Part:
    """A line for each token, a blank line after each sentence; marks of documents and comments are left out and said."""
    shape = _shape(lines)
    if wanted and shape.width == 1:
        raise DataError(
            f"{shown(path)} has one column: wanted a token and its tag on each line, parted by a blank or a tab"
        )
    name = shown(path)
    sentences: list[Sentence] = []
    problems: list[Problem] = []
    documents = comments = 0
    for between, group in groupby(lines, lambda line: not line[1].strip(" \t") or line[1].startswith(DOCUMENT)):
        block = list(group)
        if between:
            documents += sum(line.startswith(DOCUMENT) for _, line in block)
            continue
        rows = _without_comments(block, shape)
        comments += len(block) - len(rows)
        wrong = next(((line, len(cells)) for line, cells in rows if len(cells) != shape.width), None)
        if wrong:
            hint = "" if wanted else " (sentences, one a line, are read from .tsv)"
            words = f"{name}:{wrong[0]} has {_columns(wrong[1])}, and the first line {shape.width}{hint}"
            problems.append((wrong[0], words))
        elif rows:
            tags = [cells[-1] for _, cells in rows] if shape.width > 1 else None
            sentences.append(Sentence(rows[0][0], [cells[0] for _, cells in rows], tags, None))
    notes = ["each line is a token" + (", and its last column the tag" if wanted else "")]
    if shape.width > 2 or (shape.width == 2 and not wanted):
        notes.append(f"columns not read: {', '.join(map(str, range(2, shape.width + (not wanted))))}")
    notes += counted(documents, f"lines {DOCUMENT} are left out") + counted(comments, "comments (# ...) are left out")
    return Part(sentences, problems, notes)


def _shape(lines: list[tuple[int, str]]) -> Shape:
    filled = [line for _, line in lines if line.strip(" \t") and not line.startswith(DOCUMENT)]
    plain = [line for line in filled if not line.startswith("#")] or filled
    tabs = bool(plain) and "\t" in plain[0].strip(" \t")
    width = len(_cells(plain[0], tabs)) if plain else 0
    return Shape(tabs, width, frozenset([OUTSIDE, *(_cells(line, tabs)[-1] for line in plain)]))


def _cells(line: str, tabs: bool) -> list[str]:
    """The cells of a line; only blank and tab part them, since other white space may be a token."""
    return [cell.strip(" ") for cell in line.split("\t")] if tabs else re.split("[ \t]+", line.strip(" \t"))


def _without_comments(block: list[tuple[int, str]], shape: Shape) -> list[tuple[int, list[str]]]:
    """The rows of a sentence. `# O` is a token, `# id 7` is not: a comment has not as many columns as the others, or,
    before the first token, a last one that is no tag."""
    rows: list[tuple[int, list[str]]] = []
    for line, text in block:
        cells = _cells(text, shape.tabs)
        untagged = shape.width > 1 and not rows and cells[-1] not in shape.tags
        if not text.startswith("#") or (len(cells) == shape.width and not untagged):
            rows.append((line, cells))
    return rows


def _columns(count: int) -> str:
    return f"{count} column{'s' * (count != 1)}"


# A sentence a row


def _table(path: Path, lines: list[tuple[int, str]], wanted: bool) -> Part:
    """tokens | tokens, tags | intent, tokens, tags, more: parted by tabs, or under the names of the columns."""
    rows = [(line, text.split("\t")) for line, text in lines if text.strip()]
    width = len(rows[0][1]) if rows else 0
    names = [cell.strip().casefold() for cell in rows[0][1]] if rows else []
    named = set(names) & set(TOKEN_NAMES) and (set(names) & set(TAG_NAMES) or not wanted)
    if named:
        tokens, tags, head = (_place(names, some) for some in (TOKEN_NAMES, TAG_NAMES, HEAD_NAMES))
        rows = rows[1:]
    else:
        tokens, tags, head = {1: (0, None, None), 2: (0, 1, None)}.get(width, (1, 2, 0))
    if wanted and rows and tags is None:
        raise DataError(
            f"{shown(path)} has one column: wanted tokens and tags, or intent, tokens and tags, parted by tabs"
        )
    name = shown(path)
    sentences, problems = [], []
    for line, cells in rows:
        if len(cells) != width:
            problems.append((line, f"{name}:{line} has {_columns(len(cells))}, and the first line {width}"))
        else:
            words, marks = _words(cells, tokens) or [], _words(cells, tags) if wanted else None
            intent = cells[head].strip() or None if wanted and head is not None else None
            sentences.append(Sentence(line, words, marks, intent))
    found = [("tokens", tokens), *([("tags", tags), ("intent", head)] if wanted else [])]
    said = ", ".join(f"{what} in column {column + 1}" for what, column in found if column is not None)
    rest = [str(column + 1) for column in range(width) if column not in [place for _, place in found]]
    return Part(sentences, problems, [f"each line is a sentence: {said}", *_unread(rest)])


def _place(names: list[str], wanted: Sequence[str]) -> int | None:
    return next((names.index(name) for name in wanted if name in names), None)


def _words(cells: list[str], column: int | None) -> list[str] | None:
    return None if column is None else [word for word in cells[column].split(" ") if word]


def _unread(rest: list[str]) -> list[str]:
    return [f"not read: {', '.join(rest[:12])}{' ...' if len(rest) > 12 else ''}"] if rest else []


# JSON lines


def _json_lines(path: Path, wanted: bool) -> Part:
    """An object a line, in either form."""
    name = shown(path)
    sentences: list[Sentence] = []
    problems: list[Problem] = []
    lost: list[str] = []
    keys: dict[str, None] = {}
    cut = 0  # texts that were cut into tokens
    for line, found in objects(path):
        try:
            if isinstance(found, str):
                raise _Unfit(found)
            spanned = _first(found, TOKEN_NAMES) is None
            sentence, out = _from_text(line, found, wanted) if spanned else (_from_tokens(line, found, wanted), [])
        except _Unfit as why:
            problems.append((line, f"{name}:{line} {why}"))
            continue
        sentences.append(sentence)
        lost += [f"{name}:{line} {span}" for span in out]
        keys.update(dict.fromkeys(found))
        cut += spanned
    read = {"text" * (cut > 0), *TOKEN_NAMES, *((*TAG_NAMES, *HEAD_NAMES) if wanted else ())}
    notes = counted(len(sentences) - cut, "objects hold tokens" + " and their tags" * wanted)
    notes += counted(cut, "texts are cut into words, numbers and marks" + ", and tagged by their spans" * wanted)
    notes += _unread([repr(key) for key in keys if key not in read])
    if lost:
        notes.append(f"{len(lost)} spans are left out, which overlap others or are blank (the first: {lost[0]})")
    return Part(sentences, problems, notes)


class _Unfit(Exception):  # noqa: N818 - carries the words of a problem up to where its place is known
    pass


def _first(found: dict[str, Any], names: Sequence[str]) -> Any:
    return next((found[name] for name in names if found.get(name) is not None), None)


def _head(found: dict[str, Any], wanted: bool) -> str | None:
    head = _first(found, HEAD_NAMES) if wanted else None
    if head is not None and not isinstance(head, str):
        raise _Unfit(f"has an intent that is no text: {head!r:.40}")
    return head or None


def _from_tokens(line: int, found: dict[str, Any], wanted: bool) -> Sentence:
    tokens = _strings("tokens", _first(found, TOKEN_NAMES))
    tags = _first(found, TAG_NAMES) if wanted else None
    return Sentence(line, tokens, None if tags is None else _strings("tags", tags), _head(found, wanted))


def _strings(what: str, some: Any) -> list[str]:
    if not isinstance(some, list):
        raise _Unfit(f"has {what} that are no list: {some!r:.40}")
    wrong = [one for one in some if not isinstance(one, str)]
    if wrong:
        hint = "; write the names of tags, not their numbers" if isinstance(wrong[0], int) and what == "tags" else ""
        raise _Unfit(f"has {what} that are no texts: {wrong[0]!r:.40}{hint}")
    return some


def _from_text(line: int, found: dict[str, Any], wanted: bool) -> tuple[Sentence, list[str]]:
    """A text with spans of characters as tokens with tags, and the spans left out, in words.

    Of two spans that overlap the one that begins first is kept, or else the longer; a span of white space is left out.
    """
    text, spans = found.get("text"), _first(found, TAG_NAMES) if wanted else []
    if not isinstance(text, str):
        raise _Unfit("has neither tokens nor a text")
    if not isinstance(spans, list):
        raise _Unfit("has no labels" if spans is None else "has labels that are no list of [slot, begin, end]")
    kept: list[Span] = []
    lost: list[str] = []
    for slot in sorted((_slot(one, text) for one in spans), key=lambda slot: (slot.begin, -slot.end)):
        if (kept and slot.begin < kept[-1].end) or not text[slot.begin : slot.end].strip():
            lost.append(f"{slot.kind} {slot.begin}:{slot.end}")
        else:
            kept.append(slot)
    tokens = split_with_offsets(text, [border for slot in kept for border in (slot.begin, slot.end)])
    begins, tags = [token.begin for token in tokens], [OUTSIDE] * len(tokens)
    for slot in kept:
        first, last = bisect_left(begins, slot.begin), bisect_left(begins, slot.end)
        tags[first:last] = [f"B-{slot.kind}", *[f"I-{slot.kind}"] * (last - first - 1)]
    return Sentence(line, [token.word for token in tokens], tags if wanted else None, _head(found, wanted)), lost


def _slot(one: Any, text: str) -> Span:
    """One label, its ends counted in characters."""
    match one:
        case [str(name), int(begin), int(end)] if name and 0 <= begin < end <= len(text):
            return Span(name, begin, end)
    raise _Unfit(f"has a label that is no [slot, begin, end] inside its {len(text)} characters: {one!r:.60}")
